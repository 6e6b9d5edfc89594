"""Parts: one pass over a batch that is several parts, one after the other, as if each had a pass of its own.

Inside `in_parts(n)` the first dimension of whatever comes from the batch is n equal parts. What works sample by sample
need not know. What sums over samples keeps the sums of the parts apart, as n in front of its shape: a loss that is
reduced to its sum is (n,), and the gradient of a leaf (n, *shape). Each has the bits that a pass over its part alone
gives: sums and products are taken part by part, with the shapes of a part, and no element of any other result depends
on the samples beside it. What it saves is the time between kernels, and that weights are packed for each part.

It is for models that are made of operations which know parts (linear, embedding, layer_norm, dropout, attention, losses
by their sum) and of such as work sample by sample. The graph refuses a gradient that was summed over all parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.node import Into

Array = NDArray[Any]

current: ContextVar[int] = ContextVar("parts", default=1)


@contextmanager
def in_parts(count: int) -> Iterator[None]:
    """Operations and backward passes over batches of so many equal parts, in a `with` block. ValueError below 1."""
    if count < 1:
        raise ValueError(f"in_parts: got {count}, expected at least 1")
    token = current.set(count)
    try:
        yield
    finally:
        current.reset(token)


def shape_of_sums(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what is one array of `shape` for each part."""
    count = current.get()
    return shape if count == 1 else (count, *shape)


def size_of_part(num_rows: int, count: int) -> int:
    """The rows of each part. ValueError where they are not equally many."""
    size, rest = divmod(num_rows, count)
    if rest:
        raise ValueError(f"in_parts: got {num_rows} rows in {count} parts, expected a multiple")
    return size


def cut(array: Array, count: int) -> list[Array]:
    """The parts of an array, views. ValueError where they are not equal."""
    size = size_of_part(len(array), count)
    return [array[i * size : (i + 1) * size] for i in range(count)]


def part_by_part(write: Callable[..., Array], *samples: Array, add: Callable[..., Array] | None = None) -> Into:
    """The vjp of what all samples share, a parameter: write(gradient, out, *samples) of each part.

    `samples` are arrays of the forward pass that have a row, or as many, for each sample; `write` and `add` are as in
    Into, but for them.
    """
    count = current.get()
    if count == 1:
        return Into(
            lambda g, out: write(g, out, *samples), None if add is None else lambda g, into: add(g, into, *samples)
        )
    parts = list(zip(*(cut(rows, count) for rows in samples), strict=True)) or [()] * count

    def write_each(gradient: Array, out: Array | None) -> Array:
        if out is None:
            return np.stack([write(g, None, *part) for g, part in zip(cut(gradient, count), parts, strict=True)])
        for g, into, part in zip(cut(gradient, count), list(out), parts, strict=True):
            result = write(g, into, *part)
            if result is not into:
                into[...] = result
        return out

    def add_each(gradient: Array, into: Array) -> Array:
        assert add is not None, "else this is not given away"
        for g, sums, part in zip(cut(gradient, count), into, parts, strict=True):
            add(g, sums, *part)
        return into

    return Into(write_each, None if add is None else add_each, is_apart=True)
