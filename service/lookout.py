"""The watch over a plan's members while they work, by what the control pages of their nodes say.

It kills who hangs, and tells when somebody turns out to be slow, or slow no more. `service.vigil` decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from service.node import Node
from service.nodes import Nodes
from service.seats import Worker
from service.vigil import LOOK_SECONDS, Paces, Vigil, Window
from worker.plan import Plan
from worker.reduce.segment import PHASES, Pulse
from worker.replica import EVALUATION_CHUNK


class Lookout:
    """Watches over one plan after the other. `furthest` is a node with the committed state."""

    def __init__(self, nodes: Nodes, furthest: Callable[[], Node], *, global_batch_size: int) -> None:
        self._nodes, self._furthest, self._global_batch_size = nodes, furthest, global_batch_size
        self._vigil = Vigil(since=0.0)
        self._out: dict[int, Worker] = {}
        self.paces = Paces()

    def begin(self, workers: Sequence[Worker]) -> None:
        """These are at work from now on."""
        self._out, self._vigil = {worker.seat: worker for worker in workers}, Vigil(since=time.monotonic())

    def note_return(self, worker: Worker) -> None:
        """It has come back, or is dead."""
        self._out.pop(worker.seat, None)

    def note_abandonment(self) -> None:
        """The others are on their way back."""
        self._vigil.restart(time.monotonic())

    def begin_paces(self, workers: Sequence[Worker]) -> None:
        """From here on speeds are compared; the nodes were looked at just now."""
        self.paces.restart(self._window(workers))

    async def watch(self, plan: Plan, workers: Sequence[Worker], *, on_change: Callable[[], None]) -> None:
        """Until it is cancelled; `on_change` is called when it has become another who is slow."""
        shares = dict(zip(plan.members, plan.shares, strict=True))
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._nodes.look()
            for seat, cause in self._hung(len(workers)).items():
                worker = self._out[seat]
                assert worker.process is not None
                worker.cause = cause
                worker.process.kill()
            if self.paces.look(self._window(workers), shares):
                on_change()

    def _hung(self, num_members: int) -> Mapping[int, str]:
        node = self._furthest()
        return self._vigil.hung(
            time.monotonic(),
            {seat: pulse_of(worker) for seat, worker in self._out.items()},
            fresh=[seat for seat, worker in self._out.items() if node.committed <= worker.first_step],
            median_step_seconds=node.view.step_seconds if node.view is not None else 0.0,
            chunk_steps=EVALUATION_CHUNK * num_members / self._global_batch_size,
        )

    def _window(self, workers: Sequence[Worker]) -> Window:
        busy, wait = {}, PHASES.index("wait")
        for worker in workers:
            assert worker.node is not None
            assert worker.node.view is not None
            seconds = worker.node.view.phase_seconds[worker.seat]
            busy[worker.seat] = float(seconds.sum() - seconds[wait])
        return Window(time.monotonic(), self._furthest().committed, busy)


def pulse_of(worker: Worker) -> Pulse:
    """A worker's, as the last look at its node saw it."""
    assert worker.node is not None
    assert worker.node.view is not None
    return worker.node.view.pulses[worker.seat]
