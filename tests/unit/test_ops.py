"""Every operation, one row each: value and gradients against PyTorch in float32, gradients against finite differences.

A row is run on several cases: sets of input shapes and memory layouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from worker.autodiff import Tensor, gradcheck
from worker.autodiff import functional as F
from worker.nn import init

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Op:
    """An operation on `cases` of inputs, each a tuple of shapes; `like` names the same in torch (F. and operators)."""

    name: str
    ours: Callable[..., Tensor]
    like: Callable[..., Any]  # of torch and its tensors
    cases: tuple[tuple[tuple[int, ...], ...], ...]
    positive: bool = False
    tolerance: float = 2e-6


UNARY = (((),), ((0,),), ((3, 0),), ((7,),), ((4, 5),), ((2, 3, 4),))
BROADCAST = (
    ((), ()),
    ((4, 5), ()),
    ((), (4, 5)),
    ((4, 5), (5,)),
    ((4, 1), (1, 5)),
    ((2, 1, 3), (4, 1)),
    ((0, 3), (3,)),
)
TABLE = (((4, 5),), ((2, 3, 4),))

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
    Op("abs", F.abs, lambda t, x: x.abs(), UNARY),
    *(
        Op(f"pow {e}", lambda x, e=e: x**e, lambda t, x, e=e: x**e, UNARY, positive=True)
        for e in (-2, 0, 0.5, 1, 1.5, 2, 3)
    ),
    Op("maximum", F.maximum, lambda t, x, y: t.maximum(x, y), BROADCAST),
    Op("maximum of equals", lambda x: F.maximum(x, x.detach()), lambda t, x: t.maximum(x, x.detach()), UNARY),
    Op("minimum", F.minimum, lambda t, x, y: t.minimum(x, y), BROADCAST),
    Op("exp", F.exp, lambda t, x: x.exp(), UNARY),
    Op("log", F.log, lambda t, x: x.log(), UNARY, positive=True),
    Op("sqrt", F.sqrt, lambda t, x: x.sqrt(), UNARY, positive=True),
    Op("tanh", F.tanh, lambda t, x: x.tanh(), UNARY),
    Op("sigmoid", F.sigmoid, lambda t, x: x.sigmoid(), UNARY),
    Op("relu", F.relu, lambda t, x: x.relu(), UNARY),
    Op("gelu", F.gelu, lambda t, x: t.nn.functional.gelu(x), UNARY),
    Op("gelu tanh", lambda x: F.gelu(x, "tanh"), lambda t, x: t.nn.functional.gelu(x, approximate="tanh"), UNARY),
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
    Op("softmax", lambda x: F.softmax(x, -1), lambda t, x: x.softmax(-1), UNARY),
    Op("softmax 0", lambda x: F.softmax(x, 0), lambda t, x: x.softmax(0), TABLE),
    Op("log_softmax", lambda x: F.log_softmax(x, -1), lambda t, x: x.log_softmax(-1), UNARY),
    *(
        Op(
            f"mse_loss {r}",
            lambda x, y, r=r: F.mse_loss(x, y, reduction=r),
            lambda t, x, y, r=r: t.nn.functional.mse_loss(x, y, reduction=r),
            tuple((case[0], case[0]) for case in UNARY),
        )
        for r in ("mean", "sum", "none")
    ),
    *(
        Op(
            f"cross_entropy {r}",
            lambda x, r=r: F.cross_entropy(x, Tensor(classes(x.shape)), reduction=r, ignore_index=1),
            lambda t, x, r=r: t.nn.functional.cross_entropy(
                x, t.tensor(classes(tuple(x.shape))), reduction=r, ignore_index=1
            ),
            (((3,),), ((6, 3),), ((0, 3),), ((2, 3, 4),), ((2, 3, 2, 2),)),
        )
        for r in ("mean", "sum", "none")
    ),
]
CASES = [pytest.param(op, case, id=f"{op.name} {case}") for op in OPS for case in op.cases]


def classes(shape: tuple[int, ...]) -> Array:
    """Class indices for logits of this shape."""
    targets = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    return np.asarray((np.arange(np.prod(targets, dtype=int)) * 5 + 2) % shape[min(1, len(shape) - 1)]).reshape(targets)


def values(op: Op, case: tuple[tuple[int, ...], ...]) -> list[Array]:
    rng = init.generator(7, *map(ord, op.name))
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in case]
    return [np.abs(a) + 0.5 for a in arrays] if op.positive else arrays


def contiguous(a: Array) -> Array:
    return a.copy()


def transposed(a: Array) -> Array:
    return np.asfortranarray(a)


def every_second(a: Array) -> Array:
    return np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a.copy()


def backwards(a: Array) -> Array:
    return a[::-1].copy()[::-1] if a.ndim else a.copy()


@pytest.mark.torch
@pytest.mark.parametrize("layout", [contiguous, transposed, every_second, backwards])
@pytest.mark.parametrize(("op", "case"), CASES)
def test_value_and_gradients_are_pytorchs(
    op: Op, case: tuple[tuple[int, ...], ...], layout: Callable[[Array], Array]
) -> None:
    torch = pytest.importorskip("torch")
    arrays = [layout(a.astype(np.float32)) for a in values(op, case)]
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a.copy(), requires_grad=True) for a in arrays]
    y, expected = op.ours(*ours), op.like(torch, *theirs)
    assert y.dtype == np.float32
    assert y.shape == tuple(expected.shape)
    close(y.data, expected.detach().numpy(), op)

    gradient = np.asarray(init.generator(8).standard_normal(y.shape), np.float32)
    y.backward(gradient)
    expected.backward(torch.tensor(gradient))
    for x, t in zip(ours, theirs, strict=True):
        assert x.grad is not None
        assert x.grad.dtype == np.float32
        close(x.grad.data, t.grad.numpy(), op)
    for a, before in zip(arrays, values(op, case), strict=True):
        np.testing.assert_array_equal(a, before.astype(np.float32), "an operation has changed its input")


def close(got: Array, expected: Array, op: Op) -> None:
    np.testing.assert_allclose(got, expected, rtol=op.tolerance, atol=op.tolerance)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_gradients_are_those_of_finite_differences(op: Op, case: tuple[tuple[int, ...], ...]) -> None:
    if op.name in {"abs", "relu", "maximum of equals"}:
        pytest.skip("has a kink that finite differences may straddle")
    inputs = [Tensor(a, requires_grad=True) for a in values(op, case)]
    y = op.ours(*inputs)
    assert y.dtype == np.float64
    assert gradcheck(op.ours, inputs)


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
        (lambda: Tensor(np.zeros((2, 3))).sum((0, -2)), "sum: dim (0, -2) names a dimension twice"),
        (lambda: Tensor([1, 2]).mean(), "mean: expected a floating-point tensor, got int64"),
        (lambda: Tensor(np.zeros((2, 3))).permute(0, 0), "permute: got dims (0, 0), expected each of the 2"),
        (lambda: F.gelu(Tensor(1.0), "erf"), "gelu: approximate is 'erf', expected 'none' or 'tanh'"),  # type: ignore[arg-type]
        (
            lambda: F.mse_loss(Tensor(np.zeros((4, 1))), Tensor(np.zeros(4))),
            "mse_loss: input has shape (4, 1) but target has (4,)",
        ),
        (
            lambda: F.cross_entropy(Tensor(np.zeros((2, 3), np.float32)), Tensor([0, 3])),
            "cross_entropy: the target of row 1 is 3, expected 0..2",
        ),
        (
            lambda: F.cross_entropy(Tensor(np.zeros((2, 3))), Tensor([-1, 0])),
            "cross_entropy: the target of row 0 is -1, expected 0..2",
        ),
        (
            lambda: F.cross_entropy(Tensor(np.zeros((2, 3))), Tensor([0.0, 1.0])),
            "cross_entropy: target is float32, expected integers",
        ),
        (
            lambda: F.cross_entropy(Tensor(np.zeros((2, 3))), Tensor([0, 1, 2])),
            "cross_entropy: input has shape (2, 3) but target has (3,), expected (2,)",
        ),
        (
            lambda: F.mse_loss(Tensor(1.0), Tensor(1.0), reduction="max"),  # type: ignore[arg-type]
            "mse_loss: reduction is 'max', expected one of mean, sum, none",
        ),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation()


def test_an_array_is_no_operand() -> None:
    x = Tensor([1.0])
    with pytest.raises(TypeError, match="expected a Tensor or a number, got ndarray"):
        x * np.ones(1)  # type: ignore[operator]
    with pytest.raises(TypeError, match="expected a Tensor or a number, got ndarray"):
        np.ones(1) * x  # type: ignore[operator]


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


def test_softmax_of_no_classes_is_nothing() -> None:
    assert F.softmax(Tensor(np.zeros((2, 0))), 1).shape == (2, 0)
