"""Data sources: what they give, and what bad files are told."""

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from worker.data import source
from worker.data.dataset import Batch, Dataset, Samples
from worker.spec import JobSpec, Task, parse_spec
from worker.violations import SpecError


def data_spec(**kind: object) -> JobSpec:
    return parse_spec({"model": {"mlp": {}}, "data": kind})


def load(**kind: object) -> Dataset:
    return source.load(data_spec(**kind))


def rows(samples: Samples) -> Batch:
    return samples.take(np.arange(len(samples)))


def test_digits_are_real_and_split_without_overlap() -> None:
    data = load(digits={"validation_fraction": 0.25})
    assert data.task is Task.CLASSIFICATION
    assert data.num_outputs == 10
    assert data.input_shape == (1, 8, 8)
    assert (len(data.training), len(data.validation)) == (1348, 449)
    assert 0.0 == rows(data.training).inputs.min() < rows(data.training).inputs.max() == 1.0
    seen = {row.tobytes() for row in rows(data.training).inputs}
    assert sum(row.tobytes() in seen for row in rows(data.validation).inputs) < 3  # but for identical images


@pytest.mark.parametrize("task", list(Task))
def test_synthetic_data_is_a_function_of_its_seed(task: Task) -> None:
    one, same, other = (
        rows(load(synthetic={"task": task.value, "samples": 50, "seed": seed}).training).inputs.tobytes()
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_synthetic_regression_has_real_targets() -> None:
    data = load(synthetic={"task": "regression", "samples": 100, "features": 3, "outputs": 2})
    assert rows(data.training).targets.shape == (80, 2)
    assert rows(data.training).targets.dtype == np.float32
    assert len(data.validation) == 20


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"seed": 1}, {"seed": 2}),
        ({"noise": 0.1}, {"noise": 0.2}),
        ({"validation_fraction": 0.2}, {"validation_fraction": 0.25}),
        ({"task": "classification"}, {"task": "regression"}),
    ],
)
def test_equal_data_has_one_checksum_and_other_data_another(one: dict[str, object], other: dict[str, object]) -> None:
    sums = [load(synthetic={"samples": 40, **options}).sha256 for options in (one, one, other)]
    assert sums[0] == sums[1] != sums[2]


def test_one_bit_of_a_sample_changes_the_checksum(tmp_path: Path) -> None:
    inputs, sums = np.ones((10, 2), np.float32), set()
    for _ in range(2):
        path = save(tmp_path / "data.npz", inputs=inputs, targets=np.arange(10) % 2)
        sums.add(load(arrays={"path": path}).sha256)
        inputs[3, 1] = np.nextafter(inputs[3, 1], 2)
    assert len(sums) == 2


