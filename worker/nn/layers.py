"""Linear, and layers without parameters. Names, arguments and state dict keys are PyTorch's.

Shapes: I features in, O features out.
"""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.nn import init
from worker.nn.module import Module, Parameter


class Linear(Module):
    """x (..., I) -> x @ weight (O, I).T + bias (O,). Both start uniform in +-1/sqrt(I), as PyTorch's do."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, generator: np.random.Generator
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"Linear: got {in_features} features in and {out_features} out, expected at least 1 each")
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        self.bias = Parameter(np.empty(out_features, np.float32)) if bias else None
        init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            bound = 1 / math.sqrt(in_features)
            init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Flatten(Module):
    """(N, ...) -> (N, the rest)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return F.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Module):
    """x itself; takes any arguments."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Dropout(Module):
    """functional.dropout while training, x itself in evaluation."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p is {p}, expected 0..1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
