"""A service dies and its runs go on: real Ray, coordinators that nobody owns, and a real service that is killed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import ray

from service import __version__, survival
from service.cluster import RayCluster
from service.jobs import Job
from service.pb.backprop.v1 import job_pb2
from service.runs import Report, Run, RunStarted, RunSucceeded
from tests.chaos.campaign import Service
from tests.clusters import local_cluster
from tests.undisturbed import digest_of
from worker.reduce.segment import DIRECTORY
from worker.spec import JobSpec, parse_spec

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

SECONDS = 90.0
ENDLESS = 10**7
EVERY_STEPS = 200
LAST_STEP = 3 * EVERY_STEPS
STARTED = [job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_STARTING, job_pb2.JOB_STATE_RUNNING]
LOST_A_WORKER = [job_pb2.JOB_STATE_RECOVERING, job_pb2.JOB_STATE_RUNNING]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ray_address() -> AsyncIterator[str]:
    """Ray, which stays when services go."""
    async with local_cluster(worker_slots=3):
        yield ray.get_runtime_context().gcs_address


@pytest_asyncio.fixture(loop_scope="module")
async def make_cluster(ray_address: str) -> AsyncIterator[Callable[..., RayCluster]]:
    """Makes what a service would open there: with the same name, another life of the same service."""
    made: list[RayCluster] = []

    def make(name: str = "ours", **options: Any) -> RayCluster:
        token = f"{name}{os.getpid()}"
        made.append(RayCluster(num_slots=3, token=token, directory=None, **options))
        return made[-1]

    yield make
    for cluster in made:
        await cluster.survivors([])  # ends what is left
    await asyncio.to_thread(wait_for, nothing_runs, "nothing to be left")


@pytest.fixture
def serve(ray_address: str, tmp_path: Path) -> Iterator[Callable[[], Service]]:
    """Starts a service on Ray, in a process of its own; always on the same data."""
    services: list[Service] = []

    def start() -> Service:
        services.append(Service(tmp_path, "--ray-address", ray_address))
        return services[-1]

    yield start
    for service in services:
        if service.process.poll() is None:
            service.kill()


def spec(max_steps: int) -> JobSpec:
    return parse_spec(
        {
            "model": {"mlp": {"hidden": [64, 32]}},
            "data": {"synthetic": {"samples": 2000, "features": 40, "outputs": 5}},
            "training": {"global_batch_size": 48, "shards": 4, "max_steps": max_steps, "clip_norm": 1.0},
            "evaluation": {"every_steps": EVERY_STEPS},
            "checkpoint": {"every_steps": EVERY_STEPS},
            "workers": {"max": 1},
        }
    )


def job(max_steps: int) -> Job:
    return Job(f"test-{os.urandom(3).hex()}", spec(max_steps), create_time=0.0, attempt=1)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def processes_of(name: str) -> list[psutil.Process]:
    """Ray names a process after its actor, and after what that is at."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found += [process] if name in " ".join(process.cmdline()) else []
    return found


def nothing_runs() -> bool:
    return not processes_of("ray::_Coordinator") and not processes_of("ray::_Worker")


