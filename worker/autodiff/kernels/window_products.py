"""Convolution on a unit that multiplies bfloat16: windows of a run of places, copied side by side, then packed.

A run of places is as short as a strip of rows, or a little longer, so that its windows never leave the cache. The value
is windows @ weight, run by run; the weight's gradient is the sum of windows.T @ g over the runs, in their order.

Shapes: N samples, C and O channels in and out, H and W, P and Q rows and columns in and out, K = kernel rows * kernel
columns * C terms of a window. Images are contiguous (N, H, W, C). Addresses and steps are in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.autodiff.kernels import operands, strips
from worker.autodiff.kernels.approximations import ZERO
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import put_float
from worker.autodiff.kernels.operands import FLOAT_BYTES, Array, Bytes
from worker.autodiff.kernels.strips import ROWS_BFLOAT16, WIDTH

RUN = 128  # places whose windows are summed up at once in the gradient of a weight: a multiple of a block's depth

# Rows and columns of: the image, the output, the kernel; strides, dilations, and positions before the image.
Geometry = tuple[int, int, int, int, int, int, int, int, int, int, int, int]


def geometry(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    before: Sequence[int],
) -> Geometry:
    """The geometry of windows over images, rows before columns."""
    (a, b), (c, d), (e, f), (g, h), (i, j), (k, m) = size, out, kernel, stride, dilation, before
    return a, b, c, d, e, f, g, h, i, j, k, m


def forward(unit: int, x: Array, weight: Array, bias: Array | None, at: Geometry) -> Array:
    """x (N, H, W, C), weight (O, C, *kernel), bias (O,) -> (N, P, Q, O)."""
    channels_out, terms = len(weight), weight[0].size
    y = np.empty((len(x), at[2], at[3], channels_out), np.float32)
    matrix = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(terms, channels_out)
    first_row = np.zeros(channels_out + WIDTH, np.float32)
    if bias is not None:
        first_row[:channels_out] = bias
    room = ROWS_BFLOAT16 * terms + (channels_out + ROWS_BFLOAT16 + 2 * WIDTH) * (terms + WIDTH)
    _forward(unit, x, matrix, first_row, y.reshape(-1, channels_out), at, _workspace(room))
    return y


def weight_gradient(unit: int, x: Array, g: Array, at: Geometry, out: Array) -> None:
    """x (N, H, W, C) and g (N, P, Q, O) -> out (O, C, *kernel)."""
    channels_out, channels = g.shape[3], x.shape[3]
    terms = at[4] * at[5] * channels
    total = np.zeros((terms, channels_out), np.float32)
    room = RUN * terms + (channels_out + 2 * WIDTH + ROWS_BFLOAT16) * (RUN + WIDTH)
    _weight_gradient(unit, x, g.reshape(-1, channels_out), total, at, _workspace(room))
    out[...] = total.reshape(at[4], at[5], channels, channels_out).transpose(3, 2, 0, 1)


def _workspace(num_floats: int) -> Bytes:
    return operands.memory(strips.FIXED_BYTES + num_floats * FLOAT_BYTES + strips.SLACK_BYTES)


@compiled
def _forward(unit: int, x: Array, matrix: Array, first_row: Array, y: Array, at: Geometry, memory: Bytes) -> None:
    terms, channels_out = matrix.shape
    places = len(y)
    base = strips.prepare(unit, memory)
    segments = np.zeros(1, np.int64)
    windows = np.empty((ROWS_BFLOAT16, terms), np.float32)
    row_bytes, out_bytes, right_bytes = terms * FLOAT_BYTES, channels_out * FLOAT_BYTES, strips.right_bytes(unit, terms)
    packed = base + strips.FIXED_BYTES
    left = packed
    for j in range(0, channels_out, WIDTH):
        source, count = matrix.ctypes.data + j * FLOAT_BYTES, min(WIDTH, channels_out - j)
        strips.pack_right(unit, source, FLOAT_BYTES, out_bytes, count, terms, left, base)
        left += right_bytes
    for first in range(0, places, ROWS_BFLOAT16):
        rows = min(ROWS_BFLOAT16, places - first)
        copy_windows(x, at, first, rows, windows)
        strips.pack_left(unit, windows.ctypes.data, row_bytes, FLOAT_BYTES, rows, terms, left, base)
        for j in range(0, channels_out, WIDTH):
            strips.tile(
                unit,
                segments,
                rows,
                min(WIDTH, channels_out - j),
                terms,
                left,
                packed + j // WIDTH * right_bytes,
                first_row.ctypes.data + j * FLOAT_BYTES,
                0,
                y.ctypes.data + first * out_bytes + j * FLOAT_BYTES,
                out_bytes,
                base,
            )
    strips.finish(unit)


@compiled
def _weight_gradient(unit: int, x: Array, g: Array, total: Array, at: Geometry, memory: Bytes) -> None:
    terms, channels_out = total.shape
    places = len(g)
    base = strips.prepare(unit, memory)
    segments = np.zeros(1, np.int64)
    windows = np.empty((RUN, terms), np.float32)
    row_bytes, out_bytes = terms * FLOAT_BYTES, channels_out * FLOAT_BYTES
    packed = base + strips.FIXED_BYTES
    for first in range(0, places, RUN):
        depth = min(RUN, places - first)
        right_bytes = strips.right_bytes(unit, depth)
        copy_windows(x, at, first, depth, windows)
        left = packed
        for j in range(0, channels_out, WIDTH):
            source, count = g.ctypes.data + first * out_bytes + j * FLOAT_BYTES, min(WIDTH, channels_out - j)
            strips.pack_right(unit, source, FLOAT_BYTES, out_bytes, count, depth, left, base)
            left += right_bytes
        for i in range(0, terms, ROWS_BFLOAT16):
            rows, source = min(ROWS_BFLOAT16, terms - i), windows.ctypes.data + i * FLOAT_BYTES
            strips.pack_left(unit, source, FLOAT_BYTES, row_bytes, rows, depth, left, base)
            for j in range(0, channels_out, WIDTH):
                to = total.ctypes.data + i * out_bytes + j * FLOAT_BYTES
                right = packed + j // WIDTH * right_bytes
                count = min(WIDTH, channels_out - j)
                strips.tile(unit, segments, rows, count, depth, left, right, to, out_bytes, to, out_bytes, base)
    strips.finish(unit)


@compiled
def copy_windows(x: Array, at: Geometry, first: int, count: int, windows: Array) -> None:
    """The windows of `count` places from `first` on, counted through all samples, as rows of `windows` (·, K)."""
    height, width, out_height, out_width, kernel_height, kernel_width = at[:6]
    stride_height, stride_width, dilation_height, dilation_width, before_height, before_width = at[6:]
    channels = x.shape[3]
    row_bytes, pixel_bytes = width * channels * FLOAT_BYTES, channels * FLOAT_BYTES
    for place in range(first, first + count):
        rest, q = place // out_width, place % out_width
        n, p = rest // out_height, rest % out_height
        sample, to = x.ctypes.data + n * height * row_bytes, windows.ctypes.data + (place - first) * windows.strides[0]
        left = q * stride_width - before_width
        is_run = dilation_width == 1 and left >= 0 and left + kernel_width <= width
        for i in range(kernel_height):
            h = p * stride_height + i * dilation_height - before_height
            if h < 0 or h >= height:
                _clear(to, kernel_width * channels)
            elif is_run:
                strips.copy_floats(sample + h * row_bytes + left * pixel_bytes, to, kernel_width * channels)
            else:
                for j in range(kernel_width):
                    w = left + j * dilation_width
                    if w < 0 or w >= width:
                        _clear(to + j * pixel_bytes, channels)
                    else:
                        strips.copy_floats(sample + h * row_bytes + w * pixel_bytes, to + j * pixel_bytes, channels)
            to += kernel_width * pixel_bytes


@compiled
def _clear(to: int, count: int) -> None:
    for i in range(count):
        put_float(to + i * FLOAT_BYTES, ZERO)
