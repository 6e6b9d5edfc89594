"""Pooling: every option against PyTorch and against finite differences."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.operations import (
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor
from worker.autodiff import functional as F


def row(name: str, *cases: Case, **options: Any) -> Op:
    """The operation `name` with these options, ours and PyTorch's."""
    return Op(
        f"{name} {options}",
        lambda *inputs: getattr(F, name)(*inputs, **options),
        lambda t, *inputs: getattr(t.nn.functional, name)(*inputs, **options),
        cases,
    )


IMAGE: Case = ((2, 3, 6, 7),)
OPS = [
    row("max_pool1d", ((2, 3, 7),), ((3, 7),), kernel_size=2),
    row("max_pool1d", ((2, 3, 8),), kernel_size=3, stride=2, padding=1, dilation=2, ceil_mode=True),
    row("max_pool2d", IMAGE, ((3, 6, 7),), ((0, 3, 6, 7),), ((1, 1, 2, 2),), ((2, 16, 6, 4),), kernel_size=2),
    row("max_pool2d", IMAGE, ((1, 20, 7, 5),), kernel_size=3, stride=1, padding=1),
    row("max_pool2d", IMAGE, ((2, 16, 6, 6),), kernel_size=3, padding=1),
    row("max_pool2d", IMAGE, kernel_size=(3, 2), stride=(2, 3), padding=(1, 0)),
    row("max_pool2d", IMAGE, ((2, 3, 7, 8),), kernel_size=2, stride=3),
    row("max_pool2d", IMAGE, ((2, 3, 7, 8),), kernel_size=2, ceil_mode=True),
    row("max_pool2d", IMAGE, ((2, 3, 7, 8),), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    row("max_pool2d", IMAGE, kernel_size=2, dilation=(2, 3), stride=1),
    row("avg_pool1d", ((2, 3, 7),), ((3, 7),), kernel_size=2),
    row("avg_pool1d", ((2, 3, 8),), kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    row("avg_pool2d", IMAGE, ((3, 6, 7),), ((0, 3, 6, 7),), kernel_size=2),
    row("avg_pool2d", IMAGE, kernel_size=(3, 2), stride=(2, 1), padding=1),
    row("avg_pool2d", IMAGE, kernel_size=3, padding=1, count_include_pad=False),
    row("avg_pool2d", IMAGE, ((2, 3, 7, 8),), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    row("avg_pool2d", IMAGE, ((2, 3, 7, 8),), kernel_size=2, stride=3, ceil_mode=True, count_include_pad=False),
    row("adaptive_avg_pool2d", IMAGE, ((3, 6, 7),), ((0, 3, 6, 7),), output_size=1),
    row("adaptive_avg_pool2d", IMAGE, output_size=(4, 3)),
    row("adaptive_avg_pool2d", IMAGE, output_size=(None, 9)),
    row("adaptive_max_pool2d", IMAGE, ((3, 6, 7),), ((0, 3, 6, 7),), output_size=1),
    row("adaptive_max_pool2d", IMAGE, output_size=(4, 3)),
    row("adaptive_max_pool2d", IMAGE, output_size=(None, 9)),
]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of(OPS)
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 5, 4, 4)])
def test_first_of_equals_gets_the_gradient(dtype: Any, shape: tuple[int, ...]) -> None:
    x = Tensor(np.zeros(shape, dtype), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad is not None
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(x.grad.data, np.broadcast_to(expected, shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_the_largest_and_negative_infinity_a_value(dtype: Any) -> None:
    x = np.zeros((1, 1, 2, 6), dtype)
    x[0, 0, 1, 1] = np.nan
    x[0, 0, :, 2:4] = -np.inf
    y = F.max_pool2d(Tensor(x), 2).data[0, 0, 0]
    assert np.isnan(y[0])
    assert y[1:].tolist() == [-np.inf, 0]


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            lambda: F.max_pool2d(zeros(2, 5), 2),
            "max_pool2d: input has shape (2, 5), expected 4 dimensions, or 3 unbatched",
        ),
        (lambda: F.max_pool2d(zeros(2, 3, 2, 5), 3), "max_pool2d: a kernel of 3 does not fit into (2, 5)"),
        (
            lambda: F.max_pool2d(zeros(2, 3, 4, 5), 2, padding=2),
            "max_pool2d: padding is 2, expected at most half of the kernel's size 2",
        ),
        (lambda: F.avg_pool1d(zeros(2, 3, 4), 2, 0), "avg_pool1d: stride is 0, expected at least 1"),
        (
            lambda: F.adaptive_avg_pool2d(zeros(2, 3, 4, 5), (0, 1)),
            "adaptive_avg_pool2d: output_size is (0, 1), expected one number or two, at least 1",
        ),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation()
