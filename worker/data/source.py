"""Data sources by their kind in the job spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from worker.data import arrays, digits, synthetic
from worker.data.arrays import MAX_DATASET_BYTES, too_large
from worker.data.dataset import Dataset
from worker.spec import DataSpec
from worker.violations import SpecError, Violation

LOADERS: Mapping[str, Callable[[Any], Dataset]] = {
    "digits": digits.load,
    "synthetic": synthetic.load,
    "arrays": arrays.load,
}


def load(spec: DataSpec) -> Dataset:
    """The data set that a job asks for. Raises SpecError where the data does not work."""
    return LOADERS[spec.kind](spec.chosen)


def check(spec: DataSpec) -> None:
    """Raises SpecError where the data would not load; sources that are always good are not loaded for it."""
    match spec.kind:
        case "arrays":
            load(spec)
        case "synthetic":
            data = spec.synthetic
            assert data is not None
            size = 4 * data.samples * (data.features + data.outputs)
            if size > MAX_DATASET_BYTES:
                raise SpecError([Violation("data.synthetic.samples", too_large(size))])
