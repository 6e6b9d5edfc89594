"""From a job spec to the things that train: model, loss, update rule, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.data.dataset import Dataset
from worker.models import KNOW_PARTS, build
from worker.nn import Module, init
from worker.objective import Objective, objective_of
from worker.optim import rules, schedules
from worker.spec import (
    AdagradOptimizer,
    AdamOptimizer,
    JobSpec,
    LionOptimizer,
    MomentumOptimizer,
    NonFinitePolicy,
    OptimizerSpec,
    Precision,
    RmspropOptimizer,
    ScheduleSpec,
    SgdOptimizer,
)


@dataclass(frozen=True)
class Recipe:
    """What a job trains and how; the same on every worker.

    `learning_rate` takes the step, counting from 0. The mean gradient is clipped by clip_norm, then each element by
    clip_value, which may be infinite. `scales_loss` asks for dynamic loss scaling.
    """

    model: Module
    objective: Objective
    rule: rules.Rule
    learning_rate: Callable[[int], float]
    clip_norm: float | None
    on_non_finite: NonFinitePolicy
    clip_value: float = math.inf
    scales_loss: bool = False

    @property
    def knows_parts(self) -> bool:
        """Whether the model is made of what knows parts, see autodiff.parts: then several shards can have one pass."""
        return isinstance(self.model, KNOW_PARTS)


def recipe_of(spec: JobSpec, dataset: Dataset) -> Recipe:
    """The recipe of a job over its data; the model's weights are the job's first, drawn from its seed."""
    factor = schedule_of(spec.schedule, total_steps=spec.training.max_steps)
    base_rate: float = spec.optimizer.chosen.learning_rate
    return Recipe(
        model=build(
            spec.model,
            input_shape=dataset.input_shape,
            num_outputs=dataset.num_outputs,
            gradient_checkpointing=spec.training.gradient_checkpointing,
            generator=init.generator(spec.training.seed),
        ),
        objective=objective_of(spec.model, dataset),
        rule=rule_of(spec.optimizer),
        learning_rate=lambda step: base_rate * factor(step),
        clip_norm=spec.training.clip_norm,
        clip_value=math.inf if spec.training.clip_value is None else spec.training.clip_value,
        on_non_finite=spec.training.on_non_finite,
        scales_loss=spec.training.precision is Precision.FP16,
    )


Span = tuple[int, int, rules.Rule]


def spans_of(rule: rules.Rule, shapes: Sequence[tuple[int, ...]]) -> list[Span]:
    """Which rule updates which part [first, last) of the flat vector: matrices are decayed, biases and norms are not.

    A vector of gains or biases has nothing that decay would regularise; it would only be pulled from where it works.
    """
    undecayed, spans, first = rules.without_decay(rule), list[Span](), 0
    for shape in shapes:
        chosen, last = rule if len(shape) > 1 else undecayed, first + math.prod(shape)
        if spans and spans[-1][2] == chosen:
            first, _, _ = spans.pop()
        spans.append((first, last, chosen))
        first = last
    return spans


def rule_of(spec: OptimizerSpec) -> rules.Rule:
    """The update rule of an optimizer, with the average of the weights where one is asked for."""
    rule = _plain_rule_of(spec)
    return rule if spec.ema is None else rules.Averaged(rule, spec.ema.decay)


def _plain_rule_of(spec: OptimizerSpec) -> rules.Rule:
    match spec.chosen:
        case SgdOptimizer() as sgd:
            return rules.SGD(sgd.momentum, sgd.dampening, sgd.weight_decay, sgd.nesterov)
        case MomentumOptimizer() as momentum:
            return rules.Momentum(momentum=momentum.momentum, weight_decay=momentum.weight_decay)
        case AdamOptimizer() as adam:
            rule = rules.AdamW if spec.kind == "adamw" else rules.Adam
            return rule(adam.beta1, adam.beta2, adam.epsilon, adam.weight_decay)
        case RmspropOptimizer() as rmsprop:
            return rules.RMSprop(
                rmsprop.alpha, rmsprop.epsilon, rmsprop.weight_decay, rmsprop.momentum, rmsprop.centered
            )
        case AdagradOptimizer() as adagrad:
            return rules.Adagrad(
                adagrad.lr_decay, adagrad.weight_decay, adagrad.initial_accumulator_value, adagrad.epsilon
            )
        case LionOptimizer() as lion:
            return rules.Lion(lion.beta1, lion.beta2, lion.weight_decay)
    raise AssertionError(spec.kind)


_SCHEDULES: Mapping[str, Callable[..., Callable[[int], float]]] = {
    "constant": lambda total_steps: schedules.Constant(),
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
    "step": lambda total_steps, **arguments: schedules.Step(**arguments),
    "wsd": schedules.WarmupStableDecay,
    "one_cycle": schedules.OneCycle,
}


def schedule_of(spec: ScheduleSpec, *, total_steps: int) -> Callable[[int], float]:
    """The schedule's factor on the learning rate, as a function of the step."""
    arguments: dict[str, Any] = spec.chosen.model_dump()
    return _SCHEDULES[spec.kind](total_steps=total_steps, **arguments)
