"""The gRPC API on a real server with a cluster that the test controls: every call, every refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from service.convert import spec_to_proto
from service.errors import StartError
from service.fake_cluster import FakeCluster, Script
from service.pb.backprop.v1 import job_pb2, spec_pb2, training_service_pb2_grpc
from service.pb.backprop.v1 import training_service_pb2 as pb
from tests.conftest import SECONDS, MakeSpec, RunningService, StartService
from tests.unit.checkpoints import ORIGIN, save
from worker.checkpoint_store import LocalStore
from worker.data import source as data_source
from worker.replica import spec_sha256

Stub = Any  # the generated asynchronous stub has no class of its own


@asynccontextmanager
async def stub_of(service: RunningService) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(service.address) as channel:
        yield training_service_pb2_grpc.TrainingServiceStub(channel)


async def until_state(stub: Stub, job_id: str, state: int) -> job_pb2.Job:
    async with asyncio.timeout(SECONDS):
        while True:
            job: job_pb2.Job = await stub.GetJob(pb.GetJobRequest(job_id=job_id))
            if job.state == state:
                return job
            await asyncio.sleep(0.005)


async def until_steps(stub: Stub, job_id: str, steps: int) -> None:
    async with asyncio.timeout(SECONDS):
        while (await stub.GetJob(pb.GetJobRequest(job_id=job_id))).steps_completed < steps:
            await asyncio.sleep(0.005)


async def refusal(call: Any) -> tuple[str, str, dict[str, str]]:
    """(code, ErrorInfo reason, {field: description}) of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert "Traceback" not in (error.details() or "")
    assert "\n" not in (error.details() or "")
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has all that it asks for
    reason, fields = "", {}
    for detail in [] if status is None else status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            assert info.domain == "backprop"
            reason = info.reason
        elif detail.Unpack(bad):
            fields = {violation.field: violation.description for violation in bad.field_violations}
    return error.code().name, reason, fields


async def test_a_job_from_submission_to_its_model(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service()
    async with stub_of(service) as stub:
        created = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(make_spec())))
        assert created.job_id.startswith("test-")
        assert created.spec.optimizer.adam.learning_rate == 0.001  # defaults are filled in
        events = [event async for event in stub.WatchJob(pb.WatchJobRequest(job_id=created.job_id))]
        lasting = [event for event in events if event.event_id]
        assert [event.event_id for event in lasting] == list(range(1, len(lasting) + 1))
        states = [event.state_changed.state for event in lasting if event.HasField("state_changed")]
        assert states == [
            job_pb2.JOB_STATE_QUEUED,
            job_pb2.JOB_STATE_STARTING,
            job_pb2.JOB_STATE_RUNNING,
            job_pb2.JOB_STATE_SUCCEEDED,
        ]
        assert [event.evaluation.step for event in lasting if event.HasField("evaluation")] == [20, 40]
        assert events[-1].progress.state == job_pb2.JOB_STATE_SUCCEEDED
        assert len(events[-1].progress.weights_digest) == 64
        chunks = [chunk async for chunk in stub.ExportModel(pb.ExportModelRequest(job_id=created.job_id))]
        model = b"".join(chunk.chunk for chunk in chunks)
        assert model.startswith(b"fake model of ")
        assert {chunk.size_bytes for chunk in chunks} == {len(model)}
        await stub.DeleteJob(pb.DeleteJobRequest(job_id=created.job_id))
        assert (await refusal(stub.GetJob(pb.GetJobRequest(job_id=created.job_id))))[0] == "NOT_FOUND"


def spec_with(change: Callable[[spec_pb2.JobSpec], object]) -> spec_pb2.JobSpec:
    spec = spec_pb2.JobSpec(name="test", model={"mlp": {"hidden": [8]}}, data={"digits": {}})
    change(spec)
    return spec


