"""Direct convolution of float32 images: the windows are read where the image lies, not copied side by side.

A strip of a sample, as many rows as the cache holds, is packed with its padding into blocks of 16 channels, so that the
pixels of a row lie 16 floats apart whatever the number of channels, and a row of the kernel is one run of floats. Where
that does not work (a stride, few channels) the windows of the strip are unfolded into such blocks instead. Tiles of the
product then run over the strip, for its value and for the gradient of the weight alike.

Shapes: N samples, C and O channels in and out, H and W, P and Q rows and columns in and out, K terms of a window.
Images are contiguous (N, H, W, C). What is called out is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.approximations import ZERO
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.tiles import COLUMNS, LANES, ROWS, address, make_tile

Array = NDArray[np.float32]
Ints = NDArray[np.int64]

DEPTH = 16  # floats from one pixel of a block to the next
STRIP_FLOATS = 1 << 16  # of a packed strip; 256 KiB stay in a second-level cache beside the weights
CHUNK_PIXELS = 224  # of a strip that a tile of the weight gradient runs over; they stay in a first-level cache
FEW_CHANNELS = 4  # up to here blocks of channels would be mostly empty

value_tile = make_tile(row_step=DEPTH, term_step=1)  # rows are pixels, terms run through a window
gradient_tile = make_tile(row_step=1, term_step=DEPTH)  # rows run through a window, terms are pixels


class Plan(NamedTuple):
    """How the windows of one geometry are packed. Numbers, so that a kernel can take them."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    dilation_height: int
    dilation_width: int
    before_height: int
    before_width: int
    unfolded: int  # 1 if windows are unfolded
    strip: int  # output rows of a strip
    depth: int  # channels, or terms of an unfolded window, in a block
    blocks: int
    run: int  # terms of a window that lie side by side
    runs: int
    line: int  # floats from one row of a packed strip to the next
    block: int  # floats of a block
    num_terms: int  # K, and what blocks that are not full add to it


Windows = tuple[Plan, Ints]  # a plan, and where the runs of a window begin in a packed strip


