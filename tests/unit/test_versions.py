"""Versions: backward refuses a value that was changed in place since an operation has saved it, and only such."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from worker import optim
from worker.autodiff import Tensor, grad, no_grad, versions
from worker.autodiff.graph import record
from worker.nn import Parameter


def leaf(value: Any) -> Tensor:
    return Tensor(value, requires_grad=True)


def gradient_of(x: Tensor) -> Any:
    assert x.grad is not None
    return x.grad.tolist()


CHANGED = r"needs a value of shape \(2,\) that '\w+' has changed in place since"


@dataclass
class Held:
    array: Any


def held_by_default(a: Any) -> Any:
    return lambda g, a=a: g * a


def held_by_partial(a: Any) -> Any:
    return functools.partial(np.multiply, a)


def held_deep(a: Any) -> Any:
    table = {"values": [(Held(a),)]}

    def inner() -> Any:
        return table["values"][0][0].array

    return lambda g: g * inner()


def held_by_tensor(a: Any) -> Any:
    x = Tensor(a)
    return lambda g: g * x.data


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x.zero_(),
        lambda x: x.copy_(Tensor([1.0, 2.0])),
        lambda x: x.__setitem__(0, 5.0),
        lambda x: x.detach().mul_(2),
        lambda x: x[:1].add_(1),
        lambda x: x.reshape(2, 1).add_(1),
    ],
)
def test_changed_input_is_found(change: Callable[[Tensor], Any]) -> None:
    x, w = Tensor([1.0, 2.0]), leaf([3.0, 4.0])
    y = x * w
    change(x)
    with pytest.raises(RuntimeError, match="'mul' " + CHANGED):
        y.sum().backward()


def test_change_is_named() -> None:
    w = leaf([3.0, 4.0])
    y = w.exp()
    z = y * 2
    y += 1
    with pytest.raises(RuntimeError, match=r"'exp' needs a value of shape .* that 'add_' has changed in place"):
        z.sum().backward()


def test_changed_parameter_is_found() -> None:
    w = leaf([3.0, 4.0])
    y = w * w
    with no_grad():
        w *= 2
    with pytest.raises(RuntimeError, match=CHANGED):
        y.sum().backward()


def test_optimizers_step_before_backward_is_found() -> None:
    w = Parameter([3.0, 4.0])
    optimizer = optim.SGD([w], lr=0.1)
    y = (w * w).sum()
    y.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"that 'SGD\.step' has changed in place"):
        y.backward()


@pytest.mark.parametrize("hold", [held_by_default, held_by_partial, held_deep, held_by_tensor])
def test_value_is_found_wherever_a_vjp_holds_it(hold: Callable[[Any], Any]) -> None:
    x, w = Tensor([1.0, 2.0]), leaf([3.0, 4.0])
    y = record("scaled", x.data * w.data, (w, hold(x.data)))
    x.zero_()
    with pytest.raises(RuntimeError, match="'scaled' " + CHANGED):
        y.sum().backward()


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y + 1,
        lambda y: 1 - y,
        lambda y: -y,
        lambda y: y * 2,
        lambda y: y.reshape(2, 1) * 1,
        lambda y: y.sum(),
        lambda y: y.mean(),
    ],
)
def test_operation_that_needs_no_value_does_not_mind(function: Callable[[Tensor], Tensor]) -> None:
    x = leaf([1.0, 2.0])
    y = x * 1
    z = function(y)
    y.zero_()
    z.sum().backward()
    assert np.isfinite(gradient_of(x)).all()


def test_change_before_the_operation_does_not_matter() -> None:
    x, w = Tensor([1.0, 2.0]), leaf([3.0, 4.0])
    x.add_(1)
    (x * w).sum().backward()
    assert gradient_of(w) == [2.0, 3.0]


def test_change_of_other_memory_does_not_matter() -> None:
    both = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    x, other, w = Tensor(both[:2]), Tensor(both[2:]), leaf([3.0, 4.0])
    y = x * w
    other.zero_()
    Tensor([1.0]).zero_()
    y.sum().backward()
    assert gradient_of(w) == [1.0, 2.0]


def test_change_after_backward_does_not_matter() -> None:
    w = leaf([1.0, 2.0])
    for _ in range(3):
        (w * w).sum().backward()
        assert w.grad is not None
        with no_grad():
            w -= w.grad * 0.25
        w.grad = None
    assert w.tolist() == [0.125, 0.25]


def test_many_changes_of_one_memory_are_still_seen() -> None:
    x, w = Tensor(np.ones(1000, np.float32)), leaf(np.ones(1000, np.float32))
    y = x * w
    for i in range(200):
        x[i] = 2.0
    assert all(len(history.changes) <= versions.MAX_RANGES for _, history in versions._changed.values())
    with pytest.raises(RuntimeError, match="has changed in place since"):
        y.sum().backward()


def test_only_the_part_that_is_walked_is_looked_at() -> None:
    x, w, v = Tensor([1.0, 2.0]), leaf([3.0, 4.0]), leaf([1.0, 1.0])
    y = x * w + v
    x.zero_()
    (gradient,) = grad(y.sum(), v)
    assert gradient is not None
    assert gradient.tolist() == [1.0, 1.0]
