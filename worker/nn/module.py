"""Module and Parameter: a model is a tree of modules; its leaves hold parameters.

Names and behaviour are PyTorch's (https://pytorch.org/docs/stable/generated/torch.nn.Module.html). A module's
parameters and children are its attributes, in the order in which they were set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from worker.autodiff import Tensor
from worker.autodiff.tensor import Array


class Parameter(Tensor):
    """A tensor that is trained: a leaf that requires a gradient."""

    __slots__ = ()

    def __init__(self, array: Any, requires_grad: bool = True) -> None:
        super().__init__(array, requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class Module:
    """A function with parameters. A subclass sets parameters and modules as attributes and defines `forward`."""

    def __init__(self) -> None:
        self.training = True

    def forward(self, *inputs: Any, **named: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.forward(*inputs, **named)

    # What the tree holds.

    def named_children(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        for _, child in self.named_children():
            yield child

    def modules(self) -> Iterator[Module]:
        """This module and all below it, parents first."""
        yield self
        for child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, by its dotted name, in definition order."""
        seen: set[int] = set()
        for name, parameter in self._all_named_parameters(prefix and f"{prefix}."):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        for _, parameter in self.named_parameters():
            yield parameter

    def _all_named_parameters(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
        for name, child in self.named_children():
            yield from child._all_named_parameters(f"{prefix}{name}.")

    # Saving and loading.

    def state_dict(self) -> dict[str, Array]:
        """Every parameter's array by its name. The arrays are the parameters' own memory, not copies."""
        return {name: parameter.data for name, parameter in self._all_named_parameters("")}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters of the same names.

        ValueError for a wrong shape and, if `strict`, for names that are missing or too many; nothing is copied then.
        """
        parameters = dict(self._all_named_parameters(""))
        missing, unexpected = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
        if strict and (missing or unexpected):
            raise ValueError(f"load_state_dict: missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}")
        arrays = {name: np.asarray(state[name]) for name in parameters if name in state}
        for name, array in arrays.items():
            if array.shape != parameters[name].shape:
                raise ValueError(f"load_state_dict: {name} has shape {array.shape}, expected {parameters[name].shape}")
        for name, array in arrays.items():
            parameters[name].data[...] = array

    # Modes and gradients.

    def train(self, mode: bool = True) -> Self:
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def extra_repr(self) -> str:
        """What stands between the brackets of a module without children."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"
