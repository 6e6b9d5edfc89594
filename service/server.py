"""The service as a whole: opens its parts in order, serves until told to stop, and takes them down again.

    data directory -> sockets -> HTTP -> store -> cluster -> dispatcher -> gRPC

What can be refused at once (a port in use, a directory that cannot be written) is found before the cluster starts,
which takes seconds. Whatever was opened is closed in reverse order, also when a later part fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import __version__, limits
from service.admission import Admission
from service.api import TrainingService
from service.config import Address, Settings
from service.database import SqliteStore
from service.directories import JobDirectories
from service.dispatcher import Dispatcher
from service.errors import StartError
from service.interceptors import ErrorInterceptor, MetricsInterceptor
from service.ledger import Ledger
from service.metrics import Metrics
from service.pb.backprop.v1 import training_service_pb2, training_service_pb2_grpc
from service.runs import Cluster
from service.web.app import make_app
from worker.spec import JobSpec

log = logging.getLogger(__name__)

SERVICE_NAME = training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name
STORE_FILE = "jobs.sqlite3"
GRPC_OPTIONS = [
    ("grpc.so_reuseport", 0),  # otherwise a second service would share the port instead of being refused
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
]


@dataclass(frozen=True)
class Endpoints:
    """Where a running service answers, with the ports that it really got."""

    grpc: Address
    http: Address | None

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP side; empty when it is off."""
        return f"http://{self.http}" if self.http else ""


def check_data(spec: JobSpec) -> None:
    """Raises SpecError for data that does not work."""
    from worker.data import (
        source,
    )  # numpy and its friends load when the first job arrives, not before the service is up

    source.check(spec)


async def serve(
    settings: Settings,
    open_cluster: Callable[[], Awaitable[Cluster]],
    *,
    stop: asyncio.Event,
    ready: Callable[[Endpoints], None] = lambda endpoints: None,
    data_check: Callable[[JobSpec], None] = check_data,
    patience: limits.Patience = limits.PATIENCE,
) -> None:
    """Runs a service until `stop` is set; calls `ready` once it answers. Raises StartError; then nothing is left."""
    clock, progress = time.time, _Startup()
    metrics = Metrics(version=__version__)
    async with AsyncExitStack() as stack:
        prepare_data_dir(settings.data_dir)
        server = grpc.aio.server(
            interceptors=[MetricsInterceptor(metrics.calls, clock=time.monotonic), ErrorInterceptor()],
            options=GRPC_OPTIONS,
        )
        stack.push_async_callback(server.stop, None)
        endpoints = Endpoints(bind_grpc(server, settings.listen), None)
        if settings.http is not None:
            endpoints = await _start_http(stack, metrics, settings.http, grpc_address=endpoints.grpc, progress=progress)

        store = SqliteStore(settings.data_dir / STORE_FILE)
        await store.open()
        stack.push_async_callback(store.close)
        ledger = Ledger(store, metrics=metrics, clock=clock)
        await ledger.open()

        progress.waits_for = "waits for the cluster"
        cluster = await open_cluster()
        stack.push_async_callback(cluster.close)

        directories = JobDirectories(settings.data_dir / "jobs", settings.checkpoints)
        dispatcher = Dispatcher(
            ledger, cluster, directories=directories, metrics=metrics, clock=clock, patience=patience
        )
        stack.push_async_callback(dispatcher.close)
        await dispatcher.start()

        admission = Admission(
            dispatcher, ledger=ledger, cluster=cluster, check_data=data_check, directories=directories, clock=clock
        )
        api = TrainingService(
            admission,
            dispatcher=dispatcher,
            ledger=ledger,
            cluster=cluster,
            directories=directories,
            clock=clock,
            http_address=endpoints.http_url,
        )
        await _start_grpc(stack, server, api, ledger)
        progress.waits_for = ""
        log.info("serving gRPC on %s, HTTP on %s, jobs in %s", endpoints.grpc, endpoints.http, settings.data_dir)
        if not stop.is_set():
            ready(endpoints)
        await stop.wait()
        progress.waits_for = "stops"
        log.info("stopping")


@dataclass
class _Startup:
    """How far the service has come; `/readyz` shows it."""

    waits_for: str = "waits for the job store"


def prepare_data_dir(directory: Path) -> None:
    """Makes the data directory and tries that it can be written; raises StartError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise StartError(
            f"cannot write to the data directory {directory}: {error.strerror}; choose another with --data-dir",
            reason="DATA_DIRECTORY_UNWRITABLE",
        ) from None


def port_in_use(address: Address, option: str, *, cause: str) -> StartError:
    """What to tell when nothing can listen at an address."""
    return StartError(
        f"cannot listen on {address}: {cause}; stop what uses the port or choose another with {option}",
        reason="CANNOT_LISTEN",
    )


def bind_grpc(server: grpc.aio.Server, address: Address) -> Address:
    """Takes the gRPC port; the address with the real port."""
    listen_on(address, option="--listen").close()  # says why it cannot be had, which gRPC does not
    try:
        return replace(address, port=server.add_insecure_port(str(address)))
    except RuntimeError:
        raise port_in_use(address, "--listen", cause="the port cannot be had") from None


def listen_on(address: Address, *, option: str) -> socket.socket:
    """A socket that listens at an address; raises StartError."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise port_in_use(address, option, cause=error.strerror or str(error)) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise port_in_use(address, option, cause=os.strerror(error.errno or 0)) from None
    return listener


class _HttpServer(uvicorn.Server):
    """uvicorn without signal handlers: the service has its own."""

    @contextmanager
    def capture_signals(self) -> Any:
        """Leaves signals alone."""
        yield


async def _start_http(
    stack: AsyncExitStack, metrics: Metrics, address: Address, *, grpc_address: Address, progress: _Startup
) -> Endpoints:
    listener = listen_on(address, option="--http")
    stack.callback(listener.close)
    app = make_app(metrics, unready_because=lambda: progress.waits_for)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=int(limits.STOP_GRACE_SECONDS)
    )
    server = _HttpServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")

    async def stop_http() -> None:
        server.should_exit = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.STOP_GRACE_SECONDS * 2):
                await task

    stack.push_async_callback(stop_http)
    return Endpoints(grpc_address, replace(address, port=listener.getsockname()[1]))


async def _start_grpc(stack: AsyncExitStack, server: grpc.aio.Server, api: TrainingService, ledger: Ledger) -> None:
    training_service_pb2_grpc.add_TrainingServiceServicer_to_server(api, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    await server.start()
    for name in ["", SERVICE_NAME]:
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop_grpc() -> None:
        await checks.enter_graceful_shutdown()
        ledger.close()  # watchers are told to come back later
        await server.stop(limits.STOP_GRACE_SECONDS)

    stack.push_async_callback(stop_grpc)
