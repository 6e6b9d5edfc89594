"""Scores of classes as probabilities, and classes as vectors: softmax in its forms, one_hot."""

from __future__ import annotations

import numpy as np

from worker.autodiff.casting import in_float32
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import record
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "log_softmax",
    "one_hot",
    "softmax",
    "softmin",
]


@in_float32
def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`."""
    y = _probabilities("softmax", x.data, dim)
    return record("softmax", y, (x, lambda g: _softmax_vjp(g, y, dim)))


@in_float32
def softmin(x: Tensor, dim: int) -> Tensor:
    """softmax(-x)."""
    y = _probabilities("softmin", -x.data, dim)
    return record("softmin", y, (x, lambda g: -_softmax_vjp(g, y, dim)))


@in_float32
@quiet
def log_softmax(x: Tensor, dim: int) -> Tensor:
    """log(softmax(x)), without a logarithm of 0."""
    y = _shifted("log_softmax", x.data, dim)
    y -= np.log(np.add.reduce(np.exp(y), axis=dim, keepdims=True))
    return record("log_softmax", y, (x, lambda g: g - np.exp(y) * np.add.reduce(g, axis=dim, keepdims=True)))


def one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """Class indices (...) -> int64 (..., num_classes): 1 at the class, 0 elsewhere; -1 takes the largest class + 1."""
    if x.dtype.kind not in "iu":
        raise ValueError(f"one_hot: x is {x.dtype}, expected integers (class indices)")
    if num_classes == -1:
        if not x.numel():
            raise ValueError("one_hot: x is empty; give num_classes, which cannot be inferred")
        num_classes = int(x.data.max()) + 1
    if x.numel() and not (x.data.min() >= 0 and x.data.max() < num_classes):
        raise ValueError(f"one_hot: got classes {x.data.min()}..{x.data.max()}, expected 0..{num_classes - 1}")
    return Tensor((x.data[..., None] == np.arange(num_classes)).astype(np.int64))


@quiet
def _probabilities(name: str, a: Array, dim: int) -> Array:
    y = _shifted(name, a, dim)
    np.exp(y, out=y)
    y /= np.add.reduce(y, axis=dim, keepdims=True)
    return y


def _softmax_vjp(g: Array, y: Array, dim: int) -> Array:
    gradient = np.asarray(g * y)
    gradient -= y * np.add.reduce(gradient, axis=dim, keepdims=True)
    return gradient


def _shifted(name: str, a: Array, dim: int) -> Array:
    """a minus its largest element along `dim`, so that exp does not overflow; a new array."""
    if not -max(a.ndim, 1) <= dim < max(a.ndim, 1):
        raise ValueError(f"{name}: dim is {dim} but x has {a.ndim} dimensions")
    if a.dtype.kind != "f":
        raise ValueError(f"{name}: expected a floating-point tensor, got {a.dtype}")
    return np.asarray(a - np.maximum.reduce(a, axis=dim, keepdims=True, initial=-np.inf))
