"""The losses, one row each, under every reduction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.unit.operations import (
    BROADCAST,
    UNARY,
    Array,
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.nn import init

REDUCTIONS = ("mean", "sum", "none")
PAIRS: Sequence[Case] = tuple((case[0], case[0]) for case in UNARY)
LOGITS: Sequence[Case] = (((3,),), ((6, 3),), ((0, 3),), ((2, 3, 4),), ((2, 3, 2, 2),))
SCORES_AND_PROBABILITIES: Sequence[Case] = tuple((case[0], case[0]) for case in LOGITS)
BROADCAST_RANKS: Sequence[Case] = tuple(case for case in BROADCAST if len(case[0]) == len(case[1]))
VECTORS: Sequence[Case] = (((5,), (5,)), ((4, 5), (4, 5)), ((0, 5), (0, 5)))


def classes(shape: tuple[int, ...]) -> Array:
    """Class indices for logits of this shape."""
    targets = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    return np.asarray((np.arange(np.prod(targets, dtype=int)) * 5 + 2) % shape[min(1, len(shape) - 1)]).reshape(targets)


def signs(shape: tuple[int, ...]) -> Array:
    """1 and -1 in an irregular order, as floats: these targets are multiplied with."""
    return np.asarray((np.arange(np.prod(shape, dtype=int)) * 7 % 5 < 2) * 2 - 1, np.float32).reshape(shape)


def like(x: Any, array: Array) -> Any:
    """The array as a constant of the kind that x is: ours, or PyTorch's. Floats take x's dtype."""
    if isinstance(x, Tensor):
        return Tensor(array.astype(x.dtype) if array.dtype.kind == "f" else array)
    tensor = pytest.importorskip("torch").tensor(array)
    return tensor.to(x.dtype) if array.dtype.kind == "f" else tensor


def row(
    title: str,
    name: str,
    call: Callable[..., Any],
    cases: Sequence[Case],
    reductions: Sequence[str] = REDUCTIONS,
    **options: Any,
) -> Iterator[Op]:
    """`call(f, *tensors, reduction=…)` with our function f or PyTorch's of that name, for each reduction."""
    for reduction in reductions:
        yield Op(
            f"{title} {reduction}",
            lambda *x, r=reduction: call(getattr(F, name), *x, reduction=r),
            lambda t, *x, r=reduction: call(getattr(t.nn.functional, name), *x, reduction=r),
            cases,
            **options,
        )


def direct(**named: Any) -> Callable[..., Any]:
    return lambda f, *x, reduction: f(*x, reduction=reduction, **named)


def to_classes(weight: bool = False, **named: Any) -> Callable[..., Any]:
    """A loss of scores and class indices; the weights of three classes are fixed."""

    def call(f: Any, x: Any, *, reduction: str) -> Any:
        weights = {"weight": like(x, np.array([0.2, 1.5, 0.7], np.float32))} if weight else {}
        return f(x, like(x, classes(tuple(x.shape))), reduction=reduction, **weights, **named)

    return call


def to_probabilities(weight: bool = False, **named: Any) -> Callable[..., Any]:
    def call(f: Any, x: Any, y: Any, *, reduction: str) -> Any:
        weights = {"weight": like(x, np.array([0.2, 1.5, 0.7], np.float32))} if weight else {}
        return f(x, y, reduction=reduction, **weights, **named)

    return call


def bce(f: Any, x: Any, y: Any, *, reduction: str) -> Any:
    return f(sigmoid(x), sigmoid(y), weight=like(x, weights_of(x)), reduction=reduction)


def bce_with_logits(f: Any, x: Any, y: Any, *, reduction: str) -> Any:
    return f(
        x, y, weight=like(x, weights_of(x)), pos_weight=like(x, np.float32(2.5) + weights_of(x)), reduction=reduction
    )


def weights_of(x: Any) -> Array:
    size = x.shape[-1] if len(x.shape) else 1
    return (np.arange(size, dtype=np.float32) * 0.3 + 0.5).reshape(x.shape[-1:])


def sigmoid(x: Any) -> Any:
    return 1 / (1 + (-x).exp())


