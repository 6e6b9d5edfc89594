"""In which number formats operations compute and keep their results; `autocast` sets it.

Each thread, and each asyncio task, has its own. The backward pass of an operation computes as its forward pass did,
whatever is set when it runs: nodes know (see graph.walk), and a checkpointed part runs again in the context of its
first run. float64 is never rounded: it is for gradient checks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Literal, ParamSpec, TypeVar, get_args

P = ParamSpec("P")
R = TypeVar("R")

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

current: ContextVar[Precision] = ContextVar("precision", default="fp32")


class autocast:  # noqa: N801  # PyTorch's name
    """Operations in this precision, in a `with` block or in a function that this decorates.

    fp32: float32 throughout. bf16: float32 operands of matrix products and convolutions are rounded to bfloat16 (to
    the nearest, ties to even; denormals to zero), their products summed in float32; everything else is float32. fp16:
    what products, convolutions, embeddings and norms give is kept as float16, and so what is computed from it, but for
    losses, softmax, sums and the like, which are float32 (see casting). Weights and their gradients stay float32.
    """

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"autocast: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
        self._precision: Precision = precision
        self._tokens: list[Token[Precision]] = []

    def __enter__(self) -> None:
        self._tokens.append(current.set(self._precision))

    def __exit__(self, *_: object) -> None:
        current.reset(self._tokens.pop())

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            with autocast(self._precision):
                return function(*arguments, **keywords)

        return call
