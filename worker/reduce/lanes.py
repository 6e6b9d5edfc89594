"""Who exchanges what with whom when the workers of a plan stand on several nodes. Pure.

Every member owns a range of the parameters, the one that `Shape.range_of` gives to its place in the plan. On each
other node one member serves it there: it sends that node's partial sums over the owner's range to the owner, and takes
the finished sum back. Owners are dealt out among the members of a node in turn, so that with equally many workers on
all nodes each member has one connection to each other node; these are the lanes.

    node 0: places 0 1 2      owner 0 is served by 3, owner 1 by 4, owner 2 by 3
    node 1: places 3 4        owner 3 is served by 0, owner 4 by 1

The ranges that a member owns and serves together are its part of the joins within its node: the parts of a node's
members do not overlap and cover the whole vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


class Lanes:
    """The lanes of a plan; `homes` are the nodes of its members, each node's members one after the other."""

    def __init__(self, homes: Sequence[int]) -> None:
        self.homes = tuple(homes)
        self._members: dict[int, list[int]] = {}
        for place, home in enumerate(self.homes):
            self._members.setdefault(home, []).append(place)
        if any(after - before != 1 for places in self._members.values() for before, after in pairwise(places)):
            raise ValueError(f"nodes: got {self.homes}, expected each node's members one after the other")

    def members(self, home: int) -> Sequence[int]:
        """The places on a node."""
        return self._members[home]

    def rank(self, place: int) -> int:
        """A member's number among those of its node."""
        return place - self._members[self.homes[place]][0]

    def server(self, owner: int, home: int) -> int:
        """The place on another node that serves an owner there."""
        members = self._members[home]
        return members[self.rank(owner) % len(members)]

    def servers(self, owner: int) -> tuple[int, ...]:
        """Who serves an owner, one place on each other node."""
        return tuple(self.server(owner, home) for home in self._members if home != self.homes[owner])

    def served_by(self, place: int) -> tuple[int, ...]:
        """The owners on other nodes that a member serves."""
        home = self.homes[place]
        return tuple(
            owner for owner, whose in enumerate(self.homes) if whose != home and self.server(owner, home) == place
        )

    def peers(self, place: int) -> tuple[int, ...]:
        """Everybody to whom a member is connected."""
        return tuple(sorted({*self.servers(place), *self.served_by(place)}))
