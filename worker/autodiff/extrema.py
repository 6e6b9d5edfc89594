"""The largest and the smallest elements over dimensions, their values and indices. Names and meaning are PyTorch's.

`dim` is None (all), one, or several; `keepdim` leaves them with size 1. NaN is larger and smaller than any number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from worker.autodiff.comparison import maximum, minimum
from worker.autodiff.dimensions import expand, nonempty, one, reduced, squeeze
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Dim, Tensor

__all__ = [
    "ValuesAndIndices",
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "max",
    "min",
]


class ValuesAndIndices(NamedTuple):
    """The elements that an operation has chosen along a dimension, and where they were (int64)."""

    values: Tensor
    indices: Tensor


@quiet
def amax(x: Tensor, dim: Dim | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """The largest element; of several, each gets an equal share of the gradient."""
    return _extremum("amax", np.max, x, dim, keepdim)


@quiet
def amin(x: Tensor, dim: Dim | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """The smallest element; of several, each gets an equal share of the gradient."""
    return _extremum("amin", np.min, x, dim, keepdim)


@overload
def max(x: Tensor) -> Tensor: ...
@overload
def max(x: Tensor, dim: Tensor) -> Tensor: ...
@overload
def max(x: Tensor, *, other: Tensor) -> Tensor: ...
@overload
def max(x: Tensor, dim: int, keepdim: bool = False) -> ValuesAndIndices: ...
def max(
    x: Tensor, dim: int | Tensor | None = None, keepdim: bool = False, *, other: Tensor | None = None
) -> Tensor | ValuesAndIndices:
    """max(x): the largest element; max(x, other): `maximum`; max(x, dim): along dim, values and their first indices.

    Of several largest ones each gets an equal share of the gradient in the first form, in the last the first gets all.
    """
    second = dim if other is None else other
    if isinstance(second, Tensor):
        return maximum(x, second)
    if second is None:
        return _extremum("max", np.max, x, None, keepdim)
    return _with_indices("max", np.argmax, x, second, keepdim)


@overload
def min(x: Tensor) -> Tensor: ...
@overload
def min(x: Tensor, dim: Tensor) -> Tensor: ...
@overload
def min(x: Tensor, *, other: Tensor) -> Tensor: ...
@overload
def min(x: Tensor, dim: int, keepdim: bool = False) -> ValuesAndIndices: ...
def min(
    x: Tensor, dim: int | Tensor | None = None, keepdim: bool = False, *, other: Tensor | None = None
) -> Tensor | ValuesAndIndices:
    """min(x): the smallest element; min(x, other): `minimum`; min(x, dim): along dim, values and their first indices.

    Of several smallest ones each gets an equal share of the gradient in the first form, in the last the first gets all.
    """
    second = dim if other is None else other
    if isinstance(second, Tensor):
        return minimum(x, second)
    if second is None:
        return _extremum("min", np.min, x, None, keepdim)
    return _with_indices("min", np.argmin, x, second, keepdim)


def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the largest element, the first of several; in x flattened without a dim. int64, no gradient."""
    return _index("argmax", np.argmax, x, dim, keepdim)


def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the smallest element, the first of several; in x flattened without a dim. int64, no gradient."""
    return _index("argmin", np.argmin, x, dim, keepdim)


# Of truth values: what is not zero is true.


def all(x: Tensor, dim: Dim | Sequence[int] = None, keepdim: bool = False) -> Tensor:
    return Tensor(np.asarray(np.all(x.data, axis=reduced("all", x, dim), keepdims=keepdim)))


def any(x: Tensor, dim: Dim | Sequence[int] = None, keepdim: bool = False) -> Tensor:
    return Tensor(np.asarray(np.any(x.data, axis=reduced("any", x, dim), keepdims=keepdim)))


def _extremum(name: str, reduction: Callable[..., Any], x: Tensor, dim: Dim | Sequence[int], keepdim: bool) -> Tensor:
    dims, a = nonempty(name, x, dim), x.data
    y = reduction(a, axis=dims, keepdims=True)

    def vjp(g: Array) -> Array:
        is_extreme = a == y
        if dim is None:  # only max() and min() know a NaN again, in PyTorch
            is_extreme |= np.isnan(a) & np.isnan(y)
        count = np.sum(is_extreme, axis=dims, keepdims=True, dtype=a.dtype)
        return np.asarray(expand(g, dims, a.shape) * is_extreme / count)

    return record(name, squeeze(y, dims, keepdim), (x, vjp))


def _index(name: str, locate: Callable[..., Any], x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    if dim is not None:
        one(name, x, dim)
    nonempty(name, x, dim)
    return Tensor(np.asarray(locate(x.data, axis=dim, keepdims=keepdim)))


def _with_indices(name: str, locate: Callable[..., Any], x: Tensor, dim: int, keepdim: bool) -> ValuesAndIndices:
    one(name, x, dim)
    dims, shape, dtype = nonempty(name, x, dim), x.shape, x.dtype
    if not dims:  # a scalar
        return ValuesAndIndices(record(name, x.data.copy(), (x, lambda g: g)), Tensor(np.zeros((), np.int64)))
    axis = dims[0]
    indices = locate(x.data, axis=axis, keepdims=True)
    values = np.take_along_axis(x.data, indices, axis)

    def vjp(g: Array) -> Array:
        gradient = np.zeros(shape, dtype)
        np.put_along_axis(gradient, indices, expand(g, dims, shape), axis)
        return gradient

    return ValuesAndIndices(
        record(name, squeeze(values, dims, keepdim), (x, vjp)), Tensor(squeeze(indices, dims, keepdim))
    )
