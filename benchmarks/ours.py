"""This project's side of `benchmarks.models`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

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
from worker.process import keep_freed_memory

REPORTED_STEPS = 3


def side(rank: int, world: int, name: str, precision: Precision) -> Run:
    """Steps of a workload; reports the share in products, their GFLOP/s and those of a large product."""
    keep_freed_memory()
    model, loss = model_of(WORKLOADS[name])
    flat, rule = FlatParameters(model.parameters()), rules.Adam()
    state = tuple(np.zeros(flat.size, np.float32) for _ in rule.state_names)
    gradient, num_steps = flat.views_of(flat.gradient), 0

    def step() -> float:
        nonlocal num_steps
        num_steps += 1
        flat.bind_gradient(gradient)
        with autocast(precision):
            value = loss()
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


def model_of(workload: Workload) -> tuple[Module, Callable[[], Tensor]]:
    """The model, and its loss over the workload's batch."""
    generator = init.generator(1)
    inputs, targets = map(Tensor, batch_of(workload))
    sizes = {"layers": workload.layers, "heads": workload.heads, "width": workload.width, "context": workload.time}
    match workload.kind:
        case "mlp":
            first, *hidden, last = MLP_WIDTHS
            mlp = Mlp(first, hidden, last, generator=generator)
            return mlp, lambda: F.cross_entropy(mlp(inputs), targets)
        case "cnn":
            cnn = _cnn(generator)
            return cnn, lambda: F.cross_entropy(cnn(inputs), targets)
        case "gpt":
            gpt = Gpt(workload.vocabulary, **sizes, generator=generator)
            return gpt, lambda: gpt.loss(inputs, targets)
    bert = MaskedLanguageModel(Bert(workload.vocabulary, **sizes, generator=generator), generator=generator)
    if workload.only_masked:
        return bert, lambda: bert.loss(inputs, targets)
    rows = targets.reshape(-1)
    return bert, lambda: F.cross_entropy(bert(inputs).reshape(-1, workload.vocabulary), rows)


def _cnn(generator: np.random.Generator) -> Module:
    layers: list[Module] = []
    for channels_in, channels_out in itertools.pairwise(CNN_CHANNELS):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1, generator=generator), nn.ReLU()]
    head = nn.Linear(CNN_FEATURES, CNN_CLASSES, generator=generator)
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), head)
