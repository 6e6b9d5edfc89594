"""The gRPC servicer: decode, call, encode; nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing

from google.protobuf.empty_pb2 import Empty

from service import __version__, limits
from service.admission import Admission
from service.checkpoints import checkpoints_at, model_of
from service.convert import (
    checkpoint_to_proto,
    event_to_proto,
    job_to_proto,
    progress_to_proto,
    sample_to_proto,
    spec_from_proto,
    start_from_proto,
    state_from_proto,
)
from service.directories import JobDirectories
from service.dispatcher import Dispatcher
from service.errors import InvalidRequest
from service.interceptors import Context
from service.jobs import Job, JobEvent, JobState
from service.ledger import Ledger
from service.pb.backprop.v1 import job_pb2, training_service_pb2_grpc
from service.pb.backprop.v1 import training_service_pb2 as pb
from service.runs import Cluster
from worker.spec import DataSpec, ModelSpec, OptimizerSpec, ScheduleSpec
from worker.violations import Violation


class TrainingService(training_service_pb2_grpc.TrainingServiceServicer):
    """backprop.v1.TrainingService. Raises ServiceErrors; `interceptors` makes statuses of them."""

    def __init__(
        self,
        admission: Admission,
        *,
        dispatcher: Dispatcher,
        ledger: Ledger,
        cluster: Cluster,
        directories: JobDirectories,
        clock: Callable[[], float],
        http_address: str,
    ) -> None:
        self._admission, self._dispatcher, self._ledger = admission, dispatcher, ledger
        self._cluster, self._clock, self._http_address = cluster, clock, http_address
        self._directories = directories

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> job_pb2.Job:
        """Submits a job, or only checks it."""
        spec = spec_from_proto(request.spec)
        start = start_from_proto(request.start_checkpoint) if request.HasField("start_checkpoint") else None
        if request.validate_only:
            return job_to_proto(await self._admission.validate(spec, start))
        return job_to_proto(await self._admission.admit(spec, request_id=request.request_id, start=start))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> job_pb2.Job:
        """One job as it stands now."""
        return job_to_proto(await self._ledger.get(request.job_id))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """A page of jobs, newest first."""
        states = states_of(request)
        before = position_of(request.page_token, states)
        page = await self._ledger.page(states=states, before=before, size=page_size_of(request))
        token = "" if page.next_position is None else page_token(page.next_position, states)
        return pb.ListJobsResponse(jobs=map(job_to_proto, page.jobs), next_page_token=token)

    async def PauseJob(self, request: pb.PauseJobRequest, context: Context) -> job_pb2.Job:
        """Stops a job for a while."""
        return job_to_proto(await self._dispatcher.pause(request.job_id))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Context) -> job_pb2.Job:
        """Queues a paused job again."""
        return job_to_proto(await self._dispatcher.resume(request.job_id))

    async def ScaleJob(self, request: pb.ScaleJobRequest, context: Context) -> job_pb2.Job:
        """Sets the most workers that a job takes."""
        return job_to_proto(await self._dispatcher.scale(request.job_id, request.workers))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> job_pb2.Job:
        """Stops a job."""
        return job_to_proto(await self._dispatcher.cancel(request.job_id))

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Context) -> Empty:
        """Removes a finished job."""
        await self._dispatcher.delete(request.job_id)
        return Empty()

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[job_pb2.JobEvent]:
        """The job's events and progress until it ends."""
        async with aclosing(self._ledger.watch(request.job_id, request.after_event_id)) as seen:
            async for news in seen:
                yield event_to_proto(news) if isinstance(news, JobEvent) else progress_to_proto(news, now=self._clock())

    async def StreamMetrics(
        self, request: pb.StreamMetricsRequest, context: Context
    ) -> AsyncIterator[job_pb2.StepMetrics]:
        """The metrics of the job's steps until it ends."""
        async with aclosing(self._ledger.steps(request.job_id, request.after_step)) as samples:
            async for sample in samples:
                yield sample_to_proto(sample)

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: Context
    ) -> AsyncIterator[pb.ExportModelResponse]:
        """The trained model, in chunks."""
        job = await self._ledger.get(request.job_id)
        async with aclosing(model_of(job, raw=wants_raw(job, request.weights))) as pieces:
            async for size, chunk in pieces:
                yield pb.ExportModelResponse(chunk=chunk, size_bytes=size)

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        """The checkpoints that are there now."""
        job = await self._ledger.get(request.job_id)
        found = await checkpoints_at(self._directories.checkpoints(job.job_id), verify=request.verify)
        return pb.ListCheckpointsResponse(checkpoints=map(checkpoint_to_proto, found))

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.ServerInfo:
        """What this service is and what it can run."""
        return pb.ServerInfo(
            version=__version__,
            worker_slots=self._cluster.num_slots,
            free_worker_slots=self._dispatcher.free_slots,
            model_kinds=ModelSpec.kinds(),
            data_sources=DataSpec.kinds(),
            optimizers=OptimizerSpec.kinds(),
            schedules=ScheduleSpec.kinds(),
            http_address=self._http_address,
        )


def wants_raw(job: Job, weights: pb.ModelWeights) -> bool:
    """Whether the weights of the last step are asked for where there is an average, too."""
    averages = job.spec.optimizer.ema is not None
    match weights:
        case pb.MODEL_WEIGHTS_UNSPECIFIED:
            return False
        case pb.MODEL_WEIGHTS_RAW:
            return averages
        case pb.MODEL_WEIGHTS_EMA if averages:
            return False
        case pb.MODEL_WEIGHTS_EMA:
            text = "got MODEL_WEIGHTS_EMA, but the job keeps no average; ask for raw, or train with optimizer.ema"
        case _:
            text = f"got {weights}, expected one of the values of ModelWeights"
    raise InvalidRequest([Violation("weights", text)])


def states_of(request: pb.ListJobsRequest) -> tuple[JobState, ...]:
    """The states that a list is limited to; none is all."""
    states = [state_from_proto(number) for number in request.states]
    if None in states:
        wrong = request.states[states.index(None)]
        raise InvalidRequest([Violation("states", f"got {wrong}, expected one of the values of JobState")])
    return tuple(sorted({state for state in states if state is not None}))


def page_size_of(request: pb.ListJobsRequest) -> int:
    """The number of jobs on a page."""
    if request.page_size < 0:
        violation = f"got {request.page_size}, expected 0 to {limits.MAX_PAGE_SIZE}"
        raise InvalidRequest([Violation("page_size", violation)])
    return min(request.page_size or limits.DEFAULT_PAGE_SIZE, limits.MAX_PAGE_SIZE)


def page_token(position: int, states: Collection[JobState]) -> str:
    """Where the next page begins, for the same states; opaque to clients."""
    return base64.urlsafe_b64encode(json.dumps([position, *states]).encode()).decode()


def position_of(token: str, states: Collection[JobState]) -> int | None:
    """What `page_token` was made of; raises InvalidRequest for any other token."""
    if not token:
        return None
    try:
        position, *token_states = json.loads(base64.urlsafe_b64decode(token.encode()))
    except ValueError:
        position, token_states = None, []
    if not isinstance(position, int) or token_states != list(states):
        text = "expected next_page_token of an earlier answer to the same request"
        raise InvalidRequest([Violation("page_token", f"got {token[:40]!r}, {text}")])
    return position
