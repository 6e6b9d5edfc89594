"""Changing tensors in place: the values, the gradients, and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from worker.autodiff import Tensor, grad, no_grad, versions
from worker.autodiff import functional as F


def leaf(value: Any) -> Tensor:
    return Tensor(value, requires_grad=True)


def gradient_of(x: Tensor) -> Any:
    assert x.grad is not None
    return x.grad.tolist()


class TestValues:
    def test_arithmetic_is_done_in_the_same_memory(self) -> None:
        x = Tensor([1.0, 2.0])
        memory = x.data
        assert x.add_(1).tolist() == [2.0, 3.0]
        assert x.sub_(Tensor([1.0, 0.0])).tolist() == [1.0, 3.0]
        assert x.mul_(6).div_(3).neg_().tolist() == [-2.0, -6.0]
        assert x.abs_().pow_(2).sqrt_().tolist() == [2.0, 6.0]
        assert x.copy_(Tensor(3.0)).tolist() == [3.0, 3.0]
        assert x.fill_(0.5).tolist() == [0.5, 0.5]
        assert x.zero_().exp_().tolist() == [1.0, 1.0]
        assert x.data is memory

    def test_augmented_assignment_is_in_place(self) -> None:
        x = y = Tensor([1.0, 2.0])
        x += 1
        x *= 4
        x -= 2
        x /= 2
        assert x is y
        assert y.tolist() == [3.0, 5.0]

    def test_items(self) -> None:
        x = Tensor(np.zeros((2, 3), np.float32))
        x[0] = 1
        x[1, 1:] = Tensor([2.0, 3.0])
        x[Tensor([0, 1]), [0, 0]] = Tensor([7.0, 8.0])
        x[0, 1] += 5
        assert x.tolist() == [[7.0, 6.0, 1.0], [8.0, 2.0, 3.0]]
        x[x > 6] = 0
        assert x.tolist() == [[0.0, 6.0, 1.0], [0.0, 2.0, 3.0]]

    def test_result_of_another_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"add_: the result has shape \(2, 2\), which does not fit .* \(2,\)"):
            Tensor([1.0, 2.0]).add_(Tensor([[1.0, 2.0], [3.0, 4.0]]))

    def test_result_of_another_kind_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"add_: the result is float.*, which does not fit in place into int64"):
            Tensor([1, 2]).add_(0.5)
        assert Tensor([1, 2]).add_(1).tolist() == [2, 3]

    @pytest.mark.skipif(not hasattr(F, "clamp"), reason="clamp is not there")
    def test_clamp(self) -> None:
        assert Tensor([-5.0, 5.0]).clamp_(-1, 1).tolist() == [-1.0, 1.0]

    def test_parameters_are_changed_by_hand_under_no_grad(self) -> None:
        w = leaf([1.0, 2.0])
        (w * w).sum().backward()
        assert w.grad is not None
        with no_grad():
            w -= w.grad * 0.5
        assert w.tolist() == [0.0, 0.0]
        assert w.is_leaf
        assert w.requires_grad


class TestGradients:
    @pytest.mark.torch
    @pytest.mark.parametrize(
        "function",
        [
            lambda x, w: x.mul_(w).add_(x * 2),
            lambda x, w: x.sub_(w).exp_(),
            lambda x, w: x.div_(w).mul_(3).neg_(),
            lambda x, w: x.copy_(w).mul_(w),
            lambda x, w: x.pow_(2).add_(w),
            lambda x, w: x.fill_(2).mul_(w),
            lambda x, w: x.mul_(w).tanh_(),
            lambda x, w: x.add_(w).sigmoid_(),
        ],
    )
    def test_are_pytorchs(self, function: Callable[..., Any]) -> None:
        torch = pytest.importorskip("torch")

        def run(tensor: Any, grad: Any) -> list[Any]:
            x, w = tensor([0.5, 2.0, -1.0]), tensor([1.5, -0.5, 3.0])
            y = function(x * 2, w)
            return [y.tolist(), *(g.tolist() for g in grad((y * y).sum(), [x, w]))]

        ours = run(leaf, grad)
        theirs = run(lambda a: torch.tensor(a, requires_grad=True), torch.autograd.grad)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)

    @pytest.mark.torch
    def test_of_items_are_pytorchs(self) -> None:
        torch = pytest.importorskip("torch")

        def run(tensor: Any, zeros: Any, grad: Any) -> list[Any]:
            x, w = tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([5.0, 6.0])
            y = x * 3
            y[0] = w
            y[1, 0] = 7.0
            y[:, 1] += w * w
            z = zeros()
            z[1] = y[0] * w
            out = (y * y).sum() + (z * z).sum()
            return [out.tolist(), *(g.tolist() for g in grad(out, [x, w]))]

        ours = run(leaf, lambda: Tensor(np.zeros((2, 2), np.float32)), grad)
        theirs = run(lambda a: torch.tensor(a, requires_grad=True), lambda: torch.zeros((2, 2)), torch.autograd.grad)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)

    def test_tensor_times_itself(self) -> None:
        x = leaf([3.0])
        y = x * 1
        y *= y
        y.backward()
        assert gradient_of(x) == [6.0]

    def test_item_broadcast_from_more_dimensions(self) -> None:
        w = leaf([[1.0, 2.0]])
        y = Tensor(np.zeros(2, np.float32))
        y[:] = w
        (y * Tensor([3.0, 4.0])).sum().backward()
        assert gradient_of(w) == [[3.0, 4.0]]

    def test_tensor_without_gradient_gets_one(self) -> None:
        w = leaf([1.0, 2.0])
        x = Tensor([3.0, 4.0])
        x *= w
        assert x.requires_grad
        x.sum().backward()
        assert gradient_of(w) == [3.0, 4.0]


class TestRefused:
    def test_leaf_that_requires_a_gradient(self) -> None:
        w = leaf([1.0, 2.0])
        for change in (lambda: w.add_(1), lambda: w.zero_(), lambda: w.__setitem__(0, 1.0)):
            with pytest.raises(RuntimeError, match=r"a leaf that requires a gradient; change it under no_grad"):
                change()
        assert w.tolist() == [1.0, 2.0]

    def test_view_of_a_leaf_that_requires_a_gradient(self) -> None:
        w = leaf(np.ones((2, 3)))
        with pytest.raises(RuntimeError, match="add_: this is a view of a leaf that requires a gradient"):
            w[0].reshape(3, 1).add_(1)
        (w[0] * 1).add_(1)

    def test_view_of_a_tensor_that_could_not_know(self) -> None:
        w, x = leaf([1.0, 2.0]), Tensor(np.zeros((2, 2), np.float32))
        with pytest.raises(RuntimeError, match=r"copy_: this may be a view of another tensor"):
            x[0].copy_(w)
        x[0] = w
        x.sum().backward()
        assert gradient_of(w) == [1.0, 1.0]

    def test_tensor_whose_view_was_changed_with_a_gradient(self) -> None:
        x = leaf([1.0, 2.0])
        y = x * 2
        y[:1].mul_(3)
        with pytest.raises(RuntimeError, match=r"exp: an input of shape .* shares memory that 'mul_' has changed"):
            y.exp()
        with pytest.raises(RuntimeError, match="shares memory that 'mul_' has changed"):
            y.add_(1)

    def test_view_of_a_tensor_that_was_changed_with_a_gradient(self) -> None:
        x = leaf([1.0, 2.0])
        y = x * 2
        view = y[:1]
        y.mul_(3)
        assert (y * 1).tolist() == [6.0, 12.0]
        with pytest.raises(RuntimeError, match="shares memory that 'mul_' has changed"):
            view * 1

    def test_operand_in_the_same_memory(self) -> None:
        y = leaf([1.0, 2.0]) * 2
        with pytest.raises(RuntimeError, match="mul_: backward needs an operand that lies in the same memory"):
            y.mul_(y[:1])
        assert y.tolist() == [2.0, 4.0]

    def test_bookkeeping_ends_with_the_memory(self) -> None:
        gc.collect()
        before = len(versions._changed), len(versions.rebased)
        y = leaf([1.0, 2.0]) * 2
        y += 1
        assert (len(versions._changed), len(versions.rebased)) == (before[0] + 1, before[1] + 1)
        del y
        assert (len(versions._changed), len(versions.rebased)) == before
