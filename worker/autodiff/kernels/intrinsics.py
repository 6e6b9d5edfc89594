"""Single machine operations on float32 that Python has no word for, as LLVM has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba.extending
from llvmlite import ir
from numba import types

from worker.autodiff.kernels.codegen import FLOAT, INT, pointer_to
from worker.autodiff.kernels.compilation import Kernel

# To the kernels an intrinsic is a function of its arguments; numba's own type shows the typing context, too.
intrinsic: Callable[[Callable[..., Any]], Kernel] = numba.extending.intrinsic

f32, i32, i64 = types.float32, types.int32, types.int64


@intrinsic
def bits_of(_: Any, x: Any) -> Any:
    """The bits of a float32 as an int32."""
    return i32(f32), lambda context, builder, signature, args: builder.bitcast(args[0], INT)


@intrinsic
def float_of(_: Any, bits: Any) -> Any:
    """The float32 that has these bits."""
    return f32(i32), lambda context, builder, signature, args: builder.bitcast(args[0], FLOAT)


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a*b + c, rounded once."""
    return f32(f32, f32, f32), lambda context, builder, signature, args: builder.fma(*args)


@intrinsic
def maximum(_: Any, a: Any, b: Any) -> Any:
    """The larger of two, NaN if one is NaN: unlike `max`, LLVM can vectorise a reduction with it."""
    function_type = ir.FunctionType(FLOAT, [FLOAT, FLOAT])

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.maximum", [FLOAT], function_type), args)

    return f32(f32, f32), generate


@intrinsic
def float_at(_: Any, address: Any) -> Any:
    """The float32 at an address."""
    return f32(i64), lambda context, builder, signature, args: builder.load(
        pointer_to(builder, args[0], FLOAT), align=4
    )


@intrinsic
def put_float(_: Any, address: Any, value: Any) -> Any:
    """Write a float32 at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], pointer_to(builder, args[0], FLOAT), align=4)
        return context.get_dummy_value()

    return types.void(i64, f32), generate
