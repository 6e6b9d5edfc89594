"""Initialisation: PyTorch's formulas, and random numbers from the caller's generator only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from worker.autodiff import Tensor
from worker.nn import init

SHAPE = (300, 200)


def filled(function: Any, *arguments: Any, shape: tuple[int, ...] = SHAPE, **named: Any) -> Any:
    tensor = Tensor(np.full(shape, np.nan, np.float32))
    assert function(tensor, *arguments, **named, generator=init.generator(3)) is tensor
    return tensor.data


@pytest.mark.parametrize(
    ("function", "arguments", "std"),
    [
        (init.xavier_uniform_, {}, math.sqrt(2 / 500)),
        (init.xavier_uniform_, {"gain": 2.0}, 2 * math.sqrt(2 / 500)),
        (init.xavier_normal_, {"gain": 2.0}, 2 * math.sqrt(2 / 500)),
        (init.kaiming_uniform_, {}, math.sqrt(2 / 200)),
        (init.kaiming_uniform_, {"a": math.sqrt(5)}, math.sqrt(1 / 3 / 200)),
        (init.kaiming_uniform_, {"mode": "fan_out", "nonlinearity": "relu"}, math.sqrt(2 / 300)),
        (init.kaiming_normal_, {"nonlinearity": "linear"}, math.sqrt(1 / 200)),
        (init.kaiming_normal_, {"nonlinearity": "tanh"}, 5 / 3 * math.sqrt(1 / 200)),
        (init.uniform_, {"a": -1.0, "b": 1.0}, math.sqrt(1 / 3)),
        (init.normal_, {"std": 0.02}, 0.02),
    ],
)
def test_moments_follow_the_formula(function: Any, arguments: dict[str, Any], std: float) -> None:
    values = filled(function, **arguments)
    assert np.std(values) == pytest.approx(std, rel=0.01)
    assert np.mean(values) == pytest.approx(0, abs=0.02 * std)
    if "uniform" in function.__name__:
        bound = math.sqrt(3) * std
        assert 0.999 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    else:
        assert 3.5 * std < np.abs(values).max() < 7 * std


@pytest.mark.torch
@pytest.mark.parametrize("name", ["xavier_uniform_", "kaiming_uniform_"])
def test_bounds_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn.init, name)(torch.empty(64, 32, 3, 3))
    ours = filled(getattr(init, name), shape=(64, 32, 3, 3))
    assert np.abs(ours).max() == pytest.approx(theirs.abs().max().item(), rel=1e-3)


@pytest.mark.torch
@pytest.mark.parametrize("nonlinearity", ["linear", "sigmoid", "tanh", "relu", "leaky_relu"])
def test_gains_are_pytorchs(nonlinearity: str) -> None:
    torch = pytest.importorskip("torch")
    assert init.calculate_gain(nonlinearity) == pytest.approx(torch.nn.init.calculate_gain(nonlinearity))


@pytest.mark.parametrize(
    ("function", "arguments", "values"),
    [
        (init.zeros_, (), [[0, 0, 0], [0, 0, 0]]),
        (init.ones_, (), [[1, 1, 1], [1, 1, 1]]),
        (init.constant_, (0.5,), [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
        (init.eye_, (), [[1, 0, 0], [0, 1, 0]]),
    ],
)
def test_fixed_values(function: Any, arguments: tuple[float, ...], values: list[list[float]]) -> None:
    tensor = Tensor(np.full((2, 3), np.nan))
    assert function(tensor, *arguments) is tensor
    assert tensor.tolist() == values


@pytest.mark.parametrize(("mean", "std", "a", "b"), [(0, 1, -2, 2), (1, 0.5, 0, 1), (0, 0.02, -2, 2), (2, 1, 0, 0.5)])
def test_truncated_normal_has_the_moments_of_its_distribution(mean: float, std: float, a: float, b: float) -> None:
    values = filled(init.trunc_normal_, mean, std, a, b).astype(np.float64)
    assert a <= values.min() <= values.max() <= b
    x = np.linspace(max(a, mean - 8 * std), min(b, mean + 8 * std), 10_001)
    density = np.exp(-((x - mean) ** 2) / (2 * std * std))
    density /= density.sum()
    expected = (density * x).sum()
    assert values.mean() == pytest.approx(expected, abs=0.02 * std)
    assert values.std() == pytest.approx(math.sqrt((density * (x - expected) ** 2).sum()), rel=0.02)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (5, 2, 2, 3)])
def test_orthogonal_matrix_is_one(shape: tuple[int, ...]) -> None:
    matrix = filled(init.orthogonal_, 2.0, shape=shape).reshape(shape[0], -1)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-5)


def test_orthogonal_matrices_are_uniform() -> None:
    matrices = [filled_with(init.orthogonal_, seed) for seed in range(400)]
    np.testing.assert_allclose(np.mean(matrices, axis=0), np.zeros((2, 2)), atol=0.15)


def filled_with(function: Any, seed: int) -> Any:
    return function(Tensor(np.empty((2, 2), np.float32)), generator=init.generator(seed)).data


def test_generator_is_a_function_of_seed_and_key() -> None:
    draws = {key: init.generator(*key).random() for key in [(1,), (2,), (1, 0), (1, 1), (1, 1, 0)]}
    assert len(set(draws.values())) == len(draws)
    assert all(init.generator(*key).random() == draw for key, draw in draws.items())


def test_global_random_state_is_not_touched() -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    filled(init.kaiming_uniform_)
    assert np.random.random() == expected


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({}, (3,), r"a tensor of shape \(3,\) has no fan"),
        ({"mode": "fan"}, SHAPE, "mode is 'fan', expected fan_in or fan_out"),
        ({"nonlinearity": "swish"}, SHAPE, "nonlinearity is 'swish', expected leaky_relu, linear, sigmoid, tanh, relu"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(init.kaiming_uniform_, shape=shape, **arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (init.orthogonal_, (), r"orthogonal_: the tensor has shape \(3,\), expected at least 2 dimensions"),
        (init.trunc_normal_, (0, 1, 2, -2), r"trunc_normal_: got the limits 2\.\.-2"),
        (init.trunc_normal_, (0, 1, 5, 6), r"trunc_normal_: 5\.\.6 is too far from mean 0 with std 1"),
    ],
)
def test_bad_arguments_name_the_function(function: Any, arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(function, *arguments, shape=(3,))


def test_identity_of_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eye_: the tensor has shape \(3,\), expected 2 dimensions"):
        init.eye_(Tensor(np.zeros(3)))
