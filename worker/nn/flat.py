"""FlatParameters: a model's parameters as one vector, their gradients as another.

The optimizer, the all-reduce and the checkpoint each see one array. It does not know where the vectors live: they may
be shared memory, and change from step to step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.nn.module import Parameter

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Views:
    """A flat vector (P,), or several (n, P), and what of it belongs to each parameter: its shape, or (n, *shape)."""

    vector: Vector
    arrays: Sequence[NDArray[Any]]


class FlatParameters:
    """All parameters of a model as views of one float32 vector, their gradients as views of another.

    Shapes: P elements in all parameters together, in the order given. Both vectors are allocated here; `bind_weights`
    and `bind_gradient` put others in their place. Whoever binds the same vectors every step keeps their `views_of`.
    ValueError for no parameters, the same one twice, one that is not float32 or requires no gradient.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = tuple(parameters)
        _check(self.parameters)
        self.size = sum(parameter.numel() for parameter in self.parameters)
        self.bind_weights(np.concatenate([parameter.data.ravel() for parameter in self.parameters]))
        self.bind_gradient(np.zeros(self.size, np.float32))

    weights: Vector
    gradient: Vector

    def views_of(self, vector: Vector) -> Views:
        """Cut `vector` (P,) or (n, P) float32 into arrays of the parameters' shapes; they share its memory."""
        if vector.shape[-1:] != (self.size,) or vector.ndim > 2 or vector.dtype != np.float32:
            raise ValueError(f"expected a float32 vector of shape ({self.size},), got {vector.dtype} {vector.shape}")
        arrays, start = [], 0
        for parameter in self.parameters:
            stop = start + parameter.numel()
            arrays.append(vector[..., start:stop].reshape((*vector.shape[:-1], *parameter.shape)))
            start = stop
        return Views(vector, arrays)

    def bind_weights(self, vector: Vector | Views) -> None:
        """Make every parameter a view of `vector` (P,); the values are what it holds. Nothing is copied."""
        views = vector if isinstance(vector, Views) else self.views_of(vector)
        self.weights = views.vector
        for parameter, array in zip(self.parameters, views.arrays, strict=True):
            parameter.data = array

    def bind_gradient(self, vector: Vector | Views) -> None:
        """Let the next backward pass write into `vector`, whatever it holds: every `.grad` becomes None.

        It is (P,), or (n, P) for a pass over a batch of n parts (see autodiff.in_parts).
        """
        views = vector if isinstance(vector, Views) else self.views_of(vector)
        self.gradient = views.vector
        for parameter, array in zip(self.parameters, views.arrays, strict=True):
            parameter.slot = array
            parameter.grad = None

    def fill_unused(self) -> None:
        """After backward: zero the part of `gradient` of each parameter that got none."""
        for parameter in self.parameters:
            slot = parameter.slot
            assert slot is not None, "bind_gradient has set it"
            if parameter.grad is None:
                slot[...] = 0
            elif parameter.grad.data is not slot:  # someone has set .grad by hand
                slot[...] = parameter.grad.data


def _check(parameters: Sequence[Parameter]) -> None:
    if not parameters:
        raise ValueError("expected at least one parameter, got none")
    if len({id(parameter) for parameter in parameters}) != len(parameters):
        raise ValueError("a parameter is given twice")
    for i, parameter in enumerate(parameters):
        if parameter.dtype != np.float32:
            raise ValueError(f"parameter {i} of shape {parameter.shape} is {parameter.dtype}, expected float32")
        if not parameter.requires_grad:
            raise ValueError(f"parameter {i} of shape {parameter.shape} requires no gradient; leave it out")
