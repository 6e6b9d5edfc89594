"""Reports wait for the service in order, are given until they are stored, and do not fill memory."""

from __future__ import annotations

import pytest

from service.jobs import CheckpointSaved, Evaluation, StateReason, WorkerLost, WorkersChanged, WorkerSlow
from service.outbox import Outbox
from service.runs import ENDS, Report, RunFailed, RunPaused, RunStarted, RunStopped, RunSucceeded


def started(step: int) -> RunStarted:
    return RunStarted(1, 42, step)


def evaluation(step: int) -> Evaluation:
    return Evaluation(step, loss=0.5)


def outbox_of(*reports: Report, most: int = 100, at_once: int = 100) -> Outbox:
    outbox = Outbox(most=most, at_once=at_once)
    for report in reports:
        outbox.add(report)
    return outbox


def test_nothing_is_nothing() -> None:
    outbox = Outbox()
    assert outbox.take(0) == ((), 0)
    assert outbox.num_dropped == 0
    assert repr(outbox) == "<Outbox 0 of 0 reports pending, 0 dropped>"


def test_what_is_not_stored_is_given_again() -> None:
    outbox = outbox_of(started(0), evaluation(1))
    assert outbox.take(0) == outbox.take(0) == ((started(0), evaluation(1)), 2)
    outbox.add(evaluation(2))
    assert outbox.take(0) == ((started(0), evaluation(1), evaluation(2)), 3)


@pytest.mark.parametrize(("after", "steps", "last"), [(0, [1, 2, 3], 3), (1, [2, 3], 3), (2, [3], 3), (3, [], 3)])
def test_what_is_stored_is_not(after: int, steps: list[int], last: int) -> None:
    outbox = outbox_of(*map(evaluation, (1, 2, 3)))
    assert outbox.take(after) == (tuple(map(evaluation, steps)), last)
    assert repr(outbox) == f"<Outbox {len(steps)} of 3 reports pending, 0 dropped>"


def test_a_long_history_is_given_in_pieces() -> None:
    outbox = outbox_of(*map(evaluation, range(1, 8)), at_once=3)
    stored, seen = 0, []
    while taken := outbox.take(stored)[0]:
        seen.append([report.step for report in taken if isinstance(report, Evaluation)])
        stored = outbox.take(stored)[1]
    assert seen == [[1, 2, 3], [4, 5, 6], [7]]


@pytest.mark.parametrize(
    "end", [RunSucceeded("digest", "model"), RunFailed(StateReason.INTERNAL, "why"), RunStopped(), RunPaused(3)]
)
def test_an_end_is_the_last_report(end: Report) -> None:
    assert isinstance(end, ENDS)
    outbox = outbox_of(end, evaluation(3))
    assert outbox.take(0) == ((end,), 1)


@pytest.mark.parametrize(
    ("reports", "kept"),
    [
        ([evaluation(1), evaluation(2), evaluation(3)], [evaluation(2), evaluation(3)]),
        ([started(0), evaluation(1), evaluation(2)], [started(0), evaluation(2)]),
        ([started(0), WorkersChanged(2, 1, "joined"), RunStopped()], [started(0), RunStopped()]),
        ([started(0), WorkerSlow(0, 1, 3.0, 1), RunStopped()], [started(0), RunStopped()]),
        ([CheckpointSaved(1, "", "", 1, 0.1), started(1), RunStopped()], [started(1), RunStopped()]),
        ([started(0), WorkerLost(0, 1, "died"), started(1)], [WorkerLost(0, 1, "died"), started(1)]),
    ],
)
def test_without_room_the_oldest_make_way_and_of_them_what_moves_no_job(
    reports: list[Report], kept: list[Report]
) -> None:
    outbox = outbox_of(*reports, most=2)
    assert outbox.take(0) == (tuple(kept), 3)
    assert outbox.num_dropped == 1
    assert outbox.take(3) == ((), 3)


def test_a_flood_leaves_the_newest() -> None:
    outbox = outbox_of(started(0), *map(evaluation, range(1, 1001)), most=10)
    taken, last = outbox.take(0)
    assert taken == (started(0), *map(evaluation, range(992, 1001)))
    assert (last, outbox.num_dropped) == (1001, 991)
