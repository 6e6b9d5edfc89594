"""Products of float32 matrices, in float32 or with operands rounded to bfloat16, out of strips and tiles.

The dimension that is summed over is cut into passes, at places that depend on nothing else. In a pass as much of the
right operand is packed as stays in the second-level cache, and strip after strip of the left one goes over these
columns, before the next ones are packed. On AMX_FLOAT32 a strip is packed while that before it is multiplied.

Shapes: M rows, N columns, K the dimension summed over. Addresses and steps are in bytes, the rest counts elements.
"""

from __future__ import annotations

import numpy as np

from worker.autodiff.kernels import blocks, operands, strips
from worker.autodiff.kernels.bfloat16_tiles import BLOCK_BYTES, LANES
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import float_at, put_float
from worker.autodiff.kernels.operands import FLOAT_BYTES, Array, Bytes
from worker.autodiff.kernels.strips import WIDTH
from worker.autodiff.kernels.units import AMX_FLOAT32

# Numbers along the dimension summed over in a pass, at most, by unit. A strip of float32 rows has 21 KB then and stays
# in the first-level cache; AMX is fast enough from the second.
PASSES = (384, 1024, 1024, 512)
ALIGNMENT = 32  # passes begin at multiples of it
PART = 64  # of the depth that is packed for all strips in turn, where they lie side by side in the rows of a matrix
# Of what is packed at a time. Columns stay in the second-level cache, and rows go by. Where all rows are little, and
# all columns are not, rows stay, and a few columns at a time go by. Where rows are not packed strip by strip: if these
# columns are all, rows are read once, and a few stay in that cache too; more if they lie across memory, so that what
# comes with a number serves.
RIGHT_BYTES, LEFT_BYTES = 5 << 18, 1 << 22
ALONG_BYTES, ACROSS_BYTES = 200 << 10, 1 << 21
LITTLE_BYTES, MUCH_BYTES, FEW_BYTES = 1 << 19, 5 << 17, 5 << 16


def product(unit: int, a: Array, b: Array, out: Array | None = None, bias: Array | None = None) -> Array:
    """a (..., M, K) @ b (..., K, N) + bias (N,), all float32, into `out` (..., M, N) where given.

    `unit` is one of `units`, and available. Views are not copied if their rows or their columns are contiguous.
    """
    return operands.multiply(_LOOPS[unit], a, b, out, bias)


def _loop_on(unit: int) -> operands.Loop:
    def loop(outer_batch: int, inner_batch: int, rows: int, columns: int, depth: int, *places: int) -> None:
        size = min(depth, PASSES[unit]) + ALIGNMENT
        strip = WIDTH * size * strips.NUMBER_BYTES
        left = min((rows + WIDTH) * size * strips.NUMBER_BYTES, LEFT_BYTES + 2 * strip)
        right = min((columns + WIDTH) * size * strips.NUMBER_BYTES, RIGHT_BYTES + 2 * strip)
        first_row = (columns + 2 * WIDTH) * FLOAT_BYTES
        needed = strips.FIXED_BYTES + first_row + left + right + strips.SLACK_BYTES
        _product(unit, outer_batch, inner_batch, rows, columns, depth, *places, operands.memory(needed))

    return loop


_LOOPS = [_loop_on(unit) for unit in range(len(PASSES))]


