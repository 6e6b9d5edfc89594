"""autocast("fp16"): results are kept as float16, computed as float32, and gradients of parameters stay float32."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from worker.autodiff import Tensor, autocast, checkpoint, kernels
from worker.autodiff import functional as F
from worker.models import Bert, Cnn, Gpt, MaskedLanguageModel
from worker.nn import init

Array = np.ndarray[Any, np.dtype[Any]]
Operation = Callable[..., Tensor]


def normal(*shape: int) -> Array:
    return init.generator(3, *shape).standard_normal(shape).astype(np.float32)


# Conversions.


def test_every_float16_becomes_the_same_float32() -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(kernels.single(x), x.astype(np.float32))


def test_rounding_is_numpys() -> None:
    x = init.generator(0).integers(0, 1 << 32, 1_000_000, np.uint32).view(np.float32)
    edges = [65504, 65519.99, 65520, -65520, np.inf, -np.inf, np.nan, 6e-8, 2.98e-8, 2.99e-8, 6.1e-5, 1e-30, -0.0, 2049]
    x = np.concatenate([x, normal(100_000), np.array(edges, np.float32)])
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16)
    found = kernels.half(x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize(
    "x", [normal(3, 4).T, normal(2, 3, 4, 5).transpose(0, 2, 3, 1), normal(6, 4)[::2], normal(0, 3)]
)
def test_conversions_keep_the_memory_layout(x: Array) -> None:
    narrow = kernels.half(x)
    assert narrow.strides == np.empty_like(x, np.float16).strides
    assert kernels.single(narrow).strides == np.empty_like(narrow, np.float32).strides
    np.testing.assert_array_equal(kernels.single(narrow), x.astype(np.float16).astype(np.float32))


# Operations. What is float16 goes in as float16, and the result is that of float32 on the same numbers, rounded.


ROUNDED: dict[str, tuple[Operation, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "linear": (F.linear, [(5, 7)], [(3, 7), (3,)]),
    "matmul": (F.matmul, [(2, 5, 7), (2, 7, 3)], []),
    "matmul with a weight": (F.matmul, [(2, 5, 7)], [(7, 3)]),
    "conv1d": (F.conv1d, [(2, 4, 9)], [(6, 4, 3), (6,)]),
    "conv2d": (F.conv2d, [(2, 4, 9, 9)], [(6, 4, 3, 3), (6,)]),
    "conv2d depthwise": (lambda x, w: F.conv2d(x, w, groups=4), [(2, 4, 9, 9)], [(4, 1, 3, 3)]),
    "conv_transpose2d": (F.conv_transpose2d, [(2, 4, 5, 5)], [(4, 3, 3, 3), (3,)]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (7,), w, b), [(5, 7)], [(7,), (7,)]),
    "rms_norm": (lambda x, w: F.rms_norm(x, (7,), w, 1e-5), [(5, 7)], [(7,)]),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), [(5, 4, 3)], [(4,), (4,)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [(5, 4, 3)], [(4,), (4,)]),
    "attention": (F.scaled_dot_product_attention, [(2, 3, 5, 4)] * 3, []),
    "attention of matrices": (F.scaled_dot_product_attention, [(5, 4)] * 3, []),
    "causal self-attention": (lambda x: F.self_attention(x, 2, is_causal=True), [(2, 70, 24)], []),
    "masked self-attention": (lambda x: F.self_attention(x, 2, Tensor(np.tri(9, dtype=bool))), [(2, 9, 24)], []),
    "embedding": (lambda w: F.embedding(Tensor(np.array([[0, 2, 2], [1, 0, 2]])), w), [], [(4, 5)]),
    "look-up of activations": (lambda x: F.embedding(Tensor(np.array([0, 2, 2])), x), [(4, 5)], []),
    "add": (F.add, [(5, 7), (5, 7)], []),
    "add broadcast": (F.add, [(5, 7), (7,)], []),
    "sub": (F.sub, [(5, 7), (7,)], []),
    "mul": (F.mul, [(5, 7), (5, 7)], []),
    "mul by a number": (lambda x: x * 0.3, [(5, 7)], []),
    "relu": (F.relu, [(5, 7)], []),
    "tanh": (F.tanh, [(5, 7)], []),
    "gelu": (F.gelu, [(5, 7)], []),
    "gelu by tanh": (lambda x: F.gelu(x, "tanh"), [(5, 7)], []),
    "silu": (F.silu, [(5, 7)], []),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), [(2, 3, 6, 6)], []),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), [(2, 3, 6, 6)], []),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), [(2, 3, 6, 6)], []),
    "reshape": (lambda x: x.reshape(35), [(5, 7)], []),
}
WIDENED: dict[str, tuple[Operation, list[tuple[int, ...]]]] = {
    "softmax": (lambda x: F.softmax(x, -1), [(5, 7)]),
    "log_softmax": (lambda x: F.log_softmax(x, -1), [(5, 7)]),
    "cross_entropy": (lambda x: F.cross_entropy(x, Tensor(np.arange(5)), reduction="sum"), [(5, 7)]),
    "cross_entropy, mean": (lambda x: F.cross_entropy(x, Tensor(np.arange(5))), [(5, 7)]),
    "cross_entropy, each": (lambda x: F.cross_entropy(x, Tensor(np.arange(5)), reduction="none"), [(5, 7)]),
    "cross_entropy, ignoring": (lambda x: F.cross_entropy(x, Tensor(np.arange(5)), ignore_index=3), [(5, 7)]),
    "cross_entropy, smoothed": (lambda x: F.cross_entropy(x, Tensor(np.arange(5)), label_smoothing=0.1), [(5, 7)]),
    "cross_entropy, weighted": (
        lambda x: F.cross_entropy(x, Tensor(np.arange(5)), Tensor(np.arange(1, 8, dtype=np.float32))),
        [(5, 7)],
    ),
    "mse_loss": (F.mse_loss, [(5, 7), (5, 7)]),
    "l1_loss": (F.l1_loss, [(5, 7), (5, 7)]),
    "binary_cross_entropy_with_logits": (
        lambda x: F.binary_cross_entropy_with_logits(x, Tensor(np.ones((5, 7), np.float32))),
        [(5, 7)],
    ),
    "sum": (lambda x: x.sum(), [(5, 7)]),
    "mean": (lambda x: x.mean(0), [(5, 7)]),
    "exp": (F.exp, [(5, 7)]),
    "pow": (lambda x: x**2, [(5, 7)]),
}


def results(operation: Operation, activations: list[Array], weights: list[Array]) -> tuple[Tensor, list[Array]]:
    """The value, and the gradients of all inputs for a gradient of ones."""
    leaves = [Tensor(array.copy(), requires_grad=True) for array in (*activations, *weights)]
    y = operation(*leaves)
    y.backward(np.ones(y.shape, y.dtype))
    return y, [leaf.grad.data for leaf in leaves if leaf.grad is not None]


def compared(
    operation: Operation, shapes: list[tuple[int, ...]], weight_shapes: list[tuple[int, ...]]
) -> tuple[Tensor, list[Array]]:
    """Value and gradients under fp16, after they were compared with float32's of the same numbers."""
    activations = [kernels.half(normal(*shape)) for shape in shapes]
    weights = [normal(*shape) for shape in weight_shapes]
    wide, expected = results(operation, [kernels.single(array) for array in activations], weights)
    with autocast("fp16"):
        y, found = results(operation, activations, weights)
    np.testing.assert_allclose(y.data, wide.data, rtol=1e-3, atol=1e-4)
    assert len(found) == len(expected) == len(shapes) + len(weight_shapes)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-3 * max(1.0, float(np.abs(other).max())))
    assert [array.dtype for array in found] == [np.float16] * len(shapes) + [np.float32] * len(weight_shapes)
    return y, found


