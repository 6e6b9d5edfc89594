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


def test_zeros() -> None:
    tensor = Tensor(np.ones(3))
    assert init.zeros_(tensor) is tensor
    assert tensor.tolist() == [0, 0, 0]


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
