"""What the coordinator reads off the control page."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.nodes import Nodes
from service.observer import Observer
from worker.reduce.segment import DIRECTORY, RING_STEPS, Segment, Shape
from worker.spec import JobSpec, parse_spec


@pytest.fixture
def segment() -> Iterator[Segment]:
    path: Path = DIRECTORY / f"backprop-test-{os.getpid()}"
    segment = Segment.create(path, Shape(10, 0, num_shards=2, num_seats=1, num_slots=1))
    path.unlink()
    yield segment
    segment.close()


@pytest.fixture
def nodes(segment: Segment) -> Nodes:
    nodes = Nodes("here", segment.path)
    nodes.here.segment = segment
    return nodes


@pytest.fixture
def spec() -> JobSpec:
    return parse_spec(
        {"model": {"mlp": {}}, "data": {"digits": {}}, "training": {"max_steps": 100_000, "global_batch_size": 10}}
    )


def commit(segment: Segment, step: int) -> None:
    """As rank 0 does it: the record first, then the commit."""
    segment.control.ring[step % RING_STEPS] = step, step / 10, 2.0, 0.1, 0.001, step % 2, 0, 0
    segment.control.commit(step)


async def test_every_step_is_told_once_and_in_order(segment: Segment, nodes: Nodes, spec: JobSpec) -> None:
    observer = Observer(nodes, spec, committed=0)
    assert (await observer.read())[0] == ()
    for step in (1, 2, 3):
        commit(segment, step)
    samples, _ = await observer.read()
    assert [(sample.step, sample.loss, sample.is_clipped) for sample in samples] == [
        (1, 0.1, True),
        (2, 0.2, False),
        (3, 0.3, True),
    ]
    assert (await observer.read())[0] == ()
    commit(segment, 4)
    assert [sample.step for sample in (await observer.read())[0]] == [4]
    assert observer.progress.loss == 0.4


async def test_a_reader_that_lags_loses_the_oldest_steps_and_never_gets_a_wrong_one(
    segment: Segment, nodes: Nodes, spec: JobSpec
) -> None:
    observer = Observer(nodes, spec, committed=0)
    last = 3 * RING_STEPS
    for step in range(1, last + 1):
        commit(segment, step)
    steps = [sample.step for sample in (await observer.read())[0]]
    assert steps == list(range(steps[0], last + 1))
    assert RING_STEPS // 2 < len(steps) < RING_STEPS


async def test_progress_tells_speed_and_time_left(segment: Segment, nodes: Nodes, spec: JobSpec) -> None:
    observer = Observer(nodes, spec, committed=0)
    assert observer.progress.samples_per_second is None
    commit(segment, 50_000)
    await observer.read()
    progress = observer.progress
    assert progress.steps_completed == 50_000
    assert progress.samples_per_second is not None
    assert progress.estimated_remaining_seconds == pytest.approx(500_000 / progress.samples_per_second)


async def test_phase_seconds_are_summed_over_workers(segment: Segment, nodes: Nodes, spec: JobSpec) -> None:
    segment.control.phase_seconds[0] = range(6)
    _, phases = await Observer(nodes, spec, committed=0).read()
    assert phases == {"data": 0, "forward": 1, "backward": 2, "reduce": 3, "update": 4, "wait": 5}


async def test_what_was_there_in_the_end_is_told_when_the_memory_has_gone(
    segment: Segment, nodes: Nodes, spec: JobSpec
) -> None:
    observer = Observer(nodes, spec, committed=0)
    commit(segment, 1)
    assert [sample.step for sample in (await observer.read())[0]] == [1]
    commit(segment, 2)
    segment.control.phase_seconds[0, 0] = 1.5
    await observer.look()
    observer.let_go()
    commit(segment, 3)
    samples, phase_seconds = await observer.read()
    assert [sample.step for sample in samples] == [2]
    assert sum(phase_seconds.values()) == 1.5
    assert await observer.read() == ((), phase_seconds)
    observer.let_go()
    assert (observer.progress.steps_completed, observer.progress.loss) == (2, 0.2)
