"""A plan: which workers take part in the steps to come, and how many shards each computes.

The coordinator makes it, every worker of it follows it. A worker is known by its seat, a place in the job's segment
that it keeps for life; its part of the work follows from where its seat stands in the plan. Bits never depend on a
plan: the tree over the shards is the job's, whoever computes which of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from worker.reduce.mesh import Address
from worker.reduce.tree import Assignment, assignment_of


@dataclass(frozen=True)
class Plan:
    """Members are seats, in the order of their shards; `shares` says how many shards each has, at least one.

    Where they do not all share one node's segment, `nodes` says on which node each is, each node's members one after
    the other, and `addresses` where each listens for the others.
    """

    epoch: int
    members: tuple[int, ...]
    shares: tuple[int, ...]
    nodes: tuple[int, ...] = ()
    addresses: tuple[Address, ...] = ()

    def __post_init__(self) -> None:
        if len(self.members) != len(self.shares) or not self.members or min(self.shares) < 1:
            raise ValueError(f"plan: got members {self.members} with shares {self.shares}, expected one each, above 0")
        if self.is_spread and not len(self.nodes) == len(self.addresses) == len(self.members):
            raise ValueError(f"plan: got nodes {self.nodes} and addresses {self.addresses}, expected one a member")

    @property
    def num_shards(self) -> int:
        """The job's shards: all of them are in somebody's hands."""
        return sum(self.shares)

    def place_of(self, seat: int) -> int:
        """Where a member stands: it has that part of the shards and that range of the parameters."""
        return self.members.index(seat)

    @property
    def is_spread(self) -> bool:
        """Whether there are members on several nodes."""
        return len(set(self.nodes)) > 1

    def on_node_of(self, seat: int) -> tuple[int, ...]:
        """The members that share a member's segment, itself among them."""
        if not self.is_spread:
            return self.members
        home = self.nodes[self.place_of(seat)]
        return tuple(member for member, node in zip(self.members, self.nodes, strict=True) if node == home)

    def assignments(self) -> tuple[Assignment, ...]:
        """What each member does in a step."""
        ends = list(accumulate(self.shares, initial=0))
        return tuple(
            assignment_of(range(ends[place], ends[place + 1]), num_shards=self.num_shards)
            for place in range(len(self.members))
        )


def even_plan(members: Sequence[int], *, num_shards: int, epoch: int) -> Plan:
    """A plan in which shares differ by at most one."""
    return Plan(epoch, tuple(members), shares_by_speed([1.0] * len(members), num_shards))


def shares_by_speed(speeds: Sequence[float], num_shards: int) -> tuple[int, ...]:
    """Shares of so many shards, at least one each, so that the slowest part of the work ends as early as it can.

    `speeds` are shards a second, in any unit; shard by shard goes to whoever would be done with it first. ValueError
    for more workers than shards.
    """
    if not 0 < len(speeds) <= num_shards:
        raise ValueError(f"shares: got {len(speeds)} workers for {num_shards} shards, expected 1 to {num_shards}")
    shares = [1] * len(speeds)
    for _ in range(num_shards - len(speeds)):
        first = min(range(len(speeds)), key=lambda place: (shares[place] + 1) / speeds[place])
        shares[first] += 1
    return tuple(shares)


def busy_share(num_workers: int, num_shards: int) -> float:
    """The share of their time that workers of equal speed compute in a step: S / (W ceil(S / W)).

    A step lasts as long as the worker with the most shards takes; the others wait for it.
    """
    return num_shards / (num_workers * -(-num_shards // num_workers))


def useful_workers(least: int, most: int, num_shards: int) -> tuple[int, ...]:
    """The numbers of workers from `least` to `most`, the first included, each of which makes a step shorter."""
    rounds = {workers: -(-num_shards // workers) for workers in range(least, most + 1)}
    return tuple(workers for workers in rounds if rounds[workers] < rounds.get(workers - 1, num_shards + 1))
