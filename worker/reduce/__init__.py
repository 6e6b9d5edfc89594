"""How shard gradients become one: the canonical order, the shared memory, the barrier."""
