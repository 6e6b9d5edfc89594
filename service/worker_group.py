"""The worker actors of one job and the segment they share: started together, called together, replaced one by one.

A death is an answer here, not an accident: whoever calls the group gets `WorkersLostError` with the ranks, after the
plan was abandoned and every worker that lives has come back from it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from service.jobs import CompilationFinished, CompilationStarted
from service.runs import Report
from worker.actor import WorkerActor
from worker.reduce.segment import Segment
from worker.replica import Facts
from worker.violations import Violation

ABANDON_SECONDS = 10.0  # a worker that does not come back from an abandoned plan in this time hangs, and is killed

Worker = ActorHandle[Any]


@dataclass(frozen=True)
class Order:
    """What a coordinator is to run and where. `worker_options` are Ray's, for each worker actor."""

    job_id: str
    spec_json: str
    num_workers: int
    segment: Path
    checkpoints: Path
    worker_options: Mapping[str, Any]


class RefusedError(Exception):
    """The job's data or model do not work, on any worker."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(map(str, violations)))


class WorkersLostError(Exception):
    """Workers of these ranks are dead."""

    def __init__(self, ranks: Sequence[int], cause: str) -> None:
        super().__init__(f"lost {'worker' if len(ranks) == 1 else 'workers'} {', '.join(map(str, ranks))}: {cause}")
        self.ranks, self.cause = tuple(ranks), cause


class WorkerGroup:
    """All workers of a job, in one segment. `start` makes one, `end` ends it."""

    segment: Segment
    facts: Facts

    def __init__(self, order: Order, report: Callable[[Report], None]) -> None:
        self._order, self._report = order, report
        self._workers: list[Worker] = []
        self._epoch_is_open = False

    @classmethod
    async def start(cls, order: Order, report: Callable[[Report], None]) -> Self:
        """Workers with their data, the segment with the newest saved or the first weights, and all of them in it.

        What the workers compile is reported. Raises RefusedError, WorkersLostError; nothing is left then.
        """
        group = cls(order, report)
        try:
            group._workers = [group._new_worker() for _ in range(order.num_workers)]
            group.facts = (await group._load(range(order.num_workers)))[0]
            await group._answers({0: group._workers[0].create_segment.remote(order.segment, order.checkpoints)})
            await group._join(range(order.num_workers))
            group.segment = Segment.attach(order.segment, group.facts.shape)
        except BaseException:
            group.end()
            raise
        return group

    def __len__(self) -> int:
        return len(self._workers)

    async def run(self, until_step: int) -> list[Any]:
        """Lets the workers train alone up to a step; their legs, by rank. Raises WorkersLostError."""
        epoch = self.segment.control.open_plan()
        self._epoch_is_open = True
        try:
            return await self.all("run", until_step, epoch=epoch)
        finally:
            self._epoch_is_open = False

    async def all(self, method: str, *arguments: object, **keywords: object) -> list[Any]:
        """The answers of all workers to the same call, by rank. Raises WorkersLostError."""
        calls = {r: getattr(w, method).remote(*arguments, **keywords) for r, w in enumerate(self._workers)}
        return await self._answers(calls)

    async def replace(self, ranks: Sequence[int]) -> None:
        """New workers in the place of dead ones; the others keep what they have loaded. Raises WorkersLostError."""
        for rank in ranks:
            self._workers[rank] = self._new_worker()
        await self._load(ranks)
        await self._join(ranks)

    def end(self) -> None:
        """Kills the workers and removes the segment; nothing of the group is left but files on disk."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        self._order.segment.unlink(missing_ok=True)

    def _new_worker(self) -> Worker:
        return cast("Worker", WorkerActor.options(**self._order.worker_options).remote())

    async def _load(self, ranks: Sequence[int]) -> list[Facts]:
        order = self._order
        loads = {r: self._workers[r].load.remote(order.spec_json, num_workers=order.num_workers) for r in ranks}
        answers: list[Facts | tuple[Violation, ...]] = await self._answers(loads)
        for answer in answers:
            if not isinstance(answer, Facts):
                raise RefusedError(answer)
        await self._rehearse(ranks)
        return cast("list[Facts]", answers)

    async def _rehearse(self, ranks: Sequence[int]) -> None:
        """Has workers load their kernels. What the cache lacks one of them compiles, so that the others can load it."""

        async def rehearse(ranks: Sequence[int], *, may_compile: bool) -> list[int | None]:
            calls = {rank: self._workers[rank].rehearse.remote(may_compile=may_compile) for rank in ranks}
            return await self._answers(calls) if calls else []

        found = await rehearse(ranks, may_compile=False)
        lacking = [rank for rank, num_kernels in zip(ranks, found, strict=True) if num_kernels is None]
        if not lacking:
            return
        started = time.monotonic()
        self._report(CompilationStarted(lacking[0]))
        compiled = [*await rehearse(lacking[:1], may_compile=True), *await rehearse(lacking[1:], may_compile=True)]
        self._report(CompilationFinished(sum(filter(None, compiled)), time.monotonic() - started))

    async def _join(self, ranks: Sequence[int]) -> None:
        await self._answers({rank: self._workers[rank].join.remote(self._order.segment, rank) for rank in ranks})

    async def _answers(self, calls: Mapping[int, Any]) -> list[Any]:
        """The answers to calls by rank, once every worker has answered or is dead.

        At the first that cannot answer the plan is abandoned, so that the others come back; ones that hang are killed.
        """
        tasks = {rank: asyncio.ensure_future(_answer(call)) for rank, call in calls.items()}
        _, pending = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            if self._epoch_is_open:
                self.segment.control.abandon_plan()
            _, hanging = await asyncio.wait(pending, timeout=ABANDON_SECONDS)
            for rank, task in tasks.items():
                if task in hanging:
                    ray.kill(self._workers[rank])
            await asyncio.wait(tasks.values())
        errors = {rank: task.exception() for rank, task in tasks.items()}
        lost = [rank for rank, error in errors.items() if isinstance(error, RayActorError)]
        faults = [error for error in errors.values() if error is not None and not isinstance(error, RayActorError)]
        if faults:  # raised by our own code in a worker that lives
            raise faults[0].cause if isinstance(faults[0], RayTaskError) else faults[0]
        if lost:
            raise WorkersLostError(lost, "process died")
        return [task.result() for task in tasks.values()]


async def _answer(call: Any) -> Any:
    return await call
