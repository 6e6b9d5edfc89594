"""Softmax over a row of attention's scores, and its gradient, as LLVM IR.

Rows of causal attention have every length. LLVM vectorises a loop for long ones, and leaves most of a row of 50 to a
loop of one element after the other; here the rest of a row is one vector with a mask. Sums are made lane by lane, and
the lanes are added up as a tree, so that their bits go by the length of the row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from worker.autodiff.kernels import approximations as ap
from worker.autodiff.kernels.codegen import (
    FLOAT,
    INT,
    VOID,
    declared,
    everywhere,
    indices,
    long,
    pointer_to,
    repeat,
)
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import f32, intrinsic

Array = NDArray[Any]

LANES = 16
FLOAT_BYTES = 4
LOWEST = np.float32(-np.inf)

i64, void = types.int64, types.void
floats, ints = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
flags = ir.VectorType(ir.IntType(1), LANES)


@compiled
def softmax_rows(scores: Array, scale: np.float32, first: int, last: int, end: int, is_causal: bool) -> None:
    """Replace rows first.. of scores (T, S) by softmax(scores * scale) over columns 0..end-1; rows of -Inf: zeros."""
    at, step = scores.ctypes.data, scores.strides[0]
    for t in range(first, last):
        seen = min(t + 1, end) if is_causal else end
        _softmax_row(at + t * step, seen, scale)
        scores[t, seen:end] = ap.ZERO


@compiled
def softmax_backward_rows(weights: Array, g: Array, scale: np.float32, first: int, last: int, end: int) -> None:
    """Replace rows first.. of g, the gradient of the weights that softmax_rows gave, by that of the scores."""
    for t in range(first, last):
        _gradient_row(g.ctypes.data + t * g.strides[0], weights.ctypes.data + t * weights.strides[0], end, scale)


@intrinsic
def _softmax_row(_: Any, row: Any, count: Any, scale: Any) -> Any:
    """Replace a row of `count` floats at an address by the softmax of the row times scale."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row, count, scale = args
        scale = everywhere(builder, scale, LANES)
        largest, total = _Carried(builder, LOWEST), _Carried(builder, ap.ZERO)

        def look(lanes: _Lanes) -> None:
            x = builder.fmul(lanes.load(row), scale)
            if lanes.mask is not None:
                x = builder.select(lanes.mask, x, _all(LOWEST))
            largest.put(_larger(builder, largest.value, x))

        def raise_to(lanes: _Lanes) -> None:
            x = builder.fsub(builder.fmul(lanes.load(row), scale), highest)
            e = _exp_of_negative(builder, x)
            if lanes.mask is not None:
                e = builder.select(lanes.mask, e, _all(ap.ZERO))
            lanes.store(e, row)
            total.put(builder.fadd(total.value, e))

        _over(builder, count, look)
        highest = _folded(builder, largest.value, _larger)
        none = builder.fcmp_ordered("==", highest, _all(LOWEST))
        highest = builder.select(none, _all(ap.ZERO), highest)
        _over(builder, count, raise_to)
        whole = _folded(builder, total.value, lambda b, x, y: b.fadd(x, y))
        none = builder.fcmp_ordered("==", whole, _all(ap.ZERO))
        share = builder.select(none, _all(ap.ZERO), builder.fdiv(_all(ap.ONE), whole))
        _over(builder, count, lambda lanes: lanes.store(builder.fmul(lanes.load(row), share), row))
        return context.get_dummy_value()

    return void(i64, i64, f32), generate


