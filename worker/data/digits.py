"""Handwritten digits: 1,797 images of 8x8 pixels in 10 classes, bundled with scikit-learn."""

from __future__ import annotations

import numpy as np

from worker.data.dataset import Dataset, Table, split
from worker.spec import DigitsData, Task
from worker.violations import SpecError, Violation


def load(spec: DigitsData) -> Dataset:
    """The digits, pixels scaled from 0..16 to [0, 1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        advice = "needs scikit-learn, which is not installed; install backpropd[digits]"
        raise SpecError([Violation("data.digits", advice)]) from None
    images, classes = load_digits(return_X_y=True)
    samples = Table((images / 16).astype(np.float32).reshape(-1, 1, 8, 8), classes.astype(np.int64))
    training, validation = split(samples, fraction=spec.validation_fraction, seed=0)
    return Dataset(Task.CLASSIFICATION, training, validation, input_shape=(1, 8, 8), num_outputs=10)
