"""The Ray cluster: the only place in the service that starts Ray's actors."""

from __future__ import annotations

import asyncio
import logging
import secrets
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service import limits, survival
from service.checkpoints import CheckpointPolicy
from service.coordinator import CoordinatorActor, Situation
from service.jobs import Job
from service.order import Order
from service.placement import free_slots
from service.runs import News, Run, RunLostError, Survivor
from worker.process import ENVIRONMENT
from worker.reduce.mesh import TOKEN_BYTES
from worker.reduce.segment import DIRECTORY as SHARED_MEMORY
from worker.reduce.tree import max_slots

logger = logging.getLogger(__name__)

COUNT_SECONDS = 5.0  # between two looks at which nodes there are; Ray takes longer to see that one has died


class ClusterError(Exception):
    """The cluster cannot be started or reached."""


class RayRun:
    """A run on the Ray cluster: its coordinator actor, which owns the workers."""

    def __init__(self, coordinator: ActorHandle[Any], segment: Path, *, capacity: int) -> None:
        self._coordinator, self._segment, self._capacity = coordinator, segment, capacity

    @property
    def capacity(self) -> int:
        """The most workers that it can be scaled to: its segment was made for so many."""
        return self._capacity

    async def news(self, after: int) -> News:
        """What happened after that report. Raises RunLostError when the coordinator is dead."""
        try:
            news: News = await self._coordinator.news.remote(after)
        except RayError as error:
            raise RunLostError(" ".join(str(error).split())[:200]) from error
        return news

    async def scale(self, workers: int) -> None:
        """Sets the number of workers wanted. Raises RunLostError, and ValueError where the segment has no such room."""
        if not 1 <= workers <= self._capacity:
            raise ValueError(f"workers: got {workers}, expected 1 to {self._capacity}")
        await self._ask("scale", workers)

    async def pause(self) -> None:
        """Asks the run to stop and save what it has; a RunPaused report follows. Raises RunLostError."""
        await self._ask("pause")

    async def cancel(self) -> None:
        """Asks the run to stop; a RunStopped report follows. Raises RunLostError."""
        await self._ask("cancel")

    async def _ask(self, method: str, *arguments: object) -> None:
        try:
            await getattr(self._coordinator, method).remote(*arguments)
        except RayError as error:
            raise RunLostError("the coordinator died") from error

    async def close(self) -> None:
        """Ends the workers, the coordinator and the segment."""
        await survival.end(self._coordinator)
        self._segment.unlink(missing_ok=True)


