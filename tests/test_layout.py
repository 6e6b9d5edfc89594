"""The layout: imports point one way, modules stay small, and nothing dangerous is called."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 350
ONLY_HERE = {  # module prefix -> the only places of the product that may import it
    "ray": ("worker/actor.py", "service/cluster.py", "service/local_cluster.py", "service/coordinator.py",
            "service/worker_group.py", "service/resumption.py", "service/seats.py", "service/placement.py",
            "service/remote_node.py", "service/survival.py"),
    "service.pb": ("service/pb/", "service/api.py", "service/convert.py", "service/client.py", "service/documents.py",
                   "service/interceptors.py", "service/server.py", "service/cli/"),
    "grpc": ("service/pb/", "service/api.py", "service/client.py", "service/interceptors.py", "service/server.py"),
    "sqlite3": ("service/database.py", "service/store.py"),
    "prometheus_client": ("service/metrics.py", "service/web/"),
    "starlette": ("service/web/",),
    "obstore": ("worker/object_store.py",),
}  # fmt: skip
NEVER = {  # package -> what nothing in it may import
    "worker/": ("service", "grpc", "google", "starlette", "uvicorn", "typer", "rich"),
    "worker/autodiff/": ("worker.nn", "worker.optim", "worker.reduce", "worker.data", "worker.spec", "ray", "pydantic"),
    "worker/nn/": ("worker.optim", "worker.reduce", "worker.data", "worker.spec", "ray", "pydantic"),
    "worker/optim/": ("worker.reduce", "worker.data", "worker.spec", "ray", "pydantic"),
    "worker/reduce/": ("worker.nn", "worker.optim", "worker.data", "worker.spec", "ray", "pydantic"),
    "service/": ("worker.autodiff", "worker.nn", "worker.optim", "worker.models", "torch"),
}
ALLOWED_IN_AUTODIFF = {"numpy", "numba", "llvmlite", "worker"}
DANGEROUS = {"eval", "exec"}


def modules() -> list[Path]:
    found = [path for package in ("service", "worker") for path in (ROOT / package).rglob("*.py")]
    return [path for path in found if "pb/backprop" not in path.as_posix()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def import_faults(name: str, tree: ast.AST) -> Iterator[str]:
    imported = set(imports_of(tree))
    for prefix, places in ONLY_HERE.items():
        if not name.startswith(places) and any(is_within(module, prefix) for module in imported):
            yield f"{name} imports {prefix}, which is for {', '.join(places)}"
    for package, forbidden in NEVER.items():
        for prefix in forbidden:
            if name.startswith(package) and any(is_within(module, prefix) for module in imported):
                yield f"{name} imports {prefix}"
    if name.startswith("worker/autodiff/"):
        roots = {module.partition(".")[0] for module in imported}
        for root in sorted(roots - ALLOWED_IN_AUTODIFF - set(sys.stdlib_module_names)):
            yield f"{name} imports {root}"


def heavy_faults(name: str, tree: ast.AST) -> Iterator[str]:
    """The command line must answer at once: what is heavy is imported where it is used."""
    if not name.startswith("service/cli/") or name.endswith(("serving.py",)):
        return
    body = tree.body if isinstance(tree, ast.Module) else []
    for module in imports_of(ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])):
        if any(is_within(module, heavy) for heavy in ("ray", "numpy", "service.cluster", "service.server")):
            yield f"{name} imports {module} at its top"


def danger_faults(name: str, tree: ast.AST) -> Iterator[str]:
    for module in imports_of(tree):
        if module.partition(".")[0] in ("pickle", "cloudpickle", "marshal", "shelve", "yaml", "pandas"):
            yield f"{name} imports {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in DANGEROUS:
            yield f"{name} calls {node.func.id}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"{name} allows pickle"


Check = Callable[[str, ast.AST], Iterator[str]]
CHECKS: list[Check] = [import_faults, heavy_faults, danger_faults]


@pytest.mark.parametrize("check", CHECKS)
def test_the_product_keeps_to_it(check: Check) -> None:
    faults = [fault for path in modules() for fault in check(name_of(path), ast.parse(path.read_text()))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("check", "name", "source"),
    [
        (import_faults, "worker/step.py", "import service.jobs"),
        (import_faults, "worker/step.py", "from service import jobs"),
        (import_faults, "worker/step.py", "import ray"),
        (import_faults, "worker/spec.py", "def f():\n    from grpc import aio"),
        (import_faults, "worker/autodiff/tensor.py", "import scipy"),
        (import_faults, "worker/autodiff/tensor.py", "from worker import nn"),
        (import_faults, "service/jobs.py", "from service.pb.backprop.v1 import job_pb2"),
        (import_faults, "service/jobs.py", "import sqlite3"),
        (import_faults, "service/dispatcher.py", "from ray.actor import ActorHandle"),
        (heavy_faults, "service/cli/show.py", "import numpy as np"),
        (danger_faults, "service/store.py", "import pickle"),
        (danger_faults, "worker/data/arrays.py", "np.load(path, allow_pickle=True)"),
        (danger_faults, "service/jobfile.py", "eval(text)"),
    ],
)
def test_a_breach_is_found(check: Check, name: str, source: str) -> None:
    """A check that cannot fail proves nothing."""
    assert list(check(name, ast.parse(source)))


def test_modules_are_small() -> None:
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    assert not {name: lines for name, lines in sizes.items() if lines > MAX_LINES}


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    names = {path.parent.stem if path.stem == "__init__" else path.stem for path in modules()}
    assert not names & set(sys.stdlib_module_names)


def test_every_module_says_what_it_is_for() -> None:
    assert not [name_of(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
