"""The segment: what one process writes another reads, and nothing of it stays."""

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from worker.autodiff.kernels import BLOCK
from worker.phases import PhaseClock
from worker.plan import even_plan
from worker.reduce.barrier import Barrier, PlanChangedError
from worker.reduce.kernels import add_into, reduce_range
from worker.reduce.segment import DIRECTORY, PHASES, Segment, SegmentError, Shape
from worker.reduce.tree import cross_joins


def shape_of(num_parameters: int, num_workers: int, num_states: int = 2) -> Shape:
    return Shape(num_parameters, num_states, num_shards=4, num_seats=num_workers, num_slots=2 * num_workers)


@pytest.fixture
def path() -> Iterator[Path]:
    path = DIRECTORY / f"backprop-test-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


def test_another_mapping_sees_what_was_written(path: Path) -> None:
    shape = shape_of(1000, 2)
    mine = Segment.create(path, shape)
    other = Segment.attach(path, shape)
    mine.weights(7)[:] = 1.5
    mine.state(7)[1][:] = 2.5
    mine.gradient(3)[:] = 3.5
    mine.control.commit(7)
    assert other.control.committed == 7
    assert other.weights(7).tolist() == [1.5] * 1000
    assert other.weights(8).tolist() == [0.0] * 1000
    assert [vector[0] for vector in other.state(7)] == [0.0, 2.5]
    assert other.gradient(3)[999] == 3.5
    assert other.gradient(2)[0] == other.gradient(1)[0] == 0.0
    assert path.stat().st_mode & 0o777 == 0o600
    mine.close()
    other.close()


def test_unlink_leaves_no_file(path: Path) -> None:
    segment = Segment.create(path, shape_of(10, 1))
    segment.unlink()
    assert not path.exists()
    segment.close()


def test_a_segment_is_not_created_over_another(path: Path) -> None:
    Segment.create(path, shape_of(10, 1)).close()
    with pytest.raises(FileExistsError):
        Segment.create(path, shape_of(10, 1))


def test_attaching_with_other_sizes_is_refused(path: Path) -> None:
    Segment.create(path, shape_of(10, 1)).close()
    with pytest.raises(SegmentError, match="expected"):
        Segment.attach(path, shape_of(100_000, 1))
    with pytest.raises(SegmentError, match="got the sizes"):
        Segment.attach(path, shape_of(11, 1))


def test_a_job_larger_than_the_memory_is_refused(path: Path) -> None:
    with pytest.raises(SegmentError, match="are free"):
        Segment.create(path, shape_of(1 << 40, 1))
    assert not path.exists()


