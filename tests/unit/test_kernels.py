"""The kernels: error bounds of the approximations, NaN and Inf, and bits that never change."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worker.autodiff import kernels
from worker.autodiff.kernels import approximations
from worker.autodiff.kernels.compilation import compiled, compiled_sum
from worker.nn import init

Array = np.ndarray[Any, np.dtype[Any]]


@compiled
def exp(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = approximations.exp(x[i])


@compiled
def exp_of_negative(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = approximations.exp_of_negative(x[i])


@compiled
def erf(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = approximations.erf(x[i])


@compiled
def rounded(x: Any) -> Any:
    """The nearest whole number, unless the additions are reordered."""
    return x + np.float32(1.5 * 2**23) - np.float32(1.5 * 2**23)


@compiled_sum
def sum_rounded(x: Array) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += rounded(x[i])
    return total


def allocated(kernel: Callable[..., Any]) -> Callable[[Array], Array]:
    def run(x: Array) -> Array:
        out = np.empty_like(x)
        kernel(x, out)
        return out

    return run


def grid(low: float, high: float) -> Array:
    """Numbers over a range, and all magnitudes near zero."""
    near_zero = np.logspace(-30, 0, 30_000)
    return np.concatenate([np.linspace(low, high, 200_001), near_zero, -near_zero]).astype(np.float32)


def ulps(got: Array, expected: Array) -> float:
    """The largest error, in units in the last place of the float32 that is expected."""
    return float(np.max(np.abs(got - expected) / np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)))


def exact_erf(x: Array) -> Array:
    return np.array([math.erf(v) for v in x])


def exact_normal_cdf(x: Array) -> Array:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "bound"),
    [
        pytest.param(allocated(exp), np.exp, -87.0, 88.7, 1.1, id="exp"),
        pytest.param(kernels.tanh, np.tanh, -12.0, 12.0, 1.5, id="tanh"),
        pytest.param(allocated(erf), exact_erf, -6.0, 6.0, 1.5, id="erf"),
        pytest.param(kernels.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0, 2.5, id="sigmoid"),
    ],
)
def test_approximation_is_within_its_bound_in_ulps(
    function: Callable[[Array], Array], exact: Callable[[Array], Array], low: float, high: float, bound: float
) -> None:
    x = grid(low, high)
    assert ulps(function(x), exact(x.astype(np.float64))) <= bound


@pytest.mark.parametrize(
    ("function", "formula"),
    [
        pytest.param(kernels.gelu_erf, lambda x: x * exact_normal_cdf(x), id="gelu"),
        pytest.param(
            lambda x: kernels.gelu_erf_backward(np.ones_like(x), x),
            lambda x: exact_normal_cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
            id="gelu backward",
        ),
        pytest.param(kernels.gelu_tanh, kernels.formulas.gelu_tanh, id="gelu tanh"),
        pytest.param(
            lambda x: kernels.gelu_tanh_backward(np.ones_like(x), x),
            lambda x: kernels.formulas.gelu_tanh_backward(np.ones_like(x), x),
            id="gelu tanh backward",
        ),
    ],
)
def test_gelu_is_within_two_ulps_of_its_scale(
    function: Callable[[Array], Array], formula: Callable[[Array], Array]
) -> None:
    """Two ulps of max(1, |x|): GELU's tail is a difference of numbers of that size."""
    x = grid(-20, 20)
    error = np.abs(function(x) - formula(x.astype(np.float64)))
    assert np.max(error / np.spacing(np.maximum(1, np.abs(x))).astype(np.float64)) <= 2


def test_exp_underflows_gradually_and_overflows_to_infinity() -> None:
    x = np.array([-np.inf, -104.5, -103.9, -90, 88.72283, 89.5, np.inf], np.float32)
    got = allocated(exp)(x)
    with np.errstate(over="ignore"):
        np.testing.assert_array_max_ulp(got, np.exp(x.astype(np.float64)).astype(np.float32), 2)


def test_exp_of_negative_is_exp_where_that_is_a_normal_number_and_zero_below() -> None:
    x = np.concatenate([-np.abs(grid(-87.0, 0.0)), [-87.001, -104, -1e4, -1e30, -np.inf, np.nan]]).astype(np.float32)
    wanted = np.where(x < -87, 0, allocated(exp)(x))
    np.testing.assert_array_equal(allocated(exp_of_negative)(x), wanted)


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu_erf", "gelu_tanh"])
def test_nan_goes_through(name: str) -> None:
    x = np.array([np.nan] * 40, np.float32)
    assert np.isnan(getattr(kernels, name)(x)).all()
    assert np.isnan(getattr(kernels, f"{name}_backward")(x, np.ones_like(x))).all()
    assert np.isnan(allocated(exp)(x)).all()
    assert np.isnan(allocated(erf)(x)).all()


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu_erf", "gelu_tanh"])
def test_derivative_at_nan_is_nan(name: str) -> None:
    x = np.array([np.nan] * 40, np.float32)
    assert np.isnan(getattr(kernels, f"{name}_backward")(np.ones_like(x), x)).all()


