"""Operations that move elements and compute nothing. Results share the input's memory where NumPy can do that."""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Index, Tensor


def reshape(x: Tensor, *shape: int | tuple[int, ...]) -> Tensor:
    """The same elements in another shape; one size may be -1. Takes sizes or a tuple of them."""
    sizes = _ints(shape)
    try:
        value = x.data.reshape(sizes)
    except ValueError:
        raise ValueError(f"reshape: x has shape {x.shape} ({x.numel()} elements), which does not fit {sizes}") from None
    before = x.shape
    return record("reshape", value, (x, lambda g: g.reshape(before)))


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Join the dimensions from start_dim to end_dim, both included, into one."""
    rank = max(x.ndim, 1)
    start, end = _dim("flatten", x, start_dim), _dim("flatten", x, end_dim)
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim} in {rank} dimensions")
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def permute(x: Tensor, *dims: int | tuple[int, ...]) -> Tensor:
    """The dimensions in another order. Takes dimensions or a tuple of them."""
    order = tuple(_dim("permute", x, d) for d in _ints(dims))
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"permute: got dims {_ints(dims)}, expected each of the {x.ndim} dimensions of x once")
    inverse = tuple(np.argsort(order))
    return record("permute", x.data.transpose(order), (x, lambda g: g.transpose(inverse)))


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Swap two dimensions."""
    a, b = _dim("transpose", x, dim0), _dim("transpose", x, dim1)
    value = x.data.swapaxes(a, b) if x.ndim else x.data
    return record("transpose", value, (x, lambda g: g.swapaxes(a, b) if g.ndim else g))


def getitem(x: Tensor, index: Index) -> Tensor:
    """x[index], with NumPy's basic and advanced indexing; index tensors hold integers or booleans."""
    where = tuple(_plain(i) for i in index) if isinstance(index, tuple) else _plain(index)
    shape, dtype = x.shape, x.dtype

    def vjp(g: Array) -> Array:
        gradient = np.zeros(shape, dtype)
        if _may_repeat(where):
            np.add.at(gradient, where, g)
        else:
            gradient[where] = g
        return gradient

    return record("getitem", x.data[where], (x, vjp))


def _plain(index: Index) -> Index:
    return index.data if isinstance(index, Tensor) else np.asarray(index) if isinstance(index, list) else index


def _may_repeat(where: Index) -> bool:
    """Whether an index may name an element twice: arrays of integers can, slices and masks cannot."""
    parts = where if isinstance(where, tuple) else (where,)
    return any(isinstance(part, np.ndarray) and part.dtype != np.bool_ for part in parts)


def _ints(sizes: tuple[int | tuple[int, ...], ...]) -> tuple[int, ...]:
    """(2, 3) from either f(2, 3) or f((2, 3))."""
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        return tuple(sizes[0])
    return tuple(int(size) for size in sizes if not isinstance(size, tuple))


def _dim(name: str, x: Tensor, dim: int) -> int:
    rank = max(x.ndim, 1)
    if not -rank <= dim < rank:
        raise ValueError(f"{name}: dim is {dim} but x has {x.ndim} dimensions")
    return dim % rank