@compiled
def _product(
    unit: int,
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
    base = strips.prepare(unit, memory)
    segments = np.zeros(1, np.int64)
    first_row = base + strips.ZEROS
    packed = base + strips.FIXED_BYTES
    if bias:  # a copy that may be read beyond its end
        first_row, packed = packed, packed + (columns + WIDTH) // 16 * 16 * FLOAT_BYTES
        for j in range(columns):
            put_float(first_row + j * FLOAT_BYTES, float_at(bias + j * FLOAT_BYTES))
    num_passes = (depth + PASSES[unit] - 1) // PASSES[unit]
    step = ((depth + num_passes - 1) // num_passes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    for i in range(outer_batch):
        for j in range(inner_batch):
            for start in range(0, depth, step):
                _pass(
                    unit,
                    rows,
                    columns,
                    min(step, depth - start),
                    a + i * a_outer + j * a_inner + start * a_deep,
                    a_row,
                    a_deep,
                    b + i * b_outer + j * b_inner + start * b_deep,
                    b_column,
                    b_deep,
                    c + i * c_outer + j * c_inner,
                    c_row,
                    first_row if start == 0 else 0,
                    bias != 0,
                    packed,
                    base,
                    segments,
                )
    strips.finish(unit)


@compiled
def _pass(
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
    packed: int,
    base: int,
    segments: Array,
) -> None:
    """c = first_row + a @ b; without a first row, c += a @ b."""
    left_bytes, right_bytes = strips.left_bytes(unit, depth), strips.right_bytes(unit, depth)
    num_strips = strips.num_strips(unit, rows)
    rows_stay = num_strips * left_bytes <= LITTLE_BYTES and columns // WIDTH * right_bytes > MUCH_BYTES
    reach = max((FEW_BYTES if rows_stay else RIGHT_BYTES) // right_bytes, 2) * WIDTH
    total = (columns + WIDTH - 1) // WIDTH
    num_sides = (total * WIDTH + reach - 1) // reach
    reach = (total + num_sides - 1) // num_sides * WIDTH  # sides of about one size
    columns_move = unit == AMX_FLOAT32 and rows_stay
    if columns_move:
        reach = total * WIDTH
    once = ALONG_BYTES if a_deep == FLOAT_BYTES else ACROSS_BYTES
    chunk = max((once if columns <= reach else LEFT_BYTES) // left_bytes, 1)
    left = packed + (2 if columns_move else min(reach // WIDTH, total)) * right_bytes
    for side in range(0, columns, reach):
        count, at = min(reach, columns - side), c + side * FLOAT_BYTES
        first = first_row + side * FLOAT_BYTES if first_row and has_bias else first_row
        source, outer_step, deep_step = a, a_row, a_deep
        if columns_move:
            source, outer_step, deep_step = b, b_column, b_deep
            _pack_rows(unit, 0, num_strips, rows, depth, a, a_row, a_deep, left, base)
        else:
            _pack_columns(unit, count, depth, b + side * b_column, b_column, b_deep, packed, base)
        if unit == AMX_FLOAT32:
            _pass_by(
                unit,
                not columns_move,
                rows,
                count,
                depth,
                source,
                outer_step,
                deep_step,
                at,
                c_row,
                first,
                has_bias,
                left,
                packed,
                base,
                segments,
            )
            continue
        for top in range(0, num_strips, chunk):
            end = min(top + chunk, num_strips)
            if side == 0 or num_strips > chunk:
                _pack_rows(unit, top, end, rows, depth, a, a_row, a_deep, left, base)
            for strip in range(top, end):
                start, end_row = strips.strip_start(unit, strip, rows), strips.strip_start(unit, strip + 1, rows)
                for j in range(0, count, WIDTH):
                    to = at + start * c_row + j * FLOAT_BYTES
                    init, init_step = _init(to, c_row, first, has_bias, j)
                    strips.tile(
                        unit,
                        segments,
                        end_row - start,
                        min(WIDTH, count - j),
                        depth,
                        left + (strip - top) * left_bytes,
                        packed + j // WIDTH * right_bytes,
                        init,
                        init_step,
                        to,
                        c_row,
                        base,
                    )


@compiled
def _pass_by(
    unit: int,
    rows_move: bool,
    rows: int,
    columns: int,
    depth: int,
    source: int,
    outer_step: int,
    deep_step: int,
    c: int,
    c_row: int,
    first_row: int,
    has_bias: bool,
    left: int,
    right: int,
    base: int,
    segments: Array,
) -> None:
    """Multiply strips of one operand, the source, by all of the other one, which is packed, on AMX_FLOAT32.

    The two halves of a strip are packed by the first two whole tiles of that before it, as far as blocks are whole.
    """
    num_rows, num_columns = (rows + WIDTH - 1) // WIDTH, (columns + WIDTH - 1) // WIDTH
    size, num_strips, num_others = (rows, num_rows, num_columns) if rows_move else (columns, num_columns, num_rows)
    strip_bytes, whole = strips.left_bytes(unit, depth), depth // ALIGNMENT * ALIGNMENT
    moving = left if rows_move else right
    strips.pack(unit, rows_move, source, outer_step, deep_step, min(WIDTH, size), depth, moving, base)
    for n in range(num_strips):
        following, to = (n + 1) * WIDTH, moving + (n + 1) % 2 * strip_bytes
        next_strip = source + following * outer_step
        fits = whole > 0 and following + WIDTH <= size
        num_halves = 0  # of the next strip that are packed
        for m in range(num_others):
            i, j = (n, m) if rows_move else (m, n)
            height, width = min(WIDTH, rows - i * WIDTH), min(WIDTH, columns - j * WIDTH)
            a = left + (n % 2 if rows_move else i) * strip_bytes
            b = right + (j if rows_move else n % 2) * strip_bytes
            at = c + i * WIDTH * c_row + j * WIDTH * FLOAT_BYTES
            init, init_step = _init(at, c_row, first_row, has_bias, j * WIDTH)
            done = 0
            if fits and num_halves < 2 and height == WIDTH and width == WIDTH:
                half = next_strip + num_halves * LANES * outer_step
                place = to + num_halves * BLOCK_BYTES
                blocks.packing_tile(
                    rows_move, whole, a, b, init, init_step, at, c_row, half, outer_step, deep_step, place
                )
                init, init_step = at, c_row
                num_halves, done = num_halves + 1, whole
            if done < depth:
                skipped, deep = strips.left_bytes(unit, done), depth - done
                strips.tile(
                    unit, segments, height, width, deep, a + skipped, b + skipped, init, init_step, at, c_row, base
                )
        start = whole if num_halves == 2 else 0
        if following < size and start < depth:
            first, place = next_strip + start * deep_step, to + strips.left_bytes(unit, start)
            count = min(WIDTH, size - following)
            strips.pack(unit, rows_move, first, outer_step, deep_step, count, depth - start, place, base)


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