@pytest.mark.parametrize("name", ROUNDED)
def test_result_is_kept_as_float16(name: str) -> None:
    y, _ = compared(*ROUNDED[name])
    assert y.dtype == np.float16


@pytest.mark.parametrize("name", WIDENED)
def test_result_is_float32(name: str) -> None:
    operation, shapes = WIDENED[name]
    y, _ = compared(operation, shapes, [])
    assert y.dtype == np.float32


@pytest.mark.parametrize("name", ["linear", "matmul", "conv2d", "layer_norm", "attention", "embedding", "gelu"])
def test_float64_is_never_rounded(name: str) -> None:
    operation, shapes, weight_shapes = ROUNDED[name]
    arrays = [normal(*shape).astype(np.float64) for shape in (*shapes, *weight_shapes)]
    y, expected = results(operation, arrays, [])
    with autocast("fp16"):
        again, found = results(operation, arrays, [])
    assert again.data.tobytes() == y.data.tobytes()
    assert [one.tobytes() for one in found] == [other.tobytes() for other in expected]


def test_dropout_keeps_its_mean() -> None:
    with autocast("fp16"):
        y = F.dropout(Tensor(np.ones((100, 100), np.float16)), 0.1)
    assert y.dtype == np.float16
    assert set(np.unique(y.data)) == {np.float16(0), np.float16(1 / 0.9)}


