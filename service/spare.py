"""A worker in reserve: its process is there and has imported everything, so that a replacement has only to load.

Starting a process and importing takes the largest part of a replacement's time. A spare takes no processor slot, for it
does nothing; it is kept where its node has a slot free, so that a full node's memory is left to those who train.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from service.placement import free_slots
from service.seats import Worker

CALM_SECONDS = 3.0  # a job that has just begun, or just lost a worker, has better use for the processor
NO_SEAT = -1


class Spare:
    """At most one worker without a seat, of the same kind as the others. Knows nothing of the job."""

    def __init__(self, options: Mapping[str, Any], *, place: str) -> None:
        self._options, self._place = {**options, "num_cpus": 0}, place
        self._worker: Worker | None = None
        self._preparing: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """Has a spare there some seconds from now, if there is none and the node has room."""
        if self._worker is None and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare())

    def take(self, place: str) -> Worker | None:
        """The spare, if there is one on this node; it needs a seat. Should it have died, its start fails like any."""
        if place != self._place:
            return None
        worker, self._worker = self._worker, None
        return worker

    async def end(self) -> None:
        """Ends it."""
        if self._preparing is not None:
            self._preparing.cancel()
        if self._worker is not None:
            await self._worker.dismiss()
            self._worker = None

    async def _prepare(self) -> None:
        try:
            await asyncio.sleep(CALM_SECONDS)
            if await asyncio.to_thread(_node_has_room, self._place):
                self._worker = Worker.launch(NO_SEAT, self._options, place=self._place)
        finally:
            self._preparing = None


def _node_has_room(node: str) -> bool:
    return free_slots().get(node, 0) >= 1
