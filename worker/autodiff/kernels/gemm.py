"""The matrix product, in one place: every product of a forward or backward pass comes through here.

So whatever changes products (their precision, another GEMM) changes them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a (..., M, K) @ b (..., K, N), into `out` (..., M, N) where given. Strided views are not copied."""
    return np.matmul(a, b, out=out)
