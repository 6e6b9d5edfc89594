"""Workers come, go, die, hang and dawdle on a real Ray cluster, and the weights are those of a run undisturbed."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from glob import glob
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from service.cluster import RayCluster
from service.jobs import CheckpointSaved, Job, StateReason, WorkerLost, WorkersChanged, WorkerSlow
from service.runs import News, Report, RunFailed, RunPaused, RunStarted
from tests import failpoints
from tests.clusters import local_cluster
from tests.undisturbed import digest_of
from worker.reduce.segment import Control, Segment
from worker.replica import Replica
from worker.spec import JobSpec, parse_spec

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

SECONDS = 90.0
STAGES = ("data", "forward", "backward", "reduce", "norm", "update", "commit", "wait", "evaluate", "idle")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(points: Path) -> AsyncIterator[RayCluster]:
    async with local_cluster(worker_slots=4, points=points) as cluster:
        yield cluster


def spec_of(*, max_steps: int = 1_000_000, shards: int = 6, **workers: int) -> JobSpec:
    """A job that does not end by itself, unless told to."""
    return parse_spec(
        {
            "model": {"mlp": {"hidden": [32, 300]}},
            "data": {"synthetic": {"samples": 5000, "features": 40, "outputs": 5}},
            "training": {"global_batch_size": 12, "shards": shards, "max_steps": max_steps, "clip_norm": 1.0},
            "evaluation": {"every_steps": 20},
            "workers": {"min": 1, "max": 3} | workers,
        }
    )


def idle_or_busy_workers() -> set[int]:
    """Ray names an actor's process after its class, once it is there."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found |= {child.pid} if "ray::_Worker" in " ".join(child.cmdline()) else set()
    return found


class Trial:
    """A run under disturbances: what it tells, and its control page."""

    def __init__(self, cluster: RayCluster, spec: JobSpec, directory: Path) -> None:
        self._cluster, self.spec, self._directory = cluster, spec, directory
        self.reports: list[Report] = []
        self.news = News()

    async def start(self, workers: int) -> None:
        job = Job(f"elastic-{os.urandom(3).hex()}", self.spec, create_time=0.0)
        self.run = await self._cluster.launch(job, workers, self._directory)
        await self.until(lambda: self.of(RunStarted))
        (path,) = glob(self._cluster.segment_pattern)
        shape = Replica.load(self.spec, capacity=self.run.capacity).facts.shape
        self.control: Control = Segment.attach(Path(path), shape).control

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                news = await self.run.news(self.news.last_report)
                self.news = News(progress=news.progress, steps_redone=news.steps_redone, last_report=news.last_report)
                self.reports += news.reports
                failed = [report for report in news.reports if isinstance(report, RunFailed)]
                assert not failed or condition(), failed

    async def until_workers(self, count: int) -> None:
        await self.until(lambda: self.news.progress.current_workers == count)

    async def until_steps(self, count: int) -> None:
        first = self.control.committed
        await self.until(lambda: self.control.committed >= first + count)

    def of(self, kind: type[Report]) -> list[Report]:
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def lost(self) -> list[WorkerLost]:
        return [report for report in self.reports if isinstance(report, WorkerLost)]

    async def finish(self) -> None:
        """Stops wherever it is, and compares."""
        await self.run.pause()
        await self.until(lambda: self.of(RunPaused))
        await self.run.close()
        saved = [report for report in self.reports if isinstance(report, CheckpointSaved)][-1]
        assert saved.weights_digest == await asyncio.to_thread(digest_of, self.spec, saved.step), saved.step


async def begin(cluster: RayCluster, spec: JobSpec, directory: Path, *, workers: int) -> Trial:
    trial = Trial(cluster, spec, directory)
    await trial.start(workers)
    await trial.until_workers(workers)
    return trial


async def test_a_kill_at_any_stage_changes_nothing(cluster: RayCluster, points: Path, tmp_path: Path) -> None:
    failpoints.arm(points, "any", "norm", "slow 0.005")  # so that the reference has fewer steps to do again
    trial = await begin(cluster, spec_of(), tmp_path, workers=3)
    for number, stage in enumerate(STAGES, 1):
        seat = number % 3
        await trial.until(lambda seat=seat: trial.control.pulse(seat).step > trial.control.committed - 3)  # type: ignore[misc]
        failpoints.arm(points, seat, stage, "kill")
        await trial.until(lambda number=number: len(trial.lost) == number)  # type: ignore[misc]
        assert (trial.lost[-1].rank, trial.lost[-1].phase) == (seat, stage)
        await trial.until_steps(5)
    await trial.until_workers(3)
    assert {lost.reason for lost in trial.lost} == {"process died"}
    assert trial.news.steps_redone <= len(STAGES)
    await trial.finish()


async def test_workers_that_die_while_they_start_are_started_again(
    cluster: RayCluster, points: Path, tmp_path: Path
) -> None:
    for stage in ("load", "create_segment", "join"):
        failpoints.arm(points, "any", stage, "kill")
    trial = await begin(cluster, spec_of(), tmp_path, workers=3)
    await trial.until(lambda: len(trial.lost) == 3)
    assert {lost.phase for lost in trial.lost} == {""}
    await trial.until_workers(3)
    await trial.finish()


