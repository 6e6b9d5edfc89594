"""Clipping by the global norm: all gradients together get one factor, so that their norm is at most `max_norm`."""

from __future__ import annotations

import math
from collections.abc import Iterable

from worker.autodiff import Tensor, kernels


def clip_scale(square_sum: float, max_norm: float) -> float:
    """min(1, max_norm / (norm + 1e-6)), as in torch.nn.utils.clip_grad_norm_; NaN where the norm is NaN."""
    scale = max_norm / (math.sqrt(square_sum) + 1e-6)
    return 1.0 if scale > 1 else scale


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients in place so that their joint norm is at most max_norm; the norm before is returned."""
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm_: max_norm is {max_norm}, expected a positive number")
    gradients = [parameter.grad.data for parameter in parameters if parameter.grad is not None]
    square_sum = math.fsum(block for g in gradients for block in kernels.block_square_sums(g.ravel()))
    scale = clip_scale(square_sum, max_norm)
    if scale != 1:
        for g in gradients:
            g *= g.dtype.type(scale)
    return math.sqrt(square_sum)
