"""Batch, group, instance and local response norm as modules. Names, arguments and state dict keys are PyTorch's.

Shapes: N samples, C channels, L, D, H, W positions.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.nn.module import Module, Parameter


class ChannelNorm(Module):
    """What batch and instance norm have in common: a weight and a bias, and running statistics, of each channel.

    weight and bias (C,) are there if `affine`. running_mean and running_var (C,) and num_batches_tracked () are
    buffers, there if `track_running_stats`. A subclass says how many dimensions its inputs have.
    """

    RANKS: ClassVar[tuple[int, ...]]

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = Parameter(np.ones(num_features, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32)) if affine and bias else None
        tracked = track_running_stats
        self.register_buffer("running_mean", Tensor(np.zeros(num_features, np.float32)) if tracked else None)
        self.register_buffer("running_var", Tensor(np.ones(num_features, np.float32)) if tracked else None)
        self.register_buffer("num_batches_tracked", Tensor(np.array(0, np.int64)) if tracked else None)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )

    def check_input(self, x: Tensor) -> None:
        if x.ndim not in self.RANKS:
            expected = " or ".join(map(str, self.RANKS))
            raise ValueError(f"{type(self).__name__}: x has {x.ndim} dimensions, expected {expected}")


class BatchNorm(ChannelNorm):
    """functional.batch_norm, by the batch while training and by running statistics in evaluation.

    With `momentum` None the running statistics are the plain mean over all batches so far. Without
    `track_running_stats` it is always the batch.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.data += 1
            if self.momentum is None:
                momentum = 1 / self.num_batches_tracked.item()
        by_batch = self.training or self.running_mean is None
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, by_batch, momentum, self.eps
        )


class BatchNorm1d(BatchNorm):
    """x (N, C) or (N, C, L)."""

    RANKS = (2, 3)


class BatchNorm2d(BatchNorm):
    """x (N, C, H, W)."""

    RANKS = (4,)


class BatchNorm3d(BatchNorm):
    """x (N, C, D, H, W)."""

    RANKS = (5,)


class InstanceNorm(ChannelNorm):
    """functional.instance_norm; without running statistics, by the input also in evaluation.

    x may lack its first dimension, N.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        batch = x if x.ndim == self.RANKS[1] else F.reshape(x, (1, *x.shape))
        if batch.shape[1] != self.num_features:
            raise ValueError(f"{type(self).__name__}: x has {batch.shape[1]} channels, expected {self.num_features}")
        y = F.instance_norm(
            batch,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            self.momentum or 0.0,
            self.eps,
        )
        return y if batch is x else F.reshape(y, x.shape)


class InstanceNorm1d(InstanceNorm):
    """x (N, C, L) or (C, L)."""

    RANKS = (2, 3)


class InstanceNorm2d(InstanceNorm):
    """x (N, C, H, W) or (C, H, W)."""

    RANKS = (3, 4)


class InstanceNorm3d(InstanceNorm):
    """x (N, C, D, H, W) or (C, D, H, W)."""

    RANKS = (4, 5)


class GroupNorm(Module):
    """functional.group_norm of x (N, C, ...); weight and bias (C,)."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *, bias: bool = True
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"GroupNorm: {num_groups} groups do not divide {num_channels} channels")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self.weight = Parameter(np.ones(num_channels, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, np.float32)) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class LocalResponseNorm(Module):
    """functional.local_response_norm of x (N, C, ...)."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
