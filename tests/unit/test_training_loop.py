"""The training loop of the design, literally, in one process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from worker import nn, optim
from worker.autodiff import Tensor, no_grad
from worker.autodiff import functional as F
from worker.models.mlp import Mlp
from worker.nn import init


@dataclass(frozen=True)
class Batch:
    inputs: Tensor
    targets: Tensor


def spirals(samples: int) -> tuple[Any, Any]:
    """Three arms of a spiral in the plane: no line separates them."""
    rng = init.generator(4)
    arm = np.arange(samples) % 3
    radius = rng.uniform(0.1, 1, samples)
    angle = arm * 2 * np.pi / 3 + 3 * radius + rng.normal(0, 0.05, samples)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points.astype(np.float32), arm


def batches(epochs: int) -> Iterator[Batch]:
    points, arms = spirals(600)
    for epoch in range(epochs):
        order = init.generator(6, epoch).permutation(len(points))
        for start in range(0, len(points), 60):
            chosen = order[start : start + 60]
            yield Batch(Tensor(points[chosen]), Tensor(arms[chosen]))


def train(model: nn.Module, optimizer: optim.Optimizer, data: Iterable[Batch]) -> list[float]:
    losses = []
    for batch in data:
        predictions = model(batch.inputs)
        loss = F.cross_entropy(predictions, batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def mlp(activation: str = "relu") -> Mlp:
    return Mlp(2, [32, 32], 3, activation, generator=init.generator(2))


@pytest.mark.parametrize(
    ("activation", "make"),
    [
        ("relu", lambda p: optim.SGD(p, lr=0.3)),
        ("tanh", lambda p: optim.Momentum(p, lr=0.1, momentum=0.9)),
        ("gelu", lambda p: optim.Adam(p, lr=0.01)),
        ("relu", lambda p: optim.AdamW(p, lr=0.01)),
    ],
)
def test_loop_learns_spirals(activation: str, make: Callable[[Any], optim.Optimizer]) -> None:
    model = mlp(activation)
    train(model, make(model.parameters()), batches(epochs=60))
    points, arms = spirals(600)
    with no_grad():
        accuracy = (model(Tensor(points)).argmax(1) == Tensor(arms)).sum().item() / len(arms)
    assert accuracy > 0.97


@pytest.mark.torch
def test_loss_curve_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    model = mlp("gelu")
    linear, gelu = torch.nn.Linear, torch.nn.GELU
    reference = torch.nn.Sequential(linear(2, 32), gelu(), linear(32, 32), gelu(), linear(32, 3))
    reference.load_state_dict({name: torch.tensor(array) for name, array in model.layers.state_dict().items()})
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    expected = []
    for batch in batches(epochs=20):
        loss = torch.nn.functional.cross_entropy(
            reference(torch.tensor(batch.inputs.data)), torch.tensor(batch.targets.data)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    got = train(model, optim.Adam(model.parameters(), lr=0.01), batches(epochs=20))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_two_runs_give_the_same_bits() -> None:
    digests = set()
    for _ in range(2):
        model = mlp("gelu")
        optimizer = optim.Adam(model.parameters())
        train(model, optimizer, batches(epochs=2))
        digests.add(hashlib.sha256(optimizer.flat.weights.tobytes()).hexdigest())
    assert len(digests) == 1


def test_regression_with_a_schedule_and_clipping() -> None:
    rng = init.generator(8)
    inputs = rng.standard_normal((200, 3)).astype(np.float32)
    targets = inputs @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.25
    model = nn.Linear(3, 1, generator=rng)
    optimizer = optim.Momentum(model.parameters(), lr=0.1)
    schedule = optim.schedules.Cosine(total_steps=200, warmup_steps=10)
    for step in range(200):
        optimizer.lr = 0.1 * schedule(step)
        F.mse_loss(model(Tensor(inputs)), Tensor(targets)).backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    np.testing.assert_allclose(model.weight.data, [[1, -2, 0.5]], atol=1e-3)
