"""Which samples make the global batch of a step: a pure function of (seed, epoch, step).

The epochs' permutations stand behind one another in one endless sequence, and step t takes the next B of it. So
every sample is used once an epoch, every batch is full, and there is nothing to save but t.
"""

from __future__ import annotations

import numpy as np

from worker.data.dataset import Indices, shuffled


class Sampler:
    """Draws global batches of `global_batch_size` from `num_samples` samples."""

    def __init__(self, num_samples: int, global_batch_size: int, *, seed: int) -> None:
        self._num_samples, self._batch_size, self._seed = num_samples, global_batch_size, seed
        self._permutations: dict[int, Indices] = {}  # of the epochs that the last batch touched

    def batch(self, step: int) -> Indices:
        """(B,) The positions of the samples of step `step`, which counts from 0."""
        first = step * self._batch_size
        last = first + self._batch_size
        epochs = range(first // self._num_samples, (last - 1) // self._num_samples + 1)
        self._permutations = {epoch: self._permutation(epoch) for epoch in epochs}
        parts = [
            permutation[max(first - epoch * self._num_samples, 0) : last - epoch * self._num_samples]
            for epoch, permutation in self._permutations.items()
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _permutation(self, epoch: int) -> Indices:
        known = self._permutations.get(epoch)
        return shuffled(self._num_samples, key=(self._seed, epoch)) if known is None else known
