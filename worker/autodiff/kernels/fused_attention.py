"""Scaled dot-product attention, head by head, out of strips and tiles: what a strip needs stays in the cache.

    forward    strip of queries: scores = query @ key.T, softmax, out = weights @ value
    backward   strip of queries: dweights = g @ value.T, dscores by the softmax, dquery = dscores @ key
               strip of keys:    dvalue = weights.T @ g, dkey = dscores.T @ query

Causal attention never computes what lies beyond the strip on the diagonal. Shapes as in `attention`; addresses and
steps are in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.autodiff.kernels import operands, strips, units
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.operands import FLOAT_BYTES, Array, Bytes, address_of
from worker.autodiff.kernels.softmax import softmax_backward_rows, softmax_rows
from worker.autodiff.kernels.strips import WIDTH


def is_possible(query: Array, key: Array, value: Array, is_causal: bool) -> bool:
    """Whether arrays (B, H, T or S, E or V) are such as `forward` and `backward` take."""
    arrays = query, key, value
    is_plain = all(x.ndim == 4 and x.dtype == np.float32 and x.strides[-1] == FLOAT_BYTES and x.size for x in arrays)
    return is_plain and units.FLOAT32 in units.UNITS and (not is_causal or query.shape[-2] == key.shape[-2])


def forward(
    unit: int, query: Array, key: Array, value: Array, *, scale: float, is_causal: bool, weights: Array, out: Array
) -> None:
    """Write softmax(query @ key.T * scale) into `weights` (B, H, T, S), contiguous, and weights @ value into `out`.

    What `weights` has beyond the strip on the diagonal is left unset if `is_causal`.
    """
    batch, heads, rows, width = query.shape
    columns, width_out = value.shape[-2:]
    deepest = max(width, width_out, columns) + WIDTH
    room = (columns + 2 * WIDTH) * (width + WIDTH) + (width_out + 2 * WIDTH) * (columns + WIDTH) + WIDTH * deepest
    _forward(
        unit,
        (batch, heads, rows, columns, width, width_out),
        _place(query),
        _place(key),
        _place(value),
        weights.reshape(-1, rows, columns),
        _place(out),
        np.float32(scale),
        is_causal,
        _workspace(room),
    )


def backward(
    unit: int,
    g: Array,
    query: Array,
    key: Array,
    value: Array,
    weights: Array,
    *,
    scale: float,
    is_causal: bool,
    out: Sequence[Array],
) -> None:
    """Write the gradients of query, key and value into `out`, given that of the output and forward's weights."""
    batch, heads, rows, width = query.shape
    columns, width_out = value.shape[-2:]
    deepest = max(width, width_out, rows, columns) + WIDTH
    wide = width + width_out + 4 * WIDTH
    room = (columns + 2 * WIDTH) * (width_out + WIDTH) + wide * (rows + columns + 2 * WIDTH) + WIDTH * deepest
    dquery, dkey, dvalue = map(_place, out)
    _backward(
        unit,
        (batch, heads, rows, columns, width, width_out),
        _place(g),
        _place(query),
        _place(key),
        _place(value),
        weights.reshape(-1, rows, columns),
        np.empty((rows, columns), np.float32),
        dquery,
        dkey,
        dvalue,
        np.float32(scale),
        is_causal,
        _workspace(room),
    )


Place = tuple[int, int, int, int]  # address, and the steps of batch, heads and time
Sizes = tuple[int, int, int, int, int, int]


def _place(x: Array) -> Place:
    batch, heads, time, _ = x.strides
    return address_of(x), batch, heads, time


def _workspace(num_floats: int) -> Bytes:
    return operands.memory(strips.FIXED_BYTES + num_floats * strips.NUMBER_BYTES + strips.SLACK_BYTES)


@compiled
def _head(x: Place, batch: int, head: int) -> int:
    """Where a head's matrix begins."""
    start: int = x[0] + batch * x[1] + head * x[2]
    return start


@compiled
def _pack_columns(
    unit: int, source: int, column_step: int, deep_step: int, columns: int, depth: int, to: int, base: int
) -> int:
    """Pack a right operand, strip behind strip; where it ends."""
    for j in range(0, columns, WIDTH):
        count = min(WIDTH, columns - j)
        strips.pack_right(unit, source + j * column_step, column_step, deep_step, count, depth, to, base)
        to += strips.right_bytes(unit, depth)
    return to


@compiled
def _tiles(
    unit: int,
    segments: Array,
    rows: int,
    columns: int,
    depth: int,
    left: int,
    right: int,
    right_step: int,
    to: int,
    to_step: int,
    base: int,
) -> None:
    """to = left @ right, for a packed strip of rows and packed strips of columns, right_step apart."""
    for j in range(0, columns, WIDTH):
        strips.tile(
            unit,
            segments,
            rows,
            min(WIDTH, columns - j),
            depth,
            left,
            right + j // WIDTH * right_step,
            base + strips.ZEROS,
            0,
            to + j * FLOAT_BYTES,
            to_step,
            base,
        )


