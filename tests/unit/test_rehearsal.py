"""Kernels: what is compiled is counted, and after a rehearsal nothing is left to load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from numba import njit
from numba.core.event import install_listener

from worker.autodiff.kernels.compilation import COMPILE, Compilations, NotCompiledError
from worker.replica import Replica
from worker.spec import parse_spec

TEXT = {"text": {"path": str(Path(__file__)), "validation_fraction": 0.2}}
SMALL = {"layers": 1, "heads": 2, "width": 16, "context": 12}
ROWS = {"synthetic": {"samples": 500, "features": 70}}
CLIPPED = {"clip_norm": 1.0, "clip_value": 0.1}


def document(model: object, data: object = ROWS, training: dict[str, Any] = CLIPPED, **parts: object) -> dict[str, Any]:
    common = {"global_batch_size": 8, "shards": 4, "max_steps": 3}
    return {"model": model, "data": data, "training": common | training, **parts}


JOBS = {
    "gpt": document({"gpt": SMALL | {"dropout": 0.1}}, TEXT, optimizer={"adamw": {}, "ema": {}}),
    "bert": document({"bert": SMALL | {"dropout": 0.1}}, TEXT, {"gradient_checkpointing": True}),
    "cnn": document({"cnn": {"stages": [4, 8]}}, {"digits": {}}, optimizer={"momentum": {}}),
    "gelu": document({"mlp": {"hidden": [8], "activation": "gelu"}}, optimizer={"rmsprop": {"centered": True}}),
    "tanh": document({"mlp": {"hidden": [8], "activation": "tanh"}}, optimizer={"adagrad": {}}),
    "relu": document({"mlp": {"hidden": [8]}}, optimizer={"lion": {}}),
    "linear": document(
        {"mlp": {}}, {"synthetic": {"task": "regression", "features": 9}}, {}, optimizer={"sgd": {"momentum": 0.9}}
    ),
}

JOBS |= {
    "gpt, bf16": document({"gpt": SMALL}, TEXT, {"precision": "bf16"}),
    "cnn, fp16": document({"cnn": {"stages": [4, 8]}}, {"digits": {}}, {"precision": "fp16"}),
}

# In a process that has loaded nothing yet: which overloads there are before and after two workers' steps.
PROGRAM = """
import gc, json, os, sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from tests.unit.test_exactness import Gang
from worker.spec import parse_spec

def loaded():
    kernels = [kernel for kernel in gc.get_objects() if isinstance(kernel, Dispatcher)]
    return {f"{k.py_func.__module__}.{k.py_func.__name__}{s}" for k in kernels for s in k.signatures}

spec, path = parse_spec(json.loads(sys.argv[1])), Path(sys.argv[2])
gang = Gang(spec, 2, path, rehearsed=True)
before = loaded()
gang.run(3)
gang.evaluate()
assert gang.segment.control.committed == 3
print(json.dumps([len(before), sorted(loaded() - before)]))
"""


@pytest.mark.parametrize("name", list(JOBS))
def test_after_a_rehearsal_no_kernel_is_missing(name: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(JOBS[name]), str(tmp_path / "segment")]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    num_rehearsed, missing = json.loads(done.stdout)
    assert num_rehearsed > 3
    assert missing == []


def test_what_is_compiled_is_counted_once() -> None:
    inner: Any = njit(lambda x: x + 1)
    outer: Any = njit(lambda x: inner(x) * 2)
    with pytest.raises(NotCompiledError), install_listener(COMPILE, Compilations(allowed=False)):
        outer(1.0)
    counts = Compilations(allowed=True)
    with install_listener(COMPILE, counts):
        assert outer(1.0) == outer(1.0) == 4.0
        assert counts.num_kernels == 1
        outer(1)
        assert counts.num_kernels == 2
    with install_listener(COMPILE, Compilations(allowed=False)):
        outer(1.0)


def test_a_rehearsal_may_be_repeated() -> None:
    replica = Replica.load(parse_spec(JOBS["relu"]), capacity=1)
    assert replica.rehearse(may_compile=True) is not None
    assert replica.rehearse(may_compile=False) == 0
