"""MultiheadAttention. Names, arguments, masks and state dict keys are PyTorch's.

Shapes: B batch, T queries, S keys, E width, H heads.
"""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff import Tensor, philox
from worker.autodiff import functional as F
from worker.nn import init
from worker.nn.layers import Linear
from worker.nn.module import Module, Parameter


def causal_mask(rows: int, columns: int) -> Tensor:
    """True where attention is not allowed: what comes after the query."""
    return Tensor(~np.tri(rows, columns, dtype=np.bool_))


def dropout(x: Tensor, p: float, *, training: bool) -> Tensor:
    """Zero each element with probability p and scale the others, so that the mean stays; nothing outside training."""
    if not training or not p:
        return x
    kept = philox.draw(philox.uniform, x.shape) >= p
    return x * Tensor(kept * x.dtype.type(1 / (1 - p) if p < 1 else 0))


class MultiheadAttention(Module):
    """query (B, T, E), key and value (B, S, E) -> (B, T, E), and the mean over heads of the weights (B, T, S).

    Without `batch_first` time comes first; without a batch, B is left out. The projections of query, key and value
    are one weight (3E, E). They start as Xavier's, the biases at zero, as PyTorch's do.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        *,
        generator: np.random.Generator,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"MultiheadAttention: embed_dim {embed_dim} cannot be cut into {num_heads} heads")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.in_proj_weight = Parameter(np.empty((3 * embed_dim, embed_dim), np.float32))
        self.in_proj_bias = Parameter(np.zeros(3 * embed_dim, np.float32)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, generator=generator)
        init.xavier_uniform_(self.in_proj_weight, generator=generator)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Masks are True where attention is *not* allowed (other than in functional), or numbers to be added.

        key_padding_mask (B, S); attn_mask (T, S) or (B * H, T, S). is_causal says that attn_mask is the causal one, or
        stands for it. Without need_weights, which is faster, the weights are None.
        """
        if query.ndim == 2:
            batch_dim = 0 if self.batch_first else 1
            q, k, v = (F.reshape(x, _inserted(x.shape, batch_dim)) for x in (query, key, value))
            padding = None if key_padding_mask is None else key_padding_mask.reshape(1, -1)
            if query is key is value:
                k = v = q
            out, weights = self(q, k, v, padding, need_weights, attn_mask, average_attn_weights, is_causal)
            return out.reshape(query.shape), None if weights is None else weights[0]
        is_self = query is key is value
        if not self.batch_first:
            query = query.transpose(0, 1)
            key, value = (query, query) if is_self else (key.transpose(0, 1), value.transpose(0, 1))
        needs_mask = not is_causal or need_weights or key_padding_mask is not None
        if needs_mask and is_causal and attn_mask is None:
            attn_mask = causal_mask(query.shape[1], key.shape[1])
        mask = self._mask(query, key, key_padding_mask, attn_mask) if needs_mask else None
        is_causal = not needs_mask
        dropout_p = self.dropout if self.training else 0.0
        weights = None
        if is_self and not need_weights:
            qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
            out = F.self_attention(qkv, self.num_heads, mask, dropout_p, is_causal)
        else:
            q, k, v = map(self._heads, self._projections(query, key, value))
            if need_weights:
                out, weights = _with_weights(q, k, v, mask, dropout_p)
            else:
                out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)
            out = out.transpose(1, 2).flatten(2)
        out = self.out_proj(out)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        return out if self.batch_first else out.transpose(0, 1), weights

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}"

    def _projections(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each third of the weight makes of its input."""

        def projection(x: Tensor, i: int) -> Tensor:
            third = slice(i * self.embed_dim, (i + 1) * self.embed_dim)
            bias = None if self.in_proj_bias is None else self.in_proj_bias[third]
            return F.linear(x, self.in_proj_weight[third], bias)

        return projection(query, 0), projection(key, 1), projection(value, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, E) -> (B, H, T, E / H)."""
        batch, time, width = x.shape
        return x.reshape(batch, time, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _mask(self, query: Tensor, key: Tensor, padding: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores (B, H, T, S)."""
        batch, rows, columns = query.shape[0], query.shape[1], key.shape[1]
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask)
            if mask.ndim == 3:
                mask = mask.reshape(batch, self.num_heads, rows, columns)
        if padding is not None:
            keys = _additive(padding).reshape(batch, 1, 1, columns)
            mask = keys if mask is None else mask + keys
        return mask


def _inserted(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], 1, *shape[dim:])


def _additive(mask: Tensor) -> Tensor:
    """A mask of booleans, True where attention is not allowed, as numbers to be added."""
    if mask.dtype != np.bool_:
        return mask
    return Tensor(np.where(mask.data, np.float32(-np.inf), np.float32(0)))


def _with_weights(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """Attention step by step, for whoever wants to see the weights (B, H, T, S)."""
    scores = F.matmul(query * (1 / math.sqrt(query.shape[-1])), key.transpose(-1, -2))
    weights = dropout(F.softmax(scores if mask is None else scores + mask, -1), dropout_p, training=True)
    return F.matmul(weights, value), weights
