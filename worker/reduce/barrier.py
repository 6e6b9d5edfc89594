"""Waiting for the other workers of a plan, through counters in shared memory.

Each worker has a counter on a cache line of its own, which only it writes. To wait is to raise it by one and to
watch until every other worker's counter has come as far. Nobody waits for the dead: a wait also watches the
epoch of the coordinator's plan, and gives up with `PlanChangedError` when it is no longer the one it started under.

A plan's counters start at its epoch times 2^32: whatever a worker of an earlier plan left counts as not arrived.

A wait that gives up and one that does not can belong to the same barrier: when all members have come, it holds for
each of them, dead or alive, whenever it looks; one that looked before the last had come may have given up.
`worker.update` says why this is safe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from worker.reduce.kernels import fence
from worker.reduce.segment import LINE, Control

SPINS = 2000  # looks before the first sleep: about a millisecond, longer than workers in step are apart
SLEEP_SECONDS = 50e-6


class PlanChangedError(Exception):
    """The coordinator gave up the plan under which this worker works, because another worker was lost."""


class Barrier:
    """A barrier over the members of one plan, as the one in `seat`. All make theirs before the first of them waits."""

    def __init__(self, control: Control, seat: int, *, members: Sequence[int], epoch: int) -> None:
        self._control, self._arrivals = control, control.arrivals
        self._mine = seat * LINE
        self._others = [other * LINE for other in members if other != seat]
        self._epoch = epoch
        self._count = max(self._arrivals[self._mine], epoch << 32)

    def check(self) -> None:
        """Raises PlanChangedError when the plan is no longer the one of this barrier."""
        if self._control.epoch != self._epoch:
            raise PlanChangedError

    def give_up(self) -> None:
        """Makes all members on this node give up the plan; only for a member that is still in it."""
        self._control.abandon_plan(self._epoch)

    def wait(self) -> None:
        """Returns when every worker has come here; what each wrote before, all see after. Raises PlanChangedError."""
        self._count += 1
        fence()
        self._arrivals[self._mine] = self._count
        spins = 0
        for other in self._others:
            while self._arrivals[other] < self._count:
                self.check()
                spins += 1
                if spins < SPINS:
                    os.sched_yield()
                else:
                    time.sleep(SLEEP_SECONDS)
        fence()
