"""Strips of packed operands and tiles of their product, the same on every unit that can compute one.

A product is made of strips: some rows of the left operand, WIDTH columns of the right one, each packed so that a tile
of the result reads both front to back. The units: FLOAT32 multiplies vectors of float32 (AVX-512), AVX512_BF16 and AMX
multiply numbers that are rounded to bfloat16 as they are packed, AMX_FLOAT32 those cut into slices that lose nothing.
Sums are always float32.

A sum's bits depend on the unit and on the depth, the number of products that it adds up; neither on the tile that it is
in nor on where the arrays lie. All functions take addresses and steps in bytes; other sizes count elements.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from worker.autodiff.kernels import bfloat16_tiles, slices, tiles
from worker.autodiff.kernels.approximations import ZERO
from worker.autodiff.kernels.bfloat16_tiles import BLOCK_BYTES, DEPTH, LANES, ROW_BYTES
from worker.autodiff.kernels.codegen import FLOAT, long, pointer_to, transposed
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import float_at, intrinsic, put_float
from worker.autodiff.kernels.operands import FLOAT_BYTES, Array, Bytes

FLOAT32, AVX512_BF16, AMX, AMX_FLOAT32 = 0, 1, 2, 3
NAMES = {FLOAT32: "float32", AVX512_BF16: "avx512_bf16", AMX: "amx", AMX_FLOAT32: "amx_float32", None: "none"}
_HAS = {
    FLOAT32: tiles.LANES == LANES,  # AVX-512
    AVX512_BF16: bfloat16_tiles.HAS_AVX,
    AMX: bfloat16_tiles.HAS_AMX,
    AMX_FLOAT32: bfloat16_tiles.HAS_AMX,
}
UNITS = tuple(unit for unit, is_there in _HAS.items() if is_there)  # that this CPU has
# The fastest for products of float32 and of bfloat16; None where there is none.
SINGLE = next((unit for unit in (AMX_FLOAT32, FLOAT32) if unit in UNITS), None)
BFLOAT16 = next((unit for unit in (AMX, AVX512_BF16) if unit in UNITS), None)

WIDTH = 32  # columns of a strip
ROWS_FLOAT32, ROWS_BFLOAT16 = 14, 32  # rows of a strip, at most
LEFT_STEP, RIGHT_STEP = ROWS_FLOAT32 * FLOAT_BYTES, WIDTH * FLOAT_BYTES  # of one number along the depth, in float32
LANE_BYTES = LANES * FLOAT_BYTES
SLACK_BYTES = LANE_BYTES  # a vector is written whole, beyond what is meant
NUMBER_BYTES = 6  # that a packed number takes, at most: three slices

# A workspace begins with the shape of AMX's registers, a row of zeros, and room for a block and a tile that have edges.
ZEROS = ROW_BYTES
_BLOCK = ZEROS + WIDTH * FLOAT_BYTES
_EDGE = _BLOCK + LANES * DEPTH * FLOAT_BYTES
FIXED_BYTES = _EDGE + WIDTH * WIDTH * FLOAT_BYTES
_PALETTE, _REGISTERS = 1, 8

i64, void = types.int64, types.void
vector = ir.VectorType(FLOAT, LANES)


@intrinsic
def _turn(_: Any, source: Any, step: Any, rows: Any, to: Any, to_step: Any) -> Any:
    """Write the 16 columns of `rows` <= 16 rows of 16 floats, `step` apart, as rows of 16 that are to_step apart."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, step, rows, to, to_step = args
        last = builder.sub(rows, long(1))
        values = []
        for i in range(LANES):
            row = builder.select(builder.icmp_signed("<", long(i), rows), long(i), last)  # never beyond the matrix
            start = builder.add(source, builder.mul(step, row))
            values.append(builder.load(pointer_to(builder, start, vector), align=4))
        for i, value in enumerate(transposed(builder, values)):
            builder.store(value, pointer_to(builder, builder.add(to, builder.mul(to_step, long(i))), vector), align=4)
        return context.get_dummy_value()

    return void(i64, i64, i64, i64, i64), generate


