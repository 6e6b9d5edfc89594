"""Embedding: rows of a table, looked up by their indices."""

from __future__ import annotations

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.graph import record
from worker.autodiff.parts import part_by_part
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "embedding",
]


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """weight (V, C)[input], for indices of any shape (...): (..., C). The row `padding_idx` gets no gradient.

    ValueError for indices that are no integers or outside 0..V-1.
    """
    size = _check(input, weight, padding_idx)
    indices = np.ascontiguousarray(input.data, np.int64).reshape(-1)
    value = kernels.activation(weight.data.take(indices, axis=0), weight.data)
    padding = None if padding_idx is None else padding_idx % size
    shape, dtype = weight.shape, np.result_type(weight.dtype, np.float32)  # float16 is too coarse for sums

    def add(g: Array, table: Array, indices: Array) -> Array:
        """Add the gradient of the weight into `table`, in place."""
        rows = np.ascontiguousarray(kernels.single(g)).reshape(indices.size, shape[1])
        kept = slice(None) if padding is None else indices != padding
        kernels.add_rows(table, indices[kept], rows[kept])
        return table

    def write(g: Array, out: Array | None, indices: Array) -> Array:
        if out is None:
            return add(g, np.zeros(shape, dtype), indices)
        out[...] = 0
        return add(g, out, indices)

    vjp = part_by_part(write, indices, add=add)
    return record("embedding", value.reshape(*input.shape, shape[1]), (weight, vjp))


def _check(input: Tensor, weight: Tensor, padding_idx: int | None) -> int:
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight has shape {weight.shape}, expected (rows, features)")
    if input.dtype.kind not in "iu":
        raise ValueError(f"embedding: input is {input.dtype}, expected integers (indices)")
    size = weight.shape[0]
    if padding_idx is not None and not -size <= padding_idx < size:
        raise ValueError(f"embedding: padding_idx is {padding_idx}, expected {-size}..{size - 1}")
    if input.numel():
        low, high = int(input.data.min()), int(input.data.max())
        if low < 0 or high >= size:
            raise ValueError(f"embedding: got index {low if low < 0 else high}, expected 0..{size - 1}")
    return size
