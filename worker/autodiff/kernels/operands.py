"""Operands of a product as a compiled loop takes them: addresses, sizes and steps, for two dimensions of a batch.

A GEMM packs its operands, and can pack any matrix whose rows or columns are contiguous; others are copied first. What
is written has contiguous rows. Addresses and steps are in bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from ctypes import c_size_t
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

FLOAT_BYTES = 4

Multiply = Callable[[Array, Array, "Array | None", "Array | None"], Array]  # (a, b, out, bias)


def layout_of(a: Array, b: Array, out: Array) -> tuple[int, ...] | None:
    """Sizes and steps of a product as a compiled loop takes them; None where operands must be copied or cut first.

    Two sizes of the batch, M, N, K, and of a, b and out the steps of the batch, then that along M or N, then along K
    (but for out, whose rows are contiguous).
    """
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    leading = out.shape[:-2]
    is_direct = len(leading) <= 2 and _is_packable(a) and _is_packable(b)
    if not is_direct or not out.size or not depth or (out.strides[-1] != FLOAT_BYTES and columns > 1):
        return None
    steps = (*_steps(a, -2, -1), *_steps(b, -1, -2), *_steps(out, -2, -1)[:3])
    return (*(1, 1, *leading)[-2:], rows, columns, depth, *steps)


def indirectly(multiply: Multiply, a: Array, b: Array, out: Array, bias: Array | None) -> Array:
    """A product for which there is no layout, out of products for which there is one."""
    if not out.size:
        return out
    if not a.shape[-1]:
        out[...] = 0 if bias is None else bias
        return out
    if out.strides[-1] != FLOAT_BYTES and out.shape[-1] > 1:
        out[...] = multiply(a, b, None, bias)
        return out
    if out.ndim > 4:
        a, b = (np.broadcast_to(x, out.shape[:-2] + x.shape[-2:]) for x in (a, b))
        for i in range(len(out)):
            multiply(a[i], b[i], out[i], bias)
        return out
    a, b = (x if _is_packable(x) else np.ascontiguousarray(x) for x in (a, b))
    return multiply(a, b, out, bias)


def _is_packable(x: Array) -> bool:
    """Whether its rows or its columns are contiguous."""
    rows, columns = x.shape[-2:]
    return FLOAT_BYTES in x.strides[-2:] or rows == 1 or columns == 1


def _steps(x: Array, outer: int, deep: int) -> tuple[int, int, int, int]:
    """The steps of the two dimensions of the batch, that of dimension `outer`, that of the one summed over."""
    outer_step, deep_step = x.strides[outer], x.strides[deep]
    # Along a dimension of one element nobody steps: it is taken for the contiguous one where the other is not.
    if x.shape[outer] == 1:
        outer_step = FLOAT_BYTES
    elif x.shape[deep] == 1 and outer_step != FLOAT_BYTES:
        deep_step = FLOAT_BYTES
    leading = [0 if size == 1 else step for size, step in zip(x.shape[:-2], x.strides[:-2], strict=True)]
    outermost, inner = (0, 0, *leading)[-2:]
    return outermost, inner, outer_step, deep_step


# The C structure of an array begins with the header of every object and, behind it, where its elements begin. To read
# that takes a tenth of the time that the array interface takes, which makes a dictionary.
_DATA = object.__basicsize__


def address_of(x: Array) -> int:
    """Where an array's first element lies."""
    return c_size_t.from_address(id(x) + _DATA).value


def _told(x: Array) -> int:
    address: int = x.__array_interface__["data"][0]
    return address


_PROBE = np.zeros((2, 2), np.float32)[1:]
if address_of(_PROBE) != _told(_PROBE):  # another layout: another implementation of Python, or a build for debugging
    address_of = _told


class _Memory(threading.local):
    def __init__(self) -> None:
        self.buffer: Bytes = np.empty(0, np.uint8)


_local = _Memory()


def memory(num_bytes: int) -> Bytes:
    """At least so many bytes for packed operands, for one product after the other of a thread."""
    if _local.buffer.size < num_bytes:
        _local.buffer = np.zeros(num_bytes, np.uint8)
    return _local.buffer
