"""New tensors: constants, ranges, copies. float32 unless a dtype is given; none has a gradient unless asked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from worker.autodiff.dimensions import Ints, ints
from worker.autodiff.tensor import Tensor

__all__ = [
    "arange",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "tensor",
    "zeros",
    "zeros_like",
]


def tensor(data: Any, *, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """A copy of a number, list, array or tensor; Python's floating-point numbers become float32."""
    source = data if isinstance(data, Tensor) else Tensor(data)
    return Tensor(np.array(source.data, dtype), requires_grad)


def zeros(*size: Ints, dtype: DTypeLike = np.float32, requires_grad: bool = False) -> Tensor:
    """Zeros. Takes sizes or a tuple of them."""
    return Tensor(np.zeros(ints("zeros", size), dtype), requires_grad)


def ones(*size: Ints, dtype: DTypeLike = np.float32, requires_grad: bool = False) -> Tensor:
    """Ones. Takes sizes or a tuple of them."""
    return Tensor(np.ones(ints("ones", size), dtype), requires_grad)


def full(size: Ints, fill_value: float, *, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """The same number everywhere: float32, int64 or bool, as the number is."""
    return Tensor(np.full(ints("full", (size,)), fill_value, _dtype(dtype, fill_value)), requires_grad)


def arange(
    start: float,
    end: float | None = None,
    step: float = 1,
    *,
    dtype: DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, … below end; arange(end) starts at 0. int64 if all are integers, else float32."""
    first, last = (0, start) if end is None else (start, end)
    if not step or (last - first) * step < 0:
        raise ValueError(f"arange: got start {first}, end {last} and step {step}, expected a step from start to end")
    return Tensor(np.arange(first, last, step).astype(_dtype(dtype, first, last, step)), requires_grad)


def zeros_like(x: Tensor, *, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Zeros of x's shape and dtype."""
    return Tensor(np.zeros(x.shape, dtype or x.dtype), requires_grad)


def ones_like(x: Tensor, *, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Ones of x's shape and dtype."""
    return Tensor(np.ones(x.shape, dtype or x.dtype), requires_grad)


def full_like(x: Tensor, fill_value: float, *, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """The same number everywhere, in x's shape and dtype."""
    return Tensor(np.full(x.shape, fill_value, dtype or x.dtype), requires_grad)


def _dtype(dtype: DTypeLike | None, *numbers: float) -> np.dtype[Any]:
    """The dtype given, or else PyTorch's for these numbers."""
    if dtype is not None:
        return np.dtype(dtype)
    kind = np.result_type(*map(type, numbers)).kind
    return np.dtype({"b": np.bool_, "i": np.int64}.get(kind, np.float32))
