"""Products of all rows with a side: as many columns, packed, as stay in the second-level cache; of one pass.

`ordinary` packs first and multiplies then; `packing` does both at once, for AMX has gaps between its instructions.
Both compute c = first_row + a @ b, or c += a @ b where first_row is 0: the address of a row, which is a bias for each
column or zeros for any. Addresses and steps are in bytes, the rest counts elements.
"""

from __future__ import annotations

from worker.autodiff.kernels import blocks, strips
from worker.autodiff.kernels.bfloat16_tiles import BLOCK_BYTES, DEPTH, LANES
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.operands import FLOAT_BYTES, Array
from worker.autodiff.kernels.strips import WIDTH
from worker.autodiff.kernels.units import AMX_FLOAT32

FEW_STRIPS = 4  # of rows: so few stay packed, and columns go by
PART = 64  # of the depth that is packed for all strips in turn, where they lie side by side in the rows of a matrix


@compiled
def ordinary(
    unit: int,
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
    first_row: int,
    has_bias: bool,
    left: int,
    right: int,
    base: int,
    segments: Array,
    chunk: int,
    is_packed: bool,
) -> None:
    """Pack all columns, then `chunk` strips of rows at a time; `is_packed`: all rows are, by a side before."""
    left_bytes, right_bytes = strips.left_bytes(unit, depth), strips.right_bytes(unit, depth)
    num_strips = strips.num_strips(unit, rows)
    _pack_columns(unit, columns, depth, b, b_column, b_deep, right, base)
    for top in range(0, num_strips, chunk):
        end = min(top + chunk, num_strips)
        if not is_packed:
            _pack_rows(unit, top, end, rows, depth, a, a_row, a_deep, left, base)
        for strip in range(top, end):
            start, end_row = strips.strip_start(unit, strip, rows), strips.strip_start(unit, strip + 1, rows)
            for j in range(0, columns, WIDTH):
                to = c + start * c_row + j * FLOAT_BYTES
                init, init_step = _init(to, c_row, first_row, has_bias, j)
                strips.tile(
                    unit,
                    segments,
                    end_row - start,
                    min(WIDTH, columns - j),
                    depth,
                    left + (strip - top) * left_bytes,
                    right + j // WIDTH * right_bytes,
                    init,
                    init_step,
                    to,
                    c_row,
                    base,
                )


@compiled
def packing(
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
    first_row: int,
    has_bias: bool,
    left: int,
    right: int,
    base: int,
    segments: Array,
) -> None:
    """The same on AMX_FLOAT32: a tile packs half of a strip that is needed soon, as far as blocks are whole.

    The first strips of rows go along the columns together, all of them if these are few, and pack the strip of columns
    after theirs. Then rows go by, and a strip's first two tiles pack the one after it. Columns that lie across memory
    are packed before, line by line: strip by strip, their lines would be read again and again.
    """
    strip_bytes, whole = strips.left_bytes(AMX_FLOAT32, depth), depth // DEPTH * DEPTH
    num_rows, num_columns = (rows + WIDTH - 1) // WIDTH, (columns + WIDTH - 1) // WIDTH
    first, strips_right = 2, num_columns
    if b_deep != FLOAT_BYTES:
        first = 0
    elif num_rows <= FEW_STRIPS:
        first, strips_right = num_rows, 2
    strips_left = max(first, 1) + 1
    _pack_rows(AMX_FLOAT32, 0, max(first, 1), rows, depth, a, a_row, a_deep, left, base)
    _pack_columns(AMX_FLOAT32, min(WIDTH, columns) if first else columns, depth, b, b_column, b_deep, right, base)
    for n in range(num_rows * num_columns):
        if n < first * num_columns:
            i, j = n % first, n // first
            turn, num_turns = i, first
            is_left = j + 1 == num_columns
            strip = first if is_left else j + 1
        else:
            i, j = n // num_columns, n % num_columns
            turn, num_turns, is_left, strip = j, num_columns, True, i + 1
        if is_left:
            source, outer_step, deep_step, to = a, a_row, a_deep, left + strip % strips_left * strip_bytes
        else:
            source, outer_step, deep_step, to = b, b_column, b_deep, right + strip % strips_right * strip_bytes
        height, width = min(WIDTH, rows - i * WIDTH), min(WIDTH, columns - j * WIDTH)
        left_strip, right_strip = left + i % strips_left * strip_bytes, right + j % strips_right * strip_bytes
        at = c + i * WIDTH * c_row + j * WIDTH * FLOAT_BYTES
        init, init_step = _init(at, c_row, first_row, has_bias, j * WIDTH)
        done = 0
        for half in range(turn, 2, num_turns):
            outer = strip * WIDTH + half * LANES
            count = min((rows if is_left else columns) - outer, LANES)
            start, place = source + outer * outer_step, to + half * BLOCK_BYTES
            packed = 0
            if half == turn and whole and count == LANES and height == width == WIDTH:
                blocks.packing_tile(
                    is_left,
                    whole,
                    left_strip,
                    right_strip,
                    init,
                    init_step,
                    at,
                    c_row,
                    start,
                    outer_step,
                    deep_step,
                    place,
                )
                init, init_step = at, c_row
                done = packed = whole
            if count > 0 and packed < depth:
                start, place = start + packed * deep_step, place + strips.left_bytes(AMX_FLOAT32, packed)
                strips.pack(AMX_FLOAT32, is_left, start, outer_step, deep_step, count, depth - packed, place, base)
        if done < depth:
            skipped = strips.left_bytes(AMX_FLOAT32, done)
            strips.tile(
                AMX_FLOAT32,
                segments,
                height,
                width,
                depth - done,
                left_strip + skipped,
                right_strip + skipped,
                init,
                init_step,
                at,
                c_row,
                base,
            )


@compiled
def _init(at: int, c_row: int, first_row: int, has_bias: bool, column: int) -> tuple[int, int]:
    """Where a tile's sums begin, and the step from row to row: at the first row, or at what is there."""
    if first_row:
        return first_row + (column * FLOAT_BYTES if has_bias else 0), 0
    return at, c_row


@compiled
def _pack_columns(
    unit: int, columns: int, depth: int, b: int, b_column: int, b_deep: int, packed: int, base: int
) -> None:
    """Pack all of them."""
    part = _part(b_deep, depth)
    for k in range(0, depth, part):
        deep = min(part, depth - k)
        for j in range(0, columns, WIDTH):
            to = packed + j // WIDTH * strips.right_bytes(unit, depth) + strips.right_bytes(unit, k)
            count = min(WIDTH, columns - j)
            strips.pack_right(unit, b + j * b_column + k * b_deep, b_column, b_deep, count, deep, to, base)


@compiled
def _pack_rows(
    unit: int, top: int, end: int, rows: int, depth: int, a: int, a_row: int, a_deep: int, packed: int, base: int
) -> None:
    """Pack strips `top` to `end`."""
    part = _part(a_deep, depth)
    for k in range(0, depth, part):
        deep = min(part, depth - k)
        for strip in range(top, end):
            first, last = strips.strip_start(unit, strip, rows), strips.strip_start(unit, strip + 1, rows)
            to = packed + (strip - top) * strips.left_bytes(unit, depth) + strips.left_bytes(unit, k)
            strips.pack_left(unit, a + first * a_row + k * a_deep, a_row, a_deep, last - first, deep, to, base)


@compiled
def _part(deep_step: int, depth: int) -> int:
    """How much of the depth is packed strip by strip, so that memory is read front to back."""
    return depth if deep_step == FLOAT_BYTES else PART
