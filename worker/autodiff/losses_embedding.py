"""Losses that pull vectors or scores together and push others apart, up to a margin.

At the margin itself the gradient is that of the inside, as in PyTorch.
"""

from __future__ import annotations

import numpy as np

from worker.autodiff.casting import in_float32
from worker.autodiff.comparison import minimum
from worker.autodiff.distances import pairwise_distance
from worker.autodiff.elementwise import quiet
from worker.autodiff.losses import Reduction, reduced, values_like
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "cosine_embedding_loss",
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "triplet_margin_loss",
]

COSINE_EPS = 1e-12  # PyTorch's: added to squared lengths


@in_float32
def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """The input, a distance, where the target is 1; max(0, margin - input) where it is -1. Shapes are broadcast."""
    x, t = input.data, target.data
    slope = np.asarray(t != -1, x.dtype) - ((t != 1) & (margin - x >= 0))
    losses = (t != -1) * x + (t != 1) * np.maximum(margin - x, 0)
    return reduced("hinge_embedding_loss", losses, reduction, (input, lambda g: g * slope))


@in_float32
def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """max(0, margin - target * (input1 - input2)): input1 shall be the larger where the target is 1, else -1."""
    if not input1.ndim == input2.ndim == target.ndim:
        raise ValueError(
            f"margin_ranking_loss: got shapes {input1.shape}, {input2.shape} and {target.shape}, "
            "expected as many dimensions each"
        )
    t = values_like(target, input1)
    short = np.asarray(margin - t * (input1.data - input2.data))
    slope = (short >= 0) * t
    return reduced(
        "margin_ranking_loss",
        np.maximum(short, 0),
        reduction,
        (input1, lambda g: -g * slope),
        (input2, lambda g: g * slope),
    )


@in_float32
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """max(0, margin + distance(anchor, positive) - distance(anchor, negative)), in the p-norm.

    With `swap` the negative's distance is that to the anchor or to the positive, whichever is nearer (Balntas et al.,
    2016). All are (N, D) or (D,).
    """
    if margin <= 0:
        raise ValueError(f"triplet_margin_loss: margin is {margin}, expected more than 0")
    if not anchor.ndim == positive.ndim == negative.ndim:
        raise ValueError(
            f"triplet_margin_loss: got shapes {anchor.shape}, {positive.shape} and {negative.shape}, "
            "expected as many dimensions each"
        )
    near = pairwise_distance(anchor, positive, p, eps)
    far = pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = minimum(far, pairwise_distance(positive, negative, p, eps))
    short = np.asarray(margin + near.data - far.data)
    return reduced(
        "triplet_margin_loss",
        np.maximum(short, 0),
        reduction,
        (near, lambda g: g * (short >= 0)),
        (far, lambda g: -g * (short >= 0)),
    )


@in_float32
@quiet
def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """1 - cosine where the target is 1, max(0, cosine - margin) where it is -1.

    Inputs (N, D) with a target (N,), or (D,) with ().
    """
    a, b, t = input1.data, input2.data, target.data
    _check_pairs(input1, input2, target)
    squares = [np.add.reduce(v * v, axis=-1, keepdims=True) + a.dtype.type(COSINE_EPS) for v in (a, b)]
    length = np.sqrt(squares[0] * squares[1])
    cosine = np.add.reduce(a * b, axis=-1, keepdims=True) / length
    c = cosine[..., 0]
    losses = (t == 1) * (1 - c) + (t == -1) * np.maximum(c - margin, 0)
    slope = np.asarray((t == -1) & (c - margin >= 0), a.dtype) - (t == 1)

    def vjp(g: Array, this: Array, other: Array, square: Array) -> Array:
        return np.asarray((g * slope)[..., None] * (other / length - this * (cosine / square)))

    return reduced(
        "cosine_embedding_loss",
        losses,
        reduction,
        (input1, lambda g: vjp(g, a, b, squares[0])),
        (input2, lambda g: vjp(g, b, a, squares[1])),
    )


def _check_pairs(input1: Tensor, input2: Tensor, target: Tensor) -> None:
    if input1.shape != input2.shape or input1.ndim not in (1, 2):
        raise ValueError(
            f"cosine_embedding_loss: got inputs of shapes {input1.shape} and {input2.shape}, "
            "expected (N, D) or (D,) twice"
        )
    if target.shape != input1.shape[:-1]:
        raise ValueError(
            f"cosine_embedding_loss: target has shape {target.shape}, expected {input1.shape[:-1]} for {input1.shape}"
        )
