"""What the comparisons train: models, their sizes, their batches, and the speed that is aimed at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIP_NORM, LEARNING_RATE = 1.0, 1e-3
BATCHES = 50  # of every worker, in the samples that several workers train on
MASKED = 0.15  # share of the positions whose tokens BERT predicts
MLP_WIDTHS = (784, 512, 256, 10)
CNN_CHANNELS, CNN_SIZE, CNN_CLASSES = (1, 32, 64), 28, 10
CNN_FEATURES = CNN_CHANNELS[-1] * (CNN_SIZE // 2) ** 2  # after a pool of 2


@dataclass(frozen=True)
class Workload:
    """A model's size; `targets` has, by precision, the speed against PyTorch that is aimed at.

    `batch` is a worker's. `ddp_targets` are those of two workers against DistributedDataParallel.
    """

    kind: str
    targets: Mapping[str, float] = field(default_factory=dict)
    ddp_targets: Mapping[str, float] = field(default_factory=dict)
    batch: int = 1
    layers: int = 0
    width: int = 0
    heads: int = 0
    time: int = 0
    vocabulary: int = 0
    only_masked: bool = False  # ours computes logits where they are needed

    @property
    def text(self) -> str:
        match self.kind:
            case "mlp":
                size = "-".join(map(str, MLP_WIDTHS))
            case "cnn":
                size = f"{'-'.join(map(str, CNN_CHANNELS))} of 3x3, pool, linear, {CNN_SIZE}x{CNN_SIZE}"
            case _:
                size = f"{self.layers} layers, width {self.width}, {self.heads} heads, T {self.time}"
                size += f", V {self.vocabulary}"
        head = ", our logits at the masked positions only" if self.only_masked else ""
        return f"{self.kind.upper()} {size}, batch {self.batch}{head}"


SMALL: Mapping[str, Any] = {"batch": 8, "layers": 4, "width": 256, "heads": 4, "time": 128, "vocabulary": 256}
LARGE: Mapping[str, Any] = {"batch": 4, "layers": 6, "width": 384, "heads": 6, "time": 256, "vocabulary": 8192}

WORKLOADS = {
    "mlp": Workload("mlp", {"fp32": 1.25, "bf16": 1.25}, {"fp32": 2.0}, batch=128),
    "cnn": Workload("cnn", {"fp32": 1.4, "bf16": 1.0}, {"fp32": 1.4}, batch=64),
    "gpt-small": Workload("gpt", {"fp32": 1.2, "bf16": 1.3}, {"fp32": 1.3}, **SMALL),
    "gpt-large": Workload("gpt", {"fp32": 1.25, "bf16": 1.3}, {"fp32": 1.2}, **LARGE),
    "bert-small": Workload("bert", {"fp32": 1.15, "bf16": 1.2}, **SMALL),
    "bert-large": Workload("bert", {"fp32": 1.15, "bf16": 1.2}, **LARGE),
    "bert-large-masked": Workload("bert", {"fp32": 1.4, "bf16": 1.5}, **LARGE, only_masked=True),
}


def batch_of(workload: Workload) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Inputs and targets, the same on every side."""
    rng = np.random.default_rng(1)
    match workload.kind:
        case "mlp":
            inputs = rng.standard_normal((workload.batch, MLP_WIDTHS[0]), np.float32)
            return inputs, rng.integers(0, MLP_WIDTHS[-1], workload.batch)
        case "cnn":
            inputs = rng.standard_normal((workload.batch, CNN_CHANNELS[0], CNN_SIZE, CNN_SIZE), np.float32)
            return inputs, rng.integers(0, CNN_CLASSES, workload.batch)
    shape = (workload.batch, workload.time)
    tokens, targets = rng.integers(0, workload.vocabulary, shape), rng.integers(0, workload.vocabulary, shape)
    if workload.kind == "bert":
        targets[rng.random(shape) >= MASKED] = -100
    return tokens, targets
