"""Optimizer updates of flat float32 vectors: one pass over memory each.

Each rule has its formula once, and two loops: beside and in place. (With one loop for both LLVM, which cannot know that
the arrays are the same, would not vectorise in place.)

Letters: w weights, g gradient, lr learning rate; `scale` is a factor on g, `decay` the share of w added to it. What is
called new_ is written.
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
ONE = np.float32(1)


class Update(NamedTuple):
    """The two loops of a rule: beside(w, g, *state, new_w, *new_state, numbers), in_place(w, g, *state, numbers)."""

    beside: Kernel
    in_place: Kernel


@compiled
def sgd(w: Float, g: Float, numbers: Floats) -> Float:
    scale, lr, decay = numbers
    return w - lr * (g * scale + decay * w)


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
    scale, lr, decay, beta = numbers
    v = beta * v - lr * (g * scale + decay * w)
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
    scale, step_size, root, decay, shrink, beta1, beta2, epsilon = numbers
    g = g * scale + decay * w
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


SGD = Update(sgd_beside, sgd_in_place)
MOMENTUM = Update(momentum_beside, momentum_in_place)
ADAM = Update(adam_beside, adam_in_place)
