"""Writes a job's checkpoints beside its training, one at a time; a failure is a report, never an exception."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np

from service.checkpoints import RETRY_PAUSES
from service.jobs import CheckpointFailed, CheckpointSaved
from service.node import NodeLostError
from service.order import Order
from service.runs import Report
from service.worker_group import WorkerGroup
from worker import checkpoint
from worker.checkpoint_store import open_store
from worker.spec import JobSpec


class CheckpointWriter:
    """Writes a job's checkpoints beside its training, one at a time."""

    def __init__(
        self,
        spec: JobSpec,
        order: Order,
        group: WorkerGroup,
        *,
        report: Callable[[Report], None],
        pauses: Sequence[float] = RETRY_PAUSES,
    ) -> None:
        self._spec, self._order, self._group = spec, order, group
        self._report, self._pauses = report, pauses
        self._writing: asyncio.Task[checkpoint.Published | None] | None = None
        self._copies: list[checkpoint.Floats] = []
        self._reserving: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """Begins to reserve memory for the copies, beside the first steps: fresh pages cost six times the copy."""
        if self._reserving is None:
            self._reserving = self._reserve_beside()

    async def start(self, step: int) -> None:
        """Copies the committed state, that of `step`, which stands still now, and writes it while training goes on.

        Waits for the checkpoint before, if that is still being written: each one asked for is there in the end. Raises
        NodeLostError where nobody has that step any more.
        """
        await self._prepared()
        self._writing = asyncio.create_task(self._write(await self._snapshot(step)))

    async def wait(self) -> None:
        """Returns when what was started is written, or could not be."""
        if self._writing is not None:
            await self._writing

    async def finish(self, step: int) -> checkpoint.Published | None:
        """Writes the last state, the trained model. Tries again and again, for all the work would be lost with it.

        Raises NodeLostError as `start` does.
        """
        await self._prepared()
        state = await self._snapshot(step)
        for pause in self._pauses:
            if (published := await self._write(state, pause)) is not None:
                return published
            await asyncio.sleep(pause)
        return await self._write(state)

    async def _prepared(self) -> None:
        await self.wait()
        if self._reserving is None:
            self._reserving = self._reserve_beside()
        await self._reserving

    def _reserve_beside(self) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.to_thread(self._reserve))

    def _reserve(self) -> None:
        shape = self._group.facts.shape
        vectors = range(1 + shape.num_states)
        self._copies = [np.ones(shape.num_parameters, np.float32) for _ in vectors]  # ones, for zeros touch no page

    async def _snapshot(self, step: int) -> checkpoint.TrainingState:
        """A copy of the committed state. Training waits for this alone; the next copy takes the same memory."""
        node = self._group.furthest
        if node.committed != step:
            raise NodeLostError(f"nobody has step {step} any more")
        loss_scale = await node.copy_state(step, self._copies)
        weights, *states = self._copies
        named = dict(zip(self._group.facts.state_names, states, strict=True))
        return checkpoint.TrainingState(step, weights, named, loss_scale)

    async def _write(self, state: checkpoint.TrainingState, pause: float | None = None) -> checkpoint.Published | None:
        started, facts = time.monotonic(), self._group.facts
        try:
            published = await asyncio.to_thread(
                lambda: checkpoint.publish(
                    open_store(self._order.checkpoints),
                    state,
                    tensors=facts.tensors,
                    description=facts.description,
                    origin=facts.origin,
                    keep=self._spec.checkpoint.keep,
                )
            )
        except OSError as error:
            again = "" if pause is None else f"; tried again in {pause:g} s"
            self._report(CheckpointFailed(state.step, one_line(error) + again))
            return None
        seconds = time.monotonic() - started
        digest, size = published.weights_digest, published.size_bytes
        self._report(CheckpointSaved(state.step, published.location, digest, size, seconds))
        return published


def one_line(error: BaseException) -> str:
    """An error by its kind and what it says, short enough for an event."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
