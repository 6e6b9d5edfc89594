"""The dimensions that a reduction runs over, and how its gradient gets them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worker.autodiff.tensor import Array, Dim, Tensor

Dims = tuple[int, ...]


def reduced(name: str, x: Tensor, dim: Dim | Sequence[int]) -> Dims:
    """`dim` as a tuple of different dimensions from 0; None and () mean all. ValueError for one that x lacks."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(x).__name__}")
    if dim is None or dim == () or dim == []:
        return tuple(range(x.ndim))
    given = (dim,) if isinstance(dim, int | np.integer) else dim
    rank = max(x.ndim, 1)  # a scalar has a dimension 0 as far as PyTorch's reductions go
    if any(not -rank <= d < rank for d in given):
        raise ValueError(f"{name}: dim is {dim} but x has {x.ndim} dimensions")
    dims = tuple(int(d) % rank for d in given)
    if len(set(dims)) != len(dims):
        raise ValueError(f"{name}: dim {dim} names a dimension twice")
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
