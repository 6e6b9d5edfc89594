"""A rehearsal: all that a job's steps and evaluations run is run once, before anybody waits for it.

Kernels are loaded from numba's cache when they are first called, or compiled, which takes up to a minute. In the first
step the other workers would wait for that, and nobody would know for what. It works on throw-away numbers and leaves
nothing behind that training sees. Knows no other workers and no segment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba.core.event import install_listener

from worker.autodiff import philox
from worker.autodiff.kernels import BLOCK
from worker.autodiff.kernels.compilation import COMPILE, Compilations, NotCompiledError
from worker.data.dataset import Dataset
from worker.nn.flat import FlatParameters
from worker.recipe import Recipe, Span
from worker.reduce.kernels import add_into, fence, reduce_range


def rehearse(
    recipe: Recipe,
    flat: FlatParameters,
    dataset: Dataset,
    *,
    shard_size: int,
    spans: Sequence[Span],
    may_compile: bool,
) -> int | None:
    """How many kernels were compiled; None where some are not in the cache and may not be compiled.

    Overwrites the gradient to which `flat` is bound.
    """
    compilations = Compilations(allowed=may_compile)
    try:
        with install_listener(COMPILE, compilations), np.errstate(all="ignore"):
            _train(recipe, flat, dataset, shard_size)
            _reduce()
            _update(recipe, spans)
            _evaluate(recipe, dataset, shard_size)
    except NotCompiledError:
        return None
    return compilations.num_kernels


def _train(recipe: Recipe, flat: FlatParameters, dataset: Dataset, shard_size: int) -> None:
    flat.bind_gradient(flat.gradient)
    philox.seed(0)
    positions = np.arange(shard_size) % len(dataset.training)
    loss, _ = recipe.objective.loss(recipe.model, dataset.training.take(positions))
    loss.backward()
    flat.fill_unused()


def _reduce() -> None:
    slots, squares = np.zeros((2, BLOCK), np.float32), np.zeros(1)
    add_into(slots[0], slots[1])
    reduce_range(slots, np.array([(0, 1)], np.int64), 0, BLOCK, squares)
    fence()


def _update(recipe: Recipe, spans: Sequence[Span]) -> None:
    for rule in {id(rule): rule for _, _, rule in spans}.values():
        vectors = np.zeros((3 + 2 * len(rule.state_names), BLOCK), np.float32)
        (weights, gradient, new_weights), states = vectors[:3], vectors[3:]
        rule.update(
            weights,
            gradient,
            list(states[::2]),
            new_weights,
            list(states[1::2]),
            step=1,
            learning_rate=recipe.learning_rate(0),
            limit=recipe.clip_value,
        )


def _evaluate(recipe: Recipe, dataset: Dataset, shard_size: int) -> None:
    positions = np.arange(min(shard_size, len(dataset.validation)))
    recipe.model.eval()
    try:
        recipe.objective.score(recipe.model, dataset.validation.take(positions))
    finally:
        recipe.model.train()
