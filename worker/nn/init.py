"""Initialisation of weights, in place. Names, arguments and formulas are PyTorch's (torch.nn.init).

https://pytorch.org/docs/stable/nn.init.html. The random numbers come from the caller's generator, never from global
state. Weights are (features out, features in, ...).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from worker.autodiff import Tensor

Mode = Literal["fan_in", "fan_out"]

GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}


def generator(seed: int, *key: int) -> np.random.Generator:
    """A counter-based random generator (Philox): a pure function of the seed and the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def zeros_(tensor: Tensor) -> Tensor:
    tensor.data[...] = 0
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, *, generator: np.random.Generator) -> Tensor:
    tensor.data[...] = generator.uniform(a, b, tensor.shape)
    return tensor


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: np.random.Generator) -> Tensor:
    tensor.data[...] = generator.normal(mean, std, tensor.shape)
    return tensor


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, *, generator: np.random.Generator) -> Tensor:
    """Uniform in +-gain * sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio, 2010)."""
    bound = math.sqrt(3) * _xavier_std(tensor, gain)
    return uniform_(tensor, -bound, bound, generator=generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, *, generator: np.random.Generator) -> Tensor:
    """Normal with std gain * sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio, 2010)."""
    return normal_(tensor, 0, _xavier_std(tensor, gain), generator=generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: Mode = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: np.random.Generator,
) -> Tensor:
    """Uniform in +-gain * sqrt(3 / fan) (He et al., 2015); `a` is the negative slope of a leaky ReLU."""
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator=generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: Mode = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: np.random.Generator,
) -> Tensor:
    """Normal with std gain / sqrt(fan) (He et al., 2015); `a` is the negative slope of a leaky ReLU."""
    return normal_(tensor, 0, _kaiming_std(tensor, a, mode, nonlinearity), generator=generator)


def calculate_gain(nonlinearity: str, param: float = 0.01) -> float:
    """The factor by which a nonlinearity's weights are larger; `param` is the slope of leaky_relu."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + param * param))
    if nonlinearity not in GAINS:
        raise ValueError(f"nonlinearity is {nonlinearity!r}, expected leaky_relu, {', '.join(GAINS)}")
    return GAINS[nonlinearity]


def _fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (features out, features in, *kernel)."""
    if tensor.ndim < 2:
        raise ValueError(f"a tensor of shape {tensor.shape} has no fan; expected at least 2 dimensions")
    receptive_field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * receptive_field, tensor.shape[0] * receptive_field


def _xavier_std(tensor: Tensor, gain: float) -> float:
    return gain * math.sqrt(2 / max(sum(_fans(tensor)), 1))


def _kaiming_std(tensor: Tensor, a: float, mode: Mode, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode is {mode!r}, expected fan_in or fan_out")
    fan_in, fan_out = _fans(tensor)
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan_in if mode == "fan_in" else fan_out, 1))
