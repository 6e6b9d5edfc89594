"""Schedules: factors on the learning rate, as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.optim import schedules


def test_constant() -> None:
    assert [schedules.Constant()(step) for step in (0, 10**9)] == [1, 1]


def test_linear_warms_up_and_falls_to_its_ratio_at_the_last_step() -> None:
    schedule = schedules.Linear(total_steps=8, warmup_steps=3, min_ratio=0.2)
    assert [schedule(step) for step in range(10)] == pytest.approx([0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


def test_linear_stays_at_one_by_default() -> None:
    schedule = schedules.Linear(total_steps=5, warmup_steps=1)
    assert [schedule(step) for step in range(5)] == [0.5, 1, 1, 1, 1]


def test_cosine_warms_up_and_falls_to_its_ratio_at_the_last_step() -> None:
    schedule = schedules.Cosine(total_steps=6, warmup_steps=1, min_ratio=0.1)
    expected = [0.5, 1, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2, 0.1]
    assert [schedule(step) for step in range(6)] == pytest.approx(expected)
    assert schedule(100) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", [schedules.Linear, schedules.Cosine])
@given(total=st.integers(1, 50), data=st.data())
def test_factor_stays_between_zero_and_one_and_falls_after_the_warm_up(
    kind: type[schedules.Cosine], total: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    schedule = kind(total_steps=total, warmup_steps=warmup, min_ratio=data.draw(st.floats(0, 1)))
    factors = [schedule(step) for step in range(total + 2)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[warmup] == 1


@pytest.mark.parametrize("arguments", [{"warmup_steps": 5}, {"warmup_steps": -1}, {"min_ratio": 2.0}])
def test_bad_numbers_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        schedules.Cosine(total_steps=5, **arguments)


def test_step_falls_by_gamma_every_step_size_steps() -> None:
    schedule = schedules.Step(step_size=2, gamma=0.5, warmup_steps=1)
    assert [schedule(step) for step in range(7)] == [0.5, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_warmup_stable_decay() -> None:
    schedule = schedules.WarmupStableDecay(total_steps=9, warmup_steps=1, decay_steps=4, min_ratio=0.2)
    assert [schedule(step) for step in range(11)] == pytest.approx([0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


def test_one_cycle_goes_up_and_down() -> None:
    schedule = schedules.OneCycle(total_steps=11, pct_start=5 / 11, div_factor=4, final_div_factor=10)
    factors = [schedule(step) for step in range(13)]
    assert factors[0] == 0.25
    assert factors[4] == pytest.approx(1)
    assert factors[2] == pytest.approx(0.625)
    assert factors[10] == factors[12] == pytest.approx(0.025)
    assert factors[:5] == sorted(factors[:5])
    assert factors[4:] == sorted(factors[4:], reverse=True)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("schedule", "like"),
    [
        (schedules.Step(step_size=3, gamma=0.5), lambda lr, o: lr.StepLR(o, 3, 0.5)),
        (schedules.Cosine(total_steps=21), lambda lr, o: lr.CosineAnnealingLR(o, 20)),
        (
            schedules.Linear(total_steps=11, min_ratio=0.1),
            lambda lr, o: lr.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=10),
        ),
        (schedules.OneCycle(total_steps=20), lambda lr, o: lr.OneCycleLR(o, 1.0, 20)),
        (
            schedules.OneCycle(total_steps=20, pct_start=0.43, div_factor=10, final_div_factor=100),
            lambda lr, o: lr.OneCycleLR(o, 1.0, 20, pct_start=0.43, div_factor=10, final_div_factor=100),
        ),
        (schedules.OneCycle(total_steps=20, pct_start=0.0), lambda lr, o: lr.OneCycleLR(o, 1.0, 20, pct_start=0.0)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),  # the same in every process
)
def test_schedule_is_pytorchs(schedule: schedules.Schedule, like: Callable[[Any, Any], Any]) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = like(torch.optim.lr_scheduler, optimizer)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 20:
            reference.step()
    np.testing.assert_allclose([schedule(step) for step in range(20)], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.Step(step_size=0),
        lambda: schedules.Step(step_size=1, gamma=0.0),
        lambda: schedules.Step(step_size=1, warmup_steps=-1),
        lambda: schedules.WarmupStableDecay(total_steps=5, warmup_steps=2, decay_steps=3),
        lambda: schedules.WarmupStableDecay(total_steps=5, decay_steps=0),
        lambda: schedules.OneCycle(total_steps=0),
        lambda: schedules.OneCycle(total_steps=5, pct_start=1.5),
        lambda: schedules.OneCycle(total_steps=5, div_factor=0.5),
        lambda: schedules.OneCycle(total_steps=5, final_div_factor=math.nan),
    ],
)
def test_bad_numbers_of_the_others_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^\w+ is [\w.-]+, expected"):
        make()
