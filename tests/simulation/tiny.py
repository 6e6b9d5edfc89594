"""The job of a simulation: a model of a few numbers, whose gradients differ so much in size that every order of adding
them up gives other bits; and its weights after every step, computed here in the plainest way."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from worker.objective import Scores
from worker.spec import NonFinitePolicy

Floats = np.ndarray[Any, np.dtype[np.float32]]

NUM_PARAMETERS = 20
BLOCK = 4
CHUNK = 4  # held-out samples evaluated at once
NUM_SAMPLES, NUM_HELD_OUT = 24, 10
RATE, MOMENTUM, CLIP = np.float32(0.05), np.float32(0.9), 1.0
LINES = np.random.default_rng(7)
SCALES = 10.0 ** LINES.uniform(-4, 4, (NUM_SAMPLES + NUM_HELD_OUT, 1))
SAMPLES: Floats = (LINES.standard_normal((len(SCALES), NUM_PARAMETERS)) * SCALES).astype(np.float32)
FIRST_WEIGHTS: Floats = LINES.standard_normal(NUM_PARAMETERS).astype(np.float32)


def gradient_of(weights: Floats, positions: Any) -> Floats:
    """The sum of the samples' gradients."""
    gradient: Floats = (SAMPLES[positions] * (1 + weights)).sum(axis=0, dtype=np.float32)
    return gradient


def loss_of(weights: Floats, positions: Any) -> float:
    """The sum of the samples' losses."""
    return float((SAMPLES[positions] @ weights).sum(dtype=np.float32))


@dataclass
class Loss:
    """What forward leaves for backward, of as many shards as there are gradients to write."""

    flat: Flat
    positions: Any
    shape = ()

    def __post_init__(self) -> None:
        gradients = np.atleast_2d(self.flat.gradient)
        self._parts = list(zip(gradients, np.split(self.positions, len(gradients)), strict=True))

    @property
    def data(self) -> list[float]:
        return [loss_of(self.flat.weights, positions) for _, positions in self._parts]

    def backward(self, seed: Any) -> Iterator[str]:
        """Writes each gradient in two goes: whoever is killed between leaves half of it."""
        half = NUM_PARAMETERS // 2
        for written, positions in self._parts:
            gradient = gradient_of(self.flat.weights, positions)
            written[:half] = gradient[:half]
            yield "backward"
            written[half:] = gradient[half:]


@dataclass
class View:
    """A vector, or several, and, in the product, its parts by parameter."""

    vector: Floats


class Flat:
    """Binds weights and a gradient slot, as worker.nn.flat does."""

    size = NUM_PARAMETERS

    def __init__(self, parameters: object) -> None:
        self.weights = FIRST_WEIGHTS.copy()
        self.gradient = np.zeros(NUM_PARAMETERS, np.float32)

    def views_of(self, vector: Floats) -> View:
        return View(vector)

    def bind_weights(self, weights: View | Floats) -> None:
        self.weights = weights.vector if isinstance(weights, View) else weights

    def bind_gradient(self, gradient: View) -> None:
        self.gradient = gradient.vector

    def fill_unused(self) -> None:
        """Every parameter is used."""


class Model:
    """Nothing but its flat vector."""

    def __init__(self) -> None:
        self.flat: Flat | None = None

    def parameters(self) -> list[Any]:
        return []

    def named_parameters(self) -> list[tuple[str, Floats]]:
        return [("weights", FIRST_WEIGHTS)]

    def train(self) -> None:
        """It is always the same."""

    eval = train


class Objective:
    """The losses of samples."""

    has_classes = is_per_token = False

    def __init__(self) -> None:
        self.flat: Any = None

    def loss(self, model: Model, positions: Any) -> tuple[Loss, int]:
        return Loss(self.flat, positions), len(positions)

    def score(self, model: Model, positions: Any) -> Scores:
        return Scores(loss_of(self.flat.weights, positions), len(positions), 0)


