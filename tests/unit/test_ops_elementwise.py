"""Elementwise operations, comparisons and choices: one row each, then the special values and dtypes in tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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

INF, NAN = math.inf, math.nan


def unary(name: str, **options: Any) -> Op:
    """A row for an operation of one tensor whose method and function have the same name in both libraries."""
    return Op(name, lambda x: getattr(F, name)(x), lambda t, x: getattr(t, name)(x), UNARY, **options)


def method(name: str, *arguments: Any, inner: float = 1, outer: float = 0, **options: Any) -> Op:
    """A row for x.name(*arguments), at inner * x + outer so that it meets the domain."""
    return Op(
        f"x.{name}{arguments}",
        lambda x: getattr(x * inner + outer, name)(*arguments),
        lambda t, x: getattr(x * inner + outer, name)(*arguments),
        UNARY,
        **options,
    )


def binary(name: str, **options: Any) -> Op:
    return Op(name, getattr(F, name), lambda t, x, y: getattr(t, name)(x, y), BROADCAST, **options)


TRIPLES: tuple[Case, ...] = (
    ((), (), ()),
    ((4, 5), (4, 5), (4, 5)),
    ((2, 4, 3), (4, 1), (3,)),
    ((0, 3), (3,), ()),
)

OPS = [
    binary("add"),
    Op("add alpha", lambda x, y: F.add(x, y, alpha=2), lambda t, x, y: t.add(x, y, alpha=2), BROADCAST),
    binary("sub"),
    Op("sub alpha", lambda x, y: x.sub(y, alpha=3), lambda t, x, y: x.sub(y, alpha=3), BROADCAST),
    binary("mul"),
    binary("div", positive=True),
    Op("1 // x", lambda x: 1 // (x * 3), lambda t, x: t.div(1, x * 3, rounding_mode="floor"), UNARY, has_kink=True),
    *(
        Op(
            f"div {mode}",
            lambda x, y, mode=mode: x.div(y, rounding_mode=mode),
            lambda t, x, y, mode=mode: x.div(y, rounding_mode=mode),
            BROADCAST,
            has_kink=True,
        )
        for mode in ("floor", "trunc")
    ),
    binary("remainder", has_kink=True),
    Op("x % 0.7", lambda x: x % 0.7, lambda t, x: x % 0.7, UNARY, has_kink=True),
    binary("pow", positive=True),
    Op("2 ** x", lambda x: 2**x, lambda t, x: 2**x, UNARY),
    *(Op(f"x ** {e}", lambda x, e=e: x**e, lambda t, x, e=e: x**e, UNARY, positive=True) for e in (-1, -0.5, 0, 2.5)),
    unary("neg"),
    unary("abs", has_kink=True),
    unary("sign"),
    unary("reciprocal", positive=True),
    unary("square"),
    unary("round"),
    Op("round to 2", lambda x: F.round(x, decimals=2), lambda t, x: t.round(x, decimals=2), UNARY),
    unary("floor"),
    unary("ceil"),
    unary("trunc"),
    binary("hypot"),
    binary("atan2"),
    Op("lerp", F.lerp, lambda t, x, y, w: t.lerp(x, y, w), (*TRIPLES, ((4, 1), (2, 1, 3), (3,))), has_kink=True),
    Op("lerp by 0.3", lambda x, y: F.lerp(x, y, 0.3), lambda t, x, y: t.lerp(x, y, 0.3), BROADCAST),
    Op("lerp by 0.8", lambda x, y: x.lerp(y, 0.8), lambda t, x, y: x.lerp(y, 0.8), BROADCAST),
    unary("exp"),
    unary("exp2"),
    unary("expm1"),
    unary("log", positive=True),
    unary("log2", positive=True),
    unary("log10", positive=True),
    unary("log1p", positive=True),
    unary("sqrt", positive=True),
    unary("rsqrt", positive=True),
    unary("sin"),
    unary("cos"),
    method("tan", inner=0.4),
    method("asin", inner=0.2),
    method("acos", inner=0.2),
    unary("atan"),
    unary("sinh"),
    unary("cosh"),
    unary("asinh"),
    method("acosh", outer=1, positive=True),
    method("atanh", inner=0.2),
    unary("erf"),
    unary("erfc"),
    binary("maximum"),
    binary("minimum"),
    Op("max with other", lambda x, y: x.max(y), lambda t, x, y: x.max(y), BROADCAST),
    Op("min with other", lambda x, y: F.min(x, other=y), lambda t, x, y: t.min(x, other=y), BROADCAST),
    method("clamp", -0.5, 0.5, has_kink=True),
    method("clamp", 0.1, has_kink=True),
    method("clamp", None, 0, has_kink=True),
    Op("clamp between", F.clamp, lambda t, x, a, b: t.clamp(x, a, b), TRIPLES, has_kink=True),
    Op("clamp above", F.clamp, lambda t, x, a: t.clamp(x, min=a), BROADCAST, has_kink=True),
    Op("clamp below", lambda x, b: x.clamp(max=b), lambda t, x, b: t.clamp(x, max=b), BROADCAST, has_kink=True),
    Op(
        "where",
        lambda x, y, z: F.where(x.detach() > 0, y * x, z),
        lambda t, x, y, z: t.where(x.detach() > 0, y * x, z),
        TRIPLES,
    ),
    Op("x.where(mask, 2)", lambda x: x.where(x > 0, 2.0), lambda t, x: x.where(x > 0, 2.0), UNARY, has_kink=True),
]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of([op for op in OPS if not op.has_kink])
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


# Kinks and special values.

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.0, -3.0, 1e-30, 60.0, -60.0, 3e38, INF, -INF, NAN]
KEEP_INTEGERS = ["abs", "ceil", "floor", "neg", "round", "sign", "square", "trunc"]
SPECIAL_UNARY = [
    *KEEP_INTEGERS,
    *("reciprocal", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "erf", "erfc"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
]
SPECIAL_ROWS: list[tuple[str, Callable[..., Any]]] = [
    *((name, lambda x, name=name: getattr(x, name)()) for name in SPECIAL_UNARY),
    *((f"x ** {e}", lambda x, e=e: x**e) for e in (-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 2.5, INF, NAN)),
    *((f"{b} ** x", lambda x, b=b: b**x) for b in (0, 0.5, 1, 2, -2, INF)),
    *((f"clamp {b}", lambda x, b=b: x.clamp(*b)) for b in ((-1, 1), (0, INF), (None, 0.5), (2, 1), (NAN, 1))),
    ("x % 2", lambda x: x % 2),
    ("2 / x", lambda x: 2 / x),
]


@pytest.mark.torch
@pytest.mark.parametrize("function", [pytest.param(row[1], id=row[0]) for row in SPECIAL_ROWS])
def test_special_values_are_pytorchs(function: Callable[..., Any]) -> None:
    compare(function, SPECIAL)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["pow", "maximum", "minimum", "atan2", "hypot", "remainder", "div", "mul"])
def test_special_pairs_are_pytorchs(name: str) -> None:
    values = [v for v in SPECIAL if v != 3e38 or name != "remainder"]  # PyTorch's own depends on where that stands
    pairs = [(a, b) for a in values for b in values]
    compare(lambda x, y: getattr(x, name)(y), [a for a, _ in pairs], [b for _, b in pairs])


@pytest.mark.torch
def test_special_triples_of_clamp_are_pytorchs() -> None:
    values = [-1.0, 0.0, 1.0, NAN, INF]
    triples = [(a, b, c) for a in values for b in values for c in values]
    compare(lambda x, a, b: x.clamp(a, b), *(list(column) for column in zip(*triples, strict=True)))


def compare(function: Callable[..., Any], *columns: list[float]) -> None:
    """function(*tensors) gives the same in both libraries, and the same gradients for a gradient of ones."""
    torch = pytest.importorskip("torch")
    ours = [Tensor(column, requires_grad=True) for column in columns]
    theirs = [torch.tensor(column, requires_grad=True) for column in columns]
    y, expected = function(*ours), function(*theirs)
    close("value", columns, y.data, expected.detach().numpy(), 2e-6)
    y.backward(np.ones(y.shape))
    expected.backward(torch.ones_like(expected))
    for i, (x, t) in enumerate(zip(ours, theirs, strict=True)):
        assert x.grad is not None
        close(f"gradient of input {i}", columns, x.grad.data, t.grad.numpy(), 4e-6)


def close(what: str, columns: tuple[list[float], ...], got: Array, expected: Array, tolerance: float) -> None:
    is_close = np.isclose(got, expected, tolerance, 1e-44, equal_nan=True)
    rows = zip(*columns, got.tolist(), expected.tolist(), strict=True)
    wrong = [row for row, fine in zip(rows, is_close, strict=True) if not fine]
    assert not wrong, f"{what}, each with the inputs, what we gave, and what PyTorch gave: {wrong}"


def test_erf_and_erfc_are_those_of_libm() -> None:
    x = np.linspace(-6, 9.5, 4001, dtype=np.float32)
    for ours, libm, most_ulp in ((F.erf, math.erf, 2), (F.erfc, math.erfc, 1)):
        exact = np.array([libm(float(v)) for v in x])
        np.testing.assert_array_max_ulp(ours(Tensor(x)).data, exact.astype(np.float32), most_ulp)
        np.testing.assert_array_max_ulp(ours(Tensor(x.astype(np.float64))).data, np.vectorize(libm)(x * 1.0), 2)


# Dtypes.


def of(dtype: str, *shape: int) -> Tensor:
    return Tensor(np.ones(shape, dtype))


OPERANDS = {
    "bool": of("bool", 2),
    "uint8": of("uint8", 2),
    "int32": of("int32", 2),
    "int64": of("int64", 2),
    "float32": of("float32", 2),
    "float64": of("float64", 2),
    "bool ()": of("bool"),
    "int64 ()": of("int64"),
    "float32 ()": of("float32"),
    "float64 ()": of("float64"),
    "True": True,
    "3": 3,
    "2.5": 2.5,
}


NUMBERS = {"True", "3", "2.5"}
BOOLEANS = {"bool", "bool ()", "True"}
PAIRS = [
    (operation, first, second)
    for operation in ("add", "mul", "true_divide", "pow", "where")
    for first in OPERANDS
    for second in OPERANDS
    if operation == "where" or not {first, second} <= NUMBERS  # between two numbers, Python computes
    if operation != "pow" or not {first, second} <= BOOLEANS  # of which PyTorch has no powers
]


@pytest.mark.torch
@pytest.mark.parametrize(("operation", "first", "second"), PAIRS)
def test_dtypes_are_pytorchs(operation: str, first: str, second: str) -> None:
    torch = pytest.importorskip("torch")

    def apply(library: Any, wrap: Callable[[Any], Any]) -> Any:
        x, y = (wrap(OPERANDS[name]) for name in (first, second))
        if operation == "where":
            return library.where(wrap(of("bool", 2)), x, y)
        return (
            x / y if operation == "true_divide" else x**y if operation == "pow" else getattr(library, operation)(x, y)
        )

    expected = apply(torch, lambda x: torch.tensor(x.data) if isinstance(x, Tensor) else x).numpy()
    result = apply(F, lambda x: x)
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result.data, expected, 1e-6)


def test_numbers_of_numpys_do_not_change_the_dtype() -> None:
    x = Tensor([1.0])
    for number in (np.float64(2), np.int64(2), np.float32(2), np.bool_(True)):
        for y in (x + number, number * x, x / number, number / x, x**number, number**x, F.maximum(x, number)):
            assert y.dtype == np.float32


def test_a_number_beyond_the_dtype_is_infinite_without_a_warning() -> None:
    x = Tensor([1.0, 3e38])
    assert (x + 1e300).tolist() == [INF, INF]
    assert (x < 1e300).tolist() == [True, True]
    assert F.maximum(x, 1e300).tolist() == [INF, INF]
    assert x.clamp(1e300).tolist() == [INF, INF]
    assert F.where(x > 2, x, -1e300)[0].item() == -INF
    assert x.round(decimals=2)[0].item() == 1


def test_integers_become_float32_where_a_function_needs_that() -> None:
    for name in SPECIAL_UNARY:
        for dtype in ("int32", "uint8"):
            assert getattr(F, name)(of(dtype, 2)).dtype == (dtype if name in KEEP_INTEGERS else "float32"), name
    assert F.exp(of("bool", 2)).dtype == np.float32
    assert F.atan2(of("int64", 2), 1).dtype == np.float32
    assert (Tensor([7, -7]) // 2).tolist() == [3, -4]
    assert Tensor([7, -7]).div(2, rounding_mode="trunc").tolist() == [3, -3]
    assert (Tensor([7, -7]) % 4).tolist() == [3, 1]
    assert (np.uint8(1) - Tensor(np.zeros(1, np.uint8))).dtype == np.uint8


def test_a_gradient_has_the_dtype_of_its_input() -> None:
    x, y = of("float32", 2).requires_grad_(), of("float64", 2).requires_grad_()
    (x * y + x / Tensor([1, 2])).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.dtype == np.float32
    assert y.grad.dtype == np.float64


# Comparisons and logic.


@pytest.mark.torch
@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"])
def test_comparisons_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    a, b = np.array(SPECIAL, np.float32)[:, None], np.array(SPECIAL, np.float32)
    x, y = Tensor(a, requires_grad=True), Tensor(b)
    for got in (getattr(F, name)(x, y), getattr(x, name)(y)):
        assert not got.requires_grad
        np.testing.assert_array_equal(got.data, getattr(torch, name)(torch.tensor(a), torch.tensor(b)).numpy())


@pytest.mark.torch
@pytest.mark.parametrize("name", ["isfinite", "isinf", "isnan", "logical_not"])
def test_predicates_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    for a in (np.array(SPECIAL, np.float32), np.array([0, 1]), np.array([True, False]), np.zeros((0, 2))):
        np.testing.assert_array_equal(getattr(F, name)(Tensor(a)).data, getattr(torch, name)(torch.tensor(a)).numpy())


def test_comparison_operators() -> None:
    x = Tensor([1.0, 2.0, 3.0])
    assert (x < 2).tolist() == [True, False, False]
    assert (2 >= x).tolist() == [True, True, False]  # noqa: SIM300  # reflected on purpose
    assert (x == np.float64(2)).tolist() == [False, True, False]
    assert (Tensor([1, 2]) == 1.5).tolist() == [False, False]
    assert [x].count(None) == 0  # type: ignore[arg-type]  # PyTorch, too, compares with None by identity
    assert (Tensor([0.1]) == 0.1).tolist() == [True]


def test_bits_of_masks_and_integers() -> None:
    mask, other = Tensor([True, True, False]), Tensor([True, False, False])
    assert (mask & other).tolist() == [True, False, False]
    assert (mask | other).tolist() == [True, True, False]
    assert (mask ^ other).tolist() == [False, True, False]
    assert (~mask).tolist() == [False, False, True]
    assert (Tensor([6, 5]) & 3).tolist() == [2, 1]
    assert (6 | Tensor([1])).tolist() == [7]


# Laws.

SIZES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)
SMOOTH = [F.add, F.mul, F.div, F.hypot, F.atan2, F.maximum, lambda x, y: F.lerp(x, y, 0.25), lambda x, y: x * F.sin(y)]


@settings(max_examples=25, deadline=None)
@given(shape=SIZES, seed=SEEDS, operation=st.sampled_from(SMOOTH), s=st.floats(-4, 4))
def test_vjp_is_linear_in_the_gradient(
    shape: tuple[int, ...], seed: int, operation: Callable[..., Tensor], s: float
) -> None:
    rng = init.generator(seed)
    a, b, g, h = (rng.standard_normal(shape) for _ in range(4))
    for i in range(2):
        expected = vjp(operation, (a, b), g)[i] + s * vjp(operation, (a, b), h)[i]
        np.testing.assert_allclose(vjp(operation, (a, b), g + s * h)[i], expected, 1e-9, 1e-9)


@settings(max_examples=25, deadline=None)
@given(shape=SIZES, seed=SEEDS, operation=st.sampled_from(SMOOTH), data=st.data())
def test_gradient_of_a_broadcast_input_is_the_sum_over_its_copies(
    shape: tuple[int, ...], seed: int, operation: Callable[..., Tensor], data: st.DataObject
) -> None:
    kept = data.draw(st.tuples(*[st.booleans() for _ in shape]))
    dropped = data.draw(st.integers(0, next((i for i, keep in enumerate(kept) if keep), len(shape))))
    small = tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))[dropped:]
    rng = init.generator(seed)
    a, b, g = rng.standard_normal(small), rng.standard_normal(shape), rng.standard_normal(shape)
    whole = vjp(operation, (np.broadcast_to(a, shape).copy(), b), g)[0]
    axes = tuple(i for i, keep in enumerate(kept) if not keep)
    np.testing.assert_allclose(vjp(operation, (a, b), g)[0], whole.sum(axes).reshape(small), 1e-9, 1e-9)


def vjp(operation: Callable[..., Tensor], arrays: tuple[Any, ...], gradient: Any) -> list[Array]:
    inputs = [Tensor(np.asarray(a), requires_grad=True) for a in arrays]
    operation(*inputs).backward(np.asarray(gradient))
    return [x.grad.data for x in inputs if x.grad is not None]


# Errors.


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: of("float32", 3) + of("float32", 4), "add: got shapes (3,) and (4,), which do not broadcast"),
        (lambda: of("int64", 3) < of("float32", 4), "lt: got shapes (3,) and (4,), which do not broadcast"),
        (
            lambda: F.where(of("bool", 3), of("float32", 2), 1),
            "where: got shapes (2,) and () and (3,), which do not broadcast",
        ),
        (lambda: F.where(of("int64", 3), 1, 2), "where: condition is int64, expected bool"),
        (lambda: of("bool", 2) - of("bool", 2), "sub: got booleans, expected numbers"),
        (lambda: -of("bool", 2), "neg: got booleans, expected numbers"),
        (lambda: of("int64", 2).clamp(), "clamp: min and max are None, expected at least one bound"),
        (lambda: of("int64", 2) ** -1, "pow: got integers and a negative exponent"),
        (lambda: of("int64", 2) // 0, "floor_divide: y has a zero"),
        (lambda: of("int64", 2) % Tensor([1, 0]), "remainder: y has a zero"),
        (lambda: of("float32", 2).div(2, rounding_mode="up"), "div: rounding_mode is 'up', expected None, 'floor'"),
        (lambda: of("float32", 2) & of("float32", 2), "bitwise_and: got floating-point numbers, expected booleans"),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=r"^" + re.escape(message)):
        operation()


def test_what_is_no_operand_is_named() -> None:
    with pytest.raises(TypeError, match=r"^mul: expected a Tensor or a number, got str"):
        of("float32", 2) * "2"
    with pytest.raises(TypeError, match=r"^eq: expected a Tensor or a number, got list"):
        assert of("float32", 2) == [1, 2]
    with pytest.raises(TypeError, match=r"^exp: expected a Tensor, got float"):
        F.exp(1.0)  # type: ignore[arg-type]
