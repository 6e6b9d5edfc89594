"""Dimensions and sizes as callers give them: from the end, as separate arguments or as a tuple; and what becomes of
them in a reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, TypeGuard

import numpy as np

from worker.autodiff.tensor import Array, Dim, Tensor

Dims = tuple[int, ...]
Ints = int | Sequence[int]


def one_dim(name: str, rank: int, dim: int) -> int:
    """`dim` counted from 0. A scalar has a dimension 0 here, as in PyTorch. ValueError outside -rank..rank-1."""
    count = max(rank, 1)
    if not -count <= dim < count:
        raise ValueError(f"{name}: dim is {dim} but x has {rank} dimensions")
    return index(dim) % count


def some_dims(name: str, rank: int, dims: Ints) -> Dims:
    """`dims`, one or several, counted from 0. ValueError where two are the same."""
    given = ints(name, (dims,))
    counted = tuple(one_dim(name, rank, dim) for dim in given)
    if len(set(counted)) != len(counted):
        raise ValueError(f"{name}: dims {given} name a dimension twice")
    return counted


def ints(name: str, numbers: tuple[Ints, ...]) -> tuple[int, ...]:
    """(2, 3) from either f(2, 3) or f((2, 3)); `numbers` are f's arguments. ValueError where one is no integer."""
    several = numbers[0] if len(numbers) == 1 and is_several(numbers[0]) else numbers
    assert is_several(several)
    try:
        return tuple(index(number) for number in several)
    except TypeError:
        raise ValueError(f"{name}: got {tuple(several)}, expected integers") from None


def is_several(numbers: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(numbers, tuple | list | range)


def at(dim: int, where: int | slice) -> tuple[int | slice, ...]:
    """The index that takes `where` of dimension `dim`, and all of the others."""
    return (*(slice(None),) * dim, where)


def reduced(name: str, x: Tensor, dim: Dim | Sequence[int]) -> Dims:
    """What a reduction over `dim` runs over, counted from 0: all for None and (), nothing of a scalar.

    ValueError for a dimension that x lacks, or that is named twice.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(x).__name__}")
    if dim is None or dim == () or dim == []:
        return tuple(range(x.ndim))
    dims = some_dims(name, x.ndim, dim)
    return dims if x.ndim else ()


def one(name: str, x: Tensor, dim: int) -> Dims:
    """As `reduced`, for what runs over one dimension only: a tuple of it, of nothing for a scalar."""
    if not isinstance(dim, int | np.integer):
        raise TypeError(f"{name}: dim is {dim!r}, expected an int")
    return reduced(name, x, dim)


def nonempty(name: str, x: Tensor, dim: Dim | Sequence[int]) -> Dims:
    """As `reduced`, for reductions that have no value over no elements. ValueError there."""
    dims = reduced(name, x, dim)
    if any(x.shape[d] == 0 for d in dims):
        raise ValueError(f"{name}: x has shape {x.shape}, expected at least one element along dim {dim}")
    return dims


def expand(g: Any, dims: Dims, shape: Dims) -> Array:
    """What a reduction of `shape` over `dims` gave, with the reduced dimensions put back as 1."""
    expanded: Array = np.reshape(g, [1 if d in dims else size for d, size in enumerate(shape)])
    return expanded


def squeeze(y: Any, dims: Dims, keepdim: bool) -> Any:
    """A reduced value that has its dimensions as 1, without them unless they are kept."""
    return y if keepdim else np.squeeze(y, dims)
