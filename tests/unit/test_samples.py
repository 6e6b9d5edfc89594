"""Which steps' metrics are kept, in memory and on disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import limits
from service.runs import StepSample
from service.samples import SampleLog, stride_at


def sample(step: int, loss: float = 0.5) -> StepSample:
    return StepSample(step, loss, 1.0, 0.1, 0.01, is_clipped=False, is_non_finite=False)


def steps_of(log: SampleLog) -> list[int]:
    return [one.step for one in log.after(0, limit=10**6)]


@pytest.mark.parametrize(("newest", "stride"), [(0, 1), (4, 1), (8, 1), (9, 2), (17, 2), (18, 4), (35, 4), (36, 8)])
def test_the_stride_is_a_power_of_two_that_the_newest_step_decides(newest: int, stride: int) -> None:
    assert stride_at(newest, most=8) == stride
    log = SampleLog(map(sample, range(1, newest + 1)), total=1000, most=8)
    assert log.stride == stride
    assert steps_of(log) == list(range(stride, newest + 1, stride))


def test_the_last_step_is_kept_whatever_the_stride() -> None:
    log = SampleLog(map(sample, range(1, 38)), total=37, most=8)
    assert steps_of(log) == [8, 16, 24, 32, 37]


def test_a_million_steps_take_the_memory_of_a_few_thousand() -> None:
    log = SampleLog(total=2_000_000)
    for first in range(1, 1_000_001, 10_000):
        log.add(map(sample, range(first, first + 10_000)))
    assert len(steps_of(log)) <= limits.MAX_SAMPLES
    assert len(log.unsaved) <= limits.MAX_SAMPLES, "not even while nothing can be stored"
    assert log.stride == 256


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 40))
def test_a_log_read_from_the_store_is_the_one_that_was_stored(newest: int, again: int, most: int) -> None:
    log = SampleLog(map(sample, range(1, newest + 1)), total=300, most=most)
    read = SampleLog(log.after(0, limit=1000), total=300, most=most)
    assert read.unsaved == ()
    for one in (log, read):
        one.add(map(sample, range(min(again, newest) + 1, 301)))
    assert steps_of(read) == steps_of(log) == [*range(log.stride, 300, log.stride), 300]


def test_a_step_that_is_done_again_takes_its_place() -> None:
    log = SampleLog(map(sample, (1, 2, 4, 5)), total=9)
    log.add([sample(2, loss=7.0), sample(3)])
    assert [(one.step, one.loss) for one in log.after(0)] == [(1, 0.5), (2, 7.0), (3, 0.5), (4, 0.5), (5, 0.5)]
    assert [one.step for one in log.unsaved] == [2, 3]


@pytest.mark.parametrize(("after", "limit", "expected"), [(0, 2, [1, 2]), (2, 9, [4, 5]), (3, 1, [4]), (5, 9, [])])
def test_a_reader_takes_what_comes_after(after: int, limit: int, expected: list[int]) -> None:
    log = SampleLog(map(sample, (1, 2, 4, 5)), total=9)
    assert [one.step for one in log.after(after, limit=limit)] == expected


def test_what_came_while_the_store_wrote_is_not_saved() -> None:
    log = SampleLog(total=9)
    log.add(map(sample, (1, 2)))
    saving = log.unsaved
    log.add([replace(saving[1], loss=3.0), sample(3)])
    log.note_saved(saving)
    assert [(one.step, one.loss) for one in log.unsaved] == [(2, 3.0), (3, 0.5)]
