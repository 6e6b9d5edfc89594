"""Attention out of tiles, on each unit that the CPU has, is what its formula says, in every corner of the strips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.autodiff.kernels import fused_attention, units

Array = NDArray[Any]

SIZES = [  # T, S, E, V
    (1, 1, 1, 1),
    (5, 9, 4, 3),
    (14, 14, 16, 16),
    (33, 33, 24, 24),
    (64, 64, 64, 64),
    (100, 100, 40, 36),
    (150, 70, 32, 65),
]


def draw(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def formula(g: Array, q: Array, k: Array, v: Array, scale: float, is_causal: bool) -> list[Array]:
    """The value and the gradients of query, key and value, in float64."""
    g, q, k, v = (x.astype(np.float64) for x in (g, q, k, v))
    scores = q @ k.swapaxes(-1, -2) * scale
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dweights = g @ v.swapaxes(-1, -2)
    dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) * scale
    return [weights @ v, dscores @ k, dscores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("unit", units.UNITS, ids=units.NAMES.get)
def test_value_and_gradients_are_the_formulas(unit: int, size: tuple[int, ...], is_causal: bool) -> None:
    rows, columns, width, width_out = size
    if is_causal and rows != columns:
        columns = rows
    # As a model has them: heads side by side in the rows of one array.
    q, k = (draw(2, time, 3, width).swapaxes(1, 2) for time in (rows, columns))
    v, g = (draw(2, time, 3, width_out).swapaxes(1, 2) for time in (columns, rows))
    weights = np.full((2, 3, rows, columns), np.nan, np.float32)
    found = [np.full_like(x, np.nan) for x in (g, q, k, v)]
    mode: dict[str, Any] = {"scale": 0.3, "is_causal": is_causal}
    assert fused_attention.is_possible(q, k, v, is_causal)
    fused_attention.forward(unit, q, k, v, weights=weights, out=found[0], **mode)
    fused_attention.backward(unit, g, q, k, v, weights, out=found[1:], **mode)
    tolerance = 0.02 if unit in (units.AVX512_BF16, units.AMX) else 2e-5  # bfloat16 has 8 bits
    for array, wanted in zip(found, formula(g, q, k, v, 0.3, is_causal), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1))
