"""exp, tanh and erf of one float32, written so that LLVM turns a loop over them into vector instructions.

NumPy's and libm's own are calls; these are a handful of multiply-adds. test_kernels.py states their error bounds.
NaN goes through: every comparison with it is false, and what follows is arithmetic on it.

No fast-math here: a fused multiply-add is written `fma`, and everything else is plain IEEE arithmetic. So an element
has the same bits in the vectorised body of a loop, in its rest, and in any other loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import bits_of, float_of, fma

Float = Any  # a float32; numba sees its type, mypy need not
f32 = np.float32

ZERO, HALF, ONE, TWO = f32(0), f32(0.5), f32(1), f32(2)

LOG2E = f32(1.44269504)
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
ROUND = f32(12582912.0)  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits of the mantissa
EXP_MIN, EXP_MAX = f32(-104.0), f32(89.0)  # beyond these the result is 0 and Inf
EXP_NORMAL = f32(-87.0)  # below it the result is subnormal, or soon
# The polynomial of Cephes' expf (Moshier).
EXP2, EXP3, EXP4 = f32(0.5), f32(1.6666665459e-1), f32(4.1665795894e-2)
EXP5, EXP6, EXP7 = f32(8.3334519073e-3), f32(1.3981999507e-3), f32(1.9875691500e-4)


@compiled
def exp(x: Float) -> Float:
    """e**x: 2**n times a polynomial in the rest r, |r| <= ln(2)/2 (Cody and Waite's reduction)."""
    x = EXP_MIN if x < EXP_MIN else x
    x = EXP_MAX if x > EXP_MAX else x
    shifted = fma(x, LOG2E, ROUND)
    # 2**n in two factors, so that n = 128 and the subnormal numbers come out right.
    whole = bits_of(shifted) - bits_of(ROUND)
    half = whole >> np.int32(1)
    return exp_of_rest(x, shifted - ROUND) * power_of_two(half) * power_of_two(whole - half)


@compiled
def exp_of_negative(x: Float) -> Float:
    """e**x for x <= 0, and 0 where that is no normal number: half of `exp`'s work is for other x."""
    shifted = fma(x, LOG2E, ROUND)
    e = exp_of_rest(x, shifted - ROUND) * power_of_two(bits_of(shifted) - bits_of(ROUND))
    return ZERO if x < EXP_NORMAL else e


@compiled
def exp_of_rest(x: Float, n: Float) -> Float:
    r = fma(-n, LN2_LOW, fma(-n, LN2_HIGH, x))
    p = fma(fma(fma(fma(fma(EXP7, r, EXP6), r, EXP5), r, EXP4), r, EXP3), r, EXP2)
    return fma(p * r, r, r) + ONE


@compiled
def power_of_two(n: Any) -> Float:
    return float_of((n + np.int32(127)) << np.int32(23))


TANH_SMALL = f32(0.625)
# (tanh(x) - x) / x**3 in powers of x**2, minimax on |x| < 0.625: relative error of tanh below 0.1 * 2**-24.
TANH3, TANH5, TANH7 = f32(-3.333328194e-1), f32(1.333144222e-1), f32(-5.373971628e-2)
TANH9, TANH11 = f32(2.063909066e-2), f32(-5.704990410e-3)


@compiled
def tanh(x: Float) -> Float:
    """Near zero an odd polynomial (exp would cancel), else 1 - 2 / (e**2|x| + 1) with the sign of x."""
    s = x * x
    p = fma(fma(fma(fma(TANH11, s, TANH9), s, TANH7), s, TANH5), s, TANH3)
    small = fma(p * s, x, x)
    large = ONE - TWO / (exp(TWO * abs(x)) + ONE)
    large = -large if x < ZERO else large
    return small if abs(x) < TANH_SMALL else large


@compiled
def sigmoid(x: Float) -> Float:
    return ONE / (ONE + exp(-x))


ERF_SMALL, ERF_MAX = f32(0.9), f32(4)  # erf(4) rounds to 1
# (erf(x) - x) / x in powers of x**2, minimax on |x| < 0.9: relative error of erf below 0.2 * 2**-24.
ERF1, ERF3, ERF5 = f32(1.283791538e-1), f32(-3.761252339e-1), f32(1.128214161e-1)
ERF7, ERF9, ERF11 = f32(-2.677893130e-2), f32(5.011990226e-3), f32(-6.090482192e-4)
# -log(1 - erf(x)) in powers of x, minimax on 0.9..4: relative error of erf below 0.1 * 2**-24.
TAIL1, TAIL2, TAIL3 = f32(1.128519958), f32(6.356993486e-1), f32(1.052868826e-1)
TAIL4, TAIL5, TAIL6 = f32(-2.290605055e-2), f32(3.219982040e-3), f32(-2.145958794e-4)


@compiled
def erf(x: Float) -> Float:
    """Near zero an odd polynomial, else 1 - e**-q(|x|) with the sign of x."""
    s = x * x
    p = fma(fma(fma(fma(fma(ERF11, s, ERF9), s, ERF7), s, ERF5), s, ERF3), s, ERF1)
    small = fma(p, x, x)
    t = abs(x)
    t = ERF_MAX if t > ERF_MAX else t
    q = fma(fma(fma(fma(fma(TAIL6, t, TAIL5), t, TAIL4), t, TAIL3), t, TAIL2), t, TAIL1)
    large = ONE - exp_of_negative(-q * t)
    large = -large if x < ZERO else large
    return small if t < ERF_SMALL else large
