"""A job and its life: a pure state machine in one table.

    QUEUED --launch--> STARTING --run--> RUNNING --succeed--> SUCCEEDED
      ^                   ^  |             |  ^
      |                launch|lose     lose|  |run
      |                   |  v             v  |
      |                   RECOVERING <--------+          any of these --fail--> FAILED
    resume                      |
      |                       pause, from STARTING and RUNNING too
      |                         v
    PAUSED <-----stop------- PAUSING

A queued job is paused at once. PAUSING says by its reason what comes after: a job that the user paused stays PAUSED,
any other (PREEMPTED, say) is queued again as soon as nothing of it runs. A job that ends while it is PAUSING has ended.
A cancelled job passes through CANCELLING while something of it still runs. Nothing here reads a clock, a disk
or a network; `advance` returns the next job or raises, and leaves the job it was given as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from service.start_checkpoint import StartCheckpoint
from worker.spec import JobSpec


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class StateReason(StrEnum):
    """Why a job is in its state."""

    UNSPECIFIED = "unspecified"
    WAITING_FOR_WORKERS = "waiting_for_workers"
    WAITING_FOR_EARLIER_JOBS = "waiting_for_earlier_jobs"
    PREEMPTED = "preempted"
    WORKER_LOST = "worker_lost"
    COORDINATOR_LOST = "coordinator_lost"
    SERVICE_RESTARTED = "service_restarted"
    INVALID_JOB = "invalid_job"
    NON_FINITE = "non_finite"
    POISON = "poison"
    TOO_MANY_FAILURES = "too_many_failures"
    INTERNAL = "internal"
    USER_REQUEST = "user_request"
    NUMERICS_CHANGED = "numerics_changed"
    CHECKPOINT_FAILED = "checkpoint_failed"


class Trigger(StrEnum):
    """What moves a job from one state to another."""

    LAUNCH = "launch"  # workers were reserved for it
    RUN = "run"  # its workers train
    LOSE = "lose"  # its workers, its coordinator or the service died
    SUCCEED = "succeed"
    FAIL = "fail"
    PAUSE = "pause"  # the user asked, or its workers are needed elsewhere
    RESUME = "resume"
    CANCEL = "cancel"  # the user asked
    STOP = "stop"  # nothing of it runs any more


_S, _T = JobState, Trigger
TRANSITIONS: Mapping[tuple[JobState, Trigger], JobState] = {
    (_S.QUEUED, _T.LAUNCH): _S.STARTING,
    (_S.QUEUED, _T.PAUSE): _S.PAUSED,
    (_S.QUEUED, _T.CANCEL): _S.CANCELLED,
    (_S.STARTING, _T.RUN): _S.RUNNING,
    (_S.STARTING, _T.LOSE): _S.RECOVERING,
    (_S.STARTING, _T.FAIL): _S.FAILED,
    (_S.STARTING, _T.PAUSE): _S.PAUSING,
    (_S.STARTING, _T.CANCEL): _S.CANCELLING,
    (_S.RUNNING, _T.LOSE): _S.RECOVERING,
    (_S.RUNNING, _T.SUCCEED): _S.SUCCEEDED,
    (_S.RUNNING, _T.FAIL): _S.FAILED,
    (_S.RUNNING, _T.PAUSE): _S.PAUSING,
    (_S.RUNNING, _T.CANCEL): _S.CANCELLING,
    (_S.RECOVERING, _T.LAUNCH): _S.STARTING,
    (_S.RECOVERING, _T.RUN): _S.RUNNING,
    (_S.RECOVERING, _T.LOSE): _S.RECOVERING,
    (_S.RECOVERING, _T.FAIL): _S.FAILED,
    (_S.RECOVERING, _T.PAUSE): _S.PAUSING,
    (_S.RECOVERING, _T.CANCEL): _S.CANCELLING,
    (_S.PAUSING, _T.PAUSE): _S.PAUSING,
    (_S.PAUSING, _T.RESUME): _S.PAUSING,
    (_S.PAUSING, _T.STOP): _S.PAUSED,
    (_S.PAUSING, _T.SUCCEED): _S.SUCCEEDED,
    (_S.PAUSING, _T.FAIL): _S.FAILED,
    (_S.PAUSING, _T.CANCEL): _S.CANCELLING,
    (_S.PAUSED, _T.PAUSE): _S.PAUSED,
    (_S.PAUSED, _T.RESUME): _S.QUEUED,
    (_S.PAUSED, _T.CANCEL): _S.CANCELLED,
    # Whatever else becomes of a job whose cancellation was acknowledged, it ends as cancelled.
    (_S.CANCELLING, _T.CANCEL): _S.CANCELLING,
    (_S.CANCELLING, _T.STOP): _S.CANCELLED,
    (_S.CANCELLING, _T.LOSE): _S.CANCELLED,
    (_S.CANCELLING, _T.FAIL): _S.CANCELLED,
    (_S.CANCELLING, _T.SUCCEED): _S.CANCELLED,
    (_S.CANCELLED, _T.CANCEL): _S.CANCELLED,
}


class IllegalTransitionError(Exception):
    """The job's state does not allow this; nothing was changed."""

    def __init__(self, job: Job, trigger: Trigger) -> None:
        super().__init__(f"job {job.job_id} is {job.state}: cannot {trigger}")
        self.job, self.trigger = job, trigger