def newest_checkpoint(directory: Path) -> int:
    """The step of it, found without the service."""
    names = [path.name for path in (directory / "checkpoints").glob("step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def coordinator_of(job: Job) -> Any:
    return ray.get_actor(survival.name_of(job), f"backprop-ours{os.getpid()}")


def is_there(job: Job) -> bool:
    with suppress(ValueError):
        return coordinator_of(job) is not None
    return False


async def until_started(run: Run) -> list[Report]:
    """What a run has to tell when it trains."""
    reports: list[Report] = []
    async with asyncio.timeout(SECONDS):
        while not any(isinstance(report, RunStarted) for report in reports):
            reports = list((await run.news(0)).reports)
            await asyncio.sleep(0.05)  # what is told again is told at once
    return reports


# --- Coordinators that nobody owns ------------------------------------------------------------------------------


async def test_a_run_is_found_again_and_tells_what_was_not_stored(
    make_cluster: Callable[..., RayCluster], tmp_path: Path
) -> None:
    endless = job(ENDLESS)
    run = await make_cluster().launch(endless, 1, tmp_path)
    reports = await until_started(run)

    survivors = await make_cluster().survivors([endless])
    assert list(survivors) == [endless.job_id]
    survivor = survivors[endless.job_id]
    assert (survivor.workers, survivor.slots_held, survivor.run.capacity) == (1, 1, run.capacity)
    again = (await survivor.run.news(0)).reports
    assert list(again[: len(reports)]) == reports
    after = await survivor.run.news(len(reports))
    assert after.last_report == len(reports) + len(after.reports)
    assert again[0] not in after.reports
    ray.get(coordinator_of(endless).close.remote())
    assert await make_cluster().survivors([endless]) == {}, "a run that was being closed is no survivor"
    await asyncio.to_thread(wait_for, nothing_runs, "the run's end")


@pytest.mark.parametrize(("attempt", "version"), [(2, __version__), (1, "0.0.0")])
async def test_a_run_of_another_attempt_or_version_is_ended_with_all_it_has(
    make_cluster: Callable[..., RayCluster],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attempt: int,
    version: str,
) -> None:
    endless = job(ENDLESS)
    await until_started(await make_cluster().launch(endless, 1, tmp_path))
    monkeypatch.setattr(survival, "__version__", version)  # of the next service; the coordinator has its own
    assert await make_cluster().survivors([replace(endless, attempt=attempt)]) == {}
    await asyncio.to_thread(wait_for, nothing_runs, "the run's end")
    assert not list(DIRECTORY.glob(f"backprop-{endless.job_id}-*"))


async def test_a_run_of_another_service_is_left_alone(make_cluster: Callable[..., RayCluster], tmp_path: Path) -> None:
    endless = job(ENDLESS)
    theirs = await make_cluster("theirs").launch(endless, 1, tmp_path)
    await until_started(theirs)
    assert await make_cluster().survivors([endless]) == {}
    assert (await theirs.news(0)).slots_held == 1
    assert list(await make_cluster("theirs").survivors([endless])) == [endless.job_id]


async def test_a_result_that_nobody_asks_for_is_kept_for_a_time_and_no_longer(
    make_cluster: Callable[..., RayCluster], tmp_path: Path
) -> None:
    given_up, kept = job(EVERY_STEPS), job(EVERY_STEPS)
    await make_cluster(keep_seconds=0.5).launch(given_up, 1, tmp_path / "given up")
    await make_cluster().launch(kept, 1, tmp_path / "kept")
    await asyncio.to_thread(wait_for, lambda: not is_there(given_up), "the first to be given up")
    await asyncio.to_thread(wait_for, lambda: newest_checkpoint(tmp_path / "kept"), "the end of the other")
    await asyncio.to_thread(wait_for, lambda: not processes_of("ray::_Worker"), "the end of its workers")
    assert not list(DIRECTORY.glob(f"backprop-{kept.job_id}-*")), "a run that has ended needs no shared memory"
    run = (await make_cluster().survivors([kept]))[kept.job_id].run
    assert isinstance((await run.news(0)).reports[-1], RunSucceeded)
    await run.close()
    await asyncio.to_thread(wait_for, lambda: not is_there(kept), "its end")


async def test_memory_of_a_coordinator_that_died_is_freed(make_cluster: Callable[..., RayCluster]) -> None:
    cluster = make_cluster()
    ours, theirs = (Path(cluster.segment_pattern.replace("*", "died") + end) for end in ("", "0"))
    ours.touch()
    theirs.touch()
    assert await cluster.survivors([]) == {}
    assert (ours.exists(), theirs.exists()) == (False, True)
    await survival.sweep_node(ray.get_runtime_context().get_node_id(), str(theirs), [theirs])
    assert theirs.exists()
    await survival.sweep_node(ray.get_runtime_context().get_node_id(), str(theirs), [])
    assert not theirs.exists()


# --- A real service -----------------------------------------------------------------------------------------------


def history(service: Service, job_id: str) -> dict[str, list[Any]]:
    """A job's events by kind, after a look at their numbers."""
    events = list(service.client.list_events(job_id))
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    by_kind: dict[str, list[Any]] = {}
    for event in events:
        kind = event.WhichOneof("kind")
        by_kind.setdefault(kind, []).append(getattr(event, kind))
    return by_kind


def check_history(service: Service, job_id: str, states: Sequence[int]) -> None:
    """One attempt, and whatever was due has happened exactly once."""
    assert service.client.get_job(job_id).attempt == 1
    happened = history(service, job_id)
    assert [change.state for change in happened["state_changed"]] == states
    for kind in ("evaluation", "checkpoint_saved"):
        steps = [happening.step for happening in happened[kind]]
        assert steps == list(range(EVERY_STEPS, steps[-1] + 1, EVERY_STEPS))


async def test_jobs_go_on_while_their_service_is_dead_or_stopped(serve: Callable[[], Service], tmp_path: Path) -> None:
    jobs, service = tmp_path / "data/jobs", serve()
    endless = service.client.create_job(spec(ENDLESS)).job_id
    wait_for(lambda: newest_checkpoint(jobs / endless), "the first checkpoint")
    service.kill()
    killed_at = newest_checkpoint(jobs / endless)
    wait_for(lambda: processes_of("ray::_Worker.run"), "a worker at work")[0].kill()
    wait_for(lambda: newest_checkpoint(jobs / endless) >= killed_at + 2 * EVERY_STEPS, "steps without a service")

    service = serve()
    found = service.client.get_job(endless)
    assert (found.state, found.attempt) == (job_pb2.JOB_STATE_RUNNING, 1)
    assert service.client.server_info().free_worker_slots == 2, "a worker that is there is not counted"
    wait_for(lambda: "worker_lost" in history(service, endless), "what happened meanwhile")
    short = service.client.create_job(spec(LAST_STEP)).job_id
    wait_for(lambda: service.client.get_job(short).state == job_pb2.JOB_STATE_RUNNING, "the second job")
    service.stop()
    wait_for(lambda: newest_checkpoint(jobs / short) == LAST_STEP, "the second job's end without a service")

    service = serve()
    wait_for(lambda: service.client.get_job(short).state == job_pb2.JOB_STATE_SUCCEEDED, "the news of it")
    wait_for(lambda: "checkpoint_saved" in history(service, endless), "the news of the other")
    check_history(service, short, [*STARTED, job_pb2.JOB_STATE_SUCCEEDED])
    check_history(service, endless, STARTED + LOST_A_WORKER)
    assert service.client.get_job(short).weights_digest == digest_of(spec(LAST_STEP))
    saved = next(saved for saved in history(service, endless)["checkpoint_saved"] if saved.step > killed_at)
    assert saved.weights_digest == digest_of(spec(ENDLESS), saved.step)
    service.client.cancel_job(endless)
    wait_for(lambda: service.client.get_job(endless).state == job_pb2.JOB_STATE_CANCELLED, "the end")
    wait_for(nothing_runs, "nothing to be left")
    service.stop()
