"""Attention (Vaswani et al., 2017): softmax(query @ key.T * scale + mask) @ value.

Shapes: B batch, H heads, T queries, S keys, E width of a head's queries and keys, V of its values, C = H * E all heads,
... leading dimensions, such as (B, H).
"""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff import kernels, philox
from worker.autodiff.graph import record, together
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "scaled_dot_product_attention",
    "self_attention",
]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """query (..., T, E), key (..., S, E), value (..., S, V) -> (..., T, V), as in torch.nn.functional.

    attn_mask broadcasts to (..., T, S): booleans say what takes part, numbers are added to the scores. With is_causal,
    which excludes a mask, query t sees keys 0..t. A query that sees no key gets zeros. `scale` is 1/sqrt(E) by default.
    Weights are dropped whenever dropout_p is above 0: whoever calls knows whether this is training.
    """
    _check_shapes(query, key, value)
    _check_mask(attn_mask, dropout_p, is_causal)
    leading = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    q, k, v = (np.broadcast_to(x.data, leading + x.shape[-2:]) for x in (query, key, value))
    shape = (*leading, q.shape[-2], k.shape[-2])
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    keep = _keep(shape, dropout_p, q.dtype)
    out = _empty_like(q, v.shape[-1])
    weights = kernels.attention_forward(
        q, k, v, scale=factor, is_causal=is_causal, bias=_bias(attn_mask, shape, q.dtype), keep=keep, out=out
    )

    def backward(g: Array) -> tuple[Array, ...]:
        gradients = tuple(_empty_like(x, x.shape[-1]) for x in (q, k, v))
        dscores = kernels.attention_backward(
            g, q, k, v, weights, scale=factor, is_causal=is_causal, keep=keep, out=gradients
        )
        return *gradients, dscores

    vjps = together(backward, 4)
    return record(
        "scaled_dot_product_attention",
        out,
        *zip((query, key, value), vjps[:3], strict=True),
        (attn_mask, lambda g: vjps[3](g) / g.dtype.type(factor)),
    )


def self_attention(
    qkv: Tensor,
    num_heads: int,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """Attention of a sequence to itself: qkv (B, T, 3C), the projections side by side, -> (B, T, C).

    The same as cutting qkv into query, key and value and those into heads of width E = C / num_heads, but nothing is
    copied, and the gradient of qkv is one array. attn_mask broadcasts to (B, H, T, T).
    """
    if qkv.ndim != 3 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(
            f"self_attention: qkv has shape {qkv.shape}, expected (batch, time, 3 * width) for {num_heads} heads"
        )
    _check_mask(attn_mask, dropout_p, is_causal)
    batch, time, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    head = width // num_heads
    factor = 1 / math.sqrt(head)
    weights_shape = (batch, num_heads, time, time)

    def heads(x: Array) -> Array:
        """(B, T, n * C) -> (n, B, H, T, E), a view."""
        return x.reshape(batch, time, x.shape[-1] // width, num_heads, head).transpose(2, 0, 3, 1, 4)

    q, k, v = heads(qkv.data)
    keep = _keep(weights_shape, dropout_p, q.dtype)
    out = np.empty((batch, time, width), q.dtype)
    weights = kernels.attention_forward(
        q,
        k,
        v,
        scale=factor,
        is_causal=is_causal,
        bias=_bias(attn_mask, weights_shape, q.dtype),
        keep=keep,
        out=heads(out)[0],
    )

    def backward(g: Array) -> tuple[Array, ...]:
        gradient = np.empty((batch, time, 3 * width), q.dtype)
        dq, dk, dv = heads(gradient)
        dscores = kernels.attention_backward(
            heads(g)[0], q, k, v, weights, scale=factor, is_causal=is_causal, keep=keep, out=(dq, dk, dv)
        )
        return gradient, dscores

    dqkv, dscores = together(backward, 2)
    return record("self_attention", out, (qkv, dqkv), (attn_mask, lambda g: dscores(g) / g.dtype.type(factor)))


def _keep(shape: tuple[int, ...], dropout_p: float, dtype: np.dtype[np.float32]) -> Array | None:
    """Dropout's factors: 0 with probability dropout_p, else what keeps the mean. None for no dropout."""
    if not dropout_p:
        return None
    kept = philox.draw(philox.uniform, shape) >= dropout_p
    scale = np.float32 if dtype == np.float16 else dtype.type
    return kept * scale(1 / (1 - dropout_p) if dropout_p < 1 else 0)


def _bias(mask: Tensor | None, shape: tuple[int, ...], dtype: np.dtype[np.float32]) -> Array | None:
    """What is added to the scores, of their shape (..., T, S)."""
    if mask is None:
        return None
    values = mask.data
    if values.dtype == np.bool_:
        values = np.where(values, dtype.type(0), dtype.type(-np.inf))
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        raise ValueError(f"attention: attn_mask has shape {mask.shape}, which does not broadcast to {shape}") from None


def _empty_like(x: Array, width: int) -> Array:
    """An unset array (..., width), whose dimensions lie in memory as those of x do: a later transpose is then free."""
    if x.shape[-1] == width and 0 not in x.strides:
        return np.empty_like(x)
    return np.empty((*x.shape[:-1], width), x.dtype)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ValueError(
            f"attention: query has shape {query.shape}, key {key.shape} and value {value.shape}; "
            "expected 2 dimensions or more"
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"attention: query has {query.shape[-1]} features but key has {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"attention: there are {key.shape[-2]} keys but {value.shape[-2]} values")


def _check_mask(mask: Tensor | None, dropout_p: float, is_causal: bool) -> None:
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"attention: dropout_p is {dropout_p}, expected 0..1")
    if mask is not None and is_causal:
        raise ValueError("attention: got attn_mask and is_causal; expected one of them")
    if mask is not None and mask.dtype.kind not in "fb":
        raise ValueError(f"attention: attn_mask is {mask.dtype}, expected booleans or floating-point numbers")