BAD_SPECS: list[tuple[Callable[[spec_pb2.JobSpec], object], str, str]] = [
    (lambda s: s.ClearField("model"), "model", "missing, expected one of mlp"),
    (lambda s: s.ClearField("data"), "data", "missing, expected one of digits, synthetic, arrays"),
    (lambda s: s.model.mlp.hidden.append(0), "model.mlp.hidden.1", "got 0, expected a number >= 1"),
    (lambda s: s.MergeFrom(spec_pb2.JobSpec(name="A B")), "name", "got 'A B', expected at most 63 lower-case letters"),
    (
        lambda s: s.optimizer.adam.MergeFrom(spec_pb2.AdamOptimizer(learning_rate=-1)),
        "optimizer.adam.learning_rate",
        "got -1.0, expected a number > 0",
    ),
    (
        lambda s: s.optimizer.sgd.MergeFrom(spec_pb2.SgdOptimizer(learning_rate=float("nan"))),
        "optimizer.sgd.learning_rate",
        "got nan, expected a finite number",
    ),
    (
        lambda s: s.training.MergeFrom(spec_pb2.TrainingSpec(global_batch_size=10, shards=4)),
        "training.shards",
        "got 4, expected a divisor of global_batch_size (10)",
    ),
    (lambda s: s.workers.MergeFrom(spec_pb2.WorkersSpec(min=0)), "workers.min", "got 0, expected a number >= 1"),
    (lambda s: s.workers.MergeFrom(spec_pb2.WorkersSpec(max=16)), "workers.max", "got 16, expected at most"),
    (lambda s: s.data.arrays.MergeFrom(spec_pb2.ArraysData(path="/no/a.npz")), "data.arrays.path", "no such file"),
    (lambda s: s.data.arrays.MergeFrom(spec_pb2.ArraysData(path="a.npz")), "data.arrays.path", "got a relative path"),
]


@pytest.mark.parametrize(("change", "field", "description"), BAD_SPECS, ids=[row[1] for row in BAD_SPECS])
@pytest.mark.parametrize("validate_only", [False, True])
async def test_a_bad_spec_is_refused_by_field(
    change: Callable[[spec_pb2.JobSpec], object],
    field: str,
    description: str,
    validate_only: bool,
    start_service: StartService,
) -> None:
    service = await start_service(cluster=FakeCluster(num_slots=64), data_check=data_source.check)
    async with stub_of(service) as stub:
        request = pb.CreateJobRequest(spec=spec_with(change), validate_only=validate_only)
        code, reason, fields = await refusal(stub.CreateJob(request))
        assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_JOB")
        assert list(fields) == [field]
        assert description in fields[field]
        assert not (await stub.ListJobs(pb.ListJobsRequest())).jobs


async def test_more_workers_than_can_ever_be_had_are_refused(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service(cluster=FakeCluster(num_slots=2))
    async with stub_of(service) as stub:
        spec = spec_to_proto(make_spec(workers={"min": 3, "max": 3}))
        code, _, fields = await refusal(stub.CreateJob(pb.CreateJobRequest(spec=spec)))
        assert code == "FAILED_PRECONDITION"
        assert fields == {"workers.min": "got 3, expected at most 2: this cluster cannot run more workers"}


async def test_a_repeated_request_is_one_job(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service()
    async with stub_of(service) as stub:
        request = pb.CreateJobRequest(spec=spec_to_proto(make_spec()), request_id="once")
        ids = {job.job_id for job in await asyncio.gather(*(stub.CreateJob(request) for _ in range(20)))}
        assert len(ids) == 1
        other = pb.CreateJobRequest(spec=spec_to_proto(make_spec(name="other")), request_id="once")
        assert (await refusal(stub.CreateJob(other)))[0] == "ALREADY_EXISTS"


async def test_what_a_jobs_state_forbids_is_refused(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=10)))
    async with stub_of(service) as stub:
        job = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(make_spec())))
        await until_state(stub, job.job_id, job_pb2.JOB_STATE_RUNNING)
        delete, export = pb.DeleteJobRequest(job_id=job.job_id), pb.ExportModelRequest(job_id=job.job_id)
        assert (await refusal(stub.DeleteJob(delete)))[:2] == ("FAILED_PRECONDITION", "JOB_NOT_FINISHED")
        assert (await refusal(stub.ExportModel(export).read()))[:2] == ("FAILED_PRECONDITION", "JOB_NOT_SUCCEEDED")
        service.cluster.gate.set()
        await until_state(stub, job.job_id, job_pb2.JOB_STATE_SUCCEEDED)
        cancel = pb.CancelJobRequest(job_id=job.job_id)
        assert (await refusal(stub.CancelJob(cancel)))[:2] == ("FAILED_PRECONDITION", "JOB_FINISHED")
        strange = pb.ExportModelRequest(job_id=job.job_id, weights=7)  # type: ignore[arg-type]  # a newer client's
        code, _, fields = await refusal(stub.ExportModel(strange).read())
        assert (code, list(fields)) == ("INVALID_ARGUMENT", ["weights"])


