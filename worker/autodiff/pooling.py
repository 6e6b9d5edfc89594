"""Pooling: the largest element, or the mean, of each window or region, as PyTorch means it.

Shapes: N samples, C channels, L or H, W positions. A sample without N is one.
https://pytorch.org/docs/stable/nn.functional.html#pooling-functions
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.kernels import pooling as kernels
from worker.autodiff.kernels.float16 import activation, single
from worker.autodiff.tensor import Array, Tensor
from worker.autodiff.windows import Sizes, Windows, as_image, batched, channels_first, sizes

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "max_pool1d",
    "max_pool2d",
]

Ints = int | Sequence[int]


def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest of each window of input (N, C, L), the first of equals; `stride` is the kernel's size by default."""
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest of each window of input (N, C, H, W), the first of equals; `stride` is the kernel's by default."""
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of input (N, C, L), padding counted as zeros or left out."""
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of input (N, C, H, W), padding counted as zeros or left out."""
    return _avg_pool("avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """The means of regions that cut input (N, C, H, W) into output_size; None leaves a dimension as it is."""
    regions = _regions("adaptive_avg_pool2d", input, output_size)
    size = input.shape

    def vjp(g: Array) -> Array:
        g = single(g)
        for axis, bounds in regions:
            g = _spread(g, bounds, axis, size[axis])
        return g

    y = activation(reduce(_means, regions, single(input.data)), input.data)
    return record("adaptive_avg_pool2d", y, (input, vjp))


def adaptive_max_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """The largest elements of regions that cut input (N, C, H, W) into output_size, the first of equals."""
    (_, rows), (_, columns) = _regions("adaptive_max_pool2d", input, output_size)
    x = input.data
    y = np.empty((*x.shape[:-2], len(rows), len(columns)), x.dtype)
    where = np.empty(y.shape, np.intp)  # of the largest, in its flattened region
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            region = x[..., top:bottom, left:right].reshape(*x.shape[:-2], (bottom - top) * (right - left))
            where[..., i, j] = region.argmax(-1)
            y[..., i, j] = np.take_along_axis(region, where[..., i, j, None], -1)[..., 0]

    def vjp(g: Array) -> Array:
        gradient = np.zeros(x.shape, g.dtype)
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                tap = np.arange((bottom - top) * (right - left)).reshape(bottom - top, right - left)
                largest = where[..., i, j, None, None] == tap
                gradient[..., top:bottom, left:right] += largest * g[..., i, j, None, None]
        return gradient

    return record("adaptive_max_pool2d", y, (input, vjp))


def _max_pool(
    name: str, rank: int, input: Tensor, kernel_size: Ints, stride: Any, padding: Ints, dilation: Ints, ceil_mode: bool
) -> Tensor:
    x = batched(name, input.data, rank)
    windows, _ = _windows(name, x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    y, where = _largest(single(x), windows)
    y = activation(y, x)
    shape = input.shape
    return record(
        name,
        y if y.ndim == len(shape) else y[0],
        (input, lambda g: _to_largest(single(batched(name, g, rank)), where, windows).reshape(shape)),
    )


def _largest(x: Array, windows: Windows) -> tuple[Array, Array]:
    """The largest of each window of x (N, C, *L), NaN being larger than all, and which tap of the kernel sees it."""
    if x.dtype == np.float32 and windows.num_taps <= kernels.MAX_TAPS:
        w = windows.of_image
        image = as_image(x)
        out = np.empty((len(x), *w.out, x.shape[1]), np.float32)
        taps = np.empty(out.shape, np.uint8)
        kernels.max_pool(image, w.kernel, w.stride, w.dilation, w.before, out, taps)
        shape = (len(x), *windows.out, x.shape[1])
        return channels_first(out.reshape(shape)), channels_first(taps.reshape(shape))
    padded = windows.padded(x, -np.inf)
    y = np.full_like(x, -np.inf, shape=(*x.shape[:2], *windows.out))
    where = np.zeros_like(y, np.int32)
    for k, tap in enumerate(windows.taps()):
        seen = padded[tap]
        larger = (seen > y) | np.isnan(seen)
        np.copyto(y, seen, where=larger)
        np.copyto(where, k, where=larger)
    return y, where


def _to_largest(g: Array, where: Array, windows: Windows) -> Array:
    """g (N, C, *out) to where it came from: (N, C, *size)."""
    if g.dtype == np.float32 and where.dtype == np.uint8:
        w = windows.of_image
        overlapping = any(s < d * (k - 1) + 1 for s, d, k in zip(w.stride, w.dilation, w.kernel, strict=True))
        reached = tuple(o * step for o, step in zip(w.out, w.stride, strict=True))
        covering = w.kernel == w.stride and w.dilation == (1, 1) and w.before == (0, 0) and reached == w.size
        shape = (len(g), *w.size, g.shape[1])
        out = np.empty(shape, np.float32) if covering else np.zeros(shape, np.float32)
        taps = as_image(where)
        kernels.max_pool_backward(as_image(g), taps, w.kernel, w.stride, w.dilation, w.before, overlapping, out)
        return channels_first(out.reshape(len(g), *windows.size, g.shape[1]))
    padded = np.zeros_like(g, shape=(*g.shape[:2], *windows.padded_size))
    for k, tap in enumerate(windows.taps()):
        padded[tap] += g * (where == k)
    return windows.unpadded(padded)


@quiet
def _avg_pool(
    name: str, rank: int, input: Tensor, kernel_size: Ints, stride: Any, padding: Ints, ceil_mode: bool, pad: bool
) -> Tensor:
    x = batched(name, input.data, rank)
    windows, reaches = _windows(name, x.shape[2:], kernel_size, stride, padding, 1, ceil_mode)
    counts = _counts(windows, reaches if pad else windows.size, windows.before if pad else (0,) * rank)
    wide = single(x)
    counts = counts.astype(wide.dtype)
    padded = windows.padded(wide)
    y = np.zeros_like(wide, shape=(*x.shape[:2], *windows.out))
    for tap in windows.taps():
        y += padded[tap]
    y /= counts
    y = activation(y, x)
    shape = input.shape

    def vjp(g: Array) -> Array:
        shares = single(batched(name, g, rank)) / counts
        gradient = np.zeros_like(shares, shape=(*shares.shape[:2], *windows.padded_size))
        for tap in windows.taps():
            gradient[tap] += shares
        return windows.unpadded(gradient).reshape(shape)

    return record(name, y if y.ndim == len(shape) else y[0], (input, vjp))


def _windows(
    name: str, size: Sizes, kernel_size: Ints, stride: Any, padding: Ints, dilation: Ints, ceil_mode: bool
) -> tuple[Windows, Sizes]:
    """The windows that arguments of PyTorch's ask for, and each size with its padding (not what ceil_mode adds)."""
    rank = len(size)
    kernel = sizes(name, "kernel_size", kernel_size, rank, least=1)
    step = kernel if stride is None else sizes(name, "stride", stride, rank, least=1)
    before, spread = sizes(name, "padding", padding, rank, least=0), sizes(name, "dilation", dilation, rank, least=1)
    if any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        raise ValueError(f"{name}: padding is {padding}, expected at most half of the kernel's size {kernel_size}")
    out = []
    for length, k, s, p, d in zip(size, kernel, step, before, spread, strict=True):
        room = length + 2 * p - d * (k - 1) - 1
        places = (-(-room // s) if ceil_mode else room // s) + 1
        out.append(places - (ceil_mode and (places - 1) * s >= length + p))  # a window begins within the input
    if min(out) < 1:
        raise ValueError(f"{name}: a kernel of {kernel_size} does not fit into {size}")
    reaches = tuple(length + p for length, p in zip(size, before, strict=True))
    return Windows(size, kernel, step, spread, before, tuple(out)), reaches


def _counts(windows: Windows, stops: Sizes, starts: Sizes) -> Array:
    """How many positions of each window lie from -starts to stops: (*out)."""
    counts = []
    for i, out in enumerate(windows.out):
        first = np.arange(out) * windows.stride[i] - windows.before[i]
        counts.append(np.minimum(first + windows.kernel[i], stops[i]) - np.maximum(first, -starts[i]))
    return reduce(np.multiply.outer, counts)


Bounds = list[tuple[int, int]]


def _regions(name: str, input: Tensor, output_size: int | Sequence[int | None]) -> list[tuple[int, Bounds]]:
    """For each of the last two axes where its regions begin and end; they overlap where sizes do not divide."""
    size = batched(name, input.data, 2).shape[2:]
    given = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    if len(given) != 2 or min(n for n in (*given, 1) if n is not None) < 1:
        raise ValueError(f"{name}: output_size is {output_size}, expected one number or two, at least 1")
    return [
        (axis, [(i * length // n, -(-(i + 1) * length // n)) for i in range(n)])
        for axis, length, n in ((d - 2, size[d], given[d] or size[d]) for d in range(2))
    ]


def _means(x: Array, region: tuple[int, Bounds]) -> Array:
    """The means of x over regions along one axis."""
    axis, bounds = region
    parts = np.moveaxis(x, axis, 0)
    means = [np.add.reduce(parts[start:stop]) / x.dtype.type(stop - start) for start, stop in bounds]
    return np.moveaxis(np.stack(means), 0, axis)


def _spread(g: Array, bounds: Bounds, axis: int, length: int) -> Array:
    """The gradient of `_means`: each mean's gradient, shared out over its region."""
    shape = list(g.shape)
    shape[axis] = length
    gradient = np.zeros_like(g, shape=shape)
    by_place = np.moveaxis(gradient, axis, 0)
    for part, (start, stop) in zip(np.moveaxis(g, axis, 0), bounds, strict=True):
        by_place[start:stop] += part / g.dtype.type(stop - start)
    return gradient
