"""How long, how far, how alike: vectors along one dimension."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from worker.autodiff.casting import in_float32
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "cosine_similarity",
    "normalize",
    "pairwise_distance",
]


@in_float32
@quiet
def normalize(x: Tensor, p: float = 2.0, dim: int | tuple[int, ...] = 1, eps: float = 1e-12) -> Tensor:
    """x / max(norm(x), eps), with the p-norm along `dim`."""
    _check_dims("normalize", x.ndim, dim)
    length, slope = _norm(x.data, p, dim)
    divisor = np.maximum(length, x.dtype.type(eps))
    y = x.data / divisor

    def vjp(g: Array) -> Array:
        along = np.add.reduce(g * y, axis=dim, keepdims=True)
        return np.asarray((g - (length >= eps) * along * slope()) / divisor)

    return record("normalize", y, (x, vjp))


@in_float32
@quiet
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between x1 and x2 along `dim`; lengths count as at least eps.

    As in PyTorch, the gradient does not see that limit: it is the one of the length as it is.
    """
    a, b = np.broadcast_arrays(x1.data, x2.data)
    _check_dims("cosine_similarity", a.ndim, dim)
    lengths, slopes = zip(*(_norm(v, 2, dim) for v in (a, b)), strict=True)
    # Divided by its length first, so that the product of lengths cannot overflow.
    u, v = (x / np.maximum(length, x.dtype.type(eps)) for x, length in zip((a, b), lengths, strict=True))
    cosine = np.add.reduce(u * v, axis=dim, keepdims=True)

    def vjp(g: Array, i: int, towards: Array) -> Array:
        away = towards - cosine * slopes[i]()
        return np.asarray(np.expand_dims(g, dim) * away / np.maximum(lengths[i], a.dtype.type(eps)))

    return record("cosine_similarity", cosine.squeeze(dim), (x1, lambda g: vjp(g, 0, v)), (x2, lambda g: vjp(g, 1, u)))


@in_float32
@quiet
def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """The p-norm of x1 - x2 + eps along the last dimension."""
    difference = np.asarray(x1.data - x2.data + eps)
    _check_dims("pairwise_distance", difference.ndim, -1)
    length, slope = _norm(difference, p, -1)

    def vjp(g: Array) -> Array:
        return (g if keepdim else g[..., None]) * slope()

    return record(
        "pairwise_distance", length if keepdim else length[..., 0], (x1, vjp), (x2, lambda g: np.negative(vjp(g)))
    )


def _norm(x: Array, p: float, dim: int | tuple[int, ...]) -> tuple[Array, Callable[[], Array]]:
    """The p-norm of x along `dim`, which is kept, and its derivative by x: 0 at 0, as in PyTorch."""
    size = np.abs(x)
    if p == 2:
        length = np.sqrt(np.add.reduce(x * x, axis=dim, keepdims=True))
        return length, lambda: x / np.where(length == 0, x.dtype.type(math.inf), length)
    if p == 1:
        return np.add.reduce(size, axis=dim, keepdims=True), lambda: np.sign(x)
    if p == 0:
        return np.add.reduce(size > 0, axis=dim, keepdims=True, dtype=x.dtype), lambda: np.zeros_like(x)
    if math.isinf(p):
        length = (np.maximum if p > 0 else np.minimum).reduce(size, axis=dim, keepdims=True)
        return length, lambda: _shared(np.sign(x), size == length, dim)
    length = np.power(np.add.reduce(np.power(size, p), axis=dim, keepdims=True), 1 / p)
    return length, lambda: np.where((size > 0) & (length > 0), np.sign(x) * np.power(size / length, p - 1), 0)


def _shared(slope: Array, chosen: Array, dim: int | tuple[int, ...]) -> Array:
    """The derivative of a maximum: equal shares for all elements that are it."""
    count = np.add.reduce(chosen, axis=dim, keepdims=True, dtype=slope.dtype)
    return np.asarray(slope * chosen / count)


def _check_dims(name: str, ndim: int, dim: int | tuple[int, ...]) -> None:
    if any(not -ndim <= d < ndim for d in (dim if isinstance(dim, tuple) else (dim,))):
        raise ValueError(f"{name}: dim is {dim} but the input has {ndim} dimensions")
