"""Products of float32 matrices, in float32 or with operands rounded to bfloat16, out of strips and tiles.

The dimension that is summed over is cut into passes, at places that depend on nothing else, and the columns of a pass
into `sides`.

Shapes: M rows, N columns, K the dimension summed over. Addresses and steps are in bytes, the rest counts elements.
"""

from __future__ import annotations

import numpy as np

from worker.autodiff.kernels import operands, sides, strips
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import float_at, put_float
from worker.autodiff.kernels.operands import FLOAT_BYTES, Array, Bytes
from worker.autodiff.kernels.strips import WIDTH
from worker.autodiff.kernels.units import AMX_FLOAT32

# Numbers along the dimension summed over in a pass, at most, by unit. A strip of float32 rows has 21 KB then and stays
# in the first-level cache; AMX is fast enough from the second.
PASSES = (384, 1024, 1024, 512)
ALIGNMENT = 32  # passes begin at multiples of it
# Of what is packed at a time. Columns stay in the second-level cache, and rows go by. Where all rows are little, and
# all columns are not, rows stay, and a few columns at a time go by. Where rows are packed before: if these columns are
# all, rows are read once, and a few stay in that cache too; more if they lie across memory, so that what comes with a
# number serves.
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
    few_columns = rows_stay and unit != AMX_FLOAT32
    reach = max((FEW_BYTES if few_columns else RIGHT_BYTES) // right_bytes, 2) * WIDTH
    total = (columns + WIDTH - 1) // WIDTH
    num_sides = (total * WIDTH + reach - 1) // reach
    reach = (total + num_sides - 1) // num_sides * WIDTH  # sides of about one size
    once = ALONG_BYTES if a_deep == FLOAT_BYTES else ACROSS_BYTES
    chunk = max((once if columns <= reach else LEFT_BYTES) // left_bytes, 1)
    left = packed + min(reach // WIDTH, total) * right_bytes
    for side in range(0, columns, reach):
        count, at = min(reach, columns - side), c + side * FLOAT_BYTES
        first = first_row + side * FLOAT_BYTES if first_row and has_bias else first_row
        first_column = b + side * b_column
        if unit == AMX_FLOAT32:
            sides.packing(
                rows,
                count,
                depth,
                a,
                a_row,
                a_deep,
                first_column,
                b_column,
                b_deep,
                at,
                c_row,
                first,
                has_bias,
                left,
                packed,
                base,
                segments,
            )
        else:
            sides.ordinary(
                unit,
                rows,
                count,
                depth,
                a,
                a_row,
                a_deep,
                first_column,
                b_column,
                b_deep,
                at,
                c_row,
                first,
                has_bias,
                left,
                packed,
                base,
                segments,
                chunk,
                side > 0 and num_strips <= chunk,
            )
