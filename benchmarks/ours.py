"""This project's side of `benchmarks.models`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.products import Products, measured_peak
from benchmarks.teams import Run
from benchmarks.timing import timed
from benchmarks.workloads import (
    CLIP_NORM,
    CNN_CHANNELS,
    CNN_CLASSES,
    CNN_FEATURES,
    LEARNING_RATE,
    MLP_WIDTHS,
    WORKLOADS,
    Workload,
    batch_of,
)
from worker import nn
from worker.autodiff import Tensor, kernels
from worker.autodiff import functional as F
from worker.autodiff.precision import Precision, autocast
from worker.models.bert import Bert, MaskedLanguageModel
from worker.models.gpt import Gpt
from worker.models.mlp import Mlp
from worker.nn import FlatParameters, Module, init
from worker.optim import clip_scale, rules
from worker.process import settle_memory

REPORTED_STEPS = 3


def side(rank: int, world: int, name: str, precision: Precision) -> Run:
    """Steps of a workload; reports the share in products, their GFLOP/s and those of a large product."""
    settle_memory()
    workload = WORKLOADS[name]
    (model, loss), (inputs, targets) = model_of(workload), map(Tensor, batch_of(workload))
    flat, rule = FlatParameters(model.parameters()), rules.Adam()
    state = tuple(np.zeros(flat.size, np.float32) for _ in rule.state_names)
    gradient, num_steps = flat.views_of(flat.gradient), 0

    def step() -> float:
        nonlocal num_steps
        num_steps += 1
        flat.bind_gradient(gradient)
        with autocast(precision):
            value = loss(inputs, targets)
        value.backward()
        flat.fill_unused()
        scale = clip_scale(float(kernels.block_square_sums(flat.gradient).sum()), CLIP_NORM)
        rule.update(
            flat.weights,
            flat.gradient,
            state,
            flat.weights,
            state,
            step=num_steps,
            learning_rate=LEARNING_RATE,
            scale=scale,
        )
        return float(value.item())

    def report() -> list[float]:
        products = Products()
        with products.counted():
            started = time.perf_counter()
            for _ in range(REPORTED_STEPS):
                step()
            seconds = time.perf_counter() - started
        with autocast(precision):
            peak = measured_peak()
        return [products.seconds / seconds, products.operations / products.seconds / 1e9, peak]

    return timed(step, report)


def model_of(workload: Workload, **options: Any) -> tuple[Module, Callable[[Tensor, Tensor], Tensor]]:
    """The model, and its loss over inputs and targets; `options` are the model's own."""
    generator = init.generator(1)
    options |= {"generator": generator}
    sizes = options | {"layers": workload.layers, "heads": workload.heads}
    sizes |= {"width": workload.width, "context": workload.time}
    match workload.kind:
        case "mlp":
            first, *hidden, last = MLP_WIDTHS
            return _judged(Mlp(first, hidden, last, **options))
        case "cnn":
            return _judged(_cnn(generator))
        case "gpt":
            gpt = Gpt(workload.vocabulary, **sizes)
            return gpt, gpt.loss
    bert = MaskedLanguageModel(Bert(workload.vocabulary, **sizes), generator=generator)
    return (bert, bert.loss) if workload.only_masked else _judged(bert)


def _judged(model: Module) -> tuple[Module, Callable[[Tensor, Tensor], Tensor]]:
    """A model of classes with its loss; targets of -100 do not count."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))

    return model, loss


def _cnn(generator: np.random.Generator) -> Module:
    layers: list[Module] = []
    for channels_in, channels_out in itertools.pairwise(CNN_CHANNELS):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1, generator=generator), nn.ReLU()]
    head = nn.Linear(CNN_FEATURES, CNN_CLASSES, generator=generator)
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), head)
