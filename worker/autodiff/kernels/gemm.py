"""The matrix product, in one place: every product of a forward or backward pass comes through here.

So whatever changes products (their precision, another GEMM) changes them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import products, rows, units
from worker.autodiff.kernels.bfloat16 import round_bfloat16
from worker.autodiff.kernels.float16 import single
from worker.autodiff.precision import current

Array = NDArray[Any]

NUMBERS = np.dtype(np.float32)  # to compare with: from the type it would be made again each time
MIN_ROWS, MIN_COLUMNS, MIN_DEPTH = 14, 32, 16  # of float32 matrices that are worth packing


def matmul(a: Array, b: Array, out: Array | None = None, bias: Array | None = None, parts: int = 1) -> Array:
    """a (..., M, K) @ b (..., K, N) + bias (N,), into `out` (..., M, N) where given, in the current precision.

    Strided views are not copied; float16 operands are taken as float32, and so is the product. Which way a product
    takes depends on its shape, the precision and the CPU alone. A matrix `a` of so many equal `parts` gives what each
    part gives: tiles compute an element from its row and its column alone, BLAS multiplies one part after the other.
    """
    if a.dtype is not NUMBERS or b.dtype is not NUMBERS:
        a, b = single(a), single(b)
    if a.dtype == b.dtype == NUMBERS:
        unit = tile_unit()
        if unit is not None and _is_for_tiles(unit, a, b, parts):
            return products.product(unit, a, b, out, bias)
        if current.get() == "bf16":
            a, b = round_bfloat16(a), round_bfloat16(b)
    if parts > 1:
        out = np.empty((len(a), b.shape[1]), np.result_type(a, b)) if out is None else out
        size = len(a) // parts
        for first in range(0, len(a), size):
            np.matmul(a[first : first + size], b, out=out[first : first + size])
        result = out
    else:
        result = np.matmul(a, b, out=out)
    if bias is not None:
        add_bias(result, bias)
    return result


def tile_unit() -> int | None:
    """What computes tiles of float32 arrays in the current precision, one of `units`; None: nothing does."""
    if current.get() == "bf16":
        return units.BFLOAT16
    return units.SINGLE


def add_bias(y: Array, bias: Array) -> None:
    """y (..., C) += bias (C,), in place: y must be the caller's own."""
    if y.dtype == bias.dtype == np.float32 and y.flags.c_contiguous:
        rows.add_bias(y.reshape(-1, bias.size), bias.ravel())
    else:
        y += bias


def _is_for_tiles(unit: int, a: Array, b: Array, parts: int) -> bool:
    """Whether a unit is to compute a product: it has to where BLAS would not round, elsewhere where it is faster.

    FLOAT32 is for batches alone; small matrices are not worth packing.
    """
    if unit == units.BFLOAT16:
        return True
    is_small = a.shape[-2] < MIN_ROWS * parts or b.shape[-1] < MIN_COLUMNS or a.shape[-1] < MIN_DEPTH
    return not is_small and (unit != units.FLOAT32 or a.ndim > 2 or b.ndim > 2)
