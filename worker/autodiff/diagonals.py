"""Diagonals and triangles of matrices."""

from __future__ import annotations

import numpy as np

from worker.autodiff.dimensions import some_dims
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "diag",
    "diagonal",
    "trace",
    "tril",
    "triu",
]


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements at (i, i + offset) of two dimensions, as a last dimension in their place. A view."""
    a, b = _matrix_dims("diagonal", x, dim1, dim2)
    shape, dtype = x.shape, x.dtype

    def vjp(g: Array) -> Array:
        gradient = np.zeros(shape, dtype)
        _view(gradient, offset, a, b)[...] = g
        return gradient

    return record("diagonal", _view(x.data, offset, a, b), (x, vjp))


def diag(x: Tensor, diagonal: int = 0) -> Tensor:
    """A square matrix with x (N,) on a diagonal and zeros elsewhere; or the diagonal of a matrix x."""
    if x.ndim == 1:
        return record("diag", np.diag(x.data, diagonal), (x, lambda g: np.diagonal(g, diagonal)))
    if x.ndim != 2:
        raise ValueError(f"diag: x has shape {x.shape}, expected a vector or a matrix")
    rows, columns = x.shape

    def vjp(g: Array) -> Array:
        gradient = np.zeros((rows, columns), g.dtype)
        _view(gradient, diagonal, 0, 1)[...] = g
        return gradient

    return record("diag", np.diagonal(x.data, diagonal).copy(), (x, vjp))


def trace(x: Tensor) -> Tensor:
    """The sum () of the diagonal of a matrix."""
    if x.ndim != 2:
        raise ValueError(f"trace: x has shape {x.shape}, expected a matrix")
    rows, columns = x.shape
    return record("trace", np.trace(x.data), (x, lambda g: g * np.eye(rows, columns, dtype=g.dtype)))


def tril(x: Tensor, diagonal: int = 0) -> Tensor:
    """The matrices (..., M, N) with zeros above a diagonal."""
    _check_matrices("tril", x)
    rows, columns = x.shape[-2:]
    above = ~np.tri(rows, columns, diagonal, np.bool_)
    return record("tril", _without(x.data, above), (x, lambda g: _without(g, above)))


def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    """The matrices (..., M, N) with zeros below a diagonal."""
    _check_matrices("triu", x)
    rows, columns = x.shape[-2:]
    below = np.tri(rows, columns, diagonal - 1, np.bool_)
    return record("triu", _without(x.data, below), (x, lambda g: _without(g, below)))


def _without(matrices: Array, mask: Array) -> Array:
    """A copy with zeros where the mask is True: half the time of np.tril, which selects by np.where."""
    rest = matrices.copy()
    np.copyto(rest, 0, where=mask)
    return rest


def _view(a: Array, offset: int, dim1: int, dim2: int) -> Array:
    """NumPy's view of the diagonal, which is read-only for reasons of history, with a's own right to write."""
    diagonal = np.diagonal(a, offset, dim1, dim2)
    if a.flags.writeable:
        diagonal.flags.writeable = True
    return diagonal


def _matrix_dims(name: str, x: Tensor, dim1: int, dim2: int) -> tuple[int, int]:
    _check_matrices(name, x)
    a, b = some_dims(name, x.ndim, (dim1, dim2))
    return a, b


def _check_matrices(name: str, x: Tensor) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name}: x has shape {x.shape}, expected at least two dimensions")
