"""Initialisation of weights, in place. Names, arguments and formulas are PyTorch's (torch.nn.init).

https://pytorch.org/docs/stable/nn.init.html. The random numbers come from the caller's generator, never from global
state. Weights are (features out, features in, ...).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np

from worker.autodiff import Tensor

Mode = Literal["fan_in", "fan_out"]

GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}

NORMAL, LEAST_SHARE = NormalDist(), 0.01  # of trunc_normal_'s draws that may be kept: fewer take for ever


def generator(seed: int, *key: int) -> np.random.Generator:
    """A counter-based random generator (Philox): a pure function of the seed and the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def zeros_(tensor: Tensor) -> Tensor:
    tensor.data[...] = 0
    return tensor


def ones_(tensor: Tensor) -> Tensor:
    tensor.data[...] = 1
    return tensor


def constant_(tensor: Tensor, val: float) -> Tensor:
    tensor.data[...] = val
    return tensor


def eye_(tensor: Tensor) -> Tensor:
    """The identity: a linear layer that starts so passes its inputs on."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: the tensor has shape {tensor.shape}, expected 2 dimensions")
    rows, columns = tensor.shape
    tensor.data[...] = np.eye(rows, columns)
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, *, generator: np.random.Generator) -> Tensor:
    tensor.data[...] = generator.uniform(a, b, tensor.shape)
    return tensor


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: np.random.Generator) -> Tensor:
    tensor.data[...] = generator.normal(mean, std, tensor.shape)
    return tensor


def scaled_residual_(tensor: Tensor, layers: int, std: float = 0.02, *, generator: np.random.Generator) -> Tensor:
    """Normal with std / sqrt(2 * layers): for a weight whose output is added to a residual stream.

    A transformer of so many layers adds twice in each, so that the stream's variance does not grow with depth
    (GPT-2: Radford et al., 2019).
    """
    if layers < 1:
        raise ValueError(f"scaled_residual_: got {layers} layers, expected at least 1")
    return normal_(tensor, 0, std / math.sqrt(2 * layers), generator=generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    *,
    generator: np.random.Generator,
) -> Tensor:
    """Normal, but within a..b, which are values and no multiples of std. What falls outside is drawn again."""
    if not a < b:
        raise ValueError(f"trunc_normal_: got the limits {a}..{b}, expected the first to be smaller")
    low, high = (NORMAL.cdf((limit - mean) / std) for limit in (a, b))
    if high - low < LEAST_SHARE:
        raise ValueError(f"trunc_normal_: {a}..{b} is too far from mean {mean} with std {std}")
    values = np.asarray(generator.normal(mean, std, tensor.shape))
    while (outside := (values < a) | (values > b)).any():
        values[outside] = generator.normal(mean, std, np.count_nonzero(outside))
    tensor.data[...] = values
    return tensor


def orthogonal_(tensor: Tensor, gain: float = 1.0, *, generator: np.random.Generator) -> Tensor:
    """gain times a matrix with orthonormal rows, or columns if there are more rows (Saxe et al., 2013).

    Dimensions beyond the first are one. The signs make it uniform among all such matrices (Mezzadri, 2006).
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: the tensor has shape {tensor.shape}, expected at least 2 dimensions")
    if not tensor.numel():
        return tensor
    rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diagonal(r))
    tensor.data[...] = (gain * (q if rows >= columns else q.T)).reshape(tensor.shape)
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
