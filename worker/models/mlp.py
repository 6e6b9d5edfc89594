"""Mlp: linear layers with an activation between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from worker.autodiff import Tensor, checkpoint
from worker.nn import GELU, Linear, Module, ReLU, Sequential, Tanh, init

ACTIVATIONS: Mapping[str, Callable[[], Module]] = {"relu": ReLU, "tanh": Tanh, "gelu": GELU}


class Mlp(Module):
    """x (B, ...), `features` numbers a row, -> (B, outputs), through one hidden layer for each width in `hidden`.

    The activation decides how the weights start: Kaiming's way for relu and gelu, Xavier's for tanh, with its gain.
    The last layer, which no activation follows, has gain 1. Biases start at zero. With gradient_checkpointing a hidden
    layer keeps its input alone and is computed again in the backward pass.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        outputs: int,
        activation: str = "relu",
        *,
        gradient_checkpointing: bool = False,
        generator: np.random.Generator,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        widths = (features, *hidden)
        layers: list[Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [_linear(width_in, width_out, activation, generator), ACTIVATIONS[activation]()]
        self.layers = Sequential(*layers, _linear(widths[-1], outputs, "linear", generator))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if not self.gradient_checkpointing:
            return self.layers(x)  # type: ignore[no-any-return]  # a module takes and gives anything
        *hidden, last = self.layers
        for linear, activation in zip(hidden[::2], hidden[1::2], strict=True):
            x = checkpoint(_hidden, linear, activation, x)
        return last(x)  # type: ignore[no-any-return]  # as above


def _hidden(linear: Module, activation: Module, x: Tensor) -> Tensor:
    return activation(linear(x))  # type: ignore[no-any-return]  # as above


def _linear(features_in: int, features_out: int, nonlinearity: str, generator: np.random.Generator) -> Linear:
    """A layer that starts as what follows it needs: an activation, or nothing ("linear")."""
    layer = Linear(features_in, features_out, generator=generator)
    match nonlinearity:
        case "tanh":
            init.xavier_uniform_(layer.weight, init.calculate_gain("tanh"), generator=generator)
        case "relu" | "gelu":
            init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
        case _:
            init.kaiming_uniform_(layer.weight, nonlinearity="linear", generator=generator)
    assert layer.bias is not None, "it is on by default"
    init.zeros_(layer.bias)
    return layer
