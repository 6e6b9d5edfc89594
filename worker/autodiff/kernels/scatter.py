"""Rows added where indices say, as the gradient of every lookup needs it.

Shapes: N rows to add, C columns, R rows to add to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.compilation import compiled


def scatter_rows_add(out: NDArray[Any], rows: NDArray[Any], values: NDArray[Any]) -> None:
    """out[rows[i]] += values[i] for i = 0..N-1 in that order, in place: out (R, C), rows (N,), values (N, C).

    `out` must be the caller's own and C-contiguous, and every row within 0..R-1: the loop does not look.
    """
    assert out.ndim == values.ndim == 2
    assert out.shape[1] == values.shape[1]
    if out.dtype == values.dtype == np.float32:
        _add_rows(out, np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(values))
    else:
        np.add.at(out, rows, values)


@compiled
def _add_rows(out: NDArray[np.float32], rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    columns = out.shape[1]
    if columns == 1:
        for i in range(rows.size):
            out[rows[i], 0] += values[i, 0]
        return
    for i in range(rows.size):
        row = rows[i]
        for j in range(columns):
            out[row, j] += values[i, j]
