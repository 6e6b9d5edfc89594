"""A node other than the coordinator's: an agent there, a small Ray actor, does what the coordinator says.

A TCP connection to the agent, on which nothing is ever said, tells of its death within milliseconds, and of a cut link
within seconds; Ray, which takes longer, and the agent's answers are two more witnesses. A janitor beside the agent
removes the segment, should the agent be killed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service.janitor import leave_beside
from service.node import Held, LocalNode, NodeLostError, Record, View
from worker.loss_scale import LossScale
from worker.reduce.mesh import Address, watch_over
from worker.reduce.segment import NOTHING, Floats, Shape

ANSWER_SECONDS = 10.0  # an agent does nothing but answer, in milliseconds; a machine that is busy gives way in seconds
PIECE = 1 << 22  # floats copied by one call: 16 MiB


class _NodeAgent:
    """A node's side of a job, on that node."""

    def __init__(self, path: Path, number: int) -> None:
        self._node = LocalNode(path, number=number)
        self._processes: dict[int, Held] = {}
        leave_beside(path)

    async def listen(self) -> Address:
        """Where the coordinator's connection is taken."""
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's own
        self._server = await asyncio.start_server(_hold_open, host, 0)
        return host, self._server.sockets[0].getsockname()[1]

    async def attach(self, shape: Shape) -> None:
        await self._node.attach(shape)

    async def look(self) -> View | None:
        await self._node.look()
        return self._node.view

    async def open_plan(self, epoch: int) -> None:
        await self._node.open_plan(epoch)

    async def abandon_plan(self, epoch: int) -> None:
        self._node.abandon_plan(epoch)

    async def request_stop(self) -> None:
        self._node.request_stop()

    async def records(self, first: int, last: int) -> list[Record]:
        return await self._node.records(first, last)

    async def piece(self, step: int, vector: int, first: int, last: int) -> Floats:
        """Part of one vector of a step's state."""
        return self._node.state(step)[vector][first:last]

    async def loss_scale(self, step: int) -> LossScale:
        return self._node.loss_scale(step)

    async def hold(self, process_id: int, start_time: int) -> None:
        self._processes[process_id] = await self._node.hold(process_id, start_time=start_time)

    async def ended(self, process_id: int) -> None:
        await self._processes[process_id].ended()

    async def kill(self, process_id: int) -> None:
        if (process := self._processes.get(process_id)) is not None:
            process.kill()

    async def let_go(self, process_id: int) -> None:
        self._processes.pop(process_id).close()

    async def clear(self) -> None:
        await self._node.clear()


async def _hold_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await reader.read(1)  # until the coordinator, or whoever it was, has gone
    writer.close()


NodeAgentActor = ray.remote(num_cpus=0, max_restarts=0)(_NodeAgent)


