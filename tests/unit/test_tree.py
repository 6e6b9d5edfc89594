"""The canonical tree: every number of workers adds the same pairs."""

import numpy as np
import pytest

from worker.reduce.tree import Compute, Join, Node, assign, cross_joins, shards_of

SHARDS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 31, 64]


def reduce_with(gradients: list[np.ndarray], num_workers: int) -> np.ndarray:
    """What num_workers workers make of the shards' gradients, by the plans alone."""
    num_shards = len(gradients)
    plans = [assign(rank, num_workers=num_workers, num_shards=num_shards) for rank in range(num_workers)]
    slots_per_worker = max(plan.num_slots for plan in plans)
    slots: dict[int, np.ndarray] = {}
    for rank, plan in enumerate(plans):
        base = rank * slots_per_worker
        for action in plan.actions:
            match action:
                case Compute(shard, slot):
                    slots[base + slot] = gradients[shard].copy()
                case Join(into, other):
                    slots[base + into] = slots[base + into] + slots.pop(base + other)
    for join in cross_joins(plans, slots_per_worker):
        slots[join.into] = slots[join.into] + slots.pop(join.other)
    assert set(slots) == {0}
    return slots[0]


@pytest.mark.parametrize("num_shards", SHARDS)
def test_every_number_of_workers_gives_the_same_bits(num_shards: int) -> None:
    random = np.random.default_rng(num_shards)
    gradients = [
        random.standard_normal(50).astype(np.float32) * 10.0 ** random.integers(-4, 4) for _ in range(num_shards)
    ]
    alone = reduce_with(gradients, 1)
    for num_workers in range(2, num_shards + 1):
        assert reduce_with(gradients, num_workers).tobytes() == alone.tobytes()


def test_order_matters_to_the_bits() -> None:
    """Otherwise the test above would prove nothing."""
    random = np.random.default_rng(0)
    gradients = [random.standard_normal(50).astype(np.float32) for _ in range(4)]
    in_a_row = ((gradients[0] + gradients[1]) + gradients[2]) + gradients[3]
    assert reduce_with(gradients, 2).tobytes() != in_a_row.tobytes()


@pytest.mark.parametrize("num_shards", SHARDS)
def test_shards_are_dealt_out_once_and_evenly(num_shards: int) -> None:
    for num_workers in range(1, num_shards + 1):
        parts = [shards_of(rank, num_workers=num_workers, num_shards=num_shards) for rank in range(num_workers)]
        assert [shard for part in parts for shard in part] == list(range(num_shards))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("num_shards", SHARDS)
def test_slots_and_partial_sums_are_few(num_shards: int) -> None:
    bound = 2 * max(1, (num_shards - 1).bit_length()) + 1
    for num_workers in range(1, num_shards + 1):
        for rank in range(num_workers):
            plan = assign(rank, num_workers=num_workers, num_shards=num_shards)
            assert len(plan.partials) <= plan.num_slots <= bound


def test_a_node_splits_behind_the_largest_power_of_two() -> None:
    assert Node(0, 6).children() == (Node(0, 4), Node(4, 6))
    assert Node(0, 8).children() == (Node(0, 4), Node(4, 8))
    assert Node(4, 7).children() == (Node(4, 6), Node(6, 7))


@pytest.mark.parametrize("num_workers", [0, 5])
def test_more_workers_than_shards_are_refused(num_workers: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 4"):
        assign(0, num_workers=num_workers, num_shards=4)
