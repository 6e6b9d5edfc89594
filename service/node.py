"""One node's side of a job: its segment, as the coordinator reads and writes it, and the processes of its workers.

`LocalNode` is the coordinator's own. `service.remote_node` is any other: an agent there has a LocalNode, and does with
it what it is told. Whoever cannot reach a node any more has lost it, with all its workers: what they write is their own
node's memory, and nobody hears them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from service.processes import Process
from worker.loss_scale import LossScale
from worker.reduce.segment import NOTHING, RING_STEPS, Doubles, Floats, Pulse, Segment, Shape

MEDIAN_STEPS = 50  # the newest ones, for the median duration of a step

Record = list[float]  # of a step, as it stands in the ring


class NodeLostError(Exception):
    """A node, or the coordinator's way to it, is gone."""


@dataclass(frozen=True)
class View:
    """What a node's control page says at one moment, `at` seconds of the coordinator's monotonic clock."""

    at: float
    committed: int
    epoch: int
    pulses: tuple[Pulse, ...]  # by seat
    phase_seconds: Doubles  # (seats, phases)
    step_seconds: float  # the median of the newest steps


class Held(Protocol):
    """A process that must be known to be dead before its seat is used again."""

    @property
    def has_ended(self) -> bool:
        """Whether it is surely dead, or out of reach together with its node."""
        ...

    async def ended(self) -> None:
        """Returns when that is so."""
        ...

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        ...

    def close(self) -> None:
        """Lets go of one that has ended."""
        ...


class Node(Protocol):
    """One node's side of a job. What is awaited raises NodeLostError once the node is lost; the rest does nothing."""

    number: int  # in plans
    path: Path  # of its segment
    lost: str  # why it is out of reach; "" while it is not
    view: View | None  # of the last look; None without a segment

    @property
    def committed(self) -> int:
        """Committed steps as far as is known here; NOTHING without a state of the job."""
        ...

    async def clear(self) -> None:
        """Removes the file of the segment, if there is one; who has mapped it keeps it."""
        ...

    async def attach(self, shape: Shape) -> None:
        """Maps the segment, which one of its workers has made."""
        ...

    async def look(self) -> None:
        """Makes `view` that of this moment, where there is a segment."""
        ...

    async def open_plan(self, epoch: int) -> None:
        """Starts the next plan; only between legs."""
        ...

    def abandon_plan(self, epoch: int) -> None:
        """Makes its workers give up this plan, unless they have."""
        ...

    def request_stop(self) -> None:
        """Makes the workers of its plan, all nodes' at once, stop at the next step boundary."""
        ...

    async def records(self, first: int, last: int) -> list[Record]:
        """What is known here of the steps from `first` to `last`, oldest first."""
        ...

    async def copy_state(self, step: int, into: Sequence[Floats]) -> LossScale:
        """Copies weights and optimizer state of a step, (P,) each; between legs only. Returns its loss scale."""
        ...

    async def hold(self, process_id: int, *, start_time: int) -> Held:
        """The process of a worker that is there."""
        ...

    async def end(self) -> None:
        """Removes the file of the segment and lets go of the node."""
        ...


class LocalNode:
    """The node that this process is on."""

    lost = ""

    def __init__(self, path: Path, *, number: int = 0) -> None:
        self.number, self.path = number, path
        self.segment: Segment | None = None
        self.view: View | None = None

    def __repr__(self) -> str:
        return f"<LocalNode {self.number}, {self.segment or 'no segment'}>"

    @property
    def committed(self) -> int:
        """See Node; here it is what the workers have committed by now."""
        if self.segment is not None:
            return self.segment.control.committed
        return NOTHING if self.view is None else self.view.committed

    async def clear(self) -> None:
        """See Node."""
        self.path.unlink(missing_ok=True)

    async def attach(self, shape: Shape) -> None:
        """See Node."""
        self.segment = Segment.attach(self.path, shape)
        await self.look()

    async def look(self) -> None:
        """See Node."""
        if self.segment is None:
            return
        control = self.segment.control
        committed = control.committed
        recent = self._records(max(1, committed - MEDIAN_STEPS + 1), committed)
        self.view = View(
            time.monotonic(),
            committed,
            control.epoch,
            tuple(control.pulse(seat) for seat in range(control.num_seats)),
            control.phase_seconds.copy(),
            statistics.median([record[4] for record in recent] or [0.0]),
        )

    async def open_plan(self, epoch: int) -> None:
        """See Node."""
        control = self._mapped.control
        control.stop_requested = False
        control.open_plan(epoch)

    def abandon_plan(self, epoch: int) -> None:
        """See Node."""
        if self.segment is not None and self.segment.control.epoch == epoch:
            self.segment.control.abandon_plan(epoch)

    def request_stop(self) -> None:
        """See Node."""
        if self.segment is not None:
            self.segment.control.stop_requested = True

    async def records(self, first: int, last: int) -> list[Record]:
        """See Node."""
        return self._records(first, last)

    def _records(self, first: int, last: int) -> list[Record]:
        ring = self._mapped.control.ring
        first = max(first, last - RING_STEPS + RING_STEPS // 8)  # older ones may be overwritten
        found: list[Record] = [ring[step % RING_STEPS].tolist() for step in range(first, last + 1)]
        return [record for step, record in enumerate(found, first) if record[0] == step]

    async def copy_state(self, step: int, into: Sequence[Floats]) -> LossScale:
        """See Node."""
        for copy, vector in zip(into, self.state(step), strict=True):
            np.copyto(copy, vector)
        return self.loss_scale(step)

    def state(self, step: int) -> list[Floats]:
        """Weights and optimizer state of a step, (P,) each, where they lie."""
        return [self._mapped.weights(step), *self._mapped.state(step)]

    def loss_scale(self, step: int) -> LossScale:
        """That which belongs to the weights of a step."""
        return self._mapped.control.loss_scale(step)

    async def copy_from(self, node: Node) -> None:
        """Takes over another node's committed state; only between legs, and where no worker could do it."""
        control, step = self._mapped.control, node.committed
        control.commit(NOTHING)  # what is here may be overwritten
        control.set_loss_scale(step, await node.copy_state(step, self.state(step)))
        control.commit(step)

    async def hold(self, process_id: int, *, start_time: int) -> Held:
        """See Node."""
        return Process.hold(process_id, start_time=start_time)

    async def end(self) -> None:
        """See Node."""
        await self.look()
        await self.clear()
        self.segment = None  # its memory is the node's again, however long the coordinator stays

    @property
    def _mapped(self) -> Segment:
        assert self.segment is not None, "attach comes first"
        return self.segment
