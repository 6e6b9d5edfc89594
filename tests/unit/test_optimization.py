"""Optimizers and schedules of the job file: what becomes of them, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from worker.data import source
from worker.optim import rules, schedules
from worker.recipe import recipe_of, rule_of, schedule_of, spans_of
from worker.replica import spec_sha256
from worker.spec import JobSpec, OptimizerSpec, ScheduleSpec, SpecError, parse_spec


def job(**parts: Any) -> JobSpec:
    document = {"model": {"mlp": {}}, "data": {"synthetic": {"samples": 50}}, "training": {"max_steps": 20}}
    return parse_spec(document | parts)


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [
        ({"sgd": {}}, rules.SGD()),
        (
            {"sgd": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}},
            rules.SGD(momentum=0.9, weight_decay=0.1, nesterov=True),
        ),
        ({"sgd": {"momentum": 0.9, "dampening": 1}}, rules.SGD(momentum=0.9, dampening=1)),
        ({"momentum": {}}, rules.Momentum()),
        ({"adam": {}}, rules.Adam()),
        ({"adamw": {}}, rules.AdamW()),
        ({"rmsprop": {}}, rules.RMSprop()),
        (
            {"rmsprop": {"alpha": 0.9, "epsilon": 0.1, "weight_decay": 0.2, "momentum": 0.3, "centered": True}},
            rules.RMSprop(alpha=0.9, epsilon=0.1, weight_decay=0.2, momentum=0.3, centered=True),
        ),
        ({"adagrad": {}}, rules.Adagrad()),
        (
            {"adagrad": {"lr_decay": 0.1, "weight_decay": 0.2, "initial_accumulator_value": 0.3, "epsilon": 0.4}},
            rules.Adagrad(lr_decay=0.1, weight_decay=0.2, initial_accumulator_value=0.3, epsilon=0.4),
        ),
        (
            {"lion": {"beta1": 0.8, "beta2": 0.7, "weight_decay": 0.1}},
            rules.Lion(beta1=0.8, beta2=0.7, weight_decay=0.1),
        ),
        ({"lion": {}, "ema": {"decay": 0.9}}, rules.Averaged(rules.Lion(), 0.9)),
        ({"ema": None, "adam": None}, rules.Averaged(rules.Adam(), 0.999)),
    ],
)
def test_optimizer_becomes_its_rule(optimizer: dict[str, Any], rule: rules.Rule) -> None:
    spec = OptimizerSpec.model_validate(optimizer)
    assert rule_of(spec) == rule
    assert OptimizerSpec.model_validate(spec.model_dump()) == spec


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            {"step": {"step_size": 5, "gamma": 0.5, "warmup_steps": 2}},
            schedules.Step(step_size=5, gamma=0.5, warmup_steps=2),
        ),
        (
            {"wsd": {"decay_steps": 5, "warmup_steps": 2, "min_ratio": 0.1}},
            schedules.WarmupStableDecay(total_steps=20, decay_steps=5, warmup_steps=2, min_ratio=0.1),
        ),
        ({"one_cycle": {}}, schedules.OneCycle(total_steps=20)),
        (
            {"one_cycle": {"pct_start": 0.2, "div_factor": 10, "final_div_factor": 100}},
            schedules.OneCycle(total_steps=20, pct_start=0.2, div_factor=10, final_div_factor=100),
        ),
    ],
)
def test_schedule_becomes_its_function(schedule: dict[str, Any], expected: schedules.Schedule) -> None:
    assert schedule_of(ScheduleSpec.model_validate(schedule), total_steps=20) == expected


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"optimizer": {"ema": {}}},
            "optimizer: got none, expected exactly one of sgd, momentum, adam, adamw, rmsprop, ",
        ),
        ({"optimizer": {"adam": {}, "ema": {"decay": 1.0}}}, "optimizer.ema.decay: got 1.0, expected a number < 1"),
        (
            {"optimizer": {"sgd": {"nesterov": True}}},
            "optimizer.sgd.nesterov: got true, expected false without momentum",
        ),
        (
            {"optimizer": {"sgd": {"nesterov": True, "momentum": 0.9, "dampening": 0.5}}},
            "optimizer.sgd.dampening: got 0.5, expected 0 with nesterov",
        ),
        ({"schedule": {"step": {}}}, "schedule.step.step_size: missing, expected a value"),
        (
            {"schedule": {"step": {"step_size": 5, "warmup_steps": 20}}},
            "schedule.step.warmup_steps: got 20, expected less",
        ),
        (
            {"schedule": {"wsd": {"decay_steps": 15, "warmup_steps": 5}}},
            "schedule.wsd.decay_steps: got 15, expected less than training.max_steps - warmup_steps (15)",
        ),
        (
            {"schedule": {"one_cycle": {"div_factor": 0.5}}},
            "schedule.one_cycle.div_factor: got 0.5, expected a number >= 1",
        ),
        ({"training": {"clip_value": 0}}, "training.clip_value: got 0, expected a number > 0"),
    ],
)
def test_bad_settings_are_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(**parts)
    assert message in str(caught.value)


def test_average_stands_beside_the_optimizer_when_the_job_is_written_down() -> None:
    spec = job(optimizer={"adamw": {}, "ema": {"decay": 0.5}})
    assert list(spec.model_dump()["optimizer"]) == ["adamw", "ema"]
    assert spec.optimizer.kind == "adamw"
    assert parse_spec(spec.model_dump(mode="json")) == spec
    assert "ema" not in OptimizerSpec.kinds()
    assert spec_sha256(spec) != spec_sha256(job(optimizer={"adamw": {}}))


def test_clip_value_reaches_the_recipe() -> None:
    for training, expected in (({}, math.inf), ({"clip_value": 0.5}, 0.5)):
        spec = job(training={"max_steps": 20, **training})
        assert recipe_of(spec, source.load(spec)).clip_value == expected


def test_only_matrices_are_decayed() -> None:
    rule = rules.AdamW(weight_decay=0.1)
    plain = rules.AdamW(weight_decay=0.0)
    assert spans_of(rule, [(3, 4), (4,), (4,), (2, 2), (5, 1)]) == [(0, 12, rule), (12, 20, plain), (20, 29, rule)]
    assert spans_of(plain, [(3, 4), (4,), (2, 2)]) == [(0, 20, plain)]


def test_an_average_is_kept_of_what_is_not_decayed_too() -> None:
    rule = rules.Averaged(rules.SGD(weight_decay=0.5), 0.9)
    assert rules.without_decay(rule) == rules.Averaged(rules.SGD(), 0.9)
