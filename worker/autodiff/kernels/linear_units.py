"""SiLU, Mish, softplus, ELU, selection by a mask and dropout over contiguous vectors; `out` is written, nothing else.

g is the gradient of the output. NaN goes through.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import approximations as ap
from worker.autodiff.kernels.approximations import ONE, TWO, ZERO, Float, f32
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import bits_of, fma

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

EXPM1_MIN, EXPM1_MAX = f32(-18), f32(88)  # e**-18 - 1 rounds to -1; 2**127 is the largest power of two


@compiled
def expm1(x: Float) -> Float:
    """e**x - 1 for x <= 88: 2**n * (e**r - 1) + (2**n - 1), with exp's n and r, so that nothing cancels near 0."""
    x = EXPM1_MIN if x < EXPM1_MIN else x
    x = EXPM1_MAX if x > EXPM1_MAX else x
    shifted = fma(x, ap.LOG2E, ap.ROUND)
    n = shifted - ap.ROUND
    r = fma(-n, ap.LN2_LOW, fma(-n, ap.LN2_HIGH, x))
    p = fma(fma(fma(fma(fma(ap.EXP7, r, ap.EXP6), r, ap.EXP5), r, ap.EXP4), r, ap.EXP3), r, ap.EXP2)
    scale = ap.power_of_two(bits_of(shifted) - bits_of(ap.ROUND))
    return fma(scale, fma(p * r, r, r), scale - ONE)


# 2 * (atanh(s) - s) / s**3 in powers of s**2, minimax on 0..1/3: relative error of log1p below 0.01 * 2**-24.
LOG3, LOG5, LOG7 = f32(6.666666732e-1), f32(3.999970633e-1), f32(2.859235797e-1)
LOG9, LOG11 = f32(2.170657605e-1), f32(2.322432833e-1)


@compiled
def log1p_of_share(t: Float) -> Float:
    """log(1 + t) for t in 0..1: 2 * atanh(s) with s = t / (2 + t)."""
    s = t / (TWO + t)
    z = s * s
    p = fma(fma(fma(fma(LOG11, z, LOG9), z, LOG7), z, LOG5), z, LOG3)
    return fma(p * z, s, s + s)


SILU_MIN = f32(-80)  # below it sigmoid is 0, and exp(-x) must stay finite


@compiled
def silu(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = x[i] / (ONE + ap.exp(-x[i]))


@compiled
def silu_backward(g: Array, x: Array, out: Array) -> None:
    for i in range(x.size):
        e = ap.exp(-(SILU_MIN if x[i] < SILU_MIN else x[i]))
        s = ONE / (ONE + e)
        out[i] = g[i] * (s * (ONE + x[i] * (e * s)))  # e*s is 1 - s, not cancelled


MISH_MAX = f32(20)  # beyond it tanh(softplus(x)) rounds to 1, and exp(2x) must stay finite


@compiled
def mish(x: Array, out: Array) -> None:
    """x * tanh(log(1 + e)) with e = exp(x); tanh(log(1 + e)) is n / (n + 2) with n = e * (e + 2)."""
    for i in range(x.size):
        e = ap.exp(MISH_MAX if x[i] > MISH_MAX else x[i])
        n = e * (e + TWO)
        out[i] = x[i] * (n / (n + TWO))


@compiled
def mish_backward(g: Array, x: Array, out: Array) -> None:
    """With t = tanh(softplus(x)): t + x * (1 - t**2) * sigmoid(x), where 1 - t**2 is 4 * (n + 1) / (n + 2)**2."""
    for i in range(x.size):
        e = ap.exp(MISH_MAX if x[i] > MISH_MAX else x[i])
        n = e * (e + TWO)
        share = ONE / (n + TWO)
        slope = (TWO * share) * (TWO * share) * (n + ONE) * (e / (ONE + e))
        out[i] = g[i] * (n * share + x[i] * slope)


@compiled
def softplus(x: Array, beta: Float, threshold: Float, out: Array) -> None:
    """log(1 + exp(beta * x)) / beta, or x where beta * x > threshold."""
    scale = ONE / beta
    for i in range(x.size):
        z = beta * x[i]
        above = z if z > ZERO else ZERO
        soft = scale * (above + log1p_of_share(ap.exp(-abs(z))))
        out[i] = x[i] if z > threshold else soft


@compiled
def softplus_backward(g: Array, x: Array, beta: Float, threshold: Float, out: Array) -> None:
    for i in range(x.size):
        z = beta * x[i]
        out[i] = g[i] if z > threshold else g[i] * ap.sigmoid(z)


@compiled
def elu(x: Array, negative: Float, positive: Float, inner: Float, out: Array) -> None:
    """positive * x above 0, negative * (exp(inner * x) - 1) from there down: ELU, SELU and CELU."""
    for i in range(x.size):
        below = negative * expm1(inner * x[i])
        out[i] = below if x[i] <= ZERO else positive * x[i]


@compiled
def elu_backward(g: Array, x: Array, negative: Float, positive: Float, inner: Float, out: Array) -> None:
    for i in range(x.size):
        below = negative * inner * ap.exp(inner * x[i])
        out[i] = g[i] * (below if x[i] <= ZERO else positive)


@compiled
def select(mask: Mask, x: Array, y: Array, out: Array) -> None:
    """x where the mask is true, else y."""
    for i in range(x.size):
        out[i] = x[i] if mask[i] else y[i]


@compiled
def keep(mask: Mask, x: Array, out: Array) -> None:
    """x where the mask is true, else 0, whatever x is there."""
    for i in range(x.size):
        out[i] = x[i] if mask[i] else ZERO


@compiled
def dropout(draws: Any, x: Array, first_kept: Any, scale: Float, out: Array) -> None:
    """scale * x where draws, uint16, are at least first_kept, else 0."""
    for i in range(x.size):
        out[i] = x[i] * scale if draws[i] >= first_kept else ZERO
