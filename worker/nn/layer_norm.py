"""LayerNorm and RMSNorm as modules. Names, arguments and state dict keys are PyTorch's."""

from __future__ import annotations

import numpy as np

from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.nn.module import Module, Parameter


class LayerNorm(Module):
    """Over the last dimensions, which have `normalized_shape`: functional.layer_norm. The weight starts at one."""

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.normalized_shape, self.eps = _shape(normalized_shape), eps
        self.weight = Parameter(np.ones(self.normalized_shape, np.float32)) if elementwise_affine else None
        has_bias = elementwise_affine and bias
        self.bias = Parameter(np.zeros(self.normalized_shape, np.float32)) if has_bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine, bias = self.weight is not None, self.bias is not None
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={affine}, bias={bias}"


class RMSNorm(Module):
    """Over the last dimensions, which have `normalized_shape`: functional.rms_norm. The weight starts at one."""

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float | None = None, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape, self.eps = _shape(normalized_shape), eps
        self.weight = Parameter(np.ones(self.normalized_shape, np.float32)) if elementwise_affine else None

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


def _shape(normalized_shape: int | tuple[int, ...]) -> tuple[int, ...]:
    return normalized_shape if isinstance(normalized_shape, tuple) else (normalized_shape,)