async def test_a_cancelled_job_stops_and_may_be_cancelled_again(
    start_service: StartService, make_spec: MakeSpec
) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=10)))
    async with stub_of(service) as stub:
        job = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(make_spec())))
        await until_state(stub, job.job_id, job_pb2.JOB_STATE_RUNNING)
        cancel = pb.CancelJobRequest(job_id=job.job_id)
        await stub.CancelJob(cancel)
        await until_state(stub, job.job_id, job_pb2.JOB_STATE_CANCELLED)
        assert (await stub.CancelJob(cancel)).state == job_pb2.JOB_STATE_CANCELLED


async def test_a_job_is_paused_scaled_and_resumed_and_every_call_may_be_repeated(
    start_service: StartService, make_spec: MakeSpec
) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=10)))
    async with stub_of(service) as stub:
        job_id = (await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(make_spec())))).job_id
        assert (await until_state(stub, job_id, job_pb2.JOB_STATE_RUNNING)).wanted_workers == 1
        pause, resume = pb.PauseJobRequest(job_id=job_id), pb.ResumeJobRequest(job_id=job_id)
        assert (await stub.ResumeJob(resume)).state == job_pb2.JOB_STATE_RUNNING
        for _ in range(2):
            assert (await stub.PauseJob(pause)).state in (job_pb2.JOB_STATE_PAUSING, job_pb2.JOB_STATE_PAUSED)
        paused = await until_state(stub, job_id, job_pb2.JOB_STATE_PAUSED)
        assert (paused.state_reason, paused.steps_completed) == (job_pb2.STATE_REASON_USER_REQUEST, 10)
        for _ in range(2):
            scaled = await stub.ScaleJob(pb.ScaleJobRequest(job_id=job_id, workers=2))
            assert (scaled.wanted_workers, scaled.state) == (2, job_pb2.JOB_STATE_PAUSED)
        code, reason, fields = await refusal(stub.ScaleJob(pb.ScaleJobRequest(job_id=job_id, workers=9)))
        assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert fields["workers"].startswith("got 9, expected 1 to 8, the job's training.shards")
        service.cluster.gate.set()
        await stub.ResumeJob(resume)
        assert (await until_state(stub, job_id, job_pb2.JOB_STATE_SUCCEEDED)).attempt == 2
        events = [event async for event in stub.WatchJob(pb.WatchJobRequest(job_id=job_id)) if event.event_id]
        assert [one.workers_wanted.workers for one in events if one.HasField("workers_wanted")] == [2]
        scale = pb.ScaleJobRequest(job_id=job_id, workers=2)
        for call in (stub.PauseJob(pause), stub.ResumeJob(resume), stub.ScaleJob(scale)):
            assert (await refusal(call))[:2] == ("FAILED_PRECONDITION", "JOB_FINISHED")


@pytest.mark.parametrize(
    "call",
    [
        lambda stub: stub.GetJob(pb.GetJobRequest(job_id="none-abcdef")),
        lambda stub: stub.GetJob(pb.GetJobRequest(job_id="x" * 10_000)),
        lambda stub: stub.CancelJob(pb.CancelJobRequest(job_id="none-abcdef")),
        lambda stub: stub.PauseJob(pb.PauseJobRequest(job_id="none-abcdef")),
        lambda stub: stub.ResumeJob(pb.ResumeJobRequest(job_id="none-abcdef")),
        lambda stub: stub.ScaleJob(pb.ScaleJobRequest(job_id="none-abcdef", workers=1)),
        lambda stub: stub.DeleteJob(pb.DeleteJobRequest(job_id="../../etc")),
        lambda stub: stub.WatchJob(pb.WatchJobRequest(job_id="none-abcdef")).read(),
        lambda stub: stub.ExportModel(pb.ExportModelRequest(job_id="")).read(),
    ],
)
async def test_an_unknown_job_is_not_found(call: Callable[[Stub], Any], start_service: StartService) -> None:
    async with stub_of(await start_service()) as stub:
        assert (await refusal(call(stub)))[:2] == ("NOT_FOUND", "JOB_NOT_FOUND")


