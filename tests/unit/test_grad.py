"""grad for any tensors of the graph, hooks and retained gradients, and the modes that say whether a graph is built."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import pytest

from worker.autodiff import Tensor, enable_grad, grad, is_grad_enabled, no_grad, set_grad_enabled
from worker.autodiff import functional as F
from worker.autodiff.graph import Into, record


def leaf(value: Any) -> Tensor:
    return Tensor(value, requires_grad=True)


def values(tensors: Any) -> list[Any]:
    return [None if x is None else x.tolist() for x in tensors]


def gradient_of(x: Tensor) -> Any:
    assert x.grad is not None
    return x.grad.tolist()


class TestGrad:
    def test_of_leaves_touches_no_grad(self) -> None:
        x, y = leaf([2.0]), leaf([3.0])
        assert values(grad(x * x * y, [x, y])) == [[12.0], [4.0]]
        assert x.grad is None
        assert y.grad is None

    def test_of_a_tensor_inside_the_graph(self) -> None:
        x = leaf([2.0])
        y = x * x
        z = y * y
        assert values(grad(z, [y, x])) == [[8.0], [32.0]]

    def test_of_an_output_by_itself_is_one(self) -> None:
        x = leaf([2.0])
        y = x * 3
        assert values(grad(y, y)) == [[1.0]]
        assert values(grad(x, x)) == [[1.0]]

    def test_of_several_outputs_is_the_sum(self) -> None:
        x = leaf([1.0, 2.0])
        outputs = [x * 2, (x * x).sum()]
        assert values(grad(outputs, x, [Tensor([1.0, 10.0]), None])) == [[4.0, 24.0]]

    def test_same_input_twice(self) -> None:
        x = leaf([1.0])
        assert values(grad(x * 2, [x, x])) == [[2.0], [2.0]]

    def test_walks_only_what_leads_to_the_inputs(self) -> None:
        def refuse(g: Any) -> Any:
            raise AssertionError("ran")

        x, w = leaf([1.0]), leaf([1.0])
        side = record("side", w.data, (w, refuse))
        assert values(grad(x * 2 + side, x)) == [[2.0]]

    def test_frees_only_what_it_has_walked(self) -> None:
        x = leaf([2.0])
        y = x.exp()
        z = y * y
        grad(z, y)
        with pytest.raises(RuntimeError, match="the graph behind 'mul' was freed"):
            grad(z, y)
        y.backward()  # what lies behind y was not walked
        assert gradient_of(x) == [pytest.approx(np.e**2)]

    def test_of_a_tensor_whose_own_graph_is_gone(self) -> None:
        x = leaf([2.0])
        y = x * x
        z = y * 3
        y.backward()
        with pytest.raises(RuntimeError, match="the graph behind 'mul' was freed"):
            grad(z, x)
        assert values(grad(z, y)) == [[3.0]]

    def test_retained_graph_can_be_walked_again(self) -> None:
        x = leaf([2.0])
        y = x * x
        assert values(grad(y, x, retain_graph=True)) == values(grad(y, x)) == [[4.0]]

    def test_unused_input_is_refused_or_none(self) -> None:
        x, y = leaf([1.0]), leaf([1.0])
        with pytest.raises(RuntimeError, match="the outputs do not depend on input 1"):
            grad(x * 2, [x, y])
        assert values(grad(x * 2, [x, y], allow_unused=True)) == [[2.0], None]

    def test_input_without_gradient_is_refused(self) -> None:
        x = leaf([1.0])
        with pytest.raises(RuntimeError, match=r"input 1 of shape \(1,\) does not require a gradient"):
            grad(x * 2, [x, Tensor([1.0])])

    def test_gradients_of_gradients_are_refused(self) -> None:
        x = leaf([1.0])
        with pytest.raises(NotImplementedError, match="gradients of gradients"):
            grad(x * 2, x, create_graph=True)

    def test_slot_is_not_written(self) -> None:
        w = leaf(np.ones(2, np.float32))
        w.slot = np.full(2, 9, np.float32)
        y = record("triple", w.data * 3, (w, Into(lambda g, out: np.multiply(g, 3, out=out)))).sum()
        assert values(grad(y, w)) == [[3.0, 3.0]]
        assert w.slot.tolist() == [9.0, 9.0]

    def test_results_never_share_memory(self) -> None:
        x, y = leaf([1.0]), leaf([1.0])
        a, b = grad(x + y, [x, y])
        assert a is not None
        assert b is not None
        assert not np.shares_memory(a.data, b.data)

    def test_graph_of_100_000_nodes_needs_no_recursion(self) -> None:
        x = leaf([1.0])
        y = x
        for _ in range(100_000):
            y = y + 1
        assert values(grad(y, x)) == [[1.0]]

    @pytest.mark.torch
    def test_is_pytorchs(self) -> None:
        torch = pytest.importorskip("torch")

        def run(lib: Any, tensor: Any, grad: Any) -> list[Any]:
            x, w = tensor([[1.0, -2.0]]), tensor([[0.5, 1.0], [2.0, -1.0]])
            h = lib.tanh(x @ w)
            out = (h * h).sum() + h.sum()
            return [g.tolist() for g in grad(out, [h, w, x])]

        ours = run(F, leaf, grad)
        theirs = run(torch, lambda a: torch.tensor(a, requires_grad=True), torch.autograd.grad)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


class TestHooks:
    def test_hook_sees_the_complete_gradient_of_a_tensor(self) -> None:
        x = leaf([2.0])
        y = x * 1
        seen = []
        y.register_hook(lambda g: seen.append(g.tolist()))
        (y * y + y).backward()
        assert seen == [[5.0]]
        assert gradient_of(x) == [5.0]

    def test_hook_may_replace_the_gradient(self) -> None:
        x = leaf([2.0])
        y = x * 3
        y.register_hook(lambda g: g * 10)
        x.register_hook(lambda g: g + 1)
        y.backward()
        assert gradient_of(x) == [31.0]

    def test_hooks_run_in_their_order(self) -> None:
        x = leaf([1.0])
        x.register_hook(lambda g: g + 1)
        x.register_hook(lambda g: g * 10)
        (x * 1).backward()
        assert gradient_of(x) == [20.0]

    def test_removed_hook_is_not_called(self) -> None:
        x = leaf([1.0])
        handle = x.register_hook(lambda g: g * 10)
        handle.remove()
        handle.remove()
        (x * 1).backward()
        assert gradient_of(x) == [1.0]

    def test_hook_of_the_output_itself(self) -> None:
        x = leaf([1.0])
        y = x * 2
        y.register_hook(lambda g: g * 5)
        y.backward()
        assert gradient_of(x) == [10.0]

    def test_hook_runs_for_grad_too(self) -> None:
        x = leaf([1.0])
        y = x * 2
        y.register_hook(lambda g: g * 5)
        assert values(grad(y * 1, [y, x])) == [[5.0], [10.0]]

    def test_hook_on_a_leaf_with_a_slot(self) -> None:
        w = leaf(np.ones((1, 2), np.float32))
        w.slot = np.full((1, 2), 9, np.float32)
        seen: list[Tensor] = []
        w.register_hook(seen.append)
        F.linear(Tensor(np.ones((1, 2), np.float32)), w).sum().backward()
        assert w.slot.tolist() == [[1.0, 1.0]]
        assert not np.shares_memory(seen[0].data, w.slot), "the next step would change what the hook has kept"

    def test_hook_cannot_change_the_gradient_in_place(self) -> None:
        x = leaf([1.0])
        x.register_hook(lambda g: g.add_(1))
        with pytest.raises(ValueError, match="read-only"):
            (x * 1).backward()

    def test_replacement_of_another_shape_is_refused(self) -> None:
        x = leaf([1.0])
        x.register_hook(lambda g: Tensor([1.0, 2.0]))
        with pytest.raises(ValueError, match=r"returned shape \(2,\) but the gradient has \(1,\)"):
            (x * 1).backward()
        x = leaf([1.0])
        x.register_hook(lambda g: 2.0)  # type: ignore[arg-type, return-value]  # the mistake
        with pytest.raises(TypeError, match="returned float, expected a Tensor or None"):
            (x * 1).backward()

    def test_tensor_without_gradient_has_no_hooks(self) -> None:
        with pytest.raises(RuntimeError, match="register_hook: this tensor does not require a gradient"):
            Tensor([1.0]).register_hook(lambda g: None)

    def test_retained_gradient_is_the_one_after_the_hooks(self) -> None:
        x = leaf([2.0])
        y = x * x
        y.retain_grad()
        y.register_hook(lambda g: g * 2)
        (y * 3).backward()
        assert gradient_of(y) == [6.0]
        assert gradient_of(x) == [24.0]

    def test_retained_gradient_adds_up_as_a_leafs(self) -> None:
        x = leaf([2.0])
        y = x * x
        y.retain_grad()
        z = y * 3
        z.backward(retain_graph=True)
        z.backward()
        assert gradient_of(y) == [6.0]
        x.retain_grad()  # a leaf has its gradient anyway

    def test_retain_grad_does_not_keep_the_tensor(self) -> None:
        x = leaf([2.0])
        y = x * x
        y.retain_grad()
        z = y * 3
        kept = weakref.ref(y)
        del y
        assert kept() is None
        z.backward()
        assert gradient_of(x) == [12.0]


class TestModes:
    def test_no_grad_decorates(self) -> None:
        @no_grad()
        def called(x: Tensor) -> Tensor:
            return x * 2

        @no_grad
        def bare(x: Tensor, *, depth: int) -> Tensor:
            return bare(x, depth=depth - 1) if depth else x * 2

        assert called(leaf([1.0])).is_leaf
        assert bare(leaf([1.0]), depth=2).is_leaf
        assert bare.__name__ == "bare"
        assert is_grad_enabled()

    def test_enable_grad_within_no_grad(self) -> None:
        @enable_grad
        def double(x: Tensor) -> Tensor:
            return x * 2

        with no_grad():
            with enable_grad():
                assert (leaf([1.0]) * 2).requires_grad
            assert not is_grad_enabled()
            assert double(leaf([1.0])).requires_grad

    def test_set_grad_enabled_at_once_or_for_a_block(self) -> None:
        for mode in (False, True):
            with set_grad_enabled(mode):
                assert is_grad_enabled() is mode
            assert is_grad_enabled()
        set_grad_enabled(False)
        try:
            assert not is_grad_enabled()
            set_grad_enabled(True)
            assert is_grad_enabled()
        finally:
            set_grad_enabled(True)

    def test_set_grad_enabled_decorates(self) -> None:
        @set_grad_enabled(False)
        def double(x: Tensor) -> Tensor:
            return x * 2

        assert is_grad_enabled()
        assert double(leaf([1.0])).is_leaf

    def test_no_grad_can_be_entered_again(self) -> None:
        mode = no_grad()
        with mode:
            with mode:
                assert not is_grad_enabled()
            assert not is_grad_enabled()
        assert is_grad_enabled()

    def test_each_thread_has_its_own_mode(self) -> None:
        seen = []
        with no_grad():
            thread = threading.Thread(target=lambda: seen.append(is_grad_enabled()))
            thread.start()
            thread.join()
        assert seen == [True]