def test_relu_lets_the_gradient_through_at_nan_as_pytorch_does() -> None:
    x = np.array([np.nan] * 40, np.float32)
    assert kernels.relu_backward(np.ones_like(x), x).tolist() == [1.0] * 40


def test_infinity_is_handled_as_in_the_formula() -> None:
    x = np.array([np.inf, -np.inf], np.float32)
    assert kernels.relu(x).tolist() == [np.inf, 0]
    assert kernels.tanh(x).tolist() == [1, -1]
    assert kernels.sigmoid(x).tolist() == [1, 0]
    assert allocated(erf)(x).tolist() == [1, -1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_in_logits_reach_the_loss(bad: float) -> None:
    logits = np.zeros((2, 40), np.float32)
    logits[1, 7] = bad
    losses, delta = kernels.softmax_cross_entropy(logits, np.array([1, 2]), -100)
    assert np.isfinite(losses[0])
    assert np.isnan(losses[1])
    assert np.isnan(delta[1]).any()


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0, -1e4], [-np.inf, 0, 0]], np.float32)
    losses, delta = kernels.softmax_cross_entropy(logits, np.array([1, 2]), -100)
    np.testing.assert_allclose(losses, np.array([1e4, math.log(2)]), rtol=1e-6)
    np.testing.assert_allclose(delta, np.array([[1, -1, 0], [0, 0.5, -0.5]]), atol=1e-6)


@pytest.mark.parametrize("columns", [1, 3, 16, 257, 8192])
def test_cross_entropy_is_that_of_float64(columns: int) -> None:
    rng = init.generator(3, columns)
    logits, targets = rng.standard_normal((5, columns)).astype(np.float32) * 4, rng.integers(0, columns, 5)
    losses, delta = kernels.softmax_cross_entropy(logits, targets, -100)
    exact_losses, exact_delta, _ = kernels.formulas.softmax_cross_entropy(logits.astype(np.float64), targets, -100)
    np.testing.assert_allclose(losses, exact_losses, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(delta, exact_delta, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu_erf", "gelu_tanh"])
def test_element_has_the_same_bits_wherever_it_stands(name: str) -> None:
    x = init.generator(1).standard_normal(1003).astype(np.float32)
    g = init.generator(2).standard_normal(1003).astype(np.float32)
    forward, backward = getattr(kernels, name), getattr(kernels, f"{name}_backward")
    one_by_one = np.concatenate([forward(x[i : i + 1]) for i in range(x.size)])
    np.testing.assert_array_equal(forward(x), one_by_one)
    one_by_one = np.concatenate([backward(g[i : i + 1], x[i : i + 1]) for i in range(x.size)])
    np.testing.assert_array_equal(backward(g, x), one_by_one)


def test_arithmetic_stays_plain_when_a_sum_has_it_compiled() -> None:
    """numba would let it inherit the sum's permission to reorder: its bits would depend on who came first."""
    assert sum_rounded(np.full(3, 0.75, np.float32)) == 3
    assert rounded(np.float32(0.75)) == 1


def test_block_of_square_sums_does_not_depend_on_its_neighbours() -> None:
    x = init.generator(1).standard_normal(3 * kernels.BLOCK + 77).astype(np.float32)
    whole = kernels.block_square_sums(x)
    assert whole.shape == (4,)
    parts = [kernels.block_square_sums(x[: kernels.BLOCK]), kernels.block_square_sums(x[kernels.BLOCK :])]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert math.fsum(whole) == pytest.approx(float(np.sum(x.astype(np.float64) ** 2)), rel=1e-12)
    assert kernels.block_square_sums(x[:0]).shape == (0,)


def test_column_sum_and_bias() -> None:
    x = init.generator(1).standard_normal((5, 33)).astype(np.float32)
    np.testing.assert_allclose(kernels.column_sum(x), x.sum(0), rtol=1e-5)
    np.testing.assert_array_equal(kernels.column_sum(x.T.copy().T), kernels.column_sum(x))
    y = x.copy()
    kernels.add_bias(y, np.arange(33, dtype=np.float32))
    np.testing.assert_array_equal(y, x + np.arange(33, dtype=np.float32))


EVERYTHING = """
import hashlib, numpy as np
from worker.autodiff import kernels
x = np.random.Generator(np.random.Philox(5)).standard_normal((40, 100)).astype(np.float32)
results = [getattr(kernels, name)(x) for name in ("relu", "tanh", "sigmoid", "gelu_erf", "gelu_tanh")]
results += kernels.softmax_cross_entropy(x, np.arange(40), -100)
results += [kernels.column_sum(x), kernels.block_square_sums(x.ravel())]
print(hashlib.sha256(b"".join(r.tobytes() for r in results)).hexdigest())
"""


def test_two_processes_get_the_same_bits() -> None:
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run([sys.executable, "-c", EVERYTHING], cwd=root, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1
