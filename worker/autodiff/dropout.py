"""Dropout: elements set to zero at random while training (Srivastava et al., 2014)."""

from __future__ import annotations

import numpy as np

from worker.autodiff import kernels, philox
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Tensor

__all__ = ["dropout"]

LEVELS = 65536  # of a draw: 16 bits, for random bits are what dropout's time goes to


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Each element is 0 with probability p, rounded to 1/65536, and else divided by 1 - p; x itself if not training.

    Takes one site of the random stream (philox): the same key and site drop the same elements.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is {p}, expected 0..1")
    if not training or not p:
        return x
    bits, first_kept, scale = philox.draw(_bits, x.shape), round(p * LEVELS), 1 / (1 - p) if p < 1 else 0.0
    return record(
        "dropout",
        kernels.dropout(bits, x.data, first_kept=first_kept, scale=scale),
        (x, lambda g: kernels.dropout(bits, g, first_kept=first_kept, scale=scale)),
    )


def _bits(stream: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random numbers 0..65535."""
    count = int(np.prod(shape, dtype=np.int64))
    words: Array = stream.bit_generator.random_raw(-(-count // 4))
    return words.astype("<u8", copy=False).view("<u2")[:count].reshape(shape)