@intrinsic
def _gradient_row(_: Any, g: Any, weights: Any, count: Any, scale: Any) -> Any:
    """Replace g, `count` floats at an address, by weights * (g - sum(g * weights)) * scale."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        g, weights, count, scale = args
        scale = everywhere(builder, scale, LANES)
        total = _Carried(builder, ap.ZERO)

        def add(lanes: _Lanes) -> None:
            total.put(_fma(builder, lanes.load(g), lanes.load(weights), total.value))

        def put(lanes: _Lanes) -> None:
            rest = builder.fmul(builder.fsub(lanes.load(g), mean), scale)
            lanes.store(builder.fmul(lanes.load(weights), rest), g)

        _over(builder, count, add)
        mean = _folded(builder, total.value, lambda b, x, y: b.fadd(x, y))
        _over(builder, count, put)
        return context.get_dummy_value()

    return void(i64, i64, i64, f32), generate


class _Carried:
    """A vector that loops carry along."""

    def __init__(self, builder: Any, first: np.float32) -> None:
        self._builder = builder
        with builder.goto_entry_block():
            self._place = builder.alloca(floats)
        builder.store(_all(first), self._place)

    @property
    def value(self) -> Any:
        return self._builder.load(self._place)

    def put(self, value: Any) -> None:
        self._builder.store(value, self._place)


class _Lanes:
    """LANES floats of each row, `start` bytes behind its beginning; with a mask, those that are there."""

    def __init__(self, builder: Any, start: Any, mask: Any = None) -> None:
        self.mask = mask
        self._builder, self._start = builder, start

    def load(self, row: Any) -> Any:
        """The floats, and 0 for those that are not there."""
        if self.mask is None:
            return self._builder.load(self._at(row), align=FLOAT_BYTES)
        masked = declared(self._builder, _MASKED_LOAD, floats, floats.as_pointer(), INT, flags, floats)
        return self._builder.call(masked, [self._at(row), _ALIGNMENT, self.mask, _all(ap.ZERO)])

    def store(self, values: Any, row: Any) -> None:
        """Writes those that are there."""
        if self.mask is None:
            self._builder.store(values, self._at(row), align=FLOAT_BYTES)
            return
        masked = declared(self._builder, _MASKED_STORE, VOID, floats, floats.as_pointer(), INT, flags)
        self._builder.call(masked, [values, self._at(row), _ALIGNMENT, self.mask])

    def _at(self, row: Any) -> Any:
        return pointer_to(self._builder, self._builder.add(row, self._start), floats)


_MASKED_LOAD, _MASKED_STORE = f"llvm.masked.load.v{LANES}f32.p0", f"llvm.masked.store.v{LANES}f32.p0"
_ALIGNMENT = ir.Constant(INT, FLOAT_BYTES)


def _over(builder: Any, count: Any, body: Callable[[_Lanes], None]) -> None:
    """Whole vectors of a row of `count` floats, and then the rest."""
    rest = builder.and_(count, long(LANES - 1))
    whole = builder.sub(count, rest)

    def vector(i: Any, _: Any) -> list[Any]:
        body(_Lanes(builder, builder.mul(i, long(LANES * FLOAT_BYTES))))
        return []

    with builder.if_then(builder.icmp_signed(">", whole, long(0))):
        repeat(builder, builder.udiv(whole, long(LANES)), [], vector)
    with builder.if_then(builder.icmp_signed(">", rest, long(0))):
        numbers = ir.Constant(ints, [ir.Constant(INT, i) for i in range(LANES)])
        mask = builder.icmp_signed("<", numbers, everywhere(builder, builder.trunc(rest, INT), LANES))
        body(_Lanes(builder, builder.mul(whole, long(FLOAT_BYTES)), mask))


def _exp_of_negative(builder: Any, x: Any) -> Any:
    """As approximations.exp_of_negative."""
    shifted = _fma(builder, x, _all(ap.LOG2E), _all(ap.ROUND))
    minus = builder.fsub(_all(ap.ROUND), shifted)
    r = _fma(builder, minus, _all(ap.LN2_LOW), _fma(builder, minus, _all(ap.LN2_HIGH), x))
    p = _all(ap.EXP7)
    for coefficient in (ap.EXP6, ap.EXP5, ap.EXP4, ap.EXP3, ap.EXP2):
        p = _fma(builder, p, r, _all(coefficient))
    p = builder.fadd(_fma(builder, builder.fmul(p, r), r, r), _all(ap.ONE))
    whole = builder.sub(builder.bitcast(shifted, ints), builder.bitcast(_all(ap.ROUND), ints))
    power = builder.shl(builder.add(whole, _all_ints(127)), _all_ints(23))
    e = builder.fmul(p, builder.bitcast(power, floats))
    return builder.select(builder.fcmp_ordered("<", x, _all(ap.EXP_NORMAL)), _all(ap.ZERO), e)


def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return builder.call(declared(builder, f"llvm.fma.v{LANES}f32", floats, floats, floats, floats), [x, y, z])


def _larger(builder: Any, x: Any, y: Any) -> Any:
    """Lane by lane; not NaN, which shows in the sum."""
    return builder.select(builder.fcmp_ordered(">", y, x), y, x)


def _folded(builder: Any, x: Any, join: Callable[[Any, Any, Any], Any]) -> Any:
    """All lanes of x, joined, in all lanes: each with the one half of them away, a quarter, and so on."""
    undefined = ir.Constant(floats, ir.Undefined)
    distance = LANES // 2
    while distance:
        x = join(builder, x, builder.shuffle_vector(x, undefined, indices(*(i ^ distance for i in range(LANES)))))
        distance //= 2
    return x


def _all(number: np.float32) -> Any:
    return ir.Constant(floats, [ir.Constant(FLOAT, float(number))] * LANES)


def _all_ints(number: int) -> Any:
    return ir.Constant(ints, [ir.Constant(INT, number)] * LANES)
