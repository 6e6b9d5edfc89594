"""Tiles of a product of bfloat16 matrices with float32 sums, on the CPU's own unit for it, as LLVM IR.

Two units are known. AMX multiplies whole tiles of 16 x 32 by 32 x 16 numbers; AVX512-BF16 adds the products of pairs in
each lane of a vector. Both take operands in the same form, packed into blocks of 1024 bytes: 16 rows of 16 pairs, where
a pair is two numbers that stand behind one another along the dimension that is summed over.

    left operand    block[i][p] = (a[i, 2p], a[i, 2p+1])        16 rows, 32 numbers deep
    right operand   block[p][j] = (b[2p, j], b[2p+1, j])        32 numbers deep, 16 columns

Blocks come in pairs: 32 rows, or 32 columns, of which the second half may be missing. Pairs stand behind one another.
Which two numbers are a pair is open, as long as both operands agree: `slices` pairs others.
A sum's bits depend on the depth and on the unit, not on the tile that it is in. All addresses and steps are in bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from llvmlite import ir
from numba import types

from worker.autodiff.kernels.codegen import (
    BYTE,
    FLOAT,
    INT,
    LONG,
    NEAREST,
    SECOND_LEVEL,
    VOID,
    BFloatType,
    declared,
    everywhere,
    fetch,
    idle,
    indices,
    long,
    pointer_to,
    repeat,
    shuffled,
    transposed,
)
from worker.autodiff.kernels.compilation import Kernel, cpu_features
from worker.autodiff.kernels.intrinsics import intrinsic

LANES = 16  # rows and columns of a tile, pairs in a row of a block
DEPTH = 2 * LANES  # numbers of a block along the dimension that is summed over
BLOCK_BYTES = 1024
ROW_BYTES = 64
# Where another hyperthread of the core is at work, tile registers are short: what loads or adds to one waits until one
# is free. So a tile uses 7 of the 8, and between any two instructions of AMX stand so many others, which lets the wait
# go by. Products in float32 are 1.7 times as fast then, and as fast as ever where the core is ours alone.
NUM_REGISTERS, GAP = 7, 8
_LEFT, _RIGHT = 4, 6  # registers of the operands' blocks; those before hold sums
CROWDED = 2048  # bytes: rows that are a multiple of it apart are too many for their few sets of the first-level cache
HALF = 8  # rows whose sums AVX512-BF16 keeps in registers at once

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # Linux, x86-64: arch_prctl(2)

floats = ir.VectorType(FLOAT, LANES)
numbers = ir.VectorType(BFloatType(), DEPTH)
words = ir.VectorType(ir.IntType(16), DEPTH)
pairs = ir.VectorType(INT, LANES)
i64, void = types.int64, types.void


def _may_use_tiles() -> bool:
    """Linux gives a process the tile registers when it asks for them."""
    try:
        request = ctypes.CDLL(None).syscall
    except (OSError, AttributeError):
        return False
    return bool(request(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


_features = cpu_features()
HAS_AVX = {"avx512f", "avx512bw", "avx512bf16"} <= _features
HAS_AMX = HAS_AVX and {"amx-tile", "amx-bf16"} <= _features and _may_use_tiles()


@intrinsic
def configure(_: Any, shape: Any) -> Any:
    """Make the tile registers what the 64 bytes at this address say; before the first AMX tile."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        load = declared(builder, "llvm.x86.ldtilecfg", VOID, BYTE.as_pointer())
        builder.call(load, [pointer_to(builder, args[0], BYTE)])
        return context.get_dummy_value()

    return void(i64), generate


