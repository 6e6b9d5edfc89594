"""What a number of workers is worth for a number of shards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.plan import busy_share, even_plan, useful_workers


@pytest.mark.parametrize(
    ("num_workers", "num_shards", "expected"),
    [(1, 8, 1.0), (2, 8, 1.0), (3, 8, 8 / 9), (5, 8, 0.8), (7, 8, 8 / 14), (8, 8, 1.0), (1, 1, 1.0), (4, 6, 0.75)],
)
def test_workers_wait_for_the_one_with_the_most_shards(num_workers: int, num_shards: int, expected: float) -> None:
    assert busy_share(num_workers, num_shards) == expected


@given(st.integers(1, 64), st.data())
def test_the_busy_share_is_that_of_the_plan_that_is_made(num_shards: int, data: st.DataObject) -> None:
    num_workers = data.draw(st.integers(1, num_shards))
    shares = even_plan(range(num_workers), num_shards=num_shards, epoch=0).shares
    assert busy_share(num_workers, num_shards) == pytest.approx(num_shards / (num_workers * max(shares)))


def test_only_numbers_of_workers_that_make_a_step_shorter_are_useful() -> None:
    assert useful_workers(1, 8, 8) == (1, 2, 3, 4, 8)
    assert useful_workers(5, 8, 8) == (5, 8)
    assert useful_workers(2, 2, 8) == (2,)
