"""Job files: what YAML means, where each complaint points, and what `--set` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service import limits
from service.jobfile import JobFile, JobFileError, Override, explain, parse_override, read
from worker.spec import parse_spec
from worker.violations import SpecError, Violation

HERE = Path("/here")
EXAMPLE = """name: x
model: {mlp: {hidden: [64, x]}}
data:
  digits:
optimizer:
  adamw:
    learning_rat: 1e-3
training:
  global_batch_size: 10
  shards: 3
"""


def load(text: str, *settings: str) -> JobFile:
    return read("job.yaml", text, overrides=map(parse_override, settings), directory=HERE)


def complaints(text: str, *settings: str) -> list[str]:
    file = load(text, *settings)
    with pytest.raises(SpecError) as caught:
        parse_spec(file.document)
    return explain(file, caught.value.violations)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("3", 3),
        ("3.0", 3.0),
        ("0o10", 8),
        ("true", True),
        ("no", "no"),
        ("yes", "yes"),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("[1, 2]", [1, 2]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("2026-01-01", "2026-01-01"),
        ("!!python/object:os.system ls", "ls"),
    ],
)
def test_values_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    loaded = load(f"key: {text}").document["key"]
    assert (loaded, type(loaded)) == (value, type(value))
    assert parse_override(f"key={text}").value == value


def test_json_is_yaml_even_with_tabs() -> None:
    assert load('{\n\t"model": {"mlp": {"hidden": [1,\n\t2]}}}').document == {"model": {"mlp": {"hidden": [1, 2]}}}


def test_each_complaint_points_to_its_line() -> None:
    assert complaints(EXAMPLE) == [
        "job.yaml:2: model.mlp.hidden.1: got 'x', expected a whole number",
        "job.yaml:7: optimizer.adamw.learning_rat: unknown key; did you mean learning_rate?",
        "job.yaml:10: training.shards: got 3, expected a divisor of global_batch_size (10)",
    ]


def test_a_missing_key_points_to_its_parent() -> None:
    assert complaints("model: {mlp: {}}\ndata:\n  arrays: {}\n") == [
        "job.yaml:3: data.arrays.path: missing, expected a value"
    ]
    assert complaints("data: {digits: {}}") == ["job.yaml: model: missing, expected one of mlp, cnn, gpt, bert"]


def test_a_complaint_about_an_override_points_to_it() -> None:
    text = "model: {mlp: {}}\ndata: {digits: {}}\nworkers:\n  min: 1\n"
    assert complaints(text, "workers.min=0") == ["--set workers.min=0: workers.min: got 0, expected a number >= 1"]
    assert complaints(text, "workers={min: 0}") == [
        "--set workers={min: 0}: workers.min: got 0, expected a number >= 1"
    ]


def test_of_two_overrides_the_later_counts_and_is_blamed() -> None:
    text = "model: {mlp: {}}\ndata: {digits: {}}"
    assert complaints(text, "workers.min=2", "workers.min=0")[0].startswith("--set workers.min=0: ")
    assert load(text, "workers.min=0", "workers.min=2").document["workers"] == {"min": 2}


def test_an_option_of_its_own_can_be_an_override() -> None:
    file = read("job.yaml", "", overrides=[Override("--workers 9", "workers", {"min": 9})], directory=HERE)
    assert explain(file, [Violation("workers.min", "got 9, expected at most 2")]) == [
        "--workers 9: workers.min: got 9, expected at most 2"
    ]


def test_an_override_makes_the_parts_on_its_way() -> None:
    assert load("model:\n", "model.mlp.hidden=[3]", "data.digits=").document == {
        "model": {"mlp": {"hidden": [3]}},
        "data": {"digits": None},
    }


def test_an_override_leaves_its_neighbours_alone() -> None:
    document = load("training: {max_steps: 5, seed: 1}", "training.seed=2").document
    assert document == {"training": {"max_steps": 5, "seed": 2}}


@pytest.mark.parametrize(
    ("text", "settings", "line"),
    [
        ("a: 1\na: 2", (), 'job.yaml:2: found duplicate key "a" with value "2" (original value: "1")'),
        ("a: [1", (), "job.yaml:1: expected ',' or ']', but got '<stream end>'"),
        ("a:\n  b: 1\n c: 2", (), "job.yaml:3: expected <block end>, but found '<block mapping start>'"),
        ("a: 1\n---\nb: 2", (), "job.yaml:2: but found another document"),
        ("", ("nonsense",), "--set: got 'nonsense', expected KEY=VALUE such as training.max_steps=100"),
        ("", ("a..b=1",), "--set: got 'a..b=1', expected KEY=VALUE such as training.max_steps=100"),
        ("", ("=1",), "--set: got '=1', expected KEY=VALUE such as training.max_steps=100"),
        ("", ("a=[1",), "--set a=[1: expected ',' or ']', but got '<stream end>'"),
        ("a: 1", ("a.b=2",), "--set a.b=2: a is 1, expected a mapping"),
        ("3", ("a=2",), "--set a=2: the file is 3, expected a mapping"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(text: str, settings: tuple[str, ...], line: str) -> None:
    with pytest.raises(JobFileError) as caught:
        load(text, *settings)
    assert caught.value.lines == (line,)


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "[" * 1000,
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"{x}: &{x} [{', '.join(['*' + y] * 10)}]\n" for x, y in zip("bcdefgh", "abcdefg", strict=True)),
        "a: [" + "1, " * limits.MAX_JOB_FILE_VALUES + "1]",
        "{a: " * 30 + "1" + "}" * 30,
    ],
    ids=["not text", "endlessly nested", "aliases that multiply", "too many values", "too deep"],
)
def test_hostile_files_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(JobFileError) as caught:
        load(text)
    (line,) = caught.value.lines
    assert line.startswith("job.yaml")
    assert "\n" not in line


def test_a_relative_path_to_data_starts_where_the_user_is() -> None:
    assert load("data: {arrays: {path: a/b.npz}}").document["data"]["arrays"]["path"] == "/here/a/b.npz"
    assert load("data: {arrays: {path: /a/b.npz}}").document["data"]["arrays"]["path"] == "/a/b.npz"
    home = str(Path("~/b.npz").expanduser())
    assert load("data: {arrays: {path: ~/b.npz}}").document["data"]["arrays"]["path"] == home


def test_a_relative_path_in_an_override_starts_there_too() -> None:
    assert load("", "data.arrays.path=b.npz").document["data"]["arrays"]["path"] == "/here/b.npz"


@pytest.mark.parametrize(
    "data", [3, {"arrays": 3}, {"arrays": {"path": 3}}, {"arrays": {"path": ""}}, {"digits": {}}], ids=str
)
def test_what_is_no_path_is_left_to_the_spec(data: Any) -> None:
    assert load(json.dumps({"data": data})).document == {"data": data}


def test_the_example_is_valid() -> None:
    example = Path(__file__).parents[2] / "examples" / "digits.yaml"
    spec = parse_spec(read(str(example), example.read_text(), directory=HERE).document)
    assert (spec.name, spec.workers.min, spec.workers.max, spec.training.shards) == ("digits", 2, 2, 4)
