"""The numeric fingerprint: what decides the last bits besides the job and its data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from worker.fingerprint import differences, fingerprint

NOW = fingerprint()


def elsewhere(**environment: str) -> Any:
    """The fingerprint of a process with another environment."""
    program = "import json; from worker.fingerprint import fingerprint; print(json.dumps(fingerprint()))"
    command = [sys.executable, "-c", program]
    return json.loads(
        subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True).stdout
    )


def test_it_is_the_same_in_every_process() -> None:
    same = elsewhere(OPENBLAS_NUM_THREADS=str(NOW["blas"]).rpartition("=")[2])
    assert differences(same, NOW) == ()


@pytest.mark.parametrize(
    ("variable", "value", "entry", "word"),
    [
        ("OPENBLAS_CORETYPE", "Haswell", "blas", ""),
        ("OPENBLAS_NUM_THREADS", "1", "blas", "threads=1"),
        ("NPY_DISABLE_CPU_FEATURES", "X86_V3 X86_V4 AVX512_ICL AVX512_SPR", "numpy_simd", ""),
        ("NUMBA_CPU_NAME", "x86-64", "llvm_cpu", "x86-64"),
        ("NUMBA_CPU_FEATURES", "+sse2,-avx", "llvm_features", "+sse2"),
        ("BACKPROP_FLOAT32", "vectors", "float32", ""),
    ],
)
def test_it_sees_what_chooses_other_kernels(variable: str, value: str, entry: str, word: str) -> None:
    found = elsewhere(**{variable: value})
    assert not word or word in found[entry]
    if found[entry] == NOW[entry]:
        pytest.skip(f"this processor, or this environment, has {variable}={value} already")
    assert any(text.startswith(entry) for text in differences(found, NOW))


def test_a_unit_that_nobody_knows_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        elsewhere(BACKPROP_FLOAT32="gpu")
    assert error.value.stderr.decode().endswith("BACKPROP_FLOAT32: got 'gpu', expected amx or vectors, or nothing\n")


def test_the_blas_core_is_known_with_numpys_own_openblas() -> None:
    if "openblas" not in str(NOW["blas"]):
        pytest.skip(f"NumPy's BLAS is {NOW['blas']}")
    assert len(str(NOW["blas"]).split()) == 4, "name, version, core, threads"


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        ({"a": 1}, {"a": 1}, ()),
        ({"numpy": "3"}, {"numpy": "2"}, ("numpy is 3, was 2",)),
        ({"cpu": ["x", "y"]}, {"cpu": ["y", "z"]}, ("cpu gained x, lost z",)),
        ({"cpu": ["x", "y"]}, {"cpu": ["y"]}, ("cpu gained x",)),
        ({"b": 1, "a": 1}, {}, ("a is 1, was None", "b is 1, was None")),
        ({}, {"cpu": ["x"]}, ("cpu is None, was ['x']",)),
    ],
)
def test_differences_are_named(got: dict[str, Any], expected: dict[str, Any], words: tuple[str, ...]) -> None:
    assert differences(got, expected) == words


def test_it_survives_json() -> None:
    assert differences(json.loads(json.dumps(NOW)), NOW) == ()
