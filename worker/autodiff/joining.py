"""Tensors put together, taken apart, repeated and turned round. Only the parts of a tensor are views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from worker.autodiff.dimensions import Ints, at, ints, is_several, one_dim, some_dims
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Index, Tensor

__all__ = [
    "cat",
    "chunk",
    "concat",
    "flip",
    "repeat",
    "roll",
    "split",
    "stack",
    "tile",
    "unbind",
]


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors along a dimension. Their other sizes are equal; a tensor of shape (0,) counts as nothing."""
    joined = [x for x in tensors if x.shape != (0,)] or list(tensors)
    if not joined or not joined[0].ndim:
        raise ValueError(f"cat: got shapes {[x.shape for x in tensors]}, expected tensors with dimensions")
    d = one_dim("cat", joined[0].ndim, dim)
    if len({(x.ndim, x.shape[:d], x.shape[d + 1 :]) for x in joined}) > 1:
        raise ValueError(f"cat: got shapes {[x.shape for x in joined]}, expected them equal but for dim {d}")
    value = np.concatenate([x.data for x in joined], axis=d, dtype=_common_dtype(joined))
    ends = accumulate(x.shape[d] for x in joined)
    edges = [(x, _part(at(d, slice(end - x.shape[d], end)))) for x, end in zip(joined, ends, strict=True)]
    left_out = [(x, lambda g: np.zeros(0, g.dtype)) for x in tensors if x.shape == (0,)]
    return record("cat", value, *edges, *(left_out if joined[0].shape != (0,) else []))


def concat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """cat, by its longer name."""
    return cat(tensors, dim)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors of one shape along a new dimension."""
    if len({x.shape for x in tensors}) != 1:
        raise ValueError(f"stack: got shapes {[x.shape for x in tensors]}, expected at least one, and all equal")
    d = one_dim("stack", tensors[0].ndim + 1, dim)
    value = np.stack([x.data for x in tensors], axis=d, dtype=_common_dtype(tensors))
    return record("stack", value, *((x, _part(at(d, i))) for i, x in enumerate(tensors)))


def split(x: Tensor, split_size_or_sections: Ints, dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of this size along a dimension, the last one smaller where it must; or parts of these sizes."""
    d, size = _length("split", x, dim)
    if is_several(split_size_or_sections):
        sizes = ints("split", (split_size_or_sections,))
        if sum(sizes) != size or min(sizes, default=0) < 0:
            raise ValueError(f"split: dim {dim} of x has size {size}, got sections {sizes}, expected them to sum to it")
        return _parts("split", x, d, sizes)
    (step,) = ints("split", (split_size_or_sections,))
    if step < 0 or (not step and size):
        raise ValueError(f"split: split_size is {step}, expected a positive one")
    return _parts("split", x, d, [min(step, size - start) for start in range(0, size, max(step, 1))] or [0])


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most this many parts along a dimension, all as large as the first but the last one."""
    d, size = _length("chunk", x, dim)
    if chunks < 1:
        raise ValueError(f"chunk: chunks is {chunks}, expected a positive number")
    if not size:
        return _parts("chunk", x, d, [0] * chunks)
    step = -(-size // chunks)
    return _parts("chunk", x, d, [min(step, size - start) for start in range(0, size, step)])


def unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The elements of a dimension, which goes away: x[0], x[1], …"""
    d, size = _length("unbind", x, dim)
    return _views("unbind", x, [at(d, i) for i in range(size)])


def flip(x: Tensor, *dims: Ints) -> Tensor:
    """The elements of these dimensions in reverse order. Takes dimensions or a tuple of them."""
    turned = some_dims("flip", x.ndim, ints("flip", dims)) if x.ndim else ()
    return record("flip", np.flip(x.data, turned).copy(), (x, lambda g: np.flip(g, turned)))


def roll(x: Tensor, shifts: Ints, dims: Ints | None = None) -> Tensor:
    """Move elements along dimensions; what leaves at the end comes in at the start. Without dims: x as one row."""
    by = ints("roll", (shifts,))
    along = None if dims is None else some_dims("roll", x.ndim, dims)
    if len(by) != (1 if along is None else len(along)):
        raise ValueError(f"roll: shifts is {shifts} but dims is {dims}, expected as many of both")
    axes = along if x.ndim else None

    def rolled(a: Array, sign: int) -> Array:
        return np.roll(a, [sign * shift for shift in by] if axes else sign * by[0], axes)

    return record("roll", rolled(x.data, 1), (x, lambda g: rolled(g, -1)))


def repeat(x: Tensor, *sizes: Ints) -> Tensor:
    """x repeated so many times along each dimension; more numbers than dimensions add dimensions in front."""
    times = ints("repeat", sizes)
    if len(times) < x.ndim or min(times, default=0) < 0:
        raise ValueError(f"repeat: got {times}, expected a number for each of the {x.ndim} dimensions of x, or more")
    return _repeated("repeat", x, times)


def tile(x: Tensor, *dims: Ints) -> Tensor:
    """repeat, where numbers for leading dimensions may be left out."""
    times = ints("tile", dims)
    if min(times, default=0) < 0:
        raise ValueError(f"tile: got {times}, expected no negative numbers")
    return _repeated("tile", x, (1,) * (x.ndim - len(times)) + times)


def _repeated(name: str, x: Tensor, times: tuple[int, ...]) -> Tensor:
    before = (1,) * (len(times) - x.ndim) + x.shape
    pairs = [size for both in zip(times, before, strict=True) for size in both]  # time, size, time, size, …

    def vjp(g: Array) -> Array:
        return np.asarray(np.sum(g.reshape(pairs), axis=tuple(range(0, len(pairs), 2))))

    return record(name, np.tile(x.data, times), (x, vjp))


def _parts(name: str, x: Tensor, dim: int, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Parts of these sizes, one after the other."""
    return _views(name, x, [at(dim, slice(end - n, end)) for n, end in zip(sizes, accumulate(sizes), strict=True)])


def _views(name: str, x: Tensor, wheres: Sequence[Index]) -> tuple[Tensor, ...]:
    """x[where] for each of `wheres`, which do not overlap. All their gradients land in one array of x's shape.

    A token stands in the graph between x and the views: each view's vjp writes into that array and passes nothing on;
    the token's vjp, which runs when all have, passes on the array. So k parts cost one pass, and not k.
    """
    shape, dtype = x.shape, x.dtype
    joint: list[Array] = []  # the array, while a backward pass is among the parts

    def write_to(where: Index) -> Callable[[Array], Array]:
        def vjp(g: Array) -> Array:
            if not joint:
                joint.append(np.zeros(shape, dtype))
            joint[0][where] = g
            return nothing

        return vjp

    nothing = np.zeros((), dtype)
    token = record(name, nothing, (x, lambda _: joint.pop()))
    return tuple(record(name, x.data[where], (token, write_to(where))) for where in wheres)


def _part(where: Index) -> Callable[[Array], Array]:
    def vjp(g: Array) -> Array:
        return np.asarray(g[where])

    return vjp


def _length(name: str, x: Tensor, dim: int) -> tuple[int, int]:
    """`dim` counted from 0, and its size."""
    if not x.ndim:
        raise ValueError(f"{name}: x has no dimensions")
    d = one_dim(name, x.ndim, dim)
    return d, x.shape[d]


def _common_dtype(tensors: Sequence[Tensor]) -> np.dtype[np.generic]:
    """What PyTorch promotes to: floating-point numbers keep their width beside integers."""
    dtypes = [x.dtype for x in tensors]
    return np.result_type(*([dtype for dtype in dtypes if dtype.kind == "f"] or dtypes))
