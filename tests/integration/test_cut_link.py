"""A link between two nodes is cut without a word: both sides notice by themselves, and nothing wrong is committed.

The nodes are network namespaces, which takes root and iproute2.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks.namespaces import Namespace, two_namespaces
from worker.plan import Plan, even_plan
from worker.reduce.mesh import TOKEN_BYTES
from worker.reduce.segment import DIRECTORY, Segment
from worker.replica import LegEnd, Replica
from worker.spec import parse_spec

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and the program ip"
)

TOKEN = bytes(range(TOKEN_BYTES))
ENDLESS = 10**6
SPEC = parse_spec(
    {
        "model": {"mlp": {"hidden": [1000, 300]}},
        "data": {"synthetic": {"samples": 100, "features": 20, "outputs": 3}},
        "training": {"global_batch_size": 12, "shards": 4, "max_steps": ENDLESS},
        "workers": {"min": 1},
    }
)


def _train(node: Namespace, seat: int, path: Path, connection: Connection) -> None:
    """A node with one worker: some steps, steps until the other is lost, and some more alone."""
    node.enter()
    replica = Replica.load(SPEC, capacity=2)
    replica.create_segment(path, "/nonexistent")
    replica.join(path, seat)
    segment = Segment.attach(path, replica.facts.shape)
    path.unlink()
    connection.send(replica.listen(node.host, TOKEN))
    addresses = connection.recv()

    def run(epoch: int, until_step: int, make: Callable[[int], Plan]) -> None:
        segment.control.open_plan(epoch)
        leg = replica.run(until_step, make(epoch))
        connection.send((leg, segment.control.committed))

    def both(epoch: int) -> Plan:
        return Plan(epoch, (0, 1), (2, 2), (0, 1), addresses)

    run(1, 5, both)
    run(2, ENDLESS, both)
    run(4, segment.control.committed + 2, lambda epoch: even_plan([seat], num_shards=4, epoch=epoch))


def test_both_sides_of_a_cut_link_notice_it_and_can_go_on_alone() -> None:
    spawn = multiprocessing.get_context("spawn")
    with two_namespaces() as nodes:
        pipes = [spawn.Pipe() for _ in nodes]
        paths = [DIRECTORY / f"backprop-test-{os.getpid()}-{seat}" for seat in range(2)]
        processes = [
            spawn.Process(target=_train, args=(node, seat, paths[seat], pipes[seat][1]))
            for seat, node in enumerate(nodes)
        ]
        ours = [ours for ours, _ in pipes]
        try:
            for process in processes:
                process.start()
            addresses = tuple(connection.recv() for connection in ours)
            assert {host for host, _ in addresses} == {node.host for node in nodes}
            for connection in ours:
                connection.send(addresses)
            assert [connection.recv()[0].end for connection in ours] == [LegEnd.REACHED] * 2
            nodes[0].cut()
            noticed = [connection.recv() for connection in ours]
            alone = [connection.recv() for connection in ours]
        finally:
            for process in processes:
                process.kill()
                process.join()
            for connection, path in zip(ours, paths, strict=True):
                connection.close()
                path.unlink(missing_ok=True)
    assert [leg.end for leg, _ in noticed] == [LegEnd.PLAN_CHANGED] * 2
    assert [leg.message.startswith(f"lost worker {1 - seat}: ") for seat, (leg, _) in enumerate(noticed)] == [True] * 2
    committed = [step for _, step in noticed]
    assert max(committed) - min(committed) <= 1
    assert [(leg.end, step) for leg, step in alone] == [(LegEnd.REACHED, step + 2) for step in committed]
