"""Views: the same elements under another shape. Results share the input's memory where PyTorch's do.

Where elements are joined, repeated or padded is in `joining` and `padding`; `x[...]` is in `indexing`.
"""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff.dimensions import Ints, at, ints, one_dim, some_dims
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Index, Tensor

__all__ = [
    "broadcast_to",
    "contiguous",
    "expand",
    "flatten",
    "movedim",
    "narrow",
    "permute",
    "reshape",
    "select",
    "squeeze",
    "swapaxes",
    "transpose",
    "unflatten",
    "unsqueeze",
    "view",
]


def reshape(x: Tensor, *shape: Ints) -> Tensor:
    """The same elements in another shape; one size may be -1. Takes sizes or a tuple of them. Copies if it must."""
    sizes = ints("reshape", shape)
    try:
        value = x.data.reshape(sizes)
    except ValueError:
        raise ValueError(f"reshape: x has shape {x.shape} ({x.numel()} elements), which does not fit {sizes}") from None
    return _reshaped("reshape", x, value)


def view(x: Tensor, *shape: Ints) -> Tensor:
    """reshape, but never a copy: ValueError where the elements do not lie in memory as the shape needs them."""
    sizes = ints("view", shape)
    try:
        value = x.data.reshape(sizes, copy=False)
    except ValueError:
        fits = "use reshape, or contiguous() first" if _fits(x, sizes) else "which does not fit"
        raise ValueError(f"view: x has shape {x.shape} and strides {_strides(x)}, got {sizes}; {fits}") from None
    return _reshaped("view", x, value)


def contiguous(x: Tensor) -> Tensor:
    """x itself where its elements lie in row-major order, else a copy in which they do."""
    return x if x.data.flags.c_contiguous else record("contiguous", x.data.copy("C"), (x, lambda g: g))


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Join the dimensions from start_dim to end_dim, both included, into one."""
    start, end = one_dim("flatten", x.ndim, start_dim), one_dim("flatten", x.ndim, end_dim)
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim} in {x.ndim} dimensions")
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


def unflatten(x: Tensor, dim: int, sizes: Ints) -> Tensor:
    """Divide a dimension into several; one of the sizes may be -1."""
    parts = ints("unflatten", (sizes,))
    d = one_dim("unflatten", x.ndim, dim)
    size = x.shape[d] if x.ndim else 1
    known = math.prod(part for part in parts if part != -1)
    resolved = tuple(size // max(known, 1) if part == -1 else part for part in parts)
    if parts.count(-1) > 1 or min(resolved, default=0) < 0 or math.prod(resolved) != size or not parts:
        raise ValueError(f"unflatten: dim {dim} of x has size {size}, which does not divide into {parts}")
    return reshape(x, (*x.shape[:d], *resolved, *x.shape[d + 1 :]))


def squeeze(x: Tensor, dim: Ints | None = None) -> Tensor:
    """Without the dimensions of size 1: all of them, or those among `dim`."""
    dims = range(x.ndim) if dim is None else some_dims("squeeze", x.ndim, dim)
    kept = tuple(size for d, size in enumerate(x.shape) if size != 1 or d not in dims)
    return _reshaped("squeeze", x, x.data.reshape(kept))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """With a new dimension of size 1 at `dim`."""
    if not -x.ndim - 1 <= dim <= x.ndim:
        raise ValueError(f"unsqueeze: dim is {dim}, expected {-x.ndim - 1}..{x.ndim}")
    return _reshaped("unsqueeze", x, np.expand_dims(x.data, dim))


def permute(x: Tensor, *dims: Ints) -> Tensor:
    """The dimensions in another order. Takes dimensions or a tuple of them."""
    given = ints("permute", dims)
    order = tuple(one_dim("permute", x.ndim, d) for d in given)
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"permute: got dims {given}, expected each of the {x.ndim} dimensions of x once")
    return _permuted("permute", x, order)


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Swap two dimensions."""
    return _swapped("transpose", x, dim0, dim1)


def swapaxes(x: Tensor, axis0: int, axis1: int) -> Tensor:
    """transpose, under NumPy's name."""
    return _swapped("swapaxes", x, axis0, axis1)


