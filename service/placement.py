"""On which nodes of the cluster new workers of a job are started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray._private.state import available_resources_per_node  # has no public name
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def place(count: int, free: Mapping[str, int], *, home: Sequence[str]) -> tuple[str, ...]:
    """Nodes, by id, for so many workers, of those with slots `free`.

    The job's own nodes come first, in the order of `home`; others join it as few as possible, the roomiest first. For
    workers that nobody has room for it is the first one of all: there they wait, or wherever room turns up.
    """
    others = sorted(free.keys() - set(home), key=lambda node: (-free[node], node))
    order = [*home, *others]
    slots = [node for node in order for _ in range(max(free.get(node, 0), 0))]
    return tuple(slots[:count]) + (order[0],) * (count - len(slots))


def free_slots() -> Mapping[str, int]:
    """The processors that nobody has, by node; asks Ray, and waits for its answer."""
    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]  # Ray's own
    return {node: int(resources.get("CPU", 0.0)) for node, resources in free.items()}


def preferring(node: str) -> NodeAffinitySchedulingStrategy:
    """Ray's strategy for a worker that is meant for a node; where others are quicker, it goes to another, or waits."""
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
