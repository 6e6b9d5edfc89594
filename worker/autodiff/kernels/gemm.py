"""The matrix product, in one place: every product of a forward or backward pass comes through here.

So whatever changes products (their precision, another GEMM) changes them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import bfloat16
from worker.autodiff.precision import current

Array = NDArray[Any]


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a (..., M, K) @ b (..., K, N), into `out` (..., M, N) where given, in the current precision.

    Strided views are not copied in float32.
    """
    if current.get() == "bf16" and a.dtype == b.dtype == np.float32:
        return bfloat16.matmul(a, b, out)
    return np.matmul(a, b, out=out)
