"""The graph: what backward computes, in which order, what it frees, and what it refuses."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from worker.autodiff import Tensor, backward, is_grad_enabled, no_grad
from worker.autodiff import functional as F
from worker.autodiff.graph import Into, record, unbroadcast


def leaf(value: Any) -> Tensor:
    return Tensor(value, requires_grad=True)


def leaves_in_order(y: Tensor) -> list[Tensor]:
    order: list[Tensor] = []
    backward(y, on_leaf=lambda leaf, _: order.append(leaf))
    return order


def gradient_of(x: Tensor) -> Any:
    assert x.grad is not None
    return x.grad.tolist()


def test_gradient_of_a_tensor_used_twice_is_the_sum() -> None:
    x = leaf([1.0, 2.0])
    (x * x + 3 * x).sum().backward()
    assert gradient_of(x) == [5.0, 7.0]


def test_backward_adds_to_grad() -> None:
    x = leaf([1.0, 2.0])
    (2 * x).sum().backward()
    (3 * x).sum().backward()
    assert gradient_of(x) == [5.0, 5.0]


def test_two_leaves_never_share_a_gradient_array() -> None:
    x, y = leaf([1.0]), leaf([2.0])
    (x + y).sum().backward()
    assert x.grad is not None
    x.grad.data += 1
    assert gradient_of(y) == [1.0]


def test_graph_of_100_000_nodes_needs_no_recursion() -> None:
    x = leaf([1.0])
    y = x
    for _ in range(100_000):
        y = y + 1
    y.backward()
    assert gradient_of(x) == [1.0]


def test_graph_of_100_000_nodes_can_be_dropped_without_backward() -> None:
    y = leaf([1.0])
    for _ in range(100_000):
        y = y + 1
    del y


def test_wide_graph_visits_every_node_once() -> None:
    x = leaf([1.0])
    y = x
    for _ in range(64):  # 2**64 paths
        y = y + y
    y.backward()
    assert gradient_of(x) == [2.0**64]


def test_leaves_come_last_layer_first_and_as_soon_as_they_are_complete() -> None:
    x, w1, w2, w3 = Tensor(np.ones((1, 2))), leaf(np.eye(2)), leaf(np.eye(2)), leaf(np.eye(2))
    y = (F.relu(x @ w1) @ w2 @ w3).sum()
    assert leaves_in_order(y) == [w3, w2, w1]


def test_leaf_shared_by_two_layers_comes_after_its_first_use() -> None:
    x, shared, w = Tensor(np.ones((1, 2))), leaf(np.eye(2)), leaf(np.eye(2))
    assert leaves_in_order((x @ shared @ w @ shared).sum()) == [w, shared]


def test_leaf_comes_before_earlier_layers_are_walked() -> None:
    ran = []

    def traced(x: Tensor, w: Tensor, name: str) -> Tensor:
        def vjp(g: Any) -> Any:
            ran.append(name)
            return g

        return record(name, x.data + w.data, (x, vjp), (w, lambda g: g))

    w1, w2 = leaf([1.0]), leaf([1.0])
    seen = []
    y = traced(traced(leaf([0.0]), w1, "first"), w2, "second")
    backward(y, on_leaf=lambda leaf, _: seen.append((leaf, list(ran))))
    assert (w2, ["second"]) in seen
    assert (w1, ["second", "first"]) in seen


def test_on_leaf_is_told_what_was_added() -> None:
    x = leaf([1.0])
    parts = []
    for _ in range(2):
        backward((x * 3).sum(), on_leaf=lambda _, part: parts.append(part.tolist()))
    assert parts == [[3.0], [3.0]]
    assert gradient_of(x) == [6.0]


def test_backward_of_several_tensors_adds_their_gradients() -> None:
    x = leaf([1.0, 2.0])
    y, z = x * 2, (x * x).sum()
    backward([y, z], [Tensor([1.0, 10.0]), None])
    assert gradient_of(x) == [4.0, 24.0]
    with pytest.raises(ValueError, match="got 1 gradients for 2 outputs"):
        backward([x * 2, x * 2], [Tensor([1.0, 1.0])])


def test_gradients_of_gradients_are_refused() -> None:
    x = leaf([1.0])
    with pytest.raises(NotImplementedError, match="create_graph=True: gradients of gradients are not supported"):
        x.backward(create_graph=True)


def test_vjp_of_an_input_without_gradient_never_runs() -> None:
    def refuse(g: Any) -> Any:
        raise AssertionError("ran")

    x, constant = leaf([1.0]), Tensor([2.0])
    record("product", x.data * 2, (x, lambda g: 2 * g), (constant, refuse), (2.0, refuse)).backward()
    assert gradient_of(x) == [2.0]
    assert constant.grad is None


def test_second_backward_says_that_the_graph_was_freed() -> None:
    x = leaf([1.0])
    y = x.exp()
    y.backward()
    with pytest.raises(RuntimeError, match="the graph behind 'exp' was freed by an earlier backward"):
        y.backward()
    with pytest.raises(RuntimeError, match="the graph behind 'exp' was freed"):
        (y * 2).backward()
    assert gradient_of(x) == [pytest.approx(np.e)]


def test_retained_graph_can_be_walked_again() -> None:
    x = leaf([3.0])
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert gradient_of(x) == [12.0]


def test_backward_frees_what_the_graph_kept() -> None:
    x = leaf([1.0])
    y = F.exp(x * 2)
    kept = weakref.ref(y.data)
    z = y * 3
    del y
    assert kept() is not None, "the vjp of exp needs its value"
    z.backward()
    assert kept() is None


def test_graph_keeps_no_value_that_no_vjp_needs() -> None:
    x = leaf([1.0])
    y = x + 1
    value = weakref.ref(y.data)
    z = y + 1
    del y
    assert value() is None
    z.backward()
    assert gradient_of(x) == [1.0]


def test_no_grad_builds_no_graph() -> None:
    x = leaf([1.0])
    with no_grad():
        assert not is_grad_enabled()
        y = x * 2
    assert is_grad_enabled()
    assert y.is_leaf
    assert not y.requires_grad


def test_no_grad_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert is_grad_enabled()


def test_detach_shares_memory_and_stops_gradients() -> None:
    x = leaf([2.0])
    y = x.detach()
    assert y.data is x.data
    (x * y).backward()
    assert gradient_of(x) == [2.0]


def test_backward_without_any_gradient_to_compute_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no gradient is needed here"):
        Tensor([1.0]).sum().backward()


def test_backward_of_a_table_needs_a_gradient_of_its_shape() -> None:
    x = leaf(np.ones((2, 3)))
    with pytest.raises(RuntimeError, match=r"the output has shape \(2, 3\); reduce it to a scalar"):
        (x * 1).backward()
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\) but the output has shape \(2, 3\)"):
        (x * 1).backward(np.ones(3))
    (x * 2).backward(Tensor(np.full((2, 3), 0.5)))
    assert gradient_of(x) == [[1.0] * 3] * 2


def test_backward_of_a_leaf_is_its_own_gradient() -> None:
    x = leaf(2.0)
    x.backward()
    assert gradient_of(x) == 1.0


def test_gradient_has_the_leafs_dtype() -> None:
    x, y = leaf(np.ones(2, np.float32)), leaf(np.ones(2, np.float64))
    (x * y).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.dtype == np.float32
    assert y.grad.dtype == np.float64


class TestSlot:
    """A leaf with a slot has its gradient written there."""

    def test_matrix_product_writes_straight_into_the_slot(self) -> None:
        outs = []

        def write(g: Any, out: Any) -> Any:
            outs.append(out)
            return np.multiply(g, 3, out=out)

        w = leaf(np.ones(2, np.float32))
        w.slot = np.full(2, 9, np.float32)
        for _ in range(2):
            record("triple", w.data * 3, (w, Into(write))).sum().backward()
        assert outs[0] is w.slot
        assert outs[1] is None, "the slot is taken"
        assert w.grad is not None
        assert w.grad.data is w.slot
        assert w.slot.tolist() == [6.0, 6.0]

    def test_any_other_vjp_is_copied_into_the_slot(self) -> None:
        w = leaf(np.ones(2, np.float32))
        w.slot = np.full(2, 9, np.float32)
        (w * 2 + w).sum().backward()
        assert w.slot.tolist() == [3.0, 3.0]

    def test_used_twice_by_products_the_slot_gets_the_sum(self) -> None:
        x = Tensor(np.ones((1, 2), np.float32))
        w = leaf(np.eye(2, dtype=np.float32))
        F.linear(F.linear(x, w), w).sum().backward()
        expected = gradient_of(w)
        w.grad, w.slot = None, np.full((2, 2), 9, np.float32)
        F.linear(F.linear(x, w), w).sum().backward()
        assert w.slot.tolist() == expected


@given(arrays.arrays(np.float64, st.just((2, 3, 4)), elements=st.floats(-9, 9)), st.data())
def test_unbroadcast_is_the_transpose_of_broadcasting(g: Any, data: st.DataObject) -> None:
    """<g, broadcast(x)> = <unbroadcast(g), x> for every x."""
    kept = data.draw(st.tuples(*(st.booleans() for _ in range(3))))
    shape = tuple(size if keep else 1 for size, keep in zip(g.shape, kept, strict=True))
    shape = shape[data.draw(st.integers(0, 3)) :]
    x = data.draw(arrays.arrays(np.float64, shape, elements=st.floats(-9, 9)))
    reduced = unbroadcast(g, shape)
    assert reduced.shape == shape
    assert np.sum(g * x) == pytest.approx(np.sum(reduced * x), abs=1e-6)


def test_tensor_shows_its_value_and_where_it_came_from() -> None:
    x = leaf([1.0, 2.5])
    assert repr(x) == "tensor([1. , 2.5], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 5.], made_by=mul)"
    assert repr(Tensor(np.float64(1))) == "tensor(1., dtype=float64)"
    assert repr(Tensor([1, 2])) == "tensor([1, 2])"


class TestTensor:
    def test_python_numbers_become_float32_and_int64(self) -> None:
        assert Tensor(1.0).dtype == Tensor([[1.0]]).dtype == np.float32
        assert Tensor([1, 2]).dtype == np.int64
        assert Tensor(np.float64(1)).dtype == Tensor(np.ones(1)).dtype == np.float64

    def test_array_is_shared_not_copied(self) -> None:
        a = np.ones(2)
        assert Tensor(a).data is a
        assert Tensor(a).numpy() is a

    def test_numpy_of_a_tensor_in_a_graph_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match=r"use tensor\.detach"):
            leaf(1.0).numpy()

    def test_item_wants_one_element(self) -> None:
        assert Tensor([[2.5]]).item() == 2.5
        assert float(Tensor(2.5)) == 2.5
        assert int(Tensor(2)) == 2
        with pytest.raises(ValueError, match="the tensor has 2 elements, expected 1"):
            Tensor([1.0, 2.0]).item()

    def test_integers_have_no_gradient(self) -> None:
        with pytest.raises(ValueError, match="only floating-point tensors have gradients, got int64"):
            Tensor([1], requires_grad=True)

    def test_result_of_an_operation_cannot_be_frozen(self) -> None:
        with pytest.raises(ValueError, match="use detach"):
            (leaf(1.0) * 2).requires_grad_(False)

    @pytest.mark.parametrize("value", ["text", [object()], Tensor(1.0)])
    def test_only_numbers_are_taken(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^Tensor: got"):
            Tensor(value)

    def test_tensors_are_keys_by_identity(self) -> None:
        x, y = Tensor([1.0]), Tensor([1.0])
        assert {x: "x", y: "y"}[y] == "y"


@pytest.mark.parametrize("hooked", [0, 1])
def test_a_hook_that_changes_its_tensor_spoils_no_other_gradient_of_the_operation(hooked: int) -> None:
    pair = [Tensor(np.array([2.0, 3.0]), requires_grad=True), Tensor(np.array([5.0, 7.0]), requires_grad=True)]

    def change(_: Tensor) -> None:
        with no_grad():
            pair[hooked].mul_(100)

    pair[hooked].register_hook(change)
    (pair[0] * pair[1]).sum().backward()
    assert [x.grad.tolist() for x in pair if x.grad is not None] == [[5.0, 7.0], [2.0, 3.0]]
