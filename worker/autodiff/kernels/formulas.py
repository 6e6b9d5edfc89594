"""The kernels' formulas in NumPy, for the dtypes that have no compiled loop: float64, in gradient checks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_erf = np.frompyfunc(math.erf, 1, 1)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def relu_backward(g: Array, y: Array) -> Array:
    return np.where(y <= 0, 0, g)


def tanh_backward(g: Array, y: Array) -> Array:
    return np.asarray(g * (1 - y * y))


@np.errstate(over="ignore")
def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def sigmoid_backward(g: Array, y: Array) -> Array:
    return np.asarray(g * (y * (1 - y)))


def silu(x: Array) -> Array:
    return np.asarray(x * sigmoid(x))


def silu_backward(g: Array, x: Array) -> Array:
    s = sigmoid(x)
    return np.asarray(g * (s * (1 + x * (1 - s))))


def mish(x: Array) -> Array:
    return np.asarray(x * np.tanh(np.logaddexp(x, 0)))


def mish_backward(g: Array, x: Array) -> Array:
    t = np.tanh(np.logaddexp(x, 0))
    return np.asarray(g * (t + x * (1 - t * t) * sigmoid(x)))


def softplus(x: Array, *, beta: float, threshold: float) -> Array:
    return np.where(beta * x > threshold, x, np.logaddexp(beta * x, 0) / beta)


def softplus_backward(g: Array, x: Array, *, beta: float, threshold: float) -> Array:
    return np.where(beta * x > threshold, g, g * sigmoid(beta * x))


def elu(x: Array, *, negative: float, positive: float, inner: float) -> Array:
    return np.where(x <= 0, negative * np.expm1(inner * np.minimum(x, 0)), positive * x)


def elu_backward(g: Array, x: Array, *, negative: float, positive: float, inner: float) -> Array:
    return g * np.where(x <= 0, negative * inner * np.exp(inner * np.minimum(x, 0)), positive)


def select(mask: Array, x: Array, y: Array) -> Array:
    return np.where(mask, x, y)


def keep(mask: Array, x: Array) -> Array:
    return np.where(mask, x, x.dtype.type(0))


def dropout(draws: Array, x: Array, *, first_kept: int, scale: float) -> Array:
    return np.where(draws >= first_kept, x * scale, x.dtype.type(0))


def gelu_tanh(x: Array) -> Array:
    return np.asarray(x * sigmoid(_twice_u(x)))


def gelu_tanh_backward(g: Array, x: Array) -> Array:
    s = sigmoid(_twice_u(x))
    slope = math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return np.asarray(g * (s + x * s * (1 - s) * slope))


def gelu_erf(x: Array) -> Array:
    return np.asarray(x * _normal_cdf(x))


def gelu_erf_backward(g: Array, x: Array) -> Array:
    return np.asarray(g * (_normal_cdf(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)))


def softmax_cross_entropy(logits: Array, targets: Array, ignore_index: int) -> tuple[Array, Array, int]:
    """Losses (N,), their gradient (N, C), and the first row with a target outside 0..C-1, or -1."""
    kept = targets != ignore_index
    outside = np.flatnonzero(kept & ((targets < 0) | (targets >= logits.shape[1])))
    if outside.size:
        return logits, logits, int(outside[0])
    index = np.flatnonzero(kept), targets[kept]
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    delta = np.exp(shifted)
    total = delta.sum(axis=1, keepdims=True)
    delta /= total
    losses = np.zeros(len(logits), logits.dtype)
    losses[kept] = np.log(total[kept, 0]) - shifted[index]
    delta[index] -= 1
    delta[~kept] = 0
    return losses, delta, -1


def _twice_u(x: Array) -> Array:
    return np.asarray(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))


def _normal_cdf(x: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.asarray(_erf(x * math.sqrt(0.5))).astype(x.dtype))
