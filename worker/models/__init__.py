"""The models that a job may name, by their kind in the job spec."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from worker.models.bert import Bert, MaskedLanguageModel
from worker.models.cnn import Cnn
from worker.models.gpt import Gpt
from worker.models.mlp import Mlp
from worker.nn import Module
from worker.spec import BertModel, CnnModel, GptModel, MlpModel, ModelSpec, TransformerModel
from worker.violations import SpecError, Violation

__all__ = ["KNOW_PARTS", "Bert", "Cnn", "Gpt", "MaskedLanguageModel", "Mlp", "build"]

KNOW_PARTS = (Gpt, Mlp)  # models made of operations that know parts alone, see autodiff.parts


def build(
    spec: ModelSpec,
    *,
    input_shape: tuple[int, ...],
    num_outputs: int,
    gradient_checkpointing: bool = False,
    generator: np.random.Generator,
) -> Module:
    """The model that a job asks for, its weights drawn from `generator`.

    `input_shape` is that of one sample, `num_outputs` the number of classes, values or tokens. With
    `gradient_checkpointing` each layer or block is computed again in the backward pass: less memory, the same bits.
    Raises SpecError where the model cannot take such samples.
    """
    common: dict[str, Any] = {"gradient_checkpointing": gradient_checkpointing, "generator": generator}
    match spec.chosen:
        case MlpModel() as mlp:
            features, activation = math.prod(input_shape), mlp.activation.value
            return Mlp(features, mlp.hidden, num_outputs, activation=activation, **common)
        case CnnModel() as cnn:
            if len(input_shape) != 3:
                text = f"got samples of shape {input_shape}, expected images: (channels, height, width)"
                raise SpecError([Violation("model.cnn", text)])
            return Cnn(input_shape[0], num_outputs, stages=cnn.stages, blocks=cnn.blocks, **common)
        case GptModel() as gpt:
            return Gpt(num_outputs, **_sizes(gpt), **common)
        case BertModel() as bert:
            core = Bert(num_outputs + 1, **_sizes(bert), **common)  # one more, to hide tokens with
            return MaskedLanguageModel(core, generator=generator)
    raise AssertionError(spec.kind)


def _sizes(spec: TransformerModel) -> dict[str, Any]:
    return spec.model_dump(include=set(TransformerModel.model_fields))
