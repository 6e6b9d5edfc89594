"""Training on real Ray actors: the same digest for any number of workers, and whoever dies."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from glob import glob
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from service.checkpoints import CheckpointPolicy
from service.cluster import RayCluster
from service.jobs import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointSaved,
    Evaluation,
    ExactnessLost,
    Job,
    StateReason,
    WorkerLost,
)
from service.runs import Report, Run, RunFailed, RunLostError, RunStarted, RunStopped, RunSucceeded, StepSample
from tests.clusters import command_of, local_cluster
from tests.unit.checkpoints import rewrite_manifest
from worker.checkpoint import WEIGHTS, name_of
from worker.spec import parse_spec

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

SECONDS = 90.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[RayCluster]:
    async with local_cluster(worker_slots=4) as cluster:
        yield cluster


def job(max_steps: int = 120, **parts: object) -> Job:
    document = {
        "model": {"mlp": {"hidden": [64, 32]}},
        "data": {"synthetic": {"samples": 2000, "features": 40, "outputs": 5}},
        "training": {"global_batch_size": 48, "shards": 4, "max_steps": max_steps, "clip_norm": 1.0},
        "evaluation": {"every_steps": 50},
        "checkpoint": {"every_steps": 40},
        "workers": {"min": 1, "max": 4},
    }
    return Job(f"test-{os.urandom(3).hex()}", parse_spec(document | parts), create_time=0.0)


class Watcher:
    """Collects a run's news."""

    def __init__(self, run: Run) -> None:
        self.run, self.reports, self.steps = run, list[Report](), list[StepSample]()

    async def until(self, kind: type[Report], count: int = 1) -> None:
        """Waits until a report of a kind was seen so often."""
        async with asyncio.timeout(SECONDS):
            while len(self.of(kind)) < count:
                await self._look()

    async def until_step(self, step: int) -> None:
        async with asyncio.timeout(SECONDS):
            while not self.steps or self.steps[-1].step < step:
                await self._look()

    async def _look(self) -> None:
        news = await self.run.news(len(self.reports))
        self.reports += news.reports
        self.steps += news.steps

    def of(self, kind: type[Report]) -> list[Report]:
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def digest(self) -> str:
        return self._succeeded.weights_digest

    @property
    def model(self) -> Path:
        return Path(self._succeeded.model_path)

    @property
    def _succeeded(self) -> RunSucceeded:
        (succeeded,) = (report for report in self.reports if isinstance(report, RunSucceeded))
        return succeeded


async def train(cluster: RayCluster, job: Job, workers: int, directory: Path) -> Watcher:
    watcher = Watcher(await cluster.launch(job, workers, directory))
    await watcher.until(RunSucceeded)
    await watcher.run.close()
    return watcher


async def process_named(name: str) -> int:
    """The newest process of this name, as soon as there is one: Ray names that of an actor after what it does."""
    async with asyncio.timeout(SECONDS):
        while True:
            children = psutil.Process().children(recursive=True)
            found = [child for child in children if name in command_of(child)]
            if found:
                return max(found, key=lambda child: child.create_time()).pid
            await asyncio.sleep(0.001)


async def test_one_to_four_workers_give_one_digest(cluster: RayCluster, tmp_path: Path) -> None:
    watchers = [
        await train(cluster, job(workers={"min": workers, "max": 4}), workers, tmp_path / str(workers))
        for workers in (1, 2, 3, 4)
    ]
    assert len({watcher.digest for watcher in watchers}) == 1
    for workers, watcher in zip((1, 2, 3, 4), watchers, strict=True):
        assert [report.workers for report in watcher.reports if isinstance(report, RunStarted)] == [workers]
        assert [report.step for report in watcher.reports if isinstance(report, Evaluation)] == [50, 100, 120]
        assert [report.step for report in watcher.reports if isinstance(report, CheckpointSaved)] == [40, 80, 120]
        assert [sample.step for sample in watcher.steps] == list(range(1, 121))
    first, *others = ([(sample.loss, sample.gradient_norm) for sample in watcher.steps] for watcher in watchers)
    assert all(other == first for other in others)


