"""Kernels over the rows of a float32 matrix: bias, column sum, softmax with cross-entropy.

Shapes: N rows, C columns.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.approximations import ONE, ZERO, exp_of_negative
from worker.autodiff.kernels.compilation import compiled, compiled_sum
from worker.autodiff.kernels.intrinsics import maximum

Array = NDArray[np.float32]

BLOCK = 16384  # elements; 64 KiB of float32


@compiled
def add_bias(y: Array, bias: Array) -> None:
    """y (N, C) += bias (C,), in place."""
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[i, j] += bias[j]


@compiled
def column_sum(x: Array, out: Array) -> None:
    """out (C,) = the sum of the rows of x (N, C), from the first to the last."""
    out[:] = ZERO
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[j] += x[i, j]


@compiled_sum
def softmax_cross_entropy(
    logits: Array, targets: NDArray[np.int64], ignore_index: int, losses: Array, delta: Array
) -> int:
    """losses (N,) = -log softmax(logits (N, C))[target]; delta (N, C) = softmax - one_hot(target), its gradient.

    Rows whose target is ignore_index get zeros. The first row with another target outside 0..C-1 is returned, else -1.
    """
    columns = logits.shape[1]
    for i in range(logits.shape[0]):
        target = targets[i]
        if target == ignore_index:
            losses[i] = ZERO
            delta[i] = ZERO
            continue
        if target < 0 or target >= columns:
            return i
        row, out = logits[i], delta[i]
        largest = row[0]
        for j in range(columns):
            largest = maximum(largest, row[j])
        total = ZERO
        for j in range(columns):
            e = exp_of_negative(row[j] - largest)
            out[j] = e
            total += e
        losses[i] = np.float32(math.log(np.float64(total))) - (row[target] - largest)
        share = ONE / total
        for j in range(columns):
            out[j] *= share
        out[target] -= ONE
    return -1


@compiled_sum
def block_square_sums(x: Array, out: NDArray[np.float64]) -> None:
    """out (blocks,) float64 = the sum of the squares of each BLOCK of x (P,) float32, in float64."""
    for k in range(out.size):
        block = x[k * BLOCK : min((k + 1) * BLOCK, x.size)]
        total = 0.0
        for i in range(block.size):
            total += np.float64(block[i]) * np.float64(block[i])
        out[k] = total
