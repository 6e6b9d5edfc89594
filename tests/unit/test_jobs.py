"""The state machine of jobs: every pair of state and trigger, and what a move does to the record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.jobs import (
    TRANSITIONS,
    IllegalTransitionError,
    Job,
    JobState,
    Progress,
    StateReason,
    Trigger,
    advance,
)
from worker.spec import parse_spec

SPEC = parse_spec({"model": {"mlp": {}}, "data": {"digits": {}}})
JOB = Job("test-abcdef", SPEC, create_time=1.0)
PROGRESS = Progress(
    steps_completed=7, loss=0.5, samples_per_second=100.0, estimated_remaining_seconds=3.0, current_workers=2
)
# Written out once more, and not taken from the code: what may follow what.
LEGAL = """
    queued      launch  starting
    queued      pause   paused
    queued      cancel  cancelled
    starting    run     running
    starting    lose    recovering
    starting    fail    failed
    starting    pause   pausing
    starting    cancel  cancelling
    running     lose    recovering
    running     succeed succeeded
    running     fail    failed
    running     pause   pausing
    running     cancel  cancelling
    recovering  launch  starting
    recovering  run     running
    recovering  lose    recovering
    recovering  fail    failed
    recovering  pause   pausing
    recovering  cancel  cancelling
    pausing     pause   pausing
    pausing     resume  pausing
    pausing     stop    paused
    pausing     succeed succeeded
    pausing     fail    failed
    pausing     cancel  cancelling
    paused      pause   paused
    paused      resume  queued
    paused      cancel  cancelled
    cancelling  cancel  cancelling
    cancelling  stop    cancelled
    cancelling  lose    cancelled
    cancelling  fail    cancelled
    cancelling  succeed cancelled
    cancelled   cancel  cancelled
"""
NEXT = {
    (JobState(state), Trigger(trigger)): JobState(to) for state, trigger, to in map(str.split, LEGAL.split("\n")[1:-1])
}


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize("state", JobState)
def test_a_job_moves_exactly_as_the_table_says(state: JobState, trigger: Trigger) -> None:
    job = replace(JOB, state=state)
    if (state, trigger) in NEXT:
        assert advance(job, trigger, now=2.0).state is NEXT[state, trigger]
    else:
        with pytest.raises(IllegalTransitionError, match=f"job test-abcdef is {state}: cannot {trigger}"):
            advance(job, trigger, now=2.0)
    assert job == replace(JOB, state=state)


def test_the_table_has_no_other_rows() -> None:
    assert TRANSITIONS == NEXT


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_a_finished_job_goes_nowhere(state: JobState) -> None:
    assert state.is_terminal
    assert all(to is state for (start, _), to in TRANSITIONS.items() if start is state)


@pytest.mark.parametrize("state", [state for state in JobState if not state.is_terminal])
def test_every_unfinished_job_can_be_cancelled(state: JobState) -> None:
    assert (state, Trigger.CANCEL) in TRANSITIONS


def test_each_launch_is_an_attempt_and_the_first_sets_the_start_time() -> None:
    first = advance(JOB, Trigger.LAUNCH, now=2.0)
    again = advance(advance(first, Trigger.LOSE, now=3.0), Trigger.LAUNCH, now=4.0)
    assert (first.attempt, first.start_time) == (1, 2.0)
    assert (again.attempt, again.start_time) == (2, 2.0)


def test_only_the_end_sets_the_end_time() -> None:
    running = replace(JOB, state=JobState.RUNNING)
    assert advance(running, Trigger.LOSE, now=5.0).end_time is None
    assert advance(running, Trigger.SUCCEED, now=5.0).end_time == 5.0


def test_a_failure_is_told_as_the_error() -> None:
    failed = advance(
        replace(JOB, state=JobState.RUNNING),
        Trigger.FAIL,
        now=5.0,
        reason=StateReason.NON_FINITE,
        message="NaN in step 3",
    )
    assert (failed.state_reason, failed.state_message, failed.error) == (
        StateReason.NON_FINITE,
        "NaN in step 3",
        "NaN in step 3",
    )


def test_a_paused_job_has_steps_but_no_speed_and_no_end() -> None:
    pausing = replace(JOB, state=JobState.PAUSING, progress=PROGRESS)
    paused = advance(pausing, Trigger.STOP, now=5.0)
    assert (paused.progress, paused.end_time) == (Progress(steps_completed=7, loss=0.5), None)


def test_a_job_takes_the_workers_of_its_spec_until_it_is_scaled() -> None:
    job = replace(JOB, spec=parse_spec(SPEC.model_dump(exclude_none=True) | {"workers": {"min": 2, "max": 4}}))
    numbers = [(one.min_workers, one.max_workers) for n in (0, 1, 3, 8) for one in [replace(job, wanted_workers=n)]]
    assert numbers == [(2, 4), (1, 1), (2, 3), (2, 8)]


@pytest.mark.parametrize("trigger", [Trigger.LOSE, Trigger.SUCCEED, Trigger.FAIL])
def test_a_job_that_does_not_train_has_steps_but_no_speed(trigger: Trigger) -> None:
    job = advance(replace(JOB, state=JobState.RUNNING, progress=PROGRESS), trigger, now=5.0)
    assert job.progress == Progress(steps_completed=7, loss=0.5)


def test_cancelling_twice_changes_nothing() -> None:
    once = advance(replace(JOB, state=JobState.RUNNING), Trigger.CANCEL, now=5.0, reason=StateReason.USER_REQUEST)
    assert advance(once, Trigger.CANCEL, now=6.0) is once
    cancelled = advance(once, Trigger.STOP, now=7.0)
    assert advance(cancelled, Trigger.CANCEL, now=8.0) is cancelled
