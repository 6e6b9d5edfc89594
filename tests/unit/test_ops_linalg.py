"""Products of vectors, matrices and batches of them, one row each; einsum against NumPy's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.operations import (
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.nn import init

MATRICES: Sequence[Case] = (((4, 5), (5, 3)), ((1, 5), (5, 1)), ((0, 5), (5, 3)), ((4, 0), (0, 3)), ((4, 5), (5, 0)))
BATCHES: Sequence[Case] = (
    ((2, 4, 5), (2, 5, 3)),
    ((1, 4, 5), (1, 5, 1)),
    ((0, 4, 5), (0, 5, 3)),
    ((2, 4, 0), (2, 0, 3)),
)

OPS = [
    Op(
        "matmul of batches",
        F.matmul,
        lambda t, x, w: x @ w,
        (
            ((2, 3, 0), (0, 4)),
            ((2, 3, 0), (0,)),
            ((0, 3, 5), (5, 4)),
            ((3, 0, 5), (3, 5, 4)),
            ((4, 5), (2, 1, 5, 3)),
            ((2, 3, 4, 5), (5,)),
            ((5,), (2, 3, 5, 4)),
            ((2, 3, 4, 5), (5, 3)),
            ((3, 4, 5), (2, 1, 5, 3)),
            ((1,), (1,)),
        ),
    ),
    Op("mm", F.mm, lambda t, x, w: x.mm(w), MATRICES),
    Op("bmm", F.bmm, lambda t, x, w: x.bmm(w), BATCHES),
    Op("mv", F.mv, lambda t, x, w: x.mv(w), (((4, 5), (5,)), ((0, 5), (5,)), ((4, 0), (0,)))),
    Op("dot", F.dot, lambda t, x, w: x.dot(w), (((5,), (5,)), ((1,), (1,)), ((0,), (0,)))),
    Op("outer", F.outer, lambda t, x, w: x.outer(w), (((5,), (3,)), ((0,), (3,)), ((3,), (0,)))),
    Op(
        "addmm",
        F.addmm,
        lambda t, x, a, b: t.addmm(x, a, b),
        (((4, 3), (4, 5), (5, 3)), ((3,), (4, 5), (5, 3)), ((4, 1), (4, 5), (5, 3)), ((), (4, 5), (5, 3))),
    ),
    Op(
        "addmm scaled",
        lambda x, a, b: x.addmm(a, b, beta=0.5, alpha=-2),
        lambda t, x, a, b: x.addmm(a, b, beta=0.5, alpha=-2),
        (((4, 3), (4, 5), (5, 3)), ((3,), (0, 5), (5, 3))),
    ),
    Op(
        "baddbmm",
        lambda x, a, b: F.baddbmm(x, a, b, beta=2, alpha=0.5),
        lambda t, x, a, b: t.baddbmm(x, a, b, beta=2, alpha=0.5),
        (((2, 4, 3), (2, 4, 5), (2, 5, 3)), ((1, 3), (2, 4, 5), (2, 5, 3)), ((3,), (0, 4, 5), (0, 5, 3))),
    ),
    Op("trace", F.trace, lambda t, x: x.trace(), (((4, 4),), ((4, 5),), ((0, 3),))),
]

EINSUMS: dict[str, Sequence[Case]] = {
    "ij->ji": (((3, 4),), ((0, 4),)),
    "i->": (((3,),), ((0,),)),
    "ij->j": (((3, 4),),),
    "ba": (((3, 4),),),
    "ii->i": (((3, 3),),),
    "ii": (((3, 3),),),
    "iji->j": (((3, 2, 3),),),
    "i,i->": (((3,), (3,)), ((0,), (0,)), ((1,), (3,))),
    "i,j->ij": (((3,), (4,)), ((0,), (4,))),
    "i,j->ji": (((3,), (4,)),),
    "ij,jk": (((3, 4), (4, 5)), ((3, 0), (0, 5)), ((3, 1), (4, 5))),
    "ij,kj->ik": (((3, 4), (5, 4)),),
    "bij,bjk->bik": (((2, 3, 4), (2, 4, 5)), ((1, 3, 4), (2, 4, 5)), ((0, 3, 4), (0, 4, 5))),
    "bhqd,bhkd->bhqk": (((2, 2, 3, 4), (2, 2, 5, 4)),),
    "bqhd,bkhd->bhqk": (((2, 3, 2, 4), (2, 5, 2, 4)),),
    "ij,ij->ij": (((3, 4), (3, 4)),),
    "ij,ij->": (((3, 4), (3, 4)),),
    "ij,k->i": (((3, 4), (5,)), ((3, 4), (0,))),
    "i,ij,j->": (((3,), (3, 4), (4,)),),
    "ij,jk,kl->il": (((2, 3), (3, 4), (4, 5)),),
    "ij,jk,ki": (((2, 3), (3, 4), (4, 2)),),
    "ai,bi,ci->abc": (((2, 3), (3, 3), (4, 3)),),
    "...ij,...jk->...ik": (((2, 3, 4), (2, 4, 5)), ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2))),
    "i...,i...->...": (((3, 4), (3, 4)), ((3, 1, 2), (3, 4, 1)), ((3,), (3,))),
    "...ij": (((2, 3, 4),),),
    "...,...": (((), (2, 3)), ((3,), (2, 3))),
    "b...d, d -> b...": (((2, 3, 4), (4,)), ((2, 4), (4,))),
    "...i->i": (((2, 3, 4),),),
    "iJ,JK->Ki": (((2, 3), (3, 4)),),
}

OPS += [
    Op(f"einsum {text}", lambda *xs, e=text: F.einsum(e, *xs), lambda t, *xs, e=text: t.einsum(e, *xs), cases)
    for text, cases in EINSUMS.items()
]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of(OPS)
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


@st.composite
def equations(draw: st.DrawFn) -> str:
    """Of one to three operands with up to three labels each, and an output of some of their labels in some order."""
    labels = st.lists(st.sampled_from("abcd"), max_size=3)
    inputs = draw(st.lists(labels, min_size=1, max_size=3))
    seen = sorted({label for group in inputs for label in group})
    output = draw(st.lists(st.sampled_from(seen), unique=True)) if seen else []
    return ",".join("".join(group) for group in inputs) + "->" + "".join(output)


@given(equations(), st.tuples(*[st.integers(0, 3)] * 4))
@settings(max_examples=100, deadline=None)
def test_einsum_is_numpys_for_any_equation(equation: str, sizes: tuple[int, ...]) -> None:
    size_of = dict(zip("abcd", sizes, strict=True))
    rng = init.generator(3)
    inputs, _, output = equation.partition("->")
    arrays = [np.asarray(rng.standard_normal([size_of[label] for label in group])) for group in inputs.split(",")]
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    y = F.einsum(equation, *tensors)
    np.testing.assert_allclose(y.data, np.einsum(equation, *arrays), rtol=1e-10, atol=1e-10)

    # einsum is linear in each operand, so that <g, y> = <gradient of x, x> for each x.
    gradient = np.asarray(rng.standard_normal([size_of[label] for label in output]))
    if y.requires_grad:
        y.backward(gradient)
    for x in tensors:
        got = np.sum(x.grad.data * x.data) if x.grad is not None else 0.0
        np.testing.assert_allclose(got, np.sum(gradient * y.data), rtol=1e-9, atol=1e-9)


def test_einsum_takes_a_list_of_operands() -> None:
    x = Tensor([1.0, 2.0])
    assert F.einsum("i,i->", [x, x]).item() == 5


def test_addmm_does_not_look_at_an_input_of_weight_zero() -> None:
    broken = Tensor([[np.nan]], requires_grad=True)
    assert F.addmm(broken, Tensor([[2.0]]), Tensor([[3.0]]), beta=0).item() == 6


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: F.mm(zeros(2, 5), zeros(7, 3)), "mm: x has 5 columns but w has 7 rows"),
        (lambda: F.mm(zeros(2, 5), zeros(5)), "mm: got shapes (2, 5) and (5,), expected 2 and 2 dimensions"),
        (lambda: F.bmm(zeros(2, 3, 5), zeros(1, 5, 4)), "bmm: x has a batch of 2 but w of 1"),
        (lambda: F.mv(zeros(2, 5), zeros(4)), "mv: x has 5 columns but w has 4 rows"),
        (lambda: F.dot(zeros(2), zeros(3)), "dot: x has 2 columns but w has 3 rows"),
        (lambda: F.outer(zeros(2), zeros(3, 1)), "outer: got shapes (2,) and (3, 1), expected 1 and 1"),
        (lambda: zeros(2, 3, 4) @ zeros(3, 4, 2), "matmul: x has shape (2, 3, 4) but w (3, 4, 2), whose batches do"),
        (
            lambda: zeros(2, 3) @ Tensor(np.zeros((3, 2), int)),
            "matmul: x is float32 but w is int64, expected one dtype",
        ),
        (lambda: F.addmm(zeros(2, 2), zeros(3, 4), zeros(4, 2)), "addmm: x has shape (2, 2), which does not broadcast"),
        (lambda: F.addmm(zeros(1, 3, 2), zeros(3, 4), zeros(4, 2)), "addmm: x has shape (1, 3, 2), which does not"),
        (lambda: F.trace(zeros(2)), "trace: x has shape (2,), expected a matrix"),
        (lambda: F.einsum("ij,jk", zeros(2, 3)), "einsum: 'ij,jk' names 2 operands, got 1"),
        (lambda: F.einsum("ij->ik", zeros(2, 3)), "einsum: the output of 'ij->ik' names ['k'], which no operand has"),
        (lambda: F.einsum("ij->ii", zeros(2, 3)), "einsum: the output of 'ij->ii' names a label twice"),
        (lambda: F.einsum("ij,jk", zeros(2, 3), zeros(4, 5)), "einsum: label 'j' has size 3 and size 4 in 'ij,jk'"),
        (lambda: F.einsum("...,...", zeros(2), zeros(3)), "einsum: a dimension of '...' has size 2 and size 3"),
        (lambda: F.einsum("ijk", zeros(2, 3)), "einsum: 'ijk' in 'ijk' names 3 dimensions, but the operand has 2"),
        (lambda: F.einsum("i.j", zeros(2, 3)), "einsum: got 'i.j' in 'i.j', expected letters and at most one '...'"),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation()
