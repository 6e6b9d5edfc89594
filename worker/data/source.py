"""Data sources by their kind in the job spec."""

from __future__ import annotations

from worker.data import arrays, digits, synthetic, text
from worker.data.arrays import MAX_DATASET_BYTES, too_large
from worker.data.dataset import Dataset
from worker.spec import ArraysData, DigitsData, JobSpec, SyntheticData, TextData, TransformerModel
from worker.violations import SpecError, Violation


def load(spec: JobSpec) -> Dataset:
    """The data set that a job asks for. Raises SpecError where the data does not work."""
    match spec.data.chosen:
        case DigitsData() as data:
            return digits.load(data)
        case SyntheticData() as data:
            return synthetic.load(data)
        case ArraysData() as data:
            return arrays.load(data)
        case TextData() as data:
            model = spec.model.chosen
            assert isinstance(model, TransformerModel), "the spec has checked it"
            return text.load(data, context=model.context)
    raise AssertionError(spec.data.kind)


def check(spec: JobSpec) -> None:
    """Raises SpecError where the data would not load; sources that are always good are not loaded for it."""
    match spec.data.chosen:
        case ArraysData() | TextData():
            load(spec)
        case SyntheticData() as data:
            size = 4 * data.samples * (data.features + data.outputs)
            if size > MAX_DATASET_BYTES:
                raise SpecError([Violation("data.synthetic.samples", too_large(size))])
