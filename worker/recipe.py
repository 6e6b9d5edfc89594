"""From a job spec to the things that train: model, loss, update rule, schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.data.dataset import Dataset
from worker.models import build
from worker.nn import Module, init
from worker.optim import rules, schedules
from worker.spec import (
    AdamOptimizer,
    JobSpec,
    MomentumOptimizer,
    NonFinitePolicy,
    OptimizerSpec,
    ScheduleSpec,
    SgdOptimizer,
    Task,
)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What a job trains and how; the same on every worker.

    `loss` takes predictions and targets and gives the *sum* of the losses; `losses_per_sample` is how many it sums
    for one sample. `learning_rate` takes the step, counting from 0.
    """

    model: Module
    loss: Loss
    losses_per_sample: int
    rule: rules.Rule
    learning_rate: Callable[[int], float]
    clip_norm: float | None
    on_non_finite: NonFinitePolicy


def recipe_of(spec: JobSpec, dataset: Dataset) -> Recipe:
    """The recipe of a job over its data; the model's weights are the job's first, drawn from its seed."""
    is_classification = dataset.task is Task.CLASSIFICATION
    factor = schedule_of(spec.schedule, total_steps=spec.training.max_steps)
    base_rate: float = spec.optimizer.chosen.learning_rate
    return Recipe(
        model=build(spec.model, dataset, generator=init.generator(spec.training.seed)),
        loss=partial(F.cross_entropy if is_classification else F.mse_loss, reduction="sum"),
        losses_per_sample=1 if is_classification else dataset.num_outputs,
        rule=rule_of(spec.optimizer),
        learning_rate=lambda step: base_rate * factor(step),
        clip_norm=spec.training.clip_norm,
        on_non_finite=spec.training.on_non_finite,
    )


def rule_of(spec: OptimizerSpec) -> rules.Rule:
    """The update rule of an optimizer."""
    match spec.chosen:
        case SgdOptimizer() as sgd:
            return rules.SGD(weight_decay=sgd.weight_decay)
        case MomentumOptimizer() as momentum:
            return rules.Momentum(momentum=momentum.momentum, weight_decay=momentum.weight_decay)
        case AdamOptimizer() as adam:
            rule = rules.AdamW if spec.kind == "adamw" else rules.Adam
            return rule(adam.beta1, adam.beta2, adam.epsilon, adam.weight_decay)
    raise AssertionError(spec.kind)


_SCHEDULES: Mapping[str, Callable[..., Callable[[int], float]]] = {
    "constant": lambda total_steps: schedules.Constant(),
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
}


def schedule_of(spec: ScheduleSpec, *, total_steps: int) -> Callable[[int], float]:
    """The schedule's factor on the learning rate, as a function of the step."""
    arguments: dict[str, Any] = spec.chosen.model_dump()
    return _SCHEDULES[spec.kind](total_steps=total_steps, **arguments)
