"""What the losses share: `reduction` is what becomes of them, their mean, their sum, or nothing.

A loss takes what is measured first; past that, what PyTorch takes by position or by keyword is taken by keyword.
Weights of samples and classes are constants: no gradient goes to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from worker.autodiff import parts
from worker.autodiff.elementwise import quiet
from worker.autodiff.graph import Vjp, record
from worker.autodiff.tensor import Array, Tensor

Reduction = Literal["mean", "sum", "none"]


def reduced(
    name: str, losses: Any, reduction: str, *edges: tuple[Tensor | None, Vjp], count: float | None = None
) -> Tensor:
    """The reduced losses as a tensor. Each edge is an input and the vjp of the losses before they are reduced.

    The mean is the sum divided by `count`, which is the number of losses unless given. ValueError for a reduction that
    is none. Of a batch of several parts (see parts) the sum of each is taken; there is no mean.
    """
    losses = np.asarray(losses)
    if parts.current.get() > 1 and reduction != "none":
        return _reduced_in_parts(name, losses, reduction, edges)
    value, divisor = _reduce(name, losses, reduction, losses.size if count is None else count)
    if divisor == 1:
        return record(name, value, *edges)
    return record(name, value, *[(x, _divided(vjp, divisor)) for x, vjp in edges])


def values_like(x: Tensor, input: Tensor) -> Array:
    """The values of x, which may be integers, in the input's dtype."""
    return x.data.astype(input.dtype, copy=False)


def check_same_shape(name: str, input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        raise ValueError(f"{name}: input has shape {input.shape} but target has {target.shape}")


@quiet
def _reduced_in_parts(name: str, losses: Array, reduction: str, edges: tuple[tuple[Tensor | None, Vjp], ...]) -> Tensor:
    """The sums of the losses of each part, (parts,)."""
    if reduction != "sum":
        raise ValueError(f"{name}: reduction is {reduction!r}, expected 'sum' or 'none' for a batch of several parts")
    count = parts.current.get()
    sums = np.array([np.add.reduce(part, axis=None) for part in parts.cut(losses, count)])

    def spread(vjp: Vjp) -> Vjp:
        """The vjp of the losses, given the gradient of the sums."""

        def of_sums(g: Array) -> Array:
            if (g == g[0]).all():  # as for one sum: most vjps are faster
                return vjp(g[:1].reshape(()))
            of_losses = np.repeat(g, len(losses) // count)
            return vjp(np.broadcast_to(of_losses.reshape(-1, *[1] * (losses.ndim - 1)), losses.shape))

        return of_sums

    return record(name, sums, *[(x, spread(vjp)) for x, vjp in edges])


@quiet
def _reduce(name: str, losses: Array, reduction: str, count: float) -> tuple[Array, Any]:
    """The reduced losses, and what their gradient is divided by."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"{name}: reduction is {reduction!r}, expected one of {', '.join(get_args(Reduction))}")
    if reduction == "none":
        return losses, 1
    divisor = losses.dtype.type(count if reduction == "mean" else 1)
    return np.asarray(np.add.reduce(losses, axis=None) / divisor), divisor


def _divided(vjp: Vjp, divisor: Any) -> Callable[[Array], Array]:
    return lambda g: vjp(g / divisor)
