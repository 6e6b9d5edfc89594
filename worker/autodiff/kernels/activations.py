"""Activations and their derivatives over contiguous float32 vectors; `out` is written, nothing else.

g is the gradient of the output. NaN goes through.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import approximations as ap
from worker.autodiff.kernels.approximations import HALF, ONE, ZERO
from worker.autodiff.kernels.compilation import compiled

Array = NDArray[np.float32]


@compiled
def relu(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = ZERO if x[i] < ZERO else x[i]


@compiled
def relu_backward(g: Array, y: Array, out: Array) -> None:
    """From y = relu(x)."""
    for i in range(y.size):
        out[i] = ZERO if y[i] <= ZERO else g[i]


@compiled
def tanh(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = ap.tanh(x[i])


@compiled
def tanh_backward(g: Array, y: Array, out: Array) -> None:
    """From y = tanh(x)."""
    for i in range(y.size):
        out[i] = g[i] * (ONE - y[i] * y[i])


@compiled
def sigmoid(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = ap.sigmoid(x[i])


@compiled
def sigmoid_backward(g: Array, y: Array, out: Array) -> None:
    """From y = sigmoid(x)."""
    for i in range(y.size):
        out[i] = g[i] * (y[i] * (ONE - y[i]))


# GELU is x * cdf(x). In the tanh form, 0.5 * (1 + tanh(u)) = sigmoid(2u) with 2u = SLOPE * (x + CUBE * x**3).
SLOPE, CUBE = np.float32(1.5957691216), np.float32(0.044715)  # SLOPE = 2 * sqrt(2 / pi)
CUBE_SLOPE = np.float32(3 * 0.044715)
SQRT_HALF, PDF_AT_0 = np.float32(0.7071067812), np.float32(0.3989422804)  # PDF_AT_0 = 1 / sqrt(2 * pi)


@compiled
def gelu_tanh(x: Array, out: Array) -> None:
    for i in range(x.size):
        v = x[i]
        t = SLOPE * v * (ONE + CUBE * v * v)
        e = ap.exp_of_negative(-abs(t))
        out[i] = v * ((e if t < ZERO else ONE) / (ONE + e))


@compiled
def gelu_tanh_backward(g: Array, x: Array, out: Array) -> None:
    for i in range(x.size):
        v = x[i]
        t = SLOPE * v * (ONE + CUBE * v * v)
        e = ap.exp_of_negative(-abs(t))
        share = ONE / (ONE + e)
        rest = e * share  # 1 - share, not cancelled
        s = rest if t < ZERO else share
        out[i] = g[i] * (s + v * SLOPE * (ONE + CUBE_SLOPE * v * v) * (share * rest))


@compiled
def gelu_erf(x: Array, out: Array) -> None:
    for i in range(x.size):
        v = x[i]
        out[i] = v * (HALF + HALF * ap.erf(v * SQRT_HALF))


@compiled
def gelu_erf_backward(g: Array, x: Array, out: Array) -> None:
    for i in range(x.size):
        v = x[i]
        out[i] = g[i] * (HALF + HALF * ap.erf(v * SQRT_HALF) + v * PDF_AT_0 * ap.exp_of_negative(-HALF * v * v))
