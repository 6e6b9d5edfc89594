"""Arithmetic on each element, with broadcasting. Names and meaning are PyTorch's, gradients at kinks too.

A number may stand for any tensor; promotion.py says what dtype the result has.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.casting import in_float32
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.promotion import Operand, floats, operands, promoted
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "abs",
    "add",
    "ceil",
    "div",
    "floor",
    "floor_divide",
    "hypot",
    "lerp",
    "mul",
    "neg",
    "pow",
    "reciprocal",
    "remainder",
    "round",
    "sign",
    "square",
    "sub",
    "trunc",
]


@quiet
def add(x: Operand, y: Operand, *, alpha: float = 1) -> Tensor:
    """x + alpha * y."""
    a, b = operands("add", x, y if alpha == 1 else mul(y, alpha))
    return record("add", kernels.apply(np.add, a, b), (x, lambda g: g), (y, lambda g: g if alpha == 1 else g * alpha))


@quiet
def sub(x: Operand, y: Operand, *, alpha: float = 1) -> Tensor:
    """x - alpha * y."""
    a, b = operands("sub", x, y if alpha == 1 else mul(y, alpha))
    _check_numbers("sub", a, b)
    return record(
        "sub", kernels.apply(np.subtract, a, b), (x, lambda g: g), (y, lambda g: -g if alpha == 1 else g * -alpha)
    )


@quiet
def mul(x: Operand, y: Operand) -> Tensor:
    a, b = operands("mul", x, y)
    return record(
        "mul",
        kernels.apply(np.multiply, a, b),
        (x, lambda g: kernels.apply(np.multiply, g, b)),
        (y, lambda g: kernels.apply(np.multiply, g, a)),
    )


@quiet
def div(x: Operand, y: Operand, *, rounding_mode: Literal["floor", "trunc"] | None = None) -> Tensor:
    """x / y, in floating point; or rounded down or towards zero, and then integers stay integers."""
    if rounding_mode is not None:
        return _rounded_div("div", x, y, rounding_mode)
    a, b = operands("div", x, y, floating=True)
    z = a / b
    return record("div", z, (x, lambda g: g / b), (y, lambda g: -g * z / b))


@quiet
def floor_divide(x: Operand, y: Operand) -> Tensor:
    return _rounded_div("floor_divide", x, y, "floor")


@quiet
def remainder(x: Operand, y: Operand) -> Tensor:
    """x - y * floor(x / y), with the sign of y."""
    a, b = operands("remainder", x, y)
    _check_divisor("remainder", a, b)
    return record("remainder", np.remainder(a, b), (x, lambda g: g), (y, lambda g: -g * np.floor_divide(a, b)))


@in_float32
@quiet
def pow(x: Operand, exponent: Operand) -> Tensor:
    """x ** exponent. An exponent of 0 gives x no gradient, and 0 ** exponent gives the exponent none."""
    a, e = operands("pow", x, exponent)
    if _dtype(a, e).kind == "i" and np.any(e < 0):
        raise ValueError("pow: got integers and a negative exponent, expected one from 0 or a floating-point tensor")
    y = _power(a, e)

    def x_vjp(g: Array) -> Array:
        part = g * (e * _power(a, e - 1))
        return part if isinstance(e, int | float) and e else np.where(e == 0, 0, part)

    def exponent_vjp(g: Array) -> Array:
        return np.where((a == 0) & (e >= 0), 0, g * (y * np.log(a)))

    return record("pow", y, (x, x_vjp), (exponent, exponent_vjp))


@quiet
def neg(x: Tensor) -> Tensor:
    _check_numbers("neg", x.data, x.data)
    return record("neg", -x.data, (x, lambda g: -g))


def abs(x: Tensor) -> Tensor:
    a = x.data
    return record("abs", np.abs(a), (x, lambda g: g * _sign(a)))


@in_float32
@quiet
def reciprocal(x: Tensor) -> Tensor:
    y = np.reciprocal(floats("reciprocal", x))
    return record("reciprocal", y, (x, lambda g: -g * (y * y)))


@quiet
def square(x: Tensor) -> Tensor:
    a = x.data
    return record("square", a * a, (x, lambda g: g * (2 * a)))


@quiet
def hypot(x: Operand, y: Operand) -> Tensor:
    """sqrt(x**2 + y**2), without overflow."""
    a, b = operands("hypot", x, y, floating=True)
    z = np.hypot(a, b)
    return record("hypot", z, (x, lambda g: g * (a / z)), (y, lambda g: g * (b / z)))


@quiet
def lerp(x: Operand, end: Operand, weight: Operand) -> Tensor:
    """x + weight * (end - x), and exactly `end` for a weight of 1."""
    a, b, w = promoted("lerp", x, end, weight)
    difference = b - a
    value = np.where(np.abs(w) < 0.5, a + w * difference, b - difference * (1 - w))
    return record("lerp", value, (x, lambda g: g * (1 - w)), (end, lambda g: g * w), (weight, lambda g: g * difference))


# Steps, whose gradient is zero.


def sign(x: Tensor) -> Tensor:
    a = x.data
    return record("sign", _sign(a) if a.dtype != np.bool_ else a.copy(), (x, np.zeros_like))


def floor(x: Tensor) -> Tensor:
    return record("floor", np.floor(x.data), (x, np.zeros_like))


def ceil(x: Tensor) -> Tensor:
    return record("ceil", np.ceil(x.data), (x, np.zeros_like))


def trunc(x: Tensor) -> Tensor:
    return record("trunc", np.trunc(x.data), (x, np.zeros_like))


@quiet
def round(x: Tensor, *, decimals: int = 0) -> Tensor:
    """The nearest multiple of 10**-decimals; of two, the even one."""
    return record("round", np.round(x.data, decimals), (x, np.zeros_like))


def _rounded_div(name: str, x: Operand, y: Operand, rounding_mode: str) -> Tensor:
    if rounding_mode not in ("floor", "trunc"):
        raise ValueError(f"{name}: rounding_mode is {rounding_mode!r}, expected None, 'floor' or 'trunc'")
    a, b = operands(name, x, y)
    _check_divisor(name, a, b)
    if rounding_mode == "floor":
        value = np.floor_divide(a, b)
    elif _dtype(a, b).kind == "f":
        value = np.trunc(a / b)
    else:
        value = (a - np.fmod(a, b)) // b
    return record(name, value, (x, np.zeros_like), (y, np.zeros_like))


def _power(a: Any, e: Any) -> Any:
    """a ** e; the small numbers by products, which are up to a hundred times as fast."""
    if not isinstance(e, int | float):
        return np.power(a, e)
    match e:
        case -2:
            return 1 / (a * a)
        case -1:
            return 1 / a
        case -0.5:
            return 1 / np.sqrt(a)
        case 0.5:
            return np.sqrt(a)
        case 1:
            return +a
        case 2:
            return a * a
        case 3:
            return a * a * a
        case _:
            return np.power(a, e)


def _sign(a: Array) -> Array:
    """-1, 0 or 1; PyTorch's sign of NaN is 0, NumPy's is NaN."""
    return np.subtract(a > 0, a < 0, dtype=a.dtype)


def _dtype(a: Any, b: Any) -> np.dtype[Any]:
    """The common dtype of what `operands` gave."""
    dtype: np.dtype[Any] = a.dtype if isinstance(a, np.ndarray | np.generic) else b.dtype
    return dtype


def _check_numbers(name: str, a: Any, b: Any) -> None:
    if _dtype(a, b) == np.bool_:
        raise ValueError(f"{name}: got booleans, expected numbers; use logical_xor or logical_not")


def _check_divisor(name: str, a: Any, b: Any) -> None:
    if _dtype(a, b).kind != "f" and not np.all(b):
        raise ValueError(f"{name}: y has a zero, expected none among integers, which have no infinity")
