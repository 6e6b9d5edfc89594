"""A worker's clock: how long each phase of its steps takes, and where it is right now.

Both go to its seat's lines of the control page: the sums for the metrics, the pulse for whoever watches over it.
"""

from __future__ import annotations

import time

from worker.reduce.segment import PHASES, STAGES, Control

NO_SHARDS = range(0)
_STAGE = {name: number for number, name in enumerate(STAGES)}
_COUNTS_AS = {"norm": "update", "commit": "update"}  # too short for sums of their own
_PHASE = [PHASES.index(phase) if (phase := _COUNTS_AS.get(stage, stage)) in PHASES else -1 for stage in STAGES]


class PhaseClock:
    """Adds up the seconds that the worker in a seat spends in each phase, and says at what stage it is."""

    def __init__(self, control: Control, seat: int) -> None:
        self.seat = seat
        self._pulse = control.pulse_words(seat)
        seconds = memoryview(control.phase_seconds[seat])
        self._seconds = seconds.cast("B").cast("d")  # elements of an array cost several times as much
        self._phase, self._since = -1, 0

    def enter(self, stage: str) -> None:
        """What was done until now belongs to the stage before; from now on it is `stage`."""
        number = _STAGE[stage]
        now = time.monotonic_ns()
        self._pulse[0] = number
        self._pulse[1] = now
        if self._phase >= 0:
            self._seconds[self._phase] += (now - self._since) * 1e-9
        self._phase, self._since = _PHASE[number], now

    def work_on(self, step: int, shards: range = NO_SHARDS) -> None:
        """Says which shards of which step are computed, so that a death there can be told from others."""
        self._pulse[2] = step
        self._pulse[4], self._pulse[5] = shards.start, shards.stop
