"""Clipping: by the global norm, where all gradients together get one factor; by value, each element by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from worker.autodiff import Tensor, kernels


def clip_scale(square_sum: float, max_norm: float) -> float:
    """min(1, max_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_; NaN where the norm is NaN."""
    scale = max_norm / (math.sqrt(square_sum) + 1e-6)
    return 1.0 if scale > 1 else scale


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients in place so that their joint norm is at most max_norm; the norm before is returned."""
    _check("clip_grad_norm_: max_norm", max_norm)
    gradients = [parameter.grad.data for parameter in parameters if parameter.grad is not None]
    square_sum = math.fsum(block for g in gradients for block in kernels.block_square_sums(g.ravel()))
    scale = clip_scale(square_sum, max_norm)
    if scale != 1:
        for g in gradients:
            g *= g.dtype.type(scale)
    return math.sqrt(square_sum)


def clip_grad_value_(parameters: Iterable[Tensor], clip_value: float) -> None:
    """Clip each element of the gradients in place to [-clip_value, clip_value]; NaN stays NaN."""
    _check("clip_grad_value_: clip_value", clip_value)
    for parameter in parameters:
        if parameter.grad is not None:
            g = parameter.grad.data
            np.clip(g, -clip_value, clip_value, out=g)


def _check(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}, expected a positive number")
