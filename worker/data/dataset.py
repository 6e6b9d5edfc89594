"""A data set in memory: what every source gives and every step takes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from worker.spec import Task

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Inputs (N, ...) with targets, row by row: what a model is shown at once.

    Inputs are float32 features, or int64 tokens (N, T). Targets are int64 classes (N,), float32 values (N, K), or the
    tokens (N, T) that follow the inputs.
    """

    inputs: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.inputs)


class Samples(Protocol):
    """Samples by their positions."""

    def __len__(self) -> int: ...

    def take(self, indices: Indices) -> Batch:
        """The samples at these positions, copied."""
        ...

    def parts(self) -> tuple[Array, ...]:
        """The arrays that decide every sample."""
        ...


@dataclass(frozen=True)
class Table:
    """Samples that stand row by row in two arrays."""

    inputs: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Indices) -> Batch:
        """The rows at these positions, copied."""
        return Batch(self.inputs.take(indices, axis=0), self.targets.take(indices, axis=0))

    def parts(self) -> tuple[Array, ...]:
        """See Samples."""
        return self.inputs, self.targets


@dataclass(frozen=True)
class Windows:
    """Samples that are windows of `length` tokens of one text, each `stride` tokens after the one before.

    The targets are the same windows one token later.
    """

    tokens: Indices
    length: int
    stride: int

    def __len__(self) -> int:
        return max((len(self.tokens) - self.length - 1) // self.stride + 1, 0)

    def take(self, indices: Indices) -> Batch:
        """(N, T) windows and what follows each of their tokens."""
        places = (indices * self.stride)[:, None] + np.arange(self.length)
        return Batch(self.tokens[places], self.tokens[places + 1])

    def parts(self) -> tuple[Array, ...]:
        """See Samples."""
        return self.tokens, np.array([self.length, self.stride])


@dataclass(frozen=True)
class Dataset:
    """Samples to train on and samples held out.

    `task` is None for text. `num_outputs` is the number of classes, of target values, or of different tokens;
    `vocabulary` has what each token stands for, where there are tokens.
    """

    task: Task | None
    training: Samples
    validation: Samples
    input_shape: tuple[int, ...]
    num_outputs: int
    vocabulary: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """The checksum of the data as it was loaded, whatever file it came from: equal for equal samples alone."""
        facts = (self.task, self.input_shape, self.num_outputs, self.vocabulary)
        found = hashlib.sha256(json.dumps(facts).encode())
        for part in (*self.training.parts(), *self.validation.parts()):
            found.update(f"{part.dtype.str}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return found.hexdigest()


def split(samples: Table, *, fraction: float, seed: int) -> tuple[Table, Table]:
    """(training, validation): a seeded shuffle, then the last `fraction` of it held out, at least one sample each."""
    order = shuffled(len(samples), key=(seed, _SPLIT))
    held_out = min(max(round(len(samples) * fraction), 1), len(samples) - 1)
    parts = samples.take(order[:-held_out]), samples.take(order[-held_out:])
    training, validation = (Table(part.inputs, part.targets) for part in parts)
    return training, validation


_SPLIT = 0x73706C6974  # "split": keeps this permutation apart from those of the batches


def shuffled(size: int, *, key: tuple[int, int]) -> Indices:
    """A permutation of 0 ... size-1 that is a function of the key alone.

    Positions sorted by the raw output of Philox (Salmon et al., 2011), a counter-based generator: unlike a
    library's shuffle, it cannot change from one release to the next.
    """
    keys = np.random.Philox(key=np.array(key, np.uint64)).random_raw(size)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
