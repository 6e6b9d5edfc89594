"""Commands that run a service in this process: `serve` until a signal, `run` for the length of one job."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from service import __version__, limits
from service.checkpoints import CheckpointPolicy
from service.cli.export import write_model
from service.cli.failure import CommandError, ExitCode, say
from service.cli.follow import Output, follow, now
from service.cli.options import refused
from service.cli.show import outcome_lines
from service.client import Client, ClientError
from service.config import Address, Settings
from service.documents import to_json
from service.errors import StartError
from service.jobfile import JobFile
from service.pb.backprop.v1 import job_pb2
from service.runs import Cluster
from service.server import Endpoints, check_data, prepare_data_dir, serve
from worker.spec import JobSpec
from worker.violations import SpecError

Result = TypeVar("Result")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_FILE = "service.log"


def serve_until_signalled(settings: Settings) -> None:
    """Runs a service until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()

    def ready(endpoints: Endpoints) -> None:
        on_signals(stop.set)
        print(f"backprop {__version__} serves gRPC on {endpoints.grpc}, jobs in {settings.data_dir}", flush=True)
        if endpoints.http_url:
            print(f"metrics on {endpoints.http_url}/metrics, health on {endpoints.http_url}/healthz", flush=True)

    on_signals(stop.set)
    await serve(settings, cluster_of(settings), stop=stop, ready=ready)


def on_signals(act: Callable[[], None]) -> None:
    """Calls `act` at SIGINT, SIGTERM and SIGHUP. To be called again after Ray has started: it sets handlers, too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup wants to be left alone
            asyncio.get_running_loop().add_signal_handler(number, act)


def cluster_of(settings: Settings) -> Callable[[], Awaitable[Cluster]]:
    """Opens the Ray cluster that the settings ask for; raises StartError."""

    async def open_cluster() -> Cluster:
        from service.cluster import ClusterError, open_remote_cluster
        from service.survival import identity_of

        try:
            if settings.ray_address is not None:
                identity = identity_of(settings.data_dir)
                return await open_remote_cluster(settings.ray_address, identity=identity, policy=settings.checkpoints)
            from service.local_cluster import open_local_cluster

            return await open_local_cluster(worker_slots=settings.worker_slots, policy=settings.checkpoints)
        except ClusterError as error:
            raise StartError(str(error), reason="CLUSTER_UNAVAILABLE") from None

    return open_cluster


def run_here(
    job_file: JobFile,
    spec: JobSpec,
    *,
    data_dir: Path,
    output: Output,
    model_file: Path | None,
    checkpoints: CheckpointPolicy,
) -> job_pb2.Job:
    """Trains one job in a service of its own, which is gone when this returns."""
    try:
        check_data(spec)  # the service will check again; but the user need not wait for Ray to hear of a typo
    except SpecError as error:
        raise refused(job_file, error.violations) from None
    prepare_data_dir(data_dir)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, filename=data_dir / LOG_FILE)
    anywhere = Address("127.0.0.1", 0)
    slots = slots_for(spec)
    settings = Settings(data_dir, listen=anywhere, http=anywhere, worker_slots=slots, checkpoints=checkpoints)
    return asyncio.run(_run_here(job_file, spec, settings=settings, output=output, model_file=model_file))


def slots_for(spec: JobSpec) -> int:
    """Workers that the local cluster should have room for: one a core, but as many as the job cannot do without."""
    import os

    return max(len(os.sched_getaffinity(0)), spec.workers.min)


async def _run_here(
    job_file: JobFile, spec: JobSpec, *, settings: Settings, output: Output, model_file: Path | None
) -> job_pb2.Job:
    stop, interrupted = asyncio.Event(), asyncio.Event()
    started: asyncio.Future[Endpoints] = asyncio.get_running_loop().create_future()
    on_signals(interrupted.set)
    say("starting the service and Ray ...")
    service = asyncio.create_task(serve(settings, cluster_of(settings), stop=stop, ready=started.set_result))
    try:
        if not await is_first(started, service, interrupted):
            if interrupted.is_set():
                say(STOPPING)
            raise INTERRUPTED  # or what the service failed with, see below
        on_signals(interrupted.set)
        with Client(str(started.result().grpc)) as client:
            job = await _train(client, spec, job_file, output=output, interrupted=interrupted)
            if output is Output.JSON:
                print(to_json(job), flush=True)
            else:
                print(
                    *outcome_lines(job, now=now(), how_to_export=how_to_export(job, model_file)), sep="\n", flush=True
                )
            if model_file is not None and job.state == job_pb2.JOB_STATE_SUCCEEDED:
                await asyncio.to_thread(write_model, client.export_model(job.job_id), model_file)
            return job
    finally:
        stop.set()
        await service  # raises what the service died of, which says more than what that did to its client


STOPPING = "interrupted; stopping the job, Ray and the service ..."
INTERRUPTED = CommandError("interrupted; everything is stopped", code=ExitCode.INTERRUPTED)


async def is_first(wanted: asyncio.Future[Result], other: asyncio.Future[None] | None, event: asyncio.Event) -> bool:
    """Waits until `wanted` or one of the others is done; whether it was `wanted`."""
    waiting = asyncio.create_task(event.wait())
    futures: set[asyncio.Future[Any]] = {wanted, waiting}
    await asyncio.wait(futures if other is None else futures | {other}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return wanted.done()


async def _train(
    client: Client, spec: JobSpec, job_file: JobFile, *, output: Output, interrupted: asyncio.Event
) -> job_pb2.Job:
    """Submits the job and follows it to its end; cancels it when the user interrupts."""
    try:
        job = await asyncio.to_thread(client.create_job, spec)
    except ClientError as error:
        raise refused(job_file, error.violations) if error.violations else error from None
    events = client.watch_job(job.job_id, patience_seconds=0)
    following = asyncio.create_task(asyncio.to_thread(follow, events, output))
    if not await is_first(following, None, interrupted):
        say(STOPPING)
        interrupted.clear()
        await asyncio.to_thread(client.cancel_job, job.job_id)
        with suppress(TimeoutError):  # a second interruption waits no longer, either
            async with asyncio.timeout(limits.PATIENCE.cancel_seconds):
                await is_first(following, None, interrupted)
        raise INTERRUPTED
    seen = following.result()
    return await asyncio.to_thread(client.get_job, job.job_id) if seen is None else seen


def how_to_export(job: job_pb2.Job, model_file: Path | None) -> str:
    """How the user takes the model home, for no service runs any more afterwards."""
    return f"{model_file}" if model_file else f"cp {job.model_path} {job.spec.name}.safetensors"
