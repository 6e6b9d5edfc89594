"""Lookups by index tensors, and their reverse: elements or rows picked, and added where indices say.

Indices count from 0; negative ones are an error here, as in PyTorch. Additions to one element are made in the order of
the indices, so that the same input gives the same bits.
"""

from __future__ import annotations

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.dimensions import one_dim
from worker.autodiff.graph import record
from worker.autodiff.shape import broadcast_to, flatten
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "gather",
    "index_add",
    "index_select",
    "scatter_add",
    "take_along_dim",
]


def gather(x: Tensor, dim: int, index: Tensor | Array) -> Tensor:
    """y[i, j, k] = x[index[i, j, k], j, k] for dim 0, and so on. y has the shape of index.

    index has as many dimensions as x, and no larger ones except for `dim`.
    """
    d, positions = _positions("gather", x, dim, index)
    _check_sizes("gather", positions.shape, x.shape, "x", but=d)
    shape, dtype = x.shape, x.dtype

    def vjp(g: Array) -> Array:
        gradient = np.zeros(shape, dtype)
        _scatter(gradient, d, positions, g)
        return gradient

    return record("gather", _gather(x.data, d, positions), (x, vjp))


def scatter_add(x: Tensor, dim: int, index: Tensor | Array, src: Tensor) -> Tensor:
    """x, and y[index[i, j, k], j, k] += src[i, j, k] for dim 0, and so on, over the shape of index.

    All have as many dimensions; index is nowhere larger than src, nor than x except for `dim`.
    """
    d, positions = _positions("scatter_add", x, dim, index)
    _check_sizes("scatter_add", positions.shape, src.shape, "src")
    _check_sizes("scatter_add", positions.shape, x.shape, "x", but=d)
    used = tuple(map(slice, positions.shape))
    value = np.array(x.data, order="C")
    _scatter(value, d, positions, src.data[used])
    src_shape = src.shape

    def src_vjp(g: Array) -> Array:
        picked = _gather(g, d, positions)
        if picked.shape == src_shape:
            return picked
        gradient = np.zeros(src_shape, g.dtype)
        gradient[used] = picked
        return gradient

    return record("scatter_add", value, (x, lambda g: g), (src, src_vjp))


def index_select(x: Tensor, dim: int, index: Tensor | Array) -> Tensor:
    """The elements `index` (N,) of a dimension."""
    d, rows = _rows("index_select", x, dim, index)
    shape, dtype = x.shape, x.dtype

    def vjp(g: Array) -> Array:
        gradient = np.zeros(shape, dtype)
        return _add_along(gradient, d, rows, g)

    value = np.take(x.data, rows, d) if x.ndim else x.data.copy()
    return record("index_select", value, (x, vjp))


def index_add(x: Tensor, dim: int, index: Tensor | Array, source: Tensor, *, alpha: float = 1) -> Tensor:
    """x, with alpha * element i of `source` added to element index[i] of a dimension. index has shape (N,)."""
    d, rows = _rows("index_add", x, dim, index)
    expected = (*x.shape[:d], rows.size, *x.shape[d + 1 :]) if x.ndim else ()
    if source.shape != expected:
        raise ValueError(f"index_add: source has shape {source.shape}, expected {expected}")
    value = _add_along(x.data.copy(), d, rows, source.data if alpha == 1 else source.data * alpha)

    def source_vjp(g: Array) -> Array:
        picked = np.take(g, rows, d) if g.ndim else g
        return picked if alpha == 1 else picked * alpha

    return record("index_add", value, (x, lambda g: g), (source, source_vjp))


