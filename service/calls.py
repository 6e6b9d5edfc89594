"""What a user's call makes of a job, whatever state it is in: a pure decision.

    state                                   pause       resume      scale      cancel
    QUEUED                                  PAUSED      stays       stays      CANCELLED
    STARTING, RUNNING, RECOVERING           PAUSING     stays       stays      CANCELLING
    PAUSING                                 stays       stays, and is queued afterwards
                                                                    stays      CANCELLING
    PAUSED                                  stays       QUEUED      stays      CANCELLED
    CANCELLING                              refused     refused     refused    stays
    CANCELLED                               refused     refused     refused    stays
    SUCCEEDED, FAILED                       refused     refused     refused    refused

A call that finds things as it wants them changes nothing, so that it may be repeated. Of a job that nothing runs of, a
pause or a cancellation is over at once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from service.errors import FailedPrecondition, InvalidRequest
from service.jobs import Job, JobState, StateReason, Trigger, WorkersWanted
from service.reports import BY_THE_USER, Outcome, move, rest
from worker.violations import Violation

PAUSED_BY_THE_USER = "paused by the user"
RESUMED_BY_THE_USER = "resumed by the user"


def pause(job: Job, *, now: float, has_run: bool) -> Outcome:
    """Stops a job for a while."""
    _check_unfinished(job, "pause")
    by_user = partial(move, now=now, reason=StateReason.USER_REQUEST, message=PAUSED_BY_THE_USER)
    job, happenings = by_user(job, Trigger.PAUSE)
    if job.state is JobState.PAUSING and not has_run:
        job, more = rest(job, now=now)
        happenings += more
    return job, happenings


def resume(job: Job, *, now: float) -> Outcome:
    """Lets a paused job go on."""
    _check_unfinished(job, "resume")
    if job.state is JobState.PAUSED or (job.state is JobState.PAUSING and job.stays_paused):
        return move(job, Trigger.RESUME, now=now, message=RESUMED_BY_THE_USER)
    return job, ()


def scale(job: Job, workers: int) -> Outcome:
    """Sets the most workers that a job takes."""
    shards = job.spec.training.shards
    if not 1 <= workers <= shards:
        text = f"got {workers}, expected 1 to {shards}, the job's training.shards: a worker without a shard has no work"
        raise InvalidRequest([Violation("workers", text)])
    _check_unfinished(job, "scale")
    if workers == job.max_workers:
        return job, ()
    return replace(job, wanted_workers=workers), (WorkersWanted(workers, "scaled by the user"),)


def cancel(job: Job, *, now: float, has_run: bool) -> Outcome:
    """Ends a job."""
    if job.state is not JobState.CANCELLED:
        _check_unfinished(job, "cancel", but=JobState.CANCELLING)
    by_user = partial(move, now=now, reason=StateReason.USER_REQUEST, message=BY_THE_USER)
    job, happenings = by_user(job, Trigger.CANCEL)
    if job.state is JobState.CANCELLING and not has_run:
        job, more = by_user(job, Trigger.STOP)
        happenings += more
    return job, happenings


def _check_unfinished(job: Job, verb: str, *, but: JobState | None = None) -> None:
    got = f"cannot {verb} job {job.job_id}: got state {job.state.upper()}"
    if job.state.is_terminal:
        raise FailedPrecondition(f"{got}, expected a job that is not finished", reason="JOB_FINISHED")
    if job.state is JobState.CANCELLING and job.state is not but:
        raise FailedPrecondition(f"{got}, expected a job that is not being cancelled", reason="JOB_CANCELLING")
