"""How an operation is proved: against PyTorch in float32 and against finite differences in float64.

Each family of operations has a table of `Op` rows in a test module of its own, and runs every row through the two
checks here, on several cases: sets of input shapes. The first takes each in several memory layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from worker.autodiff import Tensor, gradcheck
from worker.nn import init

Array = np.ndarray[Any, np.dtype[Any]]
Case = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Op:
    """An operation on `cases` of inputs, each a tuple of shapes; `like` does the same, given torch and its tensors.

    `has_kink`: finite differences may straddle a point without a derivative, so they are left out.
    """

    name: str
    ours: Callable[..., Tensor]
    like: Callable[..., Any]
    cases: Sequence[Case]
    positive: bool = False
    tolerance: float = 2e-6
    has_kink: bool = False


UNARY: Sequence[Case] = (((),), ((0,),), ((3, 0),), ((7,),), ((4, 5),), ((2, 3, 4),))
BROADCAST: Sequence[Case] = (
    ((), ()),
    ((4, 5), ()),
    ((), (4, 5)),
    ((4, 5), (5,)),
    ((4, 1), (1, 5)),
    ((2, 1, 3), (4, 1)),
    ((0, 3), (3,)),
)
TABLE: Sequence[Case] = (((4, 5),), ((2, 3, 4),))


def cases_of(ops: Sequence[Op]) -> Any:
    """The parameters (op, case) of a test, one for each case of each row."""
    return pytest.mark.parametrize(
        ("op", "case"), [pytest.param(op, case, id=f"{op.name} {case}") for op in ops for case in op.cases]
    )


def values(op: Op, case: Case) -> list[Array]:
    rng = init.generator(7, *map(ord, op.name))
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in case]
    return [np.abs(a) + 0.5 for a in arrays] if op.positive else arrays


def contiguous(a: Array) -> Array:
    return a.copy()


def transposed(a: Array) -> Array:
    return np.asfortranarray(a) if a.ndim else a.copy()  # which NumPy would give an axis


def every_second(a: Array) -> Array:
    return np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a.copy()


def backwards(a: Array) -> Array:
    return a[::-1].copy()[::-1] if a.ndim else a.copy()


LAYOUTS = (contiguous, transposed, every_second, backwards)


def layouts_of(arrays: Sequence[Array]) -> Iterator[tuple[str, list[Array]]]:
    """The arrays in each memory layout, with its name; those of few axes are the same in several."""
    seen = set()
    for layout in LAYOUTS:
        laid_out = [layout(a) for a in arrays]
        strides = tuple(a.strides for a in laid_out)
        if strides not in seen:
            seen.add(strides)
            yield layout.__name__, laid_out


def check_against_torch(op: Op, case: Case) -> None:
    """Value and all gradients are PyTorch's in every memory layout, and no input was changed."""
    torch = pytest.importorskip("torch")
    before = [a.astype(np.float32) for a in values(op, case)]
    theirs = [torch.tensor(a, requires_grad=True) for a in before]
    expected = op.like(torch, *theirs)
    gradient = np.asarray(init.generator(8).standard_normal(tuple(expected.shape)), np.float32)
    expected.backward(torch.tensor(gradient))
    for layout, arrays in layouts_of(before):
        ours = [Tensor(a, requires_grad=True) for a in arrays]
        y = op.ours(*ours)
        assert y.dtype == np.float32, layout
        assert y.shape == tuple(expected.shape), layout
        close(y.data, expected.detach().numpy(), op, layout)
        y.backward(gradient)
        for x, t in zip(ours, theirs, strict=True):
            assert x.grad is not None, layout
            assert x.grad.dtype == np.float32, layout
            close(x.grad.data, t.grad.numpy(), op, layout)
        for a, unchanged in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, unchanged, f"{layout}: an operation has changed its input")


def close(got: Array, expected: Array, op: Op, layout: str) -> None:
    np.testing.assert_allclose(got, expected, rtol=op.tolerance, atol=op.tolerance, err_msg=layout)


def check_against_differences(op: Op, case: Case) -> None:
    """The gradients are those of finite differences, and float64 stays float64."""
    inputs = [Tensor(a, requires_grad=True) for a in values(op, case)]
    y = op.ours(*inputs)
    assert y.dtype == np.float64
    assert gradcheck(op.ours, inputs)
