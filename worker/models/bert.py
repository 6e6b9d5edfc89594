"""Bert (Devlin et al., 2019): a transformer that sees a whole text, and its two heads.

Shapes: B batch, T time, V vocabulary, C width, M masked positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import call
from typing import Any

import numpy as np

from worker.autodiff import Tensor, checkpoint
from worker.autodiff import functional as F
from worker.autodiff.losses import Reduction
from worker.autodiff.tensor import Array
from worker.nn import Embedding, LayerNorm, Linear, Module, Parameter, Sequential, TransformerEncoderLayer, init
from worker.nn.attention import dropout

WEIGHT_STD, NORM_EPS = 0.02, 1e-12
IGNORED = -100  # a target that does not count


class Bert(Module):
    """tokens (B, T) -> (B, T, C), where T is at most `context`.

    Post-norm layers of `width` with GELU by erf; learned positions; `types` kinds of tokens (first text, second text).
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
        types: int = 2,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        generator: np.random.Generator,
    ) -> None:
        super().__init__()
        self.width, self.context, self.dropout = width, context, dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.token_embedding = Embedding(vocabulary, width, generator=generator)
        self.position_embedding = Embedding(context, width, generator=generator)
        self.type_embedding = Embedding(types, width, generator=generator)
        self.norm = LayerNorm(width, NORM_EPS)
        self.layers = Sequential(
            *(
                TransformerEncoderLayer(
                    width,
                    heads,
                    4 * width,
                    dropout,
                    activation="gelu",
                    layer_norm_eps=NORM_EPS,
                    batch_first=True,
                    generator=generator,
                )
                for _ in range(layers)
            )
        )
        start(self, generator)

    def forward(
        self, tokens: Tensor, token_types: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """token_types (B, T) are all 0 by default; attention_mask (B, T) is 0 or False where a token is padding."""
        time = tokens.shape[-1]
        if tokens.ndim != 2 or time > self.context:
            raise ValueError(f"Bert: tokens have shape {tokens.shape}, expected (batch, at most {self.context})")
        types = Tensor(np.zeros(1, np.int64)) if token_types is None else token_types
        x = self.token_embedding(tokens) + (
            self.position_embedding(Tensor(np.arange(time))) + self.type_embedding(types)
        )
        x = dropout(self.norm(x), self.dropout, training=self.training)
        padding = None if attention_mask is None else Tensor(attention_mask.data == 0)
        run = checkpoint if self.gradient_checkpointing else call
        for layer in self.layers:
            x = run(partial(layer, src_key_padding_mask=padding), x)
        return x  # type: ignore[no-any-return]  # a module gives anything

    def huggingface_names(self) -> dict[str, tuple[str, ...]]:
        """Our parameters' names to those in Hugging Face's BertModel: one, or several that are stacked."""
        names: dict[str, tuple[str, ...]] = {
            "token_embedding.weight": ("embeddings.word_embeddings.weight",),
            "position_embedding.weight": ("embeddings.position_embeddings.weight",),
            "type_embedding.weight": ("embeddings.token_type_embeddings.weight",),
            "norm.weight": ("embeddings.LayerNorm.weight",),
            "norm.bias": ("embeddings.LayerNorm.bias",),
        }
        for i in range(len(self.layers)):
            for ours, theirs in _LAYER_NAMES.items():
                for kind in ("weight", "bias"):
                    names[f"layers.{i}.{ours}{kind}"] = tuple(f"encoder.layer.{i}.{t}.{kind}" for t in theirs)
        return names

    def load_huggingface(self, state: Mapping[str, Any]) -> None:
        """Copy the weights of a BertModel in Hugging Face's naming, arrays or CPU tensors; its pooler is left out.

        ValueError for names that are missing or wrong shapes.
        """
        _load(self, state, self.huggingface_names())


class MaskedLanguageModel(Module):
    """tokens (B, T) -> logits (B, T, V) of the tokens that were masked, with the embedding's weight as the last."""

    def __init__(self, bert: Bert, *, generator: np.random.Generator) -> None:
        super().__init__()
        self.bert = bert
        self.transform = Linear(bert.width, bert.width, generator=generator)
        self.norm = LayerNorm(bert.width, NORM_EPS)
        self.bias = Parameter(np.zeros(bert.token_embedding.num_embeddings, np.float32))
        start(self.transform, generator)

    def forward(
        self,
        tokens: Tensor,
        token_types: Tensor | None = None,
        attention_mask: Tensor | None = None,
        positions: Array | None = None,
    ) -> Tensor:
        """With `positions` (M,), which count through the batch row by row, the logits are (M, V): of these only."""
        hidden = self.bert(tokens, token_types, attention_mask)
        if positions is not None:
            # A look-up like any other: its gradient is scattered in one pass.
            hidden = F.embedding(Tensor(positions), hidden.reshape(-1, self.bert.width))
        hidden = self.norm(F.gelu(self.transform(hidden)))
        return F.linear(hidden, self.bert.token_embedding.weight, self.bias)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        token_types: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The cross-entropy of targets (B, T) where they are not -100; logits are computed at these positions only."""
        flat = targets.data.reshape(-1)
        positions = np.flatnonzero(flat != IGNORED)
        logits = self(tokens, token_types, attention_mask, positions)
        return F.cross_entropy(logits, Tensor(flat[positions]), reduction=reduction)

    def load_huggingface(self, state: Mapping[str, Any]) -> None:
        """Copy the weights of a BertForMaskedLM in Hugging Face's naming; see Bert.load_huggingface."""
        names = {
            "transform.weight": ("cls.predictions.transform.dense.weight",),
            "transform.bias": ("cls.predictions.transform.dense.bias",),
            "norm.weight": ("cls.predictions.transform.LayerNorm.weight",),
            "norm.bias": ("cls.predictions.transform.LayerNorm.bias",),
            "bias": ("cls.predictions.bias",),
        }
        _load(self, state, names | _within_bert(self.bert))


class SequenceClassifier(Module):
    """tokens (B, T) -> logits (B, classes), from what stands at the first token."""

    def __init__(self, bert: Bert, classes: int, *, generator: np.random.Generator) -> None:
        super().__init__()
        self.bert = bert
        self.pooler = Linear(bert.width, bert.width, generator=generator)
        self.classifier = Linear(bert.width, classes, generator=generator)
        start(self.pooler, generator)
        start(self.classifier, generator)

    def forward(
        self, tokens: Tensor, token_types: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        first = self.bert(tokens, token_types, attention_mask)[:, 0]
        pooled = dropout(F.tanh(self.pooler(first)), self.bert.dropout, training=self.training)
        return self.classifier(pooled)  # type: ignore[no-any-return]  # a module gives anything

    def load_huggingface(self, state: Mapping[str, Any]) -> None:
        """Copy the weights of a BertForSequenceClassification in Hugging Face's naming; see Bert.load_huggingface."""
        names = {
            f"{ours}.{kind}": (f"{theirs}.{kind}",)
            for ours, theirs in (("pooler", "bert.pooler.dense"), ("classifier", "classifier"))
            for kind in ("weight", "bias")
        }
        _load(self, state, names | _within_bert(self.bert))


def start(model: Module, generator: np.random.Generator) -> None:
    """Weights normal with std 0.02, biases zero."""
    for module in model.modules():
        match module:
            case Embedding():
                init.normal_(module.weight, std=WEIGHT_STD, generator=generator)
            case Linear():
                init.normal_(module.weight, std=WEIGHT_STD, generator=generator)
                if module.bias is not None:
                    init.zeros_(module.bias)
            case TransformerEncoderLayer():
                init.normal_(module.self_attn.in_proj_weight, std=WEIGHT_STD, generator=generator)


_LAYER_NAMES = {
    "self_attn.in_proj_": tuple(f"attention.self.{part}" for part in ("query", "key", "value")),
    "self_attn.out_proj.": ("attention.output.dense",),
    "norm1.": ("attention.output.LayerNorm",),
    "linear1.": ("intermediate.dense",),
    "linear2.": ("output.dense",),
    "norm2.": ("output.LayerNorm",),
}


def _within_bert(bert: Bert) -> dict[str, tuple[str, ...]]:
    """The names below `bert.`, on both sides."""
    return {
        f"bert.{ours}": tuple(f"bert.{name}" for name in theirs) for ours, theirs in bert.huggingface_names().items()
    }


def _load(model: Module, state: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> None:
    missing = sorted({name for theirs in names.values() for name in theirs} - state.keys())
    if missing:
        raise ValueError(f"load_huggingface: missing {missing}")
    stack: Callable[[list[Array]], Array] = np.concatenate
    model.load_state_dict({ours: stack([np.asarray(state[name]) for name in theirs]) for ours, theirs in names.items()})
