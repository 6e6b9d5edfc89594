"""float16 is for keeping arrays, float32 for computing with them: the way from one to the other and back.

To the nearest, ties to even; what is larger than float16 has room for becomes infinite. Memory layouts are kept.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from worker.autodiff.kernels.codegen import FLOAT
from worker.autodiff.kernels.compilation import compiled, cpu_features
from worker.autodiff.kernels.intrinsics import f32, intrinsic
from worker.autodiff.precision import current

Array = NDArray[Any]

u16 = types.uint16
HALF, SHORT = ir.HalfType(), ir.IntType(16)
FLOAT16 = np.dtype(np.float16)  # to compare with: from the type it would be made again each time


def _is_available() -> bool:
    """Whether the CPU that numba compiles for converts by itself; LLVM would call a library function otherwise."""
    return "f16c" in cpu_features() or platform.machine() == "aarch64"


AVAILABLE = _is_available()


def single(x: Any) -> Any:
    """x as a new float32 array if it is a float16 array; anything else as it is."""
    if not isinstance(x, np.ndarray) or x.dtype != FLOAT16:
        return x
    return _converted(x, np.float32, _widen)


def half(x: Array) -> Array:
    """x rounded to float16, a new array."""
    return _converted(np.asarray(x, np.float32), np.float16, _narrow)


def activation(y: Array, x: Array) -> Array:
    """The result y of an operation on x, as it is kept: in float16 if x is, or under autocast("fp16")."""
    return half(y) if y.dtype == np.float32 and (x.dtype == FLOAT16 or current.get() == "fp16") else y


def apply(ufunc: np.ufunc, a: Any, b: Any) -> Any:
    """ufunc(a, b) of arrays or numbers, computed in float32 where it is of float16."""
    if getattr(a, "dtype", None) != FLOAT16 and getattr(b, "dtype", None) != FLOAT16:
        return ufunc(a, b)
    value = np.asarray(ufunc(single(a), single(b)))
    return half(value) if value.dtype == np.float32 else value


def _converted(x: Array, dtype: type[np.floating[Any]], loop: Any) -> Array:
    dense = x if x.flags.forc else np.array(x, order="K")
    if not AVAILABLE:
        with np.errstate(all="ignore"):
            return dense.astype(dtype)
    out = np.empty_like(dense, dtype)
    source, target = dense.ravel("K"), out.ravel("K")
    if dtype is np.float16:
        loop(source, target.view(np.uint16))
    else:
        loop(source.view(np.uint16), target)
    return out


@intrinsic
def _half_bits(_: Any, x: Any) -> Any:
    """The bits of the nearest float16 of a float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], HALF), SHORT)

    return u16(f32), generate


@intrinsic
def _float_of_half(_: Any, bits: Any) -> Any:
    """The float32 of the float16 that has these bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], HALF), FLOAT)

    return f32(u16), generate


@compiled
def _narrow(x: NDArray[np.float32], bits: NDArray[np.uint16]) -> None:
    for i in range(x.size):
        bits[i] = _half_bits(x[i])


@compiled
def _widen(bits: NDArray[np.uint16], x: NDArray[np.float32]) -> None:
    for i in range(bits.size):
        x[i] = _float_of_half(bits[i])
