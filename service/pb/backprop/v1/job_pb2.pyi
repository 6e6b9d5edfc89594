import datetime

from service.pb.backprop.v1 import spec_pb2 as _spec_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_STARTING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_RECOVERING: _ClassVar[JobState]
    JOB_STATE_PAUSING: _ClassVar[JobState]
    JOB_STATE_PAUSED: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class StateReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_REASON_UNSPECIFIED: _ClassVar[StateReason]
    STATE_REASON_WAITING_FOR_WORKERS: _ClassVar[StateReason]
    STATE_REASON_WAITING_FOR_EARLIER_JOBS: _ClassVar[StateReason]
    STATE_REASON_WORKER_LOST: _ClassVar[StateReason]
    STATE_REASON_COORDINATOR_LOST: _ClassVar[StateReason]
    STATE_REASON_SERVICE_RESTARTED: _ClassVar[StateReason]
    STATE_REASON_INVALID_JOB: _ClassVar[StateReason]
    STATE_REASON_NON_FINITE: _ClassVar[StateReason]
    STATE_REASON_TOO_MANY_FAILURES: _ClassVar[StateReason]
    STATE_REASON_INTERNAL: _ClassVar[StateReason]
    STATE_REASON_USER_REQUEST: _ClassVar[StateReason]
    STATE_REASON_POISON: _ClassVar[StateReason]
    STATE_REASON_NUMERICS_CHANGED: _ClassVar[StateReason]
    STATE_REASON_CHECKPOINT_FAILED: _ClassVar[StateReason]
    STATE_REASON_PREEMPTED: _ClassVar[StateReason]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_STARTING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_RECOVERING: JobState
JOB_STATE_PAUSING: JobState
JOB_STATE_PAUSED: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
STATE_REASON_UNSPECIFIED: StateReason
STATE_REASON_WAITING_FOR_WORKERS: StateReason
STATE_REASON_WAITING_FOR_EARLIER_JOBS: StateReason
STATE_REASON_WORKER_LOST: StateReason
STATE_REASON_COORDINATOR_LOST: StateReason
STATE_REASON_SERVICE_RESTARTED: StateReason
STATE_REASON_INVALID_JOB: StateReason
STATE_REASON_NON_FINITE: StateReason
STATE_REASON_TOO_MANY_FAILURES: StateReason
STATE_REASON_INTERNAL: StateReason
STATE_REASON_USER_REQUEST: StateReason
STATE_REASON_POISON: StateReason
STATE_REASON_NUMERICS_CHANGED: StateReason
STATE_REASON_CHECKPOINT_FAILED: StateReason
STATE_REASON_PREEMPTED: StateReason

