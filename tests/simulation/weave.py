"""The product's modules, loaded anew so that a simulation can come between any two of their instructions that matter.

A worker's code blocks: at barriers, and for as long as its arithmetic takes. Here it is compiled with `yield` in those
places, from its own source; nothing is written twice. A mutant is the same source with a few words replaced.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
MODULES = (  # in the order in which they import each other
    "worker.reduce.tree", "worker.plan", "worker.reduce.segment", "worker.reduce.barrier", "worker.reduce.exchange",
    "worker.phases", "worker.update", "worker.step", "worker.replica", "service.losses", "service.membership",
    "service.vigil", "service.node", "service.nodes", "service.observer", "service.seats", "service.spare",
    "service.order", "service.lookout", "service.resumption", "service.startup", "service.worker_group",
    "service.checkpoint_writer", "service.coordinator",
)  # fmt: skip
WOVEN = {  # functions that become generators
    "worker.reduce.barrier": {"wait"},
    "worker.reduce.exchange": {"__call__"},
    "worker.update": {"__call__", "_wait", "_write_next", "_apply", "_record"},
    "worker.step": {"__call__", "_compute"},
    "worker.replica": {"create_segment", "join", "run", "evaluate"},
}
YIELDING = {  # calls in them, of generators: of those above, and of what the simulation puts in
    "wait", "_wait", "_write_next", "_apply", "_record", "_update", "_reduce", "_compute", "step", "enter", "fence",
    "reduce_range", "add_into", "update", "backward", "create", "sched_yield", "sleep",
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """Words of a module's source, which stand there once, and what takes their place."""

    module: str
    old: str
    new: str


class _Weaver(ast.NodeTransformer):
    """Turns calls of generators into `yield from`."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return ast.YieldFrom(node) if name in YIELDING else node

    def visit_withitem(self, node: ast.withitem) -> ast.withitem:
        """A context manager is entered, not waited for."""
        return node


def _source_of(module: str, mutations: Sequence[Mutation]) -> str:
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    for mutation in mutations:
        if mutation.module == module:
            assert source.count(mutation.old) == 1, f"{module}: expected once: {mutation.old}"
            source = source.replace(mutation.old, mutation.new)
    return source


def _woven(module: str, mutations: Sequence[Mutation]) -> Any:
    tree = ast.parse(_source_of(module, mutations))
    wanted = WOVEN.get(module, set())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            found.add(node.name)
            node.body = [_Weaver().visit(statement) for statement in node.body]
    assert found == wanted, f"{module}: {wanted - found} is no more"
    return compile(ast.fix_missing_locations(tree), f"<simulated {module}>", "exec")


Put = Callable[[ModuleType], Mapping[str, object]]


def load(put: Mapping[str, Put], mutations: Sequence[Mutation] = ()) -> dict[str, Any]:
    """The modules by name. `put` says, for a module that was just loaded, which of its names mean something else."""
    unknown = {mutation.module for mutation in mutations} - set(MODULES)
    assert not unknown, f"not simulated: {unknown}"
    real = {name: importlib.import_module(name) for name in MODULES}
    loaded: dict[str, Any] = {}
    try:
        for name in MODULES:
            module = loaded[name] = ModuleType(name)
            sys.modules[name] = module
            exec(_woven(name, mutations), module.__dict__)
            if name in put:
                module.__dict__.update(put[name](module))
    finally:
        sys.modules.update(real)
    return loaded
