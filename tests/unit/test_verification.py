"""What is compared when a job is trained again, and with what spec."""

from __future__ import annotations

from typing import Any

import pytest

from service.verification import Verification, another_number_of_workers, spec_to_verify, steps_met
from worker.replica import spec_sha256
from worker.spec import JobSpec, parse_spec
from worker.violations import SpecError


def spec(every: int = 100, low: int = 1, high: int = 2, **training: Any) -> JobSpec:
    document = {"model": {"mlp": {}}, "data": {"digits": {}}, "checkpoint": {"every_steps": every}}
    return parse_spec(document | {"training": training, "workers": {"min": low, "max": high}, "priority": 3})


@pytest.mark.parametrize(("high", "shards", "expected"), [(2, 8, 1), (8, 8, 1), (1, 8, 2), (1, 1, 1)])
def test_a_job_is_trained_again_with_another_number_of_workers(high: int, shards: int, expected: int) -> None:
    assert another_number_of_workers(spec(high=high, shards=shards)) == expected


@pytest.mark.parametrize(
    ("every", "saved", "expected_every", "met"),
    [
        (100, [100, 200, 1000], 100, [100, 200, 1000]),
        (100, [100, 137, 200], 100, [100, 200]),  # it was paused at 137
        (0, [1000], 0, [1000]),
        (0, [137, 1000], 0, [1000]),
        (0, [137, 400], 137, [137]),  # it was paused twice and has not ended
        (100, [50], 50, [50]),
    ],
)
def test_the_second_job_saves_where_the_first_did(
    every: int, saved: list[int], expected_every: int, met: list[int]
) -> None:
    first = spec(every)
    second = spec_to_verify(first, "job-abcdef", workers=4, saved=saved)
    assert (second.checkpoint.every_steps, second.name) == (expected_every, "verify-job-abcdef")
    assert (second.workers.min, second.workers.max) == (4, 4)
    assert spec_sha256(second) == spec_sha256(first)
    assert steps_met(saved, expected_every, last=1000) == met


def test_more_workers_than_shards_are_refused() -> None:
    with pytest.raises(SpecError, match="got 9, expected at most"):
        spec_to_verify(spec(), "job-abcdef", workers=9, saved=[100])


def test_runs_are_equal_when_all_checkpoints_are() -> None:
    verification = Verification({10: "aa", 20: "bb"})
    assert verification.compare(5, "xx") is None
    assert verification.compare(10, "aa") is not None
    assert (verification.is_complete, verification.is_equal) == (False, False)
    assert verification.compare(10, "aa") is None, "a step that was redone alike is nothing new"
    verification.compare(20, "bb")
    assert (verification.is_complete, verification.is_equal, verification.parted_at) == (True, True, None)


def test_the_first_difference_ends_the_comparison() -> None:
    verification = Verification({10: "aa", 20: "bb", 30: "cc"})
    verification.compare(10, "aa")
    verification.compare(20, "b!")
    assert (verification.is_complete, verification.is_equal) == (True, False)
    assert (verification.agreed_until, verification.parted_at) == (10, 20)


@pytest.mark.parametrize(("found", "agreed", "parted"), [("b!", 10, 20), ("bb", 20, None)])
def test_runs_that_begin_with_the_same_checkpoint_agree_up_to_it(found: str, agreed: int, parted: int | None) -> None:
    verification = Verification({20: "bb"}, start=10)
    assert verification.agreed_until == 10
    verification.compare(20, found)
    assert (verification.agreed_until, verification.parted_at) == (agreed, parted)


def test_a_step_that_is_redone_with_other_weights_is_a_difference() -> None:
    verification = Verification({10: "aa", 20: "bb"})
    verification.compare(10, "aa")
    verification.compare(10, "a!")
    assert (verification.is_complete, verification.is_equal, verification.parted_at) == (True, False, 10)
