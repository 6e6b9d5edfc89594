"""Two nodes of a Ray cluster on this machine, and a job on them: two raylets, each with its own workers and segment."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from benchmarks.namespaces import Namespace
from service.cluster import RayCluster, open_remote_cluster
from service.jobs import CheckpointSaved, Job, WorkerLost
from service.placement import free_slots
from service.runs import News, Report, Run, RunFailed, RunPaused, RunStarted, StepSample
from tests import failpoints
from tests.clusters import command_of
from tests.leftovers import wait_until_gone
from tests.undisturbed import digest_of
from worker.reduce.segment import Control, Segment
from worker.replica import Replica
from worker.spec import parse_spec

SECONDS = 90.0
MEMORY = 80 << 20  # nearly Ray's least
SPEC = parse_spec(
    {
        "model": {"mlp": {"hidden": [32, 300]}},
        "data": {"synthetic": {"samples": 5000, "features": 40, "outputs": 5}},
        "training": {"global_batch_size": 12, "shards": 6, "max_steps": 1_000_000, "clip_norm": 1.0},
        "evaluation": {"every_steps": 20},
        "checkpoint": {"every_steps": 50},
        "workers": {"min": 1, "max": 3},
    }
)


@dataclass
class Nodes:
    """Two slots on the one node, one on the other; the service is connected to the first."""

    service: RayCluster
    second: Any

    def kill_second(self) -> None:
        """All processes of the second node at once, as far as Ray knows of them."""
        (raylet,) = (info.process for info in self.second.all_processes["raylet"])
        for process in [raylet.pid, *self.on_second("")]:
            os.kill(process, signal.SIGKILL)
        raylet.wait()

    @staticmethod
    def processes(name: str) -> list[int]:
        """On both."""
        children = psutil.Process().children(recursive=True)
        return [child.pid for child in children if name in command_of(child)]

    def on_second(self, name: str) -> list[int]:
        """Ray names the process of an actor after its class."""
        (raylet,) = (info.process for info in self.second.all_processes["raylet"])
        children = psutil.Process(raylet.pid).children(recursive=True)
        return [child.pid for child in children if name in command_of(child)]


@asynccontextmanager
async def two_raylets(points: Path, *, namespaces: tuple[Namespace, Namespace] | None = None) -> AsyncIterator[Nodes]:
    """A cluster of two raylets whose workers obey the failpoints in `points`, and a service that is connected to it.

    With namespaces each raylet has its own; who calls this is in the first one, and connected to it alone.
    """
    directory = Path(tempfile.mkdtemp(prefix="backprop-nodes-"))
    (directory / "ray").mkdir()
    cluster = Cluster()
    hosts: list[dict[str, Any]] = [{"node_ip_address": namespace.host} for namespace in namespaces or ()] or [{}, {}]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**failpoints.environment(points), "RAY_TMPDIR": str(directory)}.items():
            patch.setenv(name, value)
        try:
            cluster.add_node(num_cpus=2, object_store_memory=MEMORY, include_dashboard=False, **hosts[0])
            if namespaces is not None:
                namespaces[1].enter()
            second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY, **hosts[1])
            if namespaces is not None:
                namespaces[0].enter()
            service = await open_remote_cluster(cluster.address, identity=f"nodes{os.getpid()}")
            yield Nodes(service, second)
            await service.close()
        finally:
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]  # Ray has no types here
            shutil.rmtree(directory)
    wait_until_gone(lambda: set(glob(service.segment_pattern)), "the cluster")  # a janitor gives Ray some seconds


class Trial:
    """A run over the nodes: what it tells, and the control page of each node."""

    def __init__(self, run: Run, nodes: Nodes) -> None:
        self.run, self._nodes = run, nodes
        self.reports: list[Report] = []
        self.steps: list[StepSample] = []
        self.news = News()
        self._shape = Replica.load(SPEC, capacity=run.capacity).facts.shape

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                self.news = await self.run.news(len(self.reports))
                self.reports += self.news.reports
                self.steps += self.news.steps
                assert not self.of(RunFailed), self.of(RunFailed)

    async def until_workers(self, count: int) -> None:
        await self.until(lambda: self.news.progress.current_workers == count)

    async def until_steps(self, count: int) -> None:
        first = self.news.progress.steps_completed
        await self.until(lambda: self.news.progress.steps_completed >= first + count)

    def of(self, kind: type[Report]) -> list[Report]:
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def lost(self) -> list[WorkerLost]:
        return [report for report in self.reports if isinstance(report, WorkerLost)]

    def controls(self) -> list[Control]:
        """The control pages, the first node's first: its segment has the shorter name."""
        paths = sorted(glob(self._nodes.service.segment_pattern), key=len)
        return [Segment.attach(Path(path), self._shape).control for path in paths]

    def processes(self) -> list[dict[int, int]]:
        """By node, the processes of the workers that live, by seat."""
        found = []
        for control in self.controls():
            pulses = {seat: control.pulse(seat).process_id for seat in range(control.num_seats)}
            found.append({seat: process for seat, process in pulses.items() if process and is_alive(process)})
        return found

    async def finish(self) -> None:
        """Stops wherever it is, compares with a run of one process, and looks whether anything is left."""
        await self.stop()
        assert not glob(self._nodes.service.segment_pattern)

    async def stop(self) -> None:
        """Stops wherever it is, and compares with a run of one process."""
        await self.run.pause()
        await self.until(lambda: self.of(RunPaused))
        await self.run.close()
        saved = [report for report in self.reports if isinstance(report, CheckpointSaved)][-1]
        assert saved.weights_digest == await asyncio.to_thread(digest_of, SPEC, saved.step), saved.step
        assert [sample.step for sample in self.steps] == list(range(1, saved.step + 1)), "each step is told once"


def is_alive(process: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def new_job() -> Job:
    return Job(f"nodes-{os.urandom(3).hex()}", SPEC, create_time=0.0)


async def launch(nodes: Nodes, directory: Path, *, workers: int) -> Trial:
    """A run whose coordinator is on the first node, which has most room once Ray knows that the last run has ended."""
    async with asyncio.timeout(SECONDS):
        while sum((await asyncio.to_thread(free_slots)).values()) < nodes.service.num_slots:
            await asyncio.sleep(0.05)
    return Trial(await nodes.service.launch(new_job(), workers, directory), nodes)


async def begin(nodes: Nodes, directory: Path, *, workers: int) -> Trial:
    """A run of which so many workers are at work."""
    trial = await launch(nodes, directory, workers=workers)
    await trial.until(lambda: trial.of(RunStarted))
    await trial.until_workers(workers)
    return trial