def test_overflow_becomes_infinite_without_a_warning() -> None:
    with autocast("fp16"):
        x = Tensor(np.full((2, 4), 30_000, np.float16), requires_grad=True)
        y = F.linear(x, Tensor(np.ones((3, 4), np.float32)))
        assert np.isinf(y.data).all()
        assert np.isinf((x + x + x).data).all()
        y.sum().backward(np.full((), 1e5, np.float32))
    assert x.grad is not None
    assert np.isinf(x.grad.data).all()


def test_wrong_target_is_named_by_its_row() -> None:
    targets = np.zeros(100_000, np.int64)
    targets[90_000] = 7
    with autocast("fp16"), pytest.raises(ValueError, match=r"the target of row 90000 is 7, expected 0\.\.3"):
        F.cross_entropy(Tensor(np.zeros((100_000, 4), np.float16)), Tensor(targets))


def test_small_probabilities_keep_their_gradient() -> None:
    """float16's smallest number is 6e-8; a gradient of a probability this small is not lost."""
    logits = np.zeros((1, 2), np.float16)
    logits[0, 1] = -17.5  # a probability of 2.5e-8
    leaf = Tensor(logits, requires_grad=True)
    with autocast("fp16"):
        F.cross_entropy(leaf, Tensor(np.zeros(1, np.int64)), reduction="sum").backward(np.full((), 65536, np.float32))
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.data[0, 1], 65536 * np.exp(-17.5), rtol=1e-2)


# Models.


def gpt() -> Operation:
    model = Gpt(50, layers=4, heads=4, width=64, context=64, generator=init.generator(0))
    tokens = Tensor(init.generator(1).integers(0, 50, (4, 64)))
    return lambda: model.loss(tokens, tokens)


def bert() -> Operation:
    generator = init.generator(0)
    bert = Bert(50, layers=4, heads=4, width=64, context=64, generator=generator)
    model = MaskedLanguageModel(bert, generator=generator)
    tokens = Tensor(init.generator(1).integers(0, 50, (4, 64)))
    return lambda: model.loss(tokens, tokens)


def cnn() -> Operation:
    model = Cnn(3, 10, stages=(16, 32), generator=init.generator(0))
    images, classes = Tensor(normal(8, 3, 32, 32)), Tensor(np.arange(8))
    return lambda: F.cross_entropy(model(images), classes)


def memory_kept(loss: Operation, precision: str) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    with autocast(precision):
        loss()  # compiles
        tracemalloc.start()
        kept = loss()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept.requires_grad
    return size


@pytest.mark.parametrize("model", [gpt, bert, cnn])
def test_activations_take_half_the_memory(model: Callable[[], Operation]) -> None:
    loss = model()
    ratio = memory_kept(loss, "fp16") / memory_kept(loss, "fp32")
    assert 0.45 < ratio < 0.53


def test_a_recomputed_part_has_the_same_gradients() -> None:
    def gradients(run: Any) -> list[bytes]:
        x, w = Tensor(normal(5, 7), requires_grad=True), Tensor(normal(7, 7), requires_grad=True)
        with autocast("fp16"):
            loss = run(lambda a: F.gelu(F.linear(F.gelu(F.linear(a, w)), w)), x).sum()
        loss.backward()
        assert x.grad is not None
        assert w.grad is not None
        return [x.grad.data.tobytes(), w.grad.data.tobytes()]

    assert gradients(checkpoint) == gradients(lambda f, *x: f(*x))
