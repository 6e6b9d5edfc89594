"""gradcheck: are the gradients that backward computes those that finite differences see?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from worker.autodiff import functional as F
from worker.autodiff.graph import no_grad
from worker.autodiff.tensor import Array, Tensor


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Compare the gradients of function(*inputs) with central differences: True, or AssertionError.

    What is differentiated is a sum of the outputs with fixed weights between 1 and 2, so that no element's gradient
    can hide behind another's. Checks each input that requires a gradient; those must be float64 (ValueError).
    """
    checked = [(i, x) for i, x in enumerate(inputs) if x.requires_grad]
    for i, x in checked:
        if x.dtype != np.float64:
            raise ValueError(f"gradcheck: input {i} is {x.dtype}, expected float64")
        x.grad = None
    weights = _weights(function(*inputs).shape)

    def weighted_sum() -> Tensor:
        return F.sum(function(*inputs) * Tensor(weights))

    output = weighted_sum()
    if output.requires_grad:
        output.backward()
    for i, x in checked:
        got = x.grad.data if x.grad is not None else np.zeros(x.shape)
        expected = _finite_differences(weighted_sum, x.data, eps)
        excess = np.abs(got - expected) - (atol + rtol * np.abs(expected))
        if not np.all(excess <= 0):
            where = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), x.shape)
            index = tuple(int(j) for j in where)
            raise AssertionError(
                f"gradcheck: input {i} at {index}: backward gives {got[index]}, finite differences {expected[index]}"
            )
    return True


def _weights(shape: tuple[int, ...]) -> Array:
    return np.asarray(1 + np.modf(np.arange(np.prod(shape, dtype=int)) * 0.618034)[0]).reshape(shape)


def _finite_differences(function: Callable[[], Tensor], x: Array, eps: float) -> Array:
    """(f(x + eps) - f(x - eps)) / (2 * eps) for each element of x; x is changed, and changed back."""
    gradient = np.zeros(x.shape)
    with no_grad():
        for index in np.ndindex(x.shape):
            before = x[index]
            x[index] = before + eps
            above = function().item()
            x[index] = before - eps
            below = function().item()
            x[index] = before
            gradient[index] = (above - below) / (2 * eps)
    return gradient
