"""What a run reports, turned into the job's next record and its history: a pure decision.

The record moves by `jobs.advance` alone. Once a cancellation was acknowledged, reports still enter the history but
no longer decide where the job goes; of a job that is pausing, only its end does.
"""

from __future__ import annotations

from dataclasses import replace

from service import limits
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
    advance,
)
from service.runs import Report, RunFailed, RunPaused, RunStarted, RunStopped, RunSucceeded

Outcome = tuple[Job, tuple[Happening, ...]]
BY_THE_USER = "cancelled by the user"
NOT_YET_TRAINING = (JobState.STARTING, JobState.RECOVERING)


def move(
    job: Job, trigger: Trigger, *, now: float, reason: StateReason = StateReason.UNSPECIFIED, message: str = ""
) -> Outcome:
    """The job after `trigger`, with the event that tells of it, if it moved; raises IllegalTransitionError."""
    message = message[: limits.MAX_STATE_MESSAGE_LENGTH]
    moved = advance(job, trigger, now=now, reason=reason, message=message)
    if (moved.state, moved.state_reason, moved.attempt) == (job.state, job.state_reason, job.attempt):
        return moved, ()
    return moved, (StateChanged(moved.state, moved.state_reason, moved.state_message),)


def rest(job: Job, *, now: float) -> Outcome:
    """The job that was PAUSING, now that nothing of it runs any more: PAUSED, or queued again."""
    reason, message, stays = job.state_reason, job.state_message, job.stays_paused
    job, happenings = move(job, Trigger.STOP, now=now, reason=reason, message=message)
    if not stays:
        job, more = move(job, Trigger.RESUME, now=now, reason=reason, message=message)
        happenings += more
    return job, happenings


def absorb_progress(job: Job, progress: Progress) -> Job:
    """The job with its newest progress; a finished job's is final."""
    return job if job.state.is_terminal else replace(job, progress=progress)


def absorb(job: Job, report: Report, *, now: float) -> Outcome:
    """The job after one report of its run, and what enters its history."""
    if job.state.is_terminal:
        return job, ()
    cancelling = job.state is JobState.CANCELLING
    is_to_stop = cancelling or job.state is JobState.PAUSING
    match report:
        case RunStarted():
            progress = replace(job.progress, current_workers=report.workers, steps_completed=report.step)
            started = replace(job, progress=progress, num_parameters=report.num_parameters)
            return move(started, Trigger.RUN, now=now) if job.state in NOT_YET_TRAINING else (started, ())
        case WorkerLost():
            if is_to_stop:
                return job, (report,)
            message = f"worker {report.rank} was lost after step {report.step}: {report.reason}"
            lost, events = move(job, Trigger.LOSE, now=now, reason=StateReason.WORKER_LOST, message=message)
            return lost, (report, *events)
        case Evaluation():
            return replace(job, evaluation=report), (report,)
        case CheckpointSaved() | CheckpointFailed() | CheckpointCorrupt() | ExactnessLost():
            return job, (report,)
        case WorkerSlow() | CompilationStarted() | CompilationFinished():
            return job, (report,)
        case WorkersChanged():
            return replace(job, progress=replace(job.progress, current_workers=report.workers)), (report,)
        case RunSucceeded() | RunFailed() | RunStopped() | RunPaused() if cancelling:
            return move(job, Trigger.STOP, now=now, reason=StateReason.USER_REQUEST, message=BY_THE_USER)
        case RunStopped() | RunPaused() if is_to_stop:
            return rest(job, now=now)
        case RunSucceeded():
            return _succeed(job, report, now=now)
        case RunFailed():
            return move(job, Trigger.FAIL, now=now, reason=report.reason, message=report.message)
        case RunStopped() | RunPaused():  # nobody asked it to: it starts again
            return move(job, Trigger.LOSE, now=now, reason=StateReason.COORDINATOR_LOST, message="the run stopped")


def _succeed(job: Job, report: RunSucceeded, *, now: float) -> Outcome:
    """A run that resumed behind the last step has nothing left to train: it succeeds as soon as it runs."""
    events: tuple[Happening, ...] = ()
    if job.state in NOT_YET_TRAINING:
        job, events = move(job, Trigger.RUN, now=now)
    trained = replace(job, weights_digest=report.weights_digest, model_path=report.model_path)
    job, last = move(trained, Trigger.SUCCEED, now=now)
    return job, (*events, *last)