def movedim(x: Tensor, source: Ints, destination: Ints) -> Tensor:
    """Move the dimensions `source` to the places `destination`; the others keep their order."""
    froms, tos = some_dims("movedim", x.ndim, source), some_dims("movedim", x.ndim, destination)
    if len(froms) != len(tos):
        raise ValueError(f"movedim: source is {source} but destination is {destination}, expected as many of both")
    if not x.ndim:
        return _permuted("movedim", x, ())
    order = [d for d in range(x.ndim) if d not in froms]
    for to, from_ in sorted(zip(tos, froms, strict=True)):
        order.insert(to, from_)
    return _permuted("movedim", x, tuple(order))


def expand(x: Tensor, *sizes: Ints) -> Tensor:
    """Repeat dimensions of size 1, and new ones in front, without a copy; -1 keeps a size."""
    given = ints("expand", sizes)
    added = len(given) - x.ndim
    kept = tuple(x.shape[d - added] if size == -1 and d >= added else size for d, size in enumerate(given))
    return _expanded("expand", x, kept)


def broadcast_to(x: Tensor, shape: Ints) -> Tensor:
    """expand to the sizes of a tuple."""
    return expand(x, shape)


def narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Elements start..start+length-1 of a dimension. A negative start counts from the end."""
    d = _real_dim("narrow", x, dim)
    first = start + x.shape[d] if start < 0 else start
    if length < 0 or not 0 <= first <= x.shape[d] - length:
        raise ValueError(f"narrow: got start {start} and length {length}, but dim {dim} of x has size {x.shape[d]}")
    return window("narrow", x, at(d, slice(first, first + length)))


def select(x: Tensor, dim: int, index: int) -> Tensor:
    """Element `index` of a dimension, which goes away. IndexError where there is none."""
    d = _real_dim("select", x, dim)
    if not -x.shape[d] <= index < x.shape[d]:
        raise IndexError(f"select: index is {index} but dim {dim} of x has size {x.shape[d]}")
    return window("select", x, at(d, index))


def window(name: str, x: Tensor, where: tuple[Index, ...]) -> Tensor:
    """x[where] for integers, slices and None: a view. For the operations that are an index in disguise."""
    shape, dtype = x.shape, x.dtype

    def vjp(g: Array) -> Array:
        gradient = np.zeros(shape, dtype)
        gradient[where] = g
        return gradient

    return record(name, x.data[where], (x, vjp))


def _reshaped(name: str, x: Tensor, value: Array) -> Tensor:
    before = x.shape
    return record(name, value, (x, lambda g: g.reshape(before)))


def _permuted(name: str, x: Tensor, order: tuple[int, ...]) -> Tensor:
    inverse = tuple(np.argsort(order))
    return record(name, x.data.transpose(order), (x, lambda g: g.transpose(inverse)))


def _swapped(name: str, x: Tensor, dim0: int, dim1: int) -> Tensor:
    a, b = one_dim(name, x.ndim, dim0), one_dim(name, x.ndim, dim1)
    value = x.data.swapaxes(a, b) if x.ndim else x.data
    return record(name, value, (x, lambda g: g.swapaxes(a, b) if g.ndim else g))


def _expanded(name: str, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    a = x.data
    try:
        # NumPy's view is read-only, for which a kernel would be compiled anew; without stretching it is avoided.
        value = a.reshape(shape) if _only_grows(x.shape, shape) else np.broadcast_to(a, shape)
    except ValueError:
        raise ValueError(f"{name}: x has shape {x.shape}, which does not expand to {shape}") from None
    return record(name, value, (x, lambda g: g))


def _only_grows(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether `after` is `before` with sizes of 1 in front."""
    return after == (1,) * (len(after) - len(before)) + before


def _real_dim(name: str, x: Tensor, dim: int) -> int:
    if not x.ndim:
        raise ValueError(f"{name}: x has no dimensions")
    return one_dim(name, x.ndim, dim)


def _fits(x: Tensor, sizes: tuple[int, ...]) -> bool:
    known = math.prod(size for size in sizes if size != -1)
    return known == x.numel() if -1 not in sizes else bool(known) and not x.numel() % known


def _strides(x: Tensor) -> tuple[int, ...]:
    """In elements, as PyTorch gives them."""
    return tuple(stride // x.data.itemsize for stride in x.data.strides)
