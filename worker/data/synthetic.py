"""Samples drawn from a seeded rule: a Gaussian cloud a class, or a random smooth function."""

from __future__ import annotations

import numpy as np

from worker.data.dataset import Dataset, Table, split
from worker.spec import SyntheticData, Task


def load(spec: SyntheticData) -> Dataset:
    """Classification: classes are clouds around random centres, `noise` wide. Regression: targets are tanh of a
    random projection of the inputs, times a second one, plus noise of that standard deviation."""
    random = np.random.Generator(np.random.Philox(key=spec.seed))

    def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return random.standard_normal(shape, np.float32)

    noise = np.float32(spec.noise)
    if spec.task is Task.CLASSIFICATION:
        centres = normal(spec.outputs, spec.features)
        classes = random.integers(0, spec.outputs, spec.samples)
        samples = Table(centres[classes] + noise * normal(spec.samples, spec.features), classes)
    else:
        inputs = normal(spec.samples, spec.features)
        hidden = np.tanh(inputs @ normal(spec.features, 16) / np.float32(spec.features**0.5))
        targets = hidden @ normal(16, spec.outputs) / np.float32(4) + noise * normal(spec.samples, spec.outputs)
        samples = Table(inputs, targets)
    training, validation = split(samples, fraction=spec.validation_fraction, seed=spec.seed)
    return Dataset(spec.task, training, validation, input_shape=(spec.features,), num_outputs=spec.outputs)
