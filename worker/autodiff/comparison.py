"""Comparisons, logic, and choices between two elements, with broadcasting. Names and meaning are PyTorch's.

Comparisons and logic give booleans, which have no gradient. A number may stand for any tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.promotion import Operand, operands, promoted
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "clamp",
    "eq",
    "ge",
    "gt",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "lt",
    "maximum",
    "minimum",
    "ne",
    "where",
]


# Comparisons.


def eq(x: Operand, y: Operand) -> Tensor:
    return _compare(np.equal, "eq", x, y)


def ne(x: Operand, y: Operand) -> Tensor:
    return _compare(np.not_equal, "ne", x, y)


def lt(x: Operand, y: Operand) -> Tensor:
    return _compare(np.less, "lt", x, y)


def le(x: Operand, y: Operand) -> Tensor:
    return _compare(np.less_equal, "le", x, y)


def gt(x: Operand, y: Operand) -> Tensor:
    return _compare(np.greater, "gt", x, y)


def ge(x: Operand, y: Operand) -> Tensor:
    return _compare(np.greater_equal, "ge", x, y)


def isfinite(x: Tensor) -> Tensor:
    return Tensor(np.asarray(np.isfinite(x.data)))


def isinf(x: Tensor) -> Tensor:
    return Tensor(np.asarray(np.isinf(x.data)))


def isnan(x: Tensor) -> Tensor:
    return Tensor(np.asarray(np.isnan(x.data)))


# Logic: what is not zero is true. Bit by bit on integers.


def logical_and(x: Operand, y: Operand) -> Tensor:
    return _compare(np.logical_and, "logical_and", x, y)


def logical_or(x: Operand, y: Operand) -> Tensor:
    return _compare(np.logical_or, "logical_or", x, y)


def logical_xor(x: Operand, y: Operand) -> Tensor:
    return _compare(np.logical_xor, "logical_xor", x, y)


def logical_not(x: Tensor) -> Tensor:
    return Tensor(np.asarray(np.logical_not(x.data)))


def bitwise_and(x: Operand, y: Operand) -> Tensor:
    return _bitwise("bitwise_and", np.bitwise_and, *operands("bitwise_and", x, y))


def bitwise_or(x: Operand, y: Operand) -> Tensor:
    return _bitwise("bitwise_or", np.bitwise_or, *operands("bitwise_or", x, y))


def bitwise_xor(x: Operand, y: Operand) -> Tensor:
    return _bitwise("bitwise_xor", np.bitwise_xor, *operands("bitwise_xor", x, y))


def bitwise_not(x: Tensor) -> Tensor:
    return _bitwise("bitwise_not", np.bitwise_not, x.data)


# Choices.


@quiet
def where(condition: Tensor, x: Operand, y: Operand) -> Tensor:
    """x where the condition holds, else y."""
    chosen = condition.data
    if chosen.dtype != np.bool_:
        raise ValueError(f"where: condition is {chosen.dtype}, expected bool")
    a, b = promoted("where", x, y, beside=chosen)
    return record(
        "where",
        np.where(chosen, a, b),
        (x, lambda g: np.where(chosen, g, 0)),
        (y, lambda g: np.where(chosen, 0, g)),
    )


@quiet
def maximum(x: Operand, y: Operand) -> Tensor:
    """The larger of two elements; where they are equal, each gets half of the gradient."""
    a, b = operands("maximum", x, y)
    return record("maximum", np.maximum(a, b), (x, lambda g: _share(g, a, b)), (y, lambda g: _share(g, b, a)))


@quiet
def minimum(x: Operand, y: Operand) -> Tensor:
    """The smaller of two elements; where they are equal, each gets half of the gradient."""
    a, b = operands("minimum", x, y)
    return record("minimum", np.minimum(a, b), (x, lambda g: _share(g, b, a)), (y, lambda g: _share(g, a, b)))


@quiet
def clamp(x: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """x, but no less than `min` and no more than `max`; `max` where they contradict each other.

    On a bound the gradient is x's. ValueError where both are None.
    """
    if min is None and max is None:
        raise ValueError("clamp: min and max are None, expected at least one bound")
    a, *bounds = promoted("clamp", x, *[bound for bound in (min, max) if bound is not None])
    low, high = bounds[0] if min is not None else None, bounds[-1] if max is not None else None

    def x_vjp(g: Array) -> Array:
        above_low = np.True_ if low is None else a >= low
        return np.where(above_low if high is None else above_low & (a <= high), g, 0)

    def min_vjp(g: Array) -> Array:
        return np.where(a < low if high is None else (a < low) & (low < high), g, 0)

    def max_vjp(g: Array) -> Array:
        return np.where(a > high if low is None else (a > high) | (high < low), g, 0)

    return record("clamp", np.clip(a, low, high), (x, x_vjp), (min, min_vjp), (max, max_vjp))


@quiet
def _compare(ufunc: Callable[..., Any], name: str, x: Operand, y: Operand) -> Tensor:
    return Tensor(np.asarray(ufunc(*operands(name, x, y))))


def _bitwise(name: str, ufunc: Callable[..., Any], *values: Any) -> Tensor:
    for value in values:
        if np.asarray(value).dtype.kind == "f":
            raise ValueError(f"{name}: got floating-point numbers, expected booleans or integers")
    return Tensor(np.asarray(ufunc(*values)))


def _share(g: Array, a: Any, b: Any) -> Array:
    """a's share of the gradient of maximum(a, b): all, half or none; all beside NaN, as in PyTorch."""
    return np.where(a == b, g / 2, np.where(a < b, 0, g))
