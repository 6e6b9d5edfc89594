"""Modules that hold modules. Names and behaviour are PyTorch's; the children's names are their places or their keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from worker.autodiff import Tensor
from worker.nn.module import Module


class Sequential(Module):
    """Modules one after the other; their names are 0, 1, 2, ..."""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]


class ModuleList(Module):
    """A list of modules, named 0, 1, 2, ...; what is done with them is its owner's business."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> ModuleList:
        setattr(self, str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        for module in modules:
            self.append(module)
        return self

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, str(range(len(self))[index]), module)


class ModuleDict(Module):
    """Modules by name, in the order in which they were put in."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def update(self, modules: Mapping[str, Module]) -> None:
        for name, module in modules.items():
            self[name] = module

    def keys(self) -> Iterator[str]:
        return (name for name, _ in self.named_children())

    def values(self) -> Iterator[Module]:
        return self.children()

    def items(self) -> Iterator[tuple[str, Module]]:
        return self.named_children()

    def __iter__(self) -> Iterator[str]:
        return self.keys()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: str) -> bool:
        return name in self.keys()  # the keys are an iterator, not a dict's

    def __getitem__(self, name: str) -> Module:
        for key, module in self.items():
            if key == name:
                return module
        raise KeyError(name)

    def __setitem__(self, name: str, module: Module) -> None:
        if name not in self and hasattr(self, name):
            raise ValueError(f"ModuleDict: {name!r} is the name of an attribute; choose another")
        setattr(self, name, module)
