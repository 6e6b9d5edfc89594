"""Adding rows into a table at given indices: the gradient of a look-up.

Shapes: N look-ups, V rows of the table, C columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.compilation import compiled

Array = NDArray[Any]


def add_rows(table: Array, indices: NDArray[np.int64], rows: Array) -> None:
    """table (V, C)[indices (N,)] += rows (N, C), in place, from the first row to the last: repeated indices add up."""
    if table.dtype == rows.dtype == np.float32:
        _add_rows(table, indices, rows)
    else:
        np.add.at(table, indices, rows)


@compiled
def _add_rows(table: Array, indices: NDArray[np.int64], rows: Array) -> None:
    for i in range(indices.size):
        into, row = table[indices[i]], rows[i]
        for j in range(row.size):
            into[j] += row[j]