class RayCluster:
    """A Ray cluster that this process is connected to. Only one at a time.

    `token` says whose runs are whose. Where it `keeps_runs`, they outlive this process.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        token: str,
        directory: Path | None,
        policy: CheckpointPolicy = CheckpointPolicy(),
        keep_seconds: float = limits.KEEP_RUN_SECONDS,
    ) -> None:
        self._num_slots, self._token = num_slots, token
        self._directory, self._policy, self._keep_seconds = directory, policy, keep_seconds
        self._janitor: subprocess.Popen[bytes] | None = None
        self._counting: asyncio.Task[None] | None = None

    @property
    def num_slots(self) -> int:
        """Worker processes that can run at once, over all jobs."""
        return self._num_slots

    @property
    def keeps_runs(self) -> bool:
        """Whether runs go on when this process has gone: not on a cluster that goes with it."""
        return self._directory is None

    @property
    def _namespace(self) -> str:
        return f"backprop-{self._token}"

    @property
    def segment_pattern(self) -> str:
        """The paths of the segments that runs of this cluster make, as a pattern."""
        return f"{SHARED_MEMORY}/backprop-*-{self._token}"

    async def launch(self, job: Job, workers: int, directory: Path) -> Run:
        """Starts a coordinator on the node that has most room for workers; it brings up the rest by itself."""
        attempt = secrets.token_hex(2)  # what one that died has left must not be taken for another's
        segment = SHARED_MEMORY / f"backprop-{job.job_id}-{attempt}-{self._token}"
        free = await asyncio.to_thread(free_slots)
        node = max(free, key=lambda node: free[node])
        placement = NodeAffinitySchedulingStrategy(node, soft=False)
        order = Order(
            job_id=job.job_id,
            spec_json=job.spec.model_dump_json(),
            num_workers=workers,
            min_workers=min(job.min_workers, workers),
            capacity=capacity_for(job, workers, most=self._num_slots),
            segment=segment,
            checkpoints=self._policy.location(job.job_id, directory),
            worker_options={"num_cpus": 1, "scheduling_strategy": placement},
            allow_different_numerics=self._policy.allow_different_numerics,
            keep_seconds=self._keep_seconds,
            node=node,
            token=secrets.token_bytes(TOKEN_BYTES) if self.keeps_runs else b"",
        )
        lasting = survival.options_of(job, self._namespace) if self.keeps_runs else {}
        actor = CoordinatorActor.options(scheduling_strategy=placement, **lasting).remote(order)
        coordinator = cast("ActorHandle[Any]", actor)
        try:
            await coordinator.start.remote()
        except RayError as error:
            ray.kill(coordinator)
            raise RunLostError(f"the coordinator could not be started: {' '.join(str(error).split())[:300]}") from error
        except BaseException:  # the service waits no longer: nobody would ever close this run
            ray.kill(coordinator)
            raise
        return RayRun(coordinator, segment, capacity=order.capacity)

    async def survivors(self, jobs: Collection[Job]) -> Mapping[str, Survivor]:
        """The runs of the service's last life that are there, by job; whatever else is left of it is ended."""
        if not self.keeps_runs:
            return {}
        names = {survival.name_of(job): job.job_id for job in jobs}
        found = await survival.find(names, namespace=self._namespace)
        await survival.sweep(self.segment_pattern, spared=[there.segment for _, there in found.values()])
        return {names[name]: _survivor(coordinator, there) for name, (coordinator, there) in found.items()}

    async def close(self) -> None:
        """Disconnects; a local cluster is ended, and its files and shared memory are removed."""
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)
        await asyncio.to_thread(ray.shutdown)
        if self._janitor is not None and self._janitor.stdin is not None:
            self._janitor.stdin.close()
            await asyncio.to_thread(self._janitor.wait)

    def start_counting(self) -> None:
        """Sees to it that `num_slots` follows the cluster, to which nodes may come, and from which they may go."""
        self._counting = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            try:
                self._num_slots = await asyncio.to_thread(_num_slots)
            except Exception:
                logger.exception("the nodes of the Ray cluster could not be counted; trying again")

    def start_janitor(self) -> None:
        """Sees to it that nothing stays behind even if this process is killed."""
        assert self._directory is not None
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", "service.janitor", str(self._directory), self.segment_pattern],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the service
        )


def capacity_for(job: Job, workers: int, *, most: int) -> int:
    """The seats in a job's segment: for all workers it may have now, and for more where they cost no memory."""
    shards = job.spec.training.shards
    needed = max(workers, min(max(job.max_workers, job.spec.workers.max), most))
    slots = max_slots(needed, shards)
    return max(
        seats for seats in range(needed, max(needed, min(shards, most)) + 1) if max_slots(seats, shards) == slots
    )


async def open_remote_cluster(
    address: str, *, identity: str, policy: CheckpointPolicy = CheckpointPolicy()
) -> RayCluster:
    """Connects to a running Ray cluster, such as "192.0.2.1:6379" or "auto". `identity` tells services apart there."""
    try:
        await asyncio.to_thread(
            ray.init,
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": dict(ENVIRONMENT)},
        )
    except Exception as error:
        raise ClusterError(f"cannot reach Ray at {address}: {' '.join(str(error).split())[:300]}") from error
    slots = await asyncio.to_thread(_num_slots)
    cluster = RayCluster(num_slots=slots, token=identity, directory=None, policy=policy)
    cluster.start_counting()
    return cluster


def _num_slots() -> int:
    """Processors of all nodes that Ray believes to be alive."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray has no types here
    return sum(int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"])


def _survivor(coordinator: ActorHandle[Any], there: Situation) -> Survivor:
    run = RayRun(coordinator, there.segment, capacity=there.capacity)
    return Survivor(run, there.workers, there.slots_held)