async def test_requests_out_of_bounds_are_refused(start_service: StartService, make_spec: MakeSpec) -> None:
    async with stub_of(await start_service()) as stub:
        spec = spec_to_proto(make_spec())
        huge = pb.CreateJobRequest(spec=spec, request_id="x" * (5 << 20))
        assert (await refusal(stub.CreateJob(huge)))[0] == "RESOURCE_EXHAUSTED"
        long = pb.CreateJobRequest(spec=spec, request_id="x" * 200)
        code, _, fields = await refusal(stub.CreateJob(long))
        assert (code, fields) == ("INVALID_ARGUMENT", {"request_id": "got 200 characters, expected at most 128"})
        assert (await refusal(stub.ListJobs(pb.ListJobsRequest(page_size=-1))))[0] == "INVALID_ARGUMENT"
        assert (await refusal(stub.ListJobs(pb.ListJobsRequest(page_token="nonsense"))))[0] == "INVALID_ARGUMENT"
        assert (await stub.GetServerInfo(pb.GetServerInfoRequest())).worker_slots == 2  # it is still there


async def test_bytes_that_are_no_message_are_refused(start_service: StartService) -> None:
    service = await start_service()
    async with grpc.aio.insecure_channel(service.address) as channel:
        call: Any = channel.unary_unary("/backprop.v1.TrainingService/CreateJob")
        assert (await refusal(call(b"\xff\xff\xff")))[0] == "INVALID_ARGUMENT"
        unknown: Any = channel.unary_unary("/backprop.v1.TrainingService/Nonsense")
        assert (await refusal(unknown(b"")))[0] == "UNIMPLEMENTED"


async def test_lists_come_in_pages_newest_first(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=0)))
    async with stub_of(service) as stub:
        spec = spec_to_proto(make_spec())
        created = [(await stub.CreateJob(pb.CreateJobRequest(spec=spec))).job_id for _ in range(7)]
        seen, token = [], ""
        while True:
            page = await stub.ListJobs(pb.ListJobsRequest(page_size=3, page_token=token))
            seen += [job.job_id for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
        assert seen == created[::-1]


async def test_a_waiting_job_says_what_it_waits_for(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service(cluster=FakeCluster(num_slots=2, script=Script(hold_at=10)))
    async with stub_of(service) as stub:
        request = pb.CreateJobRequest(spec=spec_to_proto(make_spec(workers={"min": 2})))
        first, second, third = [(await stub.CreateJob(request)).job_id for _ in range(3)]
        await until_state(stub, first, job_pb2.JOB_STATE_RUNNING)
        async with asyncio.timeout(SECONDS):
            while not (waiting := await stub.GetJob(pb.GetJobRequest(job_id=third))).state_message:
                await asyncio.sleep(0.005)
        assert waiting.state == job_pb2.JOB_STATE_QUEUED
        assert waiting.state_reason == job_pb2.STATE_REASON_WAITING_FOR_EARLIER_JOBS
        ahead = await stub.GetJob(pb.GetJobRequest(job_id=second))
        assert ahead.state_reason == job_pb2.STATE_REASON_WAITING_FOR_WORKERS
        assert "2 workers" in ahead.state_message
        service.cluster.gate.set()
        for job_id in (first, second, third):
            await until_state(stub, job_id, job_pb2.JOB_STATE_SUCCEEDED)


async def test_a_watcher_resumes_without_gap_or_repetition(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service()
    async with stub_of(service) as stub:
        job = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(make_spec())))
        await until_state(stub, job.job_id, job_pb2.JOB_STATE_SUCCEEDED)

        async def ids(after: int) -> list[int]:
            call = stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id, after_event_id=after))
            return [event.event_id async for event in call if event.event_id]

        everything = await ids(0)
        for after in range(len(everything) + 1):
            assert await ids(after) == everything[after:]
        beyond = stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id, after_event_id=len(everything) + 1))
        assert (await refusal(beyond.read()))[0] == "INVALID_ARGUMENT"


