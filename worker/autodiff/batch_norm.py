"""Norms over what a batch or a group of channels has in common; layer_norm and rms_norm are in normalization.

All but local_response_norm subtract a mean, divide by a standard deviation, and scale and shift each channel. They
differ in whose mean: xhat = (x - mean) / sqrt(var + eps), y = xhat * weight + bias. The vjps share one pass.

Shapes: N samples, C channels, L positions (all further dimensions), G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.casting import in_float32
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record, together
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "local_response_norm",
]


@in_float32
@quiet
def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel of x (N, C, ...) by its mean and variance over batch and positions (Ioffe & Szegedy, 2015).

    While training these are the batch's own, and running_mean and running_var (C,) are moved towards them, in place, by
    `momentum`; the running variance takes the unbiased one. Else the running ones are used. ValueError where a batch
    has one value for each channel.
    """
    _check("batch_norm", x, x.shape[1:2], running_mean, running_var, weight, bias)
    if not training:
        return _by_running_statistics("batch_norm", x, running_mean, running_var, weight, bias, eps)
    a = _by_channel(x)
    _check_count("batch_norm", x, a.size // max(a.shape[1], 1))
    s = _standardised(a, eps)
    _move(running_mean, s.mean, momentum)
    _move(running_var, s.var * (s.size / max(s.size - 1, 1)), momentum)
    w, shape = _weight_of(weight, a), x.shape

    def vjps(g: Array) -> tuple[Array, Array, Array]:
        g = kernels.single(g).reshape(a.shape)
        by_bias, by_weight = np.add.reduce(g, axis=(0, 2)), np.einsum("ncl,ncl->c", g, s.xhat)
        by_x = g - s.xhat * (by_weight / s.size)[:, None]
        by_x -= (by_bias / s.size)[:, None]
        by_x *= (s.inverse_std * w)[:, None]
        return by_x.reshape(shape), by_weight, by_bias

    return _affine("batch_norm", x, s.xhat, weight, bias, vjps)


@in_float32
@quiet
def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Each sample's channels in num_groups groups, by the mean and variance of the group (Wu & He, 2018)."""
    _check("group_norm", x, x.shape[1:2], None, None, weight, bias)
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"group_norm: x has {x.shape[1]} channels, which {num_groups} groups do not divide")
    _check_count("group_norm", x, x.numel() // num_groups)
    return _by_group("group_norm", x, _grouped(x, num_groups, eps), weight, bias)


@in_float32
@quiet
def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel of each sample by its mean and variance over positions (Ulyanov et al., 2016).

    Running statistics, where given, are moved in place towards the mean of the samples' own; they are what is used
    without use_input_stats.
    """
    _check("instance_norm", x, x.shape[1:2], running_mean, running_var, weight, bias)
    if not use_input_stats:
        return _by_running_statistics("instance_norm", x, running_mean, running_var, weight, bias, eps)
    num_samples, channels = x.shape[:2]
    _check_count("instance_norm", x, math.prod(x.shape[2:]))
    s = _grouped(x, channels, eps)
    _move(running_mean, s.mean.reshape(num_samples, channels).mean(axis=0), momentum)
    unbiased = s.var * (s.size / max(s.size - 1, 1))
    _move(running_var, unbiased.reshape(num_samples, channels).mean(axis=0), momentum)
    return _by_group("instance_norm", x, s, weight, bias)


@in_float32
@quiet
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha * mean)**beta, where the mean is that of x**2 over `size` neighbouring channels.

    Beyond the first and the last channel there are zeros (Krizhevsky et al., 2012).
    """
    if x.ndim < 3:
        raise ValueError(f"local_response_norm: x has {x.ndim} dimensions, expected at least 3")
    if size < 1:
        raise ValueError(f"local_response_norm: size is {size}, expected at least 1")
    a, before, after = x.data, size // 2, (size - 1) // 2
    d = k + alpha / size * _window_sum(a * a, before, after)
    scale = np.power(d, -beta)
    y = a * scale

    def vjp(g: Array) -> Array:
        # A channel is in the windows of those channels that have it in theirs: before and after change places.
        g = kernels.single(g)
        return np.asarray(g * scale - 2 * beta * alpha / size * a * _window_sum(g * y / d, after, before))

    return record("local_response_norm", kernels.activation(y, a), (x, vjp))


class _Standardised(NamedTuple):
    """xhat (R, S, K), and of each of the S sets over R and K: mean, variance, 1 / sqrt(var + eps), size."""

    xhat: Array
    mean: Array
    var: Array
    inverse_std: Array
    size: int


def _standardised(a: Array, eps: float) -> _Standardised:
    """Subtracts the mean first, so that the variance of numbers far from 0 keeps its digits."""
    count = a.size // max(a.shape[1], 1)
    mean = np.add.reduce(a, axis=(0, 2)) / a.dtype.type(count)
    xhat = a - mean[:, None]
    var = np.einsum("ncl,ncl->c", xhat, xhat) / a.dtype.type(count)
    inverse_std = 1 / np.sqrt(var + eps)
    xhat *= inverse_std[:, None]
    return _Standardised(xhat, mean, var, inverse_std, count)


def _grouped(x: Tensor, num_groups: int, eps: float) -> _Standardised:
    """Standardised over each group of channels of each sample: xhat (1, N * G, the group)."""
    sets = x.shape[0] * num_groups
    return _standardised(x.data.reshape(1, sets, x.numel() // max(sets, 1)), eps)


def _by_group(name: str, x: Tensor, s: _Standardised, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The norm whose sets are groups of channels of one sample."""
    num_samples, channels = x.shape[:2]
    shape, grouped = x.shape, s.xhat.shape
    of_groups = grouped[1], num_samples * channels // max(grouped[1], 1)
    xhat = s.xhat.reshape(num_samples, channels, x.numel() // max(num_samples * channels, 1))
    w = _weight_of(weight, xhat)

    def vjps(g: Array) -> tuple[Array, Array, Array]:
        g = kernels.single(g).reshape(xhat.shape)
        by_bias, by_weight = np.add.reduce(g, axis=2), np.einsum("ncl,ncl->nc", g, xhat)  # of each sample, so far
        along_one, along_xhat = ((part * w).reshape(of_groups).sum(axis=1) for part in (by_bias, by_weight))
        by_x = (g * w[:, None]).reshape(grouped)
        by_x -= s.xhat * (along_xhat / s.size)[:, None]
        by_x -= (along_one / s.size)[:, None]
        by_x *= s.inverse_std[:, None]
        return by_x.reshape(shape), by_weight.sum(axis=0), by_bias.sum(axis=0)

    return _affine(name, x, xhat, weight, bias, vjps)


def _by_running_statistics(
    name: str,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """The norm by a mean and a variance that do not depend on x."""
    if running_mean is None or running_var is None:
        raise ValueError(f"{name}: expected running_mean and running_var, for the input's own statistics are not used")
    a, shape = _by_channel(x), x.shape
    inverse_std = 1 / np.sqrt(running_var.data + eps)
    xhat = np.asarray((a - running_mean.data[:, None]) * inverse_std[:, None], a.dtype)
    scale = _weight_of(weight, a) * inverse_std.astype(a.dtype)

    def vjps(g: Array) -> tuple[Array, Array, Array]:
        g = kernels.single(g).reshape(a.shape)
        by_x = (g * scale[:, None]).reshape(shape)
        return by_x, np.einsum("ncl,ncl->c", g, xhat), np.add.reduce(g, axis=(0, 2))

    return _affine(name, x, xhat, weight, bias, vjps)


def _affine(
    name: str,
    x: Tensor,
    xhat: Array,
    weight: Tensor | None,
    bias: Tensor | None,
    vjps: Callable[[Array], tuple[Array, Array, Array]],
) -> Tensor:
    """xhat (N, C, L) * weight + bias in the shape of x; vjps gives the gradients of x, weight and bias."""
    y = xhat if weight is None else xhat * weight.data[:, None]
    if bias is not None:
        y = y + bias.data[:, None]
    by_x, by_weight, by_bias = together(vjps, 3)
    return record(name, kernels.activation(y, xhat).reshape(x.shape), (x, by_x), (weight, by_weight), (bias, by_bias))


def _by_channel(x: Tensor) -> Array:
    """(N, C, ...) -> (N, C, L)."""
    return x.data.reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _weight_of(weight: Tensor | None, a: Array) -> Array:
    return np.ones(a.shape[1], a.dtype) if weight is None else weight.data


def _move(running: Tensor | None, towards: Array, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * towards, in place."""
    if running is not None:
        running.data[...] = (1 - momentum) * running.data + momentum * towards


def _window_sum(a: Array, before: int, after: int) -> Array:
    """The sum of each channel, those `before` it and those `after` it."""
    channels, total = a.shape[1], np.zeros_like(a)
    for shift in range(max(-before, 1 - channels), min(after, channels - 1) + 1):
        first, last = max(0, -shift), channels - max(0, shift)
        total[:, first:last] += a[:, first + shift : last + shift]
    return total


def _check(name: str, x: Tensor, channels: tuple[int, ...], *of_channels: Tensor | None) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name}: x has shape {x.shape}, expected (N, C, ...)")
    for what, tensor in zip(("running_mean", "running_var", "weight", "bias"), of_channels, strict=True):
        if tensor is not None and tensor.shape != channels:
            raise ValueError(f"{name}: {what} has shape {tensor.shape}, expected {channels}, one for each channel")


def _check_count(name: str, x: Tensor, count: int) -> None:
    """A single value is its own mean: what is left of it is 0."""
    if count == 1:
        raise ValueError(f"{name}: x of shape {x.shape} has one value for each mean, expected more")
