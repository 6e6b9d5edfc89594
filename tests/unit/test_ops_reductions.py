"""Reductions, one row each, then their special values, dtypes and errors."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.operations import (
    TABLE,
    UNARY,
    Array,
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor, gradcheck
from worker.autodiff import functional as F
from worker.autodiff.extrema import ValuesAndIndices
from worker.nn import init

INF, NAN = math.inf, math.nan
FULL = (UNARY[0], *UNARY[3:])  # with at least one element
SEVERAL = UNARY[3:]  # with more than one


def method(cases: Any, name: str, *arguments: Any, **keywords: Any) -> Op:
    """A row for x.name(*arguments, **keywords), which is the same in both libraries."""
    has_kink = keywords.pop("has_kink", False)
    positive = keywords.pop("positive", False)
    return Op(
        f"x.{name}{arguments}{keywords or ''}",
        lambda x: getattr(x, name)(*arguments, **keywords),
        lambda t, x: getattr(x, name)(*arguments, **keywords),
        cases,
        has_kink=has_kink,
        positive=positive,
        tolerance=4e-6,
    )


OPS = [
    *(method(UNARY, name) for name in ("sum", "mean")),
    *(method(UNARY, name, 0) for name in ("sum", "mean", "cumsum", "cumprod", "prod")),
    *(method(UNARY, name, -1, keepdim=True) for name in ("sum", "mean", "prod")),
    *(method(TABLE, name, (0, -1)) for name in ("sum", "mean", "var", "std", "logsumexp", "amax", "amin")),
    *(method(TABLE, name, [1, 0], keepdim=True) for name in ("sum", "mean", "var", "std", "logsumexp", "amax", "amin")),
    *(method(TABLE, name, ()) for name in ("sum", "mean", "amax")),
    *(method(FULL, name) for name in ("amax", "amin", "max", "min", "norm")),
    *(method(SEVERAL, name) for name in ("var", "std")),
    *(method(SEVERAL, name, -1, correction=c) for name in ("var", "std") for c in (0, 1, 1.5)),
    *(method(FULL, name, -1, keepdim=True) for name in ("amax", "amin", "logsumexp")),
    method(UNARY, "prod"),
    method(UNARY, "cumsum", -1),
    method(UNARY, "cumprod", -1),
    method((((3, 0),),), "logsumexp", 1),
    *(method(FULL, "norm", p, has_kink=p == -INF) for p in (1, 1.5, 2, 3, INF, -INF)),
    *(method(TABLE, "norm", p, 1, True, positive=p == 0.5) for p in ("fro", 0.5, 1, 3, INF)),
    method(TABLE, "norm", 2, (0, 1)),
    method(TABLE, "norm", 3, dim=(1, 0), keepdim=True),
    method(UNARY, "norm", 2),
    method(TABLE, "norm", dim=-1),
    *(
        Op(
            f"{name}({dim}, {keepdim}).values",
            lambda x, name=name, dim=dim, keepdim=keepdim: getattr(x, name)(dim, keepdim).values,
            lambda t, x, name=name, dim=dim, keepdim=keepdim: getattr(t, name)(x, dim, keepdim).values,
            FULL,
        )
        for name in ("max", "min")
        for dim in (0, -1)
        for keepdim in (False, True)
    ),
]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of([op for op in OPS if not op.has_kink])
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


# Kinks and special values.

ROWS: list[list[float]] = [
    [0.0, 0.0, 0.0],
    [2.0, 0.0, 3.0],
    [0.0, -0.0, 3.0],
    [0.0, 5.0, 0.0],
    [1.0, 1.0, -1.0],
    [3.0, 3.0, 3.0],
    [-2.0, 1e15, -1e15],
    [INF, 1.0, 2.0],
    [-INF, 1.0, 0.0],
    [-INF, -INF, -INF],
    [INF, INF, 1.0],
    [INF, -INF, 1.0],
    [NAN, 1.0, 0.0],
    [1.0, NAN, NAN],
    [NAN, INF, -INF],
]
SPECIAL: list[tuple[str, Callable[..., Any]]] = [
    *((name, lambda x, name=name: getattr(x, name)()) for name in ("sum", "mean", "var", "std", "max", "min")),
    *((f"{name}(0)", lambda x, name=name: getattr(x, name)(0)) for name in ("amax", "amin", "logsumexp")),
    *((f"{name}(0).values", lambda x, name=name: getattr(x, name)(0).values) for name in ("max", "min")),
    *((f"norm({p})", lambda x, p=p: x.norm(p)) for p in (0.5, 1, 1.5, 2, 3, INF, -INF)),
    ("cumsum(0)", lambda x: x.cumsum(0)),
]
# Of infinite elements PyTorch's gradients of these are NaN, or not, by which of its formulas it takes.
SPECIAL_IF_FINITE: list[tuple[str, Callable[..., Any]]] = [
    ("prod", lambda x: x.prod()),
    ("cumprod(0)", lambda x: x.cumprod(0)),
    ("var correction 3", lambda x: x.var(correction=3)),
    ("std correction 4", lambda x: x.std(correction=4)),
]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("function", "rows"),
    [
        *(pytest.param(function, ROWS, id=name) for name, function in SPECIAL),
        *(pytest.param(f, [row for row in ROWS if np.isfinite(row).all()], id=name) for name, f in SPECIAL_IF_FINITE),
    ],
)
def test_special_values_are_pytorchs(function: Callable[..., Any], rows: list[list[float]]) -> None:
    torch = pytest.importorskip("torch")
    wrong = []
    for row in rows:
        x, t = Tensor(row, requires_grad=True), torch.tensor(row, requires_grad=True)
        with warnings.catch_warnings(action="ignore"):  # PyTorch warns of few degrees of freedom
            y, expected = function(x), function(t)
        y.backward(np.ones(y.shape))
        expected.backward(torch.ones_like(expected))
        assert x.grad is not None
        for got, right in ((y.data, expected.detach().numpy()), (x.grad.data, t.grad.numpy())):
            if not np.allclose(got, right, 4e-6, 1e-7, equal_nan=True):
                wrong.append((row, got.tolist(), right.tolist()))
    assert not wrong, f"inputs, what we gave, and what PyTorch gave: {wrong}"


@pytest.mark.torch
def test_indices_of_extrema_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    x, t = Tensor(np.array(ROWS, np.float32)), torch.tensor(ROWS)
    for dim in (0, 1, -1):
        for keepdim in (False, True):
            for name in ("max", "min"):
                got, expected = getattr(x, name)(dim, keepdim=keepdim), getattr(t, name)(dim, keepdim=keepdim)
                np.testing.assert_array_equal(got.indices.data, expected.indices.numpy())
            for name in ("argmax", "argmin"):
                got, expected = getattr(x, name)(dim, keepdim=keepdim), getattr(t, name)(dim, keepdim=keepdim)
                np.testing.assert_array_equal(got.data, expected.numpy())
    assert F.argmax(x).item() == torch.argmax(t).item()
    assert F.argmin(x, keepdim=True).tolist() == torch.argmin(t, keepdim=True).tolist()


def test_max_along_a_dimension_unpacks() -> None:
    x = Tensor([[1.0, 3.0, 3.0], [5.0, 4.0, 5.0]])
    values, indices = F.max(x, 1)
    assert values.tolist() == [3, 5]
    assert indices.tolist() == [1, 0]
    assert indices.dtype == np.int64
    assert isinstance(F.min(Tensor(2.0), 0), ValuesAndIndices)


def test_the_norm_of_order_0_counts_and_has_no_slope() -> None:
    x = Tensor([[3.0, 0.0], [0.0, 0.0]], requires_grad=True)
    y = x.norm(0, dim=1)
    y.backward(np.ones(2))
    assert y.tolist() == [1, 0]
    assert x.grad is not None
    assert not x.grad.data.any()


@pytest.mark.parametrize("dim", [None, 0, 1, -1, (0, 2), (2, 1)])
def test_products_of_zeros_have_the_gradients_of_finite_differences(dim: Any) -> None:
    a = init.generator(3).standard_normal((3, 4, 2))
    a[0, 1], a[:, 2, 0] = 0, 0
    for layout in (a, a.transpose(1, 0, 2), a[::-1, ::2]):
        x = Tensor(layout, requires_grad=True)
        assert gradcheck(lambda x: F.prod(x, dim), [x])
        if isinstance(dim, int):
            assert gradcheck(lambda x: F.cumprod(x, dim), [x])


# Dtypes.


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float32", "float64"])
def test_dtypes_are_pytorchs(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    a = np.array([[1, 0, 2], [1, 1, 3]], dtype)
    x, t = Tensor(a), torch.tensor(a)
    rows: list[Callable[..., Any]] = [
        *(lambda x, name=name: getattr(x, name)() for name in ("sum", "prod", "amax", "max", "all", "any")),
        *(lambda x, name=name: getattr(x, name)(1) for name in ("sum", "prod", "cumsum", "cumprod", "all", "any")),
        lambda x: x.max(1).values,
        lambda x: x.logsumexp(1),
    ]
    for function in rows:
        got, expected = function(x), function(t).numpy()
        # PyTorch's any and all keep uint8, for code from before it had booleans.
        if not (dtype == "uint8" and expected.dtype == np.uint8 and got.dtype == np.bool_):
            assert got.dtype == expected.dtype
        np.testing.assert_allclose(got.data, expected, 1e-6)


def test_dtype_says_in_what_a_total_is_taken() -> None:
    x = Tensor([1, 2, 3])
    assert F.mean(x, dtype=np.float32).item() == 2
    for function in (F.sum, F.prod):
        assert function(x, dtype=np.float64).dtype == np.float64
    y = Tensor([1.0, 2.0], requires_grad=True)
    F.cumsum(y, 0, dtype=np.float64).sum().backward()
    assert y.grad is not None
    assert y.grad.dtype == np.float32


# Laws.

SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
REDUCTIONS = ["sum", "mean", "var", "prod", "logsumexp", "norm", "amax", "cumsum", "cumprod"]


@settings(max_examples=30, deadline=None)
@given(shape=SIZES, seed=st.integers(0, 2**32 - 1), name=st.sampled_from(REDUCTIONS), s=st.floats(-4, 4))
def test_vjp_is_linear_in_the_gradient(shape: tuple[int, ...], seed: int, name: str, s: float) -> None:
    rng = init.generator(seed)
    x = rng.standard_normal(shape)

    def vjp(gradient: Any) -> Array:
        t = Tensor(x, requires_grad=True)
        getattr(t, name)(dim=0).backward(gradient)
        assert t.grad is not None
        return t.grad.data

    out = getattr(Tensor(x), name)(dim=0).shape
    g, h = rng.standard_normal(out), rng.standard_normal(out)
    np.testing.assert_allclose(vjp(g + s * h), vjp(g) + s * vjp(h), 1e-9, 1e-9)


@settings(max_examples=30, deadline=None)
@given(shape=SIZES, seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["sum", "prod", "amax", "amin", "logsumexp"]))
def test_reducing_all_is_reducing_one_dimension_after_another(shape: tuple[int, ...], seed: int, name: str) -> None:
    x = Tensor(init.generator(seed).standard_normal(shape), requires_grad=True)
    y = Tensor(x.data, requires_grad=True)
    whole = getattr(x, name)(dim=tuple(range(x.ndim)))
    stepwise = y
    for _ in shape:
        stepwise = getattr(stepwise, name)(dim=0)
    np.testing.assert_allclose(whole.data, stepwise.data, 1e-12, 1e-12)
    whole.backward()
    stepwise.backward()
    assert x.grad is not None
    assert y.grad is not None
    np.testing.assert_allclose(x.grad.data, y.grad.data, 1e-9, 1e-12)


# Errors.


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x.prod(2), "prod: dim is 2 but x has 2 dimensions"),
        (lambda x: x.cumsum(-3), "cumsum: dim is -3 but x has 2 dimensions"),
        (lambda x: x.var((0, -2)), "var: dims (0, -2) name a dimension twice"),
        (lambda x: x[:0].amax(), "amax: x has shape (0, 3), expected at least one element along dim ()"),
        (lambda x: x[:0].min(0), "min: x has shape (0, 3), expected at least one element along dim 0"),
        (lambda x: x[:0].argmax(0), "argmax: x has shape (0, 3), expected at least one element along dim 0"),
        (lambda x: x[:0].norm(INF), "norm: x has shape (0, 3), expected at least one element along dim None"),
        (lambda x: x.norm("nuc"), "norm: p is 'nuc', expected a number or 'fro'"),
        (lambda x: (x > 0).std(), "std: expected a floating-point tensor, got bool"),
        (lambda x: Tensor([1]).norm(), "norm: expected a floating-point tensor, got int64"),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation(Tensor(np.ones((2, 3))))


def test_an_empty_dimension_that_stays_is_no_mistake() -> None:
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    assert x.amax(1).shape == (0,)
    assert x.max(1).values.shape == (0,)
    assert x.argmin(1).shape == (0,)
    assert x.prod(0).tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match=r"^sum: expected a Tensor, got list"):
        F.sum([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max", "argmin", "cumsum", "cumprod"])
def test_what_runs_over_one_dimension_takes_no_tuple(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: dim is \(0, 1\), expected an int"):
        getattr(Tensor(np.ones((2, 3))), name)((0, 1))
