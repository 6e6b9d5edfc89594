"""Softmax in its forms, one_hot, dropout, and what is measured along a dimension."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.operations import (
    TABLE,
    UNARY,
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor, philox
from worker.autodiff import functional as F
from worker.nn import init

NORMS = (0.5, 1, 1.5, 2, 3, math.inf)

OPS = [
    *(
        Op(
            f"{name} {dim}",
            lambda x, name=name, dim=dim: getattr(F, name)(x, dim),
            lambda t, x, name=name, dim=dim: getattr(t.nn.functional, name)(x, dim),
            cases,
        )
        for name in ("softmax", "log_softmax", "softmin")
        for dim, cases in ((-1, UNARY), (0, UNARY), (1, (((4, 5),), ((2, 3, 4),), ((2, 3, 2, 2),))))
    ),
    *(
        Op(
            f"normalize {p} {dim}",
            lambda x, p=p, dim=dim: F.normalize(x, p, dim),
            lambda t, x, p=p, dim=dim: t.nn.functional.normalize(x, p, dim),
            cases,
            tolerance=5e-6,
        )
        for p in NORMS
        for dim, cases in ((1, TABLE), (0, UNARY[3:]), ((0, -1), TABLE))
    ),
    Op(
        "normalize something short",
        lambda x: F.normalize(x, eps=10),
        lambda t, x: t.nn.functional.normalize(x, eps=10),
        TABLE,
    ),
    *(
        Op(
            f"cosine_similarity {dim} {eps}",
            lambda x, y, dim=dim, eps=eps: F.cosine_similarity(x, y, dim, eps),
            lambda t, x, y, dim=dim, eps=eps: t.nn.functional.cosine_similarity(x, y, dim, eps),
            cases,
            has_kink=eps == 2,  # below eps PyTorch's gradient is no derivative
        )
        for eps in (1e-8, 2.0)
        for dim, cases in (
            (1, (((4, 5), (4, 5)), ((2, 3, 4), (3, 4)), ((0, 3), (1, 3)))),
            (-1, (((5,), (5,)), ((4, 5), (5,)), ((2, 3, 4), (2, 1, 4)))),
        )
    ),
    *(
        Op(
            f"pairwise_distance {p}",
            lambda x, y, p=p: F.pairwise_distance(x, y, p),
            lambda t, x, y, p=p: t.nn.functional.pairwise_distance(x, y, p),
            (((5,), (5,)), ((4, 5), (4, 5)), ((4, 5), (5,)), ((2, 3, 4), (2, 1, 4)), ((0, 3), (0, 3))),
            tolerance=1e-5,
        )
        for p in NORMS
    ),
    Op(
        "pairwise_distance keepdim",
        lambda x, y: F.pairwise_distance(x, y, keepdim=True),
        lambda t, x, y: t.nn.functional.pairwise_distance(x, y, keepdim=True),
        (((4, 5), (4, 5)),),
    ),
]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of([op for op in OPS if not op.has_kink])
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


@pytest.mark.torch
@pytest.mark.parametrize("p", NORMS)
def test_zeros_have_pytorchs_gradients(p: float) -> None:
    torch = pytest.importorskip("torch")
    arrays = [np.zeros((2, 3), np.float32), np.array([[0, 0, 0], [1, 0, -2]], np.float32)]
    for name in ("cosine_similarity", "pairwise_distance", "normalize"):
        ours = [Tensor(a, requires_grad=True) for a in arrays]
        theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
        named = {"cosine_similarity": {}, "pairwise_distance": {"p": p, "eps": 0.0}, "normalize": {"p": p}}[name]
        count = 1 if name == "normalize" else 2
        y = getattr(F, name)(*ours[-count:], **named)
        expected = getattr(torch.nn.functional, name)(*theirs[-count:], **named)
        (y * 3).sum().backward()
        (expected * 3).sum().backward()
        np.testing.assert_allclose(y.data, expected.detach().numpy(), rtol=1e-6)
        for x, t in zip(ours[-count:], theirs[-count:], strict=True):
            assert x.grad is not None
            np.testing.assert_allclose(x.grad.data, t.grad.numpy(), rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("shape", "num_classes"), [((), 3), ((4,), -1), ((2, 3), 7), ((0,), 3), ((0, 2), 1)])
def test_one_hot_is_pytorchs(shape: tuple[int, ...], num_classes: int) -> None:
    torch = pytest.importorskip("torch")
    classes = np.asarray(np.arange(np.prod(shape, dtype=int)) % 3).reshape(shape)
    got = F.one_hot(Tensor(classes), num_classes)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got.data, torch.nn.functional.one_hot(torch.tensor(classes), num_classes).numpy())


class TestDropout:
    x = init.generator(1).standard_normal((100, 300)).astype(np.float32)

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    def test_rate_is_within_five_deviations(self, p: float) -> None:
        philox.seed(1)
        kept = np.count_nonzero(F.dropout(Tensor(self.x), p).data) / self.x.size
        assert abs(kept - (1 - p)) < 5 * math.sqrt(p * (1 - p) / self.x.size)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_what_is_kept_is_scaled_and_the_gradient_has_the_same_mask(self, dtype: type) -> None:
        philox.seed(2)
        x = Tensor(self.x.astype(dtype), requires_grad=True)
        y = F.dropout(x, 0.2)
        mask = y.data != 0
        np.testing.assert_allclose(y.data[mask], x.data[mask] / 0.8, rtol=1e-6)
        y.sum().backward()
        assert x.grad is not None
        assert y.dtype == x.grad.dtype == dtype
        np.testing.assert_allclose(x.grad.data, mask / 0.8, rtol=1e-6)

    def test_same_key_same_mask_and_another_at_the_next_site(self) -> None:
        masks = []
        for key in ((5, 1), (5, 1), (5, 2)):
            philox.seed(*key)
            masks += [F.dropout(Tensor(self.x)).data != 0, F.dropout(Tensor(self.x)).data != 0]
        np.testing.assert_array_equal(masks[0], masks[2])
        np.testing.assert_array_equal(masks[1], masks[3])
        assert all(0.4 < np.mean(masks[0] == other) < 0.6 for other in (masks[1], masks[4]))

    def test_layout_of_the_input_does_not_change_the_mask(self) -> None:
        philox.seed(3)
        expected = F.dropout(Tensor(self.x))
        philox.seed(3)
        np.testing.assert_array_equal(F.dropout(Tensor(np.asfortranarray(self.x))).data, expected.data)

    def test_all_or_nothing(self) -> None:
        x = Tensor(np.full((3, 4), np.inf, np.float32), requires_grad=True)
        y = F.dropout(x, 1.0)
        y.sum().backward()
        assert x.grad is not None
        assert not y.data.any()
        assert not x.grad.data.any()
        assert F.dropout(x, 0.0) is x
        assert F.dropout(x, 0.5, training=False) is x

    def test_shapes_without_elements_and_dimensions(self) -> None:
        for shape in ((), (0,), (3, 0), (1,)):
            assert F.dropout(Tensor(np.ones(shape, np.float32))).shape == shape


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: F.softmax(x, 2), "softmax: dim is 2 but x has 2 dimensions"),
        (lambda x: F.softmin(x, -3), "softmin: dim is -3 but x has 2 dimensions"),
        (lambda x: F.log_softmax(Tensor([1, 2]), 0), "log_softmax: expected a floating-point tensor, got int64"),
        (F.one_hot, "one_hot: x is float32, expected integers"),
        (lambda x: F.one_hot(Tensor([0, 3]), 3), "one_hot: got classes 0..3, expected 0..2"),
        (lambda x: F.one_hot(Tensor(np.zeros(0, int))), "one_hot: x is empty; give num_classes"),
        (lambda x: F.dropout(x, 1.5), "dropout: p is 1.5, expected 0..1"),
        (lambda x: F.normalize(x, dim=2), "normalize: dim is 2 but the input has 2 dimensions"),
        (lambda x: F.cosine_similarity(x, x, 2), "cosine_similarity: dim is 2 but the input has 2 dimensions"),
        (lambda x: F.pairwise_distance(x.sum(), x.sum()), "pairwise_distance: dim is -1 but the input has 0"),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation(Tensor(np.zeros((2, 3), np.float32)))


def test_softmax_of_no_classes_is_nothing() -> None:
    assert F.softmax(Tensor(np.zeros((2, 0))), 1).shape == (2, 0)
