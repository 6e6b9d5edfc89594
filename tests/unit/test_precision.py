"""autocast: products of rounded operands, in the backward pass and in recomputation as in the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worker.autodiff import Tensor, autocast, checkpoint, kernels
from worker.autodiff import functional as F
from worker.autodiff.kernels.bfloat16 import round_bfloat16
from worker.autodiff.precision import current
from worker.nn import init

Array = np.ndarray[Any, np.dtype[Any]]
Operation = Callable[..., Tensor]


def normal(*shape: int) -> Array:
    return init.generator(3, *shape).standard_normal(shape).astype(np.float32)


def float_of(bits: int) -> Array:
    return np.array([bits], np.uint32).view(np.float32)


# Rounding.


ROUNDED = {
    "zero": (0x0000_0000, 0x0000_0000),
    "minus zero": (0x8000_0000, 0x8000_0000),
    "one": (0x3F80_0000, 0x3F80_0000),
    "below the middle goes down": (0x3F80_7FFF, 0x3F80_0000),
    "above the middle goes up": (0x3F80_8001, 0x3F81_0000),
    "the middle goes to the even one below": (0x3F80_8000, 0x3F80_0000),
    "the middle goes to the even one above": (0x3F81_8000, 0x3F82_0000),
    "largest float32 becomes infinite": (0x7F7F_FFFF, 0x7F80_0000),
    "largest bfloat16 stays": (0x7F7F_7FFF, 0x7F7F_0000),
    "infinity": (0x7F80_0000, 0x7F80_0000),
    "minus infinity": (0xFF80_0000, 0xFF80_0000),
    "smallest normal number": (0x0080_0000, 0x0080_0000),
    "largest denormal becomes zero": (0x007F_FFFF, 0x0000_0000),
    "denormal keeps its sign": (0x8000_0001, 0x8000_0000),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding(name: str) -> None:
    bits, expected = ROUNDED[name]
    assert hex(round_bfloat16(float_of(bits)).view(np.uint32)[0]) == hex(expected)


@pytest.mark.parametrize("bits", [0x7F80_0001, 0x7FC0_0000, 0x7FFF_FFFF, 0xFF80_0001, 0xFFFF_FFFF], ids=hex)
def test_nan_stays_nan(bits: int) -> None:
    assert np.isnan(round_bfloat16(float_of(bits))).all()


def test_rounding_is_pytorchs_for_normal_numbers() -> None:
    bits = init.generator(0).integers(0, 1 << 32, 1_000_000, np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).smallest_normal)]
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(round_bfloat16(x).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    "view",
    [normal(6, 4).T, normal(6, 4)[::2, ::-1], normal(2, 3, 4).transpose(1, 2, 0), normal(0, 3), normal(1)[0:1, None]],
    ids=["transposed", "strided", "permuted", "empty", "one"],
)
def test_rounding_takes_any_layout_and_leaves_its_argument_alone(view: Array) -> None:
    before = view.copy()
    np.testing.assert_array_equal(round_bfloat16(view), round_bfloat16(np.ascontiguousarray(view)))
    np.testing.assert_array_equal(view, before)


# Operations. Each is a product of x and w; the expected result is that of the rounded operands, in float32.


OPERATIONS: dict[str, tuple[Operation, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (F.linear, (5, 7), (3, 7)),
    "matmul": (F.matmul, (2, 5, 7), (2, 7, 3)),
    "matmul of vectors": (F.matmul, (7,), (7,)),
    "bmm": (F.bmm, (2, 5, 7), (2, 7, 3)),
    "einsum": (lambda x, w: F.einsum("bij,bjk->bik", x, w), (2, 5, 7), (2, 7, 3)),
    "conv1d": (F.conv1d, (2, 4, 9), (6, 4, 3)),
    "conv2d": (F.conv2d, (2, 4, 9, 9), (6, 4, 3, 3)),
    "conv2d with stride": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (2, 4, 9, 9), (6, 4, 3, 3)),
    "conv2d in groups": (lambda x, w: F.conv2d(x, w, groups=2), (2, 4, 9, 9), (6, 2, 3, 3)),
    "conv2d depthwise": (lambda x, w: F.conv2d(x, w, groups=4), (2, 4, 9, 9), (4, 1, 3, 3)),
    "conv3d": (F.conv3d, (2, 2, 5, 5, 5), (3, 2, 3, 3, 3)),
    "conv_transpose2d": (F.conv_transpose2d, (2, 4, 5, 5), (4, 3, 3, 3)),
}


def results(operation: Operation, x: Array, w: Array, seed: Array | None = None) -> tuple[Array, Array, Array]:
    """The value and both gradients; the gradient of the value is `seed`, or 1 everywhere."""
    a, b = Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)
    y = operation(a, b)
    y.backward(Tensor(np.ones(y.shape, np.float32) if seed is None else seed))
    assert a.grad is not None
    assert b.grad is not None
    return y.data, a.grad.data, b.grad.data


@pytest.mark.parametrize("name", OPERATIONS)
def test_bf16_rounds_the_operands_of_all_three_products(name: str) -> None:
    operation, x_shape, w_shape = OPERATIONS[name]
    x, w = normal(*x_shape), normal(*w_shape)
    seed = normal(*operation(Tensor(x), Tensor(w)).shape)
    expected = results(operation, round_bfloat16(x), round_bfloat16(w), round_bfloat16(seed))
    with autocast("bf16"):
        found = results(operation, x, w, seed)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert not np.array_equal(found[0], results(operation, x, w, seed)[0]), "bf16 changes the value"


@pytest.mark.parametrize("name", OPERATIONS)
def test_float64_is_never_rounded(name: str) -> None:
    operation, x_shape, w_shape = OPERATIONS[name]
    x, w = normal(*x_shape).astype(np.float64), normal(*w_shape).astype(np.float64)
    expected = results(operation, x, w)
    with autocast("bf16"):
        found = results(operation, x, w)
    assert [one.tobytes() for one in found] == [other.tobytes() for other in expected]


# Which precision holds where.


@pytest.mark.parametrize("forward", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", ["fp32", "bf16"])
@pytest.mark.parametrize("run", [lambda f, *x: f(*x), checkpoint], ids=["kept", "recomputed"])
def test_backward_computes_as_forward_did(forward: Any, backward: Any, run: Any) -> None:
    def gradients(precision: Any) -> list[bytes]:
        x, w = Tensor(normal(5, 7), requires_grad=True), Tensor(normal(7, 7), requires_grad=True)
        with autocast(forward):
            y = run(lambda a: F.tanh(F.linear(F.tanh(F.linear(a, w)), w)), x).sum()
        with autocast(precision):
            y.backward()
            assert current.get() == precision, "backward leaves the precision as it was"
        assert x.grad is not None
        assert w.grad is not None
        return [x.grad.data.tobytes(), w.grad.data.tobytes()]

    assert gradients(backward) == gradients(forward)


def test_each_part_of_a_graph_has_its_own_precision() -> None:
    x, w = Tensor(normal(5, 7), requires_grad=True), Tensor(normal(7, 7), requires_grad=True)
    with autocast("bf16"):
        inner = F.linear(x, w)
    F.linear(inner, Tensor(normal(3, 7))).sum().backward()
    dinner = np.broadcast_to(normal(3, 7).sum(axis=0), (5, 7))  # in float32: 1s @ weight
    expected = round_bfloat16(dinner) @ round_bfloat16(w.data)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.data, expected, rtol=1e-5, atol=1e-5)


def test_autocast_nests_and_decorates() -> None:
    @autocast("bf16")
    def product() -> Array:
        with autocast("fp32"):
            assert current.get() == "fp32"
        return kernels.matmul(normal(4, 5), normal(5, 6))

    expected = round_bfloat16(normal(4, 5)) @ round_bfloat16(normal(5, 6))
    np.testing.assert_allclose(product(), expected, rtol=1e-6, atol=1e-6)
    assert current.get() == "fp32"


def test_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match="autocast: got 'fp8', expected one of fp32, bf16, fp16"):
        autocast("fp8")
