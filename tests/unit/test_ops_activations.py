"""The activations, one row each, and what they do at kinks, NaN and infinity."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.operations import (
    UNARY,
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor, kernels
from worker.autodiff import functional as F
from worker.nn import init

# Name, arguments, and whether there is a kink.
ROWS: list[tuple[str, tuple[Any, ...], bool]] = [
    ("tanh", (), False),
    ("sigmoid", (), False),
    ("gelu", (), False),
    ("silu", (), False),
    ("mish", (), False),
    ("softplus", (), False),
    ("softplus", (3.0, 2.0), True),
    ("softplus", (0.5, 20.0), False),
    ("logsigmoid", (), False),
    ("elu", (), False),
    ("elu", (1.5,), True),
    ("selu", (), True),
    ("celu", (), False),
    ("celu", (1.5,), False),
    ("softsign", (), False),
    ("tanhshrink", (), False),
    ("relu", (), True),
    ("relu6", (), True),
    ("hardtanh", (), True),
    ("hardtanh", (-0.5, 2.0), True),
    ("leaky_relu", (), True),
    ("leaky_relu", (2.0,), True),
    ("leaky_relu", (-0.3,), True),
    ("hardsigmoid", (), True),
    ("hardswish", (), True),
    ("softshrink", (), True),
    ("softshrink", (0.2,), True),
    ("hardshrink", (), True),
    ("hardshrink", (0.2,), True),
    ("threshold", (0.1, 20.0), True),
]


def torchs(name: str) -> Callable[..., Any]:
    return lambda torch, *tensors, **named: getattr(torch.nn.functional, name)(*tensors, **named)


OPS = [
    *(
        Op(
            f"{name}{arguments or ''}",
            lambda x, name=name, arguments=arguments: getattr(F, name)(x, *arguments),
            lambda t, x, name=name, arguments=arguments: torchs(name)(t, x, *arguments),
            UNARY,
            has_kink=has_kink,
        )
        for name, arguments, has_kink in ROWS
    ),
    Op("gelu tanh", lambda x: F.gelu(x, "tanh"), lambda t, x: t.nn.functional.gelu(x, approximate="tanh"), UNARY),
    Op("glu", F.glu, torchs("glu"), (((6,),), ((3, 4),), ((2, 3, 4),), ((3, 0),))),
    Op("glu 0", lambda x: F.glu(x, 0), lambda t, x: t.nn.functional.glu(x, 0), (((6,),), ((4, 3),), ((2, 3, 4),))),
    Op(
        "prelu",
        F.prelu,
        torchs("prelu"),
        (((), (1,)), ((7,), (1,)), ((4, 5), (1,)), ((4, 5), (5,)), ((2, 3, 4), (3,)), ((2, 3, 4), ()), ((0, 3), (3,))),
        has_kink=True,
    ),
]

KINKS = [0.0, -0.0, 0.1, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, 20.0, 20.5, -20.0, 90.0, -90.0, 1e4, -1e4]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of([op for op in OPS if not op.has_kink])
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


@cases_of([op for op in OPS if op.has_kink])
def test_float64_stays_float64_and_says_what_float32_says(op: Op, case: Case) -> None:
    rng = init.generator(3)
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in case]
    results = []
    for dtype in (np.float64, np.float32):
        inputs = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays]
        y = op.ours(*inputs)
        assert y.dtype == dtype
        (y * y).sum().backward()
        results.append([y.data, *(x.grad.data for x in inputs if x.grad is not None)])
    for exact, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, exact, rtol=5e-6, atol=5e-6)


@pytest.mark.torch
@pytest.mark.parametrize("value", KINKS)
@pytest.mark.parametrize(("name", "arguments"), [row[:2] for row in ROWS])
def test_at_kinks_and_large_numbers_they_are_pytorchs(name: str, arguments: tuple[Any, ...], value: float) -> None:
    torch = pytest.importorskip("torch")
    x = Tensor(np.full(20, value, np.float32), requires_grad=True)
    t = torch.tensor(x.data.copy(), requires_grad=True)
    y, expected = getattr(F, name)(x, *arguments), torchs(name)(torch, t, *arguments)
    y.sum().backward()
    expected.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(y.data, expected.detach().numpy(), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(x.grad.data, t.grad.numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "arguments"), [row[:2] for row in ROWS])
def test_nan_goes_through(name: str, arguments: tuple[Any, ...]) -> None:
    y = getattr(F, name)(Tensor(np.full(20, np.nan, np.float32)), *arguments)
    assert np.isnan(y.data).all()


@pytest.mark.parametrize(("name", "arguments"), [row[:2] for row in ROWS if row[2]])
def test_a_gradient_that_is_masked_is_zero_though_it_be_infinite(name: str, arguments: tuple[Any, ...]) -> None:
    x = Tensor(np.linspace(-9, 9, 38, dtype=np.float32), requires_grad=True)
    getattr(F, name)(x, *arguments).backward(np.full(38, np.inf, np.float32))
    assert x.grad is not None
    assert not np.isnan(x.grad.data).any()


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("silu", {}),
        ("mish", {}),
        ("softplus", {"beta": 1.0, "threshold": np.inf}),
        ("elu", {"negative": 1.0, "positive": 1.0, "inner": 1.0}),
    ],
)
@pytest.mark.parametrize("suffix", ["", "_backward"])
def test_kernel_is_within_four_ulps_of_its_scale(name: str, numbers: dict[str, float], suffix: str) -> None:
    """Forward relative to the value itself, also in its tail; backward relative to 1."""
    near_zero = np.logspace(-30, 0, 10_000)
    x = np.concatenate([np.linspace(-80, 80, 100_001), near_zero, -near_zero]).astype(np.float32)
    gradient = [np.ones_like(x)] if suffix else []
    got = getattr(kernels, name + suffix)(*gradient, x, **numbers)
    exact = getattr(kernels.formulas, name + suffix)(*gradient, x.astype(np.float64), **numbers)
    scale = np.maximum(np.abs(exact), 1 if suffix else 1e-37).astype(np.float32)
    assert np.max(np.abs(got - exact) / np.spacing(scale).astype(np.float64)) <= 4


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: F.gelu(x, "erf"), "gelu: approximate is 'erf', expected 'none' or 'tanh'"),  # type: ignore[arg-type]
        (F.glu, "glu: x has size 3 in dimension -1, expected an even size"),
        (lambda x: F.glu(x, 2), "glu: dim is 2 but x has 2 dimensions"),
        (lambda x: F.celu(x, 0), "celu: alpha is 0, expected another number"),
        (lambda x: F.hardtanh(x, 1, -1), "hardtanh: min_val is 1, expected at most max_val, -1"),
        (lambda x: F.softshrink(x, -1), "softshrink: lambd is -1, expected at least 0"),
        (lambda x: F.prelu(x, Tensor(np.zeros(2))), "prelu: weight has 2 elements but x has 3 channels"),
        (lambda x: F.prelu(x, Tensor(np.zeros((1, 3)))), "prelu: weight has shape (1, 3), expected one dimension"),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation(Tensor(np.zeros((2, 3), np.float32)))
