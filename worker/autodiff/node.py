"""Node: one operation of the forward pass, as backward needs it; and the forms that a vjp can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Union

import numpy as np

import worker.autodiff.versions as versions
from worker.autodiff.precision import current

if TYPE_CHECKING:
    from worker.autodiff.hooks import Watch
    from worker.autodiff.tensor import Array, Tensor

Vjp = Callable[["Array"], "Array"]


class Node:
    """One operation of the forward pass. `edges` is None once it was walked and freed.

    `time` is when it was recorded, in versions.now, and `precision` the one that it computes in; `is_view` says that
    the output lies in the memory of an input; `watch` is who wants to see the output's gradient.
    """

    __slots__ = ("dtype", "edges", "is_view", "name", "precision", "shape", "time", "watch")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], edges: tuple[Edge, ...]) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.edges: tuple[Edge, ...] | None = edges
        self.time = versions.now
        self.precision = current.get()
        self.is_view = False
        self.watch: Watch | None = None

    def __repr__(self) -> str:
        return f"Node({self.name}, shape={self.shape})"


Source = Union[Node, "Tensor"]
Edge = tuple[Source, Vjp]


class Into:
    """A vjp `write(gradient, out)` that can put its result into `out` when it is given one (else out is None).

    So the matrix product of a weight gradient lands in the flat gradient vector without a copy. `add(gradient, into)`,
    where there is one, adds to what lies there already: a tied weight's second gradient. `is_apart` says that `out` has
    a place for each of several parts of a batch, see parts.
    """

    __slots__ = ("add", "is_apart", "write")

    def __init__(
        self,
        write: Callable[[Array, Array | None], Array],
        add: Callable[[Array, Array], Array] | None = None,
        *,
        is_apart: bool = False,
    ) -> None:
        self.write, self.add, self.is_apart = write, add, is_apart

    def __call__(self, gradient: Array) -> Array:
        return self.write(gradient, None)

    def saved(self) -> object:
        return self.write, self.add


def together(vjps: Callable[[Array], tuple[Array, ...]], count: int) -> list[Vjp]:
    """`count` vjps that share one pass: `vjps` gives the gradients of all inputs, and is run once for each gradient."""
    memo: list[Any] = [None, ()]  # the gradient seen last, and what came out

    def nth(i: int) -> Vjp:
        def vjp(gradient: Array) -> Array:
            if memo[0] is not gradient:
                memo[:] = gradient, vjps(gradient)
            part: Array = memo[1][i]
            return part

        return vjp

    return [nth(i) for i in range(count)]
