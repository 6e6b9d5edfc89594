"""A client of the service, for programs and for the command line: typed calls, errors that say what to do.

    with Client("127.0.0.1:50051") as client:
        job = client.create_job(parse_spec(document))
        for event in client.watch_job(job.job_id):
            ...

Answers are the messages of backprop.v1. Every call raises ClientError when the service refuses it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from service import limits
from service.pb.backprop.v1 import job_pb2, training_service_pb2_grpc
from service.pb.backprop.v1 import training_service_pb2 as pb

if TYPE_CHECKING:
    from worker.spec import JobSpec

OPTIONS = [
    ("grpc.enable_http_proxy", 0),  # the service listens on loopback; a proxy could not reach it
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
Message = TypeVar("Message", job_pb2.JobEvent, job_pb2.StepMetrics)
UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclass(frozen=True)
class FieldViolation:
    """One field at fault, by its path in the request or in the job spec."""

    field: str
    description: str


class ClientError(Exception):
    """The service refused a call. `code` is the gRPC status, `reason` its ErrorInfo, such as JOB_NOT_FOUND."""

    def __init__(self, message: str, *, code: str, reason: str = "", violations: Sequence[FieldViolation] = ()) -> None:
        super().__init__(message)
        self.code, self.reason, self.violations = code, reason, tuple(violations)

    @property
    def is_unreachable(self) -> bool:
        """Whether no service answered, or only one that is going away."""
        return self.code in UNREACHABLE


class Client:
    """Calls to the service at `address`, HOST:PORT. Connects with the first call."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._stub = training_service_pb2_grpc.TrainingServiceStub(self._channel)

    def __repr__(self) -> str:
        return f"<Client of {self.address}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and whatever is still being read from it."""
        self._channel.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise client_error(error, self.address) from None

    def create_job(
        self,
        spec: JobSpec,
        *,
        request_id: str = "",
        validate_only: bool = False,
        start_checkpoint: job_pb2.StartCheckpoint | None = None,
    ) -> job_pb2.Job:
        """Submits a job. Without a request_id one is made up, so that gRPC may safely repeat the call.

        With `start_checkpoint` it begins with that checkpoint of another job, which trains the same.
        """
        from service.convert import spec_to_proto  # needs pydantic, which takes a while to load

        request = pb.CreateJobRequest(
            spec=spec_to_proto(spec),
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
            start_checkpoint=start_checkpoint,
        )
        with self._translated():
            return self._stub.CreateJob(request, timeout=limits.CREATE_SECONDS)

    def get_job(self, job_id: str) -> job_pb2.Job:
        """One job as it stands now."""
        with self._translated():
            return self._stub.GetJob(pb.GetJobRequest(job_id=job_id), timeout=limits.CALL_SECONDS)

    def list_jobs(self, *, states: Sequence[str] = (), page_size: int = 0) -> Iterator[job_pb2.Job]:
        """Every job, newest first; only those in one of `states`, such as JOB_STATE_RUNNING, if any are given."""
        token = ""
        while True:
            request = pb.ListJobsRequest(states=states, page_size=page_size, page_token=token)
            with self._translated():
                page = self._stub.ListJobs(request, timeout=limits.CALL_SECONDS)
            yield from page.jobs
            token = page.next_page_token
            if not token:
                return

    def find_job(self, name: str) -> job_pb2.Job:
        """The job whose id is `name`, or the only one whose id begins with it."""
        try:
            return self.get_job(name)
        except ClientError as error:
            if error.code != "NOT_FOUND" or not name:
                raise
            matches = [job for job in self.list_jobs() if job.job_id.startswith(name)]
            if not matches:
                raise
        if len(matches) > 1:
            shown = ", ".join(job.job_id for job in matches[:5]) + (", ..." if len(matches) > 5 else "")
            message = f"{name!r} stands for {len(matches)} jobs, expected one: {shown}"
            raise ClientError(message, code="INVALID_ARGUMENT", reason="AMBIGUOUS_JOB")
        return matches[0]

    def pause_job(self, job_id: str) -> job_pb2.Job:
        """Stops a job at a step boundary; what it has is saved."""
        with self._translated():
            return self._stub.PauseJob(pb.PauseJobRequest(job_id=job_id), timeout=limits.CALL_SECONDS)

    def resume_job(self, job_id: str) -> job_pb2.Job:
        """Queues a paused job again."""
        with self._translated():
            return self._stub.ResumeJob(pb.ResumeJobRequest(job_id=job_id), timeout=limits.CALL_SECONDS)

    def scale_job(self, job_id: str, workers: int) -> job_pb2.Job:
        """Sets the most workers that a job takes."""
        request = pb.ScaleJobRequest(job_id=job_id, workers=workers)
        with self._translated():
            return self._stub.ScaleJob(request, timeout=limits.CALL_SECONDS)

    def cancel_job(self, job_id: str) -> job_pb2.Job:
        """Stops a job."""
        with self._translated():
            return self._stub.CancelJob(pb.CancelJobRequest(job_id=job_id), timeout=limits.CALL_SECONDS)

    def delete_job(self, job_id: str) -> None:
        """Removes a finished job with its history and files."""
        with self._translated():
            self._stub.DeleteJob(pb.DeleteJobRequest(job_id=job_id), timeout=limits.CALL_SECONDS)

    def server_info(self) -> pb.ServerInfo:
        """What the service is and what it can run."""
        with self._translated():
            return self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=limits.CALL_SECONDS)

    def watch_job(
        self,
        job_id: str,
        *,
        after_event_id: int = 0,
        patience_seconds: float = limits.RECONNECT_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[job_pb2.JobEvent]:
        """The job's events and progress until it ends.

        A service that goes away in between is waited for: no event is lost or seen twice.
        """
        watch = lambda cursor: self._stub.WatchJob(pb.WatchJobRequest(job_id=job_id, after_event_id=cursor))  # noqa: E731
        yield from self._resumed(watch, lambda event: event.event_id, after_event_id, patience_seconds, sleep)

    def stream_metrics(
        self,
        job_id: str,
        *,
        after_step: int = 0,
        patience_seconds: float = limits.RECONNECT_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[job_pb2.StepMetrics]:
        """The metrics of the job's steps until it ends, each step once; of a long job, every so-manieth.

        A service that goes away in between is waited for.
        """
        stream = lambda cursor: self._stub.StreamMetrics(pb.StreamMetricsRequest(job_id=job_id, after_step=cursor))  # noqa: E731
        yield from self._resumed(stream, lambda metrics: metrics.step, after_step, patience_seconds, sleep)

    def _resumed(
        self,
        call: Callable[[int], Iterable[Message]],
        position: Callable[[Message], int],
        cursor: int,
        patience_seconds: float,
        sleep: Callable[[float], None],
    ) -> Iterator[Message]:
        """A stream that goes on behind its last message when the service was away; messages at 0 do not count."""
        gone_since, has_connected = None, False
        while True:
            try:
                with self._translated():
                    for message in call(cursor):
                        has_connected, gone_since = True, None
                        cursor = position(message) or cursor
                        yield message
                    return
            except ClientError as error:
                now = time.monotonic()
                gone_since = now if gone_since is None else gone_since
                if not (has_connected and error.is_unreachable) or now - gone_since > patience_seconds:
                    raise
                sleep(limits.RETRY_CONNECT_SECONDS)

    def list_events(self, job_id: str) -> Iterator[job_pb2.JobEvent]:
        """The lasting events that there are by now."""
        with self._translated():
            call = self._stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=limits.CALL_SECONDS)
            for event in call:
                if event.event_id == 0:  # the first progress follows the last event of the past
                    call.cancel()
                    return
                yield event

    def list_checkpoints(self, job_id: str, *, verify: bool = False) -> list[job_pb2.Checkpoint]:
        """The checkpoints of a job that are there now, newest first; with `verify`, every byte of them is checked."""
        request = pb.ListCheckpointsRequest(job_id=job_id, verify=verify)
        with self._translated():
            timeout = limits.VERIFY_SECONDS if verify else limits.CALL_SECONDS
            return list(self._stub.ListCheckpoints(request, timeout=timeout).checkpoints)

    def export_model(self, job_id: str, weights: str | None = None) -> Iterator[pb.ExportModelResponse]:
        """The trained model as the parts of a safetensors file; `weights` are "raw" or "ema", by default the best."""
        name = f"MODEL_WEIGHTS_{(weights or 'unspecified').upper()}"
        with self._translated():
            yield from self._stub.ExportModel(pb.ExportModelRequest(job_id=job_id, weights=name))


def client_error(error: grpc.RpcError, address: str) -> ClientError:
    """What a failed call means to its caller."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    assert isinstance(error, grpc.Call)
    code, message = error.code().name, error.details() or ""
    reason, violations = "", []
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad_request):
            violations = [FieldViolation(item.field, item.description) for item in bad_request.field_violations]
    if code == "UNAVAILABLE" and not reason:
        message = f"cannot reach the service at {address}; start it with `backprop serve`"
    elif code == "DEADLINE_EXCEEDED":
        message = f"the service at {address} did not answer in time"
    elif code == "CANCELLED":
        message = "the call was cancelled"
    return ClientError(message, code=code, reason=reason, violations=violations)
