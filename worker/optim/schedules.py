"""Schedules: the factor on the learning rate as a pure function of the step, which counts from 0.

W warmup_steps, T total_steps. In the warm-up the factor is (step + 1) / (W + 1): no step is wasted at zero, and step W
is the first at full rate. Where there is a min_ratio, the last step, T - 1, and all after it have that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """1 at every step."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Linear warm-up, then a straight line from 1 to min_ratio; with min_ratio 1, constant."""

    total_steps: int
    warmup_steps: int = 0
    min_ratio: float = 1.0

    def __post_init__(self) -> None:
        _check(self.total_steps, self.warmup_steps, self.min_ratio)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return 1 + (self.min_ratio - 1) * _progress(step, self.warmup_steps, self.total_steps)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Linear warm-up, then half a cosine from 1 to min_ratio (Loshchilov & Hutter, 2017, without restarts)."""

    total_steps: int
    warmup_steps: int = 0
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check(self.total_steps, self.warmup_steps, self.min_ratio)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        wave = (1 + math.cos(math.pi * _progress(step, self.warmup_steps, self.total_steps))) / 2
        return self.min_ratio + (1 - self.min_ratio) * wave


@dataclass(frozen=True, kw_only=True)
class Step:
    """Linear warm-up, then gamma times less every step_size steps, as torch.optim.lr_scheduler.StepLR."""

    step_size: int
    gamma: float = 0.1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.step_size < 1:
            raise ValueError(f"step_size is {self.step_size}, expected at least 1")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}, expected 0 < gamma <= 1")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, expected at least 0")

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return self.gamma ** ((step - self.warmup_steps) // self.step_size)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear warm-up, 1 for most of the time, and in the last decay_steps steps a straight line down to min_ratio.

    After Hu et al. (MiniCPM, 2024): training can go on from before the decay, for any number of steps.
    """

    total_steps: int
    decay_steps: int
    warmup_steps: int = 0
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check(self.total_steps, self.warmup_steps, self.min_ratio)
        if not 1 <= self.decay_steps < self.total_steps - self.warmup_steps:
            raise ValueError(
                f"decay_steps is {self.decay_steps}, expected at least 1 and less than total_steps - warmup_steps, "
                f"{self.total_steps - self.warmup_steps}"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        stable_until = self.total_steps - 1 - self.decay_steps
        if step <= stable_until:
            return 1.0
        return 1 + (self.min_ratio - 1) * min((step - stable_until) / self.decay_steps, 1.0)


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Half a cosine up from 1 / div_factor to 1, then half a cosine down to 1 / (div_factor * final_div_factor).

    As torch.optim.lr_scheduler.OneCycleLR with anneal_strategy="cos" (Smith & Topin, 2019), where 1 is max_lr; the
    momentum stays as it is. The share pct_start of the steps goes up.
    """

    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        _check(self.total_steps, 0, 0.0)
        if not 0 <= self.pct_start <= 1:
            raise ValueError(f"pct_start is {self.pct_start}, expected 0 <= pct_start <= 1")
        for name in ("div_factor", "final_div_factor"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1 and finite")

    def __call__(self, step: int) -> float:
        first, last = 1 / self.div_factor, 1 / (self.div_factor * self.final_div_factor)
        peak, end = self.pct_start * self.total_steps - 1, self.total_steps - 1
        if step <= peak:
            return _half_cosine(first, 1.0, step / peak if peak > 0 else 1.0)
        return _half_cosine(1.0, last, min((step - peak) / (end - peak), 1.0) if end > peak else 1.0)


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def _progress(step: int, warmup_steps: int, total_steps: int) -> float:
    """How far `step` is from the end of the warm-up (0) to the last step (1)."""
    return min((step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1), 1.0)


def _check(total_steps: int, warmup_steps: int, min_ratio: float) -> None:
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps}, expected at least 0 and less than total_steps, {total_steps}"
        )
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio is {min_ratio}, expected 0 <= min_ratio <= 1")
