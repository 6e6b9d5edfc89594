"""Parts of a batch in one pass: the same bits as in passes of their own, and refusals where sums would be mixed up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from worker import nn
from worker.autodiff import Tensor, autocast, backward, checkpoint, in_parts, philox
from worker.autodiff import functional as F
from worker.autodiff.kernels import gemm, units
from worker.models import Gpt, Mlp
from worker.nn import FlatParameters, Module, Parameter, init

Array = np.ndarray[Any, np.dtype[Any]]
Model = Callable[[Tensor], Tensor]  # a batch -> the sum of its losses

PRECISIONS = ["fp32", "bf16", "fp16"]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def one_key_afterwards() -> Iterator[None]:
    yield
    philox.seed(0)


def parameter(*shape: int) -> Parameter:
    return Parameter(RNG.standard_normal(shape).astype(np.float32))


def numbers(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def tokens(*shape: int) -> Array:
    return RNG.integers(0, 17, shape)


class Results:
    """Losses (n,), and the gradients (n, P) of n parts."""

    def __init__(self, losses: Sequence[Array], gradients: Array) -> None:
        self.losses, self.gradients = np.concatenate(losses), gradients

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Results)
        assert np.isfinite(self.gradients).all()
        assert np.abs(self.gradients).sum(axis=1).all()
        return self.losses.tobytes() == other.losses.tobytes() and np.array_equal(self.gradients, other.gradients)

    __hash__ = None  # type: ignore[assignment]  # nobody's key


def pass_over(flat: FlatParameters, model: Model, batch: Array, keys: Sequence[int], gradients: Array) -> Array:
    gradients[...] = np.nan
    flat.bind_gradient(gradients)
    philox.seed_parts([(7, key) for key in keys])
    losses = model(Tensor(batch))
    losses.backward(np.full(losses.shape, 2, np.float32))
    flat.fill_unused()
    return losses.data.reshape(-1).copy()


def together(parameters: Sequence[Parameter], model: Model, batch: Array, count: int) -> Results:
    flat = FlatParameters(parameters)
    gradients = np.empty((count, flat.size), np.float32)
    with in_parts(count):
        losses = pass_over(flat, model, batch, range(count), gradients)
    assert losses.shape == (count,)
    return Results([losses], gradients)


def apart(parameters: Sequence[Parameter], model: Model, batch: Array, count: int) -> Results:
    flat = FlatParameters(parameters)
    gradients = np.empty((count, flat.size), np.float32)
    parts = zip(np.split(batch, count), gradients, strict=True)
    return Results([pass_over(flat, model, part, [i], to) for i, (part, to) in enumerate(parts)], gradients)


def case(model: Callable[..., Tensor], batch: Array, *parameters: Parameter) -> tuple[Any, ...]:
    return [*parameters], lambda x: model(x, *parameters), batch


def squares(x: Tensor) -> Tensor:
    return F.mse_loss(x, Tensor(np.zeros(x.shape, np.float32)), reduction="sum")


def attention(x: Tensor, w: Parameter, **named: Any) -> Tensor:
    return squares(F.self_attention(F.linear(x, w), 2, **named))


def classes(x: Tensor, w: Parameter, **named: Any) -> Tensor:
    targets = Tensor(np.arange(x.shape[0]) % 5)  # of each part the same
    return F.cross_entropy(F.linear(x, w), targets, reduction="sum", **named)


OPERATIONS = {
    "linear": case(lambda x, w, b: squares(F.linear(x, w, b)), numbers(60, 33), parameter(40, 33), parameter(40)),
    "linear, without bias": case(lambda x, w: squares(F.linear(x, w)), numbers(60, 33), parameter(40, 33)),
    "linear, of sequences": case(lambda x, w: squares(F.linear(x, w)), numbers(12, 5, 33), parameter(40, 33)),
    "linear, a row a part": case(lambda x, w: squares(F.linear(x, w)), numbers(3, 33), parameter(40, 33)),
    "linear, few rows for tiles": case(lambda x, w: squares(F.linear(x, w)), numbers(39, 64), parameter(64, 64)),
    "linear, deep": case(lambda x, w: squares(F.linear(x, w)), numbers(51, 1100), parameter(50, 1100)),
    "tied": case(lambda x, w: squares(F.linear(F.embedding(x, w), w)), tokens(6, 5), parameter(17, 12)),
    "embedding": case(lambda x, w: squares(F.embedding(x, w)), tokens(6, 50), parameter(17, 12)),
    "embedding, padded": case(lambda x, w: squares(F.embedding(x, w, 3)), tokens(6, 50), parameter(17, 12)),
    "layer_norm": case(
        lambda x, w, b: squares(F.layer_norm(x, 33, w, b)), numbers(6, 7, 33), parameter(33), parameter(33)
    ),
    "layer_norm, of matrices": case(
        lambda x, w, b: squares(F.layer_norm(x, (7, 33), w, b)), numbers(6, 7, 33), parameter(7, 33), parameter(7, 33)
    ),
    "dropout": case(lambda x, w: squares(F.dropout(F.linear(x, w), 0.3)), numbers(9, 33), parameter(41, 33)),
    "attention": case(attention, numbers(6, 70, 12), parameter(36, 12)),
    "attention, causal": case(
        lambda x, w: attention(x, w, is_causal=True), numbers(6, 70, 12), parameter(36, 12)
    ),
    "attention, dropout": case(
        lambda x, w: attention(x, w, dropout_p=0.2), numbers(6, 9, 12), parameter(36, 12)
    ),
    "cross_entropy": case(classes, numbers(30, 8), parameter(11, 8)),
    "cross_entropy, smoothed": case(
        lambda x, w: classes(x, w, label_smoothing=0.1), numbers(30, 8), parameter(11, 8)
    ),
    "checkpoint": case(
        lambda x, w: checkpoint(lambda x: squares(F.dropout(F.gelu(F.linear(x, w)), 0.1)), x),
        numbers(60, 33),
        parameter(40, 33),
    ),
}  # fmt: skip
OPERATIONS |= {
    name: case(
        lambda x, w, activate=activate: squares(activate(F.linear(x, w))), numbers(39, 5), parameter(7, 5)
    )
    for name, activate in {
        "relu": F.relu, "tanh": F.tanh, "gelu": F.gelu, "gelu, tanh": lambda x: F.gelu(x, "tanh"),
    }.items()
}  # fmt: skip


def model_case(model: Module, batch: Array, loss: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    return [*model.parameters()], lambda x: loss(model(x)), batch


def next_tokens(logits: Tensor) -> Tensor:
    targets = np.resize(np.arange(17), logits.shape[:2])  # of each sample the same: parts of 12 have no others
    targets[:] = targets[0]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), Tensor(targets.reshape(-1)), reduction="sum")


def gpt(**named: Any) -> Gpt:
    sizes: dict[str, Any] = {"layers": 2, "heads": 3, "width": 33, "context": 19}
    return Gpt(17, **sizes | named, generator=init.generator(1))


MODELS = {
    "mlp": model_case(Mlp(21, [77, 50], 5, generator=init.generator(1)), numbers(36, 3, 7), squares),
    "mlp, gelu, again": model_case(
        Mlp(21, [77], 5, "gelu", gradient_checkpointing=True, generator=init.generator(1)), numbers(36, 3, 7), squares
    ),
    "gpt": model_case(gpt(), tokens(12, 19), next_tokens),
    "gpt, wide": model_case(gpt(heads=2, width=64), tokens(12, 19), next_tokens),
    "gpt, shorter, dropout": model_case(gpt(dropout=0.1), tokens(12, 7), next_tokens),
    "gpt, dropout, again": model_case(gpt(dropout=0.1, gradient_checkpointing=True), tokens(12, 19), next_tokens),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*OPERATIONS, *MODELS])
def test_parts_have_the_bits_of_passes_of_their_own(name: str, precision: str) -> None:
    parameters, model, batch = (OPERATIONS | MODELS)[name]
    with autocast(precision):
        assert together(parameters, model, batch, 3) == apart(parameters, model, batch, 3)


@pytest.mark.parametrize("unit", [None, *units.UNITS], ids=lambda unit: units.NAMES[unit])
@pytest.mark.parametrize("name", ["mlp", "gpt, wide", "linear, few rows for tiles"])
def test_so_they_have_whatever_multiplies(name: str, unit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "SINGLE", unit)
    parameters, model, batch = (OPERATIONS | MODELS)[name]
    assert together(parameters, model, batch, 3) == apart(parameters, model, batch, 3)


def test_other_parts_would_give_other_bits() -> None:
    """Else the table above would prove nothing."""
    parameters, model, batch = MODELS["gpt, shorter, dropout"]
    two, three = (together(parameters, model, batch, count) for count in (2, 3))
    assert not np.array_equal(two.gradients[0], three.gradients[0])
    assert not np.array_equal(three.gradients[0], three.gradients[1])


@pytest.mark.parametrize("unit", [None, *units.UNITS], ids=lambda unit: units.NAMES[unit])
@pytest.mark.parametrize(("depth", "columns"), [(16, 32), (40, 70), (1030, 48)])
def test_a_product_of_parts_has_the_bits_of_each(
    unit: int | None, depth: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles know no other rows, wherever a part begins in them; BLAS, whose bits may depend on the rows, has one part
    after the other, as it has where there are too few rows for tiles."""
    monkeypatch.setattr(units, "SINGLE", unit)
    b, bias = numbers(depth, columns), numbers(columns)
    for rows in range(1, 40):
        a = numbers(3 * rows, depth)
        expected = np.concatenate([gemm.matmul(part, b, bias=bias) for part in np.split(a, 3)])
        np.testing.assert_array_equal(gemm.matmul(a, b, bias=bias, parts=3), expected)


