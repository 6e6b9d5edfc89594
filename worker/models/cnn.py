"""Cnn: a residual network for images, after He et al., 2016 ("Identity Mappings in Deep Residual Networks")."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import call

import numpy as np

from worker.autodiff import Tensor, checkpoint
from worker.autodiff import functional as F
from worker.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, Module, Sequential, init

Norm = Callable[[int], Module]  # channels -> what normalises them


class Cnn(Module):
    """x (B, channels, H, W) -> (B, classes).

    A convolution of 3x3, then for each width in `stages` so many residual `blocks`; between stages the image is halved
    by max pooling. The mean over the image goes to a linear layer. `norm` makes a normalisation of so many channels,
    which then stands before every activation; it must not look beyond its own sample, or shards would differ. Without
    one, weights start after Fixup (Zhang et al., 2019): each block as the identity, and in it the first convolution
    smaller the more blocks there are, so that neither signal nor gradient grows with depth. With gradient_checkpointing
    a block keeps its input alone and is computed again in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        stages: Sequence[int] = (32, 64),
        blocks: int = 1,
        norm: Norm | None = None,
        gradient_checkpointing: bool = False,
        generator: np.random.Generator,
    ) -> None:
        super().__init__()
        if not stages or blocks < 1:
            raise ValueError(f"Cnn: got {len(stages)} stages of {blocks} blocks, expected at least one of each")
        self.gradient_checkpointing = gradient_checkpointing
        gain = 1 / math.sqrt(len(stages) * blocks)
        self.stem = _convolution(channels, stages[0], 3, gain=1.0, generator=generator)
        layers: list[Module] = []
        width_in = stages[0]
        for number, width in enumerate(stages):
            if number:
                layers.append(MaxPool2d(2))
            for _ in range(blocks):
                layers.append(Residual(width_in, width, norm=norm, gain=gain, generator=generator))
                width_in = width
        self.stages = Sequential(*layers)
        self.norm = norm(width_in) if norm else None
        self.pool = Sequential(AdaptiveAvgPool2d(1), Flatten())
        self.head = Linear(width_in, classes, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        run, x = checkpoint if self.gradient_checkpointing else call, self.stem(x)
        for layer in self.stages:
            x = run(layer, x) if isinstance(layer, Residual) else layer(x)
        return self.head(self.pool(_activation(x, self.norm)))  # type: ignore[no-any-return]  # as any module


class Residual(Module):
    """x (B, I, H, W) -> (B, O, H, W): two convolutions of 3x3, each after an activation, added to x.

    Where O differs from I, x takes a convolution of 1x1 on its way.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, norm: Norm | None, gain: float, generator: np.random.Generator
    ) -> None:
        super().__init__()
        self.norm1 = norm(channels_in) if norm else None
        self.conv1 = _convolution(channels_in, channels_out, 3, gain=gain, generator=generator)
        self.norm2 = norm(channels_out) if norm else None
        self.conv2 = _convolution(channels_out, channels_out, 3, gain=0.0, generator=generator)
        self.shortcut = None
        if channels_in != channels_out:
            self.shortcut = _convolution(channels_in, channels_out, 1, gain=math.sqrt(0.5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_activation(x, self.norm1))
        h = self.conv2(_activation(h, self.norm2))
        x = x if self.shortcut is None else self.shortcut(x)
        return x + h  # type: ignore[no-any-return]  # as any module


def _activation(x: Tensor, norm: Module | None) -> Tensor:
    return F.relu(x if norm is None else norm(x))


def _convolution(
    channels_in: int, channels_out: int, kernel_size: int, *, gain: float, generator: np.random.Generator
) -> Conv2d:
    """A convolution that keeps the image's size, its weight Kaiming's for ReLU times `gain`, its bias zero.

    A gain of sqrt(1/2) is that of a convolution with no activation before it.
    """
    layer = Conv2d(channels_in, channels_out, kernel_size, padding="same", generator=generator)
    std = gain * math.sqrt(2 / (channels_in * kernel_size**2))
    init.normal_(layer.weight, 0, std, generator=generator)
    assert layer.bias is not None, "it is on by default"
    init.zeros_(layer.bias)
    return layer
