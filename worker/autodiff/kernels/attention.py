"""Scaled dot-product attention as products of blocks, with the softmax between them in place.

Causal attention goes over blocks of rows, and never computes the columns that none of a block's rows may see.

Shapes: ... batch and heads, T queries, S keys, E width of queries and keys, V width of values. Queries, keys, values
and their gradients may be views with any strides, such as the thirds of one array. The attention `weights` (..., T, S)
and all that is written are the caller's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import fused_attention, units
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.float16 import half, single
from worker.autodiff.kernels.gemm import matmul, tile_unit
from worker.autodiff.kernels.softmax import softmax_backward_rows, softmax_rows

Array = NDArray[Any]

BLOCK = 64  # rows; smaller ones skip more of the masked half, but their products are slower


class Softmax(NamedTuple):
    """The attention weights of a forward pass, and the unit that it was fused on, or None."""

    weights: Array
    unit: int | None


def attention_forward(
    query: Array,
    key: Array,
    value: Array,
    *,
    scale: float,
    is_causal: bool,
    bias: Array | None,
    keep: Array | None,
    out: Array,
) -> Softmax:
    """out (..., T, V) = softmax(query @ key.T * scale + bias) * keep @ value; the softmax is returned, (..., T, S).

    `bias` and `keep`, dropout's factors, broadcast to (..., T, S). If `is_causal`, row t sees columns 0..t only, and
    what the softmax has beyond the block on the diagonal is left unset. float16 is computed as float32, one sample at a
    time.
    """
    if query.dtype == np.float16:
        weights, unit = np.empty((*query.shape[:-1], key.shape[-2]), np.float16), None
        for i in np.ndindex(query.shape[:-3]):
            y = np.empty((1, *out[i].shape), np.float32)
            part, unit = attention_forward(
                *(single(x[i])[None] for x in (query, key, value)),
                scale=scale,
                is_causal=is_causal,
                bias=None if bias is None else single(bias[i])[None],
                keep=None if keep is None else keep[i][None],
                out=y,
            )
            weights[i], out[i] = half(part[0]), half(y[0])
        return Softmax(weights, unit)
    rows, columns = query.shape[-2], key.shape[-2]
    weights = np.empty((*query.shape[:-1], columns), query.dtype)
    unit = _unit() if bias is None and keep is None else None
    if unit is not None and fused_attention.is_possible(query, key, value, is_causal):
        arrays = query, key, value
        fused_attention.forward(unit, *arrays, scale=scale, is_causal=is_causal, weights=weights, out=out)
        return Softmax(weights, unit)
    for first, last, end in _row_blocks(rows, columns, is_causal):
        block = weights[..., first:last, :end]
        matmul(query[..., first:last, :], key[..., :end, :].swapaxes(-1, -2), out=block)
        if bias is not None:
            block *= block.dtype.type(scale)
            block += bias[..., first:last, :end]
        _softmax(weights, 1 if bias is not None else scale, first, last, end, is_causal)
        kept = block if keep is None else block * keep[..., first:last, :end]
        matmul(kept, value[..., :end, :], out=out[..., first:last, :])
    return Softmax(weights, None)


def attention_backward(
    g: Array,
    query: Array,
    key: Array,
    value: Array,
    softmax: Softmax,
    *,
    scale: float,
    is_causal: bool,
    keep: Array | None,
    out: Sequence[Array],
) -> Array:
    """Write the gradients of query, key and value into `out`, given that of the output, g (..., T, V).

    The gradient of query @ key.T is returned, (..., T, S), set where the softmax is and there is a bias.
    """
    weights, unit = softmax
    if weights.dtype == np.float16:
        dweights = np.empty(weights.shape, np.float16)
        for i in np.ndindex(weights.shape[:-3]):
            parts = [np.empty((1, *x[i].shape), np.float32) for x in out]
            dy, q, k, v = (single(x[i])[None] for x in (g, query, key, value))
            part = attention_backward(
                dy,
                q,
                k,
                v,
                Softmax(single(weights[i])[None], unit),
                scale=scale,
                is_causal=is_causal,
                keep=None if keep is None else keep[i][None],
                out=parts,
            )
            dweights[i] = half(part[0])
            for x, y in zip(out, parts, strict=True):
                x[i] = half(y[0])
        return dweights
    if unit is not None:
        arrays = np.ascontiguousarray(g), query, key, value, weights
        fused_attention.backward(unit, *arrays, scale=scale, is_causal=is_causal, out=out)
        return weights
    rows, columns = weights.shape[-2:]
    dquery, dkey, dvalue = out
    dweights = np.empty(weights.shape, weights.dtype)
    for first, last, end in _row_blocks(rows, columns, is_causal):
        block = dweights[..., first:last, :end]
        matmul(g[..., first:last, :], value[..., :end, :].swapaxes(-1, -2), out=block)
        if keep is not None:
            block *= keep[..., first:last, :end]
        _softmax_backward(weights, dweights, scale, first, last, end)
        matmul(block, key[..., :end, :], out=dquery[..., first:last, :])
    kept = weights if keep is None else weights * keep
    for first, last, start in _column_blocks(rows, columns, is_causal):
        seen_by = np.s_[..., start:, first:last]
        matmul(kept[seen_by].swapaxes(-1, -2), g[..., start:, :], out=dvalue[..., first:last, :])
        matmul(dweights[seen_by].swapaxes(-1, -2), query[..., start:, :], out=dkey[..., first:last, :])
    if is_causal and columns > rows:  # keys that no query sees
        dkey[..., rows:, :] = 0
        dvalue[..., rows:, :] = 0
    return dweights


def _unit() -> int | None:
    """What computes attention where it is fused: heads are too small for slices to be worth cutting."""
    unit = tile_unit()
    return units.FLOAT32 if unit == units.AMX_FLOAT32 else unit


def _row_blocks(rows: int, columns: int, is_causal: bool) -> Sequence[tuple[int, int, int]]:
    """(first, last, end): rows first..last-1 see columns 0..end-1 at most."""
    if not is_causal:
        return [(0, rows, columns)]
    lasts = [min(first + BLOCK, rows) for first in range(0, rows, BLOCK)]
    return [(i * BLOCK, last, min(last, columns)) for i, last in enumerate(lasts)]


def _column_blocks(rows: int, columns: int, is_causal: bool) -> Sequence[tuple[int, int, int]]:
    """(first, last, start): columns first..last-1 are seen by rows start.. at most."""
    if not is_causal:
        return [(0, columns, 0)]
    seen = min(rows, columns)
    return [(first, min(first + BLOCK, seen), first) for first in range(0, seen, BLOCK)]


def _softmax(scores: Array, scale: float, first: int, last: int, end: int, is_causal: bool) -> None:
    """Replace a block of scores (..., T, S) by softmax(scores * scale) over its columns; rows of -Inf become zeros."""
    if scores.dtype == np.float32:
        _softmax_loop(_matrices(scores), np.float32(scale), first, last, end, is_causal)
        return
    block = scores[..., first:last, :end]
    block *= scale
    if is_causal:
        block[..., np.arange(first, last)[:, None] < np.arange(end)] = -np.inf
    largest = block.max(axis=-1, keepdims=True, initial=-np.inf)
    np.exp(block - np.where(largest == -np.inf, 0, largest), out=block)
    total = block.sum(axis=-1, keepdims=True)
    block /= np.where(total == 0, 1, total)


def _softmax_backward(weights: Array, g: Array, scale: float, first: int, last: int, end: int) -> None:
    """Replace a block of g, the gradient of the weights that _softmax gave, by that of the scores."""
    if g.dtype == np.float32:
        _softmax_backward_loop(_matrices(weights), _matrices(g), np.float32(scale), first, last, end)
        return
    block, weight = g[..., first:last, :end], weights[..., first:last, :end]
    block -= (block * weight).sum(axis=-1, keepdims=True)
    block *= weight * scale


def _matrices(x: Array) -> Array:
    return x.reshape(-1, *x.shape[-2:])


@compiled
def _softmax_loop(scores: Array, scale: np.float32, first: int, last: int, end: int, is_causal: bool) -> None:
    for n in range(scores.shape[0]):
        softmax_rows(scores[n], scale, first, last, end, is_causal)


@compiled
def _softmax_backward_loop(weights: Array, g: Array, scale: np.float32, first: int, last: int, end: int) -> None:
    for n in range(g.shape[0]):
        softmax_backward_rows(weights[n], g[n], scale, first, last, end)