def take_along_dim(x: Tensor, indices: Tensor | Array, dim: int | None = None) -> Tensor:
    """gather, with x and indices broadcast in the other dimensions. Without `dim`, from x in row-major order."""
    positions = indices.data if isinstance(indices, Tensor) else np.asarray(indices)
    if dim is None:
        return gather(flatten(x), 0, positions.reshape(-1))
    if positions.ndim != x.ndim:
        raise ValueError(
            f"take_along_dim: x has shape {x.shape} but indices {positions.shape}, expected as many dimensions"
        )
    d = one_dim("take_along_dim", x.ndim, dim)
    others = [(*shape[:d], 1, *shape[d + 1 :]) for shape in (x.shape, positions.shape)]
    try:
        common = np.broadcast_shapes(*others)
    except ValueError:
        raise ValueError(f"take_along_dim: x has shape {x.shape} but indices {positions.shape}") from None
    shapes = [(*common[:d], *shape[d : d + 1], *common[d + 1 :]) for shape in (x.shape, positions.shape)]
    return gather(broadcast_to(x, shapes[0]), d, np.broadcast_to(positions, shapes[1]))


def _gather(a: Array, dim: int, positions: Array) -> Array:
    if not a.ndim:
        return a.copy()
    used = tuple(slice(None) if d == dim else slice(size) for d, size in enumerate(positions.shape))
    return np.take_along_axis(a[used], positions, dim)


def _scatter(out: Array, dim: int, positions: Array, values: Array) -> None:
    """out[positions, …] += values: the reverse of _gather, in place; out is the caller's own, and C-contiguous."""
    if not positions.size:
        return
    flat = np.zeros(positions.shape, np.int64)
    stride = 1
    for d in reversed(range(out.ndim)):
        if d == dim:
            flat += positions * stride
        else:
            flat += (np.arange(positions.shape[d]) * stride).reshape(-1, *(1,) * (out.ndim - 1 - d))
        stride *= out.shape[d]
    kernels.scatter_rows_add(out.reshape(-1, 1), flat.ravel(), values.reshape(-1, 1))


def _add_along(out: Array, dim: int, rows: Array, values: Array) -> Array:
    """`out`, the caller's own, with element i of values added to element rows[i] of the dimension."""
    if not values.size:
        return out
    if not out.ndim:
        return np.asarray(out + values)
    front = np.ascontiguousarray(np.moveaxis(out, dim, 0))
    kernels.scatter_rows_add(front.reshape(len(front), -1), rows, np.moveaxis(values, dim, 0).reshape(rows.size, -1))
    return np.moveaxis(front, 0, dim)


def _positions(name: str, x: Tensor, dim: int, index: Tensor | Array) -> tuple[int, Array]:
    """`dim` counted from 0, and the index as an array that was looked at."""
    d = one_dim(name, x.ndim, dim)
    positions = index.data if isinstance(index, Tensor) else np.asarray(index)
    if positions.ndim != x.ndim:
        raise ValueError(f"{name}: index has shape {positions.shape} but x has {x.shape}, expected as many dimensions")
    _check_range(name, positions, x.shape[d] if x.ndim else 1)
    return d, positions


def _rows(name: str, x: Tensor, dim: int, index: Tensor | Array) -> tuple[int, Array]:
    d = one_dim(name, x.ndim, dim)
    rows = index.data if isinstance(index, Tensor) else np.asarray(index)
    if rows.ndim > 1 or (not x.ndim and rows.size != 1):
        raise ValueError(f"{name}: index has shape {rows.shape}, expected {'one size' if x.ndim else (1,)}")
    _check_range(name, rows, x.shape[d] if x.ndim else 1)
    return d, rows.reshape(-1)


def _check_range(name: str, positions: Array, size: int) -> None:
    if positions.dtype.kind not in "iu":
        raise ValueError(f"{name}: index is {positions.dtype}, expected integers")
    if positions.size and (positions.min() < 0 or positions.max() >= size):
        wrong = positions.min() if positions.min() < 0 else positions.max()
        raise IndexError(f"{name}: index has {wrong}, expected 0..{size - 1}")


def _check_sizes(name: str, sizes: tuple[int, ...], limits: tuple[int, ...], of: str, but: int | None = None) -> None:
    fits = len(sizes) == len(limits) and all(
        size <= limit or d == but for d, (size, limit) in enumerate(zip(sizes, limits, strict=True))
    )
    if not fits and 0 not in sizes:
        raise ValueError(f"{name}: index has shape {sizes}, which is larger than {of} {limits}")
