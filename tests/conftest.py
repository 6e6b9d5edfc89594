"""What every test shares: a clean machine afterwards, job specs, and a service with a fake cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.ray_environment import prepare_local

# Some tests start a real Ray cluster: its environment must stand before anyone imports ray or grpc. Services with a
# data directory of their own would compile everything anew.
prepare_local(kernels=Path(__file__).parents[1] / ".pytest_cache" / "kernels")

from service.checkpoints import CheckpointPolicy
from service.config import Address, Settings
from service.fake_cluster import FakeCluster
from service.limits import Patience
from service.server import Endpoints, serve
from tests.leftovers import described, left_behind, left_since, processes, wait_until_gone
from worker.spec import JobSpec, parse_spec

SECONDS = 20.0  # how long a condition is waited for; nothing here takes a second
ANYWHERE = Address("127.0.0.1", 0)
HURRY = Patience(poll_seconds=0.001, cancel_seconds=0.05, first_retry_seconds=0.001, max_retry_seconds=0.001)


@pytest.fixture(scope="module", autouse=True)
def _no_process_outlives_its_module(request: pytest.FixtureRequest) -> Iterator[None]:
    before = processes()
    yield
    wait_until_gone(lambda: described(processes() - before), request.node.name)


LeftByTest = Callable[[], set[str]]


@pytest.fixture
def left_by_test() -> LeftByTest:
    """Says what is there now that was not there before the test, and that nobody else has started."""
    before = left_behind()
    return lambda: left_since(before)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(left_by_test: LeftByTest) -> Iterator[None]:
    yield
    wait_until_gone(left_by_test, "the test")


MakeSpec = Callable[..., JobSpec]


@pytest.fixture
def make_spec() -> MakeSpec:
    """Makes a small valid spec; keyword arguments are parts of it."""

    def make(**parts: Any) -> JobSpec:
        document: dict[str, Any] = {
            "name": "test",
            "model": {"mlp": {"hidden": [8]}},
            "data": {"digits": {}},
            "training": {"global_batch_size": 8, "max_steps": 40},
            "evaluation": {"every_steps": 20},
            "checkpoint": {"every_steps": 10},
        }
        return parse_spec(document | parts)

    return make


@dataclass(eq=False)
class RunningService:
    """A service in the test's own event loop, on free loopback ports, with a cluster that the test controls."""

    endpoints: Endpoints
    cluster: FakeCluster
    data_dir: Path
    stop_event: asyncio.Event
    task: asyncio.Task[None]

    @property
    def address(self) -> str:
        """Where gRPC listens."""
        return str(self.endpoints.grpc)

    async def stop(self) -> None:
        """Stops the service as a signal does."""
        self.stop_event.set()
        await self.task


StartService = Callable[..., Awaitable[RunningService]]


@pytest.fixture
async def start_service(tmp_path: Path) -> AsyncIterator[StartService]:
    """Starts services; keyword arguments: see below. They are stopped after the test."""
    services: list[RunningService] = []

    async def start(
        *,
        cluster: FakeCluster | None = None,
        data_dir: Path = tmp_path / "data",
        listen: Address = ANYWHERE,
        data_check: Callable[[JobSpec], None] = lambda spec: None,
        checkpoint_store: str | None = None,
    ) -> RunningService:
        cluster = FakeCluster() if cluster is None else cluster
        stop = asyncio.Event()
        ready: asyncio.Future[Endpoints] = asyncio.get_running_loop().create_future()
        policy = CheckpointPolicy(checkpoint_store)
        settings = Settings(data_dir, listen=listen, http=ANYWHERE, checkpoints=policy)

        async def open_cluster() -> FakeCluster:
            return cluster

        serving = serve(
            settings, open_cluster, stop=stop, ready=ready.set_result, data_check=data_check, patience=HURRY
        )
        task = asyncio.create_task(serving)
        started: set[asyncio.Future[Any]] = {task, ready}
        await asyncio.wait(started, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        service = RunningService(ready.result(), cluster, data_dir, stop, task)
        services.append(service)
        return service

    yield start
    for service in services:
        await service.stop()
