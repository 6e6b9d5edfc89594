"""Optimizers for a training loop in one process, after torch.optim: a rule, the flat vectors it works on, its state.

    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.schedule = optim.schedules.Cosine(total_steps=2000, warmup_steps=100)
    optimizer.keep_average(0.999)
    for batch in data:
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with optimizer.averaged_weights():
        ...  # evaluate

A schedule is a function of the step, and an optimizer counts its steps: there is no scheduler that must be stepped, or
saved. Without one, `lr` may be set before any step.

Unlike PyTorch's, a parameter that got no gradient counts as one whose gradient is zero (Adam's m decays).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from worker.autodiff import versions
from worker.nn import FlatParameters, Parameter
from worker.optim import rules, schedules


class Optimizer:
    """Apply `rule` to all parameters at once. `lr` and `schedule` may be changed between steps.

    Step n, from 0, has the learning rate lr * schedule(n). The parameters become views of one vector, `flat.weights`,
    and their gradients of another.
    """

    def __init__(self, params: Iterable[Parameter], rule: rules.Rule, lr: float) -> None:
        rules.check_number(f"{type(self).__name__}: lr", lr)
        self.flat = FlatParameters(params)
        self.rule = rule
        self.lr = lr
        self.schedule: Callable[[int], float] = schedules.Constant()
        self.num_steps = 0
        self.state = {name: np.zeros(self.flat.size, np.float32) for name in rule.state_names}
        rule.start(self.flat.weights, tuple(self.state.values()))

    def step(self) -> None:
        """Change the weights by their gradients; nothing happens where there are none."""
        if all(parameter.grad is None for parameter in self.flat.parameters):
            return
        self.flat.fill_unused()
        learning_rate = self.lr * self.schedule(self.num_steps)
        self.num_steps += 1
        flat, state = self.flat, tuple(self.state.values())
        self.rule.update(
            flat.weights, flat.gradient, state, flat.weights, state, step=self.num_steps, learning_rate=learning_rate
        )
        versions.changed(flat.weights, f"{type(self).__name__}.step")

    def keep_average(self, decay: float = 0.999) -> Self:
        """From now on keep an exponential moving average of the weights, as state["ema"]; see rules.Averaged."""
        self.rule = rules.Averaged(self.rule, decay)
        self.state["ema"] = self.flat.weights.copy()
        return self

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this block the parameters are their averages: to evaluate or save them, not to train."""
        if "ema" not in self.state:
            raise ValueError("averaged_weights: there is no average; call keep_average() before training")
        weights = self.flat.weights
        self.flat.bind_weights(self.state["ema"])
        try:
            yield
        finally:
            self.flat.bind_weights(weights)

    def zero_grad(self) -> None:
        for parameter in self.flat.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """A copy of what must be saved to go on later: the state by name, lr and num_steps."""
        state = {name: vector.copy() for name, vector in self.state.items()}
        return {"lr": self.lr, "num_steps": self.num_steps, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state_dict; ValueError where its names or shapes are another optimizer's."""
        saved = {name: np.asarray(vector) for name, vector in state_dict["state"].items()}
        if saved.keys() != self.state.keys():
            raise ValueError(f"load_state_dict: got state {sorted(saved)}, expected {sorted(self.state)}")
        for name, vector in saved.items():
            if vector.shape != self.state[name].shape:
                raise ValueError(f"load_state_dict: {name} has shape {vector.shape}, expected {self.state[name].shape}")
        for name, vector in saved.items():
            self.state[name][...] = vector
        self.lr, self.num_steps = state_dict["lr"], state_dict["num_steps"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lr={self.lr}, {self.rule}, {self.flat.size} parameters)"


class SGD(Optimizer):
    """See rules.SGD."""

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, rules.SGD(momentum, dampening, weight_decay, nesterov), lr)


class Momentum(Optimizer):
    """v = momentum * v - lr * g; w = w + v; see rules.Momentum."""

    def __init__(
        self, params: Iterable[Parameter], lr: float = 1e-3, momentum: float = 0.9, *, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, rules.Momentum(momentum, weight_decay), lr)


class Adam(Optimizer):
    """See rules.Adam."""

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, rules.Adam(*betas, eps, weight_decay), lr)


class AdamW(Optimizer):
    """See rules.AdamW."""

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, rules.AdamW(*betas, eps, weight_decay), lr)


class RMSprop(Optimizer):
    """See rules.RMSprop."""

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(params, rules.RMSprop(alpha, eps, weight_decay, momentum, centered), lr)


class Adagrad(Optimizer):
    """See rules.Adagrad."""

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(params, rules.Adagrad(lr_decay, weight_decay, initial_accumulator_value, eps), lr)


class Lion(Optimizer):
    """See rules.Lion."""

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, rules.Lion(*betas, weight_decay), lr)
