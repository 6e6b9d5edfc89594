"""The kernels: loops over plain arrays, compiled by numba. Nothing outside this package sees numba.

float32 takes the compiled loop, any other dtype the same formula in NumPy: float64 is for gradient checks. Results have
the same bits in every run and every process on one kind of CPU; elementwise results depend on nothing but the element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import activations, formulas, rows, updates
from worker.autodiff.kernels.rows import BLOCK

__all__ = [
    "BLOCK",
    "add_bias",
    "block_square_sums",
    "column_sum",
    "gelu_erf",
    "gelu_erf_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax_cross_entropy",
    "tanh",
    "tanh_backward",
    "updates",
]

Array = NDArray[Any]
Elementwise = Callable[..., Array]


def _elementwise(loop: Callable[..., None], formula: Elementwise) -> Elementwise:
    """A function of arrays of one shape to a new array: the compiled loop if all are float32, else the formula."""

    def run(*arrays: Array) -> Array:
        for array in arrays:
            if array.dtype != np.float32:
                return formula(*arrays)
        out = np.empty(arrays[0].shape, np.float32)
        loop(*[array.ravel() for array in arrays], out.reshape(-1))
        return out

    return run


relu = _elementwise(activations.relu, formulas.relu)
relu_backward = _elementwise(activations.relu_backward, formulas.relu_backward)
tanh = _elementwise(activations.tanh, np.tanh)
tanh_backward = _elementwise(activations.tanh_backward, formulas.tanh_backward)
sigmoid = _elementwise(activations.sigmoid, formulas.sigmoid)
sigmoid_backward = _elementwise(activations.sigmoid_backward, formulas.sigmoid_backward)
gelu_tanh = _elementwise(activations.gelu_tanh, formulas.gelu_tanh)
gelu_tanh_backward = _elementwise(activations.gelu_tanh_backward, formulas.gelu_tanh_backward)
gelu_erf = _elementwise(activations.gelu_erf, formulas.gelu_erf)
gelu_erf_backward = _elementwise(activations.gelu_erf_backward, formulas.gelu_erf_backward)


def add_bias(y: Array, bias: Array) -> None:
    """y (..., C) += bias (C,), in place: y must be the caller's own."""
    if y.dtype == bias.dtype == np.float32 and y.flags.c_contiguous:
        rows.add_bias(y.reshape(-1, bias.size), bias.ravel())
    else:
        y += bias


def column_sum(x: Array, out: Array | None = None) -> Array:
    """The sum (C,) over the rows of x (N, C), into `out` where given."""
    if x.dtype != np.float32:
        return np.sum(x, axis=0, out=out)
    if out is None:
        out = np.empty(x.shape[1], np.float32)
    rows.column_sum(np.ascontiguousarray(x), out)
    return out


def softmax_cross_entropy(logits: Array, targets: Array, ignore_index: int) -> tuple[Array, Array]:
    """-log softmax(logits (N, C)) at each row's target, (N,), and its gradient softmax - one_hot(target), (N, C).

    Both are zero in rows whose target is `ignore_index`. ValueError for other targets outside 0..C-1.
    """
    targets = np.ascontiguousarray(targets, np.int64)
    if logits.dtype == np.float32:
        losses, delta = np.empty(len(logits), np.float32), np.empty(logits.shape, np.float32)
        wrong = rows.softmax_cross_entropy(np.ascontiguousarray(logits), targets, ignore_index, losses, delta)
    else:
        losses, delta, wrong = formulas.softmax_cross_entropy(logits, targets, ignore_index)
    if wrong >= 0:
        raise ValueError(
            f"cross_entropy: the target of row {wrong} is {targets[wrong]}, expected 0..{logits.shape[1] - 1}"
        )
    return losses, delta


def block_square_sums(x: Array) -> NDArray[np.float64]:
    """The sum of squares of each BLOCK of x (P,) float32, in float64; their sum is the squared norm of x.

    A block-aligned range of x gets the same numbers as those blocks get in the whole.
    """
    sums = np.empty(-(-x.size // BLOCK))
    rows.block_square_sums(x, sums)
    return sums
