"""Resampling: interpolation to another size, and channels turned into pixels, as PyTorch means them.

Shapes: N samples, C channels, * one to three spatial dimensions.
https://pytorch.org/docs/stable/nn.functional.html#vision-functions
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Tensor
from worker.autodiff.windows import Sizes, sizes

__all__ = [
    "interpolate",
    "pixel_shuffle",
    "pixel_unshuffle",
]

Mode = Literal["nearest", "nearest-exact", "linear", "bilinear", "trilinear"]
_RANKS = {"linear": 1, "bilinear": 2, "trilinear": 3}


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: Mode = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """input (N, C, *) -> (N, C, *size), or *scale_factor, by the nearest position or linearly in each dimension.

    `align_corners` puts the first and the last positions of input and output over each other, else their outer edges.
    """
    _check(input, mode, align_corners)
    lengths = input.shape[2:]
    out, scales = _target(lengths, size, scale_factor)
    y, steps = input.data, []
    for axis, (length, count, scale) in enumerate(zip(lengths, out, scales, strict=True), start=2):
        if mode in _RANKS:
            step = _linear(length, count, scale, align_corners=bool(align_corners), dtype=input.dtype)
        else:
            step = _nearest(length, count, scale, center=0.5 if mode == "nearest-exact" else 0.0)
        if step is not None:
            steps.append((axis, step, length))
            y = _resample(y, axis, step)

    def vjp(g: Array) -> Array:
        for axis, step, length in reversed(steps):
            g = _resample_gradient(g, axis, step, length)
        return g

    return record("interpolate", y, (input, vjp))


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """input (..., C * r * r, H, W) -> (..., C, H * r, W * r) (Shi et al., 2016)."""
    r, name = upscale_factor, "pixel_shuffle"
    if input.ndim < 3 or r < 1 or input.shape[-3] % (r * r):
        raise ValueError(f"{name}: input has shape {input.shape}, expected (..., C * {r} * {r}, H, W)")
    return record(name, _shuffle(input.data, r), (input, lambda g: _unshuffle(g, r)))


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """input (..., C, H * r, W * r) -> (..., C * r * r, H, W); undoes pixel_shuffle."""
    r, name = downscale_factor, "pixel_unshuffle"
    if input.ndim < 3 or r < 1 or input.shape[-2] % r or input.shape[-1] % r:
        raise ValueError(f"{name}: input has shape {input.shape}, expected (..., C, H * {r}, W * {r})")
    return record(name, _unshuffle(input.data, r), (input, lambda g: _shuffle(g, r)))


def _shuffle(x: Array, r: int) -> Array:
    *leading, channels, height, width = x.shape
    parts = x.reshape(*leading, channels // (r * r), r, r, height, width)
    parts = np.moveaxis(parts, (-4, -3), (-3, -1))  # (..., C, H, r, W, r)
    return parts.reshape(*leading, channels // (r * r), height * r, width * r)


def _unshuffle(x: Array, r: int) -> Array:
    *leading, channels, height, width = x.shape
    parts = x.reshape(*leading, channels, height // r, r, width // r, r)
    parts = np.moveaxis(parts, (-3, -1), (-4, -3))  # (..., C, r, r, H, W)
    return parts.reshape(*leading, channels * r * r, height // r, width // r)


# Along one axis, each output is a sum of inputs: pairs of (which inputs, with which weights; None for 1).
Step = list[tuple[Array, Array | None]]


def _nearest(length: int, count: int, scale: float | None, *, center: float) -> Step | None:
    if count == length:
        return None
    # float32 on purpose: PyTorch's rounding decides which input is the nearest.
    ratio = np.float32(1 / scale if scale else length / count)
    position = (np.arange(count, dtype=np.float32) + np.float32(center)) * ratio
    return [(np.minimum(np.floor(position).astype(np.intp), length - 1), None)]


def _linear(length: int, count: int, scale: float | None, *, align_corners: bool, dtype: np.dtype[Any]) -> Step | None:
    if count == length:
        return None
    places = np.arange(count, dtype=dtype)
    if align_corners:
        position = places * ((length - 1) / (count - 1) if count > 1 else 0.0)
    else:
        position = np.maximum((places + 0.5) * (1 / scale if scale else length / count) - 0.5, 0)
    low = np.minimum(position.astype(np.intp), length - 1)
    rest = np.clip(position - low, 0, 1).astype(dtype)
    return [(low, 1 - rest), (np.minimum(low + 1, length - 1), rest)]


def _resample(x: Array, axis: int, step: Step) -> Array:
    parts = [_weighted(np.take(x, index, axis), weights, axis) for index, weights in step]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _resample_gradient(g: Array, axis: int, step: Step, length: int) -> Array:
    """The gradient of `_resample`. An index never falls, so those that are equal form runs, which add up."""
    gradient = np.zeros((*g.shape[:axis], length, *g.shape[axis + 1 :]), g.dtype)
    by_place = np.moveaxis(gradient, axis, 0)
    for index, weights in step:
        inputs, starts = np.unique(index, return_index=True)
        runs = np.add.reduceat(_weighted(g, weights, axis), starts, axis)
        by_place[inputs] += np.moveaxis(runs, axis, 0)
    return gradient


def _weighted(x: Array, weights: Array | None, axis: int) -> Array:
    return x if weights is None else x * weights.reshape(-1, *(1,) * (x.ndim - axis - 1))


def _target(
    lengths: Sizes, size: int | Sequence[int] | None, scale_factor: float | Sequence[float] | None
) -> tuple[Sizes, Sequence[float | None]]:
    """The output's sizes, and the scales where those were given: they, not the sizes, then say where a position is."""
    rank = len(lengths)
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: expected either size or scale_factor")
    if size is not None:
        return sizes("interpolate", "size", size, rank, least=1), (None,) * rank
    assert scale_factor is not None, "one of the two is given"
    scales = (float(scale_factor),) * rank if isinstance(scale_factor, int | float) else tuple(scale_factor)
    if len(scales) != rank or min(scales) <= 0:
        raise ValueError(f"interpolate: scale_factor is {scale_factor}, expected one positive number or {rank}")
    out = tuple(math.floor(length * scale) for length, scale in zip(lengths, scales, strict=True))
    if min(out) < 1:
        raise ValueError(f"interpolate: scale_factor {scale_factor} of {lengths} leaves nothing")
    return out, scales


def _check(input: Tensor, mode: str, align_corners: bool | None) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"interpolate: mode is {mode!r}, expected one of {', '.join(get_args(Mode))}")
    rank = _RANKS.get(mode)
    if not (input.ndim == rank + 2 if rank else 3 <= input.ndim <= 5):
        expected = f"{rank + 2} dimensions" if rank else "3 to 5 dimensions"
        raise ValueError(f"interpolate: input has shape {input.shape}, expected {expected} for mode {mode!r}")
    if align_corners is not None and not rank:
        raise ValueError(f"interpolate: align_corners has no meaning for mode {mode!r}")