@pytest.mark.parametrize("num_parameters", [1, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK + 5])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
def test_ranges_cover_all_parameters_in_whole_blocks(num_parameters: int, num_workers: int) -> None:
    shape = shape_of(num_parameters, num_workers)
    ranges = [shape.range_of(place, num_workers) for place in range(num_workers)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_parameters
    for (_, stop), (start, _) in itertools.pairwise(ranges):
        assert stop == start
        assert start % BLOCK == 0 or start == num_parameters


@pytest.mark.parametrize("num_parameters", [1, 100, BLOCK, 3 * BLOCK + 17])
def test_reduce_is_the_same_for_any_split_of_the_range(num_parameters: int) -> None:
    random = np.random.default_rng(0)
    slots = random.standard_normal((4, num_parameters)).astype(np.float32)
    assignments = even_plan(range(2), num_shards=4, epoch=0).assignments()
    joins = np.array([(join.into, join.other) for join in cross_joins(assignments)], np.int64)
    results = []
    for num_workers in (1, 2, 3):
        shape, mine = shape_of(num_parameters, num_workers), slots.copy()
        squares = np.zeros(shape.num_blocks)
        for place in range(num_workers):
            reduce_range(mine, joins, *shape.range_of(place, num_workers), squares)
        results.append((mine[0].tobytes(), squares.tobytes()))
    assert len(set(results)) == 1
    expected = (slots[0] + slots[1]) + (slots[2] + slots[3])
    assert np.frombuffer(results[0][0], np.float32).tolist() == expected.tolist()
    assert np.frombuffer(results[0][1]).sum() == pytest.approx((expected.astype(np.float64) ** 2).sum())


def test_a_non_finite_gradient_shows_in_the_squares() -> None:
    for poison in (np.nan, np.inf, -np.inf):
        slots = np.ones((1, 100), np.float32)
        slots[0, 57] = poison
        squares = np.zeros(1)
        reduce_range(slots, np.zeros((0, 2), np.int64), 0, 100, squares)
        assert not np.isfinite(squares[0])


def test_large_gradients_do_not_overflow_the_norm() -> None:
    slots = np.full((1, 100), 3e38, np.float32)
    squares = np.zeros(1)
    reduce_range(slots, np.zeros((0, 2), np.int64), 0, 100, squares)
    assert np.isfinite(squares[0])


def test_add_into_adds_in_place() -> None:
    into, other = np.arange(5, dtype=np.float32), np.ones(5, np.float32)
    add_into(into, other)
    assert into.tolist() == [1, 2, 3, 4, 5]


def _count_together(path: Path, shape: Shape, rank: int, rounds: int) -> None:
    """Each round, every worker writes the round's number and must then read it from all others."""
    segment = Segment.attach(path, shape)
    barrier = Barrier(segment.control, rank, members=range(shape.num_seats), epoch=1)
    for number in range(rounds):
        segment.gradient(rank)[0] = number
        barrier.wait()
        seen = {float(segment.gradient(other)[0]) for other in range(shape.num_seats)}
        assert seen == {float(number)}, f"rank {rank}, round {number}: saw {seen}"
        barrier.wait()
    segment.close()


def test_a_barrier_holds_everyone_until_the_last_has_come(path: Path) -> None:
    shape = shape_of(100, 3)
    segment = Segment.create(path, shape)
    segment.control.open_plan()
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_count_together, args=(path, shape, rank, 300)) for rank in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0, 0]
    segment.close()


def test_a_wait_ends_when_the_plan_is_abandoned(path: Path) -> None:
    segment = Segment.create(path, shape_of(100, 2))
    epoch = segment.control.open_plan()
    barrier = Barrier(segment.control, 0, members=(0, 1), epoch=epoch)
    segment.control.abandon_plan()
    with pytest.raises(PlanChangedError):
        barrier.wait()
    segment.close()


def test_what_a_worker_of_an_earlier_plan_left_does_not_count_as_arrived(path: Path) -> None:
    """A counter that a dead worker had raised high must not let its successor's barriers through."""
    segment = Segment.create(path, shape_of(100, 2))
    epoch = segment.control.open_plan()
    for _ in range(5):
        Barrier(segment.control, 1, members=(1,), epoch=epoch).wait()
    barrier = Barrier(segment.control, 0, members=(0, 1), epoch=segment.control.open_plan())
    segment.control.abandon_plan()
    with pytest.raises(PlanChangedError):
        barrier.wait()
    segment.close()


def test_the_last_barrier_holds_for_all_when_all_had_come_though_the_plan_is_abandoned(path: Path) -> None:
    segment = Segment.create(path, shape_of(100, 2))
    epoch = segment.control.open_plan()
    first, second = (Barrier(segment.control, seat, members=(0, 1), epoch=epoch) for seat in (0, 1))
    segment.control.abandon_plan()
    with pytest.raises(PlanChangedError):
        first.wait()
    second.wait()
    segment.close()


def test_a_pulse_tells_what_its_worker_does(path: Path) -> None:
    segment = Segment.create(path, shape_of(100, 2))
    clock, before = PhaseClock(segment.control, 1), time.monotonic()
    clock.work_on(7, range(2, 4))
    clock.enter("forward")
    pulse = segment.control.pulse(1)
    assert (pulse.stage, pulse.step, pulse.shards, pulse.arrivals) == ("forward", 7, range(2, 4), 0)
    assert before <= pulse.beat <= time.monotonic()
    assert segment.control.pulse(0).beat == 0
    clock.enter("norm")
    clock.enter("idle")
    clock.enter("evaluate")
    seconds = dict(zip(PHASES, segment.control.phase_seconds[1].tolist(), strict=True))
    assert {phase for phase, spent in seconds.items() if spent > 0} == {"forward", "update"}
    segment.close()