class Job(_message.Message):
    __slots__ = ("job_id", "spec", "state", "state_reason", "state_message", "create_time", "start_time", "end_time", "steps_completed", "total_steps", "loss", "samples_per_second", "estimated_remaining", "current_workers", "attempt", "evaluation", "weights_digest", "error", "model_path", "num_parameters", "wanted_workers", "start_checkpoint")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    STATE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    STEPS_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_REMAINING_FIELD_NUMBER: _ClassVar[int]
    CURRENT_WORKERS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    WANTED_WORKERS_FIELD_NUMBER: _ClassVar[int]
    START_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    spec: _spec_pb2.JobSpec
    state: JobState
    state_reason: StateReason
    state_message: str
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    steps_completed: int
    total_steps: int
    loss: float
    samples_per_second: float
    estimated_remaining: _duration_pb2.Duration
    current_workers: int
    attempt: int
    evaluation: Evaluation
    weights_digest: str
    error: str
    model_path: str
    num_parameters: int
    wanted_workers: int
    start_checkpoint: StartCheckpoint
    def __init__(self, job_id: _Optional[str] = ..., spec: _Optional[_Union[_spec_pb2.JobSpec, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., state_reason: _Optional[_Union[StateReason, str]] = ..., state_message: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., steps_completed: _Optional[int] = ..., total_steps: _Optional[int] = ..., loss: _Optional[float] = ..., samples_per_second: _Optional[float] = ..., estimated_remaining: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., current_workers: _Optional[int] = ..., attempt: _Optional[int] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., weights_digest: _Optional[str] = ..., error: _Optional[str] = ..., model_path: _Optional[str] = ..., num_parameters: _Optional[int] = ..., wanted_workers: _Optional[int] = ..., start_checkpoint: _Optional[_Union[StartCheckpoint, _Mapping]] = ...) -> None: ...

class StartCheckpoint(_message.Message):
    __slots__ = ("job_id", "step")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    step: int
    def __init__(self, job_id: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("step", "loss", "accuracy", "perplexity")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss: float
    accuracy: float
    perplexity: float
    def __init__(self, step: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., perplexity: _Optional[float] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("event_id", "job_id", "time", "state_changed", "evaluation", "checkpoint_saved", "checkpoint_failed", "worker_lost", "compilation_started", "compilation_finished", "progress", "workers_changed", "worker_slow", "checkpoint_corrupt", "exactness_lost", "workers_wanted")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SAVED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FAILED_FIELD_NUMBER: _ClassVar[int]
    WORKER_LOST_FIELD_NUMBER: _ClassVar[int]
    COMPILATION_STARTED_FIELD_NUMBER: _ClassVar[int]
    COMPILATION_FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    WORKER_SLOW_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_CORRUPT_FIELD_NUMBER: _ClassVar[int]
    EXACTNESS_LOST_FIELD_NUMBER: _ClassVar[int]
    WORKERS_WANTED_FIELD_NUMBER: _ClassVar[int]
    event_id: int
    job_id: str
    time: _timestamp_pb2.Timestamp
    state_changed: StateChanged
    evaluation: Evaluation
    checkpoint_saved: CheckpointSaved
    checkpoint_failed: CheckpointFailed
    worker_lost: WorkerLost
    compilation_started: CompilationStarted
    compilation_finished: CompilationFinished
    progress: Job
    workers_changed: WorkersChanged
    worker_slow: WorkerSlow
    checkpoint_corrupt: CheckpointCorrupt
    exactness_lost: ExactnessLost
    workers_wanted: WorkersWanted
    def __init__(self, event_id: _Optional[int] = ..., job_id: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state_changed: _Optional[_Union[StateChanged, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., checkpoint_saved: _Optional[_Union[CheckpointSaved, _Mapping]] = ..., checkpoint_failed: _Optional[_Union[CheckpointFailed, _Mapping]] = ..., worker_lost: _Optional[_Union[WorkerLost, _Mapping]] = ..., compilation_started: _Optional[_Union[CompilationStarted, _Mapping]] = ..., compilation_finished: _Optional[_Union[CompilationFinished, _Mapping]] = ..., progress: _Optional[_Union[Job, _Mapping]] = ..., workers_changed: _Optional[_Union[WorkersChanged, _Mapping]] = ..., worker_slow: _Optional[_Union[WorkerSlow, _Mapping]] = ..., checkpoint_corrupt: _Optional[_Union[CheckpointCorrupt, _Mapping]] = ..., exactness_lost: _Optional[_Union[ExactnessLost, _Mapping]] = ..., workers_wanted: _Optional[_Union[WorkersWanted, _Mapping]] = ...) -> None: ...

class StateChanged(_message.Message):
    __slots__ = ("state", "reason", "message")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    reason: StateReason
    message: str
    def __init__(self, state: _Optional[_Union[JobState, str]] = ..., reason: _Optional[_Union[StateReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class CheckpointSaved(_message.Message):
    __slots__ = ("step", "path", "weights_digest", "size_bytes")
    STEP_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    step: int
    path: str
    weights_digest: str
    size_bytes: int
    def __init__(self, step: _Optional[int] = ..., path: _Optional[str] = ..., weights_digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class CheckpointFailed(_message.Message):
    __slots__ = ("step", "error")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step: int
    error: str
    def __init__(self, step: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class CheckpointCorrupt(_message.Message):
    __slots__ = ("path", "reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    reason: str
    def __init__(self, path: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ExactnessLost(_message.Message):
    __slots__ = ("step", "differences")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    step: int
    differences: str
    def __init__(self, step: _Optional[int] = ..., differences: _Optional[str] = ...) -> None: ...

class WorkerLost(_message.Message):
    __slots__ = ("rank", "step", "reason", "phase")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    step: int
    reason: str
    phase: str
    def __init__(self, rank: _Optional[int] = ..., step: _Optional[int] = ..., reason: _Optional[str] = ..., phase: _Optional[str] = ...) -> None: ...

class WorkersChanged(_message.Message):
    __slots__ = ("workers", "step", "reason")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    workers: int
    step: int
    reason: str
    def __init__(self, workers: _Optional[int] = ..., step: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class WorkersWanted(_message.Message):
    __slots__ = ("workers", "reason")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    workers: int
    reason: str
    def __init__(self, workers: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class WorkerSlow(_message.Message):
    __slots__ = ("rank", "step", "times", "shards")
    RANK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    step: int
    times: float
    shards: int
    def __init__(self, rank: _Optional[int] = ..., step: _Optional[int] = ..., times: _Optional[float] = ..., shards: _Optional[int] = ...) -> None: ...

class CompilationStarted(_message.Message):
    __slots__ = ("rank",)
    RANK_FIELD_NUMBER: _ClassVar[int]
    rank: int
    def __init__(self, rank: _Optional[int] = ...) -> None: ...

class CompilationFinished(_message.Message):
    __slots__ = ("num_kernels", "seconds")
    NUM_KERNELS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    num_kernels: int
    seconds: float
    def __init__(self, num_kernels: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class StepMetrics(_message.Message):
    __slots__ = ("step", "loss", "gradient_norm", "learning_rate", "seconds", "is_clipped", "is_non_finite")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    IS_CLIPPED_FIELD_NUMBER: _ClassVar[int]
    IS_NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    is_clipped: bool
    is_non_finite: bool
    def __init__(self, step: _Optional[int] = ..., loss: _Optional[float] = ..., gradient_norm: _Optional[float] = ..., learning_rate: _Optional[float] = ..., seconds: _Optional[float] = ..., is_clipped: bool = ..., is_non_finite: bool = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("step", "time", "size_bytes", "weights_digest", "location", "verified", "problem")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    step: int
    time: _timestamp_pb2.Timestamp
    size_bytes: int
    weights_digest: str
    location: str
    verified: bool
    problem: str
    def __init__(self, step: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., size_bytes: _Optional[int] = ..., weights_digest: _Optional[str] = ..., location: _Optional[str] = ..., verified: bool = ..., problem: _Optional[str] = ...) -> None: ...
