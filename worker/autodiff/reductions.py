"""Operations that reduce dimensions: `dim` is None (all), one, or several; `keepdim` leaves them with size 1."""

from __future__ import annotations

import numpy as np

from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Dim, Tensor


def sum(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    dims, shape = _dims("sum", x, dim), x.shape
    value = np.sum(x.data, axis=dims, keepdims=keepdim)
    return record("sum", value, (x, lambda g: np.broadcast_to(_expand(g, dims, shape), shape)))


@quiet
def mean(x: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """The mean; NaN over no elements. ValueError for integers, which have none of their own dtype."""
    if x.dtype.kind != "f":
        raise ValueError(f"mean: expected a floating-point tensor, got {x.dtype}")
    dims, shape = _dims("mean", x, dim), x.shape
    count = x.dtype.type(np.prod([shape[d] for d in dims], dtype=np.int64))
    value = np.sum(x.data, axis=dims, keepdims=keepdim) / count
    return record("mean", value, (x, lambda g: np.broadcast_to(_expand(g / count, dims, shape), shape)))


@quiet
def logsumexp(x: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))), without overflow."""
    dims, a = _dims("logsumexp", x, dim), x.data
    largest = np.maximum.reduce(a, axis=dims, keepdims=True, initial=-np.inf)
    largest = np.where(np.isfinite(largest), largest, a.dtype.type(0))
    y = largest + np.log(np.add.reduce(np.exp(a - largest), axis=dims, keepdims=True))
    value = y if keepdim else np.squeeze(y, dims)
    return record("logsumexp", value, (x, lambda g: _expand(g, dims, a.shape) * np.exp(a - y)))


def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the largest element, the first of several; int64, without a gradient."""
    return Tensor(np.asarray(np.argmax(x.data, axis=dim, keepdims=keepdim)))


def _dims(name: str, x: Tensor, dim: Dim) -> tuple[int, ...]:
    """`dim` as a tuple of different dimensions from 0."""
    if dim is None:
        return tuple(range(x.ndim))
    given = dim if isinstance(dim, tuple) else (dim,)
    rank = max(x.ndim, 1)  # a scalar has a dimension 0 as far as PyTorch's reductions go
    if any(not -rank <= d < rank for d in given):
        raise ValueError(f"{name}: dim is {dim} but x has {x.ndim} dimensions")
    dims = tuple(d % rank for d in given)
    if len(set(dims)) != len(dims):
        raise ValueError(f"{name}: dim {dim} names a dimension twice")
    return dims if x.ndim else ()


def _expand(g: Array, dims: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """The gradient of a reduction of `shape` over `dims`, with the reduced dimensions put back as 1."""
    return g.reshape([1 if d in dims else size for d, size in enumerate(shape)])
