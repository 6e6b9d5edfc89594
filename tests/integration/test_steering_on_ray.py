"""Jobs that are paused, scaled and preempted on a real Ray cluster end with the weights of a job left alone."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from service.directories import JobDirectories
from service.dispatcher import Dispatcher
from service.jobs import CheckpointCorrupt, CheckpointSaved, Job, JobState, WorkerLost, WorkersChanged
from service.ledger import Ledger
from service.limits import PATIENCE
from service.metrics import Metrics
from service.start_checkpoint import StartCheckpoint
from service.store import MemoryStore
from tests import failpoints
from tests.clusters import local_cluster
from tests.unit.test_dispatcher import Bench
from worker.spec import JobSpec, parse_spec

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

SLOTS = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(points: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    directory, metrics, store = tmp_path_factory.mktemp("jobs"), Metrics(version="test"), MemoryStore()
    ledger = Ledger(store, metrics=metrics, clock=time.time)
    async with local_cluster(worker_slots=SLOTS, points=points) as cluster:
        dispatcher = Dispatcher(
            ledger,
            cluster,
            directories=JobDirectories(directory),
            metrics=metrics,
            clock=time.time,
            patience=replace(PATIENCE, poll_seconds=0.01),
        )
        await dispatcher.start()
        yield Bench(dispatcher, ledger, store, cluster, metrics, directory, seconds=90.0, pause_seconds=0.01)
        await dispatcher.close()


def spec_of(name: str = "job", *, low: int, high: int, **parts: object) -> JobSpec:
    document = {
        "name": name,
        "model": {"mlp": {"hidden": [32, 300]}},
        "data": {"synthetic": {"samples": 5000, "features": 40, "outputs": 5}},
        "training": {"global_batch_size": 12, "shards": 6, "max_steps": 1200, "clip_norm": 1.0},
        "evaluation": {"every_steps": 100},
        "checkpoint": {"every_steps": 100},
        "workers": {"min": low, "max": high},
    }
    return parse_spec(document | parts)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def digest(bench: Bench) -> str:
    """What the job gives that nobody touches."""
    job = await bench.until_state(await bench.submit(spec_of(low=1, high=1)), JobState.SUCCEEDED)
    return job.weights_digest


async def until_steps(bench: Bench, job_id: str, steps: int) -> None:
    first = (await bench.ledger.get(job_id)).progress.steps_completed
    await bench.until(job_id, lambda job: job.progress.steps_completed >= first + steps)


async def until_workers(bench: Bench, job_id: str, workers: int) -> None:
    await bench.until(job_id, lambda job: job.progress.current_workers == workers)


async def test_a_job_that_was_paused_and_scaled_gives_the_same_weights(bench: Bench, digest: str, points: Path) -> None:
    slow = failpoints.arm(points, "any", "norm", "slow 0.01")
    job_id = await bench.submit(spec_of(low=2, high=2))
    await until_workers(bench, job_id, 2)
    await until_steps(bench, job_id, 20)
    await bench.dispatcher.pause(job_id)
    paused = await bench.until_state(job_id, JobState.PAUSED)
    saved = [one.step for one in await bench.history(job_id) if isinstance(one, CheckpointSaved)]
    assert saved[-1] == paused.progress.steps_completed
    await bench.until(job_id, lambda _: bench.dispatcher.free_slots == SLOTS)
    await bench.dispatcher.scale(job_id, 1)
    await bench.dispatcher.resume(job_id)
    await until_workers(bench, job_id, 1)
    assert (await bench.ledger.get(job_id)).progress.steps_completed >= paused.progress.steps_completed
    for workers in (2, 1):
        await bench.dispatcher.scale(job_id, workers)
        await until_workers(bench, job_id, workers)
        await bench.until(job_id, lambda _, workers=workers: bench.dispatcher.free_slots == SLOTS - workers)  # type: ignore[misc]
        await until_steps(bench, job_id, 10)
    slow.unlink()
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert (job.weights_digest, job.attempt) == (digest, 2), "scaling starts nothing anew"
    assert not [one for one in await bench.history(job_id) if isinstance(one, WorkerLost)]


@pytest.mark.parametrize(("low", "attempts"), [(1, 1), (2, 2)], ids=["shrinks", "yields"])
async def test_a_job_that_makes_way_gives_the_same_weights(
    bench: Bench, digest: str, points: Path, low: int, attempts: int
) -> None:
    slow = failpoints.arm(points, "any", "norm", "slow 0.01")
    low_id = await bench.submit(spec_of("low", low=low, high=2))
    await until_workers(bench, low_id, 2)
    await until_steps(bench, low_id, 10)
    high_id = await bench.submit(spec_of("high", low=1, high=1, priority=5))
    await until_workers(bench, high_id, 1)
    made_way = await bench.ledger.get(low_id)
    assert (made_way.state, made_way.progress.current_workers) in ((JobState.RUNNING, 1), (JobState.QUEUED, 0))
    await until_steps(bench, high_id, 10)
    slow.unlink()
    assert (await bench.until_state(high_id, JobState.SUCCEEDED)).weights_digest == digest
    job = await bench.until_state(low_id, JobState.SUCCEEDED)
    assert (job.weights_digest, job.attempt) == (digest, attempts)
    if attempts == 1:
        numbers = [one.workers for one in await bench.history(low_id) if isinstance(one, WorkersChanged)]
        assert 1 in numbers


async def test_a_job_that_begins_with_a_checkpoint_of_another_gives_the_same_weights(bench: Bench, digest: str) -> None:
    source = await bench.submit(spec_of(low=2, high=2))
    await bench.until_state(source, JobState.SUCCEEDED)
    job = Job("begins-late", spec_of(low=1, high=1), time.time(), start_checkpoint=StartCheckpoint(source, 1000))
    await bench.dispatcher.submit(job, request=None)
    await bench.dispatcher.delete(source)
    done = await bench.until_state(job.job_id, JobState.SUCCEEDED)
    assert done.weights_digest == digest
    history = await bench.history(job.job_id)
    assert [one.step for one in history if isinstance(one, CheckpointSaved)] == [1100, 1200]
    assert not [one for one in history if isinstance(one, CheckpointCorrupt)]
