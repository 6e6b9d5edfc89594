"""What a run has to tell and the service has not stored yet: numbered, so that every report is taken exactly once.

The service passes the number up to which it has stored them; only then are they forgotten here. A service that dies
between the two asks again, and gets the same. Pure: knows neither Ray nor time.
"""

from __future__ import annotations

from collections import deque

from service import limits
from service.jobs import CheckpointFailed, CheckpointSaved, Evaluation, WorkersChanged, WorkerSlow
from service.runs import ENDS, Report

EXPENDABLE = (Evaluation, CheckpointSaved, CheckpointFailed, WorkersChanged, WorkerSlow)  # no job's state is by them


class Outbox:
    """Reports, numbered from 1. How a run ended is its last one: what comes after is not taken any more."""

    def __init__(self, *, most: int = limits.MAX_PENDING_REPORTS, at_once: int = limits.REPORTS_PER_NEWS) -> None:
        self._most, self._at_once = most, at_once
        self._pending: deque[tuple[int, Report]] = deque()
        self._last = 0
        self._has_ended = False
        self.num_dropped = 0  # for want of room

    def __repr__(self) -> str:
        return f"<Outbox {len(self._pending)} of {self._last} reports pending, {self.num_dropped} dropped>"

    def add(self, report: Report) -> None:
        """Takes in what happened. Where there is no room, an older report makes way, of the least important ones."""
        if self._has_ended:
            return
        self._has_ended = isinstance(report, ENDS)
        self._last += 1
        self._pending.append((self._last, report))
        if len(self._pending) > self._most:
            expendable = (place for place, (_, old) in enumerate(self._pending) if isinstance(old, EXPENDABLE))
            del self._pending[next(expendable, 0)]
            self.num_dropped += 1

    def take(self, after: int) -> tuple[tuple[Report, ...], int]:
        """The next reports after number `after`, oldest first, and the number of the last; forgets those up to it."""
        while self._pending and self._pending[0][0] <= after:
            self._pending.popleft()
        taken = [self._pending[place] for place in range(min(len(self._pending), self._at_once))]
        return tuple(report for _, report in taken), taken[-1][0] if taken else after
