"""How a worker whose process is there gets as far as to take part: data, kernels, its node's segment, its seat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.jobs import CompilationFinished, CompilationStarted
from service.order import Order
from service.resumption import RefusedError, check_alike, create_segment
from service.runs import Report
from service.seats import Worker
from worker.replica import Facts


class Startup:
    """Brings the workers of one job up, several at once. `report` is told what the user should know."""

    facts: Facts  # of the job; there once the first worker is up

    def __init__(self, order: Order, report: Callable[[Report], None]) -> None:
        self._order, self._report = order, report
        self._creating, self._compiling = asyncio.Lock(), asyncio.Lock()
        self.has_segment = False

    async def prepare(self, worker: Worker) -> None:
        """Lets a worker read the data, build the model and map the segment."""
        order, actor, node = self._order, worker.actor, worker.node
        assert node is not None
        facts = await actor.load.remote(order.spec_json, capacity=order.capacity)
        if not isinstance(facts, Facts):
            raise RefusedError(facts)
        await self._rehearse(worker)
        async with self._creating:
            if self.has_segment:
                check_alike(facts, self.facts, allow_different_numerics=order.allow_different_numerics)
            if not self.has_segment or node.view is None:
                await self._create_segment(worker, facts)
        await actor.join.remote(node.path, worker.seat)
        if order.token:
            worker.address = await actor.listen.remote(order.token)

    async def _rehearse(self, worker: Worker) -> None:
        """Lets a worker load its kernels. What the cache lacks one worker compiles, so that the others can load it."""

        async def rehearse(*, may_compile: bool) -> int | None:
            num_kernels: int | None = await worker.actor.rehearse.remote(may_compile=may_compile)
            return num_kernels

        if await rehearse(may_compile=False) is not None:
            return
        async with self._compiling:
            if await rehearse(may_compile=False) is not None:  # another worker has compiled them
                return
            started = time.monotonic()
            self._report(CompilationStarted(worker.seat))
            num_kernels = await rehearse(may_compile=True)
            self._report(CompilationFinished(num_kernels or 0, time.monotonic() - started))

    async def _create_segment(self, worker: Worker, facts: Facts) -> None:
        """The segment of a worker's node: the job's first with the newest saved or the first weights, others empty."""
        node = worker.node
        assert node is not None
        await node.clear()  # of what a worker that died making it has left
        if self.has_segment:
            await worker.actor.create_empty_segment.remote(node.path)
            await node.attach(facts.shape)
            return
        await create_segment(
            worker.actor,
            node.path,
            self._order.checkpoints,
            allow_different_numerics=self._order.allow_different_numerics,
            report=self._report,
        )
        self.facts = facts
        await node.attach(facts.shape)
        self.has_segment = True
