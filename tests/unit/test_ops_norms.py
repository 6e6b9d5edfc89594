"""Batch, group, instance and local response norm, one row each, and what happens to running statistics."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.operations import Array, Case, Op, cases_of, check_against_differences, check_against_torch
from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.nn import init


def statistics(channels: int) -> tuple[Array, Array]:
    rng = init.generator(5, channels)
    return rng.standard_normal(channels).astype(np.float32), rng.uniform(0.5, 2, channels).astype(np.float32)


def evaluated(x: Any, *affine: Any, tensor: Callable[[Array], Any], f: Any) -> Any:
    """batch_norm by running statistics."""
    mean, var = statistics(x.shape[1])
    return f(x, tensor(mean), tensor(var), *affine)


def groups(count: int) -> dict[str, Any]:
    return {
        "ours": lambda x, *affine: F.group_norm(x, count, *affine),
        "like": lambda t, x, *affine: t.nn.functional.group_norm(x, count, *affine),
    }


AFFINE: tuple[Case, ...] = (
    ((4, 3), (3,), (3,)),
    ((4, 3, 5), (3,), (3,)),
    ((2, 3, 4, 2), (3,), (3,)),
    ((2, 2, 2, 3, 2), (2,), (2,)),
)
PLAIN: tuple[Case, ...] = tuple((case[0],) for case in AFFINE)
WITH_POSITIONS: tuple[Case, ...] = AFFINE[1:]
EVEN: tuple[Case, ...] = (((3, 8), (8,), (8,)), ((2, 4, 5), (4,), (4,)), ((2, 6, 2, 3), (6,), (6,)))

OPS = [
    Op(
        "batch_norm",
        lambda x, *affine: F.batch_norm(x, None, None, *affine, training=True),  # type: ignore[misc]  # two tensors
        lambda t, x, *affine: t.nn.functional.batch_norm(x, None, None, *affine, training=True),
        AFFINE + PLAIN,
        tolerance=5e-6,
    ),
    Op(
        "batch_norm in evaluation",
        lambda x, *affine: evaluated(x, *affine, tensor=Tensor, f=F.batch_norm),
        lambda t, x, *affine: evaluated(x, *affine, tensor=t.tensor, f=t.nn.functional.batch_norm),
        (*AFFINE, *PLAIN, ((0, 3), (3,), (3,)), ((2, 3, 0), (3,), (3,)), ((1, 3), (3,), (3,))),
        tolerance=5e-6,
    ),
    Op("group_norm 2", **groups(2), cases=(*EVEN, *((case[0],) for case in EVEN)), tolerance=5e-6),
    Op("group_norm 1", **groups(1), cases=(*EVEN, ((0, 4, 3), (4,), (4,))), tolerance=5e-6),
    Op(
        "instance_norm",
        lambda x, *affine: F.instance_norm(x, None, None, *affine),
        lambda t, x, *affine: t.nn.functional.instance_norm(x, None, None, *affine),
        (*WITH_POSITIONS, *((case[0],) for case in WITH_POSITIONS)),
        tolerance=5e-6,
    ),
    *(
        Op(
            f"local_response_norm {size} {named or ''}",
            lambda x, size=size, named=named: F.local_response_norm(x, size, **named),
            lambda t, x, size=size, named=named: t.nn.functional.local_response_norm(x, size, **named),
            (((2, 3, 4),), ((2, 7, 2, 2),), ((0, 3, 4),)),
        )
        for size in (1, 2, 3, 5)
        for named in ({}, {"alpha": 0.5, "beta": 1.2, "k": 0.7})
    ),
]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of([op for op in OPS if "evaluation" not in op.name])
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


@pytest.mark.torch
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_running_statistics_move_as_pytorchs_do(name: str, momentum: float) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = [Tensor(a) for a in statistics(3)], [torch.tensor(a) for a in statistics(3)]
    for step in range(3):
        x = init.generator(6, step).standard_normal((4, 3, 5)).astype(np.float32) * 3 + 1
        getattr(F, name)(Tensor(x), *ours, None, None, True, momentum)
        getattr(torch.nn.functional, name)(torch.tensor(x), *theirs, None, None, True, momentum)
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got.data, expected.numpy(), rtol=1e-5)


@pytest.mark.torch
def test_instance_norm_without_input_statistics_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    x = init.generator(6).standard_normal((4, 3, 5)).astype(np.float32)
    mean, var = statistics(3)
    got = F.instance_norm(Tensor(x), Tensor(mean), Tensor(var), use_input_stats=False)
    expected = torch.nn.functional.instance_norm(
        torch.tensor(x), torch.tensor(mean), torch.tensor(var), use_input_stats=False
    )
    np.testing.assert_allclose(got.data, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_evaluation_leaves_running_statistics_alone() -> None:
    mean, var = map(Tensor, statistics(3))
    F.batch_norm(Tensor(np.ones((4, 3), np.float32)), mean, var)
    for got, before in zip((mean, var), statistics(3), strict=True):
        np.testing.assert_array_equal(got.data, before)


def test_numbers_far_from_zero_keep_their_variance() -> None:
    x = init.generator(7).standard_normal((64, 2, 50))
    y = F.batch_norm(Tensor((x + 1000).astype(np.float32)), None, None, training=True)
    exact = (x - x.mean((0, 2), keepdims=True)) / x.std((0, 2), keepdims=True)
    np.testing.assert_allclose(y.data, exact, atol=2e-4)  # 1000 + x has 13 bits behind the point


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: F.batch_norm(x[0], None, None), "batch_norm: x has shape (4,), expected (N, C, ...)"),
        (lambda x: F.batch_norm(x, None, None), "batch_norm: expected running_mean and running_var"),
        (
            lambda x: F.batch_norm(x[:1], None, None, training=True),
            "batch_norm: x of shape (1, 4) has one value for each mean, expected more",
        ),
        (
            lambda x: F.batch_norm(x, Tensor(np.zeros(3)), None),
            "batch_norm: running_mean has shape (3,), expected (4,), one for each channel",
        ),
        (lambda x: F.group_norm(x, 3), "group_norm: x has 4 channels, which 3 groups do not divide"),
        (lambda x: F.group_norm(x, 2, Tensor(np.zeros(2))), "group_norm: weight has shape (2,), expected (4,)"),
        (lambda x: F.instance_norm(x), "instance_norm: x of shape (2, 4) has one value for each mean"),
        (lambda x: F.local_response_norm(x, 2), "local_response_norm: x has 2 dimensions, expected at least 3"),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation(Tensor(np.zeros((2, 4), np.float32)))
