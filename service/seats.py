"""One worker actor in its seat: from its start until it is known to be dead."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from service.processes import Process
from worker.actor import WorkerActor

CAUSE_SECONDS = 0.25  # Ray knows within 20 ms why a worker died; survivors do not wait longer for its word
DISMISS_SECONDS = 2.0  # Ray ends a worker within milliseconds, unless it is stopped
DEATHS = (RayActorError, OutOfMemoryError)  # what Ray raises for a call to an actor that is dead or out of reach


class Standing(StrEnum):
    """How far a worker is."""

    STARTING = "starting"
    READY = "ready"
    MEMBER = "member"
    FAILED = "failed"  # to start; it is known to be dead


class Worker:
    """One worker actor in a seat."""

    def __init__(self, seat: int, actor: ActorHandle[Any]) -> None:
        self.seat, self.actor = seat, actor
        self.standing = Standing.STARTING
        self.process: Process | None = None  # None: it does not know the segment yet
        self.end: asyncio.Task[None] | None = None  # done when the process is known to be dead
        self.start: asyncio.Task[None] | None = None
        self.cause = ""  # of its death, as far as it is known
        self.first_step = -1  # committed steps when it became a member

    @classmethod
    def launch(cls, seat: int, options: Mapping[str, Any]) -> Worker:
        """A worker that Ray is about to start."""
        return cls(seat, cast("ActorHandle[Any]", WorkerActor.options(**options).remote()))

    def __repr__(self) -> str:
        return f"<Worker {self.seat}, {self.standing}, {self.process or 'no process'}>"

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be dead."""
        return self.standing is Standing.FAILED or (self.end is not None and self.end.done())

    async def hold(self) -> None:
        """Waits until its process is there; from here on its death cannot be missed. Raises what Ray raises."""
        process_id, start_time = await self.actor.identity.remote()
        self.process = Process.hold(process_id, start_time=start_time)
        self.end = asyncio.create_task(self.process.ended())

    async def kill(self, cause: str) -> None:
        """Ends it, stopped or not, and returns when it is known to be dead."""
        self.cause = self.cause or cause
        if self.process is None or self.end is None:  # there is nothing that it could write to
            ray.kill(self.actor)
            return
        self.process.kill()
        await asyncio.wait({self.end})

    async def dismiss(self) -> None:
        """Ends one that is not needed any more, by way of Ray, which then takes its death for no accident."""
        if self.start is not None:
            self.start.cancel()
        ray.kill(self.actor)
        if self.end is not None:
            await asyncio.wait({self.end}, timeout=DISMISS_SECONDS)
            await self.kill("not needed any more")
        self.close()

    async def find_cause(self) -> str:
        """Why a dead worker died; Ray is asked where nobody here knows better."""
        if not self.cause:
            self.cause = "process died"
            with suppress(TimeoutError):
                try:
                    await asyncio.wait_for(answer_of(self.actor.identity.remote()), CAUSE_SECONDS)
                except RayError as error:
                    self.cause = cause_of_death(error)
        return self.cause

    def close(self) -> None:
        """Lets go of its process, which is dead."""
        if self.process is not None:
            self.process.close()


def cause_of_death(error: Exception) -> str:
    """What Ray says about a dead actor, as a cause: its memory monitor's kills are told from all others."""
    if isinstance(error, OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in str(error):
        return "out of memory: the node's memory was nearly used up, and Ray ended the worker that used most"
    return "process died"


async def answer_of(call: Any) -> Any:
    """The answer to a call of an actor, as a coroutine."""
    return await call
