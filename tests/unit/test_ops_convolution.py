"""Convolutions and resampling: every option against PyTorch and against finite differences."""

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
        f"{name} {options}" if options else name,
        lambda *inputs: getattr(F, name)(*inputs, **options),
        lambda t, *inputs: getattr(t.nn.functional, name)(*inputs, **options),
        cases,
        tolerance=2e-5,  # sums of many products, in another order than PyTorch's
    )


SQUARE: Case = ((2, 3, 6, 5), (4, 3, 3, 3), (4,))
GROUPS: Case = ((2, 4, 5, 6), (6, 2, 3, 2), (6,))
OPS = [
    row("conv1d", ((2, 3, 7), (4, 3, 3), (4,)), ((3, 7), (4, 3, 2)), ((0, 3, 7), (4, 3, 2), (4,))),
    row("conv1d", ((2, 4, 9), (6, 2, 3), (6,)), stride=2, padding=1, dilation=2, groups=2),
    row("conv1d", ((2, 3, 7), (2, 3, 4)), padding="same"),
    row(
        "conv2d",
        SQUARE,
        SQUARE[:2],
        ((3, 6, 5), (4, 3, 3, 3), (4,)),
        ((0, 3, 6, 5), (4, 3, 3, 3), (4,)),
        ((2, 3, 6, 5), (4, 3, 1, 1), (4,)),
        ((1, 1, 3, 3), (1, 1, 3, 3), (1,)),
        ((2, 17, 5, 4), (18, 17, 2, 3), (18,)),
    ),
    row("conv2d", SQUARE, ((1, 1, 16, 15), (8, 1, 3, 3), (8,)), ((2, 16, 4, 4), (16, 16, 3, 3), (16,)), padding=1),
    row("conv2d", SQUARE, padding=(2, 0)),
    row("conv2d", SQUARE, ((2, 3, 6, 5), (4, 3, 2, 4), (4,)), padding="same"),
    row("conv2d", SQUARE, padding="same", dilation=2),
    row("conv2d", SQUARE, padding="valid"),
    row("conv2d", SQUARE, stride=2),
    row("conv2d", SQUARE, ((2, 3, 7, 8), (4, 3, 2, 2), (4,)), stride=(3, 2), padding=(1, 2)),
    row("conv2d", SQUARE, dilation=(2, 1)),
    row("conv2d", GROUPS, groups=2),
    row("conv2d", GROUPS, groups=2, stride=2, padding=2, dilation=2),
    row("conv2d", ((2, 4, 5, 6), (4, 1, 3, 3), (4,)), groups=4, padding=1),
    row("conv3d", ((2, 3, 4, 5, 4), (4, 3, 2, 3, 2), (4,)), ((3, 4, 5, 4), (4, 3, 2, 3, 2))),
    row("conv3d", ((2, 4, 4, 5, 4), (4, 2, 2, 3, 2), (4,)), stride=(1, 2, 1), padding=1, dilation=(2, 1, 1), groups=2),
    row(
        "conv_transpose2d",
        ((2, 4, 3, 5), (4, 3, 3, 2), (3,)),
        ((4, 3, 5), (4, 3, 3, 2)),
        ((0, 4, 3, 5), (4, 3, 3, 2), (3,)),
    ),
    row("conv_transpose2d", ((2, 4, 3, 5), (4, 3, 3, 2), (3,)), stride=2, padding=1, output_padding=1),
    row("conv_transpose2d", ((2, 4, 3, 5), (4, 3, 3, 2), (6,)), stride=(1, 3), groups=2, dilation=2),
    row("conv_transpose2d", ((2, 4, 3, 5), (4, 3, 3, 2), (3,)), dilation=3, output_padding=2),
    row("unfold", ((2, 3, 5, 4),), ((3, 5, 4),), kernel_size=(2, 3)),
    row("unfold", ((2, 3, 6, 7),), kernel_size=2, dilation=2, padding=1, stride=(2, 1)),
    row("fold", ((2, 18, 8),), ((18, 8),), output_size=(5, 4), kernel_size=(2, 3)),
    row("fold", ((2, 12, 21),), output_size=(6, 7), kernel_size=2, dilation=2, padding=1, stride=(2, 1)),
    row("interpolate", ((2, 3, 4, 5),), ((2, 3, 4),), ((2, 3, 2, 3, 2),), scale_factor=2),
    row("interpolate", ((2, 3, 4, 5),), size=(7, 3)),
    row("interpolate", ((2, 3, 4, 5),), scale_factor=(0.6, 2.3)),
    row("interpolate", ((2, 3, 4, 5),), size=(7, 3), mode="nearest-exact"),
    row("interpolate", ((2, 3, 5),), size=8, mode="linear"),
    row("interpolate", ((2, 3, 4, 5),), ((0, 3, 4, 5),), ((2, 3, 1, 1),), size=(7, 3), mode="bilinear"),
    row("interpolate", ((2, 3, 4, 5),), size=(4, 9), mode="bilinear", align_corners=True),
    row("interpolate", ((2, 3, 4, 5),), size=1, mode="bilinear", align_corners=True),
    row("interpolate", ((2, 3, 4, 5),), scale_factor=(1.7, 0.7), mode="bilinear", align_corners=False),
    row("interpolate", ((2, 2, 2, 3, 2),), scale_factor=2, mode="trilinear"),
    row("pixel_shuffle", ((2, 8, 3, 2),), ((12, 3, 2),), upscale_factor=2),
    row("pixel_unshuffle", ((2, 2, 6, 3),), ((2, 6, 3),), downscale_factor=3),
]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch's, about a copy it makes
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of([op for op in OPS if sum(np.prod(shape) for shape in op.cases[0]) < 500])
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


