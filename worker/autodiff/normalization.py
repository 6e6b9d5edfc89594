"""Normalisation over the last dimensions. Names, arguments and meaning are PyTorch's.

Shapes: ... leading dimensions, C the normalised ones.
"""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff import kernels, parts
from worker.autodiff.graph import record, together
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "layer_norm",
    "rms_norm",
]

Shape = int | tuple[int, ...]


def layer_norm(
    input: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(input - mean) / sqrt(variance + eps) * weight + bias over the last dimensions (Ba et al., 2016).

    input (..., C), weight and bias (C), where C is `normalized_shape`; the result is (..., C).
    """
    shape = _check("layer_norm", input, normalized_shape, weight, bias)
    x = _rows(input.data, shape)
    scale = _vector(weight, 1, x)
    y, mean, rstd = kernels.layer_norm(kernels.single(x), scale, _vector(bias, 0, x), eps)
    y = kernels.activation(y, x)
    count, sums = parts.current.get(), parts.shape_of_sums(shape)

    def backward(g: Array) -> tuple[Array, ...]:
        g_rows, x_rows = kernels.single(_rows(g, shape)), kernels.single(x)
        dx, dweight, dbias = kernels.layer_norm_backward(g_rows, x_rows, scale, mean, rstd, count)
        return dx.reshape(g.shape), dweight.reshape(sums), dbias.reshape(sums)

    return record("layer_norm", y.reshape(input.shape), *zip((input, weight, bias), together(backward, 3), strict=True))


def rms_norm(input: Tensor, normalized_shape: Shape, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """input / sqrt(avg(input**2) + eps) * weight over the last dimensions (Zhang & Sennrich, 2019).

    input (..., C), weight (C), where C is `normalized_shape`; eps is by default that of the dtype, as in PyTorch.
    """
    shape = _check("rms_norm", input, normalized_shape, weight)
    x = _rows(input.data, shape)
    scale = _vector(weight, 1, x)
    y, rstd = kernels.rms_norm(kernels.single(x), scale, float(np.finfo(x.dtype).eps) if eps is None else eps)
    y = kernels.activation(y, x)

    def backward(g: Array) -> tuple[Array, ...]:
        dx, dweight = kernels.rms_norm_backward(kernels.single(_rows(g, shape)), kernels.single(x), scale, rstd)
        return dx.reshape(g.shape), dweight.reshape(shape)

    return record("rms_norm", y.reshape(input.shape), *zip((input, weight), together(backward, 2), strict=True))


def _rows(x: Array, shape: tuple[int, ...]) -> Array:
    """x (..., *shape) as a contiguous matrix."""
    columns = math.prod(shape)
    return np.ascontiguousarray(x).reshape(x.size // columns if columns else 0, columns)


def _vector(parameter: Tensor | None, default: float, like: Array) -> Array:
    dtype = np.float32 if like.dtype == np.float16 else like.dtype
    if parameter is None:
        return np.full(like.shape[1], default, dtype)
    return np.ascontiguousarray(parameter.data, dtype).reshape(-1)


def _check(name: str, input: Tensor, normalized_shape: Shape, *parameters: Tensor | None) -> tuple[int, ...]:
    shape = normalized_shape if isinstance(normalized_shape, tuple) else (normalized_shape,)
    x = input.data
    if x.dtype.kind != "f":
        raise ValueError(f"{name}: expected a floating-point tensor, got {x.dtype}")
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"{name}: input has shape {x.shape}, expected the last dimensions to be {shape}")
    for parameter in parameters:
        if parameter is not None and parameter.data.shape != shape:
            raise ValueError(f"{name}: weight or bias has shape {parameter.shape}, expected {shape}")
    return shape
