"""Which workers take part in a job's next steps, which are started and which leave: a pure decision.

It is taken at step boundaries and after every loss. Survivors go on at once, in the order in which they were, for
nobody waits for a replacement: it is started in the background and takes part when it is ready.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Team:
    """A job's workers by seat. `members` are those of the plan before, without the lost ones."""

    capacity: int
    wanted: int
    members: tuple[int, ...] = ()
    ready: tuple[int, ...] = ()  # have the data and the segment, in the order in which they came
    starting: tuple[int, ...] = ()  # in the order in which they were started
    at_least: int = 1  # members with whom the steps begin
    may_start: bool = True  # not a moment after workers failed again and again


@dataclass(frozen=True)
class Membership:
    """Who takes part (nobody: there are too few), who leaves, on which seats new workers are started, and why."""

    members: tuple[int, ...]
    leave: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    reason: str = ""


def decide(team: Team) -> Membership:
    """The next membership. Members stay before the ready, the ready before the starting; the newest leave first."""
    there = team.members + team.ready
    members, too_many = there[: team.wanted], there[team.wanted :]
    on_their_way = max(team.wanted - len(members), 0)
    too_many += team.starting[on_their_way:]
    missing = on_their_way - len(team.starting[:on_their_way])
    taken = {*there, *team.starting}
    free = [seat for seat in range(team.capacity) if seat not in taken]
    start = tuple(free[:missing]) if team.may_start else ()
    needed = min(team.at_least, team.wanted)
    if len(members) < needed:
        return Membership((), too_many, start, f"waits for workers: {len(members)} of {needed} there")
    return Membership(members, too_many, start, _reason(team, members))


def _reason(team: Team, members: tuple[int, ...]) -> str:
    joined = [seat for seat in members if seat not in team.members]
    left = [seat for seat in team.members if seat not in members]
    if joined:
        return f"{_workers(joined)} joined"
    if left:
        return f"{_workers(left)} left: {team.wanted} wanted"
    return ""


def _workers(seats: list[int]) -> str:
    return f"worker{'s' * (len(seats) > 1)} {', '.join(map(str, seats))}"
