"""Who takes part next: survivors at once, others when they are ready, the newest leave first."""

import random

import pytest

from service.membership import Membership, Team, decide


@pytest.mark.parametrize(
    ("team", "expected"),
    [
        # The beginning.
        (Team(4, wanted=2, at_least=2), Membership((), (), (0, 1), "waits for workers: 0 of 2 there")),
        (
            Team(4, wanted=3, ready=(1,), starting=(0, 2), at_least=2),
            Membership((), (), (), "waits for workers: 1 of 2 there"),
        ),
        (Team(4, wanted=3, ready=(2, 0), starting=(1,), at_least=2), Membership((2, 0), reason="workers 2, 0 joined")),
        (Team(4, wanted=1, ready=(2,), at_least=3), Membership((2,), reason="worker 2 joined")),
        # Nothing happens.
        (Team(2, wanted=2, members=(1, 0)), Membership((1, 0))),
        # One was lost: the others go on, and its seat is filled.
        (Team(3, wanted=3, members=(0, 2)), Membership((0, 2), start=(1,))),
        (Team(3, wanted=3, members=(0, 2), starting=(1,)), Membership((0, 2))),
        (Team(3, wanted=3, members=(0, 2), ready=(1,)), Membership((0, 2, 1), reason="worker 1 joined")),
        (Team(3, wanted=3, members=(0, 2), may_start=False), Membership((0, 2))),
        # All were lost.
        (Team(2, wanted=2), Membership((), start=(0, 1), reason="waits for workers: 0 of 1 there")),
        # Scaled up and down.
        (Team(4, wanted=3, members=(0,)), Membership((0,), start=(1, 2))),
        (Team(4, wanted=1, members=(2, 0, 1)), Membership((2,), leave=(0, 1), reason="workers 0, 1 left: 1 wanted")),
        (
            Team(4, wanted=2, members=(2,), ready=(0,), starting=(1, 3)),
            Membership((2, 0), (1, 3), (), "worker 0 joined"),
        ),
        (Team(4, wanted=2, members=(2,), starting=(1, 3)), Membership((2,), leave=(3,))),
        (Team(4, wanted=1, members=(2,), ready=(0, 3)), Membership((2,), leave=(0, 3))),
        # More wanted than there are seats.
        (Team(2, wanted=5, members=(0,)), Membership((0,), start=(1,))),
    ],
)
def test_decisions(team: Team, expected: Membership) -> None:
    assert decide(team) == expected


def random_team(rng: random.Random) -> Team:
    capacity = rng.randint(1, 8)
    seats = rng.sample(range(capacity), rng.randint(0, capacity))
    cuts = sorted(rng.randint(0, len(seats)) for _ in range(2))
    return Team(
        capacity,
        wanted=rng.randint(1, capacity),
        members=tuple(seats[: cuts[0]]),
        ready=tuple(seats[cuts[0] : cuts[1]]),
        starting=tuple(seats[cuts[1] :]),
        at_least=rng.randint(1, 3),
    )


def test_laws_of_every_decision() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        team = random_team(rng)
        decided = decide(team)
        there = {*team.members, *team.ready}
        assert set(decided.members) <= there
        assert len(set(decided.members)) == len(decided.members) <= team.wanted
        assert not {*decided.members} & {*decided.leave}
        assert not {*decided.start} & {*there, *team.starting}, "a seat is taken twice"
        assert all(0 <= seat < team.capacity for seat in decided.start)
        if decided.members:
            survivors = [seat for seat in decided.members if seat in team.members]
            assert survivors == list(team.members[: team.wanted]), "a survivor was sent away or moved"
        stay = (there | {*team.starting}) - {*decided.leave}
        assert len(stay) + len(decided.start) == max(team.wanted, len(stay)) or team.wanted > team.capacity


def test_a_decision_settles() -> None:
    """When all that was started is ready, one more decision has everybody take part, and nothing changes any more."""
    rng = random.Random(1)
    for _ in range(500):
        team = random_team(rng)
        first = decide(team)
        came = tuple(seat for seat in (*team.ready, *team.starting, *first.start) if seat not in first.leave)
        members = tuple(seat for seat in team.members if seat not in first.leave)
        second = decide(Team(team.capacity, team.wanted, members, tuple(s for s in came if s not in members)))
        assert len(second.members) == team.wanted
        third = decide(Team(team.capacity, team.wanted, second.members))
        assert third == Membership(second.members)
