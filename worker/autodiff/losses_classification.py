"""Losses between scores of classes and the classes that are right.

Shapes: N samples, C classes, ... further dimensions, M = N * ... rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.casting import in_float32, widened
from worker.autodiff.elementwise import quiet
from worker.autodiff.losses import Reduction, check_same_shape, reduced, values_like
from worker.autodiff.precision import current
from worker.autodiff.shape import permute, reshape
from worker.autodiff.softmax import log_softmax
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "nll_loss",
]

LOG_MIN = -100.0  # PyTorch's least logarithm in binary_cross_entropy, so that a loss is finite at 0 and 1


@quiet
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-weight * log softmax(input) at the target, or its mean under the target's probabilities. Fused.

    input (C,), (N, C) or (N, C, ...) are logits; target (), (N,) or (N, ...) are class indices, or probabilities of the
    input's shape. label_smoothing s takes (1 - s) of the target and s of the uniform distribution (Szegedy et al.,
    2016). The mean is over the weights of the targets that are not ignore_index, NaN over none; for probabilities over
    all rows. ValueError for other shapes, and for a class outside 0..C-1.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, expected 0..1")
    if current.get() == "fp16" and (target.dtype.kind == "f" or label_smoothing or weight is not None):
        input, target = widened(input), widened(target)
    if target.dtype.kind == "f":
        return _cross_entropy_of_probabilities(input, target, weight, reduction, label_smoothing)
    _check_classes("cross_entropy", input, target, weight)
    logits, shape = _rows(input), target.shape
    if label_smoothing:
        rows = _targets("cross_entropy", target, logits, weight, ignore_index)
        shares = _smoothed_shares(rows, logits, weight, label_smoothing)
        log_p = log_softmax(logits.detach(), 1).data
        losses = -np.einsum("mc,mc->m", shares, log_p)
        delta = np.exp(log_p) * shares.sum(axis=1, keepdims=True) - shares
        total = rows.total
    else:
        losses, delta = kernels.softmax_cross_entropy(logits.data, target.data.reshape(-1), ignore_index)
        if weight is None:
            total = int(np.count_nonzero(target.data != ignore_index))
        else:
            rows = _targets("cross_entropy", target, logits, weight, ignore_index)
            losses, delta, total = losses * rows.weights, delta * rows.weights[:, None], rows.total

    def vjp(g: Array) -> Array:
        scale: Array = g.reshape(-1, 1)
        if delta.dtype == np.float16:
            return kernels.scaled_rows(delta, scale)
        return delta if scale.size == 1 and scale[0, 0] == 1 else np.asarray(delta * scale)

    return reduced("cross_entropy", losses.reshape(shape), reduction, (logits, vjp), count=total)


def _cross_entropy_of_probabilities(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: Reduction, label_smoothing: float
) -> Tensor:
    _check_scores("cross_entropy", input, weight)
    if target.shape != input.shape:
        raise ValueError(
            f"cross_entropy: target is {target.dtype} of shape {target.shape}, expected integers (class indices), or "
            f"probabilities of the input's shape, {input.shape}"
        )
    logits, probabilities = _rows(input), _rows(target)
    num_rows, num_classes = logits.shape
    scale = np.asarray(1, logits.dtype) if weight is None else values_like(weight, logits)
    shares = scale * (probabilities.data * (1 - label_smoothing) + label_smoothing / num_classes)
    log_p = log_softmax(logits.detach(), 1).data
    losses = -np.einsum("mc,mc->m", shares, log_p)

    def logits_vjp(g: Array) -> Array:
        return np.asarray(g.reshape(-1, 1) * (np.exp(log_p) * shares.sum(axis=1, keepdims=True) - shares))

    def probabilities_vjp(g: Array) -> Array:
        return np.asarray(g.reshape(-1, 1) * (label_smoothing - 1) * scale * log_p)

    return reduced(
        "cross_entropy",
        losses.reshape(input.shape[:1] * (input.ndim > 1) + input.shape[2:]),
        reduction,
        (logits, logits_vjp),
        (probabilities, probabilities_vjp),
        count=num_rows,
    )


@in_float32
@quiet
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """-weight * input at the target, for an input of log-probabilities; shapes and mean as in cross_entropy."""
    _check_classes("nll_loss", input, target, weight)
    scores = _rows(input)
    rows = _targets("nll_loss", target, scores, weight, ignore_index)
    index = np.arange(len(rows.classes)), rows.classes
    losses = np.where(rows.kept, -rows.weights * scores.data[index], scores.dtype.type(0))

    def vjp(g: Array) -> Array:
        gradient = np.zeros(scores.shape, scores.dtype)
        gradient[index] = -rows.weights * g.reshape(-1)
        return gradient

    return reduced(
        "nll_loss", losses.astype(scores.dtype).reshape(target.shape), reduction, (scores, vjp), count=rows.total
    )


@in_float32
@quiet
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    """-(target * log(input) + (1 - target) * log(1 - input)) * weight; a logarithm is at least -100.

    input and target have one shape and are probabilities: ValueError outside 0..1.
    """
    check_same_shape("binary_cross_entropy", input, target)
    p, t = input.data, values_like(target, input)
    for what, values in (("inputs", p), ("targets", t)):
        if np.any(values < 0) or np.any(values > 1):
            raise ValueError(f"binary_cross_entropy: got {what} in {values.min()}..{values.max()}, expected 0..1")
    w = _sample_weight("binary_cross_entropy", input, weight)
    log_p, log_q = np.maximum(np.log(p), p.dtype.type(LOG_MIN)), np.maximum(np.log1p(-p), p.dtype.type(LOG_MIN))
    return reduced(
        "binary_cross_entropy",
        -(t * log_p + (1 - t) * log_q) * w,
        reduction,
        (input, lambda g: g * w * (p - t) / np.maximum((1 - p) * p, p.dtype.type(1e-12))),
        (target, lambda g: g * w * (log_q - log_p)),
    )


@in_float32
@quiet
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """binary_cross_entropy(sigmoid(input), target), without overflow; pos_weight multiplies the positive part."""
    name = "binary_cross_entropy_with_logits"
    check_same_shape(name, input, target)
    x, t, w = input.data, values_like(target, input), _sample_weight(name, input, weight)
    opposite = np.negative(x)
    softplus = kernels.softplus(opposite, beta=1.0, threshold=np.inf)  # -log(sigmoid(x))
    more = _sample_weight(name, input, pos_weight) - 1
    factor = 1 + more * t

    def input_vjp(g: Array) -> Array:
        return np.asarray(g * w * (1 - t - factor * kernels.sigmoid(opposite)))

    return reduced(
        name,
        ((1 - t) * x + factor * softplus) * w,
        reduction,
        (input, input_vjp),
        (target, lambda g: g * w * (more * softplus - x)),
    )


class _Rows(NamedTuple):
    """Targets as rows (M,): whether each counts; its class and its weight, both 0 if not; and the weights' sum."""

    kept: Array
    classes: Array
    weights: Array
    total: float


