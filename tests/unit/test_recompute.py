"""checkpoint: the same gradients bit for bit, from less memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from worker.autodiff import Tensor, backward, checkpoint, enable_grad, grad, no_grad, philox
from worker.autodiff import functional as F
from worker.autodiff.graph import record
from worker.nn import init

Function = Callable[..., Any]


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(init.generator(seed, *shape).standard_normal(shape).astype(np.float32), requires_grad=True)


def gradients_of(tensors: list[Tensor]) -> list[bytes]:
    found = []
    for x in tensors:
        assert x.grad is not None
        found.append(x.grad.data.tobytes())
        x.grad = None
    return found


def dropped(x: Tensor) -> Tensor:
    mask = Tensor((philox.generator().random(x.shape) < 0.5).astype(np.float32))
    return x * mask


class Stack:
    """Blocks with residual connections, dropout, and one weight that all of them share."""

    def __init__(self, depth: int, width: int = 16) -> None:
        self.shared = leaf(width, width, seed=1)
        self.weights = [leaf(width, width, seed=i + 2) for i in range(depth)]
        self.x = leaf(4, width)
        self.leaves = [self.x, self.shared, *self.weights]

    def block(self, x: Tensor, w: Tensor) -> Tensor:
        return x + dropped(F.gelu(F.linear(F.linear(x, w), self.shared))) + x

    def __call__(self, run: Function) -> Tensor:
        philox.seed(7)
        x = self.x
        for w in self.weights:
            x = run(self.block, x, w)
        x = F.linear(x, self.shared)
        total: Tensor = (x * x * self.x).sum()
        return total


def plain(function: Function, *inputs: Any) -> Any:
    return function(*inputs)


def within_another(function: Function, *inputs: Any) -> Any:
    return checkpoint(lambda *again: checkpoint(function, *again) * 2, *inputs)


def twice(function: Function, *inputs: Any) -> Any:
    return function(*inputs) * 2


@pytest.mark.parametrize(("with_it", "without"), [(checkpoint, plain), (within_another, twice)])
def test_gradients_and_random_numbers_are_the_same_bits(with_it: Function, without: Function) -> None:
    stack = Stack(depth=3)
    results = []
    for run in (without, with_it):
        loss = stack(run)
        after = philox.get_state()
        loss.backward()
        assert philox.get_state() == after, "running again draws no numbers of those that come next"
        results.append((loss.item(), after, gradients_of(stack.leaves)))
    assert results[0] == results[1]


def test_all_of_a_model_in_one_checkpoint_with_blocks_in_others() -> None:
    stack = Stack(depth=3)
    stack(plain).backward()
    expected = gradients_of(stack.leaves)
    checkpoint(lambda: stack(checkpoint)).backward()
    assert gradients_of(stack.leaves) == expected


def test_leaves_come_in_the_same_order() -> None:
    stack = Stack(depth=3)
    orders = []
    for run in (plain, checkpoint):
        order: list[Tensor] = []
        backward(stack(run), on_leaf=lambda leaf, _, order=order: order.append(leaf))  # type: ignore[misc]
        orders.append(order)
    assert [id(leaf) for leaf in orders[0]] == [id(leaf) for leaf in orders[1]]


def test_weight_gradients_are_written_straight_into_their_slots() -> None:
    x, w = leaf(2, 3), leaf(4, 3)
    w.slot = np.full((4, 3), 9, np.float32)
    checkpoint(F.linear, x, w).sum().backward()
    assert w.grad is not None
    assert w.grad.data is w.slot
    np.testing.assert_array_equal(w.slot, np.tile(x.data.sum(axis=0), (4, 1)))


def test_retained_graph_runs_the_function_again_each_time() -> None:
    stack = Stack(depth=2)
    stack(plain).backward()
    expected = gradients_of(stack.leaves)
    loss = stack(checkpoint)
    for retain_graph in (True, True, False):
        loss.backward(retain_graph=retain_graph)
        assert gradients_of(stack.leaves) == expected
    with pytest.raises(RuntimeError, match="was freed by an earlier backward"):
        loss.backward()


def test_grad_of_tensors_inside_and_around() -> None:
    x, w = leaf(2, 3), leaf(3, 3)
    inside: list[Tensor] = []

    def function(h: Tensor) -> Tensor:
        inside.append(F.exp(h))
        return F.linear(inside[-1], w)

    h = x * 2
    found = grad(checkpoint(function, h).sum(), [h, inside[0], w, x])
    h = x * 2
    expected = grad(function(h).sum(), [h, inside[-1], w, x])
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert b is not None
        np.testing.assert_array_equal(a.data, b.data)


def test_several_outputs_of_which_one_is_used() -> None:
    x = leaf(3)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.exp(x)
        return h * x, h * h

    first, _ = checkpoint(function, x)
    first.sum().backward()
    found = gradients_of([x])
    function(x)[0].sum().backward()
    assert gradients_of([x]) == found
    first, second = checkpoint(function, x)
    (first * second).sum().backward()
    found = gradients_of([x])
    first, second = function(x)
    (first * second).sum().backward()
    assert gradients_of([x]) == found


def test_tensor_of_the_graph_that_is_not_given_as_input() -> None:
    x = leaf(3)
    h = F.exp(x)
    checkpoint(lambda y: y * h, x * 2).sum().backward()
    found = gradients_of([x])
    h = F.exp(x)
    ((x * 2) * h).sum().backward()
    assert gradients_of([x]) == found


def test_inputs_may_be_anything() -> None:
    x = leaf(3)
    checkpoint(lambda x, factor: x * factor, x, 3.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0] * 3


def test_mode_of_the_first_run_is_that_of_the_second() -> None:
    x = leaf(3)
    modes = []

    def function(x: Tensor) -> Tensor:
        with no_grad():
            scale = F.exp(x)
        with no_grad(), enable_grad():
            y = x * scale
        modes.append(y.requires_grad)
        return y

    y = checkpoint(function, x).sum()
    with no_grad():
        y.backward()
    assert modes == [True, True]
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.data, np.exp(x.data))


def test_hook_on_a_tensor_inside() -> None:
    x = leaf(3)
    seen = []

    def function(x: Tensor) -> Tensor:
        h = x * 2
        h.register_hook(lambda g: seen.append(g.tolist()))
        return h * 3

    checkpoint(function, x).sum().backward()
    assert seen == [[3.0] * 3]


def test_nothing_is_kept_where_no_gradient_is_needed() -> None:
    with no_grad():
        assert checkpoint(F.exp, leaf(3)).is_leaf
    assert checkpoint(F.exp, Tensor([1.0])).is_leaf


def holding(x: Tensor) -> tuple[Tensor, weakref.ref[Any]]:
    """An operation whose vjp holds an array, and that array."""
    value = np.array(x.data)
    return record("holding", value + 1, (x, lambda g: g * np.sign(value) ** 2)), weakref.ref(value)


class Live:
    """Counts the arrays that vjps hold, while the function runs and after."""

    def __init__(self) -> None:
        self.held: list[weakref.ref[Any]] = []
        self.most = 0

    def operation(self, x: Tensor) -> Tensor:
        result, held = holding(x)
        self.held.append(held)
        self.most = max(self.most, self.count())
        return result

    def count(self) -> int:
        return sum(ref() is not None for ref in self.held)

    def block(self, x: Tensor) -> Tensor:
        for _ in range(10):
            x = self.operation(x)
        return x


def test_intermediate_values_are_not_kept() -> None:
    gc.disable()  # memory must go at once, not when the collector comes by
    try:
        live = Live()
        x = leaf(3)
        y = x * 1
        for _ in range(8):
            y = checkpoint(live.block, y)
        assert live.count() == 0
        live.most = 0
        y.sum().backward()
        assert live.most == 10, "one block at a time"
        assert live.count() == 0
        plain_live = Live()
        y = x * 1
        for _ in range(8):
            y = plain_live.block(y)
        assert plain_live.count() == 80
    finally:
        gc.enable()


def test_nested_checkpoints_keep_even_less() -> None:
    live = Live()

    def four(x: Tensor) -> Tensor:
        for _ in range(4):
            x = checkpoint(live.block, x)
        return x

    gc.disable()
    try:
        y = checkpoint(four, checkpoint(four, leaf(3) * 1))
        live.most = 0
        y.sum().backward(retain_graph=True)
        assert live.most == 10
        assert live.count() == 0, "what was asked for is given away"
        del y
        assert live.count() == 0
    finally:
        gc.enable()


def test_graph_dropped_without_backward_frees_the_inputs() -> None:
    gc.disable()
    try:
        h = leaf(3) * 1
        value = weakref.ref(h.data)
        y = checkpoint(lambda x: checkpoint(lambda z: F.exp(z) * z, x) * x, h)
        del h
        assert value() is not None
        del y
        assert value() is None
    finally:
        gc.enable()


def test_function_that_does_something_else_the_second_time_is_found() -> None:
    x = leaf(3)
    calls: list[int] = []

    def other(x: Tensor) -> Tensor:
        calls.append(1)
        return F.exp(x) if len(calls) == 1 else F.sqrt(x)

    def shorter(x: Tensor) -> Tensor:
        calls.append(1)
        return F.exp(x) * 2 if len(calls) == 1 else F.exp(x)

    y = checkpoint(other, x).sum()
    with pytest.raises(RuntimeError, match="did 'exp' in its first run and 'sqrt' in its second"):
        y.backward()
    calls.clear()
    y = checkpoint(shorter, x).sum()
    with pytest.raises(RuntimeError, match="did 2 operations in its first run and 1 in its second"):
        y.backward()


def test_input_changed_in_place_is_found() -> None:
    h = leaf(3) * 2
    y = checkpoint(F.exp, h).sum()
    h += 1
    with pytest.raises(RuntimeError, match=r"'exp' needs a value of shape \(3,\) that 'add_' has changed in place"):
        y.backward()


def test_parameter_changed_in_place_is_found() -> None:
    w, x = leaf(3), leaf(3)
    y = checkpoint(lambda x: x * w, x).sum()
    with no_grad():
        w.zero_()
    with pytest.raises(RuntimeError, match=r"uses a tensor of shape \(3,\) that 'zero_' has changed in place"):
        y.backward()


def test_exception_in_the_function_leaves_no_trace() -> None:
    def fail(x: Tensor) -> Tensor:
        raise KeyError

    x = leaf(3)
    with pytest.raises(KeyError):
        checkpoint(fail, x)
    (x * 2).sum().backward()
    assert x.grad is not None
