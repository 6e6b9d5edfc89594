"""Functions of each element: exponentials, logarithms, trigonometry.

Names and meaning are PyTorch's; arithmetic is in arithmetic.py. Integers and booleans count as float32.
"""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.casting import in_float32
from worker.autodiff.graph import record
from worker.autodiff.promotion import Operand, floats, operands
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "rsqrt",
    "sin",
    "sinh",
    "sqrt",
    "tan",
]

# Inf and NaN are results like any other, as in PyTorch: 1 / 0 does not warn.
quiet = np.errstate(all="ignore")

LN2, LN10 = math.log(2), math.log(10)
ERF_AT_0 = 2 / math.sqrt(math.pi)  # the slope of erf there


# Exponentials and logarithms.


@in_float32
@quiet
def exp(x: Tensor) -> Tensor:
    y = np.exp(floats("exp", x))
    return record("exp", y, (x, lambda g: g * y))


@in_float32
@quiet
def exp2(x: Tensor) -> Tensor:
    y = np.exp2(floats("exp2", x))
    return record("exp2", y, (x, lambda g: g * (y * LN2)))


@in_float32
@quiet
def expm1(x: Tensor) -> Tensor:
    y = np.expm1(floats("expm1", x))
    return record("expm1", y, (x, lambda g: g * (y + 1)))


@in_float32
@quiet
def log(x: Tensor) -> Tensor:
    a = floats("log", x)
    return record("log", np.log(a), (x, lambda g: g / a))


@in_float32
@quiet
def log2(x: Tensor) -> Tensor:
    a = floats("log2", x)
    return record("log2", np.log2(a), (x, lambda g: g / (a * LN2)))


@in_float32
@quiet
def log10(x: Tensor) -> Tensor:
    a = floats("log10", x)
    return record("log10", np.log10(a), (x, lambda g: g / (a * LN10)))


@in_float32
@quiet
def log1p(x: Tensor) -> Tensor:
    a = floats("log1p", x)
    return record("log1p", np.log1p(a), (x, lambda g: g / (a + 1)))


# Roots.


@quiet
def sqrt(x: Tensor) -> Tensor:
    y = np.sqrt(floats("sqrt", x))
    return record("sqrt", y, (x, lambda g: g / (2 * y)))


@in_float32
@quiet
def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x)."""
    y = 1 / np.sqrt(floats("rsqrt", x))
    return record("rsqrt", y, (x, lambda g: g * (-0.5 * (y * y * y))))


# Trigonometry.


@quiet
def sin(x: Tensor) -> Tensor:
    a = floats("sin", x)
    return record("sin", np.sin(a), (x, lambda g: g * np.cos(a)))


@quiet
def cos(x: Tensor) -> Tensor:
    a = floats("cos", x)
    return record("cos", np.cos(a), (x, lambda g: -g * np.sin(a)))


@in_float32
@quiet
def tan(x: Tensor) -> Tensor:
    y = np.tan(floats("tan", x))
    return record("tan", y, (x, lambda g: g * (1 + y * y)))


@in_float32
@quiet
def asin(x: Tensor) -> Tensor:
    a = floats("asin", x)
    return record("asin", np.arcsin(a), (x, lambda g: g / np.sqrt(1 - a * a)))


@in_float32
@quiet
def acos(x: Tensor) -> Tensor:
    a = floats("acos", x)
    return record("acos", np.arccos(a), (x, lambda g: -g / np.sqrt(1 - a * a)))


@quiet
def atan(x: Tensor) -> Tensor:
    a = floats("atan", x)
    return record("atan", np.arctan(a), (x, lambda g: g / (1 + a * a)))


@quiet
def atan2(x: Operand, y: Operand) -> Tensor:
    """The angle of the point (y, x), in -pi..pi: the first argument is the ordinate. No gradient at the origin."""
    a, b = operands("atan2", x, y, floating=True)

    def over_square(g: Array) -> Array:
        square = a * a + b * b
        return np.where(square == 0, 0, g / square)

    value = np.arctan2(a, b)
    return record("atan2", value, (x, lambda g: b * over_square(g)), (y, lambda g: -a * over_square(g)))


@in_float32
@quiet
def sinh(x: Tensor) -> Tensor:
    a = floats("sinh", x)
    return record("sinh", np.sinh(a), (x, lambda g: g * np.cosh(a)))


@in_float32
@quiet
def cosh(x: Tensor) -> Tensor:
    a = floats("cosh", x)
    return record("cosh", np.cosh(a), (x, lambda g: g * np.sinh(a)))


@quiet
def asinh(x: Tensor) -> Tensor:
    a = floats("asinh", x)
    return record("asinh", np.arcsinh(a), (x, lambda g: g / np.sqrt(a * a + 1)))


@quiet
def acosh(x: Tensor) -> Tensor:
    a = floats("acosh", x)
    return record("acosh", np.arccosh(a), (x, lambda g: g / np.sqrt(a * a - 1)))


@quiet
def atanh(x: Tensor) -> Tensor:
    a = floats("atanh", x)
    return record("atanh", np.arctanh(a), (x, lambda g: g / (1 - a * a)))


# The error function.


@quiet
def erf(x: Tensor) -> Tensor:
    """2 / sqrt(pi) times the integral of exp(-t**2) from 0 to x."""
    a = floats("erf", x)
    return record("erf", kernels.erf(a), (x, lambda g: g * (ERF_AT_0 * np.exp(-a * a))))


@quiet
def erfc(x: Tensor) -> Tensor:
    """1 - erf(x), without cancellation."""
    a = floats("erfc", x)
    return record("erfc", kernels.erfc(a), (x, lambda g: g * (-ERF_AT_0 * np.exp(-a * a))))
