"""Module and Parameter: a model is a tree of modules; its leaves hold parameters and buffers.

Names and behaviour are PyTorch's (https://pytorch.org/docs/stable/generated/torch.nn.Module.html). A module's
parameters and children are its attributes, in the order in which they were set. Buffers are attributes, too: tensors
that belong to the model's state and are not trained, such as running means.
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
        self._buffers: dict[str, bool] = {}  # by name, whether it is saved

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Set an attribute that is a buffer, part of the state dict if `persistent`; None holds its place."""
        if tensor is not None and type(tensor) is not Tensor:
            raise TypeError(f"register_buffer: {name} is a {type(tensor).__name__}, expected a Tensor or None")
        if hasattr(self, name) and name not in self._buffers:
            raise ValueError(f"register_buffer: there is an attribute {name} already")
        self._buffers[name] = persistent
        setattr(self, name, tensor)

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

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every buffer once, by its dotted name."""
        seen: set[int] = set()
        for path, module in self._named_modules(prefix and f"{prefix}."):
            for name, _ in module._buffers.items():
                buffer = getattr(module, name)
                if buffer is not None and id(buffer) not in seen:
                    seen.add(id(buffer))
                    yield path + name, buffer

    def buffers(self) -> Iterator[Tensor]:
        for _, buffer in self.named_buffers():
            yield buffer

    def _all_named_parameters(self, prefix: str) -> Iterator[tuple[str, Parameter]]:
        for path, module in self._named_modules(prefix):
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield path + name, value

    def _named_modules(self, prefix: str) -> Iterator[tuple[str, Module]]:
        """This module and all below it by the prefix of their attributes' names, as often as they are named."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child._named_modules(f"{prefix}{name}.")

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """What is saved: of each module its parameters, then its persistent buffers."""
        for path, module in self._named_modules(""):
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield path + name, value
            for name, persistent in module._buffers.items():
                if persistent and getattr(module, name) is not None:
                    yield path + name, getattr(module, name)

    # Saving and loading.

    def state_dict(self) -> dict[str, Array]:
        """The array of every parameter and buffer by its name. The arrays are their own memory, not copies."""
        return {name: tensor.data for name, tensor in self._state()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters and buffers of the same names.

        ValueError for a wrong shape and, if `strict`, for names that are missing or too many; nothing is copied then.
        """
        tensors = dict(self._state())
        missing, unexpected = sorted(tensors.keys() - state.keys()), sorted(state.keys() - tensors.keys())
        if strict and (missing or unexpected):
            raise ValueError(f"load_state_dict: missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}")
        arrays = {name: np.asarray(state[name]) for name in tensors if name in state}
        for name, array in arrays.items():
            if array.shape != tensors[name].shape:
                raise ValueError(f"load_state_dict: {name} has shape {array.shape}, expected {tensors[name].shape}")
        for name, array in arrays.items():
            tensors[name].data[...] = array

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
