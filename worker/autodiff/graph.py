"""The graph: `record` builds it in the forward pass, `backward` walks it in reverse and frees it.

A node holds, for each input that needs a gradient, the input's source (the node that made it, or the leaf tensor) and
the vector-Jacobian product (vjp): gradient of the output -> gradient of the input. Nodes hold no values: what a vjp
needs of the forward pass lives in its closure, and goes with it.

Nobody mutates a gradient that they were given: vjps return new arrays, views, or the argument itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from worker.autodiff.tensor import Array, Tensor

Vjp = Callable[[Array], Array]

_grad_enabled: ContextVar[bool] = ContextVar("grad_enabled", default=True)


class Node:
    """One operation of the forward pass, as backward needs it. `edges` is None once it was walked and freed."""

    __slots__ = ("dtype", "edges", "name", "shape")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], edges: tuple[Edge, ...]) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.edges: tuple[Edge, ...] | None = edges

    def __repr__(self) -> str:
        return f"Node({self.name}, shape={self.shape})"


class Into:
    """A vjp `write(gradient, out)` that can put its result into `out` when it is given one (else out is None).

    So the matrix product of a weight gradient lands in the flat gradient vector without a copy.
    """

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Array, Array | None], Array]) -> None:
        self.write = write

    def __call__(self, gradient: Array) -> Array:
        return self.write(gradient, None)


Source = Node | Tensor
Edge = tuple[Source, Vjp]


@contextmanager
def no_grad() -> Iterator[None]:
    """Within this block no graph is built: for evaluation, and for changing weights by hand."""
    token = _grad_enabled.set(False)
    try:
        yield
    finally:
        _grad_enabled.reset(token)


def is_grad_enabled() -> bool:
    return _grad_enabled.get()


def record(name: str, value: Any, *edges: tuple[Any, Vjp]) -> Tensor:
    """The tensor of `value`, and a node behind it if some input needs a gradient.

    Each edge is an input and its vjp; an input that is no tensor (a scalar) is left out. A vjp may return the gradient
    of the broadcast input: `backward` sums it to the input's shape.
    """
    output = Tensor(value if type(value) is np.ndarray else np.asarray(value))
    if _grad_enabled.get():
        kept = tuple((x.node or x, vjp) for x, vjp in edges if isinstance(x, Tensor) and x.requires_grad)
        if kept:
            output.node = Node(name, output.shape, output.dtype, kept)
            output.requires_grad = True
    return output


def backward(
    output: Tensor, gradient: Tensor | Array | None = None, *, retain_graph: bool = False
) -> Iterator[tuple[Tensor, Array]]:
    """Differentiate `output`: add to `.grad` of every leaf behind it, and yield the leaf and what was added.

    Leaves come as soon as their gradient is complete: the last layer's first. A leaf with a `slot` and no `.grad` gets
    its gradient written there. Must be exhausted; RuntimeError where the graph was freed or nothing needs a gradient.
    """
    for leaf, part in walk(output, _seed(output, gradient), retain_graph=retain_graph):
        leaf.accumulate_grad(part)
        yield leaf, part


def walk(output: Tensor, seed: Array, *, retain_graph: bool = False) -> Iterator[tuple[Tensor, Array]]:
    """The reverse pass itself: yield each leaf with its gradient; no `.grad` is touched, only a free slot written.

    A node is ready once all its uses have contributed, so that ready nodes come in reverse topological order.
    """
    root = output.node or output
    uses = _count_uses(root)
    gradients: dict[Source, Array] = {}
    if isinstance(root, Tensor):
        yield root, seed
        return
    ready = [(root, seed)]
    while ready:
        node, gradient = ready.pop()
        edges = node.edges
        assert edges is not None, "a node is visited once"
        if not retain_graph:
            node.edges = None
        complete = []
        with np.errstate(all="ignore"):  # Inf and NaN flow through silently, as in PyTorch; the step looks at the norm
            for source, vjp in edges:
                gradients[source] = _add(gradients.get(source), gradient, source, vjp)
                uses[source] -= 1
                if not uses[source]:
                    complete.append(source)
        for source in complete:
            if isinstance(source, Tensor):
                yield source, gradients.pop(source)
            else:
                ready.append((source, gradients.pop(source)))


def _add(earlier: Array | None, gradient: Array, source: Source, vjp: Vjp) -> Array:
    """What is known of the gradient of `source`, plus what this vjp contributes."""
    if isinstance(vjp, Into) and earlier is None and isinstance(source, Tensor) and source.grad is None:
        part = vjp.write(gradient, source.slot)
    else:
        part = vjp(gradient)
    if part.shape != source.shape:
        part = unbroadcast(part, source.shape)
    if part.dtype != source.dtype:
        part = part.astype(source.dtype)
    return np.asarray(part if earlier is None else earlier + part)


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum `gradient` over the dimensions that broadcasting added or stretched, so that it gets `shape`."""
    added = gradient.ndim - len(shape)
    stretched = [added + i for i, size in enumerate(shape) if size == 1 and gradient.shape[added + i] != 1]
    summed = np.sum(gradient, axis=(*range(added), *stretched), keepdims=True)
    return np.reshape(summed, shape)


def _seed(output: Tensor, gradient: Tensor | Array | None) -> Array:
    if not output.requires_grad:
        raise RuntimeError("backward: no gradient is needed here; no input has requires_grad, or no_grad() was on")
    if gradient is None:
        if output.data.size != 1:
            raise RuntimeError(
                f"backward: the output has shape {output.shape}; reduce it to a scalar, or give gradient= of that shape"
            )
        return np.ones(output.shape, output.dtype)
    seed = np.asarray(gradient.data if isinstance(gradient, Tensor) else gradient, output.dtype)
    if seed.shape != output.shape:
        raise ValueError(f"backward: gradient has shape {seed.shape} but the output has shape {output.shape}")
    return seed


def _count_uses(root: Source) -> dict[Source, int]:
    """How many edges lead to each source behind `root`."""
    uses: dict[Source, int] = {root: 0}
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            continue
        if node.edges is None:
            raise RuntimeError(
                f"backward: the graph behind '{node.name}' was freed by an earlier backward; "
                "run the forward pass again, or give retain_graph=True the first time"
            )
        for source, _ in node.edges:
            if source in uses:
                uses[source] += 1
            else:
                uses[source] = 1
                stack.append(source)
    return uses