async def steps_of(stub: Stub, job_id: str, after: int = 0) -> list[int]:
    call = stub.StreamMetrics(pb.StreamMetricsRequest(job_id=job_id, after_step=after))
    return [metrics.step async for metrics in call]


async def test_metrics_are_streamed_as_they_come_and_from_any_step_on(
    start_service: StartService, make_spec: MakeSpec
) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=20)))
    async with stub_of(service) as stub:
        job = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(make_spec())))
        live = aiter(stub.StreamMetrics(pb.StreamMetricsRequest(job_id=job.job_id)))
        seen = [await anext(live) for _ in range(20)]
        assert (await stub.GetJob(pb.GetJobRequest(job_id=job.job_id))).state == job_pb2.JOB_STATE_RUNNING
        service.cluster.gate.set()
        seen += [metrics async for metrics in live]
        assert [metrics.step for metrics in seen] == list(range(1, 41))
        assert seen[3] == job_pb2.StepMetrics(
            step=4, loss=1 / 4, gradient_norm=0.5, learning_rate=0.1, seconds=0.001, is_clipped=True
        )
        assert not seen[4].is_clipped
        for after in (0, 1, 25, 39, 40):
            assert await steps_of(stub, job.job_id, after) == list(range(after + 1, 41))
        for after in (-1, 41):
            refused = stub.StreamMetrics(pb.StreamMetricsRequest(job_id=job.job_id, after_step=after))
            text = f"got {after}, expected a number from 0 to 40, the job's last step"
            expected = ("INVALID_ARGUMENT", "INVALID_REQUEST", {"after_step": text})
            assert await refusal(refused.read()) == expected
        unknown = stub.StreamMetrics(pb.StreamMetricsRequest(job_id="nobody"))
        assert (await refusal(unknown.read()))[:2] == ("NOT_FOUND", "JOB_NOT_FOUND")


async def test_metrics_of_a_long_job_are_thinned_and_outlive_the_service(
    start_service: StartService, make_spec: MakeSpec
) -> None:
    first = await start_service(cluster=FakeCluster(script=Script(steps_per_news=500)))
    spec = make_spec(training={"global_batch_size": 8, "max_steps": 10_001}, checkpoint={}, evaluation={})
    async with stub_of(first) as stub:
        job = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(spec)))
        idle = [stub.StreamMetrics(pb.StreamMetricsRequest(job_id=job.job_id)) for _ in range(20)]
        await until_state(stub, job.job_id, job_pb2.JOB_STATE_SUCCEEDED)
        kept = [*range(4, 10_001, 4), 10_001]
        assert await steps_of(stub, job.job_id) == kept
        late = [metrics.step async for metrics in idle[0]]
        assert late == sorted(set(late)), "a slow reader has them in order, and none twice"
        assert late[-1] == 10_001
        for call in idle[1:]:
            call.cancel()
    await first.stop()
    second = await start_service()
    async with stub_of(second) as stub:
        assert await steps_of(stub, job.job_id) == kept
        await stub.DeleteJob(pb.DeleteJobRequest(job_id=job.job_id))
        unknown = stub.StreamMetrics(pb.StreamMetricsRequest(job_id=job.job_id))
        assert (await refusal(unknown.read()))[0] == "NOT_FOUND"


async def test_watchers_that_never_read_hold_nobody_up(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service()
    async with stub_of(service) as stub:
        spec = spec_to_proto(make_spec(training={"global_batch_size": 8, "max_steps": 2000}))
        job = await stub.CreateJob(pb.CreateJobRequest(spec=spec))
        idle = [stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id)) for _ in range(50)]
        done = await until_state(stub, job.job_id, job_pb2.JOB_STATE_SUCCEEDED)
        assert done.steps_completed == 2000
        for call in idle:
            call.cancel()


async def test_jobs_are_still_there_after_a_restart(start_service: StartService, make_spec: MakeSpec) -> None:
    first = await start_service(cluster=FakeCluster(script=Script(hold_at=10)))
    async with stub_of(first) as stub:
        job = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(make_spec())))
        await until_state(stub, job.job_id, job_pb2.JOB_STATE_RUNNING)
    await first.stop()
    second = await start_service()
    async with stub_of(second) as stub:
        done = await until_state(stub, job.job_id, job_pb2.JOB_STATE_SUCCEEDED)
        assert done.attempt == 2


