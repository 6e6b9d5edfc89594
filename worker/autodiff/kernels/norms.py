"""Layer normalisation and its root-mean-square form over the rows of a matrix, forward and backward.

Shapes: N rows, C columns. `mean` and `rstd` (1 / standard deviation) are (N,). A backward pass goes over the rows once
and gives the gradients of the input, the weight and the bias together. float32 takes the loops, other dtypes NumPy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.approximations import ONE, ZERO
from worker.autodiff.kernels.compilation import compiled_sum

Array = NDArray[Any]


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """(x - mean) * rstd * weight + bias for x (N, C), weight and bias (C,); and the mean and rstd."""
    if x.dtype == np.float32:
        out, mean, rstd = np.empty(x.shape, x.dtype), np.empty(len(x), x.dtype), np.empty(len(x), x.dtype)
        _layer_norm(x, weight, bias, np.float32(eps), out, mean, rstd)
        return out, mean, rstd
    mean = x.mean(axis=1)
    centered = x - mean[:, None]
    rstd = 1 / np.sqrt((centered * centered).mean(axis=1) + eps)
    return centered * rstd[:, None] * weight + bias, mean, rstd


def layer_norm_backward(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array, parts: int = 1
) -> tuple[Array, Array, Array]:
    """The gradients of x, weight and bias, given that of the output, g (N, C).

    Those of weight and bias are (parts, C), each the sum over one of so many equal parts of the rows.
    """
    dx, sums = np.empty(x.shape, x.dtype), np.empty((2, parts, x.shape[1]), x.dtype)
    backward = _layer_norm_backward if x.dtype == np.float32 else _layer_norm_backward_formula
    size = len(x) // parts
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        backward(g[rows], x[rows], weight, mean[rows], rstd[rows], dx[rows], sums[0, part], sums[1, part])
    return dx, sums[0], sums[1]


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """x * rstd * weight for x (N, C), weight (C,), with rstd = 1 / sqrt(avg(x**2) + eps); and that rstd."""
    if x.dtype == np.float32:
        out, rstd = np.empty(x.shape, x.dtype), np.empty(len(x), x.dtype)
        _rms_norm(x, weight, np.float32(eps), out, rstd)
        return out, rstd
    rstd = 1 / np.sqrt((x * x).mean(axis=1) + eps)
    return x * rstd[:, None] * weight, rstd


def rms_norm_backward(g: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    """The gradients of x and weight, given that of the output, g (N, C)."""
    if x.dtype == np.float32:
        dx, dweight = np.empty(x.shape, x.dtype), np.empty_like(weight)
        _rms_norm_backward(g, x, weight, rstd, dx, dweight)
        return dx, dweight
    n, d = x * rstd[:, None], g * weight
    return (d - n * (d * n).mean(axis=1, keepdims=True)) * rstd[:, None], (g * n).sum(axis=0)


@compiled_sum
def _layer_norm(x: Array, weight: Array, bias: Array, eps: np.float32, out: Array, mean: Array, rstd: Array) -> None:
    columns = x.shape[1]
    share = ONE / np.float32(columns)
    for i in range(x.shape[0]):
        row, y = x[i], out[i]
        total = ZERO
        for j in range(columns):
            total += row[j]
        center = total * share
        squares = ZERO
        for j in range(columns):
            squares += (row[j] - center) * (row[j] - center)
        r = ONE / math.sqrt(squares * share + eps)
        for j in range(columns):
            y[j] = (row[j] - center) * r * weight[j] + bias[j]
        mean[i], rstd[i] = center, r


@compiled_sum
def _layer_norm_backward(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array, dx: Array, dweight: Array, dbias: Array
) -> None:
    """With n = (x - mean) * rstd and d = g * weight: dx = rstd * (d - avg(d) - n * avg(d * n))."""
    columns = x.shape[1]
    share = ONE / np.float32(columns)
    dweight[:] = ZERO
    dbias[:] = ZERO
    for i in range(x.shape[0]):
        row, gradient, out = x[i], g[i], dx[i]
        center, r = mean[i], rstd[i]
        total = ZERO
        product = ZERO
        for j in range(columns):
            d = gradient[j] * weight[j]
            total += d
            product += d * ((row[j] - center) * r)
        total *= share
        product *= share
        for j in range(columns):  # a loop of its own: with the sums above in it, LLVM does not vectorise it
            n = (row[j] - center) * r
            out[j] = r * (gradient[j] * weight[j] - total - n * product)
            dweight[j] += gradient[j] * n
            dbias[j] += gradient[j]


def _layer_norm_backward_formula(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array, dx: Array, dweight: Array, dbias: Array
) -> None:
    n, d = (x - mean[:, None]) * rstd[:, None], g * weight
    dx[...] = (d - d.mean(axis=1, keepdims=True) - n * (d * n).mean(axis=1, keepdims=True)) * rstd[:, None]
    dweight[...] = (g * n).sum(axis=0)
    dbias[...] = g.sum(axis=0)


@compiled_sum
def _rms_norm(x: Array, weight: Array, eps: np.float32, out: Array, rstd: Array) -> None:
    columns = x.shape[1]
    share = ONE / np.float32(columns)
    for i in range(x.shape[0]):
        row, y = x[i], out[i]
        squares = ZERO
        for j in range(columns):
            squares += row[j] * row[j]
        r = ONE / math.sqrt(squares * share + eps)
        for j in range(columns):
            y[j] = row[j] * r * weight[j]
        rstd[i] = r


@compiled_sum
def _rms_norm_backward(g: Array, x: Array, weight: Array, rstd: Array, dx: Array, dweight: Array) -> None:
    """With n = x * rstd and d = g * weight: dx = rstd * (d - n * avg(d * n))."""
    columns = x.shape[1]
    share = ONE / np.float32(columns)
    dweight[:] = ZERO
    for i in range(x.shape[0]):
        row, gradient, out = x[i], g[i], dx[i]
        r = rstd[i]
        product = ZERO
        for j in range(columns):
            product += gradient[j] * weight[j] * (row[j] * r)
        product *= share
        for j in range(columns):
            n = row[j] * r
            out[j] = r * (gradient[j] * weight[j] - n * product)
            dweight[j] += gradient[j] * n
