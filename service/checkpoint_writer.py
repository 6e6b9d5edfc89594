"""Writes a job's checkpoints beside its training, one at a time; a failure is a report, never an exception."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.jobs import CheckpointFailed, CheckpointSaved
from service.runs import Report
from service.worker_group import Order, WorkerGroup
from worker import checkpoint
from worker.replica import identity_of
from worker.spec import JobSpec


class CheckpointWriter:
    """Writes a job's checkpoints beside its training, one at a time."""

    def __init__(self, spec: JobSpec, order: Order, group: WorkerGroup) -> None:
        self._spec, self._order, self._group = spec, order, group
        self._writing: asyncio.Task[checkpoint.Published | None] | None = None

    async def start(self, report: Callable[[Report], None]) -> None:
        """Copies the committed state, which stands still now, and writes it to disk while training goes on."""
        await self.wait()
        self._writing = asyncio.create_task(self._write(self._snapshot(), report))

    async def wait(self) -> checkpoint.Published | None:
        """The checkpoint that was started last, once it is there; None where it could not be written."""
        return None if self._writing is None else await self._writing

    def _snapshot(self) -> checkpoint.TrainingState:
        segment = self._group.segment
        step = segment.control.committed
        states = zip(self._group.facts.state_names, segment.state(step), strict=True)
        return checkpoint.TrainingState(
            step,
            segment.weights(step).copy(),
            {name: vector.copy() for name, vector in states},
            segment.control.loss_scale(step),
        )

    async def _write(
        self, state: checkpoint.TrainingState, report: Callable[[Report], None]
    ) -> checkpoint.Published | None:
        started = time.monotonic()
        try:
            published = await asyncio.to_thread(
                checkpoint.publish,
                self._order.checkpoints,
                state,
                tensors=self._group.facts.tensors,
                description=self._group.facts.description,
                job=identity_of(self._spec),
                keep=self._spec.checkpoint.keep,
            )
        except OSError as error:
            report(CheckpointFailed(state.step, one_line(error)))
            return None
        seconds = time.monotonic() - started
        digest, size = published.weights_digest, published.size_bytes
        report(CheckpointSaved(state.step, str(published.path), digest, size, seconds))
        return published


def one_line(error: BaseException) -> str:
    """An error by its kind and what it says, short enough for an event."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
