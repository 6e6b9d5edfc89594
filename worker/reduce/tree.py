"""The canonical order of a sum: one fixed binary tree over shard numbers.

Floating-point addition is not associative, so the order in which shard gradients are added is the job's, never
the cluster's. The tree over S shards is fixed by S alone: a node [lo, hi) splits behind the largest power of two
smaller than its size. A worker owns a contiguous run of shards. What the tree joins of its own it may add as it comes,
or leave to the pass over all workers' partial sums (`cross_joins`), which goes block by block and finds each in the
cache, where a join by itself reads two whole vectors and writes one. So up to MOST_PARTIALS sums are left, and more
only where the tree needs more, at most 2 log2(S) a worker. Either way the same pairs are added, so any number of
workers gives the same bits.

    S = 12             [0,12)            2 workers: 0-5 | 6-11
                     /        \\          worker 0 adds 0+1 and 2+3, and leaves [0,2), [2,4), 4, 5
               [0,8)          [8,12)     worker 1 adds 6+7 and 8+9, and leaves [6,8), [8,10), 10, 11
              /     \\         /    \\     across: [0,2)+[2,4), 4+5, [4,6)+[6,8), [0,4)+[4,8), 10+11,
        [0,4)     [4,8)   [8,10) [10,12)         [8,10)+[10,12), [0,8)+[8,12)
        /  \\      /  \\      /  \\     /  \\
    [0,2) [2,4) [4,6) [6,8) 8   9  10  11

Slots: a worker's partial sum number j stands in its gradient slot j; deeper slots are scratch for the right-hand
sides of joins under way. A run of k shards needs at most k slots, so S slots are enough for any number of workers;
each worker's slots follow those of the worker before it. Shards with no join between them have slots side by side, so
that one pass can compute them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

MOST_PARTIALS = 4  # partial sums that a worker leaves where it could join them


@dataclass(frozen=True)
class Node:
    """The sum of the gradients of shards first, ..., last-1."""

    first: int
    last: int

    def children(self) -> tuple[Node, Node]:
        """The two nodes whose sum this is; only for nodes of two or more shards."""
        size = self.last - self.first
        middle = self.first + (1 << (size - 1).bit_length() - 1)
        return Node(self.first, middle), Node(middle, self.last)

    @property
    def is_leaf(self) -> bool:
        """Whether it is a single shard's gradient."""
        return self.last - self.first == 1


@dataclass(frozen=True)
class Compute:
    """Compute the gradients of some shards, each into a slot of its own: the first into `slot`, the others behind."""

    shards: range
    slot: int

    def passes(self, most: int) -> Iterator[Compute]:
        """The same in passes over at most so many shards."""
        for first in range(0, len(self.shards), most):
            yield Compute(self.shards[first : first + most], self.slot + first)


@dataclass(frozen=True)
class Join:
    """Add one slot to another: slot `into` becomes slot `into` + slot `other`."""

    into: int
    other: int


@dataclass(frozen=True)
class Assignment:
    """One worker's part of a step: what it computes and adds, in order, and the partial sums it leaves.

    `partials[j]` stands in slot j at the end; `num_slots` is the number of gradient slots it needs on the way.
    """

    shards: range
    actions: tuple[Compute | Join, ...]
    partials: tuple[Node, ...]
    num_slots: int


def cover(shards: range, *, num_shards: int) -> list[Node]:
    """The largest nodes of the tree that lie within these contiguous shards, left to right."""
    return _cover(Node(0, num_shards), shards)


def assignment_of(shards: range, *, num_shards: int) -> Assignment:
    """What the worker with these contiguous shards does in a step."""
    partials = cover(shards, num_shards=num_shards)
    while len(partials) < min(MOST_PARTIALS, len(shards)):
        # The last of the largest: scratch for the joins before lies where a later partial sum will stand.
        _, place = max((node.last - node.first, place) for place, node in enumerate(partials))
        partials[place : place + 1] = partials[place].children()
    actions: list[Compute | Join] = []
    for slot, node in enumerate(partials):
        _sum_into(slot, node, actions)
    num_slots = max(action.slot + len(action.shards) for action in actions if isinstance(action, Compute))
    return Assignment(shards, tuple(actions), tuple(partials), num_slots)


