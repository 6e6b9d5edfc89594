"""What each call makes of a job in each state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from service import calls
from service.errors import FailedPrecondition, InvalidRequest
from service.jobs import Job, JobState, StateChanged, StateReason, WorkersWanted
from service.reports import Outcome
from worker.spec import parse_spec

SPEC = parse_spec({"model": {"mlp": {}}, "data": {"digits": {}}, "workers": {"min": 1, "max": 2}})
JOB = Job("test-abcdef", SPEC, create_time=1.0, attempt=1)
USER, PREEMPTED, NONE = StateReason.USER_REQUEST, StateReason.PREEMPTED, StateReason.UNSPECIFIED
Call = Callable[[Job, bool], Outcome]
CALLS: dict[str, Call] = {
    "pause": lambda job, has_run: calls.pause(job, now=9.0, has_run=has_run),
    "resume": lambda job, has_run: calls.resume(job, now=9.0),
    "scale": lambda job, has_run: calls.scale(job, 4),
    "cancel": lambda job, has_run: calls.cancel(job, now=9.0, has_run=has_run),
}
# "-" is: stays as it is. In capitals: the reason of the refusal.
TABLE = """
    state                   run  pause             resume              scale            cancel
    queued                  no   paused/user       -                   -                cancelled/user
    queued/preempted        no   paused/user       -                   -                cancelled/user
    starting                yes  pausing/user      -                   -                cancelling/user
    running                 yes  pausing/user      -                   -                cancelling/user
    recovering              yes  pausing/user      -                   -                cancelling/user
    recovering              no   paused/user       -                   -                cancelled/user
    pausing/user            yes  -                 pausing             -                cancelling/user
    pausing/preempted       yes  pausing/user      -                   -                cancelling/user
    pausing                 yes  pausing/user      -                   -                cancelling/user
    paused/user             no   -                 queued              -                cancelled/user
    cancelling/user         yes  JOB_CANCELLING    JOB_CANCELLING      JOB_CANCELLING   -
    cancelled/user          no   JOB_FINISHED      JOB_FINISHED        JOB_FINISHED     -
    succeeded               no   JOB_FINISHED      JOB_FINISHED        JOB_FINISHED     JOB_FINISHED
    failed                  no   JOB_FINISHED      JOB_FINISHED        JOB_FINISHED     JOB_FINISHED
"""
HEADER, *LINES = (line.split() for line in TABLE.strip().splitlines())
ROWS = [
    (state, run == "yes", call, result)
    for state, run, *results in LINES
    for call, result in zip(HEADER[2:], results, strict=True)
]


def standing(text: str) -> tuple[JobState, StateReason]:
    state, _, reason = text.partition("/")
    return JobState(state), {"user": USER, "preempted": PREEMPTED, "": NONE}[reason]


@pytest.mark.parametrize(("before", "has_run", "call", "result"), ROWS, ids=["-".join(map(str, row)) for row in ROWS])
def test_a_call_does_what_the_table_says(before: str, has_run: bool, call: str, result: str) -> None:
    state, reason = standing(before)
    job = replace(JOB, state=state, state_reason=reason)
    if result.isupper():
        with pytest.raises(
            FailedPrecondition, match=f"cannot {call} job test-abcdef: got state {state.upper()}"
        ) as got:
            CALLS[call](job, has_run)
        assert got.value.reason == result
        return
    after, happenings = CALLS[call](job, has_run)
    assert (after.state, after.state_reason) == (standing(result) if result != "-" else (state, reason))
    changes = [one for one in happenings if isinstance(one, StateChanged)]
    assert bool(changes) == (result != "-")
    assert not changes or (changes[-1].state, changes[-1].reason) == (after.state, after.state_reason)
    if call != "scale":
        again, more = CALLS[call](after, has_run and not after.state.is_terminal)
        assert (again, more) == (after, ()), "a call that is repeated changes nothing"


def test_the_table_has_every_state() -> None:
    assert {standing(state)[0] for state, _, _, _ in ROWS} == set(JobState)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_a_job_is_scaled_within_its_shards_and_remembers_it(workers: int) -> None:
    job, happenings = calls.scale(JOB, workers)
    assert (job.wanted_workers, job.max_workers) == (workers, workers)
    assert happenings == (WorkersWanted(workers, "scaled by the user"),)
    assert calls.scale(job, workers) == (job, ())


@pytest.mark.parametrize("workers", [-1, 0, 9])
def test_more_workers_than_shards_and_none_are_refused(workers: int) -> None:
    with pytest.raises(InvalidRequest, match=f"workers: got {workers}, expected 1 to 8, the job's training.shards"):
        calls.scale(JOB, workers)


def test_scaling_to_what_it_is_changes_nothing() -> None:
    assert calls.scale(JOB, 2) == (JOB, ())
