"""Protobuf to domain and back: the only place that knows both.

Job specs are read and written through the message's descriptors, so that a new field needs no line here: a message
is a mapping, an enum value its name without the prefix and in lower case, and what is not set is absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from service import jobs
from service.errors import InvalidJob
from service.pb.backprop.v1 import job_pb2, spec_pb2
from service.records import spec_document
from service.runs import StepSample
from service.start_checkpoint import StartCheckpoint
from worker.spec import JobSpec, parse_spec
from worker.violations import SpecError, Violation

if TYPE_CHECKING:
    from worker.checkpoint import Listed

AnyEnum = Any  # of the kind EnumDescriptor; each of protobuf's implementations has its own
AnyMessage = TypeVar("AnyMessage", bound=Message)


def spec_from_proto(message: spec_pb2.JobSpec) -> JobSpec:
    """The job spec that a message asks for; raises InvalidJob."""
    if unknown := unknown_fields(message):
        raise InvalidJob([Violation(path, "this service is too old for it: the field is unknown") for path in unknown])
    try:
        return parse_spec(document_from(message))
    except SpecError as error:
        raise InvalidJob(error.violations) from None


def spec_to_proto(spec: JobSpec) -> spec_pb2.JobSpec:
    """A job spec as a message, with its defaults filled in."""
    return fill(spec_pb2.JobSpec(), spec_document(spec))


def document_from(message: Message) -> dict[str, Any]:
    """What is set in a message, as a job file would say it."""
    return {field.name: _plain(field, value) for field, value in message.ListFields()}


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.is_repeated:
        return [_plain_single(field, item) for item in value]
    return _plain_single(field, value)


def _plain_single(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return document_from(value)
    return enum_word(field.enum_type, value) if field.enum_type is not None else value


def enum_prefix(enum: AnyEnum) -> str:
    """What the names of an enum's values begin with: JOB_STATE_ for JobState."""
    first: str = enum.values[0].name
    return first.removesuffix("UNSPECIFIED")


def enum_word(enum: AnyEnum, number: int) -> str | int:
    """An enum value as the job file says it; a number that has no name here stays a number."""
    value = enum.values_by_number.get(number)
    return number if value is None else str(value.name).removeprefix(enum_prefix(enum)).lower()


def enum_number(enum: AnyEnum, word: str) -> int:
    """The number of an enum value by the word the job file has for it."""
    return int(enum.values_by_name[enum_prefix(enum) + word.upper()].number)


def fill(message: AnyMessage, document: Mapping[str, Any]) -> AnyMessage:
    """Sets a message's fields from what `document_from` would give; changes and returns `message`."""
    message.SetInParent()
    for name, value in document.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type is not None:
            fill(getattr(message, name), value)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        else:
            setattr(message, name, enum_number(field.enum_type, value) if field.enum_type is not None else value)
    return message


def unknown_fields(message: Message, path: str = "") -> list[str]:
    """Paths of the fields that a newer client has set and this service does not know."""
    unknown = UnknownFieldSet(message)
    found = [f"{path}#{unknown[index].field_number}" for index in range(len(unknown))]
    for field, value in message.ListFields():
        if field.message_type is not None and not field.is_repeated:
            found.extend(unknown_fields(value, f"{path}{field.name}."))
    return found


def state_to_proto(state: jobs.JobState) -> str:
    """A job's state by its name in the API."""
    return f"JOB_STATE_{state.name}"


def state_from_proto(number: int) -> jobs.JobState | None:
    """A job's state, or None for a number that stands for none."""
    word = enum_word(job_pb2.JobState.DESCRIPTOR, number)
    return jobs.JobState(word) if word in set(jobs.JobState) else None


def reason_to_proto(reason: jobs.StateReason) -> str:
    """Why a job is in its state, by its name in the API."""
    return f"STATE_REASON_{reason.name}"


def timestamp(seconds: float) -> Timestamp:
    """A time in seconds since 1970 as a message; whole microseconds, for a double has no more."""
    message = Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def duration(seconds: float) -> Duration | None:
    """A duration as a message; None where it is not finite."""
    if not math.isfinite(seconds):
        return None
    message = Duration()
    message.FromMilliseconds(round(seconds * 1e3))
    return message


