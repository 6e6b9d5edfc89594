"""The kernels: loops over plain arrays, compiled by numba. Nothing outside this package sees numba.

float32 takes the compiled loop, any other dtype the same formula in NumPy: float64 is for gradient checks. float16 is
computed as float32, and the result rounded, unless a function says that it stays float32. Results have the same bits in
every run and every process on one kind of CPU; elementwise results depend on nothing but the element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import activations, error_functions, formulas, linear_units, rows, updates
from worker.autodiff.kernels.attention import attention_backward, attention_forward
from worker.autodiff.kernels.embedding import add_rows
from worker.autodiff.kernels.float16 import activation, apply, half, single
from worker.autodiff.kernels.gemm import add_bias, matmul
from worker.autodiff.kernels.norms import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
from worker.autodiff.kernels.rows import BLOCK
from worker.autodiff.kernels.scatter import scatter_rows_add

__all__ = [
    "BLOCK",
    "HALF_SCALE",
    "activation",
    "add_bias",
    "add_rows",
    "apply",
    "attention_backward",
    "attention_forward",
    "block_square_sums",
    "column_sum",
    "dropout",
    "elu",
    "elu_backward",
    "erf",
    "erfc",
    "gelu_erf",
    "gelu_erf_backward",
    "gelu_tanh",
    "gelu_tanh_backward",
    "half",
    "keep",
    "layer_norm",
    "layer_norm_backward",
    "matmul",
    "mish",
    "mish_backward",
    "relu",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "scaled_rows",
    "scatter_rows_add",
    "select",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "single",
    "softmax_cross_entropy",
    "softplus",
    "softplus_backward",
    "tanh",
    "tanh_backward",
    "updates",
]

Array = NDArray[Any]
Elementwise = Callable[..., Array]
SELECTORS = (np.bool_, np.uint16)
HALF_SCALE = np.float32(2**14)  # of differences of probabilities in float16, whose range they would leave unused


def _elementwise(loop: Callable[..., None], formula: Elementwise) -> Elementwise:
    """A function of arrays of one shape to a new array: the compiled loop if all are float32, else the formula.

    float16 arrays are taken as float32, and the result rounded if the last one is float16.

    The result has the memory layout of the last array, which is the value that a gradient belongs to. Arrays that are
    dense in that layout, in whatever order their axes lie, are not copied. Masks and random draws (SELECTORS) need not
    be float32. Numbers come by name, in the order of the loop's.
    """

    def run(*arrays: Array, **numbers: float) -> Array:
        if arrays[-1].dtype == np.float16:
            return half(run(*map(single, arrays), **numbers))
        for array in arrays:
            if array.dtype != np.float32 and array.dtype not in SELECTORS:
                return formula(*arrays, **numbers)
        out = np.empty_like(arrays[-1], np.float32)
        loop(*[_flat(array, out) for array in arrays], *map(np.float32, numbers.values()), out.ravel("K"))
        return out

    return run


def _in_double(loop: Callable[..., None]) -> Elementwise:
    """The compiled loop in float64, for formulas that NumPy does not have."""

    def run(array: Array) -> Array:
        out = np.empty(array.shape)
        loop(array.astype(np.float64).ravel(), out.reshape(-1))
        return out.astype(array.dtype, copy=False)

    return run


def _flat(array: Array, like: Array) -> Array:
    """The elements of an array in the order in which those of `like`, a dense array of its shape, lie in memory."""
    is_alike = (array.flags.c_contiguous and like.flags.c_contiguous) or array.strides == like.strides
    if not is_alike:
        ordered = np.empty_like(like, array.dtype)
        ordered[...] = array
        array = ordered
    return array.ravel("K")


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
erf = _elementwise(error_functions.erf, _in_double(error_functions.libm_erf))
erfc = _elementwise(error_functions.libm_erfc, _in_double(error_functions.libm_erfc))
silu = _elementwise(linear_units.silu, formulas.silu)
silu_backward = _elementwise(linear_units.silu_backward, formulas.silu_backward)
mish = _elementwise(linear_units.mish, formulas.mish)
mish_backward = _elementwise(linear_units.mish_backward, formulas.mish_backward)
softplus = _elementwise(linear_units.softplus, formulas.softplus)
softplus_backward = _elementwise(linear_units.softplus_backward, formulas.softplus_backward)
elu = _elementwise(linear_units.elu, formulas.elu)
elu_backward = _elementwise(linear_units.elu_backward, formulas.elu_backward)
select = _elementwise(linear_units.select, formulas.select)
keep = _elementwise(linear_units.keep, formulas.keep)
dropout = _elementwise(linear_units.dropout, formulas.dropout)


def column_sum(x: Array, out: Array | None = None) -> Array:
    """The sum (C,) over the rows of x (N, C), into `out` where given; of float16 a float32."""
    x = single(x)
    if x.dtype != np.float32:
        return np.sum(x, axis=0, out=out)
    if out is None:
        out = np.empty(x.shape[1], np.float32)
    rows.column_sum(np.ascontiguousarray(x), out)
    return out


def softmax_cross_entropy(logits: Array, targets: Array, ignore_index: int) -> tuple[Array, Array]:
    """-log softmax(logits (N, C)) at each row's target, (N,), and its gradient softmax - one_hot(target), (N, C).

    Both are zero in rows whose target is `ignore_index`. ValueError for other targets outside 0..C-1. Of float16 logits
    the losses are float32, and the gradient is float16 times HALF_SCALE.
    """
    targets = np.ascontiguousarray(targets, np.int64)
    if logits.dtype == np.float32:
        losses, delta = np.empty(len(logits), np.float32), np.empty(logits.shape, np.float32)
        wrong = rows.softmax_cross_entropy(np.ascontiguousarray(logits), targets, ignore_index, losses, delta)
    elif logits.dtype == np.float16:
        losses, delta = np.empty(len(logits), np.float32), np.empty(logits.shape, np.float16)
        wrong = -1
        for block in row_blocks(logits):
            wide, part = single(np.ascontiguousarray(logits[block])), np.empty(logits[block].shape, np.float32)
            wrong = rows.softmax_cross_entropy(wide, targets[block], ignore_index, losses[block], part)
            if wrong >= 0:
                wrong += block.start
                break
            delta[block] = half(part * HALF_SCALE)
    else:
        losses, delta, wrong = formulas.softmax_cross_entropy(logits, targets, ignore_index)
    if wrong >= 0:
        raise ValueError(
            f"cross_entropy: the target of row {wrong} is {targets[wrong]}, expected 0..{logits.shape[1] - 1}"
        )
    return losses, delta


def scaled_rows(delta: Array, scale: Array) -> Array:
    """delta * scale for the float16 gradient that softmax_cross_entropy gives: delta (N, C), scale (N, 1) or (1, 1)."""
    out = np.empty_like(delta)
    factors = np.broadcast_to(scale / HALF_SCALE, (len(delta), 1))
    for block in row_blocks(delta):
        out[block] = half(single(delta[block]) * factors[block])
    return out


def row_blocks(x: Array) -> list[slice]:
    """Slices of the rows of x (N, C) of 4 * BLOCK elements each: what is float32 for a moment takes no more."""
    count = max(1, 4 * BLOCK // max(x.shape[1], 1))
    return [slice(first, first + count) for first in range(0, len(x), count)]


def block_square_sums(x: Array) -> NDArray[np.float64]:
    """The sum of squares of each BLOCK of x (P,) float32, in float64; their sum is the squared norm of x.

    A block-aligned range of x gets the same numbers as those blocks get in the whole.
    """
    sums = np.empty(-(-x.size // BLOCK))
    rows.block_square_sums(x, sums)
    return sums