def save(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stub cannot tell arrays from allow_pickle
    return str(path)


def test_arrays_are_read_as_float32_and_classes(tmp_path: Path) -> None:
    inputs, targets = np.arange(20.0).reshape(10, 2), np.arange(10) % 3
    data = load(arrays={"path": save(tmp_path / "a.npz", inputs=inputs, targets=targets)})
    assert data.task is Task.CLASSIFICATION
    assert data.num_outputs == 3
    assert (len(data.training), len(data.validation)) == (8, 2)
    assert rows(data.training).inputs.dtype == np.float32
    assert rows(data.training).targets.dtype == np.int64


def test_validation_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    inputs, targets = np.ones((4, 2, 3)), np.ones((4, 1))
    path = save(
        tmp_path / "a.npz",
        inputs=inputs,
        targets=targets,
        validation_inputs=inputs[:1] * 2,
        validation_targets=targets[:1],
    )
    data = load(arrays={"path": path})
    assert data.task is Task.REGRESSION
    assert rows(data.training).inputs.shape == (4, 2, 3)
    assert rows(data.validation).inputs.tolist() == [[[2.0] * 3] * 2]


def _npz(path: Path, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return str(path)


def _npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def _huge(path: Path) -> str:
    header = _npy(np.zeros((1, 1))).replace(b"(1, 1), }", b"(1099511627776, 1), }")
    return _npz(path, inputs=header, targets=_npy([0]))


GOOD = {"inputs": np.ones((4, 2)), "targets": np.zeros(4, int)}
BAD_FILES: list[tuple[str, Callable[[Path], str], str]] = [
    ("relative path", lambda path: "a.npz", "a.npz: got a relative path, expected an absolute one"),
    ("missing", lambda path: str(path), "no such file"),
    ("directory", lambda path: str(path.parent), "not a regular file"),
    ("not a zip", lambda path: (path.write_text("hello"), str(path))[1], "is not a sound .npz file"),
    ("no inputs", lambda path: save(path, targets=np.zeros(4)), "has no array 'inputs'; found targets"),
    ("no targets", lambda path: save(path, inputs=np.zeros((4, 2))), "has no array 'targets'; found inputs"),
    ("empty", lambda path: save(path, inputs=np.zeros((0, 2)), targets=np.zeros(0)), "got no data (shape (0, 2))"),
    ("one row", lambda path: save(path, inputs=np.ones((1, 2)), targets=np.zeros(1, int)), "expected at least 2"),
    ("ragged", lambda path: save(path, inputs=np.ones((4, 2)), targets=np.zeros(3)), "targets: got 3 rows, expected 4"),
    (
        "flat inputs",
        lambda path: save(path, inputs=np.ones(4), targets=np.zeros(4)),
        "got shape (4,), expected (rows, feat",
    ),
    (
        "NaN",
        lambda path: save(path, **GOOD | {"inputs": np.array([[0, 1], [np.nan, 0]] * 2)}),
        "inputs: got nan at [1, 0]",
    ),
    ("infinite", lambda path: save(path, **GOOD | {"targets": [0.0, np.inf, 0, 0]}), "targets: got inf at [1]"),
    (
        "too large for float32",
        lambda path: save(path, **GOOD | {"inputs": np.full((4, 2), 1e40)}),
        "got 1e+40 at [0, 0]",
    ),
    ("negative class", lambda path: save(path, **GOOD | {"targets": [0, -1, 1, 1]}), "got classes -1 to 1, expected 0"),
    ("text", lambda path: save(path, **GOOD | {"inputs": np.array([["a"]] * 4)}), "got <U1, expected numbers"),
    (
        "objects",
        lambda path: save(path, **GOOD | {"targets": np.array([{}] * 4)}),
        "got Python objects, expected numbers",
    ),
    ("declared too large", _huge, "declares 8796093022208 bytes of data but has "),
    (
        "cut short",
        lambda path: _npz(path, inputs=_npy(np.ones((4, 2)))[:-8], targets=_npy([0])),
        "declares 64 bytes of d",
    ),
    (
        "odd validation",
        lambda path: save(path, **GOOD, validation_inputs=np.ones((1, 3)), validation_targets=[0]),
        "(1, 2)",
    ),
]


@pytest.mark.parametrize(("make", "expected"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES])
def test_a_bad_file_is_told_what_is_wrong(make: Callable[[Path], str], expected: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.npz")
    with pytest.raises(SpecError) as caught:
        source.check(data_spec(arrays={"path": path}))
    (violation,) = caught.value.violations
    assert violation.field == "data.arrays.path"
    assert expected in violation.description
    assert "\n" not in violation.description


def test_synthetic_data_beyond_memory_is_refused_without_making_it() -> None:
    with pytest.raises(SpecError, match="expected at most"):
        source.check(data_spec(synthetic={"samples": 100_000_000, "features": 1 << 20}))


def text(path: str, **options: object) -> Dataset:
    model = {"gpt": {"context": 4, "heads": 1, "width": 8}}
    return source.load(parse_spec({"model": model, "data": {"text": {"path": path, **options}}}))


def test_text_becomes_windows_and_what_follows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcabcabcabcabcäbcab")
    data = text(str(tmp_path / "a.txt"), validation_fraction=0.3)
    assert data.vocabulary == ("a", "b", "c", "ä")
    assert data.num_outputs == 4
    assert (len(data.training), len(data.validation)) == (10, 1)
    batch = data.training.take(np.array([0, 2]))
    assert batch.inputs.tolist() == [[0, 1, 2, 0], [2, 0, 1, 2]]
    assert batch.targets.tolist() == [[1, 2, 0, 1], [0, 1, 2, 0]]
    last = data.training.take(np.array([9]))
    assert last.targets.tolist() == [[1, 2, 0, 1]]


def test_other_text_or_other_windows_have_another_checksum(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    sums = set()
    for content, tokenizer in (("abcd" * 30, "char"), ("abdc" * 30, "char"), ("abdc" * 30, "byte")):
        file.write_text(content)
        sums.add(text(str(file), tokenizer=tokenizer).sha256)
    assert len(sums) == 3


def test_text_as_bytes_from_several_files(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "c.txt"):
        (tmp_path / name).write_text(name * 20)
    data = text(str(tmp_path), pattern="*.py", tokenizer="byte", validation_fraction=0.5)
    assert data.num_outputs == 256
    assert bytes(data.training.take(np.array([0])).inputs[0].tolist()) == b"a.py"
    assert bytes(data.validation.take(np.array([0])).inputs[0].tolist()) == b"b.py"


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (None, {}, "no such file"),
        (b"too short", {}, "got 9 tokens, of which 0 in the held-out part, expected more than the model's context (4)"),
        (b"\xff" * 100, {}, "is no UTF-8 text at byte 0; use tokenizer: byte"),
    ],
)
def test_a_bad_text_is_told_what_is_wrong(
    content: bytes | None, options: dict[str, object], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=re.escape(expected)):
        text(str(path), **options)
