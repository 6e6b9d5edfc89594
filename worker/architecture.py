"""The models that a job may ask for: their parts of the job spec."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from worker.parts import Choice, Decay, Fraction, Part, Width


class Activation(StrEnum):
    """Activation functions, by their names in PyTorch."""

    RELU = "relu"
    TANH = "tanh"
    GELU = "gelu"


class MlpModel(Part):
    """Linear layers with an activation between them."""

    hidden: tuple[Width, ...] = Field(default=(), strict=False, max_length=1000)
    activation: Activation = Field(default=Activation.RELU, strict=False)


class CnnModel(Part):
    """A residual convolutional network."""

    stages: tuple[Width, ...] = Field(default=(32, 64), strict=False, min_length=1, max_length=20)
    blocks: int = Field(default=1, ge=1, le=100)


class TransformerModel(Part):
    """The sizes of a transformer."""

    layers: int = Field(default=4, ge=1, le=1000)
    heads: int = Field(default=4, ge=1, le=1024)
    width: Width = 128
    context: Width = 64
    dropout: Decay = 0.0

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of width ({self.width})")
        return self


class GptModel(TransformerModel):
    """GPT-2: every token is predicted from those before it."""


class BertModel(TransformerModel):
    """BERT: hidden tokens are predicted from all others."""

    mask_fraction: Fraction = 0.15


class ModelSpec(Choice):
    """Exactly one kind of model."""

    mlp: MlpModel | None = None
    cnn: CnnModel | None = None
    gpt: GptModel | None = None
    bert: BertModel | None = None