def gaussian(**named: Any) -> Callable[..., Any]:
    return lambda f, x, y, var, *, reduction: f(x, y, var * var, reduction=reduction, **named)


def with_signs(**named: Any) -> Callable[..., Any]:
    """A loss of two vectors or scores, and targets 1 and -1 of the given shape."""

    def call(f: Any, x: Any, y: Any, *, reduction: str) -> Any:
        shape = tuple(np.broadcast_shapes(tuple(x.shape), tuple(y.shape)))
        if f.__name__.startswith("cosine"):
            shape = shape[:-1]
        return f(x, y, like(x, signs(shape)), reduction=reduction, **named)

    return call


OPS = [
    *row("cross_entropy", "cross_entropy", to_classes(ignore_index=1), LOGITS),
    *row("cross_entropy weight", "cross_entropy", to_classes(weight=True), LOGITS),
    *row("cross_entropy weight ignore", "cross_entropy", to_classes(weight=True, ignore_index=2), LOGITS[1:]),
    *row("cross_entropy smooth", "cross_entropy", to_classes(label_smoothing=0.3, ignore_index=1), LOGITS),
    *row("cross_entropy smooth weight", "cross_entropy", to_classes(weight=True, label_smoothing=0.3), LOGITS),
    *row("cross_entropy probabilities", "cross_entropy", to_probabilities(), SCORES_AND_PROBABILITIES),
    *row(
        "cross_entropy probabilities smooth weight",
        "cross_entropy",
        to_probabilities(weight=True, label_smoothing=0.3),
        SCORES_AND_PROBABILITIES,
    ),
    *row("nll_loss", "nll_loss", to_classes(ignore_index=1), LOGITS),
    *row("nll_loss weight", "nll_loss", to_classes(weight=True, ignore_index=2), LOGITS[1:]),
    *row("binary_cross_entropy", "binary_cross_entropy", bce, PAIRS),
    *row("bce_with_logits", "binary_cross_entropy_with_logits", direct(), PAIRS),
    *row("bce_with_logits weights", "binary_cross_entropy_with_logits", bce_with_logits, PAIRS),
    *row("mse_loss", "mse_loss", direct(), PAIRS),
    *row("l1_loss", "l1_loss", direct(), PAIRS, has_kink=True),
    *row("smooth_l1_loss", "smooth_l1_loss", direct(), PAIRS),
    *row("smooth_l1_loss 0.3", "smooth_l1_loss", direct(beta=0.3), PAIRS),
    *row("smooth_l1_loss 0", "smooth_l1_loss", direct(beta=0.0), PAIRS, has_kink=True),
    *row("huber_loss", "huber_loss", direct(), PAIRS),
    *row("huber_loss 0.3", "huber_loss", direct(delta=0.3), PAIRS),
    *row("kl_div", "kl_div", direct(), PAIRS, positive=True),
    *row("kl_div batch", "kl_div", direct(), PAIRS[3:], reductions=["batchmean"], positive=True),
    *row("kl_div log_target", "kl_div", direct(log_target=True), BROADCAST, positive=True),
    *row("poisson_nll_loss", "poisson_nll_loss", direct(full=True), PAIRS, positive=True),
    *row("poisson_nll_loss broadcast", "poisson_nll_loss", direct(), BROADCAST, positive=True),
    *row("poisson_nll_loss rate", "poisson_nll_loss", direct(log_input=False, eps=0.1), PAIRS, positive=True),
    *row(
        "gaussian_nll_loss",
        "gaussian_nll_loss",
        gaussian(full=True),
        (*(case * 3 for case in UNARY), ((4, 5), (4, 5), (4, 1)), ((4, 5), (4, 5), (4,)), ((4, 2), (4, 2), (1, 2))),
        positive=True,
        tolerance=5e-6,
    ),
    *row(
        "hinge_embedding_loss",
        "hinge_embedding_loss",
        lambda f, x, *, reduction: f(x, like(x, signs(tuple(x.shape))), margin=0.8, reduction=reduction),
        UNARY,
        has_kink=True,
    ),
    *row("margin_ranking_loss", "margin_ranking_loss", with_signs(margin=0.5), BROADCAST_RANKS, has_kink=True),
    *row("cosine_embedding_loss", "cosine_embedding_loss", with_signs(margin=0.2), VECTORS, has_kink=True),
    *(
        op
        for named in ({}, {"p": 1.0, "margin": 3.0}, {"swap": True})
        for op in row(
            f"triplet_margin_loss {named or ''}",
            "triplet_margin_loss",
            direct(**named),
            (((5,), (5,), (5,)), ((4, 5), (4, 5), (4, 5)), ((0, 5), (0, 5), (0, 5))),
            has_kink=True,
            tolerance=1e-5,
        )
    ),
]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")  # PyTorch's, of kl_div
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of([op for op in OPS if not op.has_kink and "mean" not in op.name])  # the mean of nothing is NaN
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


