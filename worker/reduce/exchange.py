"""The reduce between nodes: each node has a segment of its own, and all end a step with the same gradient.

P parameters, S shards, N nodes, W workers, of which a node has some; P/W floats are a worker's range. All segments of
a job have the same shape and number slots, seats and places alike. A node's workers compute contiguous shards, so a
node holds a few partial sums of the canonical tree (one for S and W powers of two), and the joins of the tree fall
into those within a node and those across nodes. For a worker that is alone on its node, with one partial sum a node:

    step                                                             sent by each worker
    0 barrier on the node           its workers' partial sums are there
    1 joins within the node         of what is next to be sent        -
    2 reduce-scatter                PARTIAL: own sums over each       (N-1)/N P floats
                                    owner's range, to the owner
    3 joins across nodes            of the own range, in the tree's
                                    order; its blocks' squares         -
    4 all-gather                    SUM: the own range, to each node  (N-1)/N P floats
                                    SQUARES: P / N / 4096 doubles, SHARDS: losses and counts
    5 barrier on the node           the gradient and all squares are there

In between `worker.reduce.lanes` says who sends for whom. Ranges go by in pieces of 4 MiB, each with a header of 40
bytes, and 1 to 4 overlap: a piece is joined when it has come from everybody, and sent back at once. It is 2 (N-1)/N P
floats in and out, as in a ring all-reduce, in two hops instead of 2 (N-1); more than one partial sum a node makes step
2, never 4, longer. A peer's partial sum goes into the slot that it has on its own node, where nobody else writes: slots
are numbered over all members. The sum of a range stands in slot 0; no piece of it comes back before this node's part
has been sent from there.

**Why the bits are those of one node.** The joins within nodes and those across them are together the joins of the
tree, each done once and with the same operands. Blocks are joined and squared by the same kernel wherever they are,
and the norm is an exact sum.

**Gradients go round, not weights.** Every node updates the whole vector in its own segment, its workers sharing it
out. An all-gather of weights would cost the same bytes and let each worker update P/W parameters only; but then m and
v of a range would be on one node, and lost with it, or 2 P floats more would have to travel. The update is a small part
of the time, so every node holds the whole committed state, and any one of them is enough to go on.

**Commit.** A node commits t+1 by itself, when all its workers have updated their ranges: nobody waits for the other
nodes at the end of a step. Of two nodes, one is at most one step ahead: the sum of step t+1 needs every node's partial
sums of t+1, which a node computes only when it has committed t+1. So when a plan is given up, each node stands at t or
at t+1, all of it in place (`worker.update` says why), and no matter which nodes are left: t+1 is the same bits wherever
it is done. The next plan begins with `align`: all nodes say how many steps they have committed, and one that is
behind copies the state from the first one that is furthest. It writes into its other buffer, so a death on the way
leaves what it had; one that is more than a step behind, or a newcomer, has nothing that counts and says so before.
If the only node that had t+1 is lost, the others do that step once more.

**Death.** A worker that dies, or leaves the plan, closes its links; the workers at their other ends make their own
node give up the plan, so the news travels at the speed of the network, and the coordinator hears it from those who
come back. A node that is cut off is noticed by its silence within 2 seconds. It is not known to be dead, and need not
be: what it writes is its own segment, and what it sends belongs to an old epoch. Nobody hears it.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from worker.loss_scale import LossScale
from worker.reduce.barrier import Barrier, PlanChangedError
from worker.reduce.kernels import add_into, reduce_range
from worker.reduce.lanes import Lanes
from worker.reduce.link import Frame, Kind, Link, PeerLostError
from worker.reduce.segment import NOTHING, Segment
from worker.reduce.tree import Assignment, Join, Part, cross_joins, split_joins

PIECE = 1 << 20  # floats: 4 MiB, a multiple of the block; with smaller ones Python costs more than they overlap
LOOK_SECONDS = 0.02  # between two looks at the epoch


class Reduce(Protocol):
    """Makes the sum of all shards' gradients out of what the members have in their slots."""

    def __call__(self, step: int) -> bool:
        """Between two barriers of the node: afterwards slot 0 and the blocks' squares are there, over all parameters.

        Returns whether a coordinator asks to stop: to the first member of a node the truth, the same on all nodes.
        """


class NodeReduce:
    """The reduce of a plan whose members all share one node's segment: each adds up the range of its place."""

    def __init__(self, segment: Segment, assignments: tuple[Assignment, ...], place: int) -> None:
        self._slots, self._control = segment.slots, segment.control
        self._joins = _array_of(cross_joins(assignments))
        self._first, self._last = segment.shape.range_of(place, len(assignments))

    def __call__(self, step: int) -> bool:
        reduce_range(self._slots, self._joins, self._first, self._last, self._control.block_squares)
        return self._control.stop_requested


