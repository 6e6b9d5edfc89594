"""Operations that float16 is too coarse for: under autocast("fp16") they take float16 tensors as float32.

These are PyTorch's: softmax, losses, sums, powers, logarithms
(https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from worker.autodiff.graph import record
from worker.autodiff.kernels.float16 import single
from worker.autodiff.precision import current
from worker.autodiff.tensor import Tensor

P = ParamSpec("P")


def in_float32(operation: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """The operation, whose float16 tensors become float32 under autocast("fp16"), and so its result."""

    @functools.wraps(operation)
    def call(*arguments: P.args, **keywords: P.kwargs) -> Tensor:
        if current.get() != "fp16":
            return operation(*arguments, **keywords)
        wide: Any = operation
        result: Tensor = wide(*map(widened, arguments), **{name: widened(x) for name, x in keywords.items()})
        return result

    return call


def widened(x: Any) -> Any:
    """A float16 tensor as float32; anything else as it is."""
    if isinstance(x, Tensor) and x.dtype == np.float16:
        return record("float32", single(x.data), (x, lambda g: g))
    return x