async def test_kills_at_random_instants_change_nothing(cluster: RayCluster, points: Path, tmp_path: Path) -> None:
    trial, rng, kills = await begin(cluster, spec_of(), tmp_path, workers=3), random.Random(7), 0
    failpoints.arm(points, "any", "norm", "slow 0.005")
    for _ in range(6):
        await trial.until_steps(rng.randint(5, 40))
        alive = [seat for seat in range(3) if trial.control.pulse(seat).step > trial.control.committed - 3]
        for seat in rng.sample(alive, min(len(alive), rng.choice([1, 1, 2, 3]))):
            os.kill(trial.control.pulse(seat).process_id, signal.SIGKILL)
            kills += 1
        await trial.until(lambda kills=kills: len(trial.lost) == kills)  # type: ignore[misc]
    assert trial.news.steps_redone <= kills
    await trial.finish()


async def test_stopped_and_gil_holding_workers_are_found_killed_and_replaced(
    cluster: RayCluster, points: Path, tmp_path: Path
) -> None:
    trial = await begin(cluster, spec_of(), tmp_path, workers=3)
    await trial.until_steps(20)
    stopped = trial.control.pulse(0).process_id
    failpoints.arm(points, 1, "backward", "hold")
    failpoints.arm(points, 0, "forward", "stop")
    await trial.until(lambda: len(trial.lost) == 2)
    assert {lost.rank for lost in trial.lost} == {0, 1}
    assert all(lost.reason.startswith("hung: no sign of life for 1") for lost in trial.lost)
    assert not psutil.pid_exists(stopped) or psutil.Process(stopped).status() == psutil.STATUS_ZOMBIE
    await trial.until_workers(3)
    await trial.finish()


async def test_a_worker_in_reserve_takes_a_lost_ones_place(
    cluster: RayCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trial = await begin(cluster, spec_of(), tmp_path, workers=2)
    await trial.until(lambda: len(idle_or_busy_workers()) == 3)
    before = idle_or_busy_workers()
    os.kill(trial.control.pulse(1).process_id, signal.SIGKILL)
    await trial.until(lambda: trial.lost)
    await trial.until_workers(2)
    await trial.until_steps(2)
    assert trial.control.pulse(1).process_id in before
    await trial.finish()
    assert not idle_or_busy_workers()
    assert "died or was killed" not in "".join(capfd.readouterr()), "Ray has something to say about it on the terminal"


async def test_scaling_up_and_down_in_flight_changes_nothing(cluster: RayCluster, points: Path, tmp_path: Path) -> None:
    failpoints.arm(points, "any", "norm", "slow 0.005")
    trial = await begin(cluster, spec_of(), tmp_path, workers=1)
    for workers in (3, 1, 2):
        await trial.run.scale(workers)
        await trial.until_workers(workers)
        await trial.until_steps(10)
    changes = [(report.workers, report.reason) for report in trial.reports if isinstance(report, WorkersChanged)]
    assert changes[-2:] == [(1, "workers 1, 2 left: 1 wanted"), (2, "worker 1 joined")] or changes[-2][0] == 1
    assert not trial.lost
    most = trial.run.capacity
    with pytest.raises(ValueError, match=f"workers: got {most + 1}, expected 1 to {most}"):
        await trial.run.scale(most + 1)
    await trial.finish()


async def test_a_paused_run_goes_on_where_it_was(cluster: RayCluster, points: Path, tmp_path: Path) -> None:
    failpoints.arm(points, "any", "norm", "slow 0.005")
    trial = await begin(cluster, spec_of(), tmp_path, workers=2)
    await trial.until_steps(20)
    await trial.finish()
    (paused,) = trial.of(RunPaused)
    again = await begin(cluster, trial.spec, tmp_path, workers=3)
    started = again.of(RunStarted)[0]
    assert isinstance(paused, RunPaused)
    assert isinstance(started, RunStarted)
    assert started.step == paused.step
    await again.until_steps(20)
    await again.finish()


async def test_a_slow_worker_is_told_and_given_less(cluster: RayCluster, points: Path, tmp_path: Path) -> None:
    trial = await begin(cluster, spec_of(), tmp_path, workers=3)
    slow = failpoints.arm(points, 1, "forward", "slow 0.02")
    await trial.until(lambda: trial.of(WorkerSlow))
    slow.unlink()
    told = [report for report in trial.reports if isinstance(report, WorkerSlow)]
    assert (told[0].rank, told[0].shards) == (1, 1)
    assert told[0].times > 3
    await trial.until_steps(20)
    await trial.finish()


async def test_a_shard_that_kills_whoever_computes_it_fails_the_job_after_two(
    cluster: RayCluster, points: Path, tmp_path: Path
) -> None:
    failpoints.poison(points, step=30, shard=4)
    failpoints.arm(points, "any", "norm", "slow 0.005")
    trial = Trial(cluster, spec_of(), tmp_path)
    await trial.start(3)
    await trial.until(lambda: trial.of(RunFailed))
    await trial.run.close()
    (failed,) = trial.of(RunFailed)
    assert isinstance(failed, RunFailed)
    assert failed.reason is StateReason.POISON
    assert failed.message.startswith("step 31, shard 4: 2 workers were lost computing it")
    assert len(trial.lost) == 2


async def test_a_job_begins_with_its_fewest_workers_and_grows(cluster: RayCluster, tmp_path: Path) -> None:
    trial = await begin(cluster, spec_of(min=1, max=3), tmp_path, workers=3)
    started = [report.workers for report in trial.reports if isinstance(report, RunStarted)]
    assert started == sorted(started)
    assert started[-1] == 3
    await trial.finish()
