"""Activations: what stands between layers, element by element.

Names, arguments and meaning are PyTorch's. At a kink, and at NaN, the gradient is the one that PyTorch takes.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
]

# The fixed point of mean 0 and variance 1 (Klambauer et al., 2017).
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


# Smooth ones.


def tanh(x: Tensor) -> Tensor:
    y = kernels.tanh(x.data)
    return record("tanh", y, (x, lambda g: kernels.tanh_backward(g, y)))


def sigmoid(x: Tensor) -> Tensor:
    y = kernels.sigmoid(x.data)
    return record("sigmoid", y, (x, lambda g: kernels.sigmoid_backward(g, y)))


def gelu(x: Tensor, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """x * cdf(x) of the normal distribution, or its approximation by tanh (Hendrycks & Gimpel, 2016)."""
    a = x.data
    if approximate == "none":
        return record("gelu", kernels.gelu_erf(a), (x, lambda g: kernels.gelu_erf_backward(g, a)))
    if approximate == "tanh":
        return record("gelu", kernels.gelu_tanh(a), (x, lambda g: kernels.gelu_tanh_backward(g, a)))
    raise ValueError(f"gelu: approximate is {approximate!r}, expected 'none' or 'tanh'")


@quiet
def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), also called swish."""
    a = x.data
    return record("silu", kernels.silu(a), (x, lambda g: kernels.silu_backward(g, a)))


@quiet
def mish(x: Tensor) -> Tensor:
    """x * tanh(softplus(x)) (Misra, 2019)."""
    a = x.data
    return record("mish", kernels.mish(a), (x, lambda g: kernels.mish_backward(g, a)))


@quiet
def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta; x itself where beta * x is above the threshold."""
    a = x.data
    return record(
        "softplus",
        kernels.softplus(a, beta=beta, threshold=threshold),
        (x, lambda g: kernels.softplus_backward(g, a, beta=beta, threshold=threshold)),
    )


@quiet
def logsigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)) = -softplus(-x), without overflow."""
    opposite = -x.data
    return record(
        "logsigmoid",
        -kernels.softplus(opposite, beta=1.0, threshold=math.inf),
        (x, lambda g: kernels.softplus_backward(g, opposite, beta=1.0, threshold=math.inf)),
    )


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha * (exp(x) - 1) below (Clevert et al., 2016)."""
    return _elu("elu", x, alpha, 1.0, 1.0)


def selu(x: Tensor) -> Tensor:
    """scale * elu(x, alpha), with the two constants that keep mean 0 and variance 1 (Klambauer et al., 2017)."""
    return _elu("selu", x, SELU_SCALE * SELU_ALPHA, SELU_SCALE, 1.0)


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha * (exp(x / alpha) - 1) below (Barron, 2017)."""
    if not alpha:
        raise ValueError("celu: alpha is 0, expected another number")
    return _elu("celu", x, alpha, 1.0, 1 / alpha)


@quiet
def _elu(name: str, x: Tensor, negative: float, positive: float, inner: float) -> Tensor:
    a = x.data
    return record(
        name,
        kernels.elu(a, negative=negative, positive=positive, inner=inner),
        (x, lambda g: kernels.elu_backward(g, a, negative=negative, positive=positive, inner=inner)),
    )


@quiet
def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    scale = 1 + np.abs(x.data)
    return record("softsign", x.data / scale, (x, lambda g: g / (scale * scale)))


@quiet
def tanhshrink(x: Tensor) -> Tensor:
    """x - tanh(x)."""
    t = kernels.tanh(x.data)
    return record("tanhshrink", x.data - t, (x, lambda g: g * (t * t)))


