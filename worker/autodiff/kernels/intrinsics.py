"""Single machine operations on float32 that Python has no word for, as LLVM has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba.extending
from llvmlite import ir
from numba import types

from worker.autodiff.kernels.codegen import FLOAT, INT
from worker.autodiff.kernels.compilation import Kernel

# To the kernels an intrinsic is a function of its arguments; numba's own type shows the typing context, too.
intrinsic: Callable[[Callable[..., Any]], Kernel] = numba.extending.intrinsic

f32, i32 = types.float32, types.int32


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