async def test_a_killed_worker_changes_nothing_but_the_events(cluster: RayCluster, tmp_path: Path) -> None:
    undisturbed = await train(cluster, job(3000), 3, tmp_path / "undisturbed")
    watcher = Watcher(await cluster.launch(job(3000), 3, tmp_path / "killed"))
    for kills in (1, 2):
        await watcher.until(RunStarted, kills)
        await watcher.until_step(watcher.steps[-1].step + 50 if watcher.steps else 50)
        os.kill(await process_named("Worker.run"), signal.SIGKILL)
        await watcher.until(WorkerLost, kills)
    await watcher.until(RunSucceeded)
    await watcher.run.close()
    assert watcher.digest == undisturbed.digest


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
async def test_a_killed_coordinator_loses_the_run_but_no_checkpoint(
    cluster: RayCluster, tmp_path: Path, precision: str
) -> None:
    # Targets far from 0, so that in fp16 the loss scale has moved by then, and a run without it would differ.
    data = {"synthetic": {"task": "regression", "samples": 2000, "features": 40, "outputs": 5, "noise": 50.0}}
    training = {"global_batch_size": 48, "shards": 4, "max_steps": 3000, "clip_norm": 1.0, "precision": precision}
    spec = job(data=data, training=training, optimizer={"adam": {}, "ema": {"decay": 0.99}})
    undisturbed = await train(cluster, spec, 2, tmp_path / "undisturbed")
    assert any(sample.is_non_finite for sample in undisturbed.steps) == (precision == "fp16")
    watcher = Watcher(await cluster.launch(spec, 2, tmp_path / "killed"))
    await watcher.until(CheckpointSaved)
    os.kill(await process_named("Coordinator"), signal.SIGKILL)
    with pytest.raises(RunLostError):
        await watcher.until(RunSucceeded)
    await watcher.run.close()
    again = await train(cluster, spec, 3, tmp_path / "killed")
    started = next(report for report in again.reports if isinstance(report, RunStarted))
    assert started.step >= 40
    assert again.digest == undisturbed.digest
    assert again.model.name == undisturbed.model.name == "ema.safetensors"
    assert again.model.read_bytes() == undisturbed.model.read_bytes()


def checkpoint_of(directory: Path, step: int) -> Path:
    return directory / "checkpoints" / name_of(step)


async def test_a_damaged_checkpoint_is_an_event_and_the_one_before_is_used(cluster: RayCluster, tmp_path: Path) -> None:
    spec = job()
    undisturbed = await train(cluster, spec, 2, tmp_path)
    shutil.rmtree(checkpoint_of(tmp_path, 120))
    weights = checkpoint_of(tmp_path, 80) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    again = await train(cluster, spec, 2, tmp_path)
    (corrupt,) = (report for report in again.reports if isinstance(report, CheckpointCorrupt))
    assert ".corrupt-step-0000000080" in corrupt.path
    assert corrupt.reason.startswith(f"{WEIGHTS}: got ")
    assert next(report.step for report in again.reports if isinstance(report, RunStarted)) == 40
    assert again.digest == undisturbed.digest


