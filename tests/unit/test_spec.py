"""Job specs: what is refused and in which words, and the defaults."""

from __future__ import annotations

from typing import Any

import pytest

from worker.spec import AdamOptimizer, Precision, default_shards, parse_spec
from worker.violations import SpecError

VALID: dict[str, Any] = {"model": {"mlp": {}}, "data": {"digits": {}}}
INFINITY, NAN = float("inf"), float("nan")
NAME = "expected at most 63 lower-case letters, digits, '-', '_' and '.', the first a letter or digit"
KEYS = "name, model, data, optimizer, schedule, training, evaluation, checkpoint, workers, priority"

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # what is asked for, the field at fault, what is said of it
    ({"name": ""}, "name", f"got '', {NAME}"),
    ({"name": "Digits"}, "name", f"got 'Digits', {NAME}"),
    ({"name": "../x"}, "name", f"got '../x', {NAME}"),
    ({"name": 3}, "name", "got 3, expected text"),
    ({"zzz": 1}, "zzz", f"unknown key, expected one of {KEYS}"),
    ({"optimiser": {}}, "optimiser", "unknown key; did you mean optimizer?"),
    ({"model": {}}, "model", "got none, expected exactly one of mlp, cnn, gpt, bert"),
    ({"model": None}, "model", "got none, expected exactly one of mlp, cnn, gpt, bert"),
    ({"model": "mlp"}, "model", "got 'mlp', expected a mapping of keys to values"),
    ({"model": {"rnn": {}}}, "model.rnn", "unknown key; did you mean cnn?"),
    ({"model": {"mlp": {"hidden": 64}}}, "model.mlp.hidden", "got 64, expected a list"),
    ({"model": {"mlp": {"hidden": [64, 0]}}}, "model.mlp.hidden.1", "got 0, expected a number >= 1"),
    ({"model": {"mlp": {"hidden": [1.5]}}}, "model.mlp.hidden.0", "got 1.5, expected a whole number"),
    (
        {"model": {"mlp": {"activation": "sigmoid"}}},
        "model.mlp.activation",
        "got 'sigmoid', expected one of 'relu', 'tanh', 'gelu'",
    ),
    ({"data": {}}, "data", "got none, expected exactly one of digits, synthetic, arrays, text"),
    (
        {"data": {"digits": {}, "arrays": {"path": "x"}}},
        "data",
        "got digits and arrays, expected exactly one of digits, synthetic, arrays, text",
    ),
    (
        {"data": {"digits": {"validation_fraction": 1}}},
        "data.digits.validation_fraction",
        "got 1, expected a number < 1",
    ),
    ({"data": {"arrays": {}}}, "data.arrays.path", "missing, expected a value"),
    ({"data": {"arrays": {"path": ""}}}, "data.arrays.path", "got '', expected text that is not empty"),
    ({"data": {"synthetic": {"samples": 1}}}, "data.synthetic.samples", "got 1, expected a number >= 2"),
    ({"optimizer": {"adan": {}}}, "optimizer.adan", "unknown key; did you mean adam?"),
    (
        {"optimizer": {"adamw": {"learning_rat": 1}}},
        "optimizer.adamw.learning_rat",
        "unknown key; did you mean learning_rate?",
    ),
    ({"optimizer": {"adam": {"learning_rate": -1}}}, "optimizer.adam.learning_rate", "got -1, expected a number > 0"),
    ({"optimizer": {"adam": {"learning_rate": 0}}}, "optimizer.adam.learning_rate", "got 0, expected a number > 0"),
    (
        {"optimizer": {"sgd": {"learning_rate": NAN}}},
        "optimizer.sgd.learning_rate",
        "got nan, expected a finite number",
    ),
    (
        {"optimizer": {"sgd": {"learning_rate": INFINITY}}},
        "optimizer.sgd.learning_rate",
        "got inf, expected a finite number",
    ),
    (
        {"optimizer": {"momentum": {"learning_rate": "fast"}}},
        "optimizer.momentum.learning_rate",
        "got 'fast', expected a number",
    ),
    ({"optimizer": {"momentum": {"momentum": 1}}}, "optimizer.momentum.momentum", "got 1, expected a number < 1"),
    ({"optimizer": {"adam": {"beta1": True}}}, "optimizer.adam.beta1", "got True, expected a number"),
    ({"schedule": {"linear": {"min_ratio": 2}}}, "schedule.linear.min_ratio", "got 2, expected a number <= 1"),
    (
        {"schedule": {"cosine": {"warmup_steps": 1000}}},
        "schedule.cosine.warmup_steps",
        "got 1000, expected less than training.max_steps (1000)",
    ),
    ({"training": 3}, "training", "got 3, expected a mapping of keys to values"),
    ({"training": {"global_batch_size": 0}}, "training.global_batch_size", "got 0, expected a number >= 1"),
    ({"training": {"shards": 0}}, "training.shards", "got 0, expected a number >= 1"),
    ({"training": {"shards": 3}}, "training.shards", "got 3, expected a divisor of global_batch_size (64)"),
    ({"training": {"max_steps": "10"}}, "training.max_steps", "got '10', expected a whole number"),
    ({"training": {"max_steps": 0}}, "training.max_steps", "got 0, expected a number >= 1"),
    ({"training": {"clip_norm": 0}}, "training.clip_norm", "got 0, expected a number > 0"),
    ({"training": {"seed": 2**63}}, "training.seed", f"got {2**63}, expected a number < {2**63}"),
    ({"training": {"precision": "fp8"}}, "training.precision", "got 'fp8', expected one of 'fp32', 'bf16', 'fp16'"),
    (
        {"training": {"gradient_checkpointing": "yes"}},
        "training.gradient_checkpointing",
        "got 'yes', expected true or false",
    ),
    (
        {"training": {"on_non_finite": "ignore"}},
        "training.on_non_finite",
        "got 'ignore', expected one of 'fail', 'skip'",
    ),
    ({"evaluation": {"every_steps": -1}}, "evaluation.every_steps", "got -1, expected a number >= 0"),
    ({"checkpoint": {"keep": 0}}, "checkpoint.keep", "got 0, expected a number >= 1"),
    ({"workers": {"min": 0}}, "workers.min", "got 0, expected a number >= 1"),
    ({"workers": {"max": 0}}, "workers.max", "got 0, expected a number >= 1"),
    ({"priority": 1001}, "priority", "got 1001, expected a number <= 1000"),
    ({"priority": 0.5}, "priority", "got 0.5, expected a whole number"),
    ({"workers": {"min": 3, "max": 2}}, "workers.max", "got 2, expected at least min (3)"),
    (
        {"workers": {"max": 9}},
        "workers.max",
        "got 9, expected at most training.shards (8); raise training.shards or ask for fewer workers",
    ),
]


