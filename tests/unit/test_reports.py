"""What a run's reports make of its job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.jobs import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointSaved,
    CompilationFinished,
    CompilationStarted,
    Evaluation,
    ExactnessLost,
    Happening,
    Job,
    JobState,
    Progress,
    StateChanged,
    StateReason,
    Trigger,
    WorkerLost,
    WorkersChanged,
    WorkerSlow,
)
from service.limits import MAX_STATE_MESSAGE_LENGTH
from service.reports import absorb, absorb_progress, move, rest
from service.runs import Report, RunFailed, RunPaused, RunStarted, RunStopped, RunSucceeded
from worker.spec import parse_spec

JOB = Job("test-abcdef", parse_spec({"model": {"mlp": {}}, "data": {"digits": {}}}), create_time=1.0, attempt=1)
STARTED = RunStarted(workers=2, num_parameters=42, step=5)
SUCCEEDED = RunSucceeded(weights_digest="ab", model_path="/m")
FAILED = RunFailed(StateReason.NON_FINITE, "step 7: NaN")
LOST = WorkerLost(rank=1, step=5, reason="killed: signal 9")
SAVED = CheckpointSaved(5, "/c", "ab", 10, 0.1)
CHANGED = WorkersChanged(3, 5, "worker 2 joined")
SLOW = WorkerSlow(1, 5, times=4.2, shards=1)
CANCELLED = StateChanged(JobState.CANCELLED, StateReason.USER_REQUEST, "cancelled by the user")
RUNNING = StateChanged(JobState.RUNNING)

ROWS: list[tuple[JobState, Report, JobState, list[Happening]]] = [
    # state, report, next state, what enters the history
    (JobState.STARTING, STARTED, JobState.RUNNING, [RUNNING]),
    (JobState.RECOVERING, STARTED, JobState.RUNNING, [RUNNING]),
    (JobState.RUNNING, STARTED, JobState.RUNNING, []),
    (JobState.CANCELLING, STARTED, JobState.CANCELLING, []),
    (
        JobState.RUNNING,
        LOST,
        JobState.RECOVERING,
        [
            LOST,
            StateChanged(
                JobState.RECOVERING, StateReason.WORKER_LOST, "worker 1 was lost after step 5: killed: signal 9"
            ),
        ],
    ),
    (JobState.CANCELLING, LOST, JobState.CANCELLING, [LOST]),
    (JobState.RUNNING, Evaluation(5, 0.5), JobState.RUNNING, [Evaluation(5, 0.5)]),
    (JobState.RUNNING, CHANGED, JobState.RUNNING, [CHANGED]),
    (JobState.RUNNING, SLOW, JobState.RUNNING, [SLOW]),
    (JobState.RUNNING, SAVED, JobState.RUNNING, [SAVED]),
    (JobState.RUNNING, CheckpointFailed(5, "full"), JobState.RUNNING, [CheckpointFailed(5, "full")]),
    (JobState.STARTING, CompilationStarted(0), JobState.STARTING, [CompilationStarted(0)]),
    (JobState.STARTING, CompilationFinished(14, 9.5), JobState.STARTING, [CompilationFinished(14, 9.5)]),
    (JobState.RECOVERING, CompilationFinished(1, 0.5), JobState.RECOVERING, [CompilationFinished(1, 0.5)]),
    (JobState.STARTING, CheckpointCorrupt("/c", "torn"), JobState.STARTING, [CheckpointCorrupt("/c", "torn")]),
    (JobState.STARTING, ExactnessLost(5, "numpy"), JobState.STARTING, [ExactnessLost(5, "numpy")]),
    (JobState.RUNNING, SUCCEEDED, JobState.SUCCEEDED, [StateChanged(JobState.SUCCEEDED)]),
    (JobState.STARTING, SUCCEEDED, JobState.SUCCEEDED, [RUNNING, StateChanged(JobState.SUCCEEDED)]),
    (JobState.RECOVERING, SUCCEEDED, JobState.SUCCEEDED, [RUNNING, StateChanged(JobState.SUCCEEDED)]),
    (JobState.RUNNING, FAILED, JobState.FAILED, [StateChanged(JobState.FAILED, StateReason.NON_FINITE, "step 7: NaN")]),
    (
        JobState.STARTING,
        FAILED,
        JobState.FAILED,
        [StateChanged(JobState.FAILED, StateReason.NON_FINITE, "step 7: NaN")],
    ),
    # Whatever else becomes of a job whose cancellation was acknowledged, it ends as cancelled.
    (JobState.CANCELLING, SUCCEEDED, JobState.CANCELLED, [CANCELLED]),
    (JobState.CANCELLING, FAILED, JobState.CANCELLED, [CANCELLED]),
    (JobState.CANCELLING, RunStopped(), JobState.CANCELLED, [CANCELLED]),
    (JobState.CANCELLING, RunPaused(5), JobState.CANCELLED, [CANCELLED]),
    (
        JobState.RUNNING,
        RunStopped(),
        JobState.RECOVERING,
        [StateChanged(JobState.RECOVERING, StateReason.COORDINATOR_LOST, "the run stopped")],
    ),
    # A job that is pausing pauses, unless it ends first.
    (JobState.PAUSING, STARTED, JobState.PAUSING, []),
    (JobState.PAUSING, LOST, JobState.PAUSING, [LOST]),
    (JobState.PAUSING, SAVED, JobState.PAUSING, [SAVED]),
    (JobState.PAUSING, SUCCEEDED, JobState.SUCCEEDED, [StateChanged(JobState.SUCCEEDED)]),
    (JobState.PAUSING, FAILED, JobState.FAILED, [StateChanged(JobState.FAILED, StateReason.NON_FINITE, "step 7: NaN")]),
    (JobState.PAUSING, RunPaused(5), JobState.QUEUED, [StateChanged(JobState.PAUSED), StateChanged(JobState.QUEUED)]),
    # What is finished stays as it is.
    (JobState.SUCCEEDED, FAILED, JobState.SUCCEEDED, []),
    (JobState.CANCELLED, SUCCEEDED, JobState.CANCELLED, []),
]


@pytest.mark.parametrize(
    ("state", "report", "state_after", "happenings"), ROWS, ids=[f"{row[0]}-{type(row[1]).__name__}" for row in ROWS]
)
def test_a_report_moves_the_job_and_enters_its_history(
    state: JobState, report: Report, state_after: JobState, happenings: list[Happening]
) -> None:
    job, new = absorb(replace(JOB, state=state), report, now=9.0)
    assert job.state is state_after
    assert list(new) == happenings


def test_what_is_preempted_is_queued_again_and_what_the_user_paused_stays() -> None:
    pausing = replace(JOB, state=JobState.PAUSING, state_message="why")
    paused, told = rest(replace(pausing, state_reason=StateReason.USER_REQUEST), now=2.0)
    assert told == (StateChanged(JobState.PAUSED, StateReason.USER_REQUEST, "why"),)
    assert paused.state is JobState.PAUSED
    queued, told = rest(replace(pausing, state_reason=StateReason.PREEMPTED), now=2.0)
    assert [change.state for change in told if isinstance(change, StateChanged)] == [JobState.PAUSED, JobState.QUEUED]
    assert (queued.state, queued.state_reason, queued.state_message) == (JobState.QUEUED, StateReason.PREEMPTED, "why")


def test_a_started_run_tells_its_workers_parameters_and_step() -> None:
    job, _ = absorb(replace(JOB, state=JobState.STARTING), STARTED, now=9.0)
    assert (job.progress.current_workers, job.num_parameters, job.progress.steps_completed) == (2, 42, 5)


def test_a_change_of_workers_shows_in_the_progress() -> None:
    job, _ = absorb(replace(JOB, state=JobState.RUNNING), CHANGED, now=2.0)
    assert job.progress.current_workers == 3


def test_a_succeeded_run_tells_its_digest_and_its_model() -> None:
    job, _ = absorb(replace(JOB, state=JobState.RUNNING), SUCCEEDED, now=9.0)
    assert (job.weights_digest, job.model_path, job.end_time) == ("ab", "/m", 9.0)


def test_a_cancelled_job_has_no_model() -> None:
    job, _ = absorb(replace(JOB, state=JobState.CANCELLING), SUCCEEDED, now=9.0)
    assert (job.weights_digest, job.model_path) == ("", "")


def test_the_newest_evaluation_stays_with_the_job() -> None:
    job, _ = absorb(replace(JOB, state=JobState.RUNNING), Evaluation(5, 0.5, 0.9), now=9.0)
    assert job.evaluation == Evaluation(5, 0.5, 0.9)


def test_the_progress_of_a_finished_job_is_final() -> None:
    finished = replace(JOB, state=JobState.SUCCEEDED, progress=Progress(40))
    assert absorb_progress(finished, Progress(39)) is finished
    assert absorb_progress(replace(JOB, state=JobState.RUNNING), Progress(39)).progress == Progress(39)


def test_a_second_loss_in_a_row_is_no_second_event() -> None:
    job, first = move(replace(JOB, state=JobState.RUNNING), Trigger.LOSE, now=1.0, reason=StateReason.WORKER_LOST)
    _, second = move(job, Trigger.LOSE, now=2.0, reason=StateReason.WORKER_LOST)
    assert (len(first), len(second)) == (1, 0)


def test_endless_messages_are_cut() -> None:
    job, _ = move(replace(JOB, state=JobState.RUNNING), Trigger.FAIL, now=1.0, message="x" * 100_000)
    assert len(job.error) == MAX_STATE_MESSAGE_LENGTH
