"""Operands of a product as a compiled loop takes them: addresses and steps, for two dimensions of a batch.

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

# (batch sizes, M, N, K, places of a, b and out, address of the bias or 0); see `place`.
Loop = Callable[..., None]


def multiply(loop: Loop, a: Array, b: Array, out: Array | None, bias: Array | None) -> Array:
    """a (..., M, K) @ b (..., K, N) + bias (N,), all float32, into `out` (..., M, N) where given, by this loop."""
    leading = () if a.ndim == b.ndim == 2 else np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    if out is None:
        out = np.empty((*leading, rows, columns), np.float32)
    if not out.size:
        return out
    if not depth:
        out[...] = 0 if bias is None else bias
        return out
    if out.strides[-1] != FLOAT_BYTES and columns > 1:
        out[...] = multiply(loop, a, b, None, bias)
        return out
    if len(leading) > 2:
        a, b = (np.broadcast_to(x, leading + x.shape[-2:]) for x in (a, b))
        for i in range(leading[0]):
            multiply(loop, a[i], b[i], out[i], bias)
        return out
    a, b = _packable(a), _packable(b)
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    places = (*_place(a, -2, -1), *_place(b, -1, -2), *_place(out, -2, -1)[:4])
    loop(*(1, 1, *leading)[-2:], rows, columns, depth, *places, 0 if bias is None else address_of(bias))
    return out


def _packable(x: Array) -> Array:
    """x, or a copy whose rows are contiguous."""
    rows, columns = x.shape[-2:]
    if x.strides[-1] == FLOAT_BYTES or x.strides[-2] == FLOAT_BYTES or rows == 1 or columns == 1:
        return x
    return np.ascontiguousarray(x)


def _place(x: Array, outer: int, deep: int) -> tuple[int, int, int, int, int]:
    """Address, steps of the two dimensions of the batch, that of dimension `outer`, that of the one summed over."""
    outer_step, deep_step = x.strides[outer], x.strides[deep]
    # Along a dimension of one element nobody steps: it is taken for the contiguous one where the other is not.
    if x.shape[outer] == 1:
        outer_step = FLOAT_BYTES
    elif x.shape[deep] == 1 and outer_step != FLOAT_BYTES:
        deep_step = FLOAT_BYTES
    if x.ndim == 2:
        return address_of(x), 0, 0, outer_step, deep_step
    leading = [0 if size == 1 else step for size, step in zip(x.shape[:-2], x.strides[:-2], strict=True)]
    outermost, inner = (0, *leading)[-2:]
    return address_of(x), outermost, inner, outer_step, deep_step


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
