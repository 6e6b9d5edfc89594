"""What a coordinator reads off its job's control pages: steps as they are committed, speed, time spent by phase."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

from service.jobs import Progress
from service.node import Node, NodeLostError
from service.nodes import Nodes
from service.runs import StepSample
from worker.reduce.segment import PHASES
from worker.spec import JobSpec

SPEED_WINDOW_SECONDS = 5.0  # training speed is that of the last seconds


class Observer:
    """Reads a job's segments while its workers write them; never waits for them and never makes them wait.

    Of steps that nobody has read for long only the newest are there: about 7/8 of a ring.
    """

    def __init__(self, nodes: Nodes, spec: JobSpec, *, committed: int) -> None:
        self._nodes: Nodes | None = nodes
        self._training = spec.training
        self._next = committed + 1  # the first step not seen yet
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), committed)])
        self._samples: list[StepSample] = []  # read, and not told yet
        self._phase_seconds: Mapping[str, float] = {}
        self._loss: float | None = None

    async def read(self) -> tuple[tuple[StepSample, ...], Mapping[str, float]]:
        """The steps committed since the last call, oldest first, and the seconds by phase over all workers."""
        await self.look()
        samples, self._samples = tuple(self._samples), []
        return samples, self._phase_seconds

    def let_go(self) -> None:
        """Needs the nodes no longer; what was last seen of them is still told."""
        self._nodes = None

    async def look(self) -> None:
        """Takes in the steps of a node that is furthest: what a node copies from another is not in its own ring."""
        nodes = self._nodes
        if nodes is None:
            return
        await nodes.look()
        self._phase_seconds = dict(zip(PHASES, nodes.phase_seconds().tolist(), strict=True))
        for node in sorted(nodes.bearing(), key=_furthest_first):
            with suppress(NodeLostError):
                await self._take_in(node)
                return

    async def _take_in(self, node: Node) -> None:
        committed = node.committed
        records = await node.records(self._next, committed)
        self._samples += [_sample(record) for record in records if record[0] >= self._next]
        if self._samples:
            self._loss = self._samples[-1].loss
        self._next = max(self._next, committed + 1)
        self._note(committed)

    @property
    def progress(self) -> Progress:
        """How far the job is, as of the last `read`; `current_workers` is not known here."""
        (then, earlier), (now, committed) = self._seen[0], self._seen[-1]
        steps_per_second = (committed - earlier) / (now - then) if committed > earlier else None
        remaining = self._training.max_steps - committed
        return Progress(
            steps_completed=committed,
            loss=self._loss,
            samples_per_second=steps_per_second and steps_per_second * self._training.global_batch_size,
            estimated_remaining_seconds=steps_per_second and remaining / steps_per_second,
        )

    def _note(self, committed: int) -> None:
        now = time.monotonic()
        self._seen.append((now, committed))
        while len(self._seen) > 2 and now - self._seen[0][0] > SPEED_WINDOW_SECONDS:
            self._seen.popleft()


def _furthest_first(node: Node) -> tuple[int, int]:
    return -node.committed, node.number


def _sample(record: list[float]) -> StepSample:
    """A record of the ring; `worker.update` says what stands where."""
    step, loss, gradient_norm, learning_rate, seconds, is_clipped, is_non_finite, _ = record
    return StepSample(
        int(step),
        loss=loss,
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        seconds=seconds,
        is_clipped=bool(is_clipped),
        is_non_finite=bool(is_non_finite),
    )
