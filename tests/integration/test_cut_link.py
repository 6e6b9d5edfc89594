"""A link between two nodes is cut without a word, or slow: both sides notice a cut, and a slow one costs time alone.

The nodes are network namespaces, which takes root and iproute2.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks.namespaces import Namespace, two_namespaces
from worker.checkpoint import weights_digest
from worker.plan import Plan, even_plan
from worker.reduce.mesh import TOKEN_BYTES
from worker.reduce.segment import DIRECTORY, Segment
from worker.replica import LegEnd, Replica
from worker.spec import parse_spec

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not (shutil.which("ip") and shutil.which("tc")),
    reason="network namespaces need root and the programs ip and tc",
)

TOKEN = bytes(range(TOKEN_BYTES))
ENDLESS = 10**6
STEPS = 5
SLOW = "20mbit"  # a step's exchange of 1.3 MB takes half a second
SPEC = parse_spec(
    {
        "model": {"mlp": {"hidden": [1000, 300]}},
        "data": {"synthetic": {"samples": 100, "features": 20, "outputs": 3}},
        "training": {"global_batch_size": 12, "shards": 4, "max_steps": ENDLESS},
        "workers": {"min": 1},
    }
)


def _train(node: Namespace, seat: int, path: Path, connection: Connection) -> None:
    """A node with one worker: steps until the other is lost, told once they are under way, and some more alone."""
    replica, segment, run = _joined(node, seat, path, connection)

    def tell() -> None:
        while segment.control.committed < STEPS:
            time.sleep(0.005)
        connection.send("under way")

    teller = threading.Thread(target=tell)
    teller.start()
    run(1, ENDLESS)
    teller.join()
    segment.control.open_plan(3)
    leg = replica.run(segment.control.committed + 2, even_plan([seat], num_shards=4, epoch=3))
    connection.send((leg, segment.control.committed))


def _train_slowly(node: Namespace, seat: int, path: Path, connection: Connection) -> None:
    """A node with one worker: some steps, and what its weights are then."""
    _, segment, run = _joined(node, seat, path, connection)
    run(1, STEPS)
    control = segment.control
    connection.send((control.epoch, weights_digest(segment.weights(control.committed))))


def _joined(
    node: Namespace, seat: int, path: Path, connection: Connection
) -> tuple[Replica, Segment, Callable[[int, int], None]]:
    """A worker that has joined a node, and what runs it together with the other, up to a step in an epoch."""
    node.enter()
    replica = Replica.load(SPEC, capacity=2)
    replica.create_segment(path, "/nonexistent")
    replica.join(path, seat)
    segment = Segment.attach(path, replica.facts.shape)
    path.unlink()
    connection.send(replica.listen(node.host, TOKEN))
    addresses = connection.recv()

    def run(epoch: int, until_step: int) -> None:
        segment.control.open_plan(epoch)
        leg = replica.run(until_step, Plan(epoch, (0, 1), (2, 2), (0, 1), addresses))
        connection.send((leg, segment.control.committed))

    return replica, segment, run


@contextmanager
def _two_nodes(
    work: Callable[..., None], *, rate: str | None = None
) -> Iterator[tuple[tuple[Namespace, Namespace], list[Connection]]]:
    """Both nodes at work, and the ends that they tell through; nothing of them is left afterwards."""
    spawn = multiprocessing.get_context("spawn")
    with two_namespaces(rate=rate) as nodes:
        pipes = [spawn.Pipe() for _ in nodes]
        paths = [DIRECTORY / f"backprop-test-{os.getpid()}-{seat}" for seat in range(2)]
        processes = [
            spawn.Process(target=work, args=(node, seat, paths[seat], pipes[seat][1]))
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
            yield nodes, ours
        finally:
            for process in processes:
                process.kill()
                process.join()
            for connection, path in zip(ours, paths, strict=True):
                connection.close()
                path.unlink(missing_ok=True)


def test_both_sides_of_a_cut_link_notice_it_and_can_go_on_alone() -> None:
    with _two_nodes(_train) as (nodes, ours):
        assert [connection.recv() for connection in ours] == ["under way"] * 2
        nodes[0].cut()
        noticed = [connection.recv() for connection in ours]
        alone = [connection.recv() for connection in ours]
    assert [leg.end for leg, _ in noticed] == [LegEnd.PLAN_CHANGED] * 2
    assert [leg.message.startswith(f"lost worker {1 - seat}: ") for seat, (leg, _) in enumerate(noticed)] == [True] * 2
    committed = [step for _, step in noticed]
    assert max(committed) - min(committed) <= 1
    assert [(leg.end, step) for leg, step in alone] == [(LegEnd.REACHED, step + 2) for step in committed]


def test_a_slow_link_costs_time_and_changes_nothing(tmp_path: Path) -> None:
    with _two_nodes(_train_slowly, rate=SLOW) as (nodes, ours):
        legs = [connection.recv() for connection in ours]
        ends = [connection.recv() for connection in ours]
        assert all(node.times_held_up > 0 for node in nodes), "the link was not slow"
    assert [(leg.end, leg.message, step) for leg, step in legs] == [(LegEnd.REACHED, "", STEPS)] * 2
    assert ends == [(1, _digest_alone(tmp_path / "segment"))] * 2, "nobody was lost, and no bit has changed"


def _digest_alone(path: Path) -> str:
    """What one worker that meets nobody gives."""
    replica = Replica.load(SPEC, capacity=1)
    replica.create_segment(path, "/nonexistent")
    replica.join(path, 0)
    segment = Segment.attach(path, replica.facts.shape)
    segment.control.open_plan(1)
    assert replica.run(STEPS, even_plan([0], num_shards=4, epoch=1)).end is LegEnd.REACHED
    digest = weights_digest(segment.weights(STEPS))
    segment.close()
    return digest
