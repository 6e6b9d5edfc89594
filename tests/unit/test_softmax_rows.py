"""Softmax over rows of every length: its value and gradient, and that it writes nothing beyond them."""

from __future__ import annotations

import numpy as np
import pytest

from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.softmax import softmax_backward_rows, softmax_rows

LENGTHS = (1, 2, 15, 16, 17, 31, 32, 50, 64, 65, 200)
SCALE = np.float32(0.7)


@compiled
def forward(scores: np.ndarray, scale: np.float32, first: int, last: int, end: int, is_causal: bool) -> None:
    softmax_rows(scores, scale, first, last, end, is_causal)


@compiled
def backward(weights: np.ndarray, g: np.ndarray, scale: np.float32, first: int, last: int, end: int) -> None:
    softmax_backward_rows(weights, g, scale, first, last, end)


def reference(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores.astype(np.float64) * SCALE - (scores * SCALE).max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("length", LENGTHS)
def test_value_and_gradient(length: int) -> None:
    rng = np.random.default_rng(length)
    scores, g = (5 * rng.standard_normal((5, length + 3)).astype(np.float32) for _ in range(2))
    found, gradient = scores.copy(), g.copy()
    forward(found, SCALE, 1, 4, length, False)
    wanted = reference(scores[1:4, :length])
    np.testing.assert_allclose(found[1:4, :length], wanted, rtol=5e-6, atol=1e-30)
    backward(found, gradient, SCALE, 1, 4, length)
    dy = g[1:4, :length].astype(np.float64)
    wanted = wanted * (dy - (dy * wanted).sum(axis=-1, keepdims=True)) * SCALE
    np.testing.assert_allclose(gradient[1:4, :length], wanted, rtol=0, atol=5e-6)
    for after, before in ((found, scores), (gradient, g)):
        untouched = np.ones(before.shape, bool)
        untouched[1:4, :length] = False
        assert np.array_equal(after[untouched], before[untouched])


def test_causal_rows_have_the_bits_of_shorter_ones_and_zeros_behind_them() -> None:
    scores = np.random.default_rng(0).standard_normal((70, 70)).astype(np.float32)
    causal = scores.copy()
    forward(causal, SCALE, 0, 70, 70, True)
    for t in range(70):
        alone = scores[t : t + 1, : t + 1].copy()
        forward(alone, SCALE, 0, 1, t + 1, False)
        assert np.array_equal(causal[t, : t + 1], alone[0])
        assert not causal[t, t + 1 :].any()


@pytest.mark.parametrize(
    ("value", "wanted"), [(-np.inf, 0.0), (np.inf, np.nan), (np.nan, np.nan)], ids=["-inf", "inf", "nan"]
)
@pytest.mark.parametrize("length", [16, 20])
def test_rows_without_finite_scores(value: float, wanted: float, length: int) -> None:
    scores = np.full((1, length), value, np.float32)
    forward(scores, SCALE, 0, 1, length, False)
    np.testing.assert_array_equal(scores, np.full((1, length), wanted, np.float32))
