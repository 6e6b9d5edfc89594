"""The models that a job may name, by their kind in the job spec."""

from __future__ import annotations

import numpy as np

from worker.data.dataset import Dataset
from worker.models.mlp import Mlp
from worker.nn import Module
from worker.spec import ModelSpec

__all__ = ["Mlp", "build"]


def build(spec: ModelSpec, dataset: Dataset, *, generator: np.random.Generator) -> Module:
    """The model that a job asks for, its weights drawn from `generator`; inputs and outputs follow from the data."""
    mlp = spec.mlp
    assert mlp is not None, spec.kind
    return Mlp(
        dataset.num_features, mlp.hidden, dataset.num_outputs, activation=mlp.activation.value, generator=generator
    )