def test_each_part_can_have_a_gradient_of_its_own_to_start_from() -> None:
    parameters, model, batch = OPERATIONS["linear"]
    w = parameters[0]
    found = []
    for seeds in ([1.0, 1.0], [2.0, 2.0], [1.0, 2.0]):
        for each in parameters:
            each.grad = each.slot = None
        with in_parts(2):
            backward(model(Tensor(batch)), np.array(seeds, np.float32))
        assert w.grad is not None
        assert w.grad.shape == (2, *w.shape)
        found.append(w.grad.data)
    np.testing.assert_array_equal(found[2][0], found[0][0])
    np.testing.assert_allclose(found[2][1], found[1][1], rtol=1e-5)


def test_gradients_add_up_part_by_part() -> None:
    w, x = parameter(4, 3), Tensor(numbers(6, 3))
    with in_parts(2):
        for _ in range(2):
            backward(squares(F.linear(x, w)), np.ones(2, np.float32))
    assert w.grad is not None
    twice = w.grad.data.copy()
    once = parameter(4, 3)
    once.data = w.data
    with in_parts(2):
        backward(squares(F.linear(x, once)), np.ones(2, np.float32))
    assert once.grad is not None
    np.testing.assert_array_equal(twice, 2 * once.grad.data)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda x, w: squares(x * w),
            r"gradient of shape \(4, 3\), expected \(2, 3\): an operation that does not know",
        ),
        (lambda x, w: squares(F.rms_norm(x, 3, w)), r"gradient of shape \(3,\), expected \(2, 3\)"),
        (lambda x, w: squares(x + (w * 2)), r"gradient of shape \(4, 3\), expected \(3,\)"),
    ],
)
def test_sums_over_all_parts_are_refused(forward: Callable[[Tensor, Parameter], Tensor], message: str) -> None:
    with in_parts(2), pytest.raises(RuntimeError, match=message):
        backward(forward(Tensor(numbers(4, 3)), parameter(3)), np.ones(2, np.float32))


