"""Products of float32 matrices on a unit that multiplies bfloat16: operands are rounded while they are packed.

The right operand is packed whole, the left one in chunks of rows; then tiles of the result are computed, row of tiles
after row of tiles, over so many columns that their part of the right operand stays in the cache. Very deep products are
cut along the dimension that is summed over, at places that depend on nothing else.

Shapes: M rows, N columns, K the dimension summed over. Addresses and steps are in bytes, the rest counts elements.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import bfloat16_tiles as tiles
from worker.autodiff.kernels.approximations import ZERO
from worker.autodiff.kernels.bfloat16_tiles import BLOCK_BYTES, DEPTH, LANES, ROW_BYTES, float_at, put_float
from worker.autodiff.kernels.compilation import compiled

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

MAX_DEPTH = 2048  # numbers of one pass: the packed operands of a tile stay in the cache
LEFT_BYTES = 1 << 19  # of a packed chunk of rows
RIGHT_BYTES = 1 << 20  # of the packed columns that a row of tiles goes over: half of a second-level cache
PAIR = 2 * LANES  # rows and columns of a full tile
SCRATCH_BYTES = PAIR * PAIR * 4  # an operand's block that has an edge in it, or a tile of the result
FLOAT_BYTES = 4


def product(a: Array, b: Array, out: Array | None = None, bias: Array | None = None) -> Array:
    """a (..., M, K) @ b (..., K, N) + bias (N,), all float32, into `out` (..., M, N) where given.

    Only where bfloat16_tiles.UNIT is not None. Views are not copied if their rows or their columns are contiguous.
    """
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    if out is None:
        out = np.empty((*leading, rows, columns), np.float32)
    if not out.size:
        return out
    if not depth:
        out[...] = ZERO if bias is None else bias
        return out
    if out.strides[-1] != FLOAT_BYTES and columns > 1:
        out[...] = product(a, b, None, bias)
        return out
    if len(leading) > 2:
        a, b = (np.broadcast_to(x, leading + x.shape[-2:]) for x in (a, b))
        for i in range(leading[0]):
            product(a[i], b[i], out[i], bias)
        return out
    a, b = _packable(a), _packable(b)
    batch = (1, 1, *leading)[-2:]
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    memory = _memory(rows, columns, depth)
    _product(
        tiles.UNIT == "amx",
        *batch,
        rows,
        columns,
        depth,
        *_place(a, batch, of_left=True),
        *_place(b, batch, of_left=False),
        *_place(out, batch, of_left=True)[:4],
        0 if bias is None else _address(bias),
        memory,
    )
    return out


def _packable(x: Array) -> Array:
    """x, or a copy whose rows are contiguous."""
    rows, columns = x.shape[-2:]
    if x.strides[-1] == FLOAT_BYTES or x.strides[-2] == FLOAT_BYTES or rows == 1 or columns == 1:
        return x
    return np.ascontiguousarray(x)


def _place(x: Array, batch: tuple[int, ...], *, of_left: bool) -> tuple[int, int, int, int, int]:
    """Address, steps of the two batch dimensions, the outer step, and that of the dimension summed over."""
    leading = x.shape[:-2]
    missing = 2 - len(leading)
    steps = [0] * missing + [
        0 if size == 1 else step for size, step in zip(leading, x.strides[: len(leading)], strict=True)
    ]
    outer, deep = (-2, -1) if of_left else (-1, -2)
    # Along a dimension of one element there is no step: it is what makes the other one packable.
    outer_step = FLOAT_BYTES if x.shape[outer] == 1 else x.strides[outer]
    deep_step = FLOAT_BYTES if x.shape[deep] == 1 and outer_step != FLOAT_BYTES else x.strides[deep]
    return _address(x), steps[0], steps[1], outer_step, deep_step


def _address(x: Array) -> int:
    address: int = x.__array_interface__["data"][0]
    return address


class _Memory(threading.local):
    """Packed operands, for one product after the other of a thread."""

    def __init__(self) -> None:
        self.buffer: Bytes = np.empty(0, np.uint8)


_local = _Memory()


def _memory(rows: int, columns: int, depth: int) -> Bytes:
    """Room for a product of this size: constants and scratch, the packed right operand, a chunk of the left one."""
    blocks = -(-min(depth, MAX_DEPTH) // DEPTH)
    right = -(-columns // LANES) * blocks * BLOCK_BYTES
    left = min(-(-rows // LANES) * blocks * BLOCK_BYTES, max(LEFT_BYTES, 2 * blocks * BLOCK_BYTES))
    needed = _FIXED_BYTES + columns * FLOAT_BYTES + 2 * PAIR * FLOAT_BYTES + left + right + 4 * ROW_BYTES
    if _local.buffer.size < needed:
        _local.buffer = np.zeros(needed, np.uint8)
    return _local.buffer


# At the start of the memory: the shape of the tile registers, a row of zeros, scratch.
_ZEROS, _SCRATCH, _TILE = ROW_BYTES, 3 * ROW_BYTES, 3 * ROW_BYTES + SCRATCH_BYTES
_FIXED_BYTES = _TILE + SCRATCH_BYTES
_PALETTE, _REGISTERS = 1, 8


@compiled
def _product(
    is_amx: bool,
    outer_batch: int,
    inner_batch: int,
    rows: int,
    columns: int,
    depth: int,
    a: int,
    a_outer: int,
    a_inner: int,
    a_row: int,
    a_deep: int,
    b: int,
    b_outer: int,
    b_inner: int,
    b_column: int,
    b_deep: int,
    c: int,
    c_outer: int,
    c_inner: int,
    c_row: int,
    bias: int,
    memory: Bytes,
) -> None:
    base = (memory.ctypes.data + ROW_BYTES - 1) // ROW_BYTES * ROW_BYTES
    padded_bias = base + _FIXED_BYTES
    packed = padded_bias + (columns * FLOAT_BYTES + PAIR * FLOAT_BYTES + ROW_BYTES - 1) // ROW_BYTES * ROW_BYTES
    for i in range(_FIXED_BYTES // FLOAT_BYTES):
        put_float(base + i * FLOAT_BYTES, ZERO)
    if bias:
        for j in range(columns):
            put_float(padded_bias + j * FLOAT_BYTES, float_at(bias + j * FLOAT_BYTES))
    if is_amx:
        at = base - memory.ctypes.data
        memory[at] = _PALETTE
        for register in range(_REGISTERS):
            memory[at + 16 + 2 * register] = ROW_BYTES
            memory[at + 48 + register] = LANES
        tiles.configure(base)
    for i in range(outer_batch):
        for j in range(inner_batch):
            _matrix(
                is_amx,
                rows,
                columns,
                depth,
                a + i * a_outer + j * a_inner,
                a_row,
                a_deep,
                b + i * b_outer + j * b_inner,
                b_column,
                b_deep,
                c + i * c_outer + j * c_inner,
                c_row,
                padded_bias if bias else 0,
                base,
                packed,
            )
    if is_amx:
        tiles.release()


@compiled
def _matrix(
    is_amx: bool,
    rows: int,
    columns: int,
    depth: int,
    a: int,
    a_row: int,
    a_deep: int,
    b: int,
    b_column: int,
    b_deep: int,
    c: int,
    c_row: int,
    bias: int,
    base: int,
    packed: int,
) -> None:
    """One product of the batch."""
    scratch, edge = base + _SCRATCH, base + _TILE
    for start in range(0, depth, MAX_DEPTH):
        count = min(MAX_DEPTH, depth - start)
        blocks = (count + DEPTH - 1) // DEPTH
        strip = blocks * BLOCK_BYTES
        left = packed + (columns + LANES - 1) // LANES * strip
        _pack(b + start * b_deep, b_column, b_deep, columns, count, b_deep == FLOAT_BYTES, packed, scratch)
        chunk = max(LEFT_BYTES // strip // 2 * PAIR, PAIR)
        reach = max(RIGHT_BYTES // strip // 2 * PAIR, PAIR)
        for top in range(0, rows, chunk):
            height = min(chunk, rows - top)
            _pack(a + top * a_row + start * a_deep, a_row, a_deep, height, count, a_deep != FLOAT_BYTES, left, scratch)
            for side in range(0, columns, reach):
                for i in range(0, height, PAIR):
                    num_rows = min(PAIR, height - i)
                    for j in range(side, min(side + reach, columns), PAIR):
                        num_columns = min(PAIR, columns - j)
                        at = c + (top + i) * c_row + j * FLOAT_BYTES
                        is_whole = num_rows % LANES == 0 and num_columns % LANES == 0
                        if not is_whole and start:
                            _copy(at, c_row, edge, PAIR * FLOAT_BYTES, num_rows, num_columns)
                        to, to_step = (at, c_row) if is_whole else (edge, PAIR * FLOAT_BYTES)
                        first, first_step = to, to_step
                        if not start:
                            first, first_step = bias + j * FLOAT_BYTES if bias else base + _ZEROS, 0
                        _tile(
                            is_amx,
                            (num_rows + LANES - 1) // LANES,
                            (num_columns + LANES - 1) // LANES,
                            blocks,
                            left + i // LANES * strip,
                            packed + j // LANES * strip,
                            strip,
                            first,
                            first_step,
                            to,
                            to_step,
                        )
                        if not is_whole:
                            _copy(edge, PAIR * FLOAT_BYTES, at, c_row, num_rows, num_columns)


_amx = {(i, j): tiles.make_amx_tile(i, j) for i in (1, 2) for j in (1, 2)}
_amx_11, _amx_12, _amx_21, _amx_22 = _amx[1, 1], _amx[1, 2], _amx[2, 1], _amx[2, 2]
_avx_1, _avx_2 = tiles.make_avx_tile(1), tiles.make_avx_tile(2)
_along, _along_turned = tiles.make_pack(True, False), tiles.make_pack(True, True)
_across, _across_turned = tiles.make_pack(False, False), tiles.make_pack(False, True)


@compiled
def _tile(
    is_amx: bool,
    rows: int,
    columns: int,
    blocks: int,
    a: int,
    b: int,
    strip: int,
    first: int,
    first_step: int,
    to: int,
    to_step: int,
) -> None:
    """A tile of the result, of 1 or 2 x 1 or 2 of the unit's."""
    if is_amx:
        if rows == 2:
            if columns == 2:
                _amx_22(blocks, a, strip, b, strip, first, first_step, to, to_step)
            else:
                _amx_21(blocks, a, strip, b, strip, first, first_step, to, to_step)
        elif columns == 2:
            _amx_12(blocks, a, strip, b, strip, first, first_step, to, to_step)
        else:
            _amx_11(blocks, a, strip, b, strip, first, first_step, to, to_step)
        return
    for i in range(rows):
        for half in range(2):
            row = LANES * i + tiles.HALF * half
            left = a + i * strip + tiles.HALF * half * ROW_BYTES
            if columns == 2:
                _avx_2(blocks, left, b, strip, first + row * first_step, first_step, to + row * to_step, to_step)
            else:
                _avx_1(blocks, left, b, strip, first + row * first_step, first_step, to + row * to_step, to_step)


