"""Convolutions in bf16, on whatever the CPU has for it, are those of rounded operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.autodiff import Tensor, autocast
from worker.autodiff import functional as F
from worker.autodiff.kernels.bfloat16 import round_bfloat16

Array = NDArray[Any]

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {  # x, weight, settings
    "one of each": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "few channels": ((2, 1, 9, 11), (5, 1, 3, 3), {"padding": 1}),
    "many channels": ((2, 33, 7, 6), (40, 33, 3, 3), {"padding": 1}),
    "more than a run": ((3, 4, 12, 12), (6, 4, 3, 3), {"padding": 1}),
    "no padding": ((2, 3, 8, 8), (4, 3, 5, 3), {}),
    "1x1": ((2, 20, 5, 7), (17, 20, 1, 1), {}),
    "stride": ((2, 3, 11, 9), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
    "dilation": ((2, 3, 11, 9), (4, 3, 3, 3), {"dilation": 2, "padding": 2}),
    "both": ((2, 3, 13, 12), (4, 3, 3, 3), {"stride": 2, "dilation": 2, "padding": 1}),
    "groups": ((2, 6, 8, 8), (9, 2, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 6, 8, 8), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
}


def results(x: Array, weight: Array, bias: Array, g: Array | None, settings: dict[str, Any]) -> list[Array]:
    """The value, and the gradients of x, weight and bias."""
    tensors = a, w, b = [Tensor(array, requires_grad=True) for array in (x, weight, bias)]
    y = F.conv2d(a, w, b, **settings)
    y.backward(np.ones(y.shape, y.dtype) if g is None else g)
    return [y.data, *(tensor.grad.data for tensor in tensors if tensor.grad is not None)]


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_those_of_rounded_operands(case: str) -> None:
    x_shape, weight_shape, settings = CASES[case]
    rng = np.random.default_rng(1)
    x, weight, bias = (rng.standard_normal(s, np.float32) for s in (x_shape, weight_shape, weight_shape[:1]))
    a, b, c = round_bfloat16(x).astype(float), round_bfloat16(weight).astype(float), bias.astype(float)
    g = rng.standard_normal(results(a, b, c, None, settings)[0].shape, np.float32)
    with autocast("bf16"):
        found = results(x, weight, bias, g, settings)
    wanted = results(a, b, c, round_bfloat16(g).astype(float), settings)
    for name, array, expected in zip(("value", "x", "weight"), found, wanted, strict=False):
        np.testing.assert_allclose(array, expected, rtol=0, atol=2e-5 * max(np.abs(expected).max(), 1), err_msg=name)
    np.testing.assert_allclose(found[3], g.sum((0, 2, 3)), rtol=0, atol=1e-3)
