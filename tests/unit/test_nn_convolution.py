"""Convolution and pooling modules against PyTorch's, and the CNN."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from worker import nn, optim
from worker.autodiff import Tensor
from worker.autodiff import functional as F
from worker.models.cnn import Cnn
from worker.nn import init

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

WITH_WEIGHTS = [
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 9)),
    ("Conv2d", (3, 5, 3), {"padding": 1}, (2, 3, 6, 5)),
    ("Conv2d", (3, 5, (2, 3)), {"dilation": (1, 2), "bias": False}, (2, 3, 6, 7)),
    ("Conv2d", (3, 5, 3), {"padding": "same"}, (2, 3, 6, 5)),
    ("Conv3d", (2, 3, 2), {"padding": (1, 0, 1)}, (2, 2, 3, 4, 3)),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "output_padding": 1, "groups": 2}, (2, 4, 3, 4)),
]
WITHOUT_WEIGHTS = [
    ("MaxPool1d", (2,), {"stride": 3}, (2, 3, 8)),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}, (2, 3, 6, 7)),
    ("MaxPool2d", (2,), {}, (2, 3, 6, 7)),
    ("AvgPool2d", (2,), {"padding": 1, "count_include_pad": False}, (2, 3, 6, 7)),
    ("AdaptiveAvgPool2d", ((2, 3),), {}, (2, 3, 6, 7)),
    ("AdaptiveMaxPool2d", (2,), {}, (2, 3, 6, 7)),
    ("Upsample", (), {"scale_factor": 2.0}, (2, 3, 4, 5)),
    ("Upsample", (), {"size": (7, 3), "mode": "bilinear", "align_corners": True}, (2, 3, 4, 5)),
    ("PixelShuffle", (2,), {}, (2, 8, 3, 2)),
]


def values(*shape: int) -> Array:
    return init.generator(1).standard_normal(shape).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "arguments", "options", "shape"), WITH_WEIGHTS)
def test_state_dict_of_pytorch_gives_pytorchs_outputs(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any], shape: Shape
) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, name)(*arguments, **options)
    ours = getattr(nn, name)(*arguments, **options, generator=init.generator(0))
    assert repr(ours) == repr(theirs)
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    x = values(*shape)
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(ours(Tensor(x)).data, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "arguments", "options", "shape"), WITHOUT_WEIGHTS)
def test_module_without_weights_is_pytorchs(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any], shape: Shape
) -> None:
    torch = pytest.importorskip("torch")
    theirs, ours = getattr(torch.nn, name)(*arguments, **options), getattr(nn, name)(*arguments, **options)
    assert repr(ours) == repr(theirs)
    x = values(*shape)
    np.testing.assert_allclose(ours(Tensor(x)).data, theirs(torch.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(16, 32, 3, generator=init.generator(0)), 16 * 9),
        (nn.Conv2d(16, 32, 3, groups=4, generator=init.generator(0)), 4 * 9),
        (nn.ConvTranspose2d(16, 32, 3, generator=init.generator(0)), 32 * 9),
    ],
)
def test_convolution_starts_as_pytorchs_does(layer: Any, fan_in: int) -> None:
    bound = 1 / math.sqrt(fan_in)
    for parameter in (layer.weight, layer.bias):
        assert np.abs(parameter.data).max() <= bound
        assert np.abs(parameter.data).max() > 0.8 * bound
    assert layer.weight.data.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, 4, 3), {"groups": 2}, "Conv2d: got 3 channels in and 4 out, which groups=2 must divide"),
        ((0, 4, 3), {}, "Conv2d: got 0 channels in and 4 out"),
        ((3, 4, (3, 3, 3)), {}, "Conv2d: kernel_size is (3, 3, 3), expected one number or 2"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        nn.Conv2d(*arguments, **options, generator=init.generator(0))


class TestMemoryLayout:
    def test_chain_of_convolutions_stays_channels_last(self) -> None:
        """So that no channel is moved between them."""
        conv = nn.Conv2d(3, 16, 3, padding=1, generator=init.generator(0))
        y = F.max_pool2d(F.relu(conv(Tensor(values(2, 3, 8, 8)))), 2)
        assert y.shape == (2, 16, 4, 4)
        assert np.moveaxis(y.data, 1, -1).flags.c_contiguous

    def test_flat_gradient_is_written_in_place(self) -> None:
        conv = nn.Conv2d(3, 16, 3, generator=init.generator(0))
        flat = nn.FlatParameters(conv.parameters())
        conv(Tensor(values(2, 3, 8, 8))).sum().backward()
        for parameter in flat.parameters:
            assert parameter.grad is not None
            assert np.shares_memory(parameter.grad.data, flat.gradient)
        assert np.abs(flat.gradient).min() > 0


class TestCnn:
    def test_shapes_and_names(self) -> None:
        model = Cnn(1, 10, stages=(8, 16), blocks=2, generator=init.generator(0))
        assert model(Tensor(values(3, 1, 8, 6))).shape == (3, 10)
        shapes = {name: array.shape for name, array in model.state_dict().items()}
        assert shapes["stem.weight"] == (8, 1, 3, 3)
        assert shapes["stages.3.conv1.weight"] == (16, 8, 3, 3)
        assert shapes["stages.3.shortcut.weight"] == (16, 8, 1, 1)
        assert shapes["head.weight"] == (10, 16)

    @pytest.mark.parametrize("blocks", [1, 8])
    def test_signal_keeps_its_size_through_the_blocks(self, blocks: int) -> None:
        model = Cnn(3, 10, stages=(16, 32), blocks=blocks, generator=init.generator(0))
        h = model.stem(Tensor(values(4, 3, 16, 16)))
        assert 0.3 < model.stages(h).data.std() / h.data.std() < 3

    def test_norm_stands_before_every_activation(self) -> None:
        widths: list[int] = []

        def norm(channels: int) -> nn.Module:
            widths.append(channels)
            return nn.Sequential()

        model = Cnn(1, 2, stages=(4, 8), norm=norm, generator=init.generator(0))
        assert widths == [4, 4, 4, 8, 8]
        assert model(Tensor(values(1, 1, 4, 4))).shape == (1, 2)

    def test_same_generator_same_weights(self) -> None:
        first, second = (Cnn(1, 2, generator=init.generator(5)).state_dict() for _ in range(2))
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])

    def test_it_learns_where_a_bright_square_is(self) -> None:
        rng = init.generator(2)
        targets = rng.integers(0, 2, 32)
        x = rng.standard_normal((32, 1, 8, 8)).astype(np.float32) * 0.1
        for image, target in zip(x, targets, strict=True):
            image[0, 1:4, 1:4] += 1 if target else 0
            image[0, 4:7, 1:7] += 0 if target else 0.5  # the same brightness in all, another shape
        model = Cnn(1, 2, stages=(4, 8), generator=init.generator(0))
        optimizer = optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(Tensor(x)), Tensor(targets))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0]

    def test_without_stages_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Cnn: got 0 stages of 1 blocks"):
            Cnn(1, 2, stages=(), generator=init.generator(0))
