"""Update rules: how weights and a gradient become the next weights. Pure functions over flat vectors.

A rule is a record of hyperparameters. Its state (Adam's m and v) is a sequence of vectors that the caller holds, in the
order of `state_names`, zero before the first step.

Letters: w weights, g gradient * scale, lr learning rate, t step, from 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import updates

Vector = NDArray[np.float32]

DECAY_RATES = ("momentum", "beta1", "beta2")


class Rule(Protocol):
    """What all rules share: the update, from the kernel and the numbers that a rule gives it."""

    state_names: ClassVar[tuple[str, ...]]
    kernel: ClassVar[updates.Update]

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        """What the kernel takes after `scale`."""

    def update(
        self,
        weights: Vector,
        gradient: Vector,
        state: Sequence[Vector],
        new_weights: Vector,
        new_state: Sequence[Vector],
        *,
        step: int,
        learning_rate: float,
        scale: float = 1.0,
    ) -> None:
        """Write new_weights and new_state: 1-D float32, all of one length.

        They are the arrays of weights and state themselves (in place), or all others, so that an aborted step leaves
        nothing behind. `scale` multiplies the gradient: the mean and the clip, folded in. Any range of the vectors can
        be updated by itself: an element's bits depend on that element alone.
        """
        numbers = tuple(map(np.float32, (scale, *self.numbers(step=step, learning_rate=learning_rate))))
        if new_weights is weights:
            self.kernel.in_place(weights, gradient, *state, numbers)
        else:
            self.kernel.beside(weights, gradient, *state, new_weights, *new_state, numbers)

    def __post_init__(self) -> None:
        """ValueError for a hyperparameter that is negative, NaN or infinite, or a decay rate that is not below 1."""
        for field in fields(self):  # type: ignore[arg-type]  # every rule is a dataclass
            name = f"{type(self).__name__}: {field.name}"
            check_number(name, getattr(self, field.name), below=1 if field.name in DECAY_RATES else math.inf)


@dataclass(frozen=True)
class SGD(Rule):
    """w = w - lr * (g + weight_decay * w)"""

    weight_decay: float = 0.0

    state_names = ()
    kernel = updates.SGD

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        return learning_rate, self.weight_decay


@dataclass(frozen=True)
class Momentum(Rule):
    """v = momentum * v - lr * (g + weight_decay * w);  w = w + v (Polyak, 1964)"""

    momentum: float = 0.9
    weight_decay: float = 0.0

    state_names = ("v",)
    kernel = updates.MOMENTUM

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        return learning_rate, self.weight_decay, self.momentum


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma & Ba, 2015), with weight decay as an L2 penalty, as torch.optim.Adam has it.

    g = g + weight_decay * w;  m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g**2
    w = w - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + epsilon)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    state_names = ("m", "v")
    kernel = updates.ADAM

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        return self._numbers(step, learning_rate, decay=self.weight_decay, shrink=1.0)

    def _numbers(self, step: int, learning_rate: float, *, decay: float, shrink: float) -> tuple[float, ...]:
        step_size = learning_rate / (1 - self.beta1**step)
        root = 1 / math.sqrt(1 - self.beta2**step)
        return step_size, root, decay, shrink, self.beta1, self.beta2, self.epsilon


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019): first w = (1 - lr * weight_decay) * w."""

    weight_decay: float = 0.01

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        return self._numbers(step, learning_rate, decay=0.0, shrink=1 - learning_rate * self.weight_decay)


def check_number(name: str, value: float, *, below: float = math.inf) -> None:
    """ValueError unless 0 <= value < below (NaN is never)."""
    if not 0 <= value < below:
        raise ValueError(f"{name} is {value}, expected at least 0 and {'finite' if below == math.inf else 'below 1'}")
