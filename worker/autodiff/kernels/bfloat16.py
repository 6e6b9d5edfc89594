"""Rounding to bfloat16, the upper half of a float32's bits, in float32: for CPUs without a unit that does it.

To the nearest, ties to even; denormals become zeros, as the units that compute with bfloat16 have it. The product of
two such numbers is exact in float32, and sums are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.compilation import compiled

Array = NDArray[Any]

SIGN = np.uint32(0x8000_0000)
EXPONENT = np.uint32(0x7F80_0000)
UPPER_HALF = np.uint32(0xFFFF_0000)
QUIET = np.uint32(0x0040_0000)
ALMOST_HALF = np.uint32(0x7FFF)
ONE, SIXTEEN = np.uint32(1), np.uint32(16)


def round_bfloat16(x: Array) -> Array:
    """The nearest bfloat16 of each element of x, as a new float32 array that lies in memory as x does."""
    rounded = np.array(x, np.float32, order="K")
    _round(rounded.ravel("K").view(np.uint32))
    return rounded


@compiled
def _round(bits: NDArray[np.uint32]) -> None:
    for i in range(bits.size):
        x = bits[i]
        nearest = (x + ALMOST_HALF + ((x >> SIXTEEN) & ONE)) & UPPER_HALF
        if x & EXPONENT == 0:
            nearest = x & SIGN
        if x & ~SIGN > EXPONENT:  # the payload of a NaN may lie in the lower half
            nearest = (x | QUIET) & UPPER_HALF
        bits[i] = nearest
