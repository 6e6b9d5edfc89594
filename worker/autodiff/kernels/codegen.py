"""Words for writing LLVM IR: what the intrinsics that hold whole inner loops are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir

binding.initialize_native_asmparser()  # for `idle`

FLOAT, BYTE, INT, LONG, VOID = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.VoidType()


class BFloatType(ir.types.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat, which llvmlite has no word for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloatType)

    def __hash__(self) -> int:
        return hash(BFloatType)


def long(value: int) -> Any:
    """A 64-bit constant."""
    return ir.Constant(LONG, value)


def indices(*numbers: int) -> Any:
    """What shuffle_vector selects by."""
    return ir.Constant(ir.VectorType(INT, len(numbers)), list(numbers))


def declared(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """LLVM's own function of this name."""
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def pointer_to(builder: Any, address: Any, kind: Any, offset: int = 0) -> Any:
    """A pointer to a value of type `kind` that lies `offset` bytes behind an address, a 64-bit number."""
    return builder.inttoptr(builder.add(address, long(offset)) if offset else address, kind.as_pointer())


NEAREST, SECOND_LEVEL = 3, 2  # caches, as LLVM counts them


def fetch(builder: Any, at: Any, cache: int = NEAREST, *, is_written: bool = False) -> None:
    """Ask for the memory at a pointer to BYTE, which need not exist; 64 bytes come."""
    prefetch = declared(builder, "llvm.prefetch.p0", VOID, BYTE.as_pointer(), INT, INT, INT)
    builder.call(prefetch, [at, *(ir.Constant(INT, flag) for flag in (int(is_written), cache, 1))])


def idle(builder: Any, slots: int) -> None:
    """So many instructions that do nothing."""
    if slots > 0:
        kind = ir.FunctionType(VOID, [])
        builder.call(ir.InlineAsm(kind, f".rept {slots}\nnop\n.endr", "", side_effect=True), [])


def repeat(builder: Any, count: Any, carried: Sequence[Any], body: Callable[..., Sequence[Any]]) -> list[Any]:
    """`carried = body(i, carried)` for i < count, at least once; returns what is carried out."""
    before = builder.block
    block = builder.append_basic_block("loop")
    builder.branch(block)
    builder.position_at_end(block)
    phis = [builder.phi(value.type) for value in (long(0), *carried)]
    results = body(phis[0], phis[1:])
    following = builder.add(phis[0], long(1))
    for phi, first, last in zip(phis, (long(0), *carried), (following, *results), strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, builder.block)
    end = builder.append_basic_block("loop.end")
    builder.cbranch(builder.icmp_signed("<", following, count), block, end)
    builder.position_at_end(end)
    return list(results)


def repeat_or_not(builder: Any, count: Any, carried: Sequence[Any], body: Callable[..., Sequence[Any]]) -> list[Any]:
    """`repeat` for a count that may be 0; what is carried comes out as it went in, then."""
    before, end = builder.block, builder.append_basic_block("loop.none")
    start = builder.append_basic_block("loop.some")
    builder.cbranch(builder.icmp_signed(">", count, long(0)), start, end)
    builder.position_at_end(start)
    results = repeat(builder, count, carried, body)
    after = builder.block
    builder.branch(end)
    builder.position_at_end(end)
    merged = [builder.phi(value.type) for value in carried]
    for phi, first, last in zip(merged, carried, results, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, after)
    return merged


def everywhere(builder: Any, number: Any, lanes: int) -> Any:
    """A vector that holds one number in all its lanes."""
    undefined = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(INT, 0))
    return builder.shuffle_vector(first, undefined, indices(*[0] * lanes))


def shuffled(size: int) -> list[int]:
    """A perfect shuffle: the first half of `size` places and the second, in turn."""
    return [i // 2 + (size // 2 if i % 2 else 0) for i in range(size)]


def transposed(builder: Any, rows: Sequence[Any]) -> Sequence[Any]:
    """The columns of n rows, vectors of n lanes, n a power of two: log2(n) rounds of perfect shuffles."""
    size = len(rows)
    order = shuffled(2 * size)
    for _ in range(size.bit_length() - 1):
        rows = [
            builder.shuffle_vector(rows[i], rows[i + size // 2], indices(*half))
            for i in range(size // 2)
            for half in (order[:size], order[size:])
        ]
    return rows
