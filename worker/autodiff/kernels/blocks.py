"""Packed operands and tiles of their product on the units that multiply bfloat16, in blocks: see `bfloat16_tiles`.

Operands are rounded, or cut into slices, as they are packed. All functions take addresses and steps in bytes; other
sizes count elements. `room` is that of as many floats as a block has numbers.
"""

from __future__ import annotations

from worker.autodiff.kernels import bfloat16_tiles, slices
from worker.autodiff.kernels.approximations import ZERO
from worker.autodiff.kernels.bfloat16_tiles import BLOCK_BYTES, DEPTH, LANES, ROW_BYTES
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import float_at, put_float
from worker.autodiff.kernels.operands import FLOAT_BYTES
from worker.autodiff.kernels.units import AMX, AMX_FLOAT32

ROOM_BYTES = LANES * DEPTH * FLOAT_BYTES

_avx_1, _avx_2 = bfloat16_tiles.make_avx_tile(1), bfloat16_tiles.make_avx_tile(2)
_amx_11, _amx_12 = bfloat16_tiles.make_amx_tile(1, 1), bfloat16_tiles.make_amx_tile(1, 2)
_amx_21, _amx_22 = bfloat16_tiles.make_amx_tile(2, 1), bfloat16_tiles.make_amx_tile(2, 2)
_along, _along_turned = bfloat16_tiles.make_pack(True, False), bfloat16_tiles.make_pack(True, True)
_across, _across_turned = bfloat16_tiles.make_pack(False, False), bfloat16_tiles.make_pack(False, True)
_sliced_11, _sliced_12 = (bfloat16_tiles.make_amx_tile(1, n, slices.TERMS) for n in (1, 2))
_sliced_21, _sliced_22 = (bfloat16_tiles.make_amx_tile(2, n, slices.TERMS) for n in (1, 2))
_slice_along, _slice_along_turned = slices.make_pack(True, False), slices.make_pack(True, True)
_slice_across, _slice_across_turned = slices.make_pack(False, False), slices.make_pack(False, True)

_packing_along = bfloat16_tiles.make_packing_tile(slices.TERMS, slices.packing(True, False))
_packing_along_turned = bfloat16_tiles.make_packing_tile(slices.TERMS, slices.packing(True, True))
_packing_across_turned = bfloat16_tiles.make_packing_tile(slices.TERMS, slices.packing(False, True))


@compiled
def num_bytes(unit: int, depth: int) -> int:
    """Bytes of 32 packed rows or columns: how far behind their beginning the numbers from `depth` on lie."""
    size: int = _num_slices(unit) * 2 * _num_blocks(depth) * BLOCK_BYTES
    return size


@compiled
def _num_slices(unit: int) -> int:
    return slices.NUM_SLICES if unit == AMX_FLOAT32 else 1


@compiled
def _num_blocks(depth: int) -> int:
    return (depth + DEPTH - 1) // DEPTH


# --- Packing ---


@compiled
def pack(
    unit: int,
    source: int,
    outer_step: int,
    deep_step: int,
    outer: int,
    depth: int,
    is_turned: bool,
    packed: int,
    room: int,
) -> None:
    """Round or slice outer x depth floats and write them as pairs of blocks; edges hold zeros."""
    is_along = deep_step == FLOAT_BYTES
    step, pair = outer_step if is_along else deep_step, 2 * _num_slices(unit) * BLOCK_BYTES
    for i in range(0, outer, LANES):
        to = packed + i // LANES * BLOCK_BYTES
        for k in range(0, depth, DEPTH):
            at, at_step = source + i * outer_step + k * deep_step, step
            if outer - i < LANES or depth - k < DEPTH:
                at, at_step = _with_edge(at, outer_step, deep_step, min(LANES, outer - i), min(DEPTH, depth - k), room)
            if unit == AMX_FLOAT32:
                _slice_block(at, at_step, 2 * LANES * outer_step, is_along, is_turned, to)
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
def _slice_block(source: int, step: int, ahead: int, is_along: bool, is_turned: bool, to: int) -> None:
    if is_along:
        if is_turned:
            _slice_along_turned(source, step, ahead, to)
        else:
            _slice_along(source, step, ahead, to)
    elif is_turned:
        _slice_across_turned(source, step, ahead, to)
    else:
        _slice_across(source, step, ahead, to)


@compiled
def _with_edge(source: int, outer_step: int, deep_step: int, outer: int, depth: int, room: int) -> tuple[int, int]:
    """A copy of a part of a block with zeros around it, and its step."""
    is_along = deep_step == FLOAT_BYTES
    length, count, step = (DEPTH, LANES, outer_step) if is_along else (LANES, DEPTH, deep_step)
    given, rows = (depth, outer) if is_along else (outer, depth)
    for row in range(count):
        there = given if row < rows else 0
        to, at = room + row * length * FLOAT_BYTES, source + row * step
        for n in range(there):
            put_float(to + n * FLOAT_BYTES, float_at(at + n * FLOAT_BYTES))
        for n in range(there, length):
            put_float(to + n * FLOAT_BYTES, ZERO)
    return room, length * FLOAT_BYTES


# --- Tiles ---


@compiled
def tile(
    unit: int, rows: int, columns: int, depth: int, a: int, b: int, init: int, init_step: int, to: int, to_step: int
) -> None:
    """to = init + a @ b, for packed rows and columns, up to 32 each, of which whole vectors are written."""
    height, width, blocks = (rows + LANES - 1) // LANES, (columns + LANES - 1) // LANES, _num_blocks(depth)
    if unit == AMX_FLOAT32:
        _sliced_tile(height, width, blocks, a, b, init, init_step, to, to_step)
    elif unit == AMX:
        _amx_tile(height, width, blocks, a, b, init, init_step, to, to_step)
    else:
        _avx_tile(height, width, blocks, a, b, init, init_step, to, to_step)


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
def _packing_blocks(
    is_left: bool,
    depth: int,
    a: int,
    b: int,
    init: int,
    init_step: int,
    to: int,
    to_step: int,
    source: int,
    outer_step: int,
    deep_step: int,
    packed: int,
) -> None:
    """A whole tile of slices; meanwhile the half of a strip at `source`, as deep, is packed.

    `depth` is a multiple of DEPTH. It is a strip of the left operand, or of a right one that lies along the depth.
    """
    blocks, deep, ahead = depth // DEPTH, DEPTH * deep_step, 2 * LANES * outer_step
    if deep_step == FLOAT_BYTES:
        if is_left:
            _packing_along(blocks, a, b, init, init_step, to, to_step, source, outer_step, deep, ahead, packed)
        else:
            _packing_along_turned(blocks, a, b, init, init_step, to, to_step, source, outer_step, deep, ahead, packed)
    else:
        _packing_across_turned(blocks, a, b, init, init_step, to, to_step, source, deep_step, deep, ahead, packed)


@compiled
def _nothing(*_: int) -> None:
    """What a CPU without AMX does instead: no code for AMX may be generated for it."""


_amx_tile = _amx_blocks if bfloat16_tiles.HAS_AMX else _avx_tile
_sliced_tile = _sliced_blocks if bfloat16_tiles.HAS_AMX else _avx_tile
packing_tile = _packing_blocks if bfloat16_tiles.HAS_AMX else _nothing
configure = bfloat16_tiles.configure if bfloat16_tiles.HAS_AMX else _nothing
release = bfloat16_tiles.release if bfloat16_tiles.HAS_AMX else _nothing
