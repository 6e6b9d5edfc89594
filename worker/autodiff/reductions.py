"""Sums, means, products and norms over dimensions. Names and meaning are PyTorch's.

`dim` is None (all), one, or several; `keepdim` leaves them with size 1; `dtype` is what x is converted to before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from worker.autodiff.casting import in_float32
from worker.autodiff.dimensions import Dims, expand, nonempty, one, reduced, squeeze
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import Vjp, record
from worker.autodiff.promotion import floats
from worker.autodiff.tensor import Array, Dim, Tensor

__all__ = [
    "cumprod",
    "cumsum",
    "logsumexp",
    "mean",
    "norm",
    "prod",
    "std",
    "sum",
    "var",
]


@in_float32
@quiet
def sum(x: Tensor, dim: Dim | Sequence[int] = None, keepdim: bool = False, *, dtype: DTypeLike | None = None) -> Tensor:
    """The sum; of booleans and integers an int64."""
    dims, shape = reduced("sum", x, dim), x.shape
    value = np.sum(x.data, axis=dims, keepdims=keepdim, dtype=_total_dtype(x, dtype))
    return record("sum", value, (x, lambda g: np.broadcast_to(expand(g, dims, shape), shape)))


@in_float32
@quiet
def mean(
    x: Tensor, dim: Dim | Sequence[int] = None, keepdim: bool = False, *, dtype: DTypeLike | None = None
) -> Tensor:
    """The mean; NaN over no elements. ValueError for integers, which have none of their own dtype."""
    dims, shape = reduced("mean", x, dim), x.shape
    a = x.data if dtype is None else x.data.astype(dtype, copy=False)
    _check_floats("mean", a)
    count = a.dtype.type(_count(shape, dims))
    value = np.sum(a, axis=dims, keepdims=keepdim) / count
    return record("mean", value, (x, lambda g: np.broadcast_to(expand(g / count, dims, shape), shape)))


@in_float32
@quiet
def var(x: Tensor, dim: Dim | Sequence[int] = None, *, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The mean square distance from the mean, where `correction` is taken off the count (Bessel's is 1)."""
    dims, shape = reduced("var", x, dim), x.shape
    value, vjp = _variance("var", x, dims, correction)
    return record("var", squeeze(value, dims, keepdim), (x, lambda g: vjp(expand(g, dims, shape))))


