"""Changing a tensor in place, and what it means for the graph.

Where nothing is recorded, memory is changed and the change is noted (see versions). Where a gradient flows, the tensor
gets a node for the operation, as if it had been computed anew; other tensors with the same memory keep the graph they
had, which is wrong for the new values, so that recording an operation on them is refused. PyTorch rewrites the graph of
all views instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import worker.autodiff.graph as graph
import worker.autodiff.tensor as tensors
import worker.autodiff.versions as versions
from worker.autodiff.node import Node

if TYPE_CHECKING:
    from worker.autodiff.tensor import Array, Index, Tensor


def change(x: Tensor, name: str, function: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Tensor:
    """Change x, in its memory, to function(x, *arguments, **keywords), of its shape and a dtype that fits into its own.

    RuntimeError where a gradient would be lost: x is a leaf that requires one, or shares memory with one.
    """
    if not _is_recorded(x, *arguments, *keywords.values()):
        with graph.no_grad():
            _store(x, name, function(x, *arguments, **keywords).data)
        versions.changed(x.data, name)
        return x
    _refuse_views(x, name)
    time, by = versions.last_rebase(x.data)
    if x.node is not None and time > x.node.time:
        raise graph.stale(name, x, by)
    before = _before(x)
    same = [before if argument is x else argument for argument in arguments]
    _become(x, name, function(before, *same, **keywords))
    return x


def set_item(x: Tensor, index: Index, value: Tensor | float) -> None:
    """x[index] = value."""
    where = tuple(map(_plain, index)) if isinstance(index, tuple) else _plain(index)
    if not _is_recorded(x, value):
        x.data[where] = value.data if isinstance(value, tensors.Tensor) else value
        versions.changed(_part(x.data, where), "setitem")
        return
    _refuse_views(x, "setitem")
    # After `x[index] += 1`, value is this part of x itself: nobody else has changed it.
    is_part = isinstance(value, tensors.Tensor) and _is_same(value.data, _part(x.data, where))
    time, by = versions.last_rebase(x.data, besides=_part(x.data, where) if is_part else None)
    if x.node is not None and time > x.node.time:
        raise graph.stale("setitem", x, by)
    _become(x, "setitem", _with_item(_before(x), where, value))


def copied(x: Tensor, source: Tensor) -> Tensor:
    """The values of `source` in the shape and dtype of x."""
    value = np.broadcast_to(source.data, x.shape).astype(x.dtype)
    return graph.record("copy", value, (x, np.zeros_like), (source, lambda g: g))


def filled(x: Tensor, value: float) -> Tensor:
    return graph.record("fill", np.full_like(x.data, value), (x, np.zeros_like))


def _with_item(x: Tensor, where: Any, value: Tensor | float) -> Tensor:
    result = x.data.copy()
    result[where] = value.data if isinstance(value, tensors.Tensor) else value
    rank = value.ndim if isinstance(value, tensors.Tensor) else 0

    def x_vjp(g: Array) -> Array:
        gradient = g.copy()
        gradient[where] = 0
        return gradient

    def value_vjp(g: Array) -> Array:
        part = g[where]
        return np.reshape(part, (1,) * (rank - np.ndim(part)) + np.shape(part))

    return graph.record("setitem", result, (x, x_vjp), (value, value_vjp))


def _is_recorded(*values: Any) -> bool:
    needs_gradient = (value.requires_grad for value in values if isinstance(value, tensors.Tensor))
    return graph.is_grad_enabled() and any(needs_gradient)


def _before(x: Tensor) -> Tensor:
    """A tensor with the values and the graph that x has now."""
    before = tensors.Tensor(x.data.copy())
    before.node, before.requires_grad = x.node, x.requires_grad
    return before


def _become(x: Tensor, name: str, result: Tensor) -> None:
    """Give x the values and the graph of `result`."""
    node = result.node
    assert node is not None, "it was recorded"
    for array in versions.saved_arrays([vjp for _, vjp in node.edges or ()]):
        if np.may_share_memory(array, x.data):
            raise RuntimeError(f"{name}: backward needs an operand that lies in the same memory; clone() it")
    _store(x, name, result.data)
    versions.rebase(x.data, name)
    node.time = versions.now
    node.is_view = False
    x.node, x.requires_grad = node, True


def _store(x: Tensor, name: str, value: Array) -> None:
    if value.shape != x.shape:
        raise ValueError(f"{name}: the result has shape {value.shape}, which does not fit in place into {x.shape}")
    if not np.can_cast(value.dtype, x.dtype, "same_kind"):
        raise ValueError(f"{name}: the result is {value.dtype}, which does not fit in place into {x.dtype}")
    x.data[...] = value


def _refuse_views(x: Tensor, name: str) -> None:
    """RuntimeError if x is, or lies in the memory of, a tensor that could not know of the change."""
    if x.node is None and x.requires_grad:
        raise RuntimeError(
            f"{name}: this is a leaf that requires a gradient; change it under no_grad(), or change a clone()"
        )
    if x.node is None and x.data.base is not None:
        raise RuntimeError(
            f"{name}: this may be a view of another tensor, which would not know of the gradient; change that, "
            "with x[index] = ..., or change a clone()"
        )
    stack = [x.node]
    while stack:
        node = stack.pop()
        for source, _ in (node.edges or ()) if node is not None and node.is_view else ():
            if isinstance(source, Node):
                stack.append(source)
            elif np.may_share_memory(source.data, x.data):
                raise RuntimeError(
                    f"{name}: this is a view of a leaf that requires a gradient; change it under no_grad(), "
                    "or change a clone()"
                )


def _plain(index: Index) -> Index:
    return index.data if isinstance(index, tensors.Tensor) else np.asarray(index) if isinstance(index, list) else index


def _part(array: Array, where: Any) -> Array:
    """The memory behind array[where]: for an index with arrays, that is all of it."""
    parts = where if isinstance(where, tuple) else (where,)
    if any(isinstance(part, np.ndarray) for part in parts):
        return array
    part = array[where]
    return part if isinstance(part, np.ndarray) else array[(*parts, ...)]  # one element: still a view


def _is_same(a: Array, b: Array) -> bool:
    """Whether two arrays are one piece of memory in one layout."""
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape and a.strides == b.strides