async def test_other_numerics_are_refused_unless_they_are_allowed(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job()
    undisturbed = await train(cluster, spec, 2, tmp_path)
    shutil.rmtree(checkpoint_of(tmp_path, 120))
    rewrite_manifest(checkpoint_of(tmp_path, 80), lambda manifest: manifest["fingerprint"].update(numpy="1.0"))

    refused = Watcher(await cluster.launch(spec, 2, tmp_path))
    await refused.until(RunFailed)
    await refused.run.close()
    (failed,) = (report for report in refused.reports if isinstance(report, RunFailed))
    assert failed.reason is StateReason.NUMERICS_CHANGED
    assert f"numpy is {np.__version__}, was 1.0" in failed.message
    assert "--allow-different-numerics" in failed.message
    assert checkpoint_of(tmp_path, 80).is_dir(), "it is sound, and stays"

    monkeypatch.setattr(cluster, "_policy", CheckpointPolicy(allow_different_numerics=True))
    again = await train(cluster, spec, 2, tmp_path)
    assert again.of(ExactnessLost) == [ExactnessLost(80, f"numpy is {np.__version__}, was 1.0")]
    assert again.digest == undisturbed.digest, "for the numerics are the same in truth"


async def test_data_that_changed_is_refused(cluster: RayCluster, tmp_path: Path) -> None:
    data, random = tmp_path / "data.npz", np.random.default_rng(0)
    inputs, targets = random.standard_normal((100, 4)).astype(np.float32), np.arange(100) % 3
    np.savez(data, inputs=inputs, targets=targets)
    spec = job(data={"arrays": {"path": str(data)}})
    await train(cluster, spec, 1, tmp_path)
    inputs[0, 0] += 1
    np.savez(data, inputs=inputs, targets=targets)
    watcher = Watcher(await cluster.launch(spec, 1, tmp_path))
    await watcher.until(RunFailed)
    await watcher.run.close()
    (failed,) = (report for report in watcher.reports if isinstance(report, RunFailed))
    assert failed.reason is StateReason.INVALID_JOB
    assert failed.message.startswith("data.arrays: got sha256")
    assert "the data has changed since" in failed.message


async def test_a_full_disk_is_an_event_and_training_goes_on(cluster: RayCluster, tmp_path: Path) -> None:
    undisturbed = await train(cluster, job(800), 2, tmp_path / "undisturbed")
    watcher = Watcher(await cluster.launch(job(800), 2, tmp_path / "full"))
    await watcher.until(RunStarted)
    coordinator = psutil.Process(await process_named("Coordinator"))
    before = coordinator.rlimit(psutil.RLIMIT_FSIZE)
    coordinator.rlimit(psutil.RLIMIT_FSIZE, (4096, before[1]))  # what is longer cannot be written, as on a full disk
    async with asyncio.timeout(SECONDS):
        while not any(report.step == 800 for report in watcher.reports if isinstance(report, CheckpointFailed)):
            await watcher.until(CheckpointFailed, len(watcher.of(CheckpointFailed)) + 1)
    assert not list(tmp_path.glob("full/checkpoints/.*")), "nothing is half there"
    coordinator.rlimit(psutil.RLIMIT_FSIZE, before)
    await watcher.until(RunSucceeded)
    await watcher.run.close()
    failed = [report for report in watcher.reports if isinstance(report, CheckpointFailed)]
    assert "File too large" in failed[0].error
    assert failed[-1].error.endswith(" s"), "the last one is tried again"
    assert watcher.digest == undisturbed.digest


async def test_checkpoints_that_cannot_be_read_for_now_are_waited_for(cluster: RayCluster, tmp_path: Path) -> None:
    """Starting anew instead would throw away what was learned."""
    (tmp_path / "checkpoints").write_text("in the way")
    watcher = Watcher(await cluster.launch(job(), 1, tmp_path))
    await watcher.until(CheckpointFailed)
    (tmp_path / "checkpoints").unlink()
    await watcher.until(RunSucceeded)
    await watcher.run.close()
    (failed, *_) = (report for report in watcher.reports if isinstance(report, CheckpointFailed))
    assert failed.error.startswith("StoreUnreachableError: ")
    assert "checkpoints: Not a directory; tried again in " in failed.error


async def test_a_cancelled_run_stops_and_leaves_no_shared_memory(cluster: RayCluster, tmp_path: Path) -> None:
    watcher = Watcher(await cluster.launch(job(1_000_000), 2, tmp_path))
    await watcher.until_step(10)
    await watcher.run.cancel()
    await watcher.until(RunStopped)
    await watcher.run.close()
    assert not glob(cluster.segment_pattern)


async def test_a_non_finite_gradient_fails_the_run_with_its_step(cluster: RayCluster, tmp_path: Path) -> None:
    poison = job(
        optimizer={"sgd": {"learning_rate": 1e30}},
        data={"synthetic": {"task": "regression"}},
        training={"global_batch_size": 8, "max_steps": 50},
    )
    watcher = Watcher(await cluster.launch(poison, 2, tmp_path))
    await watcher.until(RunFailed)
    await watcher.run.close()
    (failed,) = (report for report in watcher.reports if isinstance(report, RunFailed))
    assert failed.reason is StateReason.NON_FINITE
    assert "the gradient's norm is" in failed.message


async def test_data_that_vanished_fails_the_run_in_words(cluster: RayCluster, tmp_path: Path) -> None:
    watcher = Watcher(await cluster.launch(job(data={"arrays": {"path": "/nowhere/a.npz"}}), 2, tmp_path))
    await watcher.until(RunFailed)
    await watcher.run.close()
    (failed,) = (report for report in watcher.reports if isinstance(report, RunFailed))
    assert (failed.reason, failed.message) == (
        StateReason.INVALID_JOB,
        "data.arrays.path: /nowhere/a.npz: no such file",
    )


async def test_ray_listens_on_the_loopback_interface_only(cluster: RayCluster) -> None:
    ours = {process.pid for process in psutil.Process().children(recursive=True)} | {os.getpid()}
    listeners = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in ours]
    assert listeners
    assert {connection.laddr[0].removeprefix("::ffff:") for connection in listeners if connection.laddr} == {
        "127.0.0.1"
    }
