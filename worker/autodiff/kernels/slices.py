"""float32 numbers as sums of three slices, each a bfloat16, so that a unit for bfloat16 multiplies float32 matrices.

A slice has 8 bits of a number's 24, and the three are the number, to the last bit. Of the nine products of slices six
are computed (Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision
computations", 2019): those left out are 2**-24 of the product at most, as much as rounding it to float32 can lose. Sums
are float32, as in any other product of float32 matrices. What is too large for a bfloat16, beyond 3.39e38, and infinity
become NaN; what is below 1e-38 counts as zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types

from worker.autodiff.kernels.bfloat16_tiles import BLOCK_BYTES, LANES, ROW_BYTES, Packing, floats, pairs
from worker.autodiff.kernels.codegen import BYTE, INT, SECOND_LEVEL, fetch, long, pointer_to, transposed
from worker.autodiff.kernels.compilation import Kernel
from worker.autodiff.kernels.intrinsics import intrinsic

NUM_SLICES = 3
# Slices of the left and the right operand, the coarsest first; in an order in which one of the two stays loaded.
TERMS = ((0, 2), (0, 1), (1, 1), (1, 0), (0, 0), (2, 0))

i64, void = types.int64, types.void


def make_pack(along: bool, turned: bool) -> Kernel:
    """pack(source, step, ahead, blocks): write 16 x 32 floats as a block of each slice, two blocks apart.

    Rows, `along` and `turned` as for bfloat16_tiles.make_pack; but number p of a row is paired with number p + 16.
    What lies `ahead` bytes behind these floats will be packed later, and comes to the second-level cache meanwhile.
    """

    @intrinsic
    def pack(_: Any, source: Any, step: Any, ahead: Any, blocks: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            for _ in packing(along, turned)(builder, *args):
                pass
            return context.get_dummy_value()

        return void(i64, i64, i64, i64), generate

    return pack


def packing(along: bool, turned: bool) -> Packing:
    """What `make_pack` does, a few instructions at a time."""

    def parts(builder: Any, source: Any, step: Any, ahead: Any, blocks: Any) -> Iterator[None]:
        def load(row: int, offset: int = 0) -> Any:
            start = builder.add(source, builder.mul(step, long(row)))
            fetch(builder, pointer_to(builder, builder.add(start, ahead), BYTE, offset), SECOND_LEVEL)
            return builder.load(pointer_to(builder, start, floats, offset), align=4)

        def store(row: int, first: Any, second: Any) -> None:
            halves = zip(_sliced(builder, first), _sliced(builder, second), strict=True)
            for n, (low, high) in enumerate(halves):
                pair = builder.or_(builder.lshr(low, _all(16)), high)
                to = pointer_to(builder, blocks, pairs, 2 * BLOCK_BYTES * n + ROW_BYTES * row)
                builder.store(pair, to, align=ROW_BYTES)

        def rows(second: bool) -> Iterator[Any]:
            return (load(i + (LANES if second and not along else 0), ROW_BYTES * (second and along)) for i in all_rows)

        all_rows = range(LANES)
        if turned:
            first = transposed(builder, list(rows(False)))
            yield
            second = transposed(builder, list(rows(True)))
            yield
            for i in all_rows:
                store(i, first[i], second[i])
                yield
        else:
            for i, (left, right) in enumerate(zip(rows(False), rows(True), strict=True)):
                store(i, left, right)
                yield

    return parts


def _sliced(builder: Any, x: Any) -> list[Any]:
    """The bits of a vector's slices; each is the nearest to what those before it leave."""
    slices = []
    for n in range(NUM_SLICES):
        bits = builder.bitcast(x, pairs)
        if n < NUM_SLICES - 1:
            bits = builder.add(bits, _all(1 << 15))
        bits = builder.and_(bits, _all(-1 << 16))
        slices.append(bits)
        x = builder.fsub(x, builder.bitcast(bits, floats))
    return slices


def _all(number: int) -> Any:
    return ir.Constant(pairs, [ir.Constant(INT, number)] * LANES)