async def test_health_and_reflection_answer(start_service: StartService) -> None:
    service = await start_service()
    async with grpc.aio.insecure_channel(service.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "backprop.v1.TrainingService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # its stub knows no asyncio
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for listed in reflection.ServerReflectionInfo(iter([request])):
            assert "backprop.v1.TrainingService" in [s.name for s in listed.list_services_response.service]


async def test_a_port_in_use_is_refused_by_name(start_service: StartService, tmp_path: Any) -> None:
    service = await start_service()
    with pytest.raises(StartError, match=f"127.0.0.1:{service.endpoints.grpc.port}"):
        await start_service(data_dir=tmp_path / "other", listen=service.endpoints.grpc)


async def test_a_data_directory_in_use_or_unwritable_is_refused_by_name(
    start_service: StartService, tmp_path: Any
) -> None:
    await start_service()
    with pytest.raises(StartError, match="in use by another backprop service"):
        await start_service()
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="file"):
        await start_service(data_dir=tmp_path / "file")


async def test_a_job_begins_with_a_checkpoint_of_another(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=20)))
    spec = make_spec()
    async with stub_of(service) as stub:
        source = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(spec)))
        await until_steps(stub, source.job_id, 20)
        origin = replace(ORIGIN, spec_sha256=spec_sha256(spec))
        save(LocalStore(service.data_dir / "jobs" / source.job_id / "checkpoints"), 10, origin=origin)

        def request(step: int, *, job_id: str = source.job_id, **parts: Any) -> pb.CreateJobRequest:
            start = job_pb2.StartCheckpoint(job_id=job_id, step=step)
            return pb.CreateJobRequest(spec=spec_to_proto(make_spec(**parts)), request_id="r", start_checkpoint=start)

        not_there = f"got 20, expected the step of a checkpoint that job {source.job_id} has now: 10"
        other = f"got a job that trains something else, expected {source.job_id}'s model, data, optimizer and training"
        for wrong, expected in [
            (request(20), ("FAILED_PRECONDITION", "CHECKPOINT_NOT_THERE", {"start_checkpoint.step": not_there})),
            (
                request(0),
                ("INVALID_ARGUMENT", "INVALID_REQUEST", {"start_checkpoint.step": "got 0, expected at least 1"}),
            ),
            (request(10, job_id="nobody"), ("NOT_FOUND", "JOB_NOT_FOUND", {})),
            (
                request(10, optimizer={"sgd": {}}),
                ("INVALID_ARGUMENT", "INVALID_REQUEST", {"start_checkpoint.job_id": other}),
            ),
        ]:
            for validate_only in (True, False):
                wrong.validate_only = validate_only
                assert await refusal(stub.CreateJob(wrong)) == expected
        checked = request(10)
        checked.validate_only = True
        assert (await stub.CreateJob(checked)).job_id == ""
        created = await stub.CreateJob(request(10, name="second"))
        assert created.start_checkpoint == job_pb2.StartCheckpoint(job_id=source.job_id, step=10)
        assert (await stub.CreateJob(request(10, name="second"))).job_id == created.job_id, "a repeated call"
        assert (await refusal(stub.CreateJob(request(10))))[1] == "REQUEST_ID_REUSED"
        await until_steps(stub, created.job_id, 20)
        service.cluster.gate.set()
        await until_state(stub, source.job_id, job_pb2.JOB_STATE_SUCCEEDED)
        await stub.DeleteJob(pb.DeleteJobRequest(job_id=source.job_id))
        job = await until_state(stub, created.job_id, job_pb2.JOB_STATE_SUCCEEDED)
        assert job.start_checkpoint.step == 10, "it is told although the other job is gone"
        events = [event async for event in stub.WatchJob(pb.WatchJobRequest(job_id=created.job_id))]
        saved = [event.checkpoint_saved.step for event in events if event.HasField("checkpoint_saved")]
        assert saved == [20, 30, 40], "the first ten steps were not trained again"
        listed = await stub.ListCheckpoints(pb.ListCheckpointsRequest(job_id=created.job_id, verify=True))
        assert [(one.step, one.verified) for one in listed.checkpoints] == [(10, True)]
