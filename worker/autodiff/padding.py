"""Padding of dimensions: with a number, or with the tensor's own elements."""

from __future__ import annotations

from typing import Literal

import numpy as np

from worker.autodiff.dimensions import Ints, at, ints
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "pad",
]

Mode = Literal["constant", "reflect", "replicate", "circular"]


def pad(x: Tensor, pad: Ints, mode: Mode = "constant", value: float | None = None) -> Tensor:
    """x with `pad` = (before, after) more elements in the last dimension, (…, before, after) in the one before it, ….

    "constant" fills them with `value` (0); "reflect" mirrors x at its first and last element, "replicate" repeats
    those, "circular" goes on at the other end. Negative numbers take elements away, but not from a circle.
    """
    widths = ints("pad", (pad,))
    if len(widths) % 2 or len(widths) > 2 * x.ndim:
        raise ValueError(f"pad: got {widths}, expected two numbers for each of at most {x.ndim} dimensions")
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise ValueError(f"pad: mode is {mode!r}, expected constant, reflect, replicate or circular")
    if value and mode != "constant":
        raise ValueError(f"pad: value is {value}, expected none in mode {mode!r}")
    for k in range(0, len(widths), 2):
        before, after = widths[k : k + 2]
        dim = x.ndim - 1 - k // 2
        _check_widths(x, dim, before, after, mode)
        if before or after:
            x = _constant(x, dim, before, after, value) if mode == "constant" else _copied(x, dim, before, after, mode)
    return x if any(widths) else record("pad", x.data.copy(), (x, lambda g: g))


def _constant(x: Tensor, dim: int, before: int, after: int, value: float | None) -> Tensor:
    size = x.shape[dim]
    shape = (*x.shape[:dim], before + size + after, *x.shape[dim + 1 :])
    inside = at(dim, slice(max(before, 0), before + size + min(after, 0)))
    taken = at(dim, slice(max(-before, 0), size + min(after, 0)))
    padded = np.full(shape, value or 0, x.dtype)
    padded[inside] = x.data[taken]
    x_shape, dtype = x.shape, x.dtype

    def vjp(g: Array) -> Array:
        if before >= 0 and after >= 0:
            return g[inside]
        gradient = np.zeros(x_shape, dtype)
        gradient[taken] = g[inside]
        return gradient

    return record("pad", padded, (x, vjp))


def _copied(x: Tensor, dim: int, before: int, after: int, mode: Mode) -> Tensor:
    size = x.shape[dim]
    positions = np.arange(-before, size + after)
    sources = _sources(positions, size, mode)
    outside = np.flatnonzero((positions < 0) | (positions >= size))
    kept = positions[(positions >= 0) & (positions < size)]
    x_shape, dtype = x.shape, x.dtype

    def vjp(g: Array) -> Array:
        gradient = np.zeros(x_shape, dtype)
        if kept.size:
            gradient[at(dim, slice(kept[0], kept[-1] + 1))] = g[at(dim, slice(kept[0] + before, kept[-1] + 1 + before))]
        for i in outside:
            gradient[at(dim, int(sources[i]))] += g[at(dim, int(i))]
        return gradient

    return record("pad", np.take(x.data, sources, dim), (x, vjp))


def _sources(positions: Array, size: int, mode: Mode) -> Array:
    """Which element of a dimension of this size stands at each position; 0..size-1 are its own."""
    match mode:
        case "reflect":
            return np.asarray(size - 1 - np.abs(size - 1 - np.abs(positions)))
        case "replicate":
            return np.clip(positions, 0, size - 1)
        case _:
            return np.asarray(positions % max(size, 1))


def _check_widths(x: Tensor, dim: int, before: int, after: int, mode: Mode) -> None:
    size = x.shape[dim]
    least, most = {
        "constant": (-size, max(before, after)),
        "reflect": (-size, size - 1),
        "replicate": (-size, max(before, after) if size else 0),
        "circular": (0, size),
    }[mode]
    is_within = least <= min(before, after) and max(before, after, 0) <= max(most, 0)
    if not is_within or size + min(before, 0) + min(after, 0) < 0:
        raise ValueError(f"pad: dim {dim} of x has size {size}, which mode {mode!r} cannot pad by ({before}, {after})")
