"""The client library against a real server: what it hides and what it tells."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from service.client import Client, ClientError
from service.config import Address
from service.fake_cluster import FakeCluster, Script
from service.pb.backprop.v1 import job_pb2
from tests.conftest import MakeSpec, StartService

SUCCEEDED = job_pb2.JOB_STATE_SUCCEEDED


async def test_a_watching_client_sees_nothing_of_a_restart(start_service: StartService, make_spec: MakeSpec) -> None:
    first = await start_service(cluster=FakeCluster(script=Script(hold_at=15)))
    seen: list[job_pb2.JobEvent] = []
    is_held = threading.Event()

    def watch(client: Client, job_id: str) -> None:
        for event in client.watch_job(job_id, sleep=lambda seconds: time.sleep(seconds / 50)):
            seen.append(event)
            if event.progress.steps_completed == 15:
                is_held.set()

    with Client(first.address) as client:
        job = await asyncio.to_thread(client.create_job, make_spec())
        watching = asyncio.create_task(asyncio.to_thread(watch, client, job.job_id))
        await asyncio.to_thread(is_held.wait)
        await first.stop()
        second = await start_service(listen=Address("127.0.0.1", first.endpoints.grpc.port))
        await watching
        numbers = [event.event_id for event in seen if event.event_id]
        assert numbers == list(range(1, len(numbers) + 1)), "no event is lost, none comes twice"
        assert seen[-1].progress.state == SUCCEEDED
        assert seen[-1].progress.attempt == 2
        await second.stop()


async def test_a_reader_of_metrics_sees_nothing_of_a_restart(start_service: StartService, make_spec: MakeSpec) -> None:
    first = await start_service(cluster=FakeCluster(script=Script(hold_at=15)))
    steps: list[int] = []
    is_held = threading.Event()

    def read(client: Client, job_id: str) -> None:
        for metrics in client.stream_metrics(job_id, sleep=lambda seconds: time.sleep(seconds / 50)):
            steps.append(metrics.step)
            if metrics.step == 15:
                is_held.set()

    with Client(first.address) as client:
        job = await asyncio.to_thread(client.create_job, make_spec())
        reading = asyncio.create_task(asyncio.to_thread(read, client, job.job_id))
        await asyncio.to_thread(is_held.wait)
        await first.stop()
        second = await start_service(listen=Address("127.0.0.1", first.endpoints.grpc.port))
        await reading
        assert steps == list(range(1, 41)), "what was done again since step 10 comes once"
        again = await asyncio.to_thread(lambda: [one.step for one in client.stream_metrics(job.job_id, after_step=8)])
        assert again == list(range(9, 41))
        await second.stop()


async def test_a_client_without_patience_hears_that_the_service_is_gone(
    start_service: StartService, make_spec: MakeSpec
) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=15)))

    def watch(client: Client, job_id: str) -> None:
        for _ in client.watch_job(job_id, patience_seconds=0):
            pass

    with Client(service.address) as client:
        job = await asyncio.to_thread(client.create_job, make_spec())
        watching = asyncio.create_task(asyncio.to_thread(watch, client, job.job_id))
        await service.stop()
        with pytest.raises(ClientError) as caught:
            await watching
        assert caught.value.is_unreachable


async def test_nobody_at_the_address_is_told_at_once() -> None:
    with Client("127.0.0.1:1") as client:
        for call in (client.server_info, lambda: list(client.watch_job("x")), lambda: client.get_job("x")):
            with pytest.raises(ClientError) as caught:
                await asyncio.to_thread(call)
            assert str(caught.value) == "cannot reach the service at 127.0.0.1:1; start it with `backprop serve`"
            assert (caught.value.code, caught.value.is_unreachable) == ("UNAVAILABLE", True)


async def test_a_refusal_has_its_code_reason_and_fields(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service(cluster=FakeCluster(num_slots=1))
    with Client(service.address) as client:
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(client.create_job, make_spec(workers={"min": 2}))
        error = caught.value
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TOO_FEW_WORKER_SLOTS")
        assert [violation.field for violation in error.violations] == ["workers.min"]


async def test_a_job_is_found_by_the_beginning_of_its_id(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service()
    with Client(service.address) as client:
        one = await asyncio.to_thread(client.create_job, make_spec(name="one"))
        await asyncio.to_thread(client.create_job, make_spec(name="other"))
        assert (await asyncio.to_thread(client.find_job, one.job_id[:4])).job_id == one.job_id
        for name, code in (("o", "INVALID_ARGUMENT"), ("z", "NOT_FOUND"), ("", "NOT_FOUND")):
            with pytest.raises(ClientError) as caught:
                await asyncio.to_thread(client.find_job, name)
            assert caught.value.code == code


async def test_every_page_of_jobs_is_fetched(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=5)))
    with Client(service.address) as client:
        for _ in range(7):
            await asyncio.to_thread(client.create_job, make_spec())
        listed = await asyncio.to_thread(lambda: list(client.list_jobs(page_size=3)))
        assert len({job.job_id for job in listed}) == 7


async def test_the_same_spec_twice_is_two_jobs_unless_it_is_one_request(
    start_service: StartService, make_spec: MakeSpec
) -> None:
    service = await start_service()
    with Client(service.address) as client:
        ids = {(await asyncio.to_thread(client.create_job, make_spec())).job_id for _ in range(2)}
        assert len(ids) == 2
        create = lambda: client.create_job(make_spec(), request_id="r").job_id  # noqa: E731
        assert await asyncio.to_thread(create) == await asyncio.to_thread(create)
