"""The three products of a convolution: its value, and the gradients of its input and of its weight.

A transposed convolution is the second of them, and has the other two as its gradients. Values are (N, C, *L) in shape
and (N, *L, C) in memory, so that a chain of convolutions, activations and pools never moves a channel.

Here each product finds its way: float32 images, or rows of one, take compiled kernels (groups one by one), anything
else takes windows copied side by side. Which way is taken depends on shapes, dtypes and the CPU alone.

Shapes: N samples, I and O channels in and out, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from worker.autodiff import unfolding
from worker.autodiff.kernels import convolution, depthwise, tiles, units, window_products
from worker.autodiff.kernels.bfloat16 import round_bfloat16
from worker.autodiff.kernels.float16 import single
from worker.autodiff.precision import current
from worker.autodiff.windows import Array, Sizes, Windows, as_image, channels_first

Way = Literal["direct", "by a unit", "depthwise", "group by group", "unfolded"]


def forward(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    """x (N, I, *size), weight (O, I/G, *kernel) and bias (O,) -> (N, O, *out)."""
    return _forward(*_operands(x, weight, windows, groups, x.shape[1], len(weight)), bias, windows, groups)


def input_gradient(g: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """g (N, O, *out) and weight (O, I/G, *kernel) -> (N, I, *size)."""
    channels_in = weight.shape[1] * groups
    return _input_gradient(*_operands(g, weight, windows, groups, channels_in, len(weight)), windows, groups)


def weight_gradient(x: Array, g: Array, windows: Windows, groups: int, out: Array | None = None) -> Array:
    """x (N, I, *size) and g (N, O, *out) -> (O, I/G, *kernel), into `out` where given."""
    return _weight_gradient(*_operands(x, g, windows, groups, x.shape[1], g.shape[1]), windows, groups, out)


def _operands(
    x: Array, y: Array, windows: Windows, groups: int, channels_in: int, channels_out: int
) -> tuple[Array, Array]:
    """Those of a product as the current precision has them; float16 as float32, and so the product.

    For a unit that rounds by itself they are left as they are.
    """
    x, y = single(x), single(y)
    if current.get() == "bf16" and x.dtype == y.dtype == np.float32:
        way = _way(x, y, windows, groups, channels_in=channels_in, channels_out=channels_out)
        if units.BFLOAT16 is None or way in ("depthwise", "unfolded"):
            return round_bfloat16(x), round_bfloat16(y)
    return x, y


def _forward(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    match _way(x, weight, windows, groups, channels_in=x.shape[1], channels_out=len(weight)):
        case "direct":
            y = convolution.forward(as_image(x), _kernel(weight), bias, _plan(windows, x.shape[1]))
            return _from_image(y, windows.out)
        case "by a unit":
            assert units.BFLOAT16 is not None, "see _way"
            y = window_products.forward(units.BFLOAT16, as_image(x), _kernel(weight), bias, _places(windows))
            return _from_image(y, windows.out)
        case "depthwise":
            y = np.empty((len(x), *windows.of_image.out, len(weight)), np.float32)
            start = np.zeros(len(weight), np.float32) if bias is None else np.ascontiguousarray(bias)
            depthwise.forward(as_image(x), _taps(weight), start, *_geometry(windows), y)
            return _from_image(y, windows.out)
        case "group by group":
            y = channels_first(np.empty((len(x), *windows.out, len(weight)), np.float32))
            for inputs, outputs in _groups(x.shape[1], len(weight), groups):
                part = None if bias is None else bias[outputs]
                y[:, outputs] = _forward(x[:, inputs], weight[outputs], part, windows, 1)
            return y
        case "unfolded":
            return unfolding.forward(x, weight, bias, windows, groups)


def _input_gradient(g: Array, weight: Array, windows: Windows, groups: int) -> Array:
    channels_in = weight.shape[1] * groups
    match _way(g, weight, windows, groups, channels_in=channels_in, channels_out=len(weight)):
        case "direct" | "by a unit" if max(windows.stride) == 1 or max(windows.dilation) == 1:
            phases = list(windows.phases())
            if len(phases) == 1:
                return _from_phase(g, weight, phases[0])
            out = channels_first(np.zeros((len(g), *windows.size, channels_in), np.float32))
            for phase in phases:
                positions, _, opposite = phase
                if opposite.num_taps and opposite.num_places:
                    out[positions] = _from_phase(g, weight, phase)
            return out
        case "depthwise":
            out = np.empty((len(g), *windows.of_image.size, channels_in), np.float32)
            depthwise.input_gradient(as_image(g), _taps(weight), *_geometry(windows), out)
            return _from_image(out, windows.size)
        case "group by group":
            out = channels_first(np.empty((len(g), *windows.size, channels_in), np.float32))
            for inputs, outputs in _groups(channels_in, len(weight), groups):
                out[:, inputs] = _input_gradient(g[:, outputs], weight[outputs], windows, 1)
            return out
        case way:
            if way == "by a unit":  # which has no such products, and so did not round
                g, weight = round_bfloat16(g), round_bfloat16(weight)
            return unfolding.input_gradient(g, weight, windows, groups)


def _weight_gradient(x: Array, g: Array, windows: Windows, groups: int, out: Array | None) -> Array:
    channels_in, channels_out = x.shape[1], g.shape[1]
    if out is None:
        out = np.empty((channels_out, channels_in // groups, *windows.kernel), np.result_type(x, g))
    match _way(x, g, windows, groups, channels_in=channels_in, channels_out=channels_out):
        case "direct":
            convolution.weight_gradient(as_image(x), as_image(g), _plan(windows, channels_in), _kernel(out))
        case "by a unit":
            assert units.BFLOAT16 is not None, "see _way"
            window_products.weight_gradient(units.BFLOAT16, as_image(x), as_image(g), _places(windows), _kernel(out))
        case "depthwise":
            sums = np.empty((windows.num_taps, channels_out), np.float32)
            depthwise.weight_gradient(as_image(x), as_image(g), *_geometry(windows), sums)
            out[...] = sums.T.reshape(out.shape)
        case "group by group":
            for inputs, outputs in _groups(channels_in, channels_out, groups):
                _weight_gradient(x[:, inputs], g[:, outputs], windows, 1, out[outputs])
        case "unfolded":
            out[...] = unfolding.weight_gradient(x, g, windows, groups)
    return out


def _from_phase(g: Array, weight: Array, phase: tuple[Any, Any, Windows]) -> Array:
    """The input gradient at the positions of one of windows.phases()."""
    _, taps, opposite = phase
    turned = np.flip(weight[taps], tuple(range(2, weight.ndim))).swapaxes(0, 1)
    return _forward(g, turned, None, opposite, 1)


def _way(x: Array, y: Array, windows: Windows, groups: int, *, channels_in: int, channels_out: int) -> Way:
    if not x.dtype == y.dtype == np.float32 or len(windows.size) > 2:
        return "unfolded"
    if channels_in == channels_out == groups > 1:
        return "depthwise"
    if not tiles.AVAILABLE:
        return "unfolded"
    if groups > 1:
        return "group by group"
    return "by a unit" if current.get() == "bf16" and units.BFLOAT16 is not None else "direct"


def _groups(channels_in: int, channels_out: int, groups: int) -> Iterator[tuple[slice, slice]]:
    """Which channels in and out each group has."""
    i, o = channels_in // groups, channels_out // groups
    return ((slice(k * i, (k + 1) * i), slice(k * o, (k + 1) * o)) for k in range(groups))


def _plan(windows: Windows, channels: int) -> convolution.Windows:
    w = windows.of_image
    return convolution.plan(w.size, channels, w.kernel, w.stride, w.dilation, w.before, w.out)


def _places(windows: Windows) -> window_products.Geometry:
    w = windows.of_image
    return window_products.geometry(w.size, w.out, w.kernel, w.stride, w.dilation, w.before)


def _geometry(windows: Windows) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    w = windows.of_image
    return w.kernel, w.stride, w.dilation, w.before


def _kernel(weight: Array) -> Array:
    """The view (O, I, 1 or KH, KL or KW) of a weight."""
    return weight if weight.ndim == 4 else weight[:, :, None]


def _taps(weight: Array) -> Array:
    """The weight (C, 1, *kernel) as (K, C)."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T)


def _from_image(image: Array, size: Sizes) -> Array:
    """(N, C, *size) from an image (N, H, W, C), which may be of one row."""
    return channels_first(image.reshape(len(image), *size, image.shape[-1]))
