"""Who wants to see a tensor's gradient when it is complete: hooks, which may replace it, and retain_grad."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Optional

import worker.autodiff.tensor as tensors

if TYPE_CHECKING:
    from worker.autodiff.tensor import Array, Tensor

Hook = Callable[["Tensor"], Optional["Tensor"]]


class Handle:
    """What register_hook returns; `remove` takes the hook away again, and does nothing the second time."""

    def __init__(self, hooks: dict[int, Hook], key: int) -> None:
        self._hooks, self._key = hooks, key

    def remove(self) -> None:
        self._hooks.pop(self._key, None)


class Watch:
    """The hooks of one tensor, in the order in which they came, and who keeps the gradient after them."""

    __slots__ = ("_hooks", "_keeper", "_next_key")

    def __init__(self) -> None:
        self._hooks: dict[int, Hook] = {}
        self._keeper: weakref.ref[Tensor] | None = None
        self._next_key = 0

    def add(self, hook: Hook) -> Handle:
        self._next_key += 1
        self._hooks[self._next_key] = hook
        return Handle(self._hooks, self._next_key)

    def keep(self, tensor: Tensor) -> None:
        self._keeper = weakref.ref(tensor)

    def see(self, gradient: Array) -> Array:
        """The gradient after all hooks; ValueError for one of another shape."""
        for hook in list(self._hooks.values()):
            gradient = _replaced(hook, gradient)
        keeper = None if self._keeper is None else self._keeper()
        if keeper is not None:
            keeper.accumulate_grad(gradient)
        return gradient


def _replaced(hook: Hook, gradient: Array) -> Array:
    shown = gradient.view()
    shown.flags.writeable = False  # the array may be the gradient of another tensor, too
    replacement = hook(tensors.Tensor(shown))
    if replacement is None:
        return gradient
    if not isinstance(replacement, tensors.Tensor):
        raise TypeError(f"register_hook: the hook returned {type(replacement).__name__}, expected a Tensor or None")
    if replacement.shape != gradient.shape:
        raise ValueError(
            f"register_hook: the hook returned shape {replacement.shape} but the gradient has {gradient.shape}"
        )
    return replacement.data.astype(gradient.dtype, copy=False)