@compiled
def _pack(
    source: int, outer_step: int, deep_step: int, outer: int, depth: int, is_turned: bool, packed: int, scratch: int
) -> None:
    """Round outer x depth floats and write them as strips of blocks, each of 16 along `outer`; edges hold zeros.

    One of the steps is that of contiguous floats.
    """
    is_along = deep_step == FLOAT_BYTES
    step = outer_step if is_along else deep_step
    strip = (depth + DEPTH - 1) // DEPTH * BLOCK_BYTES
    for i in range(0, outer, LANES):
        to = packed + i // LANES * strip
        for k in range(0, depth, DEPTH):
            at, at_step = source + i * outer_step + k * deep_step, step
            if outer - i < LANES or depth - k < DEPTH:
                at_step = DEPTH * FLOAT_BYTES if is_along else LANES * FLOAT_BYTES
                for n in range(LANES * DEPTH):
                    put_float(scratch + n * FLOAT_BYTES, ZERO)
                for m in range(min(LANES, outer - i)):
                    for n in range(min(DEPTH, depth - k)):
                        place = m * DEPTH + n if is_along else n * LANES + m
                        put_float(scratch + place * FLOAT_BYTES, float_at(at + m * outer_step + n * deep_step))
                at = scratch
            if is_along:
                if is_turned:
                    _along_turned(at, at_step, to)
                else:
                    _along(at, at_step, to)
            elif is_turned:
                _across_turned(at, at_step, to)
            else:
                _across(at, at_step, to)
            to += BLOCK_BYTES


@compiled
def _copy(source: int, source_step: int, to: int, to_step: int, rows: int, columns: int) -> None:
    for i in range(rows):
        for j in range(columns):
            put_float(to + i * to_step + j * FLOAT_BYTES, float_at(source + i * source_step + j * FLOAT_BYTES))
