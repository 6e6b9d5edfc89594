"""The layers of a transformer, against PyTorch's own with the same state dict."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from worker import nn
from worker.autodiff import Tensor, philox
from worker.autodiff import functional as F
from worker.nn import FlatParameters, Module, init
from worker.nn.attention import dropout

Array = np.ndarray[Any, np.dtype[Any]]

E, H, B, T, S = 12, 3, 2, 5, 7


def random(*shape: int, key: int = 1) -> Array:
    return init.generator(9, key).standard_normal(shape).astype(np.float32)


def check(
    torch: Any, ours: Module, theirs: Any, *inputs: Array, ours_named: Any = None, theirs_named: Any = None
) -> None:
    """Same names, same result, same gradients of inputs and parameters, from the same state dict."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    rng = init.generator(3)
    for parameter in ours.parameters():
        parameter.data[...] += 0.3 * rng.standard_normal(parameter.shape).astype(np.float32)
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
    if list(ours.parameters()):  # some norms have none
        FlatParameters(ours.parameters())
    our_inputs = [Tensor(x, requires_grad=True) for x in inputs]
    their_inputs = [torch.tensor(x, requires_grad=True) for x in inputs]
    y, expected = ours(*our_inputs, **(ours_named or {})), theirs(*their_inputs, **(theirs_named or {}))
    assert y.shape == tuple(expected.shape)
    np.testing.assert_allclose(y.data, expected.detach().numpy(), rtol=1e-4, atol=2e-5)
    gradient = random(*y.shape, key=7)
    y.backward(gradient)
    expected.backward(torch.tensor(gradient))
    for x, t in zip(our_inputs, their_inputs, strict=True):
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.data, t.grad.numpy(), rtol=1e-4, atol=1e-4)
    for (name, parameter), t in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None, name
        np.testing.assert_allclose(parameter.grad.data, t.grad.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def masks(torch: Any, **arrays: Array) -> dict[str, dict[str, Any]]:
    return {
        "ours_named": {name: Tensor(array) for name, array in arrays.items()},
        "theirs_named": {name: torch.tensor(array) for name, array in arrays.items()},
    }


PADDING = np.array([[False] * 5 + [True] * 2, [False] * 4 + [True] * 3])
NOT_CAUSAL = ~np.tri(T, T, dtype=bool)


@pytest.mark.torch
class TestAgainstPyTorch:
    def test_embedding(self) -> None:
        torch = pytest.importorskip("torch")
        ours = nn.Embedding(6, 4, padding_idx=2, generator=init.generator(1))
        theirs = torch.nn.Embedding(6, 4, padding_idx=2)
        assert repr(ours) == repr(theirs)
        assert not ours.weight.data[2].any()
        theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
        indices = np.array([[0, 2, 5], [5, 5, 1]])
        np.testing.assert_array_equal(ours(Tensor(indices)).data, theirs(torch.tensor(indices)).detach().numpy())

    @pytest.mark.parametrize("named", [{}, {"elementwise_affine": False}, {"bias": False}, {"eps": 0.1}])
    def test_layer_norm(self, named: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch")
        check(torch, nn.LayerNorm(E, **named), torch.nn.LayerNorm(E, **named), random(B, T, E))

    @pytest.mark.parametrize("named", [{}, {"elementwise_affine": False}, {"eps": 0.1}])
    def test_rms_norm(self, named: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch")
        check(torch, nn.RMSNorm(E, **named), torch.nn.RMSNorm(E, **named), random(B, T, E))

    def test_norms_print_as_pytorchs(self) -> None:
        torch = pytest.importorskip("torch")
        for name in ("LayerNorm", "RMSNorm"):
            assert repr(getattr(nn, name)((3, 4))) == repr(getattr(torch.nn, name)((3, 4)))

    @pytest.mark.parametrize("batch_first", [False, True])
    @pytest.mark.parametrize("norm_first", [False, True])
    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    def test_encoder_layer(self, batch_first: bool, norm_first: bool, activation: str) -> None:
        torch = pytest.importorskip("torch")
        named: dict[str, Any] = {
            "dim_feedforward": 16,
            "dropout": 0.0,
            "activation": activation,
            "batch_first": batch_first,
            "norm_first": norm_first,
        }
        ours = nn.TransformerEncoderLayer(E, H, **named, generator=init.generator(1))
        check(torch, ours, torch.nn.TransformerEncoderLayer(E, H, **named), random(B, T, E))

    def test_encoder_layer_without_biases(self) -> None:
        torch = pytest.importorskip("torch")
        named: dict[str, Any] = {"dim_feedforward": 16, "dropout": 0.0, "bias": False}
        ours = nn.TransformerEncoderLayer(E, H, **named, generator=init.generator(1))
        check(torch, ours, torch.nn.TransformerEncoderLayer(E, H, **named), random(T, E))

    @pytest.mark.parametrize(
        "arrays",
        [
            {"src_mask": NOT_CAUSAL},
            {"src_mask": random(T, T)},
            {"src_mask": random(B * H, T, T)},
            {"src_key_padding_mask": PADDING[:, ::-1][:, :T].copy()},
            {"src_mask": NOT_CAUSAL, "src_key_padding_mask": PADDING[:, 2:]},
        ],
    )
    def test_encoder_layer_with_masks(self, arrays: dict[str, Array]) -> None:
        torch = pytest.importorskip("torch")
        ours = nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True, generator=init.generator(1))
        theirs = torch.nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True)
        check(torch, ours, theirs, random(B, T, E), **masks(torch, **arrays))

    def test_causal_encoder_layer_needs_no_mask(self) -> None:
        torch = pytest.importorskip("torch")
        ours = nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True, generator=init.generator(1))
        theirs = torch.nn.TransformerEncoderLayer(E, H, 16, 0.0, batch_first=True)
        mask = {"src_mask": torch.tensor(NOT_CAUSAL), "is_causal": True}
        check(torch, ours, theirs, random(B, T, E), ours_named={"is_causal": True}, theirs_named=mask)

    @pytest.mark.parametrize("batch_first", [False, True])
    @pytest.mark.parametrize("norm_first", [False, True])
    def test_decoder_layer(self, batch_first: bool, norm_first: bool) -> None:
        torch = pytest.importorskip("torch")
        named: dict[str, Any] = {
            "dim_feedforward": 16,
            "dropout": 0.0,
            "batch_first": batch_first,
            "norm_first": norm_first,
        }
        ours = nn.TransformerDecoderLayer(E, H, **named, generator=init.generator(1))
        theirs = torch.nn.TransformerDecoderLayer(E, H, **named)
        shapes = ((B, T, E), (B, S, E)) if batch_first else ((T, B, E), (S, B, E))
        arrays = {"tgt_mask": NOT_CAUSAL, "memory_key_padding_mask": PADDING}
        check(torch, ours, theirs, *(random(*shape) for shape in shapes), **masks(torch, **arrays))

    @pytest.mark.parametrize("average", [False, True])
    @pytest.mark.parametrize("batched", [False, True])
    def test_attention_and_its_weights(self, average: bool, batched: bool) -> None:
        torch = pytest.importorskip("torch")
        ours = nn.MultiheadAttention(E, H, generator=init.generator(1))
        theirs = torch.nn.MultiheadAttention(E, H)
        theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
        inputs = [random(T, B, E), random(S, B, E), random(S, B, E, key=2)]
        padding = PADDING
        if not batched:
            inputs, padding = [x[:, 0] for x in inputs], PADDING[0]
        named = {"average_attn_weights": average}
        y, weights = ours(*map(Tensor, inputs), Tensor(padding), **named)
        expected, expected_weights = theirs(*map(torch.tensor, inputs), torch.tensor(padding), **named)
        np.testing.assert_allclose(y.data, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
        assert weights.shape == tuple(expected_weights.shape)
        np.testing.assert_allclose(weights.data, expected_weights.detach().numpy(), rtol=1e-4, atol=1e-6)

    def test_weights_start_with_pytorchs_spread(self) -> None:
        torch = pytest.importorskip("torch")
        ours = nn.TransformerEncoderLayer(96, 3, 128, generator=init.generator(1)).state_dict()
        for name, theirs in torch.nn.TransformerEncoderLayer(96, 3, 128).state_dict().items():
            assert ours[name].std() == pytest.approx(float(theirs.std()), rel=0.2, abs=1e-6), name


@pytest.mark.parametrize("is_causal", [False, True])
def test_result_is_the_same_with_and_without_the_weights(is_causal: bool) -> None:
    layer = nn.MultiheadAttention(E, H, batch_first=True, generator=init.generator(1))
    x = Tensor(random(B, T, E))
    with_weights, weights = layer(x, x, x, is_causal=is_causal)
    without, none = layer(x, x, x, need_weights=False, is_causal=is_causal)
    apart, _ = layer(x, Tensor(x.data), x, need_weights=False, is_causal=is_causal)
    assert weights.shape == (B, T, T)
    assert none is None
    np.testing.assert_allclose(with_weights.data, without.data, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apart.data, without.data, rtol=1e-5, atol=1e-6)


def test_dropout_is_drawn_in_training_only() -> None:
    layer = nn.TransformerEncoderLayer(E, H, 16, 0.5, generator=init.generator(1))
    x = Tensor(random(T, B, E))
    philox.seed(1)
    first, second = layer(x).data, layer(x).data
    philox.seed(1)
    np.testing.assert_array_equal(layer(x).data, first)
    assert not np.array_equal(first, second)
    layer.eval()
    np.testing.assert_array_equal(layer(x).data, layer(x).data)


def test_dropout_keeps_the_mean() -> None:
    philox.seed(2)
    x = Tensor(np.ones((200, 200), np.float32))
    y = dropout(x, 0.3, training=True).data
    assert np.unique(y).tolist() == [0, np.float32(1 / 0.7)]
    assert y.mean() == pytest.approx(1, abs=0.01)
    assert not dropout(x, 1.0, training=True).data.any()
    assert dropout(x, 0.3, training=False) is x


def test_scaled_residual_is_gpt2s() -> None:
    tensor = Tensor(np.empty((300, 200), np.float32))
    init.scaled_residual_(tensor, 8, generator=init.generator(1))
    assert tensor.data.std() == pytest.approx(0.02 / math.sqrt(16), rel=0.01)
    with pytest.raises(ValueError, match="got 0 layers"):
        init.scaled_residual_(tensor, 0, generator=init.generator(1))


def test_wrong_sizes_are_named() -> None:
    generator = init.generator(1)
    with pytest.raises(ValueError, match="embed_dim 12 cannot be cut into 5 heads"):
        nn.MultiheadAttention(12, 5, generator=generator)
    with pytest.raises(ValueError, match="padding_idx is 6, expected a row of the 6"):
        nn.Embedding(6, 2, padding_idx=6, generator=generator)
    with pytest.raises(ValueError, match="got 0 rows of 2"):
        nn.Embedding(0, 2, generator=generator)
    with pytest.raises(ValueError, match="activation is 'tanh', expected a function or one of relu, gelu"):
        nn.TransformerEncoderLayer(12, 3, activation="tanh", generator=generator)


def test_activation_may_be_a_function() -> None:
    layer = nn.TransformerEncoderLayer(E, H, 16, 0.0, activation=F.tanh, generator=init.generator(1))
    assert layer(Tensor(random(T, B, E))).shape == (T, B, E)
