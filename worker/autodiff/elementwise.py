"""Operations on each element, with broadcasting: arithmetic, exponentials, activations.

Names and meaning are PyTorch's. A number beside a tensor takes the tensor's dtype.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Tensor

# Inf and NaN are results like any other, as in PyTorch: 1 / 0 does not warn.
quiet = np.errstate(all="ignore")


# Arithmetic.


def add(x: Tensor | float, y: Tensor | float) -> Tensor:
    return record("add", _value(x) + _value(y), (x, lambda g: g), (y, lambda g: g))


def sub(x: Tensor | float, y: Tensor | float) -> Tensor:
    return record("sub", _value(x) - _value(y), (x, lambda g: g), (y, lambda g: -g))


def mul(x: Tensor | float, y: Tensor | float) -> Tensor:
    a, b = _value(x), _value(y)
    return record("mul", a * b, (x, lambda g: g * b), (y, lambda g: g * a))


@quiet
def div(x: Tensor | float, y: Tensor | float) -> Tensor:
    a, b = _value(x), _value(y)
    z = a / b
    return record("div", z, (x, lambda g: g / b), (y, lambda g: -g * z / b))


@quiet
def pow(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent, for a number as exponent."""
    if not isinstance(exponent, int | float):
        raise TypeError(f"pow: expected a number as exponent, got {type(exponent).__name__}")
    a = x.data

    def vjp(g: Array) -> Array:
        return g * (exponent * _power(a, exponent - 1)) if exponent else 0 * g  # x**0 is 1 at 0, too

    return record("pow", _power(a, exponent), (x, vjp))


def neg(x: Tensor) -> Tensor:
    return record("neg", -x.data, (x, lambda g: -g))


def abs(x: Tensor) -> Tensor:
    a = x.data
    return record("abs", np.abs(a), (x, lambda g: g * np.sign(a)))


def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The larger of two elements; where they are equal, each gets half of the gradient."""
    a, b = x.data, y.data
    return record("maximum", np.maximum(a, b), (x, lambda g: g * _share(a, b)), (y, lambda g: g * _share(b, a)))


def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller of two elements; where they are equal, each gets half of the gradient."""
    a, b = x.data, y.data
    return record("minimum", np.minimum(a, b), (x, lambda g: g * _share(b, a)), (y, lambda g: g * _share(a, b)))


# Exponentials.


@quiet
def exp(x: Tensor) -> Tensor:
    y = np.exp(x.data)
    return record("exp", y, (x, lambda g: g * y))


@quiet
def log(x: Tensor) -> Tensor:
    a = x.data
    return record("log", np.log(a), (x, lambda g: g / a))


@quiet
def sqrt(x: Tensor) -> Tensor:
    y = np.sqrt(x.data)
    return record("sqrt", y, (x, lambda g: g / (2 * y)))


# Activations.


def tanh(x: Tensor) -> Tensor:
    y = kernels.tanh(x.data)
    return record("tanh", y, (x, lambda g: kernels.tanh_backward(g, y)))


def sigmoid(x: Tensor) -> Tensor:
    y = kernels.sigmoid(x.data)
    return record("sigmoid", y, (x, lambda g: kernels.sigmoid_backward(g, y)))


def relu(x: Tensor) -> Tensor:
    y = kernels.relu(x.data)
    return record("relu", y, (x, lambda g: kernels.relu_backward(g, y)))


def gelu(x: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """x * cdf(x) of the normal distribution, or its approximation by tanh (Hendrycks & Gimpel, 2016)."""
    a = x.data
    if approximate == "none":
        return record("gelu", kernels.gelu_erf(a), (x, lambda g: kernels.gelu_erf_backward(g, a)))
    if approximate == "tanh":
        return record("gelu", kernels.gelu_tanh(a), (x, lambda g: kernels.gelu_tanh_backward(g, a)))
    raise ValueError(f"gelu: approximate is {approximate!r}, expected 'none' or 'tanh'")


def _value(x: Tensor | float) -> Any:
    if isinstance(x, Tensor):
        return x.data
    if isinstance(x, int | float):
        return float(x) if isinstance(x, np.float64) else x  # NumPy's own float64 would make the result float64
    raise TypeError(f"expected a Tensor or a number, got {type(x).__name__}; an array is wrapped with Tensor(array)")


def _power(a: Array, exponent: float) -> Array:
    """a ** exponent; the small ones by products, which are up to a hundred times as fast."""
    match exponent:
        case 1:
            return +a
        case 2:
            return a * a
        case 3:
            return a * a * a
        case 0.5:
            return np.sqrt(a)
        case _:
            return np.power(a, exponent)


def _share(a: Array, b: Array) -> Array:
    """The share of a in the gradient of maximum(a, b): 1, 1/2 or 0."""
    return np.asarray((a > b) + 0.5 * (a == b), a.dtype)
