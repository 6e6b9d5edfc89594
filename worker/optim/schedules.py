"""Schedules: the factor on the learning rate as a pure function of the step, which counts from 0.

W warmup_steps, T total_steps. In the warm-up the factor is (step + 1) / (W + 1): no step is wasted at zero, and step W
is the first at full rate. The last step, T - 1, and all after it have min_ratio.
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
