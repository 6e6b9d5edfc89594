"""`x[index]` with PyTorch's rules, and selection by masks.

An index is resolved in two steps, as PyTorch does it: integers, slices, None and Ellipsis give a view; arrays of
integers and masks then pick from that view. (NumPy takes an integer beside an array for an array, which puts the
dimensions of `x[0, :, array]` in another order.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.graph import record
from worker.autodiff.shape import broadcast_to, window
from worker.autodiff.tensor import Array, Index, Tensor

__all__ = [
    "getitem",
    "masked_fill",
    "masked_select",
]

ALL = slice(None)


def getitem(x: Tensor, index: Index) -> Tensor:
    """x[index]: integers, slices, None, Ellipsis, integer arrays and masks (arrays, lists or tensors), or a tuple.

    A view unless there is an array. IndexError outside of x, ValueError for a slice with a negative step.
    """
    basic, advanced = _resolve(x.shape, index)
    if all(part is ALL for part in advanced):
        return window("getitem", x, (*basic, ...))
    view = x.data[(*basic, ...)]
    try:
        value = view[advanced]
    except IndexError as error:
        raise IndexError(f"getitem: {error}") from None
    shape, view_shape, dtype = x.shape, view.shape, x.dtype

    def vjp(g: Array) -> Array:
        picked = _scatter(view_shape, dtype, advanced, g)
        if all(part is ALL for part in basic):
            return picked
        gradient = np.zeros(shape, dtype)
        gradient[basic] = picked
        return gradient

    return record("getitem", value, (x, vjp))


def masked_fill(x: Tensor, mask: Tensor | Array, value: Tensor | float) -> Tensor:
    """x with `value`, a number or a scalar tensor, where the mask is True. x and mask are broadcast."""
    where, shape = _mask("masked_fill", x, mask)
    if isinstance(value, Tensor) and value.ndim:
        raise ValueError(f"masked_fill: value has shape {value.shape}, expected a number or a scalar tensor")
    filled = np.array(np.broadcast_to(x.data, shape))
    np.copyto(filled, value.data if isinstance(value, Tensor) else value, "unsafe", where)

    def x_vjp(g: Array) -> Array:
        gradient = g.copy()
        np.copyto(gradient, 0, where=where)
        return gradient

    return record(
        "masked_fill", filled, (x, x_vjp), (value, lambda g: np.sum(g, where=np.broadcast_to(where, g.shape)))
    )


def masked_select(x: Tensor, mask: Tensor | Array) -> Tensor:
    """The elements (N,) of x where the mask is True, in row-major order. x and mask are broadcast."""
    where, shape = _mask("masked_select", x, mask)
    return getitem(broadcast_to(x, shape), np.broadcast_to(where, shape))


def _resolve(shape: tuple[int, ...], index: Index) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
    """The index of the view, and then that of the arrays, with ALL for each dimension that a view or array keeps."""
    items = [_item(item) for item in (index if isinstance(index, tuple) else (index,))]
    used = sum(_dims_of(item) for item in items)
    ellipses = sum(item is ... for item in items)
    if used > len(shape) or ellipses > 1:
        raise IndexError(f"getitem: got indices for {used} dimensions and {ellipses} '...', but x has shape {shape}")
    if not ellipses:
        items.append(...)
    basic: list[Index] = []
    advanced: list[Index] = []
    dim = 0
    for item in items:
        if item is ...:
            basic += [ALL] * (len(shape) - used)
            advanced += [ALL] * (len(shape) - used)
            dim += len(shape) - used
            continue
        count = _dims_of(item)
        _check_item(item, shape[dim : dim + count], dim)
        dim += count
        if isinstance(item, bool):  # a dimension of its own, that is taken once or not at all
            basic.append(None)
            advanced.append(np.zeros(int(item), np.intp))
        elif isinstance(item, np.ndarray):
            basic += [ALL] * count
            advanced.append(item)
        else:
            basic.append(item)
            if not isinstance(item, int):
                advanced.append(ALL)
    return tuple(basic), tuple(advanced)


def _item(item: Any) -> Index:
    """One part of an index: an int, bool, slice, None, Ellipsis, or an array with dimensions."""
    if item is None or item is ... or type(item) is int or type(item) is bool:
        return item
    if isinstance(item, slice):
        parts = (item.start, item.stop, item.step)
        start, stop, step = (int(part) if isinstance(part, Tensor) else part for part in parts)
        if step is not None and step <= 0:
            raise ValueError(f"getitem: the step of a slice is {step}, expected a positive one; see flip")
        return ALL if (start, stop, step) == (None, None, None) else slice(start, stop, step)
    array = item.data if isinstance(item, Tensor) else np.asarray(item)
    if not array.size and isinstance(item, list | tuple):
        array = array.astype(np.intp)
    if array.dtype.kind not in "iub":
        raise IndexError(f"getitem: an index is {array.dtype}, expected integers or booleans")
    return array if array.ndim else array.item()


def _dims_of(item: Index) -> int:
    """How many dimensions of x it takes."""
    if item is None or item is ... or isinstance(item, bool):
        return 0
    return item.ndim if isinstance(item, np.ndarray) and item.dtype == np.bool_ else 1


def _check_item(item: Index, sizes: tuple[int, ...], dim: int) -> None:
    if type(item) is int and not -sizes[0] <= item < sizes[0]:
        raise IndexError(f"getitem: index {item} is outside of dim {dim} of size {sizes[0]}")
    if isinstance(item, np.ndarray) and item.dtype == np.bool_ and item.shape != sizes:
        raise IndexError(f"getitem: the mask for dim {dim} has shape {item.shape}, expected {sizes}")


def _scatter(shape: tuple[int, ...], dtype: np.dtype[Any], advanced: tuple[Index, ...], g: Array) -> Array:
    """Zeros of `shape`, with g added at the places that `advanced` took it from."""
    arrays = [part for part in advanced if part is not ALL]
    if len(arrays) == 1 and arrays[0].dtype == np.bool_:  # it names no element twice
        gradient = np.zeros(shape, dtype)
        gradient[advanced] = g
        return gradient
    dims, indices = [], []
    dim = 0
    for part in advanced:
        if part is ALL:
            dim += 1
            continue
        for positions in np.nonzero(part) if part.dtype == np.bool_ else (part,):
            dims.append(dim)
            indices.append(positions)
            dim += 1
    # The arrays' own dimensions stand where the first array stood, or in front if a slice is between the arrays.
    rank = np.broadcast(*indices).ndim
    are_adjacent = dims[-1] - dims[0] == len(dims) - 1
    place = dims[0] if are_adjacent else 0
    others = [d for d in range(len(shape)) if d not in dims]
    gradient = np.zeros([shape[d] for d in (*dims, *others)], dtype)
    if g.size:
        sizes = [shape[d] for d in dims]
        rows = np.ravel_multi_index(tuple(np.broadcast_arrays(*indices)), sizes, mode="wrap").ravel()
        values = np.moveaxis(g, range(place, place + rank), range(rank)).reshape(rows.size, -1)
        kernels.scatter_rows_add(gradient.reshape(math.prod(sizes), -1), rows, values)
    return gradient.transpose(np.argsort((*dims, *others)))


def _mask(name: str, x: Tensor, mask: Tensor | Array) -> tuple[Array, tuple[int, ...]]:
    """The mask as an array, and the shape that it and x are broadcast to."""
    where = mask.data if isinstance(mask, Tensor) else np.asarray(mask)
    if where.dtype != np.bool_:
        raise ValueError(f"{name}: mask is {where.dtype}, expected bool")
    try:
        return where, np.broadcast_shapes(x.shape, where.shape)
    except ValueError:
        raise ValueError(f"{name}: x has shape {x.shape} but mask has {where.shape}, which do not broadcast") from None
