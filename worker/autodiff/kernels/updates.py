"""Optimizer updates of flat float32 vectors: one pass over memory each.

Each rule has its formula once, and two loops: beside and in place. (With one loop for both LLVM, which cannot know that
the arrays are the same, would not vectorise in place.)

Letters: w weights, g gradient, lr learning rate; `scale` is a factor on g, which is then held between -limit and limit;
`decay` the share of w added to it. What is called new_ is written.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.compilation import Kernel, compiled

Array = NDArray[np.float32]
Float = Any  # a float32
Floats = tuple[Float, ...]
ZERO, ONE = np.float32(0), np.float32(1)


class Update(NamedTuple):
    """The two loops of a rule: beside(w, g, *state, new_w, *new_state, numbers), in_place(w, g, *state, numbers)."""

    beside: Kernel
    in_place: Kernel


@compiled
def clipped(g: Float, scale: Float, limit: Float) -> Float:
    """NaN stays NaN."""
    g = g * scale
    return limit if g > limit else -limit if g < -limit else g


@compiled
def sgd(w: Float, g: Float, numbers: Floats) -> Float:
    scale, limit, lr, decay = numbers
    return w - lr * (clipped(g, scale, limit) + decay * w)


@compiled
def sgd_beside(w: Array, g: Array, new_w: Array, numbers: Floats) -> None:
    for i in range(w.size):
        new_w[i] = sgd(w[i], g[i], numbers)


@compiled
def sgd_in_place(w: Array, g: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i] = sgd(w[i], g[i], numbers)


@compiled
def momentum(w: Float, g: Float, v: Float, numbers: Floats) -> tuple[Float, Float]:
    scale, limit, lr, decay, beta = numbers
    v = beta * v - lr * (clipped(g, scale, limit) + decay * w)
    return w + v, v


@compiled
def momentum_beside(w: Array, g: Array, v: Array, new_w: Array, new_v: Array, numbers: Floats) -> None:
    for i in range(w.size):
        new_w[i], new_v[i] = momentum(w[i], g[i], v[i], numbers)


@compiled
def momentum_in_place(w: Array, g: Array, v: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], v[i] = momentum(w[i], g[i], v[i], numbers)


@compiled
def adam(w: Float, g: Float, m: Float, v: Float, numbers: Floats) -> tuple[Float, Float, Float]:
    """step_size is lr / (1 - beta1**t), root 1 / sqrt(1 - beta2**t), shrink what AdamW leaves of w."""
    scale, limit, step_size, root, decay, shrink, beta1, beta2, epsilon = numbers
    g = clipped(g, scale, limit) + decay * w
    m = beta1 * m + (ONE - beta1) * g
    v = beta2 * v + (ONE - beta2) * g * g
    return w * shrink - step_size * m / (math.sqrt(v) * root + epsilon), m, v


@compiled
def adam_beside(
    w: Array, g: Array, m: Array, v: Array, new_w: Array, new_m: Array, new_v: Array, numbers: Floats
) -> None:
    for i in range(w.size):
        new_w[i], new_m[i], new_v[i] = adam(w[i], g[i], m[i], v[i], numbers)


@compiled
def adam_in_place(w: Array, g: Array, m: Array, v: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], m[i], v[i] = adam(w[i], g[i], m[i], v[i], numbers)


@compiled
def heavy_ball(w: Float, g: Float, b: Float, numbers: Floats) -> tuple[Float, Float]:
    """PyTorch's momentum: `from_g` and `from_b` are what g and b have in the step, by Nesterov or without."""
    scale, limit, lr, decay, beta, gain, from_g, from_b = numbers
    g = clipped(g, scale, limit) + decay * w
    b = beta * b + gain * g
    return w - lr * (from_g * g + from_b * b), b


@compiled
def heavy_ball_beside(w: Array, g: Array, b: Array, new_w: Array, new_b: Array, numbers: Floats) -> None:
    for i in range(w.size):
        new_w[i], new_b[i] = heavy_ball(w[i], g[i], b[i], numbers)


@compiled
def heavy_ball_in_place(w: Array, g: Array, b: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], b[i] = heavy_ball(w[i], g[i], b[i], numbers)


@compiled
def rmsprop(w: Float, g: Float, v: Float, numbers: Floats) -> tuple[Float, Float]:
    scale, limit, lr, decay, alpha, rest, epsilon = numbers
    g = clipped(g, scale, limit) + decay * w
    v = alpha * v + rest * g * g
    return w - lr * g / (math.sqrt(v) + epsilon), v


@compiled
def rmsprop_beside(w: Array, g: Array, v: Array, new_w: Array, new_v: Array, numbers: Floats) -> None:
    for i in range(w.size):
        new_w[i], new_v[i] = rmsprop(w[i], g[i], v[i], numbers)


@compiled
def rmsprop_in_place(w: Array, g: Array, v: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], v[i] = rmsprop(w[i], g[i], v[i], numbers)


@compiled
def rmsprop_momentum(w: Float, g: Float, v: Float, b: Float, numbers: Floats) -> tuple[Float, Float, Float]:
    scale, limit, lr, decay, alpha, rest, epsilon, beta = numbers
    g = clipped(g, scale, limit) + decay * w
    v = alpha * v + rest * g * g
    b = beta * b + g / (math.sqrt(v) + epsilon)
    return w - lr * b, v, b


@compiled
def rmsprop_momentum_beside(
    w: Array, g: Array, v: Array, b: Array, new_w: Array, new_v: Array, new_b: Array, numbers: Floats
) -> None:
    for i in range(w.size):
        new_w[i], new_v[i], new_b[i] = rmsprop_momentum(w[i], g[i], v[i], b[i], numbers)


