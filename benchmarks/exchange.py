"""The exchange between two nodes, with clip and Adam, against gloo all-reduce + clip + fused Adam.

    python -m benchmarks.exchange [--workers 1] [--parameters 0.1 1 10 50] [--rounds 6] [--rate 1gbit] [--loopback]

The nodes are network namespaces joined by a veth pair, which takes root and iproute2; with --loopback they are only
processes with segments of their own. Both sides start with a gradient a worker and end with the next weights, and with
Adam's state, on each node. PyTorch's is what DistributedDataParallel does, on every rank.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.namespaces import Namespace, two_namespaces
from benchmarks.reduce import gloo
from benchmarks.teams import Run, Team, at_work, exit_on_sigterm, free_port, interleave, segment_path, table

TOKEN = bytes(32)  # nobody else is on this wire
LOOPBACK = "127.0.0.1"
Nodes = tuple[Namespace, Namespace] | None  # None: both on the loopback device


def ours(rank: int, world: int, path: Path, nodes: Nodes, num_parameters: int) -> Run:
    """This project's exchange and update; half of the ranks are on each node."""
    import numpy as np

    from benchmarks.job import joined, recipe_of
    from worker.nn import Sequential
    from worker.phases import PhaseClock
    from worker.plan import Plan
    from worker.reduce.barrier import Barrier
    from worker.reduce.exchange import Exchange
    from worker.reduce.lanes import Lanes
    from worker.reduce.link import Link
    from worker.reduce.mesh import Listener
    from worker.reduce.segment import Shape
    from worker.update import RangeUpdate

    per_node = world // 2
    node = rank // per_node
    if nodes is not None:
        nodes[node].enter()
    listener = Listener(LOOPBACK if nodes is None else nodes[node].host, TOKEN)
    shape = Shape(num_parameters, num_states=2, num_shards=world, num_seats=world, num_slots=world)
    own = path.with_name(f"{path.name}-{node}")
    segment = joined(own, shape, rank % per_node)
    addresses = _everybodys(path, rank, world, listener.address)
    plan = Plan(0, tuple(range(world)), (1,) * world, tuple(r // per_node for r in range(world)), addresses)
    neighbours, clock = plan.on_node_of(rank), PhaseClock(segment.control, rank)
    barrier, lanes = Barrier(segment.control, rank, members=neighbours, epoch=0), Lanes(plan.nodes)
    peers = {peer: addresses[peer] for peer in lanes.peers(rank)}
    connections = listener.connections(peers, place=rank, epoch=0, check=barrier.check)
    exchange = Exchange(
        segment,
        plan.assignments(),
        lanes,
        place=rank,
        links={peer: Link(connection, f"rank {peer}", epoch=0) for peer, connection in connections.items()},
        barrier=barrier,
        enter=clock.enter,
    )
    recipe = recipe_of(Sequential())
    update = RangeUpdate(
        recipe,
        segment,
        place=neighbours.index(rank),
        num_members=len(neighbours),
        reduce=exchange,
        spans=[(0, num_parameters, recipe.rule)],
        barrier=barrier,
        clock=clock,
    )
    original = np.random.default_rng(rank).standard_normal(num_parameters, np.float32)

    def run(num_steps: int) -> list[float]:
        own.unlink(missing_ok=True)  # everyone on the node has it mapped
        seconds = []
        for _ in range(num_steps):
            segment.gradient(rank)[:] = original  # a fresh gradient, not timed
            exchange.align()  # nothing to copy: a barrier over both nodes
            started = time.perf_counter()
            update(segment.control.committed)
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def _everybodys(path: Path, rank: int, world: int, address: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    """The addresses of all ranks, told through files."""
    files = [path.with_name(f"{path.name}-address-{other}") for other in range(world)]
    part = files[rank].with_suffix(".part")
    part.write_text(f"{address[0]} {address[1]}")
    part.rename(files[rank])
    while not all(file.exists() for file in files):
        time.sleep(0.01)
    told = [file.read_text().split() for file in files]
    return tuple((host, int(port)) for host, port in told)


def gloo_between(rank: int, world: int, port: int, nodes: Nodes, num_parameters: int) -> Run:
    """PyTorch's, on the same nodes."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # otherwise it complains that the nodes have no names
    if nodes is None:
        return gloo(rank, world, port, num_parameters)
    nodes[rank // (world // 2)].enter()
    return gloo(rank, world, port, num_parameters, host=nodes[0].host)


@contextmanager
def _paths() -> Iterator[Path]:
    with segment_path() as path:
        try:
            yield path
        finally:
            for file in path.parent.glob(f"{path.name}-*"):
                file.unlink()


def main() -> None:
    """Prints the comparison, size by size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="on each node")
    parser.add_argument("--parameters", type=float, nargs="+", default=[0.1, 1, 10, 50], help="in millions")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1, help="of each side in a round, about")
    parser.add_argument("--rate", help="of the wire, such as 1gbit; as fast as the machine can by default")
    parser.add_argument("--loopback", action="store_true")
    options = parser.parse_args()
    world = 2 * options.workers
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())  # or the namespaces would stay
        nodes = None if options.loopback else stack.enter_context(two_namespaces(rate=options.rate))
        for millions in options.parameters:
            size = int(millions * 1e6)
            reference = f"gloo + clip + fused Adam, {world} ranks"
            print(f"{millions:g} M parameters: exchange + clip + Adam, 2 nodes")
            with _paths() as path:
                teams = {
                    reference: Team(gloo_between, world, free_port(), nodes, size),
                    f"backpropd, 2 x {options.workers} workers": Team(ours, world, path, nodes, size),
                }
                with at_work(teams):
                    times = interleave(teams, rounds=options.rounds, seconds=options.seconds)
                print(table(times, reference=reference), flush=True)


if __name__ == "__main__":
    main()