@intrinsic
def release(_: Any) -> Any:
    """Give the tile registers back, so that nobody has to save them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.call(declared(builder, "llvm.x86.tilerelease", VOID), [])
        return context.get_dummy_value()

    return void(), generate


# Writes the instructions that pack a block, for (builder, source, step, ahead, to), some between any two `yield`.
Packing = Callable[..., Iterator[None]]


def make_amx_tile(rows: int, columns: int, terms: Sequence[tuple[int, int]] = ((0, 0),)) -> Kernel:
    """tile(depth, a, b, init, init_step, c, c_step): c = init + a @ b, for `depth` pairs of blocks of each operand.

    c has `rows` x `columns` tiles, each 1 or 2. The rows of init and c are init_step and c_step apart. Operands that
    are sums of slices have a pair of blocks for each; `terms` says which slices are multiplied, in this order.
    """

    @intrinsic
    def tile(_: Any, depth: Any, a: Any, b: Any, init: Any, init_step: Any, c: Any, c_step: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _multiply(builder, rows, columns, terms, args)
            return context.get_dummy_value()

        return void(i64, i64, i64, i64, i64, i64, i64), generate

    return tile


def make_packing_tile(terms: Sequence[tuple[int, int]], packing: Packing) -> Kernel:
    """tile(…, source, step, deep, ahead, to): a tile of 2 x 2 that packs `depth` blocks meanwhile.

    They lie `deep` bytes apart from `source` on, and go to where blocks of a strip go. Packing fills the gaps between
    AMX's instructions and costs next to nothing there.
    """

    @intrinsic
    def tile(
        _: Any,
        depth: Any,
        a: Any,
        b: Any,
        init: Any,
        init_step: Any,
        c: Any,
        c_step: Any,
        source: Any,
        step: Any,
        deep: Any,
        ahead: Any,
        to: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _multiply(builder, 2, 2, terms, args[:7], packing, args[7:])
            return context.get_dummy_value()

        return void(*[i64] * 12), generate

    return tile


def _multiply(
    builder: Any,
    rows: int,
    columns: int,
    terms: Sequence[tuple[int, int]],
    args: Sequence[Any],
    packing: Packing | None = None,
    packed: Sequence[Any] = (),
) -> None:
    """Write a tile, and what it packs."""
    depth, a, b, init, init_step, c, c_step = args
    num_slices = 1 + max(slice for term in terms for slice in term)
    # The right operand's next blocks are asked for meanwhile, which helps where these are multiplied more than once.
    num_fetched = num_slices * LANES // (len(terms) * rows) if len(terms) > 1 else 0
    move = BYTE, BYTE.as_pointer(), LONG
    load = declared(builder, "llvm.x86.tileloadd64", VOID, *move)
    store = declared(builder, "llvm.x86.tilestored64", VOID, *move)
    multiply = declared(builder, "llvm.x86.tdpbf16ps", VOID, BYTE, BYTE, BYTE)
    source, step, deep, ahead, to = packed or [None] * 5

    def moved(how: Any, start: Any, step: Any) -> None:
        for i in range(rows):
            for j in range(columns):
                row = builder.add(start, builder.mul(step, long(LANES * i)))
                builder.call(how, [_register(2 * i + j), pointer_to(builder, row, BYTE, ROW_BYTES * j), step])

    def await_tile(cache: int) -> None:
        for i in range(LANES * rows):
            row = builder.add(c, builder.mul(c_step, long(i)))
            for j in range(columns):
                at = pointer_to(builder, row, BYTE, ROW_BYTES * j)
                fetch(builder, at, cache, is_written=cache == NEAREST)

    def read(register: int, operand: Any, block: int) -> None:
        at = pointer_to(builder, operand, BYTE, BLOCK_BYTES * block)
        builder.call(load, [_register(register), at, long(ROW_BYTES)])
        idle(builder, GAP)

    def block(_: Any, carried: Sequence[Any]) -> list[Any]:
        left, right, *places = carried
        left_slice, right_block = -1, (-1, -1)  # loaded
        following = iter(_lines(num_slices, columns))
        parts = packing(builder, places[0], step, ahead, places[1]) if packing else iter(())
        for term in terms:
            if term[0] != left_slice:
                left_slice = term[0]
                for i in range(rows):
                    read(_LEFT + i, left, 2 * left_slice + i)
            for j in sorted(range(columns), key=lambda j: (term[1], j) != right_block):
                if right_block != (term[1], j):
                    right_block = term[1], j
                    read(_RIGHT, right, 2 * term[1] + j)
                for i in range(rows):
                    builder.call(multiply, [_register(2 * i + j), _register(_LEFT + i), _register(_RIGHT)])
                    for offset in islice(following, num_fetched):
                        fetch(builder, pointer_to(builder, right, BYTE, offset))
                    if next(parts, idle) is idle:
                        idle(builder, GAP - num_fetched)
        for _ in parts:
            pass
        steps = [*[long(2 * num_slices * BLOCK_BYTES)] * 2, deep, long(2 * num_slices * BLOCK_BYTES)]
        return [builder.add(start, step) for start, step in zip(carried, steps, strict=False)]

    is_spread = builder.icmp_signed("!=", builder.urem(c_step, long(CROWDED)), long(0))
    with builder.if_else(is_spread) as (spread, crowded):
        with spread:
            await_tile(NEAREST)
        with crowded:
            await_tile(SECOND_LEVEL)
    moved(load, init, init_step)
    repeat(builder, depth, [a, b, source, to] if packing else [a, b], block)
    moved(store, c, c_step)


def make_avx_tile(columns: int) -> Kernel:
    """tile(depth, a, b, init, init_step, c, c_step): as make_amx_tile's, for HALF rows from a on."""

    @intrinsic
    def tile(_: Any, depth: Any, a: Any, b: Any, init: Any, init_step: Any, c: Any, c_step: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            depth, a, b, init, init_step, c, c_step = args
            multiply = declared(builder, "llvm.x86.avx512bf16.dpbf16ps.512", floats, floats, numbers, numbers)
            places = [(i, j) for i in range(HALF) for j in range(columns)]

            def place(start: Any, step: Any, i: int, j: int) -> Any:
                return pointer_to(builder, builder.add(start, builder.mul(step, long(i))), floats, ROW_BYTES * j)

            def pair(_: Any, carried: Sequence[Any]) -> list[Any]:
                left, right, *sums = carried
                column = [
                    builder.bitcast(builder.load(pointer_to(builder, right, floats, BLOCK_BYTES * j)), numbers)
                    for j in range(columns)
                ]
                row = [
                    builder.bitcast(
                        everywhere(builder, builder.load(pointer_to(builder, left, INT, ROW_BYTES * i)), LANES), numbers
                    )
                    for i in range(HALF)
                ]
                following = [builder.add(left, long(4)), builder.add(right, long(ROW_BYTES))]
                products = zip(sums, places, strict=True)
                return following + [builder.call(multiply, [s, row[i], column[j]]) for s, (i, j) in products]

            def block(_: Any, carried: Sequence[Any]) -> list[Any]:
                left, right, *sums = carried
                sums = repeat(builder, long(LANES), [left, right, *sums], pair)[2:]
                return [builder.add(left, long(2 * BLOCK_BYTES)), builder.add(right, long(2 * BLOCK_BYTES)), *sums]

            sums = [builder.load(place(init, init_step, i, j), align=4) for i, j in places]
            sums = repeat(builder, depth, [a, b, *sums], block)[2:]
            for value, (i, j) in zip(sums, places, strict=True):
                builder.store(value, place(c, c_step, i, j), align=4)
            return context.get_dummy_value()

        return void(i64, i64, i64, i64, i64, i64, i64), generate

    return tile


def make_pack(along: bool, turned: bool) -> Kernel:
    """pack(source, step, block): round 16 x 32 floats to bfloat16, and write them as a block.

    Rows that are `along` the dimension that is summed over are 16 rows of 32 floats, others are 32 rows of 16 floats,
    `step` bytes apart. Left operands from rows along it are not `turned`, nor are right ones from rows across it; the
    other two are: rows of pairs become columns.
    """

    @intrinsic
    def pack(_: Any, source: Any, step: Any, block: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, step, block = args
            convert = declared(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", numbers, floats, floats)

            def load(row: int, offset: int = 0) -> Any:
                start = builder.add(source, builder.mul(step, long(row)))
                return builder.load(pointer_to(builder, start, floats, offset), align=4)

            rows = []
            for i in range(LANES):
                if along:
                    row = builder.call(convert, [load(i, ROW_BYTES), load(i)])
                else:
                    both = builder.bitcast(builder.call(convert, [load(2 * i + 1), load(2 * i)]), words)
                    row = builder.shuffle_vector(both, ir.Constant(words, ir.Undefined), indices(*shuffled(DEPTH)))
                rows.append(builder.bitcast(row, pairs))
            for i, row in enumerate(transposed(builder, rows) if turned else rows):
                builder.store(row, pointer_to(builder, block, pairs, ROW_BYTES * i), align=ROW_BYTES)
            return context.get_dummy_value()

        return void(i64, i64, i64), generate

    return pack


def _lines(num_slices: int, columns: int) -> list[int]:
    """Where the right operand's following blocks lie, line by line, as seen from those before them."""
    blocks = [2 * (num_slices + n) + j for n in range(num_slices) for j in range(columns)]
    return [BLOCK_BYTES * block + ROW_BYTES * i for block in blocks for i in range(LANES)]


def _register(number: int) -> Any:
    return ir.Constant(BYTE, number)