class RemoteNode:
    """A node that an agent speaks for; see service.node. `start` makes one."""

    def __init__(self, path: Path, agent: ActorHandle[Any], *, number: int) -> None:
        self.number, self.path = number, path
        self.view: View | None = None
        self.lost = ""
        self._agent = agent
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._line: asyncio.StreamWriter | None = None

    def __repr__(self) -> str:
        return f"<RemoteNode {self.number}, {self.lost or 'within reach'}>"

    @classmethod
    async def start(cls, node_id: str, path: Path, *, number: int) -> RemoteNode:
        """Starts an agent on a node of the cluster. Raises NodeLostError."""
        placement = NodeAffinitySchedulingStrategy(node_id, soft=False)
        agent = NodeAgentActor.options(scheduling_strategy=placement).remote(path, number)
        node = cls(path, cast("ActorHandle[Any]", agent), number=number)
        try:
            host, port = await node._answer(node._call("listen"), seconds=None)
            reader, node._line = await asyncio.open_connection(host, port)
            watch_over(node._line.get_extra_info("socket"))
            node._keep(asyncio.create_task(node._hold_line(reader)))
        except BaseException as error:
            node.fail(f"its agent cannot be reached: {error}")
            if isinstance(error, OSError):
                raise NodeLostError(node.lost) from None
            raise
        return node

    async def _hold_line(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            await reader.read(1)
        self.fail("the connection to its agent ended")

    def fail(self, reason: str) -> None:
        """Gives the node up: whatever is asked of it from now on is not answered, and what is under way ends."""
        if self.lost:
            return
        self.lost = reason
        self._gone.set_result(None)
        if self._line is not None:
            self._line.close()
        ray.kill(self._agent)

    # What the coordinator asks.

    @property
    def committed(self) -> int:
        """See Node; here it is what the last look saw."""
        return NOTHING if self.view is None else self.view.committed

    async def clear(self) -> None:
        """See Node."""
        await self._answer(self._call("clear"))

    async def attach(self, shape: Shape) -> None:
        """See Node."""
        await self._answer(self._call("attach", shape))
        await self.look()

    async def look(self) -> None:
        """See Node."""
        seen: View | None = await self._answer(self._call("look"))
        if seen is not None:
            now = time.monotonic()
            pulses = tuple(replace(pulse, beat=pulse.beat + now - seen.at) for pulse in seen.pulses)
            self.view = replace(seen, at=now, pulses=pulses)

    async def open_plan(self, epoch: int) -> None:
        """See Node."""
        await self._answer(self._call("open_plan", epoch))

    def abandon_plan(self, epoch: int) -> None:
        """See Node."""
        self.tell("abandon_plan", epoch)

    def request_stop(self) -> None:
        """See Node."""
        self.tell("request_stop")

    async def records(self, first: int, last: int) -> list[Record]:
        """See Node."""
        found: list[Record] = await self._answer(self._call("records", first, last))
        return found

    async def copy_state(self, step: int, into: Sequence[Floats]) -> LossScale:
        """See Node."""
        for number, copy in enumerate(into):
            for first in range(0, len(copy), PIECE):
                last = min(first + PIECE, len(copy))
                copy[first:last] = await self._answer(self._call("piece", step, number, first, last))
        loss_scale: LossScale = await self._answer(self._call("loss_scale", step))
        return loss_scale

    async def hold(self, process_id: int, *, start_time: int) -> Held:
        """See Node."""
        await self._answer(self._call("hold", process_id, start_time))
        return RemoteProcess(self, process_id)

    async def end(self) -> None:
        """See Node."""
        with suppress(NodeLostError):
            await self.clear()
        self.fail("it is not needed any more")

    # How.

    def _call(self, method: str, *arguments: object) -> Any:
        """Calls go out in the order in which they are made."""
        return getattr(self._agent, method).remote(*arguments)

    def tell(self, method: str, *arguments: object) -> None:
        """Asks for what needs no answer."""
        if not self.lost:
            self._keep(asyncio.create_task(self._told(self._call(method, *arguments))))

    async def _told(self, call: Any) -> None:
        with suppress(NodeLostError):
            await self._answer(call)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until_ended(self, process_id: int) -> None:
        """Returns when one of its processes has ended, or the node is lost."""
        with suppress(NodeLostError):
            await self._answer(self._call("ended", process_id), seconds=None)

    async def _answer(self, call: Awaitable[Any], *, seconds: float | None = ANSWER_SECONDS) -> Any:
        answer = asyncio.ensure_future(_answer_of(call))
        try:
            await asyncio.wait({answer, self._gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            error = answer.exception() if answer.done() else None
            if answer.done() and error is None:
                return answer.result()
            if error is not None and not _is_loss(error):
                raise error
            self.fail(f"no answer for {seconds} s" if error is None else f"no agent: {type(error).__name__}")
            raise NodeLostError(self.lost)
        finally:
            answer.cancel()


class RemoteProcess:
    """A worker's process on another node; see service.node.Held."""

    def __init__(self, node: RemoteNode, process_id: int) -> None:
        self._node, self.process_id, self.has_ended = node, process_id, False

    def __repr__(self) -> str:
        return f"<RemoteProcess {self.process_id} on {self._node}>"

    async def ended(self) -> None:
        """See Held."""
        await self._node.until_ended(self.process_id)
        self.has_ended = True

    def kill(self) -> None:
        """See Held."""
        self._node.tell("kill", self.process_id)

    def close(self) -> None:
        """See Held."""
        self._node.tell("let_go", self.process_id)


def _is_loss(error: BaseException) -> bool:
    """Whether Ray cannot reach an actor, or cannot have one there; what an actor itself raises is another matter."""
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


async def _answer_of(call: Awaitable[Any]) -> Any:
    return await call
