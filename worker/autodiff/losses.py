"""Softmax and losses. `reduction` is what becomes of the losses: their mean, their sum, or nothing.

Shapes: N samples, C classes, ... further dimensions.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.shape import permute, reshape
from worker.autodiff.tensor import Array, Tensor

Reduction = Literal["mean", "sum", "none"]


@quiet
def softmax(x: Tensor, dim: int) -> Tensor:
    e = np.exp(x.data - np.maximum.reduce(x.data, axis=dim, keepdims=True, initial=-np.inf))
    y = e / np.add.reduce(e, axis=dim, keepdims=True)
    return record("softmax", y, (x, lambda g: y * (g - np.add.reduce(g * y, axis=dim, keepdims=True))))


@quiet
def log_softmax(x: Tensor, dim: int) -> Tensor:
    shifted = x.data - np.maximum.reduce(x.data, axis=dim, keepdims=True, initial=-np.inf)
    y = shifted - np.log(np.add.reduce(np.exp(shifted), axis=dim, keepdims=True))
    return record("log_softmax", y, (x, lambda g: g - np.exp(y) * np.add.reduce(g, axis=dim, keepdims=True)))


def cross_entropy(input: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: Reduction = "mean") -> Tensor:
    """-log softmax(input)[target], fused. The mean is over the targets that are not ignore_index: NaN over none.

    input (C,), (N, C) or (N, C, ...) are logits; target (), (N,) or (N, ...) are class indices. ValueError for other
    shapes, for targets that are no integers, and for a class outside 0..C-1.
    """
    _check_classes(input, target)
    # Classes last: (N, C, ...) -> (N, ..., C) -> rows.
    logits = permute(input, (0, *range(2, input.ndim), 1)) if input.ndim > 2 else input
    logits = reshape(logits, (target.numel(), logits.shape[-1]))
    classes = target.data.reshape(-1)
    losses, delta = kernels.softmax_cross_entropy(logits.data, classes, ignore_index)
    count = int(np.count_nonzero(classes != ignore_index)) if reduction == "mean" else 1
    value, divisor = _reduce("cross_entropy", losses.reshape(target.shape), reduction, count)

    def vjp(g: Array) -> Array:
        scale = (g / divisor).reshape(-1, 1)
        return delta if scale.size == 1 and scale[0, 0] == 1 else delta * scale

    return record("cross_entropy", value, (logits, vjp))


def mse_loss(input: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """(input - target)**2. ValueError where the shapes differ: broadcasting here is nearly always a mistake."""
    if input.shape != target.shape:
        raise ValueError(f"mse_loss: input has shape {input.shape} but target has {target.shape}")
    difference = input.data - target.data
    value, divisor = _reduce("mse_loss", difference * difference, reduction, difference.size)
    return record(
        "mse_loss",
        value,
        (input, lambda g: difference * (g * 2 / divisor)),
        (target, lambda g: difference * (g * -2 / divisor)),
    )


@quiet
def _reduce(name: str, losses: Array, reduction: str, count: int) -> tuple[Array, Any]:
    """The reduced losses, and what their gradient is divided by."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"{name}: reduction is {reduction!r}, expected one of {', '.join(get_args(Reduction))}")
    if reduction == "none":
        return losses, 1
    divisor = losses.dtype.type(count if reduction == "mean" else 1)
    return np.asarray(np.add.reduce(losses, axis=None) / divisor), divisor


def _check_classes(input: Tensor, target: Tensor) -> None:
    if target.dtype.kind not in "iu":
        raise ValueError(f"cross_entropy: target is {target.dtype}, expected integers (class indices)")
    if not input.ndim:
        raise ValueError("cross_entropy: input is a scalar, expected logits of shape (C,), (N, C) or (N, C, ...)")
    expected = (input.shape[0], *input.shape[2:]) if input.ndim > 1 else ()
    if target.shape != expected:
        raise ValueError(
            f"cross_entropy: input has shape {input.shape} but target has {target.shape}, expected {expected}"
        )
