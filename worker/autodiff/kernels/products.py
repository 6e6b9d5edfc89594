"""Products of float32 matrices, in float32 or with operands rounded to bfloat16, out of strips and tiles.

The dimension that is summed over is cut into passes, at places that depend on nothing else, and the columns of a pass
into `sides`.

Shapes: M rows, N columns, K the dimension summed over. Addresses and steps are in bytes, the rest counts elements.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.autodiff.kernels import operands, sides, strips
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import float_at, put_float
from worker.autodiff.kernels.operands import FLOAT_BYTES, Array, Bytes, address_of
from worker.autodiff.kernels.strips import WIDTH
from worker.autodiff.kernels.units import AMX_FLOAT32

# Numbers along the dimension summed over in a pass, at most, by unit. A strip of float32 rows has 21 KB then and stays
# in the first-level cache; AMX is fast enough from the second.
PASSES = (384, 1024, 1024, 512)
ALIGNMENT = 32  # passes begin at multiples of it
# Of what is packed at a time. Columns stay in the second-level cache, and rows go by. Where operands are packed first:
# if all rows are little, and all columns are not, rows stay, and a few columns at a time go by; if these columns are
# all, rows are read once, and a few stay in that cache too, more if they lie across memory, so that what comes with a
# number serves.
RIGHT_BYTES, LEFT_BYTES = 5 << 18, 1 << 22
ALONG_BYTES, ACROSS_BYTES = 200 << 10, 1 << 21
LITTLE_BYTES, MUCH_BYTES, FEW_BYTES = 1 << 19, 5 << 17, 5 << 16


@dataclass(frozen=True)
class _Plan:
    """What products of operands that lie alike have in common, see operands.layout_of."""

    shape: tuple[int, ...]  # of the result
    layout: Array | None  # unit, sizes and steps
    num_bytes: int = 0  # of workspace


MOST_PLANS = 1 << 12  # that are kept
_plans: dict[Any, _Plan] = {}


def product(unit: int, a: Array, b: Array, out: Array | None = None, bias: Array | None = None) -> Array:
    """a (..., M, K) @ b (..., K, N) + bias (N,), all float32, into `out` (..., M, N) where given.

    `unit` is one of `units`, and available. Views are not copied if their rows or their columns are contiguous.
    """
    key = unit, a.shape, a.strides, b.shape, b.strides, None if out is None else out.strides
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        plan = _plans[key] = _plan(unit, a, b, out)
    if out is None:
        out = np.empty(plan.shape, np.float32)
    if plan.layout is None:
        return operands.indirectly(functools.partial(product, unit), a, b, out, bias)
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    _product(
        plan.layout,
        address_of(a),
        address_of(b),
        address_of(out),
        0 if bias is None else address_of(bias),
        operands.memory(plan.num_bytes),
    )
    return out


def _plan(unit: int, a: Array, b: Array, out: Array | None) -> _Plan:
    if out is None:
        leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = np.empty((*leading, a.shape[-2], b.shape[-1]), np.float32)
    layout = operands.layout_of(a, b, out)
    if layout is None:
        return _Plan(out.shape, None)
    rows, columns, depth = layout[2:5]
    size = min(depth, PASSES[unit]) + ALIGNMENT
    strip = WIDTH * size * strips.NUMBER_BYTES
    left = min((rows + WIDTH) * size * strips.NUMBER_BYTES, LEFT_BYTES + 2 * strip)
    right = min((columns + WIDTH) * size * strips.NUMBER_BYTES, RIGHT_BYTES + 2 * strip)
    first_row = (columns + 2 * WIDTH) * FLOAT_BYTES
    num_bytes = strips.FIXED_BYTES + first_row + left + right + strips.SLACK_BYTES
    return _Plan(out.shape, np.array((unit, *layout), np.int64), num_bytes)


@compiled
def _product(layout: Array, a: int, b: int, c: int, bias: int, memory: Bytes) -> None:
    """The operands' addresses, and that of the bias or 0."""
    unit, outer_batch, inner_batch = layout[0], layout[1], layout[2]
    rows, columns, depth = layout[3], layout[4], layout[5]
    a_outer, a_inner, a_row, a_deep = layout[6], layout[7], layout[8], layout[9]
    b_outer, b_inner, b_column, b_deep = layout[10], layout[11], layout[12], layout[13]
    c_outer, c_inner, c_row = layout[14], layout[15], layout[16]
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
    packs_first = unit != AMX_FLOAT32
    rows_stay = packs_first and num_strips * left_bytes <= LITTLE_BYTES and columns // WIDTH * right_bytes > MUCH_BYTES
    reach = max((FEW_BYTES if rows_stay else RIGHT_BYTES) // right_bytes, 2) * WIDTH
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
        if packs_first:
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
        else:
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
