"""Convolutions and resampling as modules. Names, arguments, first weights and state dict keys are PyTorch's.

Shapes: N samples, I and O channels in and out, G groups, * spatial dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.autodiff.convolution import Ints, Padding
from worker.autodiff.resampling import Mode
from worker.autodiff.windows import Sizes, sizes
from worker.nn import init
from worker.nn.module import Module, Parameter

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "PixelShuffle", "Upsample"]


class _Convolution(Module):
    """What convolutions have in common: a weight and a bias, both uniform in +-1/sqrt(its fan_in) at first."""

    rank: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        generator: np.random.Generator,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if groups < 1 or min(in_channels, out_channels) < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: got {in_channels} channels in and {out_channels} out, which {groups=} must divide"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = sizes(name, "kernel_size", kernel_size, self.rank, least=1)
        self.stride = sizes(name, "stride", stride, self.rank, least=1)
        self.dilation = sizes(name, "dilation", dilation, self.rank, least=1)
        self.padding: Sizes | Literal["valid", "same"] = (
            padding if isinstance(padding, str) else sizes(name, "padding", padding, self.rank, least=0)
        )
        self.weight = Parameter(np.empty(self._weight_shape(), np.float32))
        self.bias = Parameter(np.empty(out_channels, np.float32)) if bias else None
        init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            init.uniform_(self.bias, -bound, bound, generator=generator)

    def _weight_shape(self) -> Sizes:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, default in (("padding", 0), ("dilation", 1), ("output_padding", 0), ("groups", 1)):
            value = getattr(self, name, default)
            if value not in (default, (default,) * self.rank):
                text += f", {name}={value}"
        return text if self.bias is not None else f"{text}, bias=False"


class Conv1d(_Convolution):
    """x (N, I, L) -> (N, O, ...): functional.conv1d with weight (O, I/G, K) and bias (O,)."""

    rank = 1

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2d(_Convolution):
    """x (N, I, H, W) -> (N, O, ...): functional.conv2d with weight (O, I/G, KH, KW) and bias (O,)."""

    rank = 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv3d(_Convolution):
    """x (N, I, D, H, W) -> (N, O, ...): functional.conv3d with weight (O, I/G, KD, KH, KW) and bias (O,)."""

    rank = 3

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvTranspose2d(_Convolution):
    """x (N, I, H, W) -> (N, O, ...): functional.conv_transpose2d with weight (I, O/G, KH, KW) and bias (O,)."""

    rank = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        *,
        generator: np.random.Generator,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, generator=generator
        )
        self.output_padding = sizes("ConvTranspose2d", "output_padding", output_padding, self.rank, least=0)

    def _weight_shape(self) -> Sizes:
        return self.in_channels, self.out_channels // self.groups, *self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str), "the constructor takes numbers only"
        return F.conv_transpose2d(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class Upsample(Module):
    """x (N, C, *) -> (N, C, *size), or *scale_factor: functional.interpolate."""

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: Mode = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        super().__init__()
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)

    def extra_repr(self) -> str:
        target = f"size={self.size}" if self.size is not None else f"scale_factor={self.scale_factor}"
        return f"{target}, mode={self.mode!r}"


class PixelShuffle(Module):
    """x (N, C * r * r, H, W) -> (N, C, H * r, W * r), r being upscale_factor."""

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, self.upscale_factor)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"
