"""One worker actor in its seat: from its start until it is known to be dead."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from service.node import Held, Node
from service.nodes import Nodes
from worker.actor import WorkerActor
from worker.plan import Plan
from worker.reduce.mesh import Address

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

    def __init__(self, seat: int, actor: ActorHandle[Any], *, place: str, takes_slot: bool) -> None:
        self.seat, self.actor = seat, actor
        self.place = place  # the id of the node that it is on, or is meant for
        self.takes_slot = takes_slot  # as Ray counts
        self.standing = Standing.STARTING
        self.node: Node | None = None
        self.process: Held | None = None  # None: it does not know the segment yet
        self.address: Address | None = None  # where members on other nodes connect to
        self.end: asyncio.Task[None] | None = None  # done when the process is known to be dead
        self.start: asyncio.Task[None] | None = None
        self.cause = ""  # of its death, as far as it is known
        self.first_step = -1  # committed steps when it became a member

    @classmethod
    def launch(cls, seat: int, options: Mapping[str, Any], *, place: str) -> Worker:
        """A worker that Ray is about to start."""
        actor = cast("ActorHandle[Any]", WorkerActor.options(**options).remote())
        return cls(seat, actor, place=place, takes_slot=options.get("num_cpus") != 0)

    def __repr__(self) -> str:
        return f"<Worker {self.seat}, {self.standing}, {self.process or 'no process'}>"

    @property
    def is_dead(self) -> bool:
        """Whether it is known to be dead."""
        return self.standing is Standing.FAILED or (self.end is not None and self.end.done())

    async def hold(self, nodes: Nodes) -> None:
        """Waits until its process is there; from here on its death cannot be missed. Raises what Ray raises."""
        process_id, start_time, self.place = await self.actor.identity.remote()
        self.node = await nodes.at(self.place)
        self.process = await self.node.hold(process_id, start_time=start_time)
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
        if self.node is not None and self.node.lost:
            self.cause = f"node lost: {self.node.lost}"
        if not self.cause:
            self.cause = "process died"
            with suppress(TimeoutError):
                try:
                    await asyncio.wait_for(answer_of(self.actor.identity.remote()), CAUSE_SECONDS)
                except RayError as error:
                    self.cause = cause_of_death(error)
        return self.cause

    def close(self) -> None:
        """Lets go of its process, which is dead, or is left to Ray where nobody else can reach it."""
        if self.process is not None:
            self.process.close()
        if self.node is not None and self.node.lost:
            ray.kill(self.actor)


def node_by_node(workers: Sequence[Worker]) -> list[Worker]:
    """The same workers, those of a node one after the other; else in the order in which they are."""
    by_node: dict[Node | None, list[Worker]] = {}
    for worker in workers:
        by_node.setdefault(worker.node, []).append(worker)
    return [worker for group in by_node.values() for worker in group]


def plan_over(workers: Sequence[Worker], shares: tuple[int, ...], *, epoch: int) -> Plan:
    """The plan in which these workers, given node by node, have so many shards each."""
    plan = Plan(epoch, tuple(worker.seat for worker in workers), shares)
    nodes = tuple(worker.node.number for worker in workers if worker.node is not None)
    if len(set(nodes)) == 1:
        return plan
    return replace(plan, nodes=nodes, addresses=tuple(worker.address for worker in workers if worker.address))


def cause_of_death(error: Exception) -> str:
    """What Ray says about a dead actor, as a cause: its memory monitor's kills are told from all others."""
    if isinstance(error, OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in str(error):
        return "out of memory: the node's memory was nearly used up, and Ray ended the worker that used most"
    return "process died"


async def answer_of(call: Any) -> Any:
    """The answer to a call of an actor, as a coroutine."""
    return await call
