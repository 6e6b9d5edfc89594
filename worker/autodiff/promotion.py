"""Operands: what an operation takes, as arrays of the dtype that PyTorch gives the result.

The categories are bool < integer < floating point. Beside a tensor with dimensions, a tensor without them or a number
matters only if its category is higher; a Python float is then float32, a Python int int64
(https://docs.pytorch.org/docs/stable/tensor_attributes.html#torch-dtype).
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from worker.autodiff.tensor import Array, Tensor

Operand = Tensor | float | np.number[Any] | np.bool_
DType = np.dtype[Any]

_CATEGORY = {"b": 0, "i": 1, "u": 1, "f": 2}
_OF_NUMBERS: tuple[DType, ...] = (np.dtype(np.bool_), np.dtype(np.int64), np.dtype(np.float32))  # by category


def operands(name: str, x: Operand, y: Operand, *, floating: bool = False) -> tuple[Any, Any]:
    """The values of x and y, ready for a ufunc; `floating` makes float32 of what would be integers.

    A number stays one beside a floating-point tensor, as NumPy then keeps the tensor's dtype. ValueError where the
    shapes do not broadcast, TypeError for what is no operand.
    """
    if isinstance(x, Tensor):
        a = x.data
        if isinstance(y, Tensor):
            b = y.data
            if a.dtype == b.dtype and (not floating or a.dtype.kind == "f"):
                if a.shape != b.shape:
                    check_broadcast(name, a, b)
                return a, b
        elif a.dtype.kind == "f":
            return a, _number(name, y)
    elif isinstance(y, Tensor) and y.data.dtype.kind == "f":
        return _number(name, x), y.data
    a, b = promoted(name, x, y, floating=floating)
    return a, b


def promoted(name: str, *given: Operand, floating: bool = False, beside: Array | None = None) -> list[Any]:
    """As `operands`, for any number of them: all come as arrays, or NumPy scalars, of one dtype.

    `beside` is an array that must broadcast with them and keeps its dtype.
    """
    dtype = _result_dtype(name, given)
    if floating and dtype.kind != "f":
        dtype = np.dtype(np.float32)
    values = [
        x.data.astype(dtype, copy=False) if isinstance(x, Tensor) else np.asarray(x).astype(dtype)[()] for x in given
    ]
    check_broadcast(name, *values, *(() if beside is None else (beside,)))
    return values


def floats(name: str, x: Tensor) -> Array:
    """The array of x; integers and booleans as float32."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(x).__name__}")
    return x.data if x.data.dtype.kind == "f" else x.data.astype(np.float32)


def check_broadcast(name: str, *values: Any) -> None:
    try:
        np.broadcast(*values)
    except ValueError:
        shapes = " and ".join(str(np.shape(value)) for value in values)
        raise ValueError(f"{name}: got shapes {shapes}, which do not broadcast") from None


def _number(name: str, x: Any) -> float:
    """x as a number of Python's: NumPy's own have a dtype that would count."""
    if isinstance(x, np.generic) and x.dtype.kind in _CATEGORY:
        x = x.item()
    if not isinstance(x, int | float):
        raise TypeError(
            f"{name}: expected a Tensor or a number, got {type(x).__name__}; an array is wrapped with Tensor(array)"
        )
    return x


def _result_dtype(name: str, given: tuple[Operand, ...]) -> DType:
    """Of the tensors with dimensions, of those without, and of the numbers: the first of the highest category."""
    with_dims = [x.dtype for x in given if isinstance(x, Tensor) and x.ndim]
    without = [x.dtype for x in given if isinstance(x, Tensor) and not x.ndim]
    numbers = [_OF_NUMBERS[_category(_number(name, x))] for x in given if not isinstance(x, Tensor)]
    best = [reduce(_promote, dtypes) for dtypes in (with_dims, without, numbers) if dtypes]
    return max(best, key=lambda dtype: _CATEGORY[dtype.kind])


def _category(number: float) -> int:
    return 0 if isinstance(number, bool) else 1 if isinstance(number, int) else 2


def _promote(a: DType, b: DType) -> DType:
    """The common dtype. NumPy makes float64 of float32 and int64; PyTorch, and so we, float32."""
    if (a.kind == "f") != (b.kind == "f"):
        return a if a.kind == "f" else b
    return np.promote_types(a, b)
