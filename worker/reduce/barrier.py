"""Waiting for the other workers of a node, through counters in shared memory.

Each worker has a counter on a cache line of its own, which only it writes. To wait is to raise it by one and to
watch until every other worker's counter has come as far. Nobody waits for the dead: a wait also watches the
epoch of the coordinator's plan, and gives up with `PlanChangedError` when it is no longer the one it started under.
"""

from __future__ import annotations

import os
import time

from worker.reduce.kernels import fence
from worker.reduce.segment import LINE, Control

SPINS = 2000  # looks before the first sleep: about a millisecond, longer than workers in step are apart
SLEEP_SECONDS = 50e-6


class PlanChangedError(Exception):
    """The coordinator gave up the plan under which this worker was waiting, because another worker was lost."""


class Barrier:
    """A barrier over the workers of one plan. Its counters start out equal, as a leg that ended well left them."""

    def __init__(self, control: Control, rank: int, *, num_workers: int, epoch: int) -> None:
        self._control, self._arrivals = control, control.arrivals
        self._mine = rank * LINE
        self._others = [other * LINE for other in range(num_workers) if other != rank]
        self._epoch = epoch
        self._count = self._arrivals[self._mine]

    def wait(self) -> None:
        """Returns when every worker has come here; what each wrote before, all see after. Raises PlanChangedError."""
        self._count += 1
        fence()
        self._arrivals[self._mine] = self._count
        spins = 0
        for other in self._others:
            while self._arrivals[other] < self._count:
                if self._control.epoch != self._epoch:
                    raise PlanChangedError
                spins += 1
                if spins < SPINS:
                    os.sched_yield()
                else:
                    time.sleep(SLEEP_SECONDS)
        fence()