@compiled
def _forward(
    unit: int,
    sizes: Sizes,
    query: Place,
    key: Place,
    value: Place,
    weights: Array,
    out: Place,
    scale: np.float32,
    is_causal: bool,
    memory: Bytes,
) -> None:
    batch, heads, rows, columns, width, width_out = sizes
    base = strips.prepare(unit, memory)
    segments = np.zeros(1, np.int64)
    row_bytes = columns * FLOAT_BYTES
    keys = base + strips.FIXED_BYTES
    for n in range(batch * heads):
        i, j = n // heads, n % heads
        q, k, v, to = _head(query, i, j), _head(key, i, j), _head(value, i, j), _head(out, i, j)
        scores = weights[n]
        at = scores.ctypes.data
        values = _pack_columns(unit, k, key[3], FLOAT_BYTES, columns, width, keys, base)
        left = _pack_columns(unit, v, FLOAT_BYTES, value[3], width_out, columns, values, base)
        for strip in range(strips.num_strips(unit, rows)):
            first, last = strips.strip_start(unit, strip, rows), strips.strip_start(unit, strip + 1, rows)
            count, end = last - first, last if is_causal else columns
            row = at + first * row_bytes
            strips.pack_left(unit, q + first * query[3], query[3], FLOAT_BYTES, count, width, left, base)
            step = strips.right_bytes(unit, width)
            _tiles(unit, segments, count, end, width, left, keys, step, row, row_bytes, base)
            softmax_rows(scores, scale, first, last, end, is_causal)
            strips.pack_left(unit, row, row_bytes, FLOAT_BYTES, count, end, left, base)
            step = strips.right_bytes(unit, columns)
            _tiles(unit, segments, count, width_out, end, left, values, step, to + first * out[3], out[3], base)
    strips.finish(unit)


@compiled
def _backward(
    unit: int,
    sizes: Sizes,
    g: Place,
    query: Place,
    key: Place,
    value: Place,
    weights: Array,
    dscores: Array,
    dquery: Place,
    dkey: Place,
    dvalue: Place,
    scale: np.float32,
    is_causal: bool,
    memory: Bytes,
) -> None:
    batch, heads, rows, columns, width, width_out = sizes
    base = strips.prepare(unit, memory)
    segments = np.zeros(1, np.int64)
    row_bytes = columns * FLOAT_BYTES
    values = base + strips.FIXED_BYTES
    dat = dscores.ctypes.data
    for n in range(batch * heads):
        i, j = n // heads, n % heads
        dy, q, k, v = _head(g, i, j), _head(query, i, j), _head(key, i, j), _head(value, i, j)
        dq, dk, dv = _head(dquery, i, j), _head(dkey, i, j), _head(dvalue, i, j)
        at = weights[n].ctypes.data
        keys = _pack_columns(unit, v, value[3], FLOAT_BYTES, columns, width_out, values, base)
        outputs = _pack_columns(unit, k, FLOAT_BYTES, key[3], width, columns, keys, base)
        queries = _pack_columns(unit, dy, FLOAT_BYTES, g[3], width_out, rows, outputs, base)
        left = _pack_columns(unit, q, FLOAT_BYTES, query[3], width, rows, queries, base)
        for strip in range(strips.num_strips(unit, rows)):
            first, last = strips.strip_start(unit, strip, rows), strips.strip_start(unit, strip + 1, rows)
            count, end = last - first, last if is_causal else columns
            row = dat + first * row_bytes
            strips.pack_left(unit, dy + first * g[3], g[3], FLOAT_BYTES, count, width_out, left, base)
            step = strips.right_bytes(unit, width_out)
            _tiles(unit, segments, count, end, width_out, left, values, step, row, row_bytes, base)
            softmax_backward_rows(weights[n], dscores, scale, first, last, end)
            strips.pack_left(unit, row, row_bytes, FLOAT_BYTES, count, end, left, base)
            step = strips.right_bytes(unit, columns)
            _tiles(unit, segments, count, width, end, left, keys, step, dq + first * dquery[3], dquery[3], base)
        for strip in range(strips.num_strips(unit, columns)):
            first, last = strips.strip_start(unit, strip, columns), strips.strip_start(unit, strip + 1, columns)
            start = first if is_causal else 0  # whoever sees these keys
            count, depth, corner = last - first, rows - start, start * row_bytes + first * FLOAT_BYTES
            step, skipped = strips.right_bytes(unit, rows), strips.right_bytes(unit, start)
            strips.pack_left(unit, at + corner, FLOAT_BYTES, row_bytes, count, depth, left, base)
            to, to_step = dv + first * dvalue[3], dvalue[3]
            _tiles(unit, segments, count, width_out, depth, left, outputs + skipped, step, to, to_step, base)
            strips.pack_left(unit, dat + corner, FLOAT_BYTES, row_bytes, count, depth, left, base)
            to, to_step = dk + first * dkey[3], dkey[3]
            _tiles(unit, segments, count, width, depth, left, queries + skipped, step, to, to_step, base)
    strips.finish(unit)
