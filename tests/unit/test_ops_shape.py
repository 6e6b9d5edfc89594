"""The operations that move elements: views, joining, padding, indexing, lookups, diagonals, creation. One row each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.operations import (
    TABLE,
    UNARY,
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor, kernels
from worker.autodiff import functional as F

VECTORS: Sequence[Case] = UNARY[1:]  # with dimensions
CUBE: Sequence[Case] = (((2, 3, 4),),)
CUBES: Sequence[Case] = (*CUBE, ((2, 0, 4),), ((1, 1, 1),))
MATRICES: Sequence[Case] = (((4, 5),), ((5, 4),), ((0, 3),), ((2, 3, 4),))
PLANE: Sequence[Case] = (((4, 5),),)

INDEX = np.array([2, 0, 1, 2])
GRID = np.array([[0, 2, 1], [1, 1, 0]])
EVEN = np.array([True, False, True, False])


def same(name: str, call: Callable[[Any], Any], cases: Sequence[Case]) -> Op:
    """A row whose code is the same for us and for PyTorch: methods only."""
    return Op(name, call, lambda t, x: call(x), cases)


def both(name: str, call: Callable[..., Any], cases: Sequence[Case]) -> Op:
    """A row whose code is the same but for arrays: `call(wrap, *inputs)`, where wrap makes tensors of them."""
    return Op(name, lambda *xs: call(Tensor, *xs), lambda t, *xs: call(t.tensor, *xs), cases)


def ends(name: str, call: Callable[[Any], Any], cases: Sequence[Case]) -> Op:
    """A row whose code gives several parts: the first times three joined to the last, both in one dimension."""

    def joined(cat: Callable[..., Any], x: Any) -> Any:
        parts = call(x)
        return cat([parts[0].reshape(-1) * 3, parts[-1].reshape(-1)])

    return Op(name, lambda x: joined(F.cat, x), lambda t, x: joined(t.cat, x), cases)


VIEWS = [
    same("view", lambda x: x.view(2, 2, *x.shape[1:]), (((4, 5),), ((4,),), ((4, 0, 3),))),
    same("view -1", lambda x: x.view((-1, 1, *x.shape[1:])), VECTORS[2:]),
    same("contiguous", lambda x: x.contiguous(), UNARY),
    same("contiguous, view", lambda x: x.transpose(0, -1).contiguous().view(-1), UNARY),
    same("flatten 0 1", lambda x: x.flatten(0, 1), CUBES),
    same("unflatten", lambda x: x.unflatten(-1, (2, 2)), CUBE),
    same("unflatten -1", lambda x: x.unflatten(1, (3, -1)), CUBE),
    same("swapaxes", lambda x: x.swapaxes(0, -1), UNARY),
    same("movedim", lambda x: x.movedim(0, -1), UNARY),
    same("movedim several", lambda x: x.movedim((2, 0), (0, 1)), CUBES),
    same("squeeze", lambda x: x.squeeze(), (*UNARY, ((1, 3, 1),), ((1, 1),))),
    same("squeeze 0", lambda x: x.squeeze(0), (*UNARY, ((1, 3, 1),))),
    same("squeeze several", lambda x: x.squeeze((0, -1)), (((1, 3, 1),), ((1, 3, 2),))),
    same("unsqueeze 0", lambda x: x.unsqueeze(0), UNARY),
    same("unsqueeze -1", lambda x: x.unsqueeze(-1), UNARY),
    same("expand", lambda x: x.expand(2, -1, 3), (((4, 1),), ((1, 4, 3),), ((0, 1),))),
    same("expand scalar", lambda x: x.expand((2, 3)), (((),), ((1,),), ((3,),), ((2, 3),))),
    same("broadcast_to", lambda x: x.broadcast_to((2, 3, 4)), (((),), ((4,),), ((3, 1),), ((2, 3, 4),))),
    same("narrow", lambda x: x.narrow(1, 1, 2), TABLE),
    same("narrow from the end", lambda x: x.narrow(-1, -3, 2), TABLE),
    same("narrow to nothing", lambda x: x.narrow(0, 0, 0), VECTORS),
    same("select", lambda x: x.select(-1, -2), (((7,),), *TABLE)),
]

JOINING = [
    Op(
        "cat",
        lambda *xs: F.cat(xs),
        lambda t, *xs: t.cat(xs),
        (((2, 3), (1, 3)), ((4,), (0,), (2,)), ((2, 3), (0,), (2, 3)), ((0,), (0,)), ((0, 3), (2, 3)), ((5,),)),
    ),
    Op("concat", lambda *xs: F.concat(xs, -1), lambda t, *xs: t.concat(xs, -1), (((2, 3), (2, 1)), ((2, 0), (2, 1)))),
    Op("cat twice the same", lambda x: F.cat([x, x]), lambda t, x: t.cat([x, x]), VECTORS),
    Op("stack", lambda *xs: F.stack(xs), lambda t, *xs: t.stack(xs), (((), ()), ((3,), (3,), (3,)), ((0, 2), (0, 2)))),
    *(
        Op(f"stack {d}", lambda *xs, d=d: F.stack(xs, d), lambda t, *xs, d=d: t.stack(xs, d), (((2, 3), (2, 3)),))
        for d in (1, -1, -2)
    ),
    ends("split", lambda x: x.split(3), VECTORS),
    ends("split sizes", lambda x: x.split([1, 0, 3], -1), CUBE),
    ends("chunk", lambda x: x.chunk(3), VECTORS),
    ends("chunk -1", lambda x: x.chunk(2, -1), VECTORS),
    ends("unbind", lambda x: x.unbind(), VECTORS[2:]),
    ends("unbind -1", lambda x: x.unbind(-1), TABLE),
    ends("iteration", list, VECTORS[2:]),
    same("flip", lambda x: x.flip(0), UNARY),
    same("flip several", lambda x: x.flip((0, -1)), TABLE),
    same("flip none", lambda x: x.flip(()), UNARY),
    same("roll", lambda x: x.roll(2), UNARY),
    same("roll -1", lambda x: x.roll(-1, -1), VECTORS),
    same("roll several", lambda x: x.roll((1, -5), (1, 0)), TABLE),
    same("repeat", lambda x: x.repeat(2, 1, 3), UNARY),
    same("repeat none", lambda x: x.repeat(0, 2, 1), UNARY),
    same("tile", lambda x: x.tile(2), UNARY),
    same("tile 2 3", lambda x: x.tile((2, 3)), UNARY),
    *(
        Op(
            f"pad {mode} {widths}",
            lambda x, m=mode, w=widths: F.pad(x, w, m),
            lambda t, x, m=mode, w=widths: t.nn.functional.pad(x, w, m),
            (((2, 3, 4),), ((1, 2, 3, 4),)) if len(widths) == 4 else CUBE,
        )
        for mode in ("constant", "reflect", "replicate", "circular")
        for widths in ((1, 2), (3, 0), (2, 1, 1, 2), (0, 0, 1, 0), (-1, 2), (-1, -1, 2, -1))
        if mode != "circular" or min(widths) >= 0
    ),
    Op(
        "pad value",
        lambda x: F.pad(x, (1, 1), value=2.5),
        lambda t, x: t.nn.functional.pad(x, (1, 1), value=2.5),
        VECTORS,
    ),
    Op("pad nothing", lambda x: F.pad(x, (0, 0)), lambda t, x: t.nn.functional.pad(x, (0, 0)), VECTORS),
]

INDEXING = [
    same("[()]", lambda x: x[()], UNARY),
    same("[...]", lambda x: x[...], UNARY),
    same("[None]", lambda x: x[None], UNARY),
    same("[:, -1:]", lambda x: x[:, -1:], TABLE),
    same("[1::2, ..., 0]", lambda x: x[1::2, ..., 0], TABLE),
    same("[5:2]", lambda x: x[5:2], VECTORS),
    same("[-100:100:3]", lambda x: x[-100:100:3], VECTORS),
    same("[True]", lambda x: x[True], UNARY),
    same("[..., False]", lambda x: x[..., False], UNARY),
    same("[[0, -1, 0]]", lambda x: x[[0, -1, 0]], VECTORS[2:]),
    same("[[]]", lambda x: x[[]], VECTORS),
    both("[scalar tensor]", lambda w, x: x[w(1)], VECTORS[2:]),
    both("[grid]", lambda w, x: x[w(GRID)], (((3,),), ((4, 5),), ((3, 0),))),
    both("[:, grid]", lambda w, x: x[:, w(GRID)], TABLE),
    both("[0, :, indices]", lambda w, x: x[0, :, w(INDEX)], CUBE),
    both("[:, 1, indices]", lambda w, x: x[:, 1, w(INDEX)], CUBE),
    both("[indices, :, indices]", lambda w, x: x[w(GRID % 2), :, w(GRID)], CUBE),
    both("[indices, 1, indices]", lambda w, x: x[w(INDEX % 2), 1, w(INDEX)], CUBE),
    both("[:, indices, grid]", lambda w, x: x[:, w(GRID[:, :1]), w(GRID)], CUBE),
    both("[indices, None, indices]", lambda w, x: x[w(INDEX % 2), None, w(INDEX)], CUBE),
    both("[None, indices, ..., ::2]", lambda w, x: x[None, w(INDEX), ..., ::2], PLANE),
    both("[-1:, ..., negative]", lambda w, x: x[-1:, ..., w(INDEX - 3)], TABLE),
    both("[mask]", lambda w, x: x[w(EVEN)], PLANE),
    both("[:, mask]", lambda w, x: x[..., w(EVEN)], CUBE),
    both("[mask of all]", lambda w, x: x[x > 0], UNARY),
    both("[mask, 0]", lambda w, x: x[x[..., 0] > 0, 0], TABLE),
    both("[mask, indices]", lambda w, x: x[w(EVEN), w(INDEX[:2])], PLANE),
    both("[matrix mask, indices]", lambda w, x: x[w(GRID) > 1, w(INDEX[:2])], CUBE),
    both("[int32]", lambda w, x: x[w(INDEX.astype(np.int32))], PLANE),
    both("gather 0", lambda w, x: x.gather(0, w(GRID)), PLANE),
    both("gather -1", lambda w, x: x.gather(-1, w(GRID)), PLANE),
    both("gather 1", lambda w, x: x.gather(1, w(GRID[:, :, None])), CUBE),
    both("gather scalar", lambda w, x: x.sum().gather(0, w(0)), (((),),)),
    both("gather nothing", lambda w, x: x.gather(0, w(GRID[:0])), (((3, 4),), ((0, 4),))),
    both("index_select", lambda w, x: x.index_select(0, w(INDEX)), (((3,),), ((4, 5),), ((3, 0),))),
    both("index_select -1", lambda w, x: x.index_select(-1, w(INDEX)), TABLE),
    both("index_select scalar", lambda w, x: x.index_select(0, w([0])), (((),),)),
    both("index_select nothing", lambda w, x: x.index_select(0, w(INDEX[:0])), VECTORS),
    Op(
        "take_along_dim",
        lambda x: F.take_along_dim(x, Tensor(GRID[:, :1]), 1),
        lambda t, x: t.take_along_dim(x, t.tensor(GRID[:, :1]), 1),
        (((2, 3),), ((1, 3),)),
    ),
    both("take_along_dim broadcast", lambda w, x: x.take_along_dim(w(GRID), 0), (((3, 1),), ((3, 3),))),
    both("take_along_dim all", lambda w, x: x.take_along_dim(w(GRID)), UNARY[3:]),
    both("scatter_add", lambda w, x, s: x.scatter_add(0, w(GRID), s), (((3, 3), (2, 3)), ((4, 5), (2, 3)))),
    both("scatter_add -1", lambda w, x, s: x.scatter_add(-1, w(GRID), s), (((2, 3), (2, 3)),)),
    both("scatter_add scalar", lambda w, x, s: x.sum().scatter_add(0, w(0), s.sum()), (((), ()),)),
    both("index_add", lambda w, x, s: x.index_add(0, w(INDEX), s), (((3,), (4,)), ((3, 2), (4, 2)), ((3, 0), (4, 0)))),
    both("index_add -1", lambda w, x, s: x.index_add(-1, w(INDEX), s, alpha=-2.5), (((2, 3), (2, 4)),)),
    both("index_add scalar", lambda w, x, s: x.index_add(0, w([0]), s), (((), ()),)),
    both("masked_fill", lambda w, x: x.masked_fill(w(EVEN), -3), (((4,),), ((2, 4),), ((2, 3, 4),), ((0, 4),))),
    both("masked_fill broadcast", lambda w, x: x.masked_fill(w(GRID) > 0, -9), (((),), ((2, 1),), ((4, 1, 1),))),
    both("masked_fill tensor", lambda w, x, v: x.masked_fill(w(EVEN), v.sum()), (((4,), ()), ((2, 4), ()))),
    both("masked_select", lambda w, x: x.masked_select(w(EVEN)), (((4,),), ((2, 4),), ((0, 4),), ((3, 1),), ((),))),
    same("tril", lambda x: x.tril(), MATRICES),
    same("tril 1", lambda x: x.tril(1), MATRICES),
    same("triu", lambda x: x.triu(), MATRICES),
    same("triu -1", lambda x: x.triu(diagonal=-1), MATRICES),
    same("diagonal", lambda x: x.diagonal(), MATRICES),
    same("diagonal -1", lambda x: x.diagonal(-1, -2, -1), MATRICES),
    same("diagonal outside", lambda x: x.diagonal(7), MATRICES),
    same("diag", lambda x: x.diag(), (((3,),), ((0,),), ((4, 5),), ((5, 4),))),
    same("diag 1", lambda x: x.diag(1), (((3,),), ((0,),), ((4, 5),), ((5, 4),))),
]

OPS = [*VIEWS, *JOINING, *INDEXING]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of(OPS)
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


def shaped(*shape: int) -> Tensor:
    return Tensor(np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape), requires_grad=True)


# Memory.

VIEWS_OF_CUBE: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda x: x.reshape(6, 4),
    "view": lambda x: x.view(3, -1),
    "flatten": lambda x: x.flatten(),
    "unflatten": lambda x: x.unflatten(2, (2, 2)),
    "squeeze": lambda x: x.squeeze(),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "movedim": lambda x: x.movedim(0, 2),
    "expand": lambda x: x.expand(5, 2, 3, 4),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(1, 1),
    "split": lambda x: x.split(2, 1)[1],
    "unbind": lambda x: x.unbind(2)[3],
    "diagonal": lambda x: x.diagonal(),
    "getitem": lambda x: x[..., None, 1:, 0],
}
COPIES_OF_CUBE: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(0),
    "tile": lambda x: x.tile(1),
    "pad": lambda x: F.pad(x, (0, 0)),
    "tril": lambda x: x.tril(10),
    "masked_fill": lambda x: x.masked_fill(np.zeros(4, np.bool_), 1),
    "getitem by an array": lambda x: x[[0, 1]],
    "cat": lambda x: F.cat([x]),
}


@pytest.mark.parametrize("name", VIEWS_OF_CUBE)
def test_view_shares_memory(name: str) -> None:
    x = shaped(2, 3, 4)
    assert np.shares_memory(VIEWS_OF_CUBE[name](x).data, x.data)


@pytest.mark.parametrize("name", COPIES_OF_CUBE)
def test_copy_does_not_share_memory(name: str) -> None:
    x = shaped(2, 3, 4)
    assert not np.shares_memory(COPIES_OF_CUBE[name](x).data, x.data)


def test_contiguous_tensor_is_its_own_contiguous() -> None:
    x = shaped(2, 3)
    assert x.contiguous() is x
    assert x.T.contiguous().data.flags.c_contiguous


# Parts that share a gradient.


def test_part_without_use_gets_no_gradient() -> None:
    x = shaped(5)
    first, _, last = x.split(2)
    (first.sum() + 3 * last.sum()).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 0, 3]


def test_parts_can_be_differentiated_again() -> None:
    x = shaped(4)
    first, last = x.chunk(2)
    y = (first * last).sum()
    y.backward(retain_graph=True)
    last.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 3, 0 + 1, 1 + 1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(-2, 1))
@settings(max_examples=30, deadline=None)
def test_cat_undoes_split(sizes: list[int], dim: int) -> None:
    shape = (sum(sizes), 2) if dim in (0, -2) else (2, sum(sizes))
    x = shaped(*shape)
    y = F.cat(x.split(sizes, dim), dim)
    np.testing.assert_array_equal(y.data, x.data)
    gradient = np.asarray(x.data * 2 + 1)
    y.backward(gradient)
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.data, gradient)


@given(st.integers(1, 7), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_stack_undoes_unbind_and_chunks_are_pytorchs(size: int, chunks: int) -> None:
    x = shaped(size, 2)
    np.testing.assert_array_equal(F.stack(x.unbind(1), 1).data, x.data)
    step = -(-size // chunks)
    assert [len(part) for part in x.chunk(chunks)] == [len(part) for part in x.split(step)]


def test_chunks_of_nothing_are_as_many_as_asked() -> None:
    assert [part.shape for part in shaped(2, 0).chunk(3, 1)] == [(2, 0)] * 3
    assert [part.shape for part in shaped(0).split(0)] == [(0,)]


# Indexing.


@st.composite
def indices(draw: st.DrawFn) -> tuple[Any, ...]:
    """An index of a tensor (3, 3, 3): arrays are of shapes that broadcast, and masks name two elements."""
    arrays = st.sampled_from([(), (2,), (1,), (2, 1)]).map(
        lambda shape: (np.arange(np.prod(shape, dtype=int)) * 2 % 3).reshape(shape)
    )
    mask = st.just(np.array([True, False, True]))
    part = st.one_of(
        st.integers(-3, 2),
        st.slices(3).map(lambda s: slice(s.start, s.stop, abs(s.step or 1))),
        st.sampled_from([None, True]),
        arrays,
        mask,
    )
    parts = draw(st.lists(part, max_size=3))
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), ...)
    return tuple(parts)


@pytest.mark.torch
@given(indices())
@settings(max_examples=200, deadline=None)
def test_any_index_is_pytorchs(index: tuple[Any, ...]) -> None:
    torch = pytest.importorskip("torch")
    x = shaped(3, 3, 3)
    t = torch.tensor(x.data, requires_grad=True)
    y = x[index]
    expected = t[tuple(torch.tensor(part) if isinstance(part, np.ndarray) else part for part in index)]
    np.testing.assert_array_equal(y.data, expected.detach().numpy())
    gradient = np.arange(y.numel(), dtype=np.float32).reshape(y.shape)
    y.backward(gradient)
    expected.backward(torch.tensor(gradient))
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.data, t.grad.numpy())


def test_slice_bounds_can_be_tensors() -> None:
    assert shaped(5)[Tensor(1) : Tensor(4) : Tensor(2)].tolist() == [1, 3]


def test_iteration_ends() -> None:
    assert [row.tolist() for row in shaped(2, 2)] == [[0, 1], [2, 3]]


def test_filled_infinity_leaves_no_nan_in_the_gradient() -> None:
    x = shaped(2, 2)
    F.softmax(x.masked_fill(Tensor([[False, True], [False, False]]), -np.inf), -1)[0, 0].backward()
    assert x.grad is not None
    assert np.isfinite(x.grad.data).all()


def test_source_may_be_larger_than_the_index() -> None:
    x, source = shaped(4), shaped(3)
    y = x.scatter_add(0, [3, 3], source)
    assert y.tolist() == [0, 1, 2, 4]
    y.backward(np.array([1, 2, 3, 4]))
    assert source.grad is not None
    assert source.grad.tolist() == [4, 4, 0]


@pytest.mark.parametrize("columns", [1, 5])
def test_scattered_rows_are_added_in_the_order_of_indices(columns: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, 1000)
    values = rng.standard_normal((1000, columns)).astype(np.float32)
    got = np.zeros((3, columns), np.float32)
    kernels.scatter_rows_add(got, rows, values)
    expected = np.zeros((3, columns), np.float32)
    for row, value in zip(rows, values, strict=True):
        expected[row] += value
    np.testing.assert_array_equal(got, expected)


# Creation.


def test_new_tensors() -> None:
    x = F.zeros(2, 3, requires_grad=True)
    assert (x.shape, x.requires_grad) == ((2, 3), True)
    assert F.ones((2,), dtype=np.int64).tolist() == [1, 1]
    assert F.zeros().shape == F.zeros(()).shape == ()
    assert F.full((2,), 7).dtype == np.int64
    assert F.full((2,), True).dtype == np.bool_
    assert F.full((2,), 7.0).tolist() == [7, 7]
    assert F.full((2,), 7.0).dtype == np.float32
    for like in (F.zeros_like(x), F.ones_like(x), F.full_like(x, 2)):
        assert (like.shape, like.requires_grad) == ((2, 3), False)
        assert like.dtype == np.float32
    assert F.ones_like(x, dtype=np.int32).dtype == np.int32


def test_arange() -> None:
    assert F.arange(3).tolist() == [0, 1, 2]
    assert F.arange(3).dtype == np.int64
    assert F.arange(1, 2, 0.25).tolist() == [1, 1.25, 1.5, 1.75]
    assert F.arange(1, 2, 0.25).dtype == np.float32
    assert F.arange(3, 0, -1).tolist() == [3, 2, 1]
    assert F.arange(0).shape == (0,)


def test_tensor_copies() -> None:
    a = np.ones(2)
    x = F.tensor(a)
    a[0] = 5
    assert x.tolist() == [1, 1]
    assert x.dtype == np.float64
    y = F.tensor(x, dtype=np.float32, requires_grad=True)
    assert (y.is_leaf, y.requires_grad) == (True, True)
    assert y.dtype == np.float32
    assert not np.shares_memory(y.data, x.data)
    assert F.tensor([1.0]).dtype == np.float32


# Errors.

MASK = np.array([True, False, True])
ERRORS: Sequence[tuple[type[Exception], Callable[[], object], str]] = [
    (
        ValueError,
        lambda: shaped(2, 3).T.view(6),
        "view: x has shape (3, 2) and strides (1, 3), got (6,); use reshape, or",
    ),
    (
        ValueError,
        lambda: shaped(2, 3).view(7),
        "view: x has shape (2, 3) and strides (3, 1), got (7,); which does not fit",
    ),
    (ValueError, lambda: shaped(2).reshape(1.0, 2), "reshape: got (1.0, 2), expected integers"),
    (ValueError, lambda: shaped(2, 6).unflatten(1, (4, -1)), "unflatten: dim 1 of x has size 6, which does not divide"),
    (ValueError, lambda: shaped(2).unsqueeze(2), "unsqueeze: dim is 2, expected -2..1"),
    (ValueError, lambda: shaped(2, 2).squeeze((0, -2)), "squeeze: dims (0, -2) name a dimension twice"),
    (
        ValueError,
        lambda: shaped(2, 2).movedim((0, 1), 0),
        "movedim: source is (0, 1) but destination is 0, expected as",
    ),
    (ValueError, lambda: shaped(2, 3).expand(2, 4), "expand: x has shape (2, 3), which does not expand to (2, 4)"),
    (ValueError, lambda: shaped(2).expand(-1, 2), "expand: x has shape (2,), which does not expand to (-1, 2)"),
    (ValueError, lambda: shaped(2).narrow(0, 1, 2), "narrow: got start 1 and length 2, but dim 0 of x has size 2"),
    (ValueError, lambda: shaped().select(0, 0), "select: x has no dimensions"),
    (IndexError, lambda: shaped(2).select(0, 2), "select: index is 2 but dim 0 of x has size 2"),
    (ValueError, lambda: F.cat([]), "cat: got shapes [], expected tensors with dimensions"),
    (
        ValueError,
        lambda: F.cat([shaped(2), shaped(2, 1)]),
        "cat: got shapes [(2,), (2, 1)], expected them equal but for",
    ),
    (ValueError, lambda: F.stack([shaped(2), shaped(3)]), "stack: got shapes [(2,), (3,)], expected at least one, and"),
    (
        ValueError,
        lambda: shaped(4).split([1, 2]),
        "split: dim 0 of x has size 4, got sections (1, 2), expected them to",
    ),
    (ValueError, lambda: shaped(4).split(0), "split: split_size is 0, expected a positive one"),
    (ValueError, lambda: shaped(4).chunk(0), "chunk: chunks is 0, expected a positive number"),
    (ValueError, lambda: iter(shaped()), "unbind: x has no dimensions"),
    (ValueError, lambda: shaped(4).roll((1, 2), 0), "roll: shifts is (1, 2) but dims is 0, expected as many of both"),
    (ValueError, lambda: shaped(4, 2).repeat(2), "repeat: got (2,), expected a number for each of the 2 dimensions"),
    (
        ValueError,
        lambda: F.pad(shaped(4), (1,)),
        "pad: got (1,), expected two numbers for each of at most 1 dimensions",
    ),
    (
        ValueError,
        lambda: F.pad(shaped(4), (4, 0), "reflect"),
        "pad: dim 0 of x has size 4, which mode 'reflect' cannot",
    ),
    (ValueError, lambda: F.pad(shaped(4), (-3, -2)), "pad: dim 0 of x has size 4, which mode 'constant' cannot pad by"),
    (ValueError, lambda: F.pad(shaped(4), (1, 1), "reflect", 1), "pad: value is 1, expected none in mode 'reflect'"),
    (IndexError, lambda: shaped(2)[2], "getitem: index 2 is outside of dim 0 of size 2"),
    (IndexError, lambda: shaped(2)[0, 0], "getitem: got indices for 2 dimensions and 0 '...', but x has shape (2,)"),
    (IndexError, lambda: shaped(2)[[2]], "getitem: index 2 is out of bounds for axis 0 with size 2"),
    (IndexError, lambda: shaped(2)[MASK], "getitem: the mask for dim 0 has shape (3,), expected (2,)"),
    (IndexError, lambda: shaped(2)[Tensor([0.0])], "getitem: an index is float32, expected integers or booleans"),
    (ValueError, lambda: shaped(2)[::-1], "getitem: the step of a slice is -1, expected a positive one; see flip"),
    (
        ValueError,
        lambda: shaped(2, 2).gather(0, [0]),
        "gather: index has shape (1,) but x has (2, 2), expected as many",
    ),
    (ValueError, lambda: shaped(2, 2).gather(0, [[0, 0, 0]]), "gather: index has shape (1, 3), which is larger than x"),
    (IndexError, lambda: shaped(2).gather(0, [-1]), "gather: index has -1, expected 0..1"),
    (ValueError, lambda: shaped(2).gather(0, [0.5]), "gather: index is float64, expected integers"),
    (
        ValueError,
        lambda: shaped(2).scatter_add(0, [0, 0], shaped(1)),
        "scatter_add: index has shape (2,), which is larger",
    ),
    (ValueError, lambda: shaped(2).index_select(0, [[0]]), "index_select: index has shape (1, 1), expected one size"),
    (ValueError, lambda: shaped(2).index_add(0, [0], shaped(2)), "index_add: source has shape (2,), expected (1,)"),
    (ValueError, lambda: shaped(2, 2).take_along_dim([0], 0), "take_along_dim: x has shape (2, 2) but indices (1,)"),
    (ValueError, lambda: shaped(2).masked_fill([0, 1], 0), "masked_fill: mask is int64, expected bool"),
    (
        ValueError,
        lambda: shaped(2).masked_fill(MASK, 0),
        "masked_fill: x has shape (2,) but mask has (3,), which do not",
    ),
    (
        ValueError,
        lambda: shaped(3).masked_fill(MASK, shaped(1)),
        "masked_fill: value has shape (1,), expected a number",
    ),
    (ValueError, lambda: shaped(3).tril(), "tril: x has shape (3,), expected at least two dimensions"),
    (ValueError, lambda: shaped(2, 2).diagonal(0, 1, -1), "diagonal: dims (1, -1) name a dimension twice"),
    (ValueError, lambda: shaped(1, 1, 1).diag(), "diag: x has shape (1, 1, 1), expected a vector or a matrix"),
    (ValueError, lambda: F.arange(3, 0), "arange: got start 3, end 0 and step 1, expected a step from start to end"),
]


@pytest.mark.parametrize(("error", "operation", "message"), ERRORS)
def test_error_says_what_is_wrong(error: type[Exception], operation: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        operation()