@pytest.mark.torch
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("x", [0.0, 1.0, 1e-30])
def test_binary_cross_entropy_is_finite_at_the_ends(x: float, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    p, t = np.full(3, x, np.float32), np.array([0, 0.5, 1], np.float32)
    check_pair(torch, "binary_cross_entropy", p, t, reduction=reduction, leaves=1)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["binary_cross_entropy_with_logits", "cross_entropy"])
def test_large_logits_do_not_overflow(name: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.array([[1e4, -1e4, 0], [-90, 90, 88]], np.float32)
    check_pair(torch, name, x, np.array([[0, 1, 0.5], [1, 0, 0]], np.float32))


@pytest.mark.torch
def test_losses_at_the_margin_have_pytorchs_gradients() -> None:
    torch = pytest.importorskip("torch")
    x, y = np.array([1, 2, 3, 3], np.float32), np.array([2, 1, 3, 3], np.float32)
    t = np.array([1, 1, 1, -1], np.float32)
    for margin in (0.0, 1.0):
        check_pair(torch, "margin_ranking_loss", x, y, t, margin=margin, reduction="sum")
    check_pair(torch, "hinge_embedding_loss", x, -t, margin=1.0, reduction="sum", leaves=1)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
def test_kl_div_of_an_impossible_class_is_nothing() -> None:
    torch = pytest.importorskip("torch")
    check_pair(torch, "kl_div", np.zeros(3, np.float32), np.array([0, 0.25, 0.75], np.float32), leaves=1)


@pytest.mark.torch
def test_hinge_embedding_takes_any_other_target_as_pytorch_does() -> None:
    torch = pytest.importorskip("torch")
    check_pair(torch, "hinge_embedding_loss", np.array([0.5, 2], np.float32), np.zeros(2, np.float32), leaves=1)


def check_pair(torch: Any, name: str, *arrays: Array, leaves: int = 2, **named: Any) -> None:
    """The loss and its gradients by the first `leaves` arguments are PyTorch's."""
    ours = [Tensor(a.copy(), requires_grad=i < leaves) for i, a in enumerate(arrays)]
    theirs = [torch.tensor(a, requires_grad=i < leaves) for i, a in enumerate(arrays)]
    y, expected = getattr(F, name)(*ours, **named), getattr(torch.nn.functional, name)(*theirs, **named)
    y.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(y.data, expected.detach().numpy(), rtol=2e-6, atol=1e-6)
    for x, t in zip(ours[:leaves], theirs[:leaves], strict=True):
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.data, t.grad.numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss", "kl_div", "margin_ranking_loss"])
def test_integer_targets_do_not_make_a_loss_float64(name: str) -> None:
    x, t = Tensor([0.5, 2.0], requires_grad=True), Tensor(np.array([1, -1]))
    loss = F.margin_ranking_loss(x, x, t) if name == "margin_ranking_loss" else getattr(F, name)(x, t)
    assert loss.dtype == np.float32


def test_mean_over_no_target_is_nan_and_its_gradient_too() -> None:
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    for loss in (F.cross_entropy, F.nll_loss):
        y = loss(x, Tensor([1, 1]), ignore_index=1)
        assert np.isnan(y.item())


def test_a_gaussian_variance_may_be_a_number() -> None:
    x, t = Tensor([1.0, 2.0], requires_grad=True), Tensor([0.0, 0.0])
    assert F.gaussian_nll_loss(x, t, 4.0).item() == pytest.approx(0.5 * (np.log(4) + 2.5 / 4))


FLOATS = Tensor(init.generator(1).standard_normal((2, 3)).astype(np.float32))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: F.mse_loss(x, x.sum(0)), "mse_loss: input has shape (2, 3) but target has (3,)"),
        (lambda x: F.huber_loss(x, x, delta=0), "huber_loss: delta is 0, expected more than 0"),
        (lambda x: F.smooth_l1_loss(x, x, beta=-1), "smooth_l1_loss: beta is -1, expected at least 0"),
        (
            lambda x: F.mse_loss(x, x, reduction="max"),  # type: ignore[arg-type]
            "mse_loss: reduction is 'max', expected one of mean, sum, none",
        ),
        (
            lambda x: F.cross_entropy(x, Tensor([0, 3])),
            "cross_entropy: the target of row 1 is 3, expected 0..2",
        ),
        (
            lambda x: F.cross_entropy(x, Tensor([-1, 0]), label_smoothing=0.1),
            "cross_entropy: the target of row 0 is -1, expected 0..2",
        ),
        (
            lambda x: F.cross_entropy(x, Tensor([0.0, 1.0])),
            "cross_entropy: target is float32 of shape (2,), expected integers (class indices), or probabilities",
        ),
        (
            lambda x: F.cross_entropy(x, Tensor([0, 1, 2])),
            "cross_entropy: input has shape (2, 3) but target has (3,), expected (2,)",
        ),
        (
            lambda x: F.cross_entropy(x, Tensor([0, 1]), Tensor([1.0, 1.0])),
            "cross_entropy: weight has shape (2,), expected (3,), one for each class",
        ),
        (
            lambda x: F.cross_entropy(x, Tensor([0, 1]), label_smoothing=2),
            "cross_entropy: label_smoothing is 2, expected 0..1",
        ),
        (lambda x: F.cross_entropy(x.sum(), Tensor(1)), "cross_entropy: input is a scalar, expected logits"),
        (lambda x: F.nll_loss(x, Tensor([0, 3])), "nll_loss: the target of row 1 is 3, expected 0..2"),
        (lambda x: F.nll_loss(x, x), "nll_loss: target is float32, expected integers (class indices)"),
        (lambda x: F.binary_cross_entropy(x * 0 + 2, x), "binary_cross_entropy: got inputs in 2.0..2.0, expected 0..1"),
        (
            lambda x: F.binary_cross_entropy_with_logits(x, x, Tensor([1.0, 2.0])),
            "binary_cross_entropy_with_logits: weight has shape (2,), which does not fit (2, 3)",
        ),
        (
            lambda x: F.gaussian_nll_loss(x, x, Tensor(np.ones((3, 2)))),
            "gaussian_nll_loss: var has shape (3, 2) but input has (2, 3)",
        ),
        (lambda x: F.gaussian_nll_loss(x, x, -1.0), "gaussian_nll_loss: the smallest var is -1.0"),
        (
            lambda x: F.triplet_margin_loss(x, x, x[0]),
            "triplet_margin_loss: got shapes (2, 3), (2, 3) and (3,), expected as many dimensions each",
        ),
        (lambda x: F.margin_ranking_loss(x, x, x[0]), "margin_ranking_loss: got shapes (2, 3), (2, 3) and (3,)"),
        (lambda x: F.triplet_margin_loss(x, x, x, margin=0), "triplet_margin_loss: margin is 0, expected more than 0"),
        (
            lambda x: F.cosine_embedding_loss(x, x, Tensor([1, 1, 1])),
            "cosine_embedding_loss: target has shape (3,), expected (2,) for (2, 3)",
        ),
        (
            lambda x: F.cosine_embedding_loss(x, x[0], Tensor([1, 1])),
            "cosine_embedding_loss: got inputs of shapes (2, 3) and (3,), expected (N, D) or (D,) twice",
        ),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation(FLOATS)
