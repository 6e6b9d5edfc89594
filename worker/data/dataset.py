"""A data set in memory: what every source gives and every step takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.spec import Task

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Samples:
    """Inputs (N, F) float32 with targets: (N,) int64 classes, or (N, K) float32 values."""

    inputs: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Indices) -> Samples:
        """The samples at these positions, copied."""
        return Samples(self.inputs.take(indices, axis=0), self.targets.take(indices, axis=0))


@dataclass(frozen=True)
class Dataset:
    """Samples to train on and samples held out; `num_outputs` is the number of classes or of target values."""

    task: Task
    training: Samples
    validation: Samples
    num_outputs: int

    @property
    def num_features(self) -> int:
        """F, the width of the inputs."""
        return self.training.inputs.shape[1]


def split(samples: Samples, *, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """(training, validation): a seeded shuffle, then the last `fraction` of it held out, at least one sample each."""
    order = shuffled(len(samples), key=(seed, _SPLIT))
    held_out = min(max(round(len(samples) * fraction), 1), len(samples) - 1)
    return samples.take(order[:-held_out]), samples.take(order[-held_out:])


_SPLIT = 0x73706C6974  # "split": keeps this permutation apart from those of the batches


def shuffled(size: int, *, key: tuple[int, int]) -> Indices:
    """A permutation of 0 ... size-1 that is a function of the key alone.

    Positions sorted by the raw output of Philox (Salmon et al., 2011), a counter-based generator: unlike a
    library's shuffle, it cannot change from one release to the next.
    """
    keys = np.random.Philox(key=np.array(key, np.uint64)).random_raw(size)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
