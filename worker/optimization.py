"""Optimizers and schedules of the learning rate, as a job asks for them. Their formulas are in worker.optim."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from worker.parts import MAX_STEPS, Choice, Decay, NonNegative, Part, Positive, Ratio


class SgdOptimizer(Part):
    """g = g + weight_decay*w; b = momentum*b + (1 - dampening)*g; w = w - learning_rate*b, as PyTorch's."""

    learning_rate: Positive = 0.01
    momentum: Decay = 0.0
    dampening: Ratio = 0.0
    weight_decay: NonNegative = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: got true, expected false without momentum")
        if self.nesterov and self.dampening:
            raise ValueError(f"dampening: got {self.dampening}, expected 0 with nesterov")
        return self


class MomentumOptimizer(Part):
    """v = momentum*v - learning_rate*g; w = w + v"""

    learning_rate: Positive = 0.01
    momentum: Decay = 0.9
    weight_decay: NonNegative = 0.0


class AdamOptimizer(Part):
    """Adam (Kingma & Ba, 2015)."""

    learning_rate: Positive = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0


class AdamwOptimizer(AdamOptimizer):
    """AdamW (Loshchilov & Hutter, 2019)."""

    weight_decay: NonNegative = 0.01


class RmspropOptimizer(Part):
    """RMSprop (Hinton, 2012), as PyTorch's."""

    learning_rate: Positive = 0.01
    alpha: Decay = 0.99
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    momentum: Decay = 0.0
    centered: bool = False


class AdagradOptimizer(Part):
    """Adagrad (Duchi et al., 2011), as PyTorch's."""

    learning_rate: Positive = 0.01
    lr_decay: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    epsilon: Positive = 1e-10


class LionOptimizer(Part):
    """Lion (Chen et al., 2023)."""

    learning_rate: Positive = 0.0001
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    weight_decay: NonNegative = 0.0


class Ema(Part):
    """Keep an exponential moving average of the weights: e = decay*e + (1 - decay)*w."""

    decay: Decay = 0.999


class OptimizerSpec(Choice):
    """Exactly one optimizer; beside it, whether an average of the weights is kept."""

    beside = ("ema",)

    sgd: SgdOptimizer | None = None
    momentum: MomentumOptimizer | None = None
    adam: AdamOptimizer | None = None
    adamw: AdamwOptimizer | None = None
    rmsprop: RmspropOptimizer | None = None
    adagrad: AdagradOptimizer | None = None
    lion: LionOptimizer | None = None
    ema: Ema | None = None


class ConstantSchedule(Part):
    """The learning rate stays as it is."""


class LinearSchedule(Part):
    """Linear warm-up, then a straight line to min_ratio at the last step."""

    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    min_ratio: Ratio = 1.0


class CosineSchedule(Part):
    """Linear warm-up, then half a cosine to min_ratio at the last step."""

    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    min_ratio: Ratio = 0.0


class StepSchedule(Part):
    """Linear warm-up, then gamma times less every step_size steps."""

    step_size: int = Field(ge=1, le=MAX_STEPS)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)


class WsdSchedule(Part):
    """Linear warm-up, a stable rate, and in the last decay_steps steps a straight line to min_ratio."""

    decay_steps: int = Field(ge=1, le=MAX_STEPS)
    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    min_ratio: Ratio = 0.0


class OneCycleSchedule(Part):
    """From learning_rate / div_factor up to learning_rate, and down to a share of 1 / final_div_factor of the first."""

    pct_start: Ratio = 0.3
    div_factor: Annotated[float, Field(ge=1)] = 25.0
    final_div_factor: Annotated[float, Field(ge=1)] = 1e4


class ScheduleSpec(Choice):
    """Exactly one schedule."""

    constant: ConstantSchedule | None = None
    linear: LinearSchedule | None = None
    cosine: CosineSchedule | None = None
    step: StepSchedule | None = None
    wsd: WsdSchedule | None = None
    one_cycle: OneCycleSchedule | None = None