@dataclass(frozen=True)
class Evaluation:
    """Results on held-out samples after `step` committed steps.

    `accuracy` in [0, 1] is None for regression; `perplexity`, exp(loss), is there for text alone.
    """

    step: int
    loss: float
    accuracy: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class Progress:
    """How far the training is."""

    steps_completed: int = 0
    loss: float | None = None
    samples_per_second: float | None = None
    estimated_remaining_seconds: float | None = None
    current_workers: int = 0


@dataclass(frozen=True)
class Job:
    """What was asked for, where it stands, what came out. Times are seconds since 1970, UTC.

    `wanted_workers` is what the user scaled the job to; 0 is as the spec says. `reports_taken` is the number of the
    last report of the present attempt's run that is in the record.
    """

    job_id: str
    spec: JobSpec
    create_time: float
    state: JobState = JobState.QUEUED
    state_reason: StateReason = StateReason.UNSPECIFIED
    state_message: str = ""
    start_time: float | None = None
    end_time: float | None = None
    attempt: int = 0
    progress: Progress = Progress()
    evaluation: Evaluation | None = None
    num_parameters: int = 0
    weights_digest: str = ""
    model_path: str = ""
    error: str = ""
    wanted_workers: int = 0
    start_checkpoint: StartCheckpoint | None = None
    reports_taken: int = 0

    @property
    def max_workers(self) -> int:
        """The most workers that it takes."""
        return self.wanted_workers or self.spec.workers.max

    @property
    def min_workers(self) -> int:
        """The workers without whom it is not started."""
        return min(self.spec.workers.min, self.max_workers)

    @property
    def stays_paused(self) -> bool:
        """Whether a job that is PAUSING waits for its user afterwards; any other is queued again."""
        return self.state_reason is StateReason.USER_REQUEST


def advance(
    job: Job,
    trigger: Trigger,
    *,
    now: float,
    reason: StateReason = StateReason.UNSPECIFIED,
    message: str = "",
) -> Job:
    """The job after `trigger`; raises IllegalTransitionError where TRANSITIONS has no such row."""
    state = TRANSITIONS.get((job.state, trigger))
    if state is None:
        raise IllegalTransitionError(job, trigger)
    if state is job.state and state in (JobState.PAUSED, JobState.CANCELLING, JobState.CANCELLED):
        return job
    progress = job.progress
    if state.is_terminal or state in (JobState.RECOVERING, JobState.PAUSED):
        progress = replace(progress, samples_per_second=None, estimated_remaining_seconds=None, current_workers=0)
    launched = trigger is Trigger.LAUNCH
    return replace(
        job,
        state=state,
        state_reason=reason,
        state_message=message,
        progress=progress,
        attempt=job.attempt + 1 if launched else job.attempt,
        start_time=now if launched and job.start_time is None else job.start_time,
        end_time=now if state.is_terminal else None,
        error=message if state is JobState.FAILED else "",
        reports_taken=0 if launched else job.reports_taken,
    )


@dataclass(frozen=True)
class StateChanged:
    """The job moved to another state."""

    state: JobState
    reason: StateReason = StateReason.UNSPECIFIED
    message: str = ""


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint was written, read back and published."""

    step: int
    path: str
    weights_digest: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class CheckpointFailed:
    """A checkpoint could not be written, and training goes on; or the checkpoints could not be read for now."""

    step: int
    error: str


@dataclass(frozen=True)
class CheckpointCorrupt:
    """A checkpoint was found damaged, and is kept at `path`; the one before is used."""

    path: str
    reason: str


@dataclass(frozen=True)
class ExactnessLost:
    """The job goes on from `step` with other numerics, named in `differences`, as the operator allowed."""

    step: int
    differences: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker died after `step` committed steps; `phase` is what it was at, if it took part in a step."""

    rank: int
    step: int
    reason: str
    phase: str = ""


@dataclass(frozen=True)
class WorkersChanged:
    """From `step` committed steps on, so many workers train."""

    workers: int
    step: int
    reason: str


@dataclass(frozen=True)
class WorkersWanted:
    """So many workers are to train from now on; WorkersChanged tells when they do."""

    workers: int
    reason: str


@dataclass(frozen=True)
class WorkerSlow:
    """A worker was so many times slower than the others; from now on it computes `shards` of a batch's shards."""

    rank: int
    step: int
    times: float
    shards: int


@dataclass(frozen=True)
class CompilationStarted:
    """A worker compiles kernels that no job on this machine has needed before; the others wait for it."""

    rank: int


@dataclass(frozen=True)
class CompilationFinished:
    """The kernels are there, and in the cache for later jobs."""

    num_kernels: int
    seconds: float


Happening = (
    StateChanged
    | Evaluation
    | CheckpointSaved
    | CheckpointFailed
    | CheckpointCorrupt
    | ExactnessLost
    | WorkerLost
    | WorkersChanged
    | WorkersWanted
    | WorkerSlow
    | CompilationStarted
    | CompilationFinished
)


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job, stored for good; `event_id` counts from 1 within the job, without gaps."""

    job_id: str
    event_id: int
    time: float
    happening: Happening
