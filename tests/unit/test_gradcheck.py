"""gradcheck finds what is wrong, and says where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worker.autodiff import Tensor, gradcheck
from worker.autodiff import functional as F
from worker.autodiff.graph import record


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def wrong_square(x: Tensor) -> Tensor:
    """x * x, whose vjp is wrong in element 1."""
    a = x.data
    return record("square", a * a, (x, lambda g: g * 2 * a * np.where(np.arange(a.size) == 1, 2, 1)))


def test_right_gradients_pass() -> None:
    x, y = leaf(0.5, -2.0), leaf(3.0, 1.0)
    assert gradcheck(lambda x, y: F.exp(x) * y, (x, y))
    assert gradcheck(F.exp, x)
    assert x.grad is None
    assert x.tolist() == [0.5, -2.0]


def test_wrong_element_is_named() -> None:
    with pytest.raises(AssertionError, match=r"gradcheck: input 1 at \(1,\): backward gives .*, finite differences"):
        gradcheck(lambda x, y: x * wrong_square(y), (leaf(1.0, 2.0), leaf(3.0, 4.0)))
    assert gradcheck(wrong_square, leaf(1.0, 2.0), raise_exception=False) is False


def test_wrong_output_is_named() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x * 2, F.argmax(x), wrong_square(x)

    with pytest.raises(AssertionError, match=r"gradcheck: output 1, input 0 at \(1,\)"):
        gradcheck(function, [leaf(1.0, 2.0)])
    assert gradcheck(lambda x: (x * 2, F.argmax(x), F.exp(x)), [leaf(1.0, 2.0)])


def test_missing_gradient_is_found() -> None:
    with pytest.raises(AssertionError, match="backward gives 0"):
        gradcheck(lambda x: x.detach() * 2, leaf(1.0))


def test_gradient_of_nan_is_found() -> None:
    with pytest.raises(AssertionError, match="backward gives nan"):
        gradcheck(lambda x: record("bad", x.data * 2, (x, lambda g: g * np.nan)), leaf(1.0))


def test_gradient_that_changes_from_pass_to_pass_is_found() -> None:
    passes: list[Any] = []

    def vjp(g: Any) -> Any:
        passes.append(g)
        return g * (1 + 1e-9 * len(passes))

    with pytest.raises(AssertionError, match="two backward passes give different bits"):
        gradcheck(lambda x: record("unsteady", x.data * 1, (x, vjp)), leaf(1.0))


def test_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="input 1 is float32, expected float64"):
        gradcheck(lambda x, y: x + y, (leaf(1.0), Tensor([1.0], requires_grad=True)))