@pytest.mark.parametrize("run", [lambda f, x: f(x), checkpoint], ids=["kept", "again"])
def test_a_vjp_that_knows_no_parts_does_not_write_into_theirs(run: Callable[..., Tensor]) -> None:
    x, w = Tensor(numbers(4, 3, 6, 6)), parameter(5, 3, 2, 2)
    w.slot = slots = np.full((2, *w.shape), np.nan, np.float32)
    with (
        in_parts(2),
        pytest.raises(RuntimeError, match=r"gradient of shape \(5, 3, 2, 2\), expected \(2, 5, 3, 2, 2\)"),
    ):
        backward(run(lambda x: squares(F.conv2d(x, w)), x), np.ones(2, np.float32))
    assert np.isnan(slots).all()


def test_a_gradient_of_other_parts_is_not_added() -> None:
    w, x = parameter(4, 3), Tensor(numbers(6, 3))
    with in_parts(2):
        backward(squares(F.linear(x, w)), np.ones(2, np.float32))
    with pytest.raises(RuntimeError, match=r"gradient of \(4, 3\) for \.grad of \(2, 4, 3\); set it"):
        squares(F.linear(x, w)).backward()


def test_a_mean_is_refused() -> None:
    x = Tensor(numbers(4, 3))
    with in_parts(2), pytest.raises(ValueError, match="reduction is 'mean', expected 'sum' or 'none' for a batch of"):
        F.mse_loss(x, x)


