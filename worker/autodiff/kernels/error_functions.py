"""The error function and its complement over contiguous vectors; `out` is written, nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import approximations as ap
from worker.autodiff.kernels.compilation import compiled

Array = NDArray[Any]


@compiled
def erf(x: Array, out: Array) -> None:
    """x is float32."""
    for i in range(x.size):
        out[i] = ap.erf(x[i])


@compiled
def libm_erf(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = math.erf(np.float64(x[i]))


@compiled
def libm_erfc(x: Array, out: Array) -> None:
    """In float64 also for float32: far out, the approximation of erf has no digit of its complement."""
    for i in range(x.size):
        out[i] = math.erfc(np.float64(x[i]))
