"""Tiles of a matrix product held in vector registers: the inner loop of a direct convolution, as LLVM IR.

A loop in Python cannot say which sums stay in registers; this can. A tile is up to ROWS x 2*LANES sums, as many as the
CPU has registers for. Each sum is one chain of fused multiply-adds in the order of its terms, so that its bits depend
neither on the tile it is in nor on where the arrays lie in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from worker.autodiff.kernels.codegen import (
    BYTE,
    FLOAT,
    declared,
    everywhere,
    fetch,
    long,
    pointer_to,
    repeat,
    repeat_or_not,
)
from worker.autodiff.kernels.compilation import Kernel, cpu_features
from worker.autodiff.kernels.intrinsics import f32, intrinsic


def _shape() -> tuple[int, int]:
    """(floats in a register, rows of a tile) of the CPU that numba compiles for; (0, 0) where there is no kernel."""
    features = cpu_features()
    if "avx512f" in features:
        return 16, 14  # 28 of 32 registers hold sums
    if {"avx2", "fma"} <= features:
        return 8, 6  # 12 of 16
    return 0, 0


# How many terms of a large tile are written one after another: what a loop adds to them takes issue slots, which are
# short where two hyperthreads share a core.
UNROLLED, UNROLLED_ROWS = 4, 7

LANES, ROWS = _shape()
COLUMNS = 2 * LANES
AVAILABLE = LANES > 0

pointer: Any = types.CPointer(f32)  # type: ignore[no-untyped-call]  # numba has no types here
i64 = types.int64


@intrinsic
def address(_: Any, array: Any, offset: Any) -> Any:
    """Where element `offset` of a contiguous array of float32 lies."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(builder.bitcast(data, FLOAT.as_pointer()), [args[1]])

    return pointer(array, i64), generate


@intrinsic
def pointer_at(_: Any, at: Any) -> Any:
    """A pointer to the float32 at an address, a number of bytes."""
    return pointer(i64), lambda context, builder, signature, args: pointer_to(builder, args[0], FLOAT)


def make_tile(row_step: int, term_step: int) -> Kernel:
    """tile(rows, vectors, segments, num_segments, num_terms, a, b, b_step, init, init_step, c, c_step):

    c[i, j] = init[i, j] + sum of a[segments[s] + i*row_step + k*term_step] * b[s*num_terms + k, j] over s and k, for
    i < rows and j < vectors*LANES. 1 <= rows <= ROWS, vectors is 1 or 2, and there is at least one term. The rows of b,
    init and c lie b_step, init_step and c_step apart. `segments` are offsets in a: an array of int64.
    """

    @intrinsic
    def tile(
        _: Any,
        rows: Any,
        vectors: Any,
        segments: Any,
        num_segments: Any,
        num_terms: Any,
        a: Any,
        b: Any,
        b_step: Any,
        init: Any,
        init_step: Any,
        c: Any,
        c_step: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            offsets = context.make_array(segments)(context, builder, args[2]).data
            _Generator(builder, row_step, term_step).choose(args[0], args[1], [offsets, *args[3:]])
            return context.get_dummy_value()

        signature = types.void(i64, i64, segments, i64, i64, pointer, pointer, i64, pointer, i64, pointer, i64)
        return signature, generate

    return tile


class _Generator:
    """Writes the IR of a tile. `builder` stands where the tile begins, and afterwards where it has ended."""

    def __init__(self, builder: Any, row_step: int, term_step: int) -> None:
        self.builder, self.row_step, self.term_step = builder, row_step, term_step
        self.vector = ir.VectorType(FLOAT, LANES)
        self.fma = declared(builder, f"llvm.fma.v{LANES}f32", self.vector, *[self.vector] * 3)

    def choose(self, rows: Any, vectors: Any, args: Sequence[Any]) -> None:
        """One loop for each shape of a tile, and a jump to the right one."""
        builder = self.builder
        end = builder.append_basic_block("tile.end")
        shape = builder.add(builder.mul(rows, long(2)), vectors)
        switch = builder.switch(shape, end)
        for r in range(1, ROWS + 1):
            for v in (1, 2):
                block = builder.append_basic_block(f"tile.{r}.{v}")
                switch.add_case(long(2 * r + v), block)
                builder.position_at_end(block)
                self.tile(r, v, *args)
                builder.branch(end)
        builder.position_at_end(end)

    def tile(
        self,
        rows: int,
        vectors: int,
        segments: Any,
        num_segments: Any,
        num_terms: Any,
        a: Any,
        b: Any,
        b_step: Any,
        init: Any,
        init_step: Any,
        c: Any,
        c_step: Any,
    ) -> None:
        builder = self.builder
        zeros = [ir.Constant(self.vector, [0.0] * LANES)] * (rows * vectors)

        def segment(s: Any, carried: Sequence[Any]) -> list[Any]:
            start = builder.gep(a, [builder.load(builder.gep(segments, [s]))])
            if rows < UNROLLED_ROWS or vectors < 2:
                return repeat(builder, num_terms, [start, *carried], term)[1:]
            carried = repeat_or_not(builder, builder.udiv(num_terms, long(UNROLLED)), [start, *carried], terms)
            return repeat_or_not(builder, builder.urem(num_terms, long(UNROLLED)), carried, term)[1:]

        def terms(i: Any, carried: Sequence[Any]) -> Sequence[Any]:
            for _ in range(UNROLLED):
                carried = term(i, carried)
            return carried

        def term(_: Any, carried: Sequence[Any]) -> list[Any]:
            at, row, *sums = carried
            columns = [self._load(row, v * LANES) for v in range(vectors)]
            for i in range(rows):
                factor = everywhere(builder, builder.load(builder.gep(at, [long(i * self.row_step)])), LANES)
                for v, column in enumerate(columns):
                    sums[i * vectors + v] = builder.call(self.fma, [factor, column, sums[i * vectors + v]])
            return [builder.gep(at, [long(self.term_step)]), builder.gep(row, [b_step]), *sums]

        for i in range(rows):
            out = builder.gep(c, [builder.mul(c_step, long(i))])
            for v in range(vectors):
                self._fetch(out, v * LANES)
        _, *sums = repeat(builder, num_segments, [b, *zeros], segment)
        for i in range(rows):
            first, out = (builder.gep(p, [builder.mul(step, long(i))]) for p, step in ((init, init_step), (c, c_step)))
            for v in range(vectors):
                self._store(builder.fadd(sums[i * vectors + v], self._load(first, v * LANES)), out, v * LANES)

    def _fetch(self, start: Any, offset: int) -> None:
        """Asks for memory that will be written."""
        at = self.builder.bitcast(self._at(start, offset), BYTE.as_pointer())
        fetch(self.builder, at, is_written=True)

    def _load(self, start: Any, offset: int) -> Any:
        return self.builder.load(self._at(start, offset), align=4)

    def _store(self, value: Any, start: Any, offset: int) -> None:
        self.builder.store(value, self._at(start, offset), align=4)

    def _at(self, start: Any, offset: int) -> Any:
        return self.builder.bitcast(self.builder.gep(start, [long(offset)]), self.vector.as_pointer())
