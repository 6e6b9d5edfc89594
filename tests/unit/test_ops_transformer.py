"""The operations of a transformer: normalisation, embedding, attention."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.operations import (
    Array,
    Case,
    Op,
    cases_of,
    check_against_differences,
    check_against_torch,
)
from worker.autodiff import Tensor, philox
from worker.autodiff import functional as F
from worker.nn import FlatParameters, Parameter, init

ROWS = (((5,), (5,), (5,)), ((4, 5), (5,), (5,)), ((2, 3, 33), (33,), (33,)), ((0, 5), (5,), (5,)))
# query, key, value; the longer ones cross the blocks of causal attention.
ATTENTION = (
    ((5, 4), (5, 4), (5, 4)),
    ((2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)),
    ((2, 3, 4), (2, 6, 4), (2, 6, 3)),
    ((2, 7, 4), (2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (3, 4), (1, 3, 2)),
    ((1, 130, 8), (1, 130, 8), (1, 130, 8)),
    ((1, 70, 8), (1, 150, 8), (1, 150, 8)),
    ((1, 150, 8), (1, 70, 8), (1, 70, 8)),
    ((0, 3, 4), (0, 3, 4), (0, 3, 4)),
)
SMALL = ATTENTION[:5]

attention: Callable[..., Tensor] = F.scaled_dot_product_attention


def indices(shape: tuple[int, ...], rows: int) -> Array:
    """Indices that repeat."""
    return np.asarray(np.arange(np.prod(shape, dtype=int)) ** 2 % rows).reshape(shape)


def mask(query: Any, key: Any) -> Array:
    """True where a query sees a key; the second query sees none."""
    seen = (np.arange(query.shape[-2])[:, None] + np.arange(key.shape[-2])) % 3 > 0
    seen[1] = False
    return np.asarray(seen)


def sdpa(torch: Any, *arguments: Any, **named: Any) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(*arguments, **named)


def cut(torch: Any, qkv: Any, num_heads: int, **named: Any) -> Any:
    """What self_attention does, step by step."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in qkv.chunk(3, -1))
    return sdpa(torch, q, k, v, **named).transpose(1, 2).flatten(2)


OPS = [
    Op(
        "layer_norm",
        lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        lambda t, x, w, b: t.nn.functional.layer_norm(x, w.shape, w, b),
        ROWS,
        tolerance=1e-5,
    ),
    Op(
        "layer_norm of two dimensions, without weight and bias",
        lambda x: F.layer_norm(x, (3, 4), eps=0.1),
        lambda t, x: t.nn.functional.layer_norm(x, (3, 4), eps=0.1),
        (((3, 4),), ((2, 3, 4),)),
        tolerance=1e-5,
    ),
    Op(
        "layer_norm of two dimensions",
        lambda x, w, b: F.layer_norm(x, (3, 4), w, b),
        lambda t, x, w, b: t.nn.functional.layer_norm(x, (3, 4), w, b),
        (((2, 3, 4), (3, 4), (3, 4)),),
        tolerance=1e-5,
    ),
    Op(
        "rms_norm",
        lambda x, w: F.rms_norm(x, w.shape, w),
        lambda t, x, w: t.nn.functional.rms_norm(x, w.shape, w),
        tuple(case[:2] for case in ROWS),
        tolerance=1e-5,
    ),
    Op(
        "rms_norm without weight",
        lambda x: F.rms_norm(x, 5, eps=0.1),
        lambda t, x: t.nn.functional.rms_norm(x, (5,), eps=0.1),
        (((4, 5),),),
        tolerance=1e-5,
    ),
    Op(
        "embedding",
        lambda w: F.embedding(Tensor(indices((3, 4), len(w))), w),
        lambda t, w: t.nn.functional.embedding(t.tensor(indices((3, 4), len(w))), w),
        (((5, 3),), ((1, 1),), ((7, 0),)),
    ),
    Op(
        "embedding with padding_idx",
        lambda w: F.embedding(Tensor(indices((9,), len(w))), w, padding_idx=-1),
        lambda t, w: t.nn.functional.embedding(t.tensor(indices((9,), len(w))), w, padding_idx=-1),
        (((5, 3),),),
        has_kink=True,  # the gradient that PyTorch leaves out is there
    ),
    Op(
        "embedding of nothing, and of one",
        lambda w: F.embedding(Tensor(np.zeros((0, 2), int)), w).sum() + F.embedding(Tensor(1), w).sum(),
        lambda t, w: w[t.zeros((0, 2), dtype=int)].sum() + w[1].sum(),
        (((5, 3),),),
    ),
    Op("attention", attention, sdpa, ATTENTION, tolerance=1e-5),
    Op(
        "causal attention",
        lambda q, k, v: attention(q, k, v, is_causal=True),
        lambda t, q, k, v: sdpa(t, q, k, v, is_causal=True),
        ATTENTION,
        tolerance=1e-5,
    ),
    Op(
        "attention with scale",
        lambda q, k, v: attention(q, k, v, scale=0.3),
        lambda t, q, k, v: sdpa(t, q, k, v, scale=0.3),
        SMALL,
        tolerance=1e-5,
    ),
    Op(
        "attention with a mask of booleans",
        lambda q, k, v: attention(q, k, v, Tensor(mask(q, k))),
        lambda t, q, k, v: sdpa(t, q, k, v, attn_mask=t.tensor(mask(q, k))),
        SMALL,
        tolerance=1e-5,
    ),
    Op(
        "attention with a mask of numbers",
        attention,
        lambda t, q, k, v, m: sdpa(t, q, k, v, attn_mask=m),
        (
            ((5, 4), (5, 4), (5, 4), (5, 5)),
            ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4), (3, 5, 6)),
            ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4), (2, 1, 1, 6)),
        ),
        tolerance=1e-5,
    ),
    *(
        Op(
            f"self_attention {named}",
            lambda x, named=named: F.self_attention(x, 3, **named),
            lambda t, x, named=named: cut(t, x, 3, **named),
            (((2, 4, 18),), ((1, 70, 9),), ((0, 4, 9),)),
            tolerance=1e-5,
        )
        for named in ({}, {"is_causal": True})
    ),
    Op(
        "self_attention with a mask",
        lambda x, m: F.self_attention(x, 2, m),
        lambda t, x, m: cut(t, x, 2, attn_mask=m),
        (((3, 4, 12), (3, 1, 1, 4)), ((3, 4, 12), (4, 4))),
        tolerance=1e-5,
    ),
]


