"""Update rules: their formulas, and that any range of the vectors can be updated by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.autodiff import kernels
from worker.nn import init
from worker.optim import rules

Vector = np.ndarray[Any, np.dtype[np.float32]]

RULES = [
    rules.SGD(),
    rules.SGD(weight_decay=0.1),
    rules.SGD(momentum=0.9, dampening=0.5, weight_decay=0.1),
    rules.SGD(momentum=0.9, nesterov=True),
    rules.Momentum(0.9),
    rules.Momentum(0.5, weight_decay=0.1),
    rules.Adam(),
    rules.Adam(0.8, 0.95, 1e-6, weight_decay=0.1),
    rules.AdamW(weight_decay=0.1),
    rules.RMSprop(weight_decay=0.1),
    rules.RMSprop(momentum=0.9),
    rules.RMSprop(centered=True),
    rules.RMSprop(centered=True, momentum=0.9, weight_decay=0.1),
    rules.Adagrad(lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.1),
    rules.Lion(weight_decay=0.1),
    rules.Averaged(rules.AdamW(), 0.9),
    rules.Averaged(rules.SGD(), 0.9),
]
BY_RULE = pytest.mark.parametrize("rule", RULES, ids=str)


def vectors(rule: rules.Rule, size: int) -> tuple[Vector, Vector, list[Vector]]:
    """Weights, gradient and a state as it may be in the middle of training."""
    rng = init.generator(11, size)
    weights, gradient, *state = (rng.standard_normal(size).astype(np.float32) for _ in range(2 + len(rule.state_names)))
    return weights, gradient, [np.abs(vector) for vector in state]


# Each rule once more, in float64, as its paper or PyTorch's page has it: (w, g, state, t, lr) -> w, and new state.

State = dict[str, Any]
Formula = Callable[[Any, Any, State, int, float], Any]


def sgd(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    return w - lr * (g + 0.1 * w)


def dampened(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    g = g + 0.1 * w
    state["b"] = g if t == 1 else 0.9 * state["b"] + 0.5 * g
    return w - lr * state["b"]


def nesterov(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    state["b"] = g if t == 1 else 0.9 * state["b"] + g
    return w - lr * (g + 0.9 * state["b"])


def momentum(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    state["v"] = 0.9 * state["v"] - lr * g
    return w + state["v"]


def adamw(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.99 * state["v"] + 0.01 * g**2
    m, v = state["m"] / (1 - 0.9**t), state["v"] / (1 - 0.99**t)
    return w - lr * 0.1 * w - lr * m / (np.sqrt(v) + 1e-8)


def centered(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    state["v"] = 0.9 * state["v"] + 0.1 * g**2
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["b"] = 0.5 * state["b"] + g / (np.sqrt(state["v"] - state["m"] ** 2) + 1e-2)
    return w - lr * state["b"]


def adagrad(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    state["s"] = state["s"] + g**2
    return w - lr / (1 + (t - 1) * 0.1) * g / (np.sqrt(state["s"]) + 1e-10)


def lion(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    """The paper's algorithm 2."""
    update = np.sign(0.9 * state["m"] + (1 - 0.9) * g)
    state["m"] = 0.99 * state["m"] + (1 - 0.99) * g
    return w - lr * (update + 0.1 * w)


def averaged(w: Any, g: Any, state: State, t: int, lr: float) -> Any:
    w = momentum(w, g, state, t, lr)
    state["ema"] = 0.8 * state["ema"] + 0.2 * w
    return w


@pytest.mark.parametrize(
    ("rule", "formula"),
    [
        (rules.SGD(weight_decay=0.1), sgd),
        (rules.SGD(momentum=0.9, dampening=0.5, weight_decay=0.1), dampened),
        (rules.SGD(momentum=0.9, nesterov=True), nesterov),
        (rules.Momentum(0.9), momentum),
        (rules.AdamW(0.9, 0.99, weight_decay=0.1), adamw),
        (rules.RMSprop(0.9, 1e-2, momentum=0.5, centered=True), centered),
        (rules.Adagrad(lr_decay=0.1, initial_accumulator_value=0.5), adagrad),
        (rules.Lion(weight_decay=0.1), lion),
        (rules.Averaged(rules.Momentum(0.9), 0.8), averaged),
    ],
)
def test_rule_is_its_formula_in_float64(rule: rules.Rule, formula: Formula) -> None:
    w, _, state = vectors(rule, 50)
    rule.start(w, state)
    expected, expected_state = w.astype(np.float64), {}
    for name, vector in zip(rule.state_names, state, strict=True):
        expected_state[name] = vector.astype(np.float64)
    rng = init.generator(12)
    for t in range(1, 26):
        g = rng.standard_normal(50).astype(np.float32)
        expected = formula(expected, g.astype(np.float64), expected_state, t, 0.1)
        rule.update(w, g, state, w, state, step=t, learning_rate=0.1)
    np.testing.assert_allclose(w, expected, rtol=2e-4, atol=2e-5)
    for name, vector in zip(rule.state_names, state, strict=True):
        np.testing.assert_allclose(vector, expected_state[name], rtol=2e-4, atol=2e-5)


@BY_RULE
def test_limit_clips_each_element_of_the_scaled_gradient(rule: rules.Rule) -> None:
    w, g, state = vectors(rule, 100)
    limited, plain = np.empty_like(w), np.empty_like(w)
    new_state = [np.empty_like(w) for _ in state]
    rule.update(w, g, state, limited, new_state, step=3, learning_rate=0.1, scale=2, limit=0.5)
    rule.update(w, np.clip(2 * g, -0.5, 0.5), state, plain, new_state, step=3, learning_rate=0.1)
    np.testing.assert_array_equal(limited, plain)
    assert np.abs(2 * g).max() > 0.5


def test_state_starts_as_the_rule_says() -> None:
    w = np.array([1.0, 2.0], np.float32)
    state = [np.full(2, 9, np.float32) for _ in range(3)]
    rules.Averaged(rules.Adam()).start(w, state)
    assert [vector.tolist() for vector in state] == [[0, 0], [0, 0], [1, 2]]
    rules.Averaged(rules.Adagrad(initial_accumulator_value=0.5)).start(w, state[:2])
    assert [vector.tolist() for vector in state] == [[0.5, 0.5], [1, 2], [1, 2]]


def test_lion_of_no_gradient_only_decays() -> None:
    w, zero = np.array([1.0, -2.0], np.float32), np.zeros(2, np.float32)
    rules.Lion(weight_decay=0.5).update(w, zero, [zero.copy()], w, [zero], step=1, learning_rate=0.5)
    assert w.tolist() == [0.75, -1.5]


def test_variance_that_rounds_below_zero_counts_as_zero() -> None:
    rule = rules.RMSprop(0.5, 1.0, centered=True)
    w, g = np.zeros(1, np.float32), np.full(1, 1.1, np.float32)
    v, m = np.full(1, 1.0, np.float32), np.full(1, 1.1, np.float32)
    rule.update(w, g, [v, m], w, [v, m], step=2, learning_rate=1.0)
    assert w[0] == -g[0]


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
    size = data.draw(st.sampled_from([1, 7, 100, kernels.BLOCK, 2 * rules.Averaged.CHUNK + 35]))
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