class Rule:
    """SGD with momentum."""

    state_names = ("momentum",)

    def start(self, weights: Floats, state: Sequence[Floats]) -> None:
        """It begins with zeros."""

    def update(
        self, weights: Floats, gradient: Floats, state: Any, to: Floats, to_state: Any, *, scale: float, **_: Any
    ) -> Iterator[str]:
        """In two goes."""
        for part in (slice(0, len(to) // 2), slice(len(to) // 2, len(to))):
            to[part], to_state[0][part] = updated(weights[part], gradient[part], state[0][part], scale)
            yield "update"


def updated(weights: Floats, gradient: Floats, momentum: Floats, scale: float) -> tuple[Floats, Floats]:
    """The next weights and momentum."""
    after: Floats = MOMENTUM * momentum + gradient * np.float32(scale)
    return weights - RATE * after, after


@dataclass
class Recipe:
    """As worker.recipe.Recipe."""

    model: Model = field(default_factory=Model)
    objective: Objective = field(default_factory=Objective)
    rule: Rule = field(default_factory=Rule)
    clip_norm = CLIP
    clip_value = math.inf
    scales_loss = False
    knows_parts = True
    on_non_finite = NonFinitePolicy.FAIL

    def learning_rate(self, step: int) -> float:
        return float(RATE)


class Positions:
    """Samples that are their positions."""

    def __init__(self, first: int, length: int) -> None:
        self._first, self._length = first, length

    def __len__(self) -> int:
        return self._length

    def take(self, positions: Any) -> Any:
        return positions + self._first


class Dataset:
    """As worker.data.dataset.Dataset."""

    training = Positions(0, NUM_SAMPLES)
    validation = Positions(NUM_SAMPLES, NUM_HELD_OUT)
    input_shape = (NUM_PARAMETERS,)
    num_outputs = 1
    vocabulary = None
    sha256 = hashlib.sha256(SAMPLES.tobytes()).hexdigest()


@dataclass(frozen=True)
class State:
    """What a job is after so many steps."""

    weights: Floats
    momentum: Floats

    @cached_property
    def content(self) -> tuple[bytes, bytes]:
        return self.weights.tobytes(), self.momentum.tobytes()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.weights.tobytes()).hexdigest()


def tree_sum(gradients: Sequence[Floats]) -> Floats:
    """Splits behind the largest power of two that is smaller than the length."""
    if len(gradients) == 1:
        return gradients[0]
    middle = 1 << (len(gradients) - 1).bit_length() - 1
    return tree_sum(gradients[:middle]) + tree_sum(gradients[middle:])


def reference(sampler: Any, *, num_shards: int, batch_size: int, num_steps: int) -> list[State]:
    """The job's states, before the first step and after each."""
    states = [State(FIRST_WEIGHTS, np.zeros(NUM_PARAMETERS, np.float32))]
    size = batch_size // num_shards
    for step in range(num_steps):
        before, batch = states[-1], sampler.batch(step)
        parts = [gradient_of(before.weights, batch[k * size : (k + 1) * size]) for k in range(num_shards)]
        gradient = tree_sum(parts)
        norm = math.sqrt(math.fsum(squares_of(gradient))) / batch_size
        clip = min(1.0, CLIP / (math.sqrt(norm * norm) + 1e-6))
        states.append(State(*updated(before.weights, gradient, before.momentum, clip / batch_size)))
    return states


def squares_of(gradient: Floats) -> list[float]:
    """The sum of squares of every block."""
    blocks = (gradient[first : first + BLOCK].astype(np.float64) for first in range(0, len(gradient), BLOCK))
    return [float((block * block).sum()) for block in blocks]


def evaluation_of(weights: Floats) -> float:
    """The mean loss of the held-out samples."""
    last = NUM_SAMPLES + NUM_HELD_OUT
    chunks = [np.arange(first, min(first + CHUNK, last)) for first in range(NUM_SAMPLES, last, CHUNK)]
    return math.fsum(loss_of(weights, chunk) for chunk in chunks) / NUM_HELD_OUT
