"""Who waits for news of a job, and how they are woken.

Nothing is queued: a watcher that is woken reads the events it has not had and the newest state of the job. A slow
reader therefore costs no memory and holds nobody up.
"""

from __future__ import annotations

import asyncio

from service.errors import Unavailable


class Feed:
    """One signal a job, replaced each time it has fired."""

    def __init__(self) -> None:
        self._signals: dict[str, asyncio.Event] = {}
        self._is_closed = False

    def next_change(self, job_id: str) -> asyncio.Event:
        """What fires at the job's next change. Take it before reading the job, or a change is missed."""
        if self._is_closed:
            raise Unavailable("the service stops; watch again when it is back", reason="STOPPING")
        return self._signals.setdefault(job_id, asyncio.Event())

    def notify(self, job_id: str) -> None:
        """Wakes everyone who waits for this job."""
        if (signal := self._signals.pop(job_id, None)) is not None:
            signal.set()

    def close(self) -> None:
        """Wakes everyone for the last time: they meet Unavailable."""
        self._is_closed = True
        for job_id in list(self._signals):
            self.notify(job_id)
