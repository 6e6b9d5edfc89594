"""Scale on paper counts what the product's plan and tree make necessary, no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.scale import Load, Machine, Step, exchange_seconds, node_partials, table
from worker.plan import even_plan

LOAD = Load(num_parameters=1_000_000, num_shards=64, shard_seconds=0.1)
MACHINE = Machine(4, memory_bandwidth=1e11, link_bandwidth=1e9, message_seconds=0.0, jitter=0.0)


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(1, [1]), (4, [1]), (8, [1, 1]), (16, [1, 1, 1, 1]), (12, [2, 3, 2]), (6, [3, 2])],
)
def test_a_node_leaves_the_partial_sums_that_its_shards_need(workers: int, expected: list[int]) -> None:
    assert node_partials(even_plan(range(workers), num_shards=64, epoch=1), MACHINE) == expected


def test_two_nodes_with_whole_subtrees_send_half_a_vector_twice() -> None:
    """The least that any all-reduce can do."""
    plan = even_plan(range(8), num_shards=64, epoch=1)
    assert exchange_seconds(plan, LOAD, MACHINE) == pytest.approx(LOAD.vector_bytes / MACHINE.link_bandwidth)


def test_one_worker_computes_every_shard() -> None:
    seconds = Step(even_plan([0], num_shards=64, epoch=1), LOAD, MACHINE, seed=0).mean_seconds()
    assert seconds == pytest.approx(6.4, rel=0.01)


def test_a_slower_link_never_makes_a_faster_step() -> None:
    links = [replace(MACHINE, link_bandwidth=bandwidth) for bandwidth in (1e8, 1e9, 1e10)]
    rows = table(LOAD, links)
    assert [workers for workers, _ in rows] == [1, 2, 4, 8, 16, 32, 64]
    for _, seconds in rows:
        assert seconds == sorted(seconds, reverse=True)
