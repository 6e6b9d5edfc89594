"""Batches: a pure function of (seed, epoch, step)."""

import numpy as np
import pytest

from worker.data.dataset import shuffled
from worker.data.sampler import Sampler


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 3), (10, 10), (7, 20), (1, 4), (100, 1)])
def test_every_sample_is_used_once_an_epoch(num_samples: int, batch_size: int) -> None:
    sampler = Sampler(num_samples, batch_size, seed=5)
    drawn = np.concatenate([sampler.batch(step) for step in range(num_samples)])  # batch_size whole epochs
    for epoch in range(batch_size):
        part = drawn[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(part.tolist()) == list(range(num_samples))


def test_a_batch_does_not_depend_on_the_batches_before() -> None:
    in_order = Sampler(100, 7, seed=1)
    batches = [in_order.batch(step).tolist() for step in range(50)]
    for step in (49, 3, 14, 13, 0):
        assert Sampler(100, 7, seed=1).batch(step).tolist() == batches[step]


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(shuffled(20, key=(seed, epoch))) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_fixed_for_ever() -> None:
    """A change of this list changes every digest of every job: it must never happen unnoticed."""
    assert shuffled(10, key=(1337, 2)).tolist() == FIXED


FIXED = [5, 4, 7, 2, 8, 1, 0, 9, 3, 6]
