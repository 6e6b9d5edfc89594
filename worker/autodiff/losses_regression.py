"""Losses between numbers, or between a number and the distribution it is from.

The gradient of each loss is written beside it, before the reduction: g comes divided by the mean's count.
"""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff.casting import in_float32
from worker.autodiff.elementwise import quiet
from worker.autodiff.losses import Reduction, check_same_shape, reduced, values_like
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "gaussian_nll_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
]

TWO_PI = 2 * math.pi


@in_float32
def mse_loss(input: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """(input - target)**2. ValueError where the shapes differ: broadcasting here is nearly always a mistake."""
    check_same_shape("mse_loss", input, target)
    d = input.data - values_like(target, input)
    return reduced("mse_loss", d * d, reduction, (input, lambda g: d * (2 * g)), (target, lambda g: d * (-2 * g)))


@in_float32
def l1_loss(input: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """|input - target|, of equal shapes."""
    check_same_shape("l1_loss", input, target)
    d = input.data - values_like(target, input)
    return reduced(
        "l1_loss", np.abs(d), reduction, (input, lambda g: np.sign(d) * g), (target, lambda g: np.sign(d) * -g)
    )


@in_float32
def smooth_l1_loss(input: Tensor, target: Tensor, *, reduction: Reduction = "mean", beta: float = 1.0) -> Tensor:
    """d**2 / (2 * beta) where |d| = |input - target| < beta, |d| - beta / 2 beyond; l1_loss for beta = 0."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta is {beta}, expected at least 0")
    if not beta:
        return l1_loss(input, target, reduction=reduction)
    return _huber("smooth_l1_loss", input, target, reduction, limit=beta, scale=1 / beta)


@in_float32
def huber_loss(input: Tensor, target: Tensor, *, reduction: Reduction = "mean", delta: float = 1.0) -> Tensor:
    """d**2 / 2 where |d| = |input - target| < delta, delta * (|d| - delta / 2) beyond (Huber, 1964)."""
    if delta <= 0:
        raise ValueError(f"huber_loss: delta is {delta}, expected more than 0")
    return _huber("huber_loss", input, target, reduction, limit=delta, scale=1.0)


def _huber(name: str, input: Tensor, target: Tensor, reduction: Reduction, *, limit: float, scale: float) -> Tensor:
    check_same_shape(name, input, target)
    d = np.asarray(input.data - values_like(target, input))
    slope = np.clip(d, -limit, limit)  # of the loss by d, before the scale
    return reduced(
        name,
        scale * slope * (d - 0.5 * slope),
        reduction,
        (input, lambda g: slope * (scale * g)),
        (target, lambda g: slope * (-scale * g)),
    )


@in_float32
@quiet
def kl_div(input: Tensor, target: Tensor, *, reduction: Reduction | str = "mean", log_target: bool = False) -> Tensor:
    """target * (log(target) - input): the divergence of a distribution from one whose logarithm is the input.

    With log_target the target is a logarithm, too. Besides the usual reductions there is "batchmean", the sum divided
    by the batch, which is what the definition says. Shapes are broadcast.
    """
    a, b = input.data, values_like(target, input)
    if log_target:
        p = np.exp(b)
        losses = p * (b - a)
        by_target = losses + p
    else:
        p, log_p = b, np.log(b)
        losses = np.where(b == 0, b, b * log_p) - b * a  # 0 * log(0) is 0
        by_target = log_p + 1 - a
    batchmean = reduction == "batchmean"
    return reduced(
        "kl_div",
        losses,
        "mean" if batchmean else reduction,
        (input, lambda g: -p * np.broadcast_to(g, losses.shape)),
        (target, lambda g: by_target * g),
        count=max(input.shape[:1], default=1) if batchmean else None,
    )


@in_float32
@quiet
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    *,
    eps: float = 1e-8,
    reduction: Reduction = "mean",
) -> Tensor:
    """exp(input) - target * input, or input - target * log(input + eps) where the input is the rate itself.

    `full` adds Stirling's approximation of log(target!) where the target is above 1. Shapes are broadcast.
    """
    x, t = input.data, values_like(target, input)
    if log_input:
        rate, log_rate = np.exp(x), x
    else:
        rate, log_rate = x, np.log(x + eps)
    losses, by_target = rate - t * log_rate, -log_rate
    if full:
        many = t > 1
        losses = losses + np.where(many, t * np.log(t) - t + 0.5 * np.log(TWO_PI * t), 0)
        by_target = by_target + np.where(many, np.log(t) + 0.5 / t, 0)

    def input_vjp(g: Array) -> Array:
        return np.asarray(g * (rate - t) if log_input else g * (1 - t / (x + eps)))

    def target_vjp(g: Array) -> Array:
        return np.broadcast_to(g, losses.shape) * by_target

    return reduced("poisson_nll_loss", losses, reduction, (input, input_vjp), (target, target_vjp))


@in_float32
@quiet
def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    *,
    full: bool = False,
    eps: float = 1e-6,
    reduction: Reduction = "mean",
) -> Tensor:
    """(log(v) + (input - target)**2 / v) / 2 with v = max(var, eps); `full` adds the constant log(2 * pi) / 2.

    var has the input's shape, or that without its last dimension, or with one dimension of size 1. As in PyTorch, its
    gradient does not see eps. ValueError for other shapes and for a negative variance.
    """
    d = np.asarray(input.data - values_like(target, input))
    given = values_like(var, input) if isinstance(var, Tensor) else np.full(input.shape, var, input.dtype)
    if np.any(given < 0):
        raise ValueError(f"gaussian_nll_loss: the smallest var is {given.min()}, expected at least 0")
    v = np.maximum(_like_input(given, input), given.dtype.type(eps))
    losses = 0.5 * (np.log(v) + d * d / v)
    if full:
        losses = losses + 0.5 * math.log(TWO_PI)

    def var_vjp(g: Array) -> Array:
        gradient: Array = g * 0.5 * (1 - d * d / v) / v
        if given.ndim < gradient.ndim:
            gradient = np.add.reduce(gradient, axis=-1)
        return gradient

    return reduced(
        "gaussian_nll_loss",
        losses,
        reduction,
        (input, lambda g: g * (d / v)),
        (target, lambda g: -g * (d / v)),
        (var if isinstance(var, Tensor) else None, var_vjp),
    )


def _like_input(var: Array, input: Tensor) -> Array:
    """var in a shape that broadcasts over the input; ValueError where it means nothing."""
    if var.shape == input.shape:
        return var
    if var.shape == input.shape[:-1]:
        return var[..., None]
    different = [v for v, size in zip(var.shape, input.shape, strict=False) if v != size]
    if var.ndim == input.ndim and different == [1]:
        return var
    raise ValueError(
        f"gaussian_nll_loss: var has shape {var.shape} but input has {input.shape}, expected that shape, "
        "the shape without its last dimension, or one dimension of size 1"
    )