@quiet
def glu(x: Tensor, dim: int = -1) -> Tensor:
    """a * sigmoid(b), where a and b are the halves of x along `dim` (Dauphin et al., 2017)."""
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"glu: dim is {dim} but x has {x.ndim} dimensions")
    if x.shape[dim] % 2:
        raise ValueError(f"glu: x has size {x.shape[dim]} in dimension {dim}, expected an even size")
    a, b = np.split(x.data, 2, axis=dim)
    s = kernels.sigmoid(b)

    def vjp(g: Array) -> Array:
        ga = g * s
        return np.concatenate([ga, ga * (a * (1 - s))], axis=dim)

    return record("glu", a * s, (x, vjp))


# Piecewise ones.


def relu(x: Tensor) -> Tensor:
    y = kernels.relu(x.data)
    return record("relu", y, (x, lambda g: kernels.relu_backward(g, y)))


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return _clip("relu6", x, 0.0, 6.0)


def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x, but at least min_val and at most max_val."""
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val is {min_val}, expected at most max_val, {max_val}")
    return _clip("hardtanh", x, min_val, max_val)


def _clip(name: str, x: Tensor, low: float, high: float) -> Tensor:
    inside = ~((x.data <= low) | (x.data >= high))
    return record(name, np.clip(x.data, low, high), (x, lambda g: kernels.keep(inside, g)))


@quiet
def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x above 0, negative_slope * x below."""
    above, slope = x.data > 0, float(negative_slope)
    return record(
        "leaky_relu",
        kernels.select(above, x.data, slope * x.data),
        (x, lambda g: kernels.select(above, g, slope * g)),
    )


@quiet
def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """x above 0, weight * x below; the weight is one number, or one for each channel (dimension 1)."""
    w, a = _per_channel("prelu", x, weight), x.data
    above, channels, shape = a > 0, tuple(d for d in range(a.ndim) if d != 1), weight.shape

    def weight_vjp(g: Array) -> Array:
        gradient = kernels.keep(~above, g * a)
        summed: Array = np.add.reduce(gradient, axis=channels if w.size > 1 else None)
        return summed.reshape(shape)

    return record(
        "prelu",
        kernels.select(above, a, w * a),
        (x, lambda g: kernels.select(above, g, w * g)),
        (weight, weight_vjp),
    )


@quiet
def hardsigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6."""
    inside = np.abs(x.data) < 3
    return record("hardsigmoid", np.clip(x.data + 3, 0, 6) / 6, (x, lambda g: kernels.keep(inside, g / 6)))


@quiet
def hardswish(x: Tensor) -> Tensor:
    """x * relu6(x + 3) / 6."""
    a = x.data

    def vjp(g: Array) -> Array:
        return kernels.select(a < 3, kernels.keep(a > -3, g * (a / 3 + 0.5)), g)

    return record("hardswish", a * np.clip(a + 3, 0, 6) / 6, (x, vjp))


@quiet
def softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved towards 0 by lambd, and 0 where it is that near."""
    if not lambd >= 0:
        raise ValueError(f"softshrink: lambd is {lambd}, expected at least 0")
    outside = ~(np.abs(x.data) <= lambd)
    return record("softshrink", x.data - np.clip(x.data, -lambd, lambd), (x, lambda g: kernels.keep(outside, g)))


def hardshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """x, but 0 where |x| <= lambd."""
    outside = ~(np.abs(x.data) <= lambd)
    return record("hardshrink", kernels.keep(outside, x.data), (x, lambda g: kernels.keep(outside, g)))


def threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    """x above the threshold, `value` elsewhere."""
    above = ~(x.data <= threshold)
    y = kernels.select(above, x.data, np.full_like(x.data, value))
    return record("threshold", y, (x, lambda g: kernels.keep(above, g)))


def _per_channel(name: str, x: Tensor, weight: Tensor) -> Array:
    """The weight in a shape that broadcasts over x (N, C, ...)."""
    if weight.ndim > 1:
        raise ValueError(f"{name}: weight has shape {weight.shape}, expected one dimension")
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.numel() not in (1, channels):
        raise ValueError(f"{name}: weight has {weight.numel()} elements but x has {channels} channels")
    return weight.data.reshape(-1, *[1] * (x.ndim - 2)) if x.ndim > 1 else weight.data.reshape(())
