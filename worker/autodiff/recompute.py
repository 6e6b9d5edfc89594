"""checkpoint: trade computation for memory. A part of the forward pass keeps only its inputs, and is run again when
backward comes to it.

The graph is the same with and without: the same nodes in the same order, so the same gradients bit for bit. Only the
vjps are stubs, without the values they need; the first one that is called runs the function again, and takes the vjps
which that records. This holds for parameters and other tensors that the function uses without being given them, for
several outputs, and for checkpoints within checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import numpy as np

import worker.autodiff.versions as versions
from worker.autodiff.graph import fitted, is_grad_enabled
from worker.autodiff.modes import active, recorder
from worker.autodiff.node import Edge, Into, Node, Vjp
from worker.autodiff.tensor import Array, Tensor


def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """function(*inputs), whose intermediate values are computed again in the backward pass instead of being kept.

    The second run sees the random state, and all other context variables, of the first; it must do the same
    operations, and its inputs and parameters must be unchanged (RuntimeError). As torch.utils.checkpoint, with
    use_reentrant=False.
    """
    if not is_grad_enabled():
        return function(*inputs)
    return Segment(function, inputs).run()


class Segment:
    """One call of a function: how to run it again, and, after that, the vjps that were not asked for yet."""

    def __init__(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        self._function, self._time = function, versions.now
        self._inputs = tuple(_kept(x) if isinstance(x, Tensor) else x for x in inputs)
        self._context = copy_context()  # as it was before: random numbers are drawn from here on
        for mode in (recorder, active):  # what records around us is not ours to keep alive
            self._context.run(mode.set, Node)
        self._outer = recorder.get()
        self._names: list[str] = []
        self._leaves: dict[int, Tensor] = {}
        self._vjps: list[list[Vjp | None]] = []

    def run(self) -> Any:
        """The first run: the graph gets stubs."""
        try:
            return self._record_with(self._first)
        finally:
            del self._outer

    def vjp(self, node: int, edge: int) -> Vjp:
        """The vjp behind a stub. It is given away: who asks again makes the function run again."""
        if not self._vjps or self._vjps[node][edge] is None:
            self._run_again()
        found = self._vjps[node][edge]
        assert found is not None, "the function has just run"
        self._vjps[node][edge] = None
        return found

    def saved(self) -> object:
        return self._inputs

    def _record_with(self, make_node: Callable[..., Node]) -> Any:
        tokens = recorder.set(make_node), active.set(make_node)
        try:
            return self._function(*self._inputs)
        finally:
            recorder.reset(tokens[0])
            active.reset(tokens[1])

    def _first(self, name: str, shape: tuple[int, ...], dtype: Any, edges: tuple[Edge, ...]) -> Node:
        number = len(self._names)
        self._names.append(name)
        for source, _ in edges:
            if isinstance(source, Tensor):
                self._leaves[id(source)] = source
        stubs = tuple((source, Stub(self, number, i, vjp)) for i, (source, vjp) in enumerate(edges))
        return self._outer(name, shape, dtype, stubs)

    def _run_again(self) -> None:
        for leaf in self._leaves.values():
            time, by = versions.last_change(leaf.data)
            if time > self._time:
                raise RuntimeError(
                    f"checkpoint: the function uses a tensor of shape {leaf.shape} that '{by}' has changed in place "
                    "since its first run"
                )
        vjps: list[list[Vjp | None]] = []

        def again(name: str, shape: tuple[int, ...], dtype: Any, edges: tuple[Edge, ...]) -> Node:
            expected = self._names[len(vjps)] if len(vjps) < len(self._names) else "nothing more"
            if name != expected:
                raise RuntimeError(
                    f"checkpoint: the function did '{expected}' in its first run and '{name}' in its second; "
                    "it must do the same both times"
                )
            vjps.append([vjp for _, vjp in edges])
            return Node(name, shape, dtype, ())

        self._context.copy().run(self._record_with, again)
        if len(vjps) < len(self._names):
            raise RuntimeError(
                f"checkpoint: the function did {len(self._names)} operations in its first run and {len(vjps)} in its "
                "second; it must do the same both times"
            )
        self._vjps = vjps


class Stub(Into):
    """Stands for a vjp of a segment's until it is called."""

    __slots__ = ("_edge", "_node", "_segment")

    def __init__(self, segment: Segment, node: int, edge: int, vjp: Vjp) -> None:
        self._segment, self._node, self._edge = segment, node, edge
        self.is_apart = isinstance(vjp, Into) and vjp.is_apart

    def write(self, gradient: Array, out: Array | None) -> Array:
        vjp = self._segment.vjp(self._node, self._edge)
        return vjp.write(gradient, out) if isinstance(vjp, Into) else vjp(gradient)

    def add(self, gradient: Array, into: Array) -> Array:
        """The vjp's result added to `into`: by the vjp itself if it can (see Into), else as the graph would."""
        vjp = self._segment.vjp(self._node, self._edge)
        add = getattr(vjp, "add", None)
        if add is not None:
            return np.asarray(add(gradient, into))
        return np.asarray(np.add(into, fitted(vjp(gradient), into.shape, into.dtype), out=into))

    def saved(self) -> object:
        return self._segment.saved()


def _kept(x: Tensor) -> Tensor:
    """x as the function sees it, both times; a leaf is itself, so that gradients find it."""
    if x.node is None:
        return x
    kept = Tensor(x.data)
    kept.node, kept.requires_grad = x.node, x.requires_grad
    return kept