def zeros(*shape: int, dtype: Any = np.float32) -> Tensor:
    return Tensor(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 2, 3, 3)),
            "conv2d: input has 3 channels but weight takes 2",
        ),
        (lambda: F.conv2d(zeros(3, 5), zeros(4, 3, 3, 3)), "conv2d: input has shape (3, 5), expected 4 dimensions, or"),
        (lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 3, 3)), "conv2d: weight has shape (4, 3, 3), expected 4 dim"),
        (
            lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 3, 3, 3), zeros(3)),
            "conv2d: bias has shape (3,), expected (4,)",
        ),
        (
            lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 3, 3, 3, dtype=np.float64)),
            "conv2d: input is float32 but weight is float64",
        ),
        (
            lambda: F.conv2d(zeros(2, 4, 5, 5), zeros(3, 2, 3, 3), groups=2),
            "conv2d: weight has shape (3, 2, 3, 3), whose first size groups=2 does not divide",
        ),
        (
            lambda: F.conv2d(zeros(2, 3, 2, 5), zeros(4, 3, 3, 3)),
            "conv2d: a kernel of (3, 3) does not fit into (2, 5); raise padding or shrink the kernel",
        ),
        (
            lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 3, 3, 3), stride=0),
            "conv2d: stride is 0, expected at least 1",
        ),
        (
            lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 3, 3, 3), padding=(1, 1, 1)),
            "conv2d: padding is (1, 1, 1), expected one number or 2",
        ),
        (
            lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 3, 3, 3), padding="same", stride=2),
            "conv2d: padding 'same' needs stride 1, got 2",
        ),
        (
            lambda: F.conv2d(zeros(2, 3, 5, 5), zeros(4, 3, 3, 3), padding="full"),  # type: ignore[arg-type]
            "conv2d: padding is 'full', expected 'valid', 'same', or numbers",
        ),
        (
            lambda: F.conv_transpose2d(zeros(2, 4, 3, 3), zeros(4, 2, 3, 3), stride=2, output_padding=2),
            "conv_transpose2d: output_padding is 2, expected less than stride or dilation",
        ),
        (
            lambda: F.fold(zeros(2, 18, 7), (5, 4), (2, 3)),
            "fold: input has shape (2, 18, 7), expected (N, channels * 6, 8)",
        ),
        (lambda: F.interpolate(zeros(2, 3, 4)), "interpolate: expected either size or scale_factor"),
        (
            lambda: F.interpolate(zeros(2, 3, 4), 2, mode="bilinear"),
            "interpolate: input has shape (2, 3, 4), expected 4 dimensions for mode 'bilinear'",
        ),
        (
            lambda: F.pixel_shuffle(zeros(2, 3, 4, 4), 2),
            "pixel_shuffle: input has shape (2, 3, 4, 4), expected (..., C * 2 * 2, H, W)",
        ),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation()


def test_infinity_stays_where_it_is() -> None:
    x = np.zeros((1, 1, 2, 2), np.float32)
    x[0, 0, 0, 0] = np.inf
    y = F.interpolate(Tensor(x), scale_factor=2).data
    assert np.isinf(y).sum() == 4
    assert not np.isnan(y).any()