@compiled
def rmsprop_momentum_in_place(w: Array, g: Array, v: Array, b: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], v[i], b[i] = rmsprop_momentum(w[i], g[i], v[i], b[i], numbers)


@compiled
def deviation(v: Float, m: Float) -> Float:
    """The root of a variance: of the mean of squares less the square of the mean, which rounding may make negative."""
    variance = v - m * m
    return math.sqrt(ZERO if variance < 0 else variance)


@compiled
def rmsprop_centered(w: Float, g: Float, v: Float, m: Float, numbers: Floats) -> tuple[Float, Float, Float]:
    scale, limit, lr, decay, alpha, rest, epsilon = numbers
    g = clipped(g, scale, limit) + decay * w
    v = alpha * v + rest * g * g
    m = alpha * m + rest * g
    return w - lr * g / (deviation(v, m) + epsilon), v, m


@compiled
def rmsprop_centered_beside(
    w: Array, g: Array, v: Array, m: Array, new_w: Array, new_v: Array, new_m: Array, numbers: Floats
) -> None:
    for i in range(w.size):
        new_w[i], new_v[i], new_m[i] = rmsprop_centered(w[i], g[i], v[i], m[i], numbers)


@compiled
def rmsprop_centered_in_place(w: Array, g: Array, v: Array, m: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], v[i], m[i] = rmsprop_centered(w[i], g[i], v[i], m[i], numbers)


@compiled
def rmsprop_centered_momentum(
    w: Float, g: Float, v: Float, m: Float, b: Float, numbers: Floats
) -> tuple[Float, Float, Float, Float]:
    scale, limit, lr, decay, alpha, rest, epsilon, beta = numbers
    g = clipped(g, scale, limit) + decay * w
    v = alpha * v + rest * g * g
    m = alpha * m + rest * g
    b = beta * b + g / (deviation(v, m) + epsilon)
    return w - lr * b, v, m, b


@compiled
def rmsprop_centered_momentum_beside(
    w: Array,
    g: Array,
    v: Array,
    m: Array,
    b: Array,
    new_w: Array,
    new_v: Array,
    new_m: Array,
    new_b: Array,
    numbers: Floats,
) -> None:
    for i in range(w.size):
        new_w[i], new_v[i], new_m[i], new_b[i] = rmsprop_centered_momentum(w[i], g[i], v[i], m[i], b[i], numbers)


@compiled
def rmsprop_centered_momentum_in_place(w: Array, g: Array, v: Array, m: Array, b: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], v[i], m[i], b[i] = rmsprop_centered_momentum(w[i], g[i], v[i], m[i], b[i], numbers)


@compiled
def adagrad(w: Float, g: Float, s: Float, numbers: Floats) -> tuple[Float, Float]:
    scale, limit, lr, decay, epsilon = numbers
    g = clipped(g, scale, limit) + decay * w
    s = s + g * g
    return w - lr * g / (math.sqrt(s) + epsilon), s


@compiled
def adagrad_beside(w: Array, g: Array, s: Array, new_w: Array, new_s: Array, numbers: Floats) -> None:
    for i in range(w.size):
        new_w[i], new_s[i] = adagrad(w[i], g[i], s[i], numbers)


@compiled
def adagrad_in_place(w: Array, g: Array, s: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], s[i] = adagrad(w[i], g[i], s[i], numbers)


@compiled
def lion(w: Float, g: Float, m: Float, numbers: Floats) -> tuple[Float, Float]:
    """`shrink` is what weight decay leaves of w."""
    scale, limit, lr, shrink, beta1, rest1, beta2, rest2 = numbers
    g = clipped(g, scale, limit)
    c = beta1 * m + rest1 * g
    sign = ONE if c > 0 else -ONE if c < 0 else c  # of NaN it is NaN
    return w * shrink - lr * sign, beta2 * m + rest2 * g


@compiled
def lion_beside(w: Array, g: Array, m: Array, new_w: Array, new_m: Array, numbers: Floats) -> None:
    for i in range(w.size):
        new_w[i], new_m[i] = lion(w[i], g[i], m[i], numbers)


@compiled
def lion_in_place(w: Array, g: Array, m: Array, numbers: Floats) -> None:
    for i in range(w.size):
        w[i], m[i] = lion(w[i], g[i], m[i], numbers)


@compiled
def average_beside(w: Array, e: Array, new_e: Array, rate: Float) -> None:
    """An exponential moving average of w."""
    for i in range(w.size):
        new_e[i] = e[i] + rate * (w[i] - e[i])


@compiled
def average_in_place(w: Array, e: Array, rate: Float) -> None:
    for i in range(w.size):
        e[i] = e[i] + rate * (w[i] - e[i])


SGD = Update(sgd_beside, sgd_in_place)
MOMENTUM = Update(momentum_beside, momentum_in_place)
ADAM = Update(adam_beside, adam_in_place)
HEAVY_BALL = Update(heavy_ball_beside, heavy_ball_in_place)
RMSPROP = Update(rmsprop_beside, rmsprop_in_place)
RMSPROP_MOMENTUM = Update(rmsprop_momentum_beside, rmsprop_momentum_in_place)
RMSPROP_CENTERED = Update(rmsprop_centered_beside, rmsprop_centered_in_place)
RMSPROP_CENTERED_MOMENTUM = Update(rmsprop_centered_momentum_beside, rmsprop_centered_momentum_in_place)
ADAGRAD = Update(adagrad_beside, adagrad_in_place)
LION = Update(lion_beside, lion_in_place)
AVERAGE = Update(average_beside, average_in_place)