@pytest.mark.torch
@cases_of(OPS)
def test_value_and_gradients_are_pytorchs(op: Op, case: Case) -> None:
    check_against_torch(op, case)


@cases_of(
    [
        Op(op.name, op.ours, op.like, [case for case in op.cases if case[0][-2:-1] < (70,)])
        for op in OPS
        if not op.has_kink
    ]
)
def test_gradients_are_those_of_finite_differences(op: Op, case: Case) -> None:
    check_against_differences(op, case)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lengths", [(33, 33), (200, 200), (100, 200), (200, 100)])
def test_float32_attention_is_that_of_float64(lengths: tuple[int, int], is_causal: bool) -> None:
    rng = init.generator(4)
    rows, columns = lengths
    arrays = [rng.standard_normal((2, 3, n, 16)) for n in (rows, columns, columns)]
    gradient = rng.standard_normal((2, 3, rows, 16))
    results = []
    for dtype in (np.float32, np.float64):
        inputs = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays]
        y = attention(*inputs, is_causal=is_causal)
        y.backward(gradient.astype(dtype))
        results.append([y.data, *(x.grad.data for x in inputs if x.grad is not None)])
    for ours, exact in zip(*results, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=2e-6)


def test_attention_of_views_gives_the_bits_of_attention_of_copies() -> None:
    qkv = init.generator(5).standard_normal((2, 70, 3, 4, 8)).astype(np.float32)
    views = [qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]
    ours = attention(*map(Tensor, views), is_causal=True)
    copies = attention(*(Tensor(v.copy()) for v in views), is_causal=True)
    np.testing.assert_array_equal(ours.data, copies.data)
    assert ours.transpose(1, 2).data.flags.c_contiguous, "the heads lie side by side already"
    packed = F.self_attention(Tensor(qkv.reshape(2, 70, 96)), 4, is_causal=True)
    np.testing.assert_array_equal(packed.data, ours.transpose(1, 2).reshape(2, 70, 32).data)


def test_dropped_weights_are_drawn_from_the_key_and_the_site() -> None:
    q, k, v = (Tensor(init.generator(6, i).standard_normal((2, 50, 8)).astype(np.float32)) for i in range(3))

    def attend(p: float) -> Array:
        return attention(q, k, v, dropout_p=p).data

    philox.seed(1, 2)
    first, second = attend(0.5), attend(0.5)
    philox.seed(1, 2)
    np.testing.assert_array_equal(attend(0.5), first)
    assert not np.array_equal(first, second)
    assert not attend(1.0).any()
    np.testing.assert_array_equal(attend(0.0), attention(q, k, v).data)


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_of_dropped_attention_are_those_of_finite_differences(is_causal: bool) -> None:
    def attend(*inputs: Tensor) -> Tensor:
        philox.seed(3)
        return attention(*inputs, dropout_p=0.4, is_causal=is_causal)

    check_against_differences(Op("dropped attention", attend, lambda: None, ()), ((2, 5, 4), (2, 6, 4), (2, 6, 4)))


def test_mean_of_dropped_attention_is_the_attention() -> None:
    q, k = (Tensor(np.zeros((1, 1, 4), np.float32)) for _ in range(2))
    k = Tensor(np.zeros((1, 20_000, 4), np.float32))
    v = Tensor(np.ones((1, 20_000, 2), np.float32))
    philox.seed(1)
    got = attention(q, k, v, dropout_p=0.25)
    np.testing.assert_allclose(got.data, 1, atol=0.02)


