"""Processes of this node that must be known to be dead: held by a descriptor, so that a number used again fools nobody.

Linux alone has process descriptors (pidfd); one becomes readable when every thread of its process has let go of its
memory. A stopped process can be killed like any other.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from contextlib import suppress

from worker.process import start_time_of


class Process:
    """A process held by descriptor. `hold` makes one, `close` lets go of it."""

    def __init__(self, process_id: int, descriptor: int | None) -> None:
        self.process_id = process_id
        self._descriptor = descriptor  # None: it had ended before it could be held

    def __repr__(self) -> str:
        return f"<Process {self.process_id}, {'ended' if self.has_ended else 'alive'}>"

    @classmethod
    def hold(cls, process_id: int, *, start_time: int) -> Process:
        """The process that started then; one that has ended since counts as ended, whoever has its number now."""
        try:
            descriptor = os.pidfd_open(process_id)
        except ProcessLookupError:
            return cls(process_id, None)
        if start_time_of(process_id) != start_time:
            os.close(descriptor)
            return cls(process_id, None)
        return cls(process_id, descriptor)

    @property
    def has_ended(self) -> bool:
        """Whether it is surely dead."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    async def ended(self) -> None:
        """Returns when it is surely dead."""
        if self.has_ended:
            return
        assert self._descriptor is not None
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(self._descriptor)

    def kill(self) -> None:
        """Ends it by SIGKILL, which no process can refuse or sleep through."""
        if self._descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def close(self) -> None:
        """Lets go of a process that has ended."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