def _targets(name: str, target: Tensor, scores: Tensor, weight: Tensor | None, ignore_index: int) -> _Rows:
    num_classes = scores.shape[1]
    classes = target.data.reshape(-1)
    kept = classes != ignore_index
    wrong = np.flatnonzero(kept & ((classes < 0) | (classes >= num_classes)))
    if wrong.size:
        row = wrong[0]
        raise ValueError(f"{name}: the target of row {row} is {classes[row]}, expected 0..{num_classes - 1}")
    classes = classes * kept
    weights = kept.astype(scores.dtype) if weight is None else values_like(weight, scores)[classes] * kept
    return _Rows(kept, classes, weights, float(weights.sum()))


def _smoothed_shares(rows: _Rows, logits: Tensor, weight: Tensor | None, smoothing: float) -> Array:
    """How much each class counts in each row's loss, (M, C)."""
    num_rows, num_classes = logits.shape
    uniform = (1 if weight is None else values_like(weight, logits)) * logits.dtype.type(smoothing / num_classes)
    shares = np.asarray(rows.kept[:, None] * np.broadcast_to(uniform, logits.shape), logits.dtype)
    shares[np.arange(num_rows), rows.classes] += (1 - smoothing) * rows.weights
    return shares


def _rows(input: Tensor) -> Tensor:
    """(C,), (N, C) or (N, C, ...) -> (M, C): classes last."""
    last = permute(input, (0, *range(2, input.ndim), 1)) if input.ndim > 2 else input
    num_classes = last.shape[-1]
    return last if last.ndim == 2 else reshape(last, (last.numel() // max(num_classes, 1), num_classes))


def _sample_weight(name: str, input: Tensor, weight: Tensor | None) -> Array:
    """The weight, or 1, in a shape that broadcasts over the input."""
    if weight is None:
        return np.asarray(1, input.dtype)
    try:
        np.broadcast_to(weight.data, input.shape)
    except ValueError:
        raise ValueError(f"{name}: weight has shape {weight.shape}, which does not fit {input.shape}") from None
    return values_like(weight, input)


def _check_scores(name: str, input: Tensor, weight: Tensor | None) -> None:
    if not input.ndim:
        raise ValueError(f"{name}: input is a scalar, expected logits of shape (C,), (N, C) or (N, C, ...)")
    num_classes = input.shape[min(1, input.ndim - 1)]
    if weight is not None and weight.shape != (num_classes,):
        raise ValueError(f"{name}: weight has shape {weight.shape}, expected ({num_classes},), one for each class")


def _check_classes(name: str, input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    if target.dtype.kind not in "iu":
        raise ValueError(f"{name}: target is {target.dtype}, expected integers (class indices)")
    _check_scores(name, input, weight)
    expected = (input.shape[0], *input.shape[2:]) if input.ndim > 1 else ()
    if target.shape != expected:
        raise ValueError(f"{name}: input has shape {input.shape} but target has {target.shape}, expected {expected}")
