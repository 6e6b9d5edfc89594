"""Scale on paper: how long a step takes on up to a thousand workers, for given bandwidths between nodes.

`python -m tests.simulation.scale` prints a table. Shards, ranges and partial sums are those of the product's own plan
and tree; time passes on the simulation's clock. A step is, for each worker:

    compute     its shards, one after the other, with some jitter
    on a node   its range of every partial sum of the node's workers, through the node's memory
    between     reduce-scatter: the node's partial sums of the canonical tree, those that others' ranges need;
                then all-gather: the nodes' ranges of the next weights; both over the link that a node's workers share
    barriers    three a step, each as late as the last worker and a message or two between nodes later
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.simulation.clock import Clock
from worker.plan import Plan, even_plan
from worker.reduce.tree import cover

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
STEPS = 3


@dataclass(frozen=True)
class Machine:
    """What a cluster is made of; bandwidths in bytes a second."""

    workers_per_node: int
    memory_bandwidth: float  # of a node, over all its workers
    link_bandwidth: float  # of a node, each way
    message_seconds: float
    jitter: float  # the standard deviation of a shard's time, as a part of it


@dataclass(frozen=True)
class Load:
    """A job's size."""

    num_parameters: int
    num_shards: int
    shard_seconds: float

    @property
    def vector_bytes(self) -> int:
        """Of one gradient or weight vector."""
        return 4 * self.num_parameters


def node_partials(plan: Plan, machine: Machine) -> list[int]:
    """How many partial sums each node leaves for the others: the tree's nodes that cover its shards."""
    found, first = [], 0
    for start in range(0, len(plan.members), machine.workers_per_node):
        shares = plan.shares[start : start + machine.workers_per_node]
        shards = range(first, first + sum(shares))
        found.append(len(cover(shards, num_shards=plan.num_shards)))
        first = shards.stop
    return found


def exchange_seconds(plan: Plan, load: Load, machine: Machine) -> float:
    """Between nodes, of the slowest: what a node sends in the reduce-scatter and in the all-gather."""
    partials = node_partials(plan, machine)
    others = len(partials) - 1
    if not others:
        return 0.0
    part = load.vector_bytes / len(partials)  # each node reduces its range of the parameters
    received = max(sum(partials) - own for own in partials) * part
    sent = max(partials) * part * others
    return (max(sent, received) + part * others) / machine.link_bandwidth + 2 * machine.message_seconds


def memory_seconds(plan: Plan, load: Load, machine: Machine) -> float:
    """On a node: every worker's partial sums are read once, then weights and Adam's state are read and written."""
    workers = min(len(plan.members), machine.workers_per_node)
    most = max(len(assignment.partials) for assignment in plan.assignments())
    nodes = -(-len(plan.members) // machine.workers_per_node)
    update = 7 * load.vector_bytes / nodes  # gradient, w, m, v read; w, m, v written
    return (most * workers * load.vector_bytes + update) / machine.memory_bandwidth


class Step:
    """Workers that compute and meet at barriers, on the clock."""

    def __init__(self, plan: Plan, load: Load, machine: Machine, *, seed: int) -> None:
        self._plan, self._load, self._machine, self._rng = plan, load, machine, random.Random(seed)
        self._clock = Clock(lambda work: asyncio.Future())
        nodes = -(-len(plan.members) // machine.workers_per_node)
        self._barrier_seconds = machine.message_seconds * (2 * (nodes - 1).bit_length())
        self._reduce_seconds = memory_seconds(plan, load, machine) + exchange_seconds(plan, load, machine)
        self._computing = self._steps = 0

    def mean_seconds(self) -> float:
        """Of a step, over a few."""
        self._begin()
        self._clock.run_forever()
        self._clock.close()
        return self._clock.now / STEPS

    def _begin(self) -> None:
        self._computing = len(self._plan.members)
        for share in self._plan.shares:
            factors = (max(self._rng.gauss(1.0, self._machine.jitter), 0.5) for _ in range(share))
            self._clock.later(self._load.shard_seconds * sum(factors), self._come)

    def _come(self) -> None:
        self._computing -= 1
        if self._computing == 0:
            self._clock.later(3 * self._barrier_seconds + self._reduce_seconds, self._commit)

    def _commit(self) -> None:
        self._steps += 1
        if self._steps < STEPS:
            self._begin()
        else:
            self._clock.stop()


def table(load: Load, machines: Sequence[Machine]) -> list[tuple[int, list[float]]]:
    """Seconds a step, for each number of workers, on each machine."""
    rows = []
    for workers in WORKERS:
        if workers <= load.num_shards:
            plan = even_plan(range(workers), num_shards=load.num_shards, epoch=1)
            rows.append((workers, [Step(plan, load, machine, seed=workers).mean_seconds() for machine in machines]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=1024)
    parser.add_argument("--shard-seconds", type=float, default=0.5, help="forward and backward of one shard")
    parser.add_argument("--workers-per-node", type=int, default=32)
    parser.add_argument("--memory", type=float, default=100.0, help="GB/s of a node")
    parser.add_argument("--gigabits", type=float, nargs="+", default=[1.0, 10.0, 25.0, 100.0], help="of a node's link")
    parser.add_argument("--latency", type=float, default=50e-6, help="seconds a message")
    parser.add_argument("--jitter", type=float, default=0.03)
    options = parser.parse_args()
    load = Load(options.parameters, options.shards, options.shard_seconds)
    machines = [
        Machine(options.workers_per_node, options.memory * 1e9, gigabits * 1e9 / 8, options.latency, options.jitter)
        for gigabits in options.gigabits
    ]
    print(f"{load.num_parameters:,} parameters, {load.num_shards} shards of {load.shard_seconds:g} s, on nodes of")
    print(f"{options.workers_per_node} workers and {options.memory:g} GB/s; seconds a step (part of perfect speed-up):")
    print("workers  nodes" + "".join(f"{gigabits:>11g} Gbit/s" for gigabits in options.gigabits))
    alone = load.num_shards * load.shard_seconds
    for workers, seconds in table(load, machines):
        nodes = -(-workers // options.workers_per_node)
        cells = (f"{second:10.3f} ({alone / workers / second:4.0%})" for second in seconds)
        print(f"{workers:7} {nodes:6} " + " ".join(cells))


if __name__ == "__main__":
    main()
