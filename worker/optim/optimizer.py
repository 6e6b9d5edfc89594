"""Optimizers for a training loop in one process, after torch.optim: a rule, the flat vectors it works on, its state.

Unlike PyTorch's, a parameter that got no gradient counts as one whose gradient is zero (Adam's m decays).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from worker.nn import FlatParameters, Parameter
from worker.optim import rules


class Optimizer:
    """Apply `rule` to all parameters at once. `lr` may be changed between steps.

    The parameters become views of one vector, `flat.weights`, and their gradients of another.
    """

    def __init__(self, params: Iterable[Parameter], rule: rules.Rule, lr: float) -> None:
        rules.check_number(f"{type(self).__name__}: lr", lr)
        self.flat = FlatParameters(params)
        self.rule = rule
        self.lr = lr
        self.num_steps = 0
        self.state = {name: np.zeros(self.flat.size, np.float32) for name in rule.state_names}

    def step(self) -> None:
        """Change the weights by their gradients; nothing happens where there are none."""
        if all(parameter.grad is None for parameter in self.flat.parameters):
            return
        self.flat.fill_unused()
        self.num_steps += 1
        flat, state = self.flat, tuple(self.state.values())
        self.rule.update(
            flat.weights, flat.gradient, state, flat.weights, state, step=self.num_steps, learning_rate=self.lr
        )

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
    """w = w - lr * g; see rules.SGD."""

    def __init__(self, params: Iterable[Parameter], lr: float = 1e-3, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, rules.SGD(weight_decay), lr)


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
