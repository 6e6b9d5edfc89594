"""Products in tiles, on each unit that the CPU has, whatever lies how in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.autodiff.kernels import bfloat16, products, units
from worker.autodiff.kernels.products import product

Array = NDArray[Any]

ROUNDING = [unit for unit in (units.AVX512_BF16, units.AMX) if unit in units.UNITS]
SLICING = [unit for unit in (units.AMX_FLOAT32,) if unit in units.UNITS]
SIZES = [  # M, N, K: one element, edges in every dimension, whole tiles, several strips, more than one pass
    (1, 1, 1),
    (5, 7, 9),
    (1, 17, 33),
    (33, 1, 40),
    (16, 16, 32),
    (32, 64, 64),
    (31, 33, 31),
    (48, 80, 96),
    (600, 40, 70),
    (20, 1500, 40),
    (70, 100, 80),
    (100, 1100, 130),
    (9, 10, 4100),
]


@pytest.fixture(params=units.UNITS, ids=units.NAMES.get)
def unit(request: pytest.FixtureRequest) -> int:
    """Each unit that this CPU has."""
    found: int = request.param
    return found


def draw(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def expected(unit: int, a: Array, b: Array) -> Array:
    if unit in ROUNDING:
        a, b = bfloat16.round_bfloat16(a), bfloat16.round_bfloat16(b)
    return a.astype(np.float64) @ b.astype(np.float64)


def assert_close(found: Array, wanted: Array, depth: int) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * max(depth, 1) ** 0.75)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
def test_product_of_rounded_operands(unit: int, size: tuple[int, int, int], layout: str) -> None:
    rows, columns, depth = size
    a = draw(depth, rows).T if layout[0] == "T" else draw(rows, depth)
    b = draw(columns, depth).T if layout[1] == "T" else draw(depth, columns)
    assert_close(product(unit, a, b), expected(unit, a, b), depth)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bias_is_added(unit: int, size: tuple[int, int, int]) -> None:
    rows, columns, depth = size
    a, b, bias = draw(rows, depth), draw(depth, columns), draw(columns)
    assert_close(product(unit, a, b, bias=bias), expected(unit, a, b) + bias, depth)


OUTPUTS: dict[str, Callable[[], Array]] = {
    "contiguous": lambda: np.empty((33, 20), np.float32),
    "part of wider rows": lambda: np.empty((33, 50), np.float32)[:, 7:27],
    "transposed": lambda: np.empty((20, 33), np.float32).T,
    "every other column": lambda: np.empty((33, 40), np.float32)[:, ::2],
    "backwards": lambda: np.empty((33, 20), np.float32)[::-1],
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_product_goes_into_a_view(unit: int, output: str) -> None:
    a, b, out = draw(33, 40), draw(40, 20), OUTPUTS[output]()
    found = product(unit, a, b, out)
    assert found is out
    assert_close(out, expected(unit, a, b), 40)


def test_rows_and_columns_beside_a_view_stay_as_they_are(unit: int) -> None:
    whole = np.full((40, 40), 7, np.float32)
    product(unit, draw(17, 8), draw(8, 19), whole[3:20, 5:24])
    whole[3:20, 5:24] = 7
    assert (whole == 7).all()


OPERANDS: dict[str, Callable[[Array], Array]] = {
    "every other element": lambda x: np.repeat(np.repeat(x, 2, -1), 2, -2)[..., ::2, ::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "one row for all": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("operand", OPERANDS)
def test_operands_may_have_any_strides(unit: int, operand: str) -> None:
    a, b = OPERANDS[operand](draw(20, 30)), OPERANDS[operand](draw(30, 25))
    assert_close(product(unit, a, b), expected(unit, a, b), 30)


BATCHES = [((3,), (3,)), ((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 3)), ((2, 2, 3), (2, 1, 3))]


@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_batches_are_broadcast(unit: int, batches: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = draw(*batches[0], 5, 40), draw(*batches[1], 40, 17)
    assert_close(product(unit, a, b), expected(unit, a, b), 40)


def test_operands_are_known_by_how_they_lie(unit: int) -> None:
    """One shape after the other, in each way: none is taken for one before it."""
    x, w = draw(40, 40), draw(40, 40)
    for a in (x, x.T, x[::-1], x[:, ::-1], np.asfortranarray(x)):
        for b in (w, w.T, w[::-1], np.broadcast_to(w[0], w.shape)):
            for out in (None, np.zeros((40, 40), np.float32), np.zeros((80, 40), np.float32)[::2]):
                assert_close(product(unit, a, b, out), expected(unit, a, b), 40)


def test_no_more_layouts_are_kept_than_a_limit(monkeypatch: pytest.MonkeyPatch, unit: int) -> None:
    monkeypatch.setattr(products, "MOST_PLANS", 3)
    monkeypatch.setattr(products, "_plans", {})
    for rows in range(1, 9):
        a, b = draw(rows, 4), draw(4, 5)
        assert_close(product(unit, a, b), expected(unit, a, b), 4)
        assert len(products._plans) <= 3


@pytest.mark.parametrize("shapes", [((0, 3), (3, 4)), ((2, 0), (0, 4)), ((2, 3), (3, 0)), ((0, 2, 3), (3, 4))], ids=str)
def test_empty_products(unit: int, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (np.ones(shape, np.float32) for shape in shapes)
    np.testing.assert_array_equal(product(unit, a, b), a @ b)


def test_an_element_has_the_same_bits_in_a_larger_product(unit: int) -> None:
    a, b = draw(100, 300), draw(300, 90)
    whole = product(unit, a, b)
    for rows, columns in ((1, 90), (100, 1), (37, 20)):
        np.testing.assert_array_equal(product(unit, a[:rows], b[:, :columns]), whole[:rows, :columns])


@pytest.mark.parametrize("size", [(200, 150, 100), (100, 1100, 130)], ids=["rows go by", "columns go by"])
@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
def test_bits_are_those_of_a_product_of_one_tile(unit: int, size: tuple[int, int, int], layout: str) -> None:
    rows, columns, depth = size
    a = draw(depth, rows).T if layout[0] == "T" else draw(rows, depth)
    b = draw(columns, depth).T if layout[1] == "T" else draw(depth, columns)
    whole = product(unit, a, b)
    for i in range(0, rows, 32):
        for j in (0, 64, columns - 20):
            np.testing.assert_array_equal(product(unit, a[i : i + 32], b[:, j : j + 20]), whole[i : i + 32, j : j + 20])


SPECIAL = {
    "tie to even, down": (1 + 2**-8, 1.0),
    "tie to even, up": (1 + 3 * 2**-8, 1 + 2**-6),
    "above a tie": (1 + 2**-8 + 2**-20, 1 + 2**-7),
    "largest float32": (3.4028235e38, np.inf),
    "infinity": (-np.inf, -np.inf),
    "not a number": (np.nan, np.nan),
    "denormal": (1e-39, 0.0),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("unit", ROUNDING, ids=units.NAMES.get)
def test_operands_are_rounded_as_without_the_unit(unit: int, name: str) -> None:
    value, rounded = map(np.float32, SPECIAL[name])
    np.testing.assert_array_equal(bfloat16.round_bfloat16(np.array([value])), [rounded])
    x, one = np.array([[value]]), np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(product(unit, x, one), [[rounded]])
    np.testing.assert_array_equal(product(unit, one, x), [[rounded]])


@pytest.mark.parametrize("depth", [1, 32, 300, 4100])
@pytest.mark.parametrize("unit", SLICING, ids=units.NAMES.get)
def test_slices_lose_no_more_than_float32_does(unit: int, depth: int) -> None:
    a, b = draw(64, depth), draw(depth, 64)
    size = np.abs(a).astype(np.float64) @ np.abs(b)  # of which an error is a part
    exact = a.astype(np.float64) @ b
    found, usual = (np.abs(x - exact) / size for x in (product(unit, a, b), a @ b))
    assert found.max() <= max(usual.max() * 1.25, 2**-23)  # what six products add up to is rounded more than once


SIZES_OF_NUMBERS = [1.0, -3.1415927, 1e-30, 1e30, 16777215.0, 1 + 2**-23, 3.38e38, 2.0**-126]


@pytest.mark.parametrize("value", SIZES_OF_NUMBERS)
@pytest.mark.parametrize("unit", SLICING, ids=units.NAMES.get)
def test_one_times_a_number_is_the_number(unit: int, value: float) -> None:
    x, one = np.array([[value]], np.float32), np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(product(unit, x, one), x)
    np.testing.assert_array_equal(product(unit, one, x), x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4028235e38])
@pytest.mark.parametrize("unit", SLICING, ids=units.NAMES.get)
def test_what_cannot_be_cut_is_never_taken_for_a_number(unit: int, value: float) -> None:
    x, ones = np.ones((3, 40), np.float32), np.ones((40, 3), np.float32)
    x[1, 7] = value
    found = product(unit, x, ones)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[::2], 40)
