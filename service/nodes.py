"""All nodes of a job as one: which have its state, and what is told to every one of them.

The coordinator's own node is there from the beginning, with workers or without; further ones come with the first worker
on them. Between legs a node's committed step stands still; who is furthest has the job's state.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from service.node import LocalNode, Node, NodeLostError
from service.remote_node import RemoteNode
from worker.reduce.segment import NOTHING, PHASES, Doubles


class Nodes:
    """The nodes of one job. `here` is the id of the coordinator's own, `path` that of the segment on it."""

    def __init__(self, here: str, path: Path) -> None:
        self._path = path
        self.here = LocalNode(path)
        self._by_id: dict[str, Node] = {here: self.here}
        self._num_nodes = 0  # beside the coordinator's own, so far
        self._past_seconds: Doubles = np.zeros(len(PHASES))  # of nodes that are no more
        self._starts: dict[str, asyncio.Task[Node]] = {}

    def __repr__(self) -> str:
        return f"<Nodes {[*self._by_id.values()]}>"

    def prepare(self, node_id: str) -> None:
        """Begins to make a node of the cluster one of the job's, for workers that are being started there."""
        node = self._by_id.get(node_id)
        if (node is None or node.lost) and node_id not in self._starts:
            self._starts[node_id] = start = asyncio.create_task(self._start(node_id))
            start.add_done_callback(lambda done: self._note_start(node_id, done))

    async def at(self, node_id: str) -> Node:
        """A node of the cluster, which becomes one of the job's. Raises NodeLostError."""
        self.prepare(node_id)
        start = self._starts.get(node_id)
        return self._by_id[node_id] if start is None else await asyncio.shield(start)

    async def _start(self, node_id: str) -> Node:
        stem, _, token = self._path.name.rpartition("-")
        path = self._path.with_name(f"{stem}-{secrets.token_hex(4)}-{token}")
        self._num_nodes += 1
        return await RemoteNode.start(node_id, path, number=self._num_nodes)

    def _note_start(self, node_id: str, start: asyncio.Task[Node]) -> None:
        del self._starts[node_id]
        if not start.cancelled() and start.exception() is None:
            self._forget(node_id)
            self._by_id[node_id] = start.result()

    @property
    def living(self) -> list[Node]:
        """Those within reach, the coordinator's own first."""
        return [node for node in self._by_id.values() if not node.lost]

    def ids(self, among: Collection[Node]) -> list[str]:
        """What the cluster calls them."""
        return [node_id for node_id, node in self._by_id.items() if node in among]

    @property
    def lost_ids(self) -> list[str]:
        """What the cluster calls those that are out of reach."""
        return [node_id for node_id, node in self._by_id.items() if node.lost]

    @property
    def has_state(self) -> bool:
        """Whether any of them has a state of the job."""
        return any(node.committed != NOTHING for node in self.living)

    @property
    def are_level(self) -> bool:
        """Whether all have committed equally many steps."""
        return len({node.committed for node in self.living}) == 1

    def bearing(self) -> list[Node]:
        """Those from which the job can go on: at most the step that was under way is done again."""
        nodes = [node for node in self.living if node.committed != NOTHING]
        furthest = max((node.committed for node in nodes), default=NOTHING)
        return [node for node in nodes if node.committed >= furthest - 1]

    def phase_seconds(self) -> Doubles:
        """By phase, over all workers that there ever were."""
        views = [node.view for node in self._by_id.values() if node.view is not None]
        return sum((view.phase_seconds.sum(axis=0) for view in views), self._past_seconds)

    # What is told to all.

    async def look(self) -> None:
        """Makes every view that of this moment; a node that does not answer is lost."""
        if self.living == [self.here]:
            await self.here.look()
        else:
            await _unless_lost(node.look() for node in self.living)

    async def open_plan(self, epoch: int, nodes: Sequence[Node]) -> None:
        """Starts a plan on its nodes; one that is lost is seen by its workers' ends."""
        if [*nodes] == [self.here]:
            await self.here.open_plan(epoch)
            return
        await _unless_lost(node.open_plan(epoch) for node in nodes)

    def abandon_plan(self, epoch: int) -> None:
        """Makes everybody give up this plan."""
        for node in self.living:
            node.abandon_plan(epoch)

    def request_stop(self) -> None:
        """Makes everybody stop at the next step boundary."""
        for node in self.living:
            node.request_stop()

    # Going.

    async def release(self, needed: Collection[str], *, committed: int) -> None:
        """Lets go of the other ones, which have no workers, unless one knows of more than the committed steps."""
        for node_id, node in list(self._by_id.items()):
            if node is not self.here and node_id not in needed and node.committed <= committed:
                self._forget(node_id)
                await node.end()

    async def end(self) -> None:
        """Lets go of all of them; what was last seen of them is still known."""
        for start in self._starts.values():
            start.cancel()
        await asyncio.gather(*self._starts.values(), return_exceptions=True)
        await asyncio.gather(*(node.end() for node in self.living))

    async def begin_anew(self) -> None:
        """Lets go of all of them; the coordinator's own can have another segment."""
        await self.end()
        here = next(iter(self._by_id))
        self._forget(*self._by_id.copy())
        self.here = LocalNode(self._path)
        self._by_id = {here: self.here}

    def _forget(self, *node_ids: str) -> None:
        for node_id in node_ids:
            node = self._by_id.pop(node_id, None)
            if node is not None and node.view is not None:
                self._past_seconds = self._past_seconds + node.view.phase_seconds.sum(axis=0)


async def _unless_lost(calls: Iterable[Awaitable[None]]) -> None:
    """Returns when all are through; a node that is lost on the way is no error."""
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if outcome is not None and not isinstance(outcome, NodeLostError):
            raise outcome
