"""gradcheck: are the gradients that backward computes those that finite differences see?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.graph import grad, no_grad
from worker.autodiff.tensor import Array, Tensor


def gradcheck(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Compare the gradients of function(*inputs) with central differences, after torch.autograd.gradcheck.

    True, or AssertionError, which names the first output, input and element that differ (with raise_exception=False:
    False). The function gives a tensor or several, of which those of integers are left out. What is differentiated is a
    sum of each output with fixed weights between 1 and 2, so that no element's gradient can hide behind another's.
    Checks each input that requires a gradient; those must be float64 (ValueError). A second backward pass must give the
    same bits.
    """
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    checked = [i for i, x in enumerate(given) if isinstance(x, Tensor) and x.requires_grad]
    for i in checked:
        if given[i].dtype != np.float64:
            raise ValueError(f"gradcheck: input {i} is {given[i].dtype}, expected float64")
    try:
        for i in checked:
            _check(function, given, i, eps=eps, atol=atol, rtol=rtol)
    except AssertionError:
        if raise_exception:
            raise
        return False
    return True


def _check(
    function: Callable[..., Any], inputs: tuple[Any, ...], i: int, *, eps: float, atol: float, rtol: float
) -> None:
    """AssertionError where the gradient of some output by input i is wrong."""
    x = inputs[i]
    differences = _differences(function, inputs, x.data, eps)
    outputs = _outputs(function(*inputs))
    for k, output in enumerate(outputs):
        got, again = (_gradient(output, x) for _ in range(2))
        name = f"output {k}, input {i}" if len(outputs) > 1 else f"input {i}"
        if got.tobytes() != again.tobytes():
            raise AssertionError(f"gradcheck: {name}: two backward passes give different bits")
        expected = differences[k]
        excess = np.abs(got - expected) - (atol + rtol * np.abs(expected))
        if not np.all(excess <= 0):
            where = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), x.shape)
            at = tuple(int(j) for j in where)
            raise AssertionError(
                f"gradcheck: {name} at {at}: backward gives {got[at]}, finite differences {expected[at]}"
            )


def _outputs(result: Any) -> list[Tensor]:
    several = result if isinstance(result, tuple | list) else [result]
    return [output for output in several if output.dtype.kind == "f"]


def _weights(shape: tuple[int, ...]) -> Array:
    return np.asarray(1 + np.modf(np.arange(np.prod(shape, dtype=int)) * 0.618034)[0]).reshape(shape)


def _gradient(output: Tensor, x: Tensor) -> Array:
    if not output.requires_grad:
        return np.zeros(x.shape)
    (gradient,) = grad(output, x, Tensor(_weights(output.shape)), retain_graph=True, allow_unused=True)
    return np.zeros(x.shape) if gradient is None else gradient.data


def _differences(
    function: Callable[..., Any], inputs: tuple[Any, ...], x: Array, eps: float
) -> list[NDArray[np.float64]]:
    """(f(x + eps) - f(x - eps)) / (2 * eps) of each output's weighted sum by each element of x.

    x is changed, and changed back.
    """

    def sums() -> list[float]:
        with no_grad():
            outputs = [output.data for output in _outputs(function(*inputs))]
        return [float(np.sum(value * _weights(value.shape))) for value in outputs]

    gradients = [np.zeros(x.shape) for _ in sums()]
    for index in np.ndindex(x.shape):
        before = x[index]
        x[index] = before + eps
        above = sums()
        x[index] = before - eps
        below = sums()
        x[index] = before
        for gradient, high, low in zip(gradients, above, below, strict=True):
            gradient[index] = (high - low) / (2 * eps)
    return gradients
