"""Optimizers against PyTorch's and against their formulas in float64; exactness of ranges; schedules; clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import optim
from worker.autodiff import Tensor, kernels
from worker.nn import Parameter, init
from worker.optim import clip_grad_norm_, clip_scale, rules, schedules

Vector = np.ndarray[Any, np.dtype[np.float32]]

RULES = [
    rules.SGD(),
    rules.SGD(weight_decay=0.1),
    rules.Momentum(0.9),
    rules.Momentum(0.5, weight_decay=0.1),
    rules.Adam(),
    rules.Adam(0.8, 0.95, 1e-6, weight_decay=0.1),
    rules.AdamW(weight_decay=0.1),
]
BY_RULE = pytest.mark.parametrize("rule", RULES, ids=str)

SHAPES = ((4, 3), (4,), (2, 4), ())


def vectors(rule: rules.Rule, size: int) -> tuple[Vector, Vector, list[Vector]]:
    """Weights, gradient and a state as it may be in the middle of training."""
    rng = init.generator(11, size)
    weights, gradient, *state = (rng.standard_normal(size).astype(np.float32) for _ in range(2 + len(rule.state_names)))
    return weights, gradient, [np.abs(vector) for vector in state]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(lambda p: optim.SGD(p, 0.1), lambda t, p: t.SGD(p, 0.1), id="SGD"),
        pytest.param(
            lambda p: optim.SGD(p, 0.1, weight_decay=0.2), lambda t, p: t.SGD(p, 0.1, weight_decay=0.2), id="SGD decay"
        ),
        pytest.param(lambda p: optim.Momentum(p, 0.1), lambda t, p: t.SGD(p, 0.1, momentum=0.9), id="Momentum"),
        pytest.param(
            lambda p: optim.Momentum(p, 0.1, 0.5, weight_decay=0.2),
            lambda t, p: t.SGD(p, 0.1, momentum=0.5, weight_decay=0.2),
            id="Momentum decay",
        ),
        pytest.param(lambda p: optim.Adam(p, 0.01), lambda t, p: t.Adam(p, 0.01), id="Adam"),
        pytest.param(
            lambda p: optim.Adam(p, 0.01, (0.8, 0.95), 1e-6, 0.2),
            lambda t, p: t.Adam(p, 0.01, (0.8, 0.95), 1e-6, 0.2),
            id="Adam decay",
        ),
        pytest.param(lambda p: optim.AdamW(p, 0.01), lambda t, p: t.AdamW(p, 0.01), id="AdamW"),
        pytest.param(
            lambda p: optim.AdamW(p, 0.01, (0.8, 0.95), 1e-6, 0.2),
            lambda t, p: t.AdamW(p, 0.01, (0.8, 0.95), 1e-6, 0.2),
            id="AdamW decay",
        ),
    ],
)
def test_twenty_steps_are_pytorchs(
    ours: Callable[[list[Parameter]], optim.Optimizer], theirs: Callable[[Any, list[Any]], Any]
) -> None:
    torch = pytest.importorskip("torch")
    rng = init.generator(5)
    start = [np.asarray(rng.standard_normal(shape), np.float32) for shape in SHAPES]
    mine = [Parameter(a.copy()) for a in start]
    other = [torch.tensor(a.copy(), requires_grad=True) for a in start]
    optimizer, reference = ours(mine), theirs(torch.optim, other)
    for _ in range(20):
        for p, t in zip(mine, other, strict=True):
            gradient = np.asarray(rng.standard_normal(p.shape), np.float32)
            p.accumulate_grad(gradient)
            t.grad = torch.tensor(gradient)
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
    for p, t in zip(mine, other, strict=True):
        np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_momentum_is_its_formula_in_float64() -> None:
    rule = rules.Momentum(0.9)
    w, g, (v,) = vectors(rule, 50)
    expected_w, expected_v = w.astype(np.float64), v.astype(np.float64)
    for step in range(1, 6):
        expected_v = 0.9 * expected_v - 0.1 * g
        expected_w = expected_w + expected_v
        rule.update(w, g, [v], w, [v], step=step, learning_rate=0.1)
    np.testing.assert_allclose(w, expected_w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(v, expected_v, rtol=1e-5, atol=1e-6)


@BY_RULE
def test_scale_multiplies_the_gradient(rule: rules.Rule) -> None:
    w, g, state = vectors(rule, 100)
    scaled, plain = np.empty_like(w), np.empty_like(w)
    new_state = [np.empty_like(w) for _ in state]
    rule.update(w, g, state, scaled, new_state, step=3, learning_rate=0.1, scale=0.25)
    rule.update(w, g * np.float32(0.25), state, plain, new_state, step=3, learning_rate=0.1)
    np.testing.assert_array_equal(scaled, plain)


@BY_RULE
@given(data=st.data())
def test_any_partition_in_place_or_not_gives_the_same_bits(rule: rules.Rule, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 7, 100, kernels.BLOCK, 2 * kernels.BLOCK + 35]))
    cuts = data.draw(st.lists(st.integers(0, size), max_size=4).map(sorted))
    w, g, state = vectors(rule, size)
    whole, whole_state = np.empty_like(w), [np.empty_like(w) for _ in state]
    rule.update(w, g, state, whole, whole_state, step=2, learning_rate=0.01, scale=0.7)

    in_place = data.draw(st.booleans())
    new = w if in_place else np.empty_like(w)
    new_state = state if in_place else [np.empty_like(w) for _ in state]
    for first, last in zip([0, *cuts], [*cuts, size], strict=True):
        part = slice(first, last)
        into = w[part]
        rule.update(
            into,
            g[part],
            [s[part] for s in state],
            into if in_place else new[part],
            [s[part] for s in new_state],
            step=2,
            learning_rate=0.01,
            scale=0.7,
        )
    for got, expected in zip([new, *new_state], [whole, *whole_state], strict=True):
        np.testing.assert_array_equal(got, expected)


@BY_RULE
def test_update_beside_leaves_its_inputs_alone(rule: rules.Rule) -> None:
    w, g, state = vectors(rule, 100)
    before = [a.copy() for a in (w, g, *state)]
    rule.update(w, g, state, np.empty_like(w), [np.empty_like(w) for _ in state], step=1, learning_rate=0.1)
    for a, b in zip((w, g, *state), before, strict=True):
        np.testing.assert_array_equal(a, b)


@BY_RULE
def test_nan_reaches_the_weights(rule: rules.Rule) -> None:
    w, g, state = vectors(rule, 100)
    g[40] = np.nan
    rule.update(w, g, state, w, state, step=1, learning_rate=0.1)
    assert np.flatnonzero(np.isnan(w)).tolist() == [40]


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: rules.SGD(weight_decay=bad),
        lambda bad: rules.Momentum(momentum=bad),
        lambda bad: rules.Adam(beta1=bad),
        lambda bad: rules.Adam(beta2=bad),
        lambda bad: rules.Adam(epsilon=bad),
        lambda bad: rules.AdamW(weight_decay=bad),
        lambda bad: optim.SGD([Parameter([1.0])], lr=bad),
        lambda bad: optim.Adam([Parameter([1.0])], betas=(0.9, bad)),
    ],
)
def test_bad_hyperparameter_is_refused(make: Callable[[float], object], bad: float) -> None:
    with pytest.raises(ValueError, match=rf"^\w+: \w+ is {bad}, expected at least 0"):
        make(bad)


def test_decay_rate_must_be_below_one() -> None:
    with pytest.raises(ValueError, match=r"^Adam: beta1 is 1\.0, expected at least 0 and below 1"):
        rules.Adam(beta1=1.0)


class TestOptimizer:
    def test_step_without_gradients_changes_nothing(self) -> None:
        parameter = Parameter([1.0, 2.0])
        optimizer = optim.AdamW([parameter], weight_decay=0.5)
        optimizer.step()
        assert parameter.tolist() == [1.0, 2.0]
        assert optimizer.num_steps == 0

    def test_parameter_without_gradient_counts_as_zero_gradient(self) -> None:
        used, unused = Parameter([1.0]), Parameter([2.0])
        optimizer = optim.SGD([used, unused], lr=1.0)
        for _ in range(2):
            (used * 1).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (used.item(), unused.item()) == (-1.0, 2.0)

    def test_gradient_set_by_hand_is_used(self) -> None:
        parameter = Parameter([1.0])
        optimizer = optim.SGD([parameter], lr=1.0)
        parameter.grad = Tensor([0.25])
        optimizer.step()
        assert parameter.item() == 0.75

    def test_lr_can_be_changed(self) -> None:
        parameter = Parameter([1.0])
        optimizer = optim.SGD([parameter], lr=1.0)
        optimizer.lr = 0.5
        (parameter * 1).sum().backward()
        optimizer.step()
        assert parameter.item() == 0.5

    def test_goes_on_from_its_state_dict(self) -> None:
        def train(optimizer: optim.Optimizer, steps: int) -> None:
            for _ in range(steps):
                (optimizer.flat.parameters[0] ** 2).sum().backward()
                optimizer.step()
                optimizer.zero_grad()

        whole = Parameter([1.0, -2.0])
        train(optim.Adam([whole], lr=0.1), 6)

        first = Parameter([1.0, -2.0])
        optimizer = optim.Adam([first], lr=0.1)
        train(optimizer, 3)
        saved = optimizer.state_dict()
        train(optimizer, 1)  # a state dict is a copy
        second = Parameter([1.0, -2.0])
        train(optim.Adam([second], lr=0.1), 3)
        resumed = optim.Adam([second], lr=9.0)
        resumed.load_state_dict(saved)
        train(resumed, 3)
        assert second.tolist() == whole.tolist()

    def test_state_of_another_optimizer_is_refused(self) -> None:
        adam, sgd = optim.Adam([Parameter([1.0])]), optim.SGD([Parameter([1.0])])
        with pytest.raises(ValueError, match=r"got state \[\], expected \['m', 'v'\]"):
            adam.load_state_dict(sgd.state_dict())
        with pytest.raises(ValueError, match=r"m has shape \(2,\), expected \(1,\)"):
            adam.load_state_dict(optim.Adam([Parameter([1.0, 2.0])]).state_dict())

    def test_repr_tells_rule_and_size(self) -> None:
        optimizer = optim.SGD([Parameter([1.0, 2.0])], lr=0.1)
        assert repr(optimizer) == "SGD(lr=0.1, SGD(weight_decay=0.0), 2 parameters)"


class TestClip:
    @pytest.mark.torch
    @pytest.mark.parametrize("max_norm", [0.5, 100.0])
    def test_clipped_gradients_are_pytorchs(self, max_norm: float) -> None:
        torch = pytest.importorskip("torch")
        parameters = [Parameter(np.ones(shape, np.float32)) for shape in SHAPES]
        references = [torch.ones(shape, requires_grad=True) for shape in SHAPES]
        for p, t in zip(parameters[:-1], references[:-1], strict=True):
            p.accumulate_grad(np.asarray(init.generator(3).standard_normal(p.shape), np.float32))
            assert p.grad is not None
            t.grad = torch.tensor(p.grad.data.copy())
        norm = clip_grad_norm_(parameters, max_norm)
        assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(references, max_norm).item())
        for p, t in zip(parameters[:-1], references[:-1], strict=True):
            assert p.grad is not None
            np.testing.assert_allclose(p.grad.data, t.grad.numpy(), rtol=1e-6)

    def test_scale_is_one_below_the_norm_and_keeps_nan(self) -> None:
        assert clip_scale(9.0, 5.0) == 1.0
        assert clip_scale(9.0, 1.5) == pytest.approx(0.5)
        assert math.isnan(clip_scale(math.nan, 1.0))
        assert clip_scale(math.inf, 1.0) == 0.0

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
    def test_bad_norm_is_refused(self, bad: float) -> None:
        with pytest.raises(ValueError, match="expected a positive number"):
            clip_grad_norm_([Parameter([1.0])], bad)


class TestSchedules:
    def test_constant(self) -> None:
        assert [schedules.Constant()(step) for step in (0, 10**9)] == [1, 1]

    def test_linear_warms_up_and_falls_to_its_ratio_at_the_last_step(self) -> None:
        schedule = schedules.Linear(total_steps=8, warmup_steps=3, min_ratio=0.2)
        assert [schedule(step) for step in range(10)] == pytest.approx(
            [0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
        )

    def test_linear_stays_at_one_by_default(self) -> None:
        schedule = schedules.Linear(total_steps=5, warmup_steps=1)
        assert [schedule(step) for step in range(5)] == [0.5, 1, 1, 1, 1]

    def test_cosine_warms_up_and_falls_to_its_ratio_at_the_last_step(self) -> None:
        schedule = schedules.Cosine(total_steps=6, warmup_steps=1, min_ratio=0.1)
        expected = [0.5, 1, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2, 0.1]
        assert [schedule(step) for step in range(6)] == pytest.approx(expected)
        assert schedule(100) == pytest.approx(0.1)

    @pytest.mark.parametrize("kind", [schedules.Linear, schedules.Cosine])
    @given(total=st.integers(1, 50), data=st.data())
    def test_factor_stays_between_zero_and_one_and_falls_after_the_warm_up(
        self, kind: type[schedules.Cosine], total: int, data: st.DataObject
    ) -> None:
        warmup = data.draw(st.integers(0, total - 1))
        schedule = kind(total_steps=total, warmup_steps=warmup, min_ratio=data.draw(st.floats(0, 1)))
        factors = [schedule(step) for step in range(total + 2)]
        assert all(0 <= factor <= 1 for factor in factors)
        assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
        assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
        assert factors[warmup] == 1

    @pytest.mark.parametrize("arguments", [{"warmup_steps": 5}, {"warmup_steps": -1}, {"min_ratio": 2.0}])
    def test_bad_numbers_are_refused(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="expected"):
            schedules.Cosine(total_steps=5, **arguments)
