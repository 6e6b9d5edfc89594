"""Gpt: GPT-2 (Radford et al., 2019), a causal transformer that predicts the next token.

Shapes: B batch, T time, V vocabulary, C width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from operator import call
from typing import Any

import numpy as np

from worker.autodiff import Tensor, checkpoint, no_grad
from worker.autodiff import functional as F
from worker.autodiff.losses import Reduction
from worker.autodiff.tensor import Array
from worker.nn import Embedding, LayerNorm, Linear, Module, Sequential, TransformerEncoderLayer, init
from worker.nn.attention import dropout

EMBEDDING_STD = 0.02


class Gpt(Module):
    """tokens (B, T) -> logits (B, T, V), where T is at most `context`.

    Pre-norm layers of `width` with GELU by tanh, learned positions, and one weight for the tokens' embedding and the
    logits. Embeddings start normal with std 0.02, the weights of layers as `weight_std` says, those that end a residual
    branch smaller (init.scaled_residual_).
    With gradient_checkpointing a layer keeps its input alone and is computed again in the backward pass.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        layers: int,
        heads: int,
        width: int,
        context: int,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        generator: np.random.Generator,
    ) -> None:
        super().__init__()
        self.context, self.dropout, self.gradient_checkpointing = context, dropout, gradient_checkpointing
        self.token_embedding = Embedding(vocabulary, width, generator=generator)
        self.position_embedding = Embedding(context, width, generator=generator)
        self.layers = Sequential(
            *(
                TransformerEncoderLayer(
                    width,
                    heads,
                    4 * width,
                    dropout,
                    activation=_gelu,
                    batch_first=True,
                    norm_first=True,
                    generator=generator,
                )
                for _ in range(layers)
            )
        )
        self.norm = LayerNorm(width)
        self._start(layers, weight_std(width), generator)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._logits(self._hidden(tokens))

    def loss(self, tokens: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """The cross-entropy of targets (B, T), the tokens that come next; those that are -100 do not count."""
        logits = self(tokens)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction=reduction)

    def generate(
        self,
        tokens: Array,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: np.random.Generator | None = None,
    ) -> Array:
        """tokens (B, T) with max_new_tokens more behind them, (B, T + max_new_tokens).

        Each is drawn from the softmax of the logits / temperature, among the `top_k` most likely tokens, and of those
        among the fewest whose probabilities reach `top_p` together. Without a generator, or at temperature 0, it is the
        most likely one. Only the newest `context` tokens are seen.
        """
        _check_sampling(tokens, temperature, top_k, top_p)
        is_training = self.training
        self.eval()
        with no_grad():
            for _ in range(max_new_tokens):
                hidden = self._hidden(Tensor(tokens[:, -self.context :]))
                logits = self._logits(Tensor(hidden.data[:, -1])).data
                if generator is None or temperature == 0:
                    chosen = logits.argmax(axis=-1)
                else:
                    probabilities = _probabilities(logits / np.float32(temperature), top_k, top_p)
                    chosen = _draw(probabilities, generator)
                tokens = np.concatenate([tokens, chosen[:, None].astype(tokens.dtype)], axis=1)
        self.train(is_training)
        return tokens

    def load_huggingface(self, state: Mapping[str, Any]) -> None:
        """Copy the weights of a GPT-2 in Hugging Face's naming (GPT2Model or GPT2LMHeadModel), arrays or CPU tensors.

        Its linear weights are (in, out), ours (out, in). ValueError for names that are missing or wrong shapes.
        """
        theirs = {name.removeprefix("transformer."): value for name, value in state.items()}
        names = {
            "token_embedding.weight": "wte.weight",
            "position_embedding.weight": "wpe.weight",
            "norm.weight": "ln_f.weight",
            "norm.bias": "ln_f.bias",
        }
        transposed = set()
        for i in range(len(self.layers)):
            for ours, name in _LAYER_NAMES.items():
                for kind in ("weight", "bias"):
                    own = f"layers.{i}.{ours}{kind}"
                    names[own] = f"h.{i}.{name}.{kind}"
                    if kind == "weight" and not name.startswith("ln"):
                        transposed.add(own)
        missing = sorted(set(names.values()) - theirs.keys())
        if missing:
            raise ValueError(f"load_huggingface: missing {missing}")
        arrays = {ours: np.asarray(theirs[name]) for ours, name in names.items()}
        self.load_state_dict({ours: a.T if ours in transposed else a for ours, a in arrays.items()})

    def _hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, C), what the logits are made of."""
        time = tokens.shape[-1]
        if tokens.ndim != 2 or time > self.context:
            raise ValueError(f"Gpt: tokens have shape {tokens.shape}, expected (batch, at most {self.context})")
        positions = np.broadcast_to(np.arange(time), tokens.shape)  # of each sample, whose gradients may stay apart
        x = self.token_embedding(tokens) + self.position_embedding(Tensor(positions))
        x = dropout(x, self.dropout, training=self.training)
        run = checkpoint if self.gradient_checkpointing else call
        for layer in self.layers:
            x = run(partial(layer, is_causal=True), x)
        return self.norm(x)  # type: ignore[no-any-return]  # a module gives anything

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.token_embedding.weight)

    def _start(self, layers: int, std: float, generator: np.random.Generator) -> None:
        for module in self.modules():
            match module:
                case Embedding():
                    init.normal_(module.weight, std=EMBEDDING_STD, generator=generator)
                case TransformerEncoderLayer():
                    init.normal_(module.self_attn.in_proj_weight, std=std, generator=generator)
                    init.normal_(module.linear1.weight, std=std, generator=generator)
                    init.scaled_residual_(module.self_attn.out_proj.weight, layers, std, generator=generator)
                    init.scaled_residual_(module.linear2.weight, layers, std, generator=generator)
                case Linear() if module.bias is not None:
                    init.zeros_(module.bias)


def weight_std(width: int) -> float:
    """0.02 at the width of GPT-2, 768, and larger in a narrower model by the root of how much narrower it is.

    So what a layer makes of a normalised input starts as large as it does in GPT-2. With 0.02 at any width a narrow
    model starts with too little of it, and learns the slower.
    """
    return 0.02 * math.sqrt(768 / width)


_LAYER_NAMES = {
    "norm1.": "ln_1",
    "self_attn.in_proj_": "attn.c_attn",
    "self_attn.out_proj.": "attn.c_proj",
    "norm2.": "ln_2",
    "linear1.": "mlp.c_fc",
    "linear2.": "mlp.c_proj",
}


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, "tanh")


def _probabilities(logits: Array, top_k: int | None, top_p: float | None) -> Array:
    """softmax(logits (B, V)) in float64, zero outside the top k and the top p."""
    order = np.argsort(-logits, axis=-1, kind="stable")  # equal logits: the lower token first, on every machine
    sorted_logits = np.take_along_axis(logits, order, axis=-1).astype(np.float64)
    weights = np.exp(sorted_logits - sorted_logits[:, :1])
    if top_k is not None:
        weights[:, top_k:] = 0
    weights /= weights.sum(axis=-1, keepdims=True)
    if top_p is not None:
        before = np.cumsum(weights, axis=-1) - weights
        weights[before >= top_p] = 0
        weights /= weights.sum(axis=-1, keepdims=True)
    probabilities = np.empty_like(weights)
    np.put_along_axis(probabilities, order, weights, axis=-1)
    return probabilities


def _draw(probabilities: Array, generator: np.random.Generator) -> Array:
    """One token for each row of probabilities (B, V)."""
    cumulative = np.cumsum(probabilities, axis=-1)
    draws = generator.random((len(probabilities), 1)) * cumulative[:, -1:]
    return np.asarray((cumulative <= draws).sum(axis=-1))


def _check_sampling(tokens: Array, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"generate: tokens are {tokens.dtype} of shape {tokens.shape}, expected integers (batch, time)"
        )
    if not temperature >= 0:
        raise ValueError(f"generate: temperature is {temperature}, expected 0 or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k is {top_k}, expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p is {top_p}, expected above 0, at most 1")