@in_float32
@quiet
def std(x: Tensor, dim: Dim | Sequence[int] = None, *, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The square root of the variance. Where it is 0 the gradient is 0, too."""
    dims, shape = reduced("std", x, dim), x.shape
    variance, vjp = _variance("std", x, dims, correction)
    y = np.sqrt(variance)

    def std_vjp(g: Array) -> Array:
        return vjp(np.where(y == 0, 0, expand(g, dims, shape) / (2 * y)))

    return record("std", squeeze(y, dims, keepdim), (x, std_vjp))


@in_float32
@quiet
def prod(
    x: Tensor, dim: Dim | Sequence[int] = None, keepdim: bool = False, *, dtype: DTypeLike | None = None
) -> Tensor:
    """The product; of booleans and integers an int64. Each element's gradient is the product of the others."""
    dims, shape, a = reduced("prod", x, dim), x.shape, x.data
    value = np.prod(a, axis=dims, keepdims=keepdim, dtype=_total_dtype(x, dtype))
    return record("prod", value, (x, lambda g: expand(g, dims, shape) * _product_of_others(a, dims)))


@in_float32
@quiet
def norm(
    x: Tensor, p: float | Literal["fro"] = "fro", dim: Dim | Sequence[int] = None, keepdim: bool = False
) -> Tensor:
    """The p-norm of the elements, sum(|x|**p)**(1/p); 'fro' is 2, 0 counts what is not zero, inf is the largest |x|.

    At 0 the gradient is 0. ValueError for integers, and for an infinite p over no elements.
    """
    order = 2.0 if p == "fro" else p
    if not isinstance(order, int | float):
        raise ValueError(f"norm: p is {p!r}, expected a number or 'fro'")
    _check_floats("norm", x.data)
    dims, a = nonempty("norm", x, dim) if math.isinf(order) else reduced("norm", x, dim), x.data
    y = _norm(a, order, dims)
    return record(
        "norm", squeeze(y, dims, keepdim), (x, lambda g: expand(g, dims, a.shape) * _norm_slope(a, y, order, dims))
    )


@in_float32
@quiet
def logsumexp(x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))), without overflow."""
    dims, a = reduced("logsumexp", x, dim), floats("logsumexp", x)
    largest = np.maximum.reduce(a, axis=dims, keepdims=True, initial=-np.inf)
    largest = np.where(np.isfinite(largest), largest, a.dtype.type(0))
    y = largest + np.log(np.add.reduce(np.exp(a - largest), axis=dims, keepdims=True))
    return record("logsumexp", squeeze(y, dims, keepdim), (x, lambda g: expand(g, dims, a.shape) * np.exp(a - y)))


# Running sums and products.


@in_float32
@quiet
def cumsum(x: Tensor, dim: int, *, dtype: DTypeLike | None = None) -> Tensor:
    """The sums of the elements up to each one; of booleans and integers int64."""
    dims = one("cumsum", x, dim)
    value = _scan(np.cumsum, x.data.astype(_total_dtype(x, dtype), copy=False), dims)
    return record("cumsum", value, (x, lambda g: _sum_from_here(g, dims)))


@in_float32
@quiet
def cumprod(x: Tensor, dim: int, *, dtype: DTypeLike | None = None) -> Tensor:
    """The products of the elements up to each one; of booleans and integers int64."""
    dims = one("cumprod", x, dim)
    a = x.data.astype(_total_dtype(x, dtype), copy=False)
    y = _scan(np.cumprod, a, dims)

    def vjp(g: Array) -> Array:
        # Before the first zero x[k]: the sum of g[i] * y[i] / x[k] over i >= k. At the first zero the same, where a 1
        # stands for it. After it: 0, for every product that an element is part of has the zero in it, too.
        zeros = _scan(np.cumsum, a == 0, dims)
        is_first = (zeros == 1) & (a == 0)
        at_first = _sum_from_here(g * _scan(np.cumprod, np.where(is_first, 1, a), dims), dims)
        return np.where(is_first, at_first, np.where(zeros > 0, 0, _sum_from_here(g * y, dims) / a))

    return record("cumprod", y, (x, vjp))


def _total_dtype(x: Tensor, dtype: DTypeLike | None) -> np.dtype[Any]:
    if dtype is not None:
        return np.dtype(dtype)
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.int64)


def _check_floats(name: str, a: Array) -> None:
    if a.dtype.kind != "f":
        raise ValueError(f"{name}: expected a floating-point tensor, got {a.dtype}")


def _count(shape: Dims, dims: Dims) -> int:
    return math.prod(shape[d] for d in dims)


def _variance(name: str, x: Tensor, dims: Dims, correction: float) -> tuple[Array, Vjp]:
    """The variance and its vjp, both with the reduced dimensions kept."""
    a = x.data
    _check_floats(name, a)
    count = _count(a.shape, dims)
    divisor = a.dtype.type(max(0, count - correction))
    deviation = a - np.sum(a, axis=dims, keepdims=True) / a.dtype.type(count)
    value = np.sum(deviation * deviation, axis=dims, keepdims=True) / divisor

    def vjp(g: Array) -> Array:
        if not divisor:  # as in PyTorch: the variance is infinite, or undefined
            return np.asarray(g * np.where(deviation == 0, np.nan, np.inf))
        return np.asarray(g * (deviation * (2 / divisor)))

    return value, vjp


def _product_of_others(a: Array, dims: Dims) -> Array:
    """For each element the product of all others along dims: what stands before it times what comes after it."""
    moved = np.moveaxis(a, dims, range(len(dims)))
    rows = moved.reshape(_count(a.shape, dims), *moved.shape[len(dims) :])
    before, after = np.ones_like(rows), np.ones_like(rows)
    np.cumprod(rows[:-1], axis=0, out=before[1:])
    np.cumprod(rows[:0:-1], axis=0, out=after[::-1][1:])
    return np.moveaxis((before * after).reshape(moved.shape), range(len(dims)), dims)


def _norm(a: Array, p: float, dims: Dims) -> Array:
    size = np.abs(a)
    match p:
        case 0:
            total: Any = np.sum(a != 0, axis=dims, keepdims=True, dtype=a.dtype)
        case 1:
            total = np.sum(size, axis=dims, keepdims=True)
        case 2:
            total = np.sqrt(np.sum(a * a, axis=dims, keepdims=True))
        case math.inf:
            total = np.max(size, axis=dims, keepdims=True)
        case _ if p == -math.inf:
            total = np.min(size, axis=dims, keepdims=True)
        case _:
            total = np.power(np.sum(np.power(size, p), axis=dims, keepdims=True), 1 / p)
    return np.asarray(total)


def _norm_slope(a: Array, y: Array, p: float, dims: Dims) -> Array:
    """The derivative of the norm by each element; of an infinite p, shared by the elements that are as large."""
    sign = np.subtract(a > 0, a < 0, dtype=a.dtype)
    match p:
        case 0:
            return np.zeros_like(a)
        case 1:
            return sign
        case 2:
            return np.where(y == 0, 0, a / y)
        case _ if math.isinf(p):
            is_extreme = (np.abs(a) == y) | (np.isnan(a) & np.isnan(y))
            return np.asarray(sign * is_extreme / np.sum(is_extreme, axis=dims, keepdims=True, dtype=a.dtype))
        case _:
            slope = np.where(a == 0, 0, sign * np.power(np.abs(a), p - 1))
            return np.asarray(slope * np.where(y == 0, 0, np.power(y, 1 - p)))


def _scan(ufunc: Any, a: Array, dims: Dims) -> Array:
    """cumsum or cumprod along the dimension in dims, which a scalar lacks; in float64, for errors add up on the way."""
    if not dims:
        return a.copy()
    if a.dtype.kind != "f":
        return np.asarray(ufunc(a, axis=dims[0]))
    return np.asarray(ufunc(a, axis=dims[0], dtype=np.float64)).astype(a.dtype, copy=False)


def _sum_from_here(g: Array, dims: Dims) -> Array:
    """The sums of the elements from each one on."""
    return np.flip(_scan(np.cumsum, np.flip(g, dims), dims), dims)