class TestTiedWeight:
    """One table that is looked up and multiplied by: its two gradients meet in its slot."""

    def tie(self, table: Parameter) -> Tensor:
        x = F.embedding(Tensor([2, 0, 2]), table)
        total: Tensor = (F.linear(x, table) * Tensor(np.arange(12, dtype=np.float32).reshape(3, 4))).sum()
        return total

    def test_gradients_add_up_in_the_slot(self) -> None:
        values = init.generator(1).standard_normal((4, 3)).astype(np.float32)
        alone, slotted = Parameter(values), Parameter(values.copy())
        self.tie(alone).backward()
        flat = FlatParameters([slotted])
        for _ in range(2):  # whatever the slot held before
            flat.bind_gradient(flat.gradient)
            self.tie(slotted).backward()
            assert slotted.grad is not None
            assert alone.grad is not None
            assert slotted.grad.data is flat.parameters[0].slot
            np.testing.assert_allclose(flat.gradient.reshape(4, 3), alone.grad.data, rtol=1e-6)

    def test_gradients_of_two_passes_add_up(self) -> None:
        table = Parameter(init.generator(1).standard_normal((4, 3)).astype(np.float32))
        flat = FlatParameters([table])
        self.tie(table).backward()
        once = flat.gradient.copy()
        self.tie(table).backward()
        np.testing.assert_allclose(flat.gradient, 2 * once, rtol=1e-6)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            lambda: F.layer_norm(Tensor(np.zeros((2, 5))), 4),
            "layer_norm: input has shape (2, 5), expected the last dimensions to be (4,)",
        ),
        (
            lambda: F.rms_norm(Tensor(np.zeros((2, 5))), 5, Tensor(np.zeros(4))),
            "rms_norm: weight or bias has shape (4,), expected (5,)",
        ),
        (
            lambda: F.layer_norm(Tensor([[1, 2]]), 2),
            "layer_norm: expected a floating-point tensor, got int64",
        ),
        (lambda: F.embedding(Tensor([0, 5]), Tensor(np.zeros((5, 2)))), "embedding: got index 5, expected 0..4"),
        (lambda: F.embedding(Tensor([-1]), Tensor(np.zeros((5, 2)))), "embedding: got index -1, expected 0..4"),
        (
            lambda: F.embedding(Tensor([1.0]), Tensor(np.zeros((5, 2)))),
            "embedding: input is float32, expected integers",
        ),
        (
            lambda: F.embedding(Tensor([1]), Tensor(np.zeros((5, 2))), padding_idx=5),
            "embedding: padding_idx is 5, expected -5..4",
        ),
        (
            lambda: attention(*(Tensor(np.zeros((2, n))) for n in (3, 4, 4))),
            "attention: query has 3 features but key has 4",
        ),
        (
            lambda: attention(*(Tensor(np.zeros((n, 2))) for n in (3, 4, 5))),
            "attention: there are 4 keys but 5 values",
        ),
        (
            lambda: attention(*(Tensor(np.zeros((3, 2))) for _ in range(3)), Tensor(np.zeros(4))),
            "attention: attn_mask has shape (4,), which does not broadcast to (3, 3)",
        ),
        (
            lambda: attention(*(Tensor(np.zeros((3, 2))) for _ in range(3)), Tensor(np.zeros(3)), is_causal=True),
            "attention: got attn_mask and is_causal; expected one of them",
        ),
        (
            lambda: F.self_attention(Tensor(np.zeros((2, 3, 8))), 2),
            "self_attention: qkv has shape (2, 3, 8), expected (batch, time, 3 * width) for 2 heads",
        ),
    ],
)
def test_error_says_what_is_wrong(operation: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        operation()


EVERYTHING = """
import hashlib, numpy as np
from worker.autodiff import Tensor, functional as F, philox
digest = hashlib.sha256()
for offset in range(3):
    rng = np.random.Generator(np.random.Philox(5))
    memory = np.empty(2 * 70 * 96 + 16, np.float32)
    memory[offset : offset + 2 * 70 * 96] = rng.standard_normal(2 * 70 * 96)
    x = Tensor(memory[offset : offset + 2 * 70 * 96].reshape(2, 70, 96), requires_grad=True)
    philox.seed(1)
    y = F.layer_norm(F.self_attention(x, 4, dropout_p=0.1, is_causal=True), 32)
    z = F.rms_norm(y, 32)
    z.backward(rng.standard_normal(z.shape).astype(np.float32))
    digest.update(z.data.tobytes() + x.grad.data.tobytes())
    if not offset:
        first = digest.hexdigest()
assert digest.hexdigest() == hashlib.sha256(3 * (z.data.tobytes() + x.grad.data.tobytes())).hexdigest()
print(first)
"""


def test_bits_are_the_same_in_every_process_at_every_alignment() -> None:
    digests = {
        subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1
