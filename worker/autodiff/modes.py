"""Whether operations are recorded, and by what. Each thread, and each asyncio task, has its own mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, ParamSpec, TypeVar, overload

from worker.autodiff.node import Node

P = ParamSpec("P")
R = TypeVar("R")

# Called as Node is: (name, shape, dtype, edges) -> Node.
Recorder = Callable[[str, tuple[int, ...], Any, tuple[Any, ...]], Node]

# What makes the node of an operation, as long as gradients are enabled: Node itself, or a checkpointed segment.
recorder: ContextVar[Recorder] = ContextVar("recorder", default=Node)
# The same; None where gradients are disabled.
active: ContextVar[Recorder | None] = ContextVar("active_recorder", default=Node)


class GradMode:
    """Gradients enabled or disabled, in a `with` block or in a function that this decorates."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._tokens: list[Token[Recorder | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(active.set(recorder.get() if self._enabled else None))

    def __exit__(self, *_: object) -> None:
        active.reset(self._tokens.pop())

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            with GradMode(self._enabled):
                return function(*arguments, **keywords)

        return call


@overload
def no_grad() -> GradMode: ...
@overload
def no_grad(function: Callable[P, R]) -> Callable[P, R]: ...
def no_grad(function: Callable[P, R] | None = None) -> GradMode | Callable[P, R]:
    """No graph is built: for evaluation, and for changing weights by hand. `with no_grad():`, or a decorator."""
    return GradMode(False) if function is None else GradMode(False)(function)


@overload
def enable_grad() -> GradMode: ...
@overload
def enable_grad(function: Callable[P, R]) -> Callable[P, R]: ...
def enable_grad(function: Callable[P, R] | None = None) -> GradMode | Callable[P, R]:
    """A graph is built, within no_grad, too. `with enable_grad():`, or a decorator."""
    return GradMode(True) if function is None else GradMode(True)(function)


class set_grad_enabled(GradMode):  # noqa: N801  # PyTorch's name
    """Enable or disable gradients from here on; in a `with` statement, until its end; as a decorator, within."""

    def __init__(self, mode: bool) -> None:
        super().__init__(mode)
        super().__enter__()

    def __enter__(self) -> None:
        """It was done already."""

    def __exit__(self, *_: object) -> None:
        if self._tokens:
            super().__exit__()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        self.__exit__()
        return super().__call__(function)


def is_grad_enabled() -> bool:
    return active.get() is not None
