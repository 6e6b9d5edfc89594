"""Strips of packed operands and tiles of their product, the same on every unit that can compute one.

A product is made of strips: some rows of the left operand, WIDTH columns of the right one, each packed so that a tile
of the result reads both front to back. Those of FLOAT32 are here, all others in `blocks`.

A sum's bits depend on the unit and on the depth, the number of products that it adds up; neither on the tile that it is
in nor on where the arrays lie. All functions take addresses and steps in bytes; other sizes count elements.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from worker.autodiff.kernels import blocks, tiles
from worker.autodiff.kernels.approximations import ZERO
from worker.autodiff.kernels.bfloat16_tiles import LANES, NUM_REGISTERS, ROW_BYTES
from worker.autodiff.kernels.codegen import FLOAT, long, pointer_to, transposed
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import float_at, intrinsic, put_float
from worker.autodiff.kernels.operands import FLOAT_BYTES, Array, Bytes
from worker.autodiff.kernels.units import AMX, FLOAT32

WIDTH = 32  # columns of a strip
ROWS_FLOAT32, ROWS_BFLOAT16 = 14, 32  # rows of a strip, at most
LEFT_STEP, RIGHT_STEP = ROWS_FLOAT32 * FLOAT_BYTES, WIDTH * FLOAT_BYTES  # of one number along the depth, in float32
LANE_BYTES = LANES * FLOAT_BYTES
SLACK_BYTES = LANE_BYTES  # a vector is written whole, beyond what is meant
NUMBER_BYTES = 6  # that a packed number takes, at most: three slices

# A workspace begins with the shape of AMX's registers, a row of zeros, and room for a block and a tile that have edges.
ZEROS = ROW_BYTES
_BLOCK = ZEROS + WIDTH * FLOAT_BYTES
_EDGE = _BLOCK + blocks.ROOM_BYTES
FIXED_BYTES = _EDGE + WIDTH * WIDTH * FLOAT_BYTES
_PALETTE = 1

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
    return LEFT_STEP * depth if unit == FLOAT32 else blocks.num_bytes(unit, depth)


@compiled
def right_bytes(unit: int, depth: int) -> int:
    """Bytes of a packed strip of columns: how far behind its beginning the numbers from `depth` on lie."""
    return RIGHT_STEP * depth if unit == FLOAT32 else blocks.num_bytes(unit, depth)


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
        for register in range(NUM_REGISTERS):
            memory[at + 16 + 2 * register] = ROW_BYTES
            memory[at + 48 + register] = LANES
        blocks.configure(base)
    return base


@compiled
def finish(unit: int) -> None:
    """Give the unit back."""
    if unit >= AMX:
        blocks.release()


# --- Packing ---


@compiled
def pack_left(unit: int, a: int, row_step: int, deep_step: int, rows: int, depth: int, to: int, base: int) -> None:
    """Pack a strip of rows; row_step or deep_step is that of contiguous floats."""
    if unit != FLOAT32:
        blocks.pack(unit, a, row_step, deep_step, rows, depth, deep_step != FLOAT_BYTES, to, base + _BLOCK)
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
        blocks.pack(unit, b, column_step, deep_step, columns, depth, deep_step == FLOAT_BYTES, to, base + _BLOCK)
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
def pack(
    unit: int, is_left: bool, source: int, outer_step: int, deep_step: int, outer: int, depth: int, to: int, base: int
) -> None:
    """Pack a strip of either operand."""
    if is_left:
        pack_left(unit, source, outer_step, deep_step, outer, depth, to, base)
    else:
        pack_right(unit, source, outer_step, deep_step, outer, depth, to, base)


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
    if unit == FLOAT32:
        _float32_tile(
            rows,
            (columns + LANES - 1) // LANES,
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
    else:
        blocks.tile(unit, rows, columns, depth, left, right, init, init_step, out, out_step)
    if not is_whole:
        copy(out, out_step, to, to_step, rows, columns)


@compiled
def copy(source: int, source_step: int, to: int, to_step: int, rows: int, columns: int) -> None:
    """Copy a matrix of contiguous rows."""
    for i in range(rows):
        for j in range(columns):
            put_float(to + i * to_step + j * FLOAT_BYTES, float_at(source + i * source_step + j * FLOAT_BYTES))
