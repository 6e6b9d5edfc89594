"""What a coordinator reads off its job's control page: steps as they are committed, speed, time spent by phase."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from service.jobs import Progress
from service.runs import StepSample
from worker.reduce.segment import PHASES, RING_STEPS, Control, Segment
from worker.spec import JobSpec

SPEED_WINDOW_SECONDS = 5.0  # training speed is that of the last seconds


class SegmentObserver:
    """Reads a job's segment while its workers write it; never waits for them and never makes them wait.

    Of steps that nobody has read for long only the newest are there: about 7/8 of RING_STEPS.
    """

    def __init__(self, segment: Segment, spec: JobSpec) -> None:
        self._control: Control | None = segment.control
        self._training = spec.training
        self._samples: list[StepSample] = []  # read, and not told yet
        self._phase_seconds: Mapping[str, float] = {}
        self._next = segment.control.committed + 1  # the first step not seen yet
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), segment.control.committed)])
        self._loss: float | None = None

    def read(self) -> tuple[tuple[StepSample, ...], Mapping[str, float]]:
        """The steps committed since the last call, oldest first, and the seconds by phase over all workers."""
        if self._control is not None:
            self._look(self._control)
        samples, self._samples = tuple(self._samples), []
        return samples, self._phase_seconds

    def let_go(self) -> None:
        """Looks for the last time, and needs the segment no longer."""
        if self._control is not None:
            self._look(self._control)
            self._control = None

    def _look(self, control: Control) -> None:
        committed = control.committed
        self._next = max(self._next, committed - RING_STEPS + RING_STEPS // 8)  # older ones may be overwritten
        for step in range(self._next, committed + 1):
            record = control.ring[step % RING_STEPS].tolist()
            if record[0] == step:
                self._samples.append(_sample(record))
        if self._samples:
            self._loss = self._samples[-1].loss
        self._next = committed + 1
        self._note(committed)
        self._phase_seconds = dict(zip(PHASES, control.phase_seconds.sum(axis=0).tolist(), strict=True))

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
