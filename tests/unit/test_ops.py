"""The operations of an MLP, one row each."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.operations import (
    BROADCAST,
    TABLE,
    UNARY,
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor
from worker.autodiff import functional as F

OPS = [
    Op("add", F.add, lambda t, x, y: x + y, BROADCAST),
    Op("add number", lambda x: 2 + x + 3.5, lambda t, x: 2 + x + 3.5, UNARY),
    Op("sub", F.sub, lambda t, x, y: x - y, BROADCAST),
    Op("sub number", lambda x: 1 - (x - 2), lambda t, x: 1 - (x - 2), UNARY),
    Op("mul", F.mul, lambda t, x, y: x * y, BROADCAST),
    Op("mul number", lambda x: 3 * x * 0.5, lambda t, x: 3 * x * 0.5, UNARY),
    Op("div", F.div, lambda t, x, y: x / y, BROADCAST, positive=True),
    Op("div number", lambda x: 2 / x / 3, lambda t, x: 2 / x / 3, UNARY, positive=True),
    Op("neg", F.neg, lambda t, x: -x, UNARY),
    Op("abs", F.abs, lambda t, x: x.abs(), UNARY, has_kink=True),
    *(
        Op(f"pow {e}", lambda x, e=e: x**e, lambda t, x, e=e: x**e, UNARY, positive=True)
        for e in (-2, 0, 0.5, 1, 1.5, 2, 3)
    ),
    Op("maximum", F.maximum, lambda t, x, y: t.maximum(x, y), BROADCAST),
    Op(
        "maximum of equals",
        lambda x: F.maximum(x, x.detach()),
        lambda t, x: t.maximum(x, x.detach()),
        UNARY,
        has_kink=True,
    ),
    Op("minimum", F.minimum, lambda t, x, y: t.minimum(x, y), BROADCAST),
    Op("exp", F.exp, lambda t, x: x.exp(), UNARY),
    Op("log", F.log, lambda t, x: x.log(), UNARY, positive=True),
    Op("sqrt", F.sqrt, lambda t, x: x.sqrt(), UNARY, positive=True),
    Op("sum", F.sum, lambda t, x: x.sum(), UNARY),
    Op("sum 0", lambda x: x.sum(0), lambda t, x: x.sum(0), UNARY),
    Op("sum -1 keepdim", lambda x: x.sum(-1, keepdim=True), lambda t, x: x.sum(-1, keepdim=True), UNARY),
    Op("sum (0, -1)", lambda x: x.sum((0, -1)), lambda t, x: x.sum((0, -1)), TABLE),
    Op("mean", F.mean, lambda t, x: x.mean(), UNARY),
    Op("mean 0", lambda x: x.mean(0), lambda t, x: x.mean(0), UNARY),
    Op("mean (0, 1) keepdim", lambda x: x.mean((0, 1), True), lambda t, x: x.mean((0, 1), True), TABLE),
    Op("logsumexp", lambda x: F.logsumexp(x, -1), lambda t, x: x.logsumexp(-1), UNARY[3:]),
    Op("logsumexp (0, 1)", lambda x: F.logsumexp(x, (0, 1), True), lambda t, x: x.logsumexp((0, 1), True), TABLE),
    Op("reshape", lambda x: x.reshape(-1), lambda t, x: x.reshape(-1), UNARY),
    Op("reshape 2, -1", lambda x: x.reshape((2, -1)), lambda t, x: x.reshape(2, -1), TABLE),
    Op("flatten", F.flatten, lambda t, x: x.flatten(), UNARY),
    Op("flatten 1", lambda x: x.flatten(1), lambda t, x: x.flatten(1), TABLE),
    Op("transpose", lambda x: x.transpose(0, -1), lambda t, x: x.transpose(0, -1), UNARY),
    Op("permute", lambda x: x.permute(2, 0, 1), lambda t, x: x.permute(2, 0, 1), (((2, 3, 4),),)),
    Op("T", lambda x: x.T, lambda t, x: x.T, (((4, 5),), ((3, 0),))),
    Op("[1]", lambda x: x[1], lambda t, x: x[1], TABLE),
    Op("[1:, -2]", lambda x: x[1:, -2], lambda t, x: x[1:, -2], TABLE),
    Op("[..., None, ::2]", lambda x: x[..., None, ::2], lambda t, x: x[..., None, ::2], TABLE),
    Op("[[1, 0, 1]]", lambda x: x[[1, 0, 1]], lambda t, x: x[[1, 0, 1]], TABLE),
    Op(
        "[indices, tensor]",
        lambda x: x[np.array([1, 0, 1]), Tensor([2, 1, 2])],
        lambda t, x: x[t.tensor([1, 0, 1]), t.tensor([2, 1, 2])],
        TABLE,
    ),
    Op("[mask]", lambda x: x[Tensor([True, False])], lambda t, x: x[t.tensor([True, False])], (((2, 3),),)),
    Op(
        "matmul",
        F.matmul,
        lambda t, x, w: x @ w,
        (
            ((5,), (5,)),
            ((4, 5), (5,)),
            ((5,), (5, 3)),
            ((4, 5), (5, 3)),
            ((2, 4, 5), (5, 3)),
            ((2, 4, 5), (5,)),
            ((5,), (2, 5, 3)),
            ((4, 5), (2, 5, 3)),
            ((2, 4, 5), (2, 5, 3)),
            ((2, 1, 4, 5), (3, 5, 6)),
            ((0, 5), (5, 3)),
            ((4, 0), (0, 3)),
        ),
    ),
    Op(
        "linear",
        F.linear,
        lambda t, x, w, b: t.nn.functional.linear(x, w, b),
        (
            ((5,), (3, 5), (3,)),
            ((4, 5), (3, 5), (3,)),
            ((2, 4, 5), (3, 5), (3,)),
            ((0, 5), (3, 5), (3,)),
            ((4, 5), (1, 5), (1,)),
        ),
    ),
    Op("linear without bias", F.linear, lambda t, x, w: t.nn.functional.linear(x, w), (((4, 5), (3, 5)),)),
]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of([op for op in OPS if not op.has_kink])
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: Tensor(np.zeros((2, 5))) @ Tensor(np.zeros((7, 3))), "matmul: x has 5 columns but w has 7 rows"),
        (lambda: Tensor(1.0) @ Tensor(np.zeros(3)), "matmul: x has shape () and w (3,), expected at least one"),
        (
            lambda: F.linear(Tensor(np.zeros((2, 5))), Tensor(np.zeros((3, 4)))),
            "linear: x has shape (2, 5) but weight takes 4 features",
        ),
        (
            lambda: F.linear(Tensor(np.zeros((2, 4))), Tensor(np.zeros((3, 4))), Tensor(np.zeros(4))),
            "linear: bias has shape (4,), expected (3,)",
        ),
        (
            lambda: Tensor(np.zeros(6)).reshape(4, -1),
            "reshape: x has shape (6,) (6 elements), which does not fit (4, -1)",
        ),
        (lambda: Tensor(np.zeros((2, 3))).sum(2), "sum: dim is 2 but x has 2 dimensions"),
        (lambda: Tensor(np.zeros((2, 3))).sum((0, -2)), "sum: dims (0, -2) name a dimension twice"),
        (lambda: Tensor([1, 2]).mean(), "mean: expected a floating-point tensor, got int64"),
        (lambda: Tensor(np.zeros((2, 3))).permute(0, 0), "permute: got dims (0, 0), expected each of the 2"),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation()


def test_an_array_is_no_operand() -> None:
    x = Tensor([1.0])
    with pytest.raises(TypeError, match="expected a Tensor or a number, got ndarray"):
        x * np.ones(1)
    with pytest.raises(TypeError, match="expected a Tensor or a number, got ndarray"):
        np.ones(1) * x


def test_numpys_float64_number_does_not_make_a_tensor_float64() -> None:
    assert (Tensor([1.0]) * np.float64(2)).dtype == np.float32


def test_comparisons_and_argmax() -> None:
    x = Tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 5.0]])
    assert x.argmax(1).tolist() == [1, 0]
    assert x.argmax().item() == 3
    assert (x > 2).tolist() == [[False, True, False], [True, True, True]]
    assert (x[0] == Tensor([1.0, 2.0, 2.0])).sum().item() == 2
    assert (x.argmax(1) != Tensor([1, 1])).tolist() == [False, True]


def test_infinity_and_nan_flow_without_a_warning() -> None:
    x = Tensor([0.0, -1.0, np.inf, np.nan], requires_grad=True)
    y = x.log().sum() + (1 / x).sum() + x.sqrt().sum() + (x * 1e38).exp().sum() + F.softmax(x, 0).sum()
    y.backward()
    assert np.isnan(y.item())