@intrinsic
def _copy_lanes(_: Any, source: Any, to: Any) -> Any:
    """Copy 16 floats."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(pointer_to(builder, args[0], vector), align=4)
        builder.store(value, pointer_to(builder, args[1], vector), align=4)
        return context.get_dummy_value()

    return void(i64, i64), generate


_float32_tile = tiles.make_tile(1, ROWS_FLOAT32)
_avx_1, _avx_2 = bfloat16_tiles.make_avx_tile(1), bfloat16_tiles.make_avx_tile(2)
_amx_11, _amx_12 = bfloat16_tiles.make_amx_tile(1, 1), bfloat16_tiles.make_amx_tile(1, 2)
_amx_21, _amx_22 = bfloat16_tiles.make_amx_tile(2, 1), bfloat16_tiles.make_amx_tile(2, 2)
_along, _along_turned = bfloat16_tiles.make_pack(True, False), bfloat16_tiles.make_pack(True, True)
_across, _across_turned = bfloat16_tiles.make_pack(False, False), bfloat16_tiles.make_pack(False, True)
_sliced_11, _sliced_12 = (bfloat16_tiles.make_amx_tile(1, n, slices.TERMS) for n in (1, 2))
_sliced_21, _sliced_22 = (bfloat16_tiles.make_amx_tile(2, n, slices.TERMS) for n in (1, 2))
_slice_along, _slice_along_turned = slices.make_pack(True, False), slices.make_pack(True, True)
_slice_across, _slice_across_turned = slices.make_pack(False, False), slices.make_pack(False, True)


# --- Sizes ---


@compiled
def num_strips(unit: int, rows: int) -> int:
    """Strips that so many rows make."""
    most = ROWS_FLOAT32 if unit == FLOAT32 else ROWS_BFLOAT16
    return (rows + most - 1) // most


@compiled
def strip_start(unit: int, strip: int, rows: int) -> int:
    """The first row of a strip, or the number of rows for the one after the last."""
    if unit == FLOAT32:  # strips of about one height: a low one is slow
        start: int = strip * rows // num_strips(unit, rows)
    else:
        start = min(strip * ROWS_BFLOAT16, rows)
    return start


@compiled
def left_bytes(unit: int, depth: int) -> int:
    """Bytes of a packed strip of rows: how far behind its beginning the numbers from `depth` on lie."""
    return LEFT_STEP * depth if unit == FLOAT32 else _num_slices(unit) * 2 * _blocks(depth) * BLOCK_BYTES


@compiled
def right_bytes(unit: int, depth: int) -> int:
    """Bytes of a packed strip of columns: how far behind its beginning the numbers from `depth` on lie."""
    return RIGHT_STEP * depth if unit == FLOAT32 else _num_slices(unit) * 2 * _blocks(depth) * BLOCK_BYTES


@compiled
def _num_slices(unit: int) -> int:
    return slices.NUM_SLICES if unit == AMX_FLOAT32 else 1


@compiled
def _blocks(depth: int) -> int:
    return (depth + DEPTH - 1) // DEPTH


# --- A workspace ---


@compiled
def prepare(unit: int, memory: Bytes) -> int:
    """Make the workspace ready that lies in `memory`; its address, a multiple of 64. `finish` must follow."""
    base = (memory.ctypes.data + ROW_BYTES - 1) // ROW_BYTES * ROW_BYTES
    for i in range(FIXED_BYTES // FLOAT_BYTES):
        put_float(base + i * FLOAT_BYTES, ZERO)
    if unit >= AMX:
        at = base - memory.ctypes.data
        memory[at] = _PALETTE
        for register in range(_REGISTERS):
            memory[at + 16 + 2 * register] = ROW_BYTES
            memory[at + 48 + register] = LANES
        _configure(base)
    return base


@compiled
def finish(unit: int) -> None:
    """Give the unit back."""
    if unit >= AMX:
        _release()


# --- Packing ---


@compiled
def pack_left(unit: int, a: int, row_step: int, deep_step: int, rows: int, depth: int, to: int, base: int) -> None:
    """Pack a strip of rows; row_step or deep_step is that of contiguous floats."""
    if unit != FLOAT32:
        _pack_blocks(unit, a, row_step, deep_step, rows, depth, deep_step != FLOAT_BYTES, to, base)
    elif deep_step == FLOAT_BYTES:
        _turn_float32(a, row_step, rows, depth, to, LEFT_STEP)
    else:
        whole = depth - 1 if deep_step >= LANE_BYTES else 0  # what is read beyond the strip is in the matrix
        for k in range(whole):
            _copy_lanes(a + k * deep_step, to + k * LEFT_STEP)
        for k in range(whole, depth):
            copy_floats(a + k * deep_step, to + k * LEFT_STEP, rows)


@compiled
def pack_right(
    unit: int, b: int, column_step: int, deep_step: int, columns: int, depth: int, to: int, base: int
) -> None:
    """Pack a strip of columns; column_step or deep_step is that of contiguous floats."""
    if unit != FLOAT32:
        _pack_blocks(unit, b, column_step, deep_step, columns, depth, deep_step == FLOAT_BYTES, to, base)
    elif deep_step == FLOAT_BYTES:
        for first in range(0, columns, LANES):
            count = min(LANES, columns - first)
            _turn_float32(b + first * column_step, column_step, count, depth, to + first * FLOAT_BYTES, RIGHT_STEP)
    elif columns == WIDTH:
        for k in range(depth):
            _copy_lanes(b + k * deep_step, to + k * RIGHT_STEP)
            _copy_lanes(b + k * deep_step + LANE_BYTES, to + k * RIGHT_STEP + LANE_BYTES)
    else:
        for k in range(depth):
            copy_floats(b + k * deep_step, to + k * RIGHT_STEP, columns)


@compiled
def _turn_float32(source: int, step: int, rows: int, depth: int, to: int, to_step: int) -> None:
    whole = depth // LANES * LANES
    for k in range(0, whole, LANES):
        _turn(source + k * FLOAT_BYTES, step, rows, to + k * to_step, to_step)
    for k in range(whole, depth):
        for i in range(rows):
            put_float(to + k * to_step + i * FLOAT_BYTES, float_at(source + i * step + k * FLOAT_BYTES))


@compiled
def copy_floats(source: int, to: int, count: int) -> None:
    """Copy a run of floats."""
    for i in range(count):
        put_float(to + i * FLOAT_BYTES, float_at(source + i * FLOAT_BYTES))


@compiled
def _pack_blocks(
    unit: int,
    source: int,
    outer_step: int,
    deep_step: int,
    outer: int,
    depth: int,
    is_turned: bool,
    packed: int,
    base: int,
) -> None:
    """Round or slice outer x depth floats and write them as pairs of blocks; edges hold zeros."""
    is_along = deep_step == FLOAT_BYTES
    step, pair = outer_step if is_along else deep_step, 2 * _num_slices(unit) * BLOCK_BYTES
    for i in range(0, outer, LANES):
        to = packed + i // LANES * BLOCK_BYTES
        for k in range(0, depth, DEPTH):
            at, at_step = source + i * outer_step + k * deep_step, step
            if outer - i < LANES or depth - k < DEPTH:
                at, at_step = _with_edge(at, outer_step, deep_step, min(LANES, outer - i), min(DEPTH, depth - k), base)
            if unit == AMX_FLOAT32:
                _slice_block(at, at_step, is_along, is_turned, to)
            else:
                _round_block(at, at_step, is_along, is_turned, to)
            to += pair


@compiled
def _round_block(source: int, step: int, is_along: bool, is_turned: bool, to: int) -> None:
    if is_along:
        if is_turned:
            _along_turned(source, step, to)
        else:
            _along(source, step, to)
    elif is_turned:
        _across_turned(source, step, to)
    else:
        _across(source, step, to)


@compiled
def _slice_block(source: int, step: int, is_along: bool, is_turned: bool, to: int) -> None:
    if is_along:
        if is_turned:
            _slice_along_turned(source, step, to)
        else:
            _slice_along(source, step, to)
    elif is_turned:
        _slice_across_turned(source, step, to)
    else:
        _slice_across(source, step, to)


@compiled
def _with_edge(source: int, outer_step: int, deep_step: int, outer: int, depth: int, base: int) -> tuple[int, int]:
    """A copy of a part of a block with zeros around it, and its step."""
    block, is_along = base + _BLOCK, deep_step == FLOAT_BYTES
    along, across = DEPTH * FLOAT_BYTES, LANES * FLOAT_BYTES
    for n in range(LANES * DEPTH):
        put_float(block + n * FLOAT_BYTES, ZERO)
    for i in range(outer):
        for k in range(depth):
            place = i * along + k * FLOAT_BYTES if is_along else k * across + i * FLOAT_BYTES
            put_float(block + place, float_at(source + i * outer_step + k * deep_step))
    return block, along if is_along else across


# --- Tiles ---


@compiled
def tile(
    unit: int,
    segments: Array,
    rows: int,
    columns: int,
    depth: int,
    left: int,
    right: int,
    init: int,
    init_step: int,
    to: int,
    to_step: int,
    base: int,
) -> None:
    """to = init + left @ right, for a strip of rows and one of columns that are packed.

    `init` may be `to` itself, or a row for all (init_step 0), which must have WIDTH floats. segments is an array [0].
    """
    is_whole = columns % LANES == 0 and (unit == FLOAT32 or rows % LANES == 0)
    out, out_step = (to, to_step) if is_whole else (base + _EDGE, RIGHT_STEP)
    if not is_whole and init_step:
        copy(init, init_step, out, out_step, rows, columns)
        init, init_step = out, out_step
    vectors = (columns + LANES - 1) // LANES
    if unit == FLOAT32:
        _float32_tile(
            rows,
            vectors,
            segments,
            1,
            depth,
            tiles.pointer_at(left),
            tiles.pointer_at(right),
            WIDTH,
            tiles.pointer_at(init),
            init_step // FLOAT_BYTES,
            tiles.pointer_at(out),
            out_step // FLOAT_BYTES,
        )
    elif unit == AMX_FLOAT32:
        _sliced_tile((rows + LANES - 1) // LANES, vectors, _blocks(depth), left, right, init, init_step, out, out_step)
    elif unit == AMX:
        _amx_tile((rows + LANES - 1) // LANES, vectors, _blocks(depth), left, right, init, init_step, out, out_step)
    else:
        _avx_tile((rows + LANES - 1) // LANES, vectors, _blocks(depth), left, right, init, init_step, out, out_step)
    if not is_whole:
        copy(out, out_step, to, to_step, rows, columns)


@compiled
def copy(source: int, source_step: int, to: int, to_step: int, rows: int, columns: int) -> None:
    """Copy a matrix of contiguous rows."""
    for i in range(rows):
        for j in range(columns):
            put_float(to + i * to_step + j * FLOAT_BYTES, float_at(source + i * source_step + j * FLOAT_BYTES))


@compiled
def _avx_tile(
    rows: int, columns: int, blocks: int, a: int, b: int, init: int, init_step: int, to: int, to_step: int
) -> None:
    """`rows` x `columns` tiles, 1 or 2 each."""
    for half in range(2 * rows):
        row = bfloat16_tiles.HALF * half
        left = a + row * ROW_BYTES
        if columns == 2:
            _avx_2(blocks, left, b, init + row * init_step, init_step, to + row * to_step, to_step)
        else:
            _avx_1(blocks, left, b, init + row * init_step, init_step, to + row * to_step, to_step)


@compiled
def _amx_blocks(
    rows: int, columns: int, blocks: int, a: int, b: int, init: int, init_step: int, to: int, to_step: int
) -> None:
    """`rows` x `columns` tiles, 1 or 2 each."""
    if rows == 2:
        if columns == 2:
            _amx_22(blocks, a, b, init, init_step, to, to_step)
        else:
            _amx_21(blocks, a, b, init, init_step, to, to_step)
    elif columns == 2:
        _amx_12(blocks, a, b, init, init_step, to, to_step)
    else:
        _amx_11(blocks, a, b, init, init_step, to, to_step)


@compiled
def _sliced_blocks(
    rows: int, columns: int, blocks: int, a: int, b: int, init: int, init_step: int, to: int, to_step: int
) -> None:
    """`rows` x `columns` tiles, 1 or 2 each."""
    if rows == 2:
        if columns == 2:
            _sliced_22(blocks, a, b, init, init_step, to, to_step)
        else:
            _sliced_21(blocks, a, b, init, init_step, to, to_step)
    elif columns == 2:
        _sliced_12(blocks, a, b, init, init_step, to, to_step)
    else:
        _sliced_11(blocks, a, b, init, init_step, to, to_step)


@compiled
def _nothing(address: int = 0) -> None:
    """What a CPU without AMX does instead: no code for AMX may be generated for it."""


_amx_tile = _amx_blocks if bfloat16_tiles.HAS_AMX else _avx_tile
_sliced_tile = _sliced_blocks if bfloat16_tiles.HAS_AMX else _avx_tile
_configure = bfloat16_tiles.configure if bfloat16_tiles.HAS_AMX else _nothing
_release = bfloat16_tiles.release if bfloat16_tiles.HAS_AMX else _nothing
