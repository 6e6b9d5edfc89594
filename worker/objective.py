"""What a model is trained for: its loss over a batch, and how it is judged on held-out samples.

An objective runs the model on a batch and says which predictions stand against which targets; the rest is shared: the
*sum* of the losses and their number, so that masked and ragged batches weigh right when shards are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff import Tensor, no_grad, philox
from worker.autodiff import functional as F
from worker.data.dataset import Batch, Dataset
from worker.nn import Module
from worker.spec import BertModel, ModelSpec, Task

Predict = Callable[[Module, Batch], tuple[Tensor, NDArray[Any]]]


@dataclass(frozen=True)
class Scores:
    """Sums over held-out samples; accuracy is num_correct / num_losses where the targets are classes."""

    loss_sum: float
    num_losses: int
    num_correct: int


@dataclass(frozen=True)
class Objective:
    """`predict` gives predictions (M, C) and classes (M,), or predictions and values of one shape."""

    predict: Predict
    has_classes: bool
    is_per_token: bool = False

    def loss(self, model: Module, batch: Batch) -> tuple[Tensor, int]:
        """The sum of the losses over a batch, or over each of its parts, and how many they are altogether."""
        predictions, targets = self.predict(model, batch)
        return self._loss_sum(predictions, targets), targets.size

    def score(self, model: Module, batch: Batch) -> Scores:
        """The batch as held-out samples."""
        with no_grad():
            predictions, targets = self.predict(model, batch)
            loss_sum = self._loss_sum(predictions, targets).item()
        num_correct = int((predictions.data.argmax(axis=1) == targets).sum()) if self.has_classes else 0
        return Scores(loss_sum, targets.size, num_correct)

    def _loss_sum(self, predictions: Tensor, targets: NDArray[Any]) -> Tensor:
        if self.has_classes:
            return F.cross_entropy(predictions, Tensor(targets), reduction="sum")
        return F.mse_loss(predictions, Tensor(targets), reduction="sum")


def objective_of(model: ModelSpec, dataset: Dataset) -> Objective:
    """What a model of this kind is trained for on this data."""
    if dataset.task is not None:
        return Objective(_of_rows, has_classes=dataset.task is Task.CLASSIFICATION)
    if isinstance(model.chosen, BertModel):
        return Objective(_masked(model.chosen, dataset), has_classes=True, is_per_token=True)
    return Objective(_next_tokens, has_classes=True, is_per_token=True)


def _of_rows(model: Module, batch: Batch) -> tuple[Tensor, NDArray[Any]]:
    return model(Tensor(batch.inputs)), batch.targets


def _next_tokens(model: Module, batch: Batch) -> tuple[Tensor, NDArray[Any]]:
    """Every token is predicted from those before it."""
    logits = model(Tensor(batch.inputs))
    return logits.reshape(-1, logits.shape[-1]), batch.targets.reshape(-1)


def _masked(spec: BertModel, dataset: Dataset) -> Predict:
    """Some tokens are hidden and predicted from all others (Devlin et al., 2019).

    Of the chosen ones 80 % become the mask token, which stands behind the vocabulary, 10 % a random one, 10 % stay.
    """
    mask_token = dataset.num_outputs

    def predict(model: Module, batch: Batch) -> tuple[Tensor, NDArray[Any]]:
        random = philox.generator()
        tokens = batch.inputs.astype(np.int64)
        is_chosen = random.random(tokens.shape, np.float32) < spec.mask_fraction
        is_chosen.flat[0] |= not is_chosen.any()  # a batch without a loss would have no gradient
        fate = random.random(tokens.shape, np.float32)
        strangers = random.integers(0, dataset.num_outputs, tokens.shape)
        shown = np.select([is_chosen & (fate < 0.8), is_chosen & (fate < 0.9)], [mask_token, strangers], tokens)
        positions = np.flatnonzero(is_chosen)
        return model(Tensor(shown), positions=positions), tokens.reshape(-1)[positions]

    return predict
