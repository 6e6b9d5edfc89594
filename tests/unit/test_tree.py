"""The canonical tree: every number of workers adds the same pairs."""

import numpy as np
import pytest

from worker.plan import Plan, even_plan, shares_by_speed
from worker.reduce.tree import Assignment, Compute, Join, Node, cross_joins, first_slots, max_slots

SHARDS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 31, 64]


def even(num_workers: int, num_shards: int) -> tuple[Assignment, ...]:
    return even_plan(range(num_workers), num_shards=num_shards, epoch=0).assignments()


def reduce_with(gradients: list[np.ndarray], assignments: tuple[Assignment, ...]) -> np.ndarray:
    """What workers make of the shards' gradients, by their assignments alone."""
    slots: dict[int, np.ndarray] = {}
    for base, assignment in zip(first_slots(assignments), assignments, strict=True):
        for action in assignment.actions:
            match action:
                case Compute(shards, first):
                    for slot, shard in enumerate(shards, base + first):
                        slots[slot] = gradients[shard].copy()
                case Join(into, other):
                    slots[base + into] = slots[base + into] + slots.pop(base + other)
    for join in cross_joins(assignments):
        slots[join.into] = slots[join.into] + slots.pop(join.other)
    assert set(slots) == {0}
    return slots[0]


def gradients_of(num_shards: int) -> list[np.ndarray]:
    random = np.random.default_rng(num_shards)
    return [random.standard_normal(50).astype(np.float32) * 10.0 ** random.integers(-4, 4) for _ in range(num_shards)]


@pytest.mark.parametrize("num_shards", SHARDS)
def test_every_number_of_workers_gives_the_same_bits(num_shards: int) -> None:
    gradients = gradients_of(num_shards)
    alone = reduce_with(gradients, even(1, num_shards))
    for num_workers in range(2, num_shards + 1):
        assert reduce_with(gradients, even(num_workers, num_shards)).tobytes() == alone.tobytes()


@pytest.mark.parametrize("num_shards", SHARDS[1:])
def test_any_shares_give_the_same_bits_and_fit_the_slots(num_shards: int) -> None:
    gradients, random = gradients_of(num_shards), np.random.default_rng(0)
    alone = reduce_with(gradients, even(1, num_shards))
    for _ in range(50):
        num_workers = int(random.integers(1, num_shards + 1))
        cuts = np.sort(random.choice(np.arange(1, num_shards), num_workers - 1, replace=False))
        shares = np.diff([0, *cuts, num_shards]).tolist()
        assignments = Plan(0, tuple(range(num_workers)), tuple(shares)).assignments()
        assert reduce_with(gradients, assignments).tobytes() == alone.tobytes()
        assert sum(assignment.num_slots for assignment in assignments) <= max_slots(num_workers, num_shards)


@pytest.mark.parametrize("num_shards", SHARDS)
def test_slots_are_never_more_than_shards_for_many_and_few_for_one(num_shards: int) -> None:
    assert max_slots(num_shards, num_shards) == num_shards
    assert max_slots(1, num_shards) == even(1, num_shards)[0].num_slots


@pytest.mark.parametrize("num_shards", SHARDS)
def test_a_worker_joins_only_what_would_be_more_than_four_partial_sums(num_shards: int) -> None:
    for num_workers in range(1, num_shards + 1):
        for assignment in even(num_workers, num_shards):
            num_joins = sum(isinstance(action, Join) for action in assignment.actions)
            assert len(assignment.partials) >= min(4, len(assignment.shards))
            assert num_joins == len(assignment.shards) - len(assignment.partials)
            assert num_joins == 0 or len(assignment.partials) >= 4


def test_order_matters_to_the_bits() -> None:
    """Otherwise the tests above would prove nothing."""
    random = np.random.default_rng(0)
    gradients = [random.standard_normal(50).astype(np.float32) for _ in range(4)]
    in_a_row = ((gradients[0] + gradients[1]) + gradients[2]) + gradients[3]
    assert reduce_with(gradients, even(2, 4)).tobytes() != in_a_row.tobytes()


@pytest.mark.parametrize("num_shards", SHARDS)
def test_shards_are_dealt_out_once_and_evenly(num_shards: int) -> None:
    for num_workers in range(1, num_shards + 1):
        parts = [assignment.shards for assignment in even(num_workers, num_shards)]
        assert [shard for part in parts for shard in part] == list(range(num_shards))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("num_shards", SHARDS)
def test_slots_and_partial_sums_are_few(num_shards: int) -> None:
    bound = 2 * max(1, (num_shards - 1).bit_length()) + 1
    for num_workers in range(1, num_shards + 1):
        for assignment in even(num_workers, num_shards):
            assert len(assignment.partials) <= assignment.num_slots <= min(bound, max(len(assignment.shards), 1))


@pytest.mark.parametrize(
    ("speeds", "num_shards", "expected"),
    [
        ([1, 1], 8, (4, 4)),
        ([1, 1, 1], 8, (3, 3, 2)),
        ([1, 3], 8, (2, 6)),
        ([3, 1, 3], 7, (3, 1, 3)),
        ([1, 1000], 4, (1, 3)),
        ([0.001, 1], 2, (1, 1)),
        ([2.5], 5, (5,)),
    ],
)
def test_shares_follow_speed_and_nobody_is_left_out(
    speeds: list[float], num_shards: int, expected: tuple[int, ...]
) -> None:
    assert shares_by_speed(speeds, num_shards) == expected


def test_a_node_splits_behind_the_largest_power_of_two() -> None:
    assert Node(0, 6).children() == (Node(0, 4), Node(4, 6))
    assert Node(0, 8).children() == (Node(0, 4), Node(4, 8))
    assert Node(4, 7).children() == (Node(4, 6), Node(6, 7))


@pytest.mark.parametrize("num_workers", [0, 5])
def test_more_workers_than_shards_are_refused(num_workers: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 4"):
        even_plan(range(num_workers), num_shards=4, epoch=1)


@pytest.mark.parametrize(("members", "shares"), [((), ()), ((0, 1), (4,)), ((0, 1), (4, 0))])
def test_a_plan_without_work_for_each_member_is_refused(members: tuple[int, ...], shares: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected one each"):
        Plan(1, members, shares)


@pytest.mark.parametrize(
    ("num_workers", "num_shards", "expected"),
    [
        (2, 8, [[(0, 4, 0)], [(4, 8, 0)]]),
        (1, 8, [[(0, 2, 0), (2, 4, 1), (4, 6, 2), (6, 8, 3)]]),
        (3, 8, [[(0, 3, 0)], [(3, 6, 0)], [(6, 8, 0)]]),
        (1, 5, [[(0, 2, 0), (2, 5, 1)]]),
        (2, 2, [[(0, 1, 0)], [(1, 2, 0)]]),
    ],
)
def test_shards_with_no_join_between_are_computed_together(
    num_workers: int, num_shards: int, expected: list[list[tuple[int, int, int]]]
) -> None:
    found = [
        [(a.shards.start, a.shards.stop, a.slot) for a in assignment.actions if isinstance(a, Compute)]
        for assignment in even(num_workers, num_shards)
    ]
    assert found == expected


def test_what_is_computed_together_can_be_cut_into_passes() -> None:
    action = Compute(range(3, 8), 2)
    assert list(action.passes(2)) == [Compute(range(3, 5), 2), Compute(range(5, 7), 4), Compute(range(7, 8), 6)]
    assert list(action.passes(1)) == [Compute(range(3 + i, 4 + i), 2 + i) for i in range(5)]
    assert list(action.passes(5)) == [action]