def job_to_proto(job: jobs.Job) -> job_pb2.Job:
    """A job as a message. A loss may be NaN."""
    progress, remaining = job.progress, job.progress.estimated_remaining_seconds
    return job_pb2.Job(
        job_id=job.job_id,
        spec=spec_to_proto(job.spec),
        state=state_to_proto(job.state),
        state_reason=reason_to_proto(job.state_reason),
        state_message=job.state_message,
        create_time=timestamp(job.create_time),
        start_time=None if job.start_time is None else timestamp(job.start_time),
        end_time=None if job.end_time is None else timestamp(job.end_time),
        steps_completed=progress.steps_completed,
        total_steps=job.spec.training.max_steps,
        loss=progress.loss,
        samples_per_second=progress.samples_per_second,
        estimated_remaining=None if remaining is None else duration(remaining),
        current_workers=progress.current_workers,
        attempt=job.attempt,
        evaluation=None if job.evaluation is None else evaluation_to_proto(job.evaluation),
        weights_digest=job.weights_digest,
        error=job.error,
        model_path=job.model_path,
        num_parameters=job.num_parameters,
        wanted_workers=job.max_workers,
        start_checkpoint=None if job.start_checkpoint is None else start_to_proto(job.start_checkpoint),
    )


def start_to_proto(start: StartCheckpoint) -> job_pb2.StartCheckpoint:
    """The checkpoint that a job began with, as a message."""
    return job_pb2.StartCheckpoint(job_id=start.job_id, step=start.step)


def start_from_proto(message: job_pb2.StartCheckpoint) -> StartCheckpoint:
    """The checkpoint that a job is to begin with."""
    return StartCheckpoint(message.job_id, message.step)


def evaluation_to_proto(evaluation: jobs.Evaluation) -> job_pb2.Evaluation:
    """An evaluation as a message."""
    return job_pb2.Evaluation(
        step=evaluation.step, loss=evaluation.loss, accuracy=evaluation.accuracy, perplexity=evaluation.perplexity
    )


def event_to_proto(event: jobs.JobEvent) -> job_pb2.JobEvent:
    """A lasting event as a message."""
    message = job_pb2.JobEvent(event_id=event.event_id, job_id=event.job_id, time=timestamp(event.time))
    match event.happening:
        case jobs.StateChanged(state, reason, text):
            changed = job_pb2.StateChanged(state=state_to_proto(state), reason=reason_to_proto(reason), message=text)
            message.state_changed.CopyFrom(changed)
        case jobs.Evaluation() as evaluation:
            message.evaluation.CopyFrom(evaluation_to_proto(evaluation))
        case jobs.CheckpointSaved() as saved:
            message.checkpoint_saved.CopyFrom(
                job_pb2.CheckpointSaved(
                    step=saved.step, path=saved.path, weights_digest=saved.weights_digest, size_bytes=saved.size_bytes
                )
            )
        case jobs.CheckpointFailed() as failed:
            message.checkpoint_failed.CopyFrom(job_pb2.CheckpointFailed(step=failed.step, error=failed.error))
        case jobs.CheckpointCorrupt() as corrupt:
            message.checkpoint_corrupt.CopyFrom(job_pb2.CheckpointCorrupt(path=corrupt.path, reason=corrupt.reason))
        case jobs.ExactnessLost() as changed:
            message.exactness_lost.CopyFrom(job_pb2.ExactnessLost(step=changed.step, differences=changed.differences))
        case jobs.WorkerLost() as lost:
            message.worker_lost.CopyFrom(
                job_pb2.WorkerLost(rank=lost.rank, step=lost.step, reason=lost.reason, phase=lost.phase)
            )
        case jobs.WorkersChanged(workers, step, reason=text):
            message.workers_changed.CopyFrom(job_pb2.WorkersChanged(workers=workers, step=step, reason=text))
        case jobs.WorkersWanted(workers, reason=text):
            message.workers_wanted.CopyFrom(job_pb2.WorkersWanted(workers=workers, reason=text))
        case jobs.WorkerSlow(rank, step, times, shards):
            message.worker_slow.CopyFrom(job_pb2.WorkerSlow(rank=rank, step=step, times=times, shards=shards))
        case jobs.CompilationStarted(rank):
            message.compilation_started.CopyFrom(job_pb2.CompilationStarted(rank=rank))
        case jobs.CompilationFinished(num_kernels, seconds):
            message.compilation_finished.CopyFrom(job_pb2.CompilationFinished(num_kernels=num_kernels, seconds=seconds))
    return message


def checkpoint_to_proto(found: Listed) -> job_pb2.Checkpoint:
    """A checkpoint as a message."""
    return job_pb2.Checkpoint(
        step=found.step,
        time=timestamp(found.time),
        size_bytes=found.size_bytes,
        weights_digest=found.weights_digest,
        location=found.location,
        verified=found.is_verified,
        problem=found.problem,
    )


def progress_to_proto(job: jobs.Job, *, now: float) -> job_pb2.JobEvent:
    """The job as it stands, as the passing event between the lasting ones."""
    return job_pb2.JobEvent(job_id=job.job_id, time=timestamp(now), progress=job_to_proto(job))


def sample_to_proto(sample: StepSample) -> job_pb2.StepMetrics:
    """A step's metrics as a message."""
    return job_pb2.StepMetrics(**asdict(sample))