class Exchange:
    """The reduce of a plan over several nodes, as the member in one place. `links` are to its lanes' peers, by place.

    `enter` is told what it is at, "reduce" or "wait".
    """

    def __init__(
        self,
        segment: Segment,
        assignments: tuple[Assignment, ...],
        lanes: Lanes,
        *,
        place: int,
        links: Mapping[int, Link],
        barrier: Barrier,
        enter: Callable[[str], None],
    ) -> None:
        self._segment, self._control, self._shape = segment, segment.control, segment.shape
        self._assignments, self._lanes, self._place, self._links = assignments, lanes, place, links
        self._barrier, self._enter = barrier, enter
        self._home, self._rank = lanes.homes[place], lanes.rank(place)
        self._parts, across = split_joins(assignments, lanes.homes)
        self._joins = _array_of((*self._mine.joins, *across))
        self._own = list(self._pieces(place))
        self._servers, self._owners = lanes.servers(place), lanes.served_by(place)
        self._slot_bytes = segment.slots.data.cast("B")
        self._num_missing: list[int] = []  # frames that each piece of the own range waits for
        self._num_joined = 0
        self._stops = False

    @property
    def _mine(self) -> Part:
        return self._parts[self._home]

    def close(self) -> None:
        """Leaves the plan; the peers see it."""
        for link in self._links.values():
            link.close()

    # A step.

    def __call__(self, step: int) -> bool:
        self._stops = self._control.stop_requested
        self._begin(step)
        num_awaited = sum(len(self._parts[self._lanes.homes[server]].partials) for server in self._servers)
        self._num_missing, self._num_joined = [num_awaited] * len(self._own), 0
        for server in self._servers:
            slots = self._parts[self._lanes.homes[server]].partials
            self._links[server].expect(
                *(
                    Frame(Kind.PARTIAL, self._floats(slot, *piece), slot, piece[0], self._arrival(number))
                    for number, piece in enumerate(self._own)
                    for slot in slots
                )
            )
        for owner in self._owners:
            sums = (Frame(Kind.SUM, self._floats(0, *piece), first=piece[0]) for piece in self._pieces(owner))
            self._links[owner].expect(*sums, *self._facts_expected(owner))
            self._links[owner].put_later(self._partials_for(owner))
        if not self._own:
            self._send_facts()
        self._transfer()
        return self._stops

    def _partials_for(self, owner: int) -> Iterator[Frame]:
        """This node's partial sums over an owner's range, each added up when its turn has come."""
        for first, last in self._pieces(owner):
            for join in self._mine.joins:
                add_into(self._segment.slots[join.into, first:last], self._segment.slots[join.other, first:last])
            for slot in self._mine.partials:
                yield Frame(Kind.PARTIAL, self._floats(slot, first, last), slot, first)

    def _arrival(self, number: int) -> Callable[[], None]:
        """What happens when one of the partial sums over a piece of the own range has come."""

        def arrive() -> None:
            self._num_missing[number] -= 1
            if not self._num_missing[number]:
                self._join(number)

        return arrive

    def _join(self, number: int) -> None:
        """All partial sums over a piece of the own range are there: adds them up and sends the sum round."""
        first, last = self._own[number]
        reduce_range(self._segment.slots, self._joins, first, last, self._control.block_squares)
        for server in self._servers:
            self._links[server].put(Frame(Kind.SUM, self._floats(0, first, last), first=first))
        self._num_joined += 1
        if self._num_joined == len(self._num_missing):
            self._send_facts()

    def _send_facts(self) -> None:
        """What the others need beside the sum of the own range."""
        for server in self._servers:
            for frame in self._facts(self._place, self._shard_facts()):
                self._links[server].put(frame)

    def _facts_expected(self, owner: int) -> Iterator[Frame]:
        shards = self._shards_of(self._lanes.homes[owner])
        facts = np.empty(2 * len(shards) + 1)

        def note() -> None:
            self._control.shard_losses[shards.start : shards.stop] = facts[: len(shards)]
            self._control.shard_counts[shards.start : shards.stop] = facts[len(shards) : -1]
            self._stops = self._stops or bool(facts[-1])

        return self._facts(owner, facts, note)

    def _facts(self, owner: int, shard_facts: np.ndarray, done: Callable[[], None] = lambda: None) -> Iterator[Frame]:
        """The frames behind the sum of an owner's range; the first member of a node speaks for its shards."""
        first, last = self._shape.range_of(owner, len(self._assignments))
        blocks = self._control.block_squares[self._shape.blocks_of(first, last)]
        yield Frame(Kind.SQUARES, _bytes_of(blocks), first=first)
        if self._lanes.rank(owner) == 0:
            yield Frame(Kind.SHARDS, _bytes_of(shard_facts), done=done)

    def _shard_facts(self) -> np.ndarray:
        shards = self._shards_of(self._home)
        own = slice(shards.start, shards.stop)
        return np.concatenate((self._control.shard_losses[own], self._control.shard_counts[own], [self._stops]))

    def _shards_of(self, home: int) -> range:
        places = self._lanes.members(home)
        return range(self._assignments[places[0]].shards.start, self._assignments[places[-1]].shards.stop)

    def _pieces(self, owner: int) -> Iterator[tuple[int, int]]:
        first, last = self._shape.range_of(owner, len(self._assignments))
        return ((start, min(start + PIECE, last)) for start in range(first, last, PIECE))

    def _floats(self, slot: int, first: int, last: int) -> memoryview:
        start = slot * self._shape.stride
        return self._slot_bytes[(start + first) * 4 : (start + last) * 4]

    # The beginning of a plan.

    def align(self) -> None:
        """Brings every node to the furthest node's committed step; once, before the first step of the plan.

        Raises PlanChangedError; the node is then where it was, or has nothing committed.
        """
        committed = self._control.committed
        said = {peer: np.full(1, NOTHING) for peer in self._links}
        self._begin(0)
        for peer, link in self._links.items():
            link.expect(Frame(Kind.COMMITTED, _bytes_of(said[peer])))
            link.put(Frame(Kind.COMMITTED, _bytes_of(np.array([committed]))))
        self._transfer()
        steps = {self._lanes.homes[peer]: int(step[0]) for peer, step in said.items()} | {self._home: committed}
        furthest = max(steps.values())
        assert furthest != NOTHING, "no node has anything"
        source = min(home for home, step in steps.items() if step == furthest)
        self._begin(furthest)
        if committed < furthest:
            if committed < furthest - 1:
                self._control.commit(NOTHING)  # what is there would be overwritten piece by piece
            self._copy_from(self._lanes.server(self._place, source), furthest)
        elif source == self._home:
            for owner in self._owners:
                if steps[self._lanes.homes[owner]] < furthest:
                    self._links[owner].put_later(self._state_for(owner, furthest))
        self._transfer()
        self._barrier.wait()
        if committed < furthest:
            self._control.commit(furthest)

    def _copy_from(self, server: int, step: int) -> None:
        """Expects the state of a step over this member's part of the vector."""
        scale = np.empty(2)

        def note_scale() -> None:
            self._control.set_loss_scale(step, LossScale(float(scale[0]), int(scale[1])))

        self._links[server].expect(*self._state_frames(self._place, step, scale, note_scale))

    def _state_for(self, owner: int, step: int) -> Iterator[Frame]:
        scale = self._control.loss_scale(step)
        return self._state_frames(owner, step, np.array([scale.scale, scale.num_finite]))

    def _state_frames(
        self, owner: int, step: int, scale: np.ndarray, done: Callable[[], None] = lambda: None
    ) -> Iterator[Frame]:
        """Weights and optimizer state of a step, over the part of the vector that is a member's on its own node."""
        num_members = len(self._lanes.members(self._lanes.homes[owner]))
        first, last = self._shape.range_of(self._lanes.rank(owner), num_members)
        for slot, vector in enumerate([self._segment.weights(step), *self._segment.state(step)]):
            for start in range(first, last, PIECE):
                yield Frame(Kind.STATE, _bytes_of(vector[start : min(start + PIECE, last)]), slot, start)
        yield Frame(Kind.LOSS_SCALE, _bytes_of(scale), done=done)

    # The wire.

    def _begin(self, step: int) -> None:
        for link in self._links.values():
            link.begin(step)

    def _transfer(self) -> None:
        """Sends and receives until nothing is left to send nor to come. Raises PlanChangedError, ProtocolError."""
        links, is_waiting = self._links.values(), False
        try:
            while busy := [link for link in links if link.has_expected or link.has_outgoing]:
                self._barrier.check()
                moved = False
                for link in busy:
                    moved |= link.receive()
                    moved |= link.send()
                if moved and is_waiting:
                    self._enter("reduce")
                elif not moved:
                    self._enter("wait")  # again and again: it is a sign of life
                    _wait_for(busy)
                is_waiting = not moved
        except PeerLostError as error:
            self._barrier.give_up()
            raise PlanChangedError(str(error)) from None


def _wait_for(links: list[Link]) -> None:
    poll = select.poll()
    for link in links:
        poll.register(link, (select.POLLIN if link.has_expected else 0) | (select.POLLOUT if link.has_outgoing else 0))
    poll.poll(LOOK_SECONDS * 1000)


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")


def _array_of(joins: tuple[Join, ...]) -> np.ndarray:
    return np.array([(join.into, join.other) for join in joins], np.int64).reshape(-1, 2)