def first_slots(assignments: Sequence[Assignment]) -> tuple[int, ...]:
    """The number of each worker's slot 0 among the slots of all workers."""
    return tuple(accumulate((assignment.num_slots for assignment in assignments[:-1]), initial=0))


def max_slots(num_workers: int, num_shards: int) -> int:
    """Slots that are enough for any assignment of contiguous shards to at most so many workers."""
    if num_workers == 1:
        return assignment_of(range(num_shards), num_shards=num_shards).num_slots
    height = (num_shards - 1).bit_length()
    of_one = max(2 * height - 1, height + 1)  # partial sums of sizes 1, 2, 4, ... up to the middle, then its other half
    return min(num_shards, num_workers * of_one)


def cross_joins(assignments: Sequence[Assignment]) -> tuple[Join, ...]:
    """The joins of the workers' partial sums, in order, by slot numbers among the slots of all workers.

    The sum over all shards ends in slot 0.
    """
    parts, _ = split_joins(assignments, [0] * len(assignments))
    return parts[0].joins


@dataclass(frozen=True)
class Part:
    """What the workers of one cluster node have of a sum together, by slot numbers among the slots of all workers.

    Its `joins`, in order, leave its partial sums in the slots `partials`.
    """

    joins: tuple[Join, ...]
    partials: tuple[int, ...]


def split_joins(assignments: Sequence[Assignment], homes: Sequence[int]) -> tuple[dict[int, Part], tuple[Join, ...]]:
    """The joins of `cross_joins` by where they can be done: those within each home, and those across homes, in order.

    `homes` are the cluster nodes of the workers. The sum over all shards ends in slot 0.
    """
    found = {
        node: (first + slot, home)
        for first, assignment, home in zip(first_slots(assignments), assignments, homes, strict=True)
        for slot, node in enumerate(assignment.partials)
    }
    within: dict[int, list[Join]] = {home: [] for home in homes}
    partials: dict[int, list[int]] = {home: [] for home in homes}
    across: list[Join] = []
    everywhere = -1

    def combine(node: Node) -> tuple[int, int]:
        if node in found:
            return found[node]
        sides = [combine(child) for child in node.children()]
        (left, home), (right, other) = sides
        if home == other != everywhere:
            within[home].append(Join(left, right))
            return left, home
        for slot, whose in sides:
            if whose != everywhere:
                partials[whose].append(slot)
        across.append(Join(left, right))
        return left, everywhere

    root, home = combine(Node(0, max(assignment.shards.stop for assignment in assignments)))
    assert root == 0
    if home != everywhere:
        partials[home].append(root)
    return {home: Part(tuple(within[home]), tuple(partials[home])) for home in within}, tuple(across)


def _cover(node: Node, shards: range) -> list[Node]:
    """The largest nodes of the tree below `node` that lie within `shards`, left to right."""
    if node.last <= shards.start or shards.stop <= node.first:
        return []
    if shards.start <= node.first and node.last <= shards.stop:
        return [node]
    left, right = node.children()
    return _cover(left, shards) + _cover(right, shards)


def _sum_into(slot: int, node: Node, actions: list[Compute | Join]) -> None:
    if node.is_leaf:
        before = actions[-1] if actions else None
        if isinstance(before, Compute) and before.slot + len(before.shards) == slot:
            actions[-1] = Compute(range(before.shards.start, node.last), before.slot)
        else:
            actions.append(Compute(range(node.first, node.last), slot))
        return
    left, right = node.children()
    _sum_into(slot, left, actions)
    _sum_into(slot + 1, right, actions)
    actions.append(Join(slot, slot + 1))