@pytest.mark.parametrize(("parts", "field", "description"), REFUSED, ids=[str(row[0])[:60] for row in REFUSED])
def test_bad_input_names_the_field_and_says_what_was_expected(
    parts: dict[str, Any], field: str, description: str
) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(VALID | parts)
    assert [(violation.field, violation.description) for violation in caught.value.violations] == [(field, description)]


@pytest.mark.parametrize(
    ("document", "shown"), [(None, "nothing"), ([], "[]"), ("digits", "'digits'"), (3, "3")], ids=str
)
def test_a_document_must_be_a_mapping(document: object, shown: str) -> None:
    with pytest.raises(SpecError, match="expected a mapping with the keys model and data") as caught:
        parse_spec(document)
    assert str(caught.value).startswith(f"got {shown}, ")


def test_every_field_at_fault_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"data": {"digits": {"fraction": 1}}, "workers": {"min": 0}})
    assert {violation.field for violation in caught.value.violations} == {
        "model",
        "data.digits.fraction",
        "workers.min",
    }


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(VALID | {"data": {"arrays": {"path": "x" * 5000}}})
    (violation,) = caught.value.violations
    assert violation.description.endswith("expected at most 4096 characters")
    assert len(violation.description) < 120


def test_defaults() -> None:
    spec = parse_spec(VALID)
    assert spec.name == "job"
    assert spec.optimizer.adam == AdamOptimizer(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8)
    assert spec.schedule.kind == "constant"
    assert (spec.training.global_batch_size, spec.training.shards, spec.training.max_steps) == (64, 8, 1000)
    assert (spec.training.clip_norm, spec.training.seed, spec.training.precision) == (None, 0, Precision.FP32)
    assert (spec.workers.min, spec.workers.max) == (1, 1)


def test_null_means_the_default() -> None:
    spec = parse_spec({"model": {"mlp": None}, "data": {"digits": None}, "training": None})
    assert spec == parse_spec(VALID)


@pytest.mark.parametrize(("batch", "shards"), [(64, 8), (12, 4), (6, 2), (7, 1), (1, 1), (8, 8)])
def test_shards_default_to_the_largest_power_of_two_up_to_eight_that_divides_the_batch(batch: int, shards: int) -> None:
    assert default_shards(batch) == shards
    assert parse_spec(VALID | {"training": {"global_batch_size": batch}}).training.shards == shards


def test_max_workers_default_to_min() -> None:
    assert parse_spec(VALID | {"workers": {"min": 3}}).workers.max == 3


def test_adamw_differs_from_adam_in_its_weight_decay() -> None:
    assert parse_spec(VALID | {"optimizer": {"adamw": {}}}).optimizer.chosen.weight_decay == 0.01
    assert parse_spec(VALID | {"optimizer": {"adam": {}}}).optimizer.chosen.weight_decay == 0.0


def test_a_spec_survives_being_written_and_read() -> None:
    spec = parse_spec(VALID | {"model": {"mlp": {"hidden": [3, 4], "activation": "gelu"}}, "workers": {"min": 2}})
    assert parse_spec(spec.model_dump(mode="json", exclude_none=True)) == spec