@lru_cache(maxsize=1024)
def plan(
    size: Sequence[int],
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    before: Sequence[int],
    out: Sequence[int],
) -> Windows:
    """The plan for windows over images of `size`, (rows, columns) like everything else."""
    taps = kernel[0] * kernel[1]
    unfolded = max(stride) > 1 or channels <= FEW_CHANNELS
    terms = channels * taps if unfolded else channels
    blocks = -(-terms // DEPTH)
    depth = -(-terms // blocks)
    whole_rows = not unfolded and depth == DEPTH and dilation[1] == 1
    line = (out[1] if unfolded else out[1] + dilation[1] * (kernel[1] - 1)) * DEPTH
    margin = 0 if unfolded else dilation[0] * (kernel[0] - 1)
    strip = min(max(STRIP_FLOATS // (blocks * line) - margin, 1), out[0])
    block = (strip + margin) * line
    if unfolded:
        starts = [k * block for k in range(blocks)]
    else:
        columns = [0] if whole_rows else [j * dilation[1] * DEPTH for j in range(kernel[1])]
        rows = [i * dilation[0] * line for i in range(kernel[0])]
        starts = [k * block + row + column for k in range(blocks) for row in rows for column in columns]
    run = kernel[1] * DEPTH if whole_rows else depth
    given = (*size, channels, *out, *kernel, *stride, *dilation, *before)
    chosen = (int(unfolded), strip, depth, blocks, run, len(starts), line, block, run * len(starts))
    return Plan._make(given + chosen), np.array(starts)


def forward(x: Array, weight: Array, bias: Array | None, windows: Windows) -> Array:
    """x (N, H, W, C), weight (O, C, *kernel), bias (O,) -> (N, P, Q, O)."""
    p, starts = windows
    channels_out = len(weight)
    y = np.empty((len(x), p.out_height, p.out_width, channels_out), np.float32)
    width = _round_up(channels_out, COLUMNS)
    panels = _aligned(p.num_terms * width)
    panels.reshape(-1, p.num_terms, COLUMNS)[...] = _matrix(weight, width, p).transpose(1, 0, 2)
    init = np.zeros(width, np.float32)
    if bias is not None:
        init[:channels_out] = bias
    value_loop(x, panels, init, y, p, starts, _aligned(p.blocks * p.block), _aligned(ROWS * COLUMNS))
    return y


def weight_gradient(x: Array, g: Array, windows: Windows, out: Array) -> None:
    """x (N, H, W, C) and g (N, P, Q, O) -> out (O, C, *kernel)."""
    p, starts = windows
    channels_out = g.shape[-1]
    width = _round_up(channels_out, LANES)
    total = _aligned(p.num_terms * width)
    total[:] = 0
    rows = _aligned(p.strip * p.out_width * width if width != channels_out else 0)
    gradient_loop(x, g, total, p, starts, _aligned(p.blocks * p.block), rows)
    _, height, columns, channels = _parts(p)
    parts = total.reshape(p.blocks, height, columns, p.depth, width).transpose(1, 2, 0, 3, 4)
    kept = parts.reshape(height, columns, -1, width)[:, :, :channels, :channels_out]
    out[...] = kept.reshape(p.kernel_height, p.kernel_width, p.channels, channels_out).transpose(3, 2, 0, 1)


def _matrix(weight: Array, width: int, p: Plan) -> Array:
    """The weight (O, C, *kernel) as (K, width / COLUMNS, COLUMNS), zero where a block or a row is not full."""
    _, height, columns, channels = _parts(p)
    padded = np.zeros((height, columns, p.blocks * p.depth, width), np.float32)
    last = weight.transpose(2, 3, 1, 0).reshape(height, columns, channels, len(weight))
    padded[:, :, :channels, : len(weight)] = last
    parts = padded.reshape(height, columns, p.blocks, p.depth, width).transpose(2, 0, 1, 3, 4)
    return parts.reshape(p.num_terms, width // COLUMNS, COLUMNS)


def _parts(p: Plan) -> tuple[int, int, int, int]:
    """Blocks, rows, columns and channels of a packed window; an unfolded one is a single pixel of many channels."""
    if p.unfolded:
        return p.blocks, 1, 1, p.kernel_height * p.kernel_width * p.channels
    return p.blocks, p.kernel_height, p.kernel_width, p.channels


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _aligned(count: int) -> Array:
    """Room for `count` floats that begins with a cache line; what it holds is undefined."""
    room = np.empty(count + 16, np.float32)
    start = -room.ctypes.data // 4 % 16
    return room[start : start + count]


# The loops. p is a Plan; `packed` and `scratch` are room for a strip and for a tile.


@compiled
def value_loop(
    x: Array, panels: Array, init: Array, y: Array, p: Plan, starts: Ints, packed: Array, scratch: Array
) -> None:
    channels_out = y.shape[3]
    flat = y.reshape(-1)
    for n in range(x.shape[0]):
        for first in range(0, p.out_height, p.strip):
            rows = min(p.strip, p.out_height - first)
            pack(x[n], p, first, rows, packed)
            lines, length = (1, rows * p.out_width) if p.unfolded else (rows, p.out_width)
            pieces = -(-length // ROWS)
            for column in range(0, channels_out, COLUMNS):
                panel = address(panels, column * p.num_terms)
                vectors = 1 if channels_out - column <= LANES else 2
                is_full = column + vectors * LANES <= channels_out
                for line in range(lines):
                    for piece in range(pieces):
                        start, stop = piece * length // pieces, (piece + 1) * length // pieces
                        a = address(packed, line * p.line + start * DEPTH)
                        at = ((n * p.out_height + first + line) * p.out_width + start) * channels_out + column
                        c = address(flat, at) if is_full else address(scratch, 0)
                        c_step = channels_out if is_full else COLUMNS
                        bias = address(init, column)
                        value_tile(stop - start, vectors, starts, p.runs, p.run, a, panel, COLUMNS, bias, 0, c, c_step)
                        if not is_full:
                            for i in range(stop - start):
                                for j in range(channels_out - column):
                                    flat[at + i * channels_out + j] = scratch[i * COLUMNS + j]


@compiled
def gradient_loop(x: Array, g: Array, total: Array, p: Plan, starts: Ints, packed: Array, room: Array) -> None:
    channels_out = g.shape[3]
    width = -(-channels_out // LANES) * LANES
    # Rows of pixels in a packed strip; a strip of unfolded windows is one long row.
    lines = np.arange(p.strip) * p.line
    for n in range(x.shape[0]):
        for first in range(0, p.out_height, p.strip):
            rows = min(p.strip, p.out_height - first)
            pack(x[n], p, first, rows, packed)
            begin = (n * p.out_height + first) * p.out_width * channels_out
            gradients = g.reshape(-1)
            if width != channels_out:
                widen(gradients, begin, channels_out, room, width, rows * p.out_width)
                gradients, begin = room, 0
            at_a_time = max(CHUNK_PIXELS // p.out_width, 1)
            for line in range(0, rows, at_a_time):
                count = min(at_a_time, rows - line)
                b_at = begin + line * p.out_width * width
                num_lines, length = (1, count * p.out_width) if p.unfolded else (count, p.out_width)
                for r in range(p.runs):
                    pieces = -(-p.run // ROWS)
                    for piece in range(pieces):
                        start, stop = piece * p.run // pieces, (piece + 1) * p.run // pieces
                        a = address(packed, line * p.line + starts[r] + start)
                        for column in range(0, width, COLUMNS):
                            vectors = 1 if width - column <= LANES else 2
                            b = address(gradients, b_at + column)
                            c = address(total, (r * p.run + start) * width + column)
                            gradient_tile(
                                stop - start, vectors, lines, num_lines, length, a, b, width, c, width, c, width
                            )


@compiled
def widen(x: Array, begin: int, width: int, out: Array, out_width: int, rows: int) -> None:
    """Copy rows of `width` floats from x[begin:] into rows of `out_width`, with zeros behind them."""
    for i in range(rows):
        for j in range(width):
            out[i * out_width + j] = x[begin + i * width + j]
        for j in range(width, out_width):
            out[i * out_width + j] = ZERO


@compiled
def pack(x: Array, p: Plan, first: int, rows: int, packed: Array) -> None:
    """The strip of output rows from `first`, of one sample x (H, W, C)."""
    if p.unfolded:
        pack_windows(x, p, first, rows, packed)
    else:
        pack_pixels(x, p, first, rows, packed)


@compiled
def pack_pixels(x: Array, p: Plan, first: int, rows: int, packed: Array) -> None:
    """The pixels that the windows see, in blocks of channels."""
    width = p.line // DEPTH
    left = min(max(p.before_width, 0), width)
    right = max(min(p.width + p.before_width, width), left)
    is_full = p.blocks * DEPTH == p.channels
    for row in range(rows + p.dilation_height * (p.kernel_height - 1)):
        h = first + row - p.before_height
        is_inside = h >= 0 and h < p.height
        lo, hi = (left, right) if is_inside else (width, width)
        for block in range(p.blocks):
            out = block * p.block + row * p.line
            packed[out : out + lo * DEPTH] = ZERO
            packed[out + hi * DEPTH : out + p.line] = ZERO
        for w in range(lo, hi):  # all blocks of a pixel at once: the image is read from its beginning to its end
            pixel, out = x[h, w - p.before_width], row * p.line + w * DEPTH
            if is_full:
                for block in range(p.blocks):
                    for j in range(DEPTH):
                        packed[out + block * p.block + j] = pixel[block * DEPTH + j]
            else:
                for block in range(p.blocks):
                    channel = block * p.depth
                    count = min(p.depth, p.channels - channel)
                    for j in range(count):
                        packed[out + block * p.block + j] = pixel[channel + j]
                    for j in range(count, DEPTH):
                        packed[out + block * p.block + j] = ZERO


@compiled
def pack_windows(x: Array, p: Plan, first: int, rows: int, packed: Array) -> None:
    """The windows themselves, each term after the other, in blocks of terms."""
    num_terms = p.kernel_height * p.kernel_width * p.channels
    term = 0
    for i in range(p.kernel_height):
        for j in range(p.kernel_width):
            # The columns whose window has its tap j within the image.
            shift = j * p.dilation_width - p.before_width
            left = min(max(-(shift // p.stride_width), 0), p.out_width)
            right = max(min((p.width - 1 - shift) // p.stride_width + 1, p.out_width), left)
            channel = 0
            while channel < p.channels:
                lane = term % p.depth
                count = min(p.depth - lane, p.channels - channel)
                start = term // p.depth * p.block + lane
                for row in range(rows):
                    h = (first + row) * p.stride_height + i * p.dilation_height - p.before_height
                    out = start + row * p.line
                    is_inside = h >= 0 and h < p.height
                    lo, hi = (left, right) if is_inside else (p.out_width, p.out_width)
                    for w in range(lo):
                        for k in range(count):
                            packed[out + w * DEPTH + k] = ZERO
                    for w in range(hi, p.out_width):
                        for k in range(count):
                            packed[out + w * DEPTH + k] = ZERO
                    if count == DEPTH:
                        for w in range(lo, hi):
                            pixel = x[h, w * p.stride_width + shift]
                            for k in range(DEPTH):
                                packed[out + w * DEPTH + k] = pixel[channel + k]
                    else:
                        for k in range(count):
                            for w in range(lo, hi):
                                packed[out + w * DEPTH + k] = x[h, w * p.stride_width + shift, channel + k]
                term += count
                channel += count
    for rest in range(num_terms, p.blocks * p.depth):
        start = rest // p.depth * p.block + rest % p.depth
        for pixel in range(rows * p.out_width):
            packed[start + pixel * DEPTH] = ZERO
