"""The layers of a transformer (Vaswani et al., 2017). Names, arguments, masks and state dict keys are PyTorch's.

Shapes: B batch, T time, S time of the memory, E width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.nn.attention import MultiheadAttention, dropout
from worker.nn.layer_norm import LayerNorm
from worker.nn.layers import Linear
from worker.nn.module import Module

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu}


class TransformerEncoderLayer(Module):
    """Self-attention and a feed-forward network, each with a residual: src (B, T, E) -> (B, T, E).

    Normalisation comes after each residual, or before each branch with `norm_first`. Without `batch_first` time comes
    first.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        generator: np.random.Generator,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first, generator=generator)
        self.linear1 = Linear(d_model, dim_feedforward, bias, generator=generator)
        self.linear2 = Linear(dim_feedforward, d_model, bias, generator=generator)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout, self.norm_first, self.activation = dropout, norm_first, _activation(activation)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Masks as in MultiheadAttention; `is_causal` needs none."""
        x = src
        if self.norm_first:
            x = x + self._attend(self.norm1(x), src_mask, src_key_padding_mask, is_causal)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, src_mask, src_key_padding_mask, is_causal))
        return self.norm2(x + self._feed_forward(x))  # type: ignore[no-any-return]  # a module gives anything

    def _attend(self, x: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> Tensor:
        out, _ = self.self_attn(x, x, x, padding, need_weights=False, attn_mask=mask, is_causal=is_causal)
        return dropout(out, self.dropout, training=self.training)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = dropout(self.activation(self.linear1(x)), self.dropout, training=self.training)
        return dropout(self.linear2(hidden), self.dropout, training=self.training)


class TransformerDecoderLayer(Module):
    """Self-attention, attention to a memory, and a feed-forward network: tgt (B, T, E), memory (B, S, E) -> (B, T, E).

    Otherwise as TransformerEncoderLayer.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        generator: np.random.Generator,
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first, generator=generator)
        self.multihead_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first, generator=generator)
        self.linear1 = Linear(d_model, dim_feedforward, bias, generator=generator)
        self.linear2 = Linear(dim_feedforward, d_model, bias, generator=generator)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm3 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout, self.norm_first, self.activation = dropout, norm_first, _activation(activation)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Masks as in MultiheadAttention; `tgt_is_causal` and `memory_is_causal` need none."""

        def attend(x: Tensor) -> Tensor:
            out, _ = self.self_attn(
                x, x, x, tgt_key_padding_mask, need_weights=False, attn_mask=tgt_mask, is_causal=tgt_is_causal
            )
            return dropout(out, self.dropout, training=self.training)

        def recall(x: Tensor) -> Tensor:
            out, _ = self.multihead_attn(
                x,
                memory,
                memory,
                memory_key_padding_mask,
                need_weights=False,
                attn_mask=memory_mask,
                is_causal=memory_is_causal,
            )
            return dropout(out, self.dropout, training=self.training)

        def feed_forward(x: Tensor) -> Tensor:
            hidden = dropout(self.activation(self.linear1(x)), self.dropout, training=self.training)
            return dropout(self.linear2(hidden), self.dropout, training=self.training)

        x = tgt
        for norm, branch in ((self.norm1, attend), (self.norm2, recall), (self.norm3, feed_forward)):
            x = x + branch(norm(x)) if self.norm_first else norm(x + branch(x))
        return x


def _activation(activation: str | Activation) -> Activation:
    if not isinstance(activation, str):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected a function or one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]
