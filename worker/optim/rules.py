"""Update rules: how weights and a gradient become the next weights. Pure functions over flat vectors.

A rule is a record of hyperparameters. Its state (Adam's m and v) is a sequence of vectors that the caller holds, in the
order of `state_names`; `start` writes what they are before the first step.

Letters: w weights, g gradient * scale, held between -limit and limit, lr learning rate, t step, from 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels import updates

Vector = NDArray[np.float32]

DECAY_RATES = ("momentum", "alpha", "beta1", "beta2", "decay")


class Rule(Protocol):
    """What the optimizers and the workers see."""

    @property
    def state_names(self) -> tuple[str, ...]: ...

    def start(self, weights: Vector, state: Sequence[Vector]) -> None:
        """Write the state before the first step, of which `weights` are the weights: zeros."""
        for vector in state:
            vector[...] = 0

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
        limit: float = math.inf,
    ) -> None:
        """Write new_weights and new_state: 1-D float32, all of one length.

        They are the arrays of weights and state themselves (in place), or all others, so that an aborted step leaves
        nothing behind. `scale` multiplies the gradient: the mean and the clip by norm, folded in; then each element is
        clipped to [-limit, limit]. Any range of the vectors can be updated by itself: an element's bits depend on that
        element alone.
        """


class FusedRule(Rule, Protocol):
    """A rule that is one kernel: one pass over memory."""

    @property
    def kernel(self) -> updates.Update: ...

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        """What the kernel takes after `scale` and `limit`."""

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
        limit: float = math.inf,
    ) -> None:
        numbers = tuple(map(np.float32, (scale, limit, *self.numbers(step=step, learning_rate=learning_rate))))
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
class SGD(FusedRule):
    """w = w - lr * g, with PyTorch's momentum (https://pytorch.org/docs/stable/generated/torch.optim.SGD.html).

    g = g + weight_decay * w;  b = momentum * b + (1 - dampening) * g, and b = g in step 1
    w = w - lr * b, with nesterov w = w - lr * (g + momentum * b)
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError(
                f"SGD: nesterov needs a momentum above 0 and no dampening, got {self.momentum} and {self.dampening}"
            )

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("b",) if self.momentum else ()

    @property
    def kernel(self) -> updates.Update:
        return updates.HEAVY_BALL if self.momentum else updates.SGD

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        if not self.momentum:
            return learning_rate, self.weight_decay
        gain = 1 - self.dampening if step > 1 else 1.0
        from_g, from_b = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        return learning_rate, self.weight_decay, self.momentum, gain, from_g, from_b


@dataclass(frozen=True)
class Momentum(FusedRule):
    """v = momentum * v - lr * (g + weight_decay * w);  w = w + v (Polyak, 1964)"""

    momentum: float = 0.9
    weight_decay: float = 0.0

    state_names = ("v",)
    kernel = updates.MOMENTUM

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        return learning_rate, self.weight_decay, self.momentum


@dataclass(frozen=True)
class Adam(FusedRule):
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


@dataclass(frozen=True)
class RMSprop(FusedRule):
    """RMSprop (Hinton, 2012), as torch.optim.RMSprop has it.

    g = g + weight_decay * w;  v = alpha * v + (1 - alpha) * g**2;  d = sqrt(v) + epsilon
    w = w - lr * g / d; with momentum b = momentum * b + g / d;  w = w - lr * b
    centered: m = alpha * m + (1 - alpha) * g;  d = sqrt(v - m**2) + epsilon (Graves, 2013)
    """

    alpha: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("v", *("m",) * bool(self.centered), *("b",) * bool(self.momentum))

    @property
    def kernel(self) -> updates.Update:
        if self.centered:
            return updates.RMSPROP_CENTERED_MOMENTUM if self.momentum else updates.RMSPROP_CENTERED
        return updates.RMSPROP_MOMENTUM if self.momentum else updates.RMSPROP

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        numbers = learning_rate, self.weight_decay, self.alpha, 1 - self.alpha, self.epsilon
        return (*numbers, self.momentum) if self.momentum else numbers


@dataclass(frozen=True)
class Adagrad(FusedRule):
    """Adagrad (Duchi et al., 2011), as torch.optim.Adagrad has it.

    g = g + weight_decay * w;  s = s + g**2, from initial_accumulator_value
    w = w - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + epsilon)
    """

    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    epsilon: float = 1e-10

    state_names = ("s",)
    kernel = updates.ADAGRAD

    def start(self, weights: Vector, state: Sequence[Vector]) -> None:
        state[0][...] = self.initial_accumulator_value

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        return learning_rate / (1 + (step - 1) * self.lr_decay), self.weight_decay, self.epsilon


@dataclass(frozen=True)
class Lion(FusedRule):
    """Lion (Chen et al., 2023): steps of one size, in the direction of the sign; weight decay as AdamW's.

    w = w - lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w);  m = beta2 * m + (1 - beta2) * g
    """

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    state_names = ("m",)
    kernel = updates.LION

    def numbers(self, *, step: int, learning_rate: float) -> tuple[float, ...]:
        shrink = 1 - learning_rate * self.weight_decay
        return learning_rate, shrink, self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2


EMA = "ema"  # the name of the state vector that holds the average of the weights


@dataclass(frozen=True)
class Averaged(Rule):
    """Another rule, and beside its weights their exponential moving average, for evaluation: e, named EMA.

    e = decay * e + (1 - decay) * w, of the next weights, from the first weights on (Polyak & Juditsky, 1992).
    """

    rule: Rule
    decay: float = 0.999

    # Elements at a time: those that the rule has just written are averaged while they are in the cache.
    CHUNK = 1 << 14

    def __post_init__(self) -> None:
        check_number("Averaged: decay", self.decay, below=1)
        if EMA in self.rule.state_names:
            raise ValueError("Averaged: the rule keeps an average already")

    @property
    def state_names(self) -> tuple[str, ...]:
        return (*self.rule.state_names, EMA)

    def start(self, weights: Vector, state: Sequence[Vector]) -> None:
        self.rule.start(weights, state[:-1])
        state[-1][...] = weights

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
        limit: float = math.inf,
    ) -> None:
        rate, in_place = np.float32(1 - self.decay), new_weights is weights
        for first in range(0, weights.size, self.CHUNK):
            chunk = slice(first, first + self.CHUNK)
            w, g, (*s, e) = weights[chunk], gradient[chunk], (vector[chunk] for vector in state)
            new_w, (*new_s, new_e) = w if in_place else new_weights[chunk], (vector[chunk] for vector in new_state)
            self.rule.update(w, g, s, new_w, new_s, step=step, learning_rate=learning_rate, scale=scale, limit=limit)
            if in_place:
                updates.AVERAGE.in_place(w, e, rate)
            else:
                updates.AVERAGE.beside(new_w, e, new_e, rate)


def without_decay(rule: Rule) -> Rule:
    """The same rule, with the same state, that does not decay weights."""
    if isinstance(rule, Averaged):
        return replace(rule, rule=without_decay(rule.rule))
    return cast("Rule", replace(cast("Any", rule), weight_decay=0.0))


def check_number(name: str, value: float, *, below: float = math.inf) -> None:
    """ValueError unless 0 <= value < below (NaN is never)."""
    if not 0 <= value < below:
        raise ValueError(f"{name} is {value}, expected at least 0 and {'finite' if below == math.inf else 'below 1'}")