def test_unequal_parts_are_refused() -> None:
    x = Tensor(numbers(5, 3))
    with in_parts(2), pytest.raises(ValueError, match="got 5 rows in 2 parts, expected a multiple"):
        F.mse_loss(x, x, reduction="sum")


def test_no_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0, expected at least 1"), in_parts(0):
        pass


def test_outside_of_the_block_there_is_one_part() -> None:
    w, x = parameter(4, 3), Tensor(numbers(6, 3))
    with in_parts(2):
        pass
    squares(F.linear(x, w)).backward()
    assert w.grad is not None
    assert w.grad.shape == w.shape


def test_random_numbers_of_parts_are_those_of_each_key() -> None:
    philox.seed_parts([(1, 2), (1, 3)])
    with in_parts(2):
        both = [philox.draw(philox.uniform, (4, 3)) for _ in range(2)]
    for part, key in enumerate(((1, 2), (1, 3))):
        philox.seed(*key)
        for site in range(2):
            rows = both[site][2 * part : 2 * part + 2]
            np.testing.assert_array_equal(philox.draw(philox.uniform, (2, 3)), rows)


def test_a_single_stream_for_several_parts_is_refused() -> None:
    philox.seed_parts([(1,), (2,)])
    with in_parts(2), pytest.raises(ValueError, match="the batch has 2 parts, each with a stream of its own; use draw"):
        philox.generator()


@pytest.mark.parametrize(("num_keys", "count"), [(1, 2), (2, 1), (2, 3)])
def test_parts_without_a_key_each_draw_nothing(num_keys: int, count: int) -> None:
    philox.seed_parts([(1, key) for key in range(num_keys)])
    with in_parts(count), pytest.raises(ValueError, match=f"got {num_keys} keys for {count} parts; set one for each"):
        F.dropout(Tensor(numbers(6, 3)))


def test_rows_that_are_no_equal_parts_draw_nothing() -> None:
    philox.seed_parts([(1,), (2,)])
    with in_parts(2), pytest.raises(ValueError, match="got 5 rows in 2 parts, expected a multiple"):
        F.dropout(Tensor(numbers(5, 3)))


def test_modules_need_not_know() -> None:
    layer = nn.Sequential(nn.Linear(3, 4, generator=init.generator(1)), nn.ReLU(), nn.Flatten())
    parameters = [*layer.parameters()]
    batch = numbers(6, 3)
    assert together(parameters, lambda x: squares(layer(x)), batch, 2) == apart(
        parameters, lambda x: squares(layer(x)), batch, 2
    )
