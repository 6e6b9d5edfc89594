"""Convolutions, as PyTorch means them: a sum of products of a kernel with each window of the input.

Shapes: N samples, I and O channels in and out, G groups, * one to three spatial dimensions. A sample without N is one.
https://pytorch.org/docs/stable/nn.functional.html#convolution-functions
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from worker.autodiff import correlation, kernels
from worker.autodiff.graph import Into, Vjp, record
from worker.autodiff.linalg import MIXED
from worker.autodiff.tensor import Array, Tensor
from worker.autodiff.windows import Sizes, Windows, batched, channels_last, sizes

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose2d",
    "fold",
    "unfold",
]

Ints = int | Sequence[int]
Padding = Ints | Literal["valid", "same"]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """input (N, I, L), weight (O, I/G, K), bias (O,) -> (N, O, (L + 2*padding - dilation*(K - 1) - 1) / stride + 1)."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """input (N, I, H, W), weight (O, I/G, KH, KW), bias (O,) -> (N, O, ...), by conv1d's formula in each dimension."""
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """input (N, I, D, H, W), weight (O, I/G, KD, KH, KW), bias (O,) -> (N, O, ...), by conv1d's formula."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """The gradient of conv2d by its input: input (N, I, H, W), weight (I, O/G, KH, KW), bias (O,) -> (N, O, ...).

    A size L becomes (L - 1)*stride - 2*padding + dilation*(K - 1) + output_padding + 1.
    """
    name = "conv_transpose2d"
    x, w = batched(name, input.data, 2), weight.data
    _check(name, x, weight, bias, groups, 2, channels_in=w.shape[0], channels_out=w.shape[1] * groups)
    step, spread = sizes(name, "stride", stride, 2, least=1), sizes(name, "dilation", dilation, 2, least=1)
    before = sizes(name, "padding", padding, 2, least=0)
    extra = sizes(name, "output_padding", output_padding, 2, least=0)
    if any(e >= max(s, d) for e, s, d in zip(extra, step, spread, strict=True)):
        raise ValueError(f"{name}: output_padding is {output_padding}, expected less than stride or dilation")
    size = tuple(
        (length - 1) * s - 2 * p + d * (k - 1) + e + 1
        for length, s, p, d, k, e in zip(x.shape[2:], step, before, spread, w.shape[2:], extra, strict=True)
    )
    if min(size) < 1:
        raise ValueError(f"{name}: input of shape {input.shape} gives an output of {size}, which is empty")
    windows = Windows(size, w.shape[2:], step, spread, before, x.shape[2:])
    y = correlation.input_gradient(x, w, windows, groups)
    if bias is not None:
        y += bias.data.reshape(-1, 1, 1)  # y is ours alone
    return record(
        name,
        _like(input, 2, kernels.activation(y, x)),
        (input, lambda g: _like(input, 2, correlation.forward(batched(name, g, 2), w, None, windows, groups))),
        (weight, Into(lambda g, out: correlation.weight_gradient(batched(name, g, 2), x, windows, groups, out))),
        (bias, _bias_vjp(name, 2)),
    )


def unfold(input: Tensor, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1) -> Tensor:
    """Every window of input (N, I, H, W) as a column: (N, I * KH * KW, number of windows)."""
    windows = _windows("unfold", batched("unfold", input.data, 2).shape[2:], kernel_size, dilation, padding, stride)
    return record(
        "unfold",
        _like(input, 2, _gather(batched("unfold", input.data, 2), windows)),
        (input, lambda g: _like(input, 2, _scatter(g if g.ndim == 3 else g[None], windows))),
    )


def fold(
    input: Tensor, output_size: Ints, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1
) -> Tensor:
    """Add up the windows that are the columns of input (N, I * KH * KW, number of windows): (N, I, *output_size)."""
    size = sizes("fold", "output_size", output_size, 2, least=1)
    windows = _windows("fold", size, kernel_size, dilation, padding, stride)
    x = batched("fold", input.data, 1)
    if x.shape[1] % windows.num_taps or x.shape[2] != windows.num_places:
        raise ValueError(
            f"fold: input has shape {input.shape}, expected (N, channels * {windows.num_taps}, {windows.num_places})"
        )
    return record(
        "fold",
        _like(input, 1, _scatter(x, windows)),
        (input, lambda g: _like(input, 1, _gather(batched("fold", g, 2), windows))),
    )


def _conv(
    name: str,
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
) -> Tensor:
    x, w = batched(name, input.data, rank), weight.data
    _check(name, x, weight, bias, groups, rank, channels_in=w.shape[1] * groups, channels_out=w.shape[0])
    windows = _windows(name, x.shape[2:], w.shape[2:], dilation, padding, stride)
    y = correlation.forward(x, w, None if bias is None else bias.data, windows, groups)
    return record(
        name,
        _like(input, rank, kernels.activation(y, x)),
        (input, lambda g: _like(input, rank, correlation.input_gradient(batched(name, g, rank), w, windows, groups))),
        (weight, Into(lambda g, out: correlation.weight_gradient(x, batched(name, g, rank), windows, groups, out))),
        (bias, _bias_vjp(name, rank)),
    )


def _bias_vjp(name: str, rank: int) -> Vjp:
    """The sum over everything but the channels."""

    def write(g: Array, out: Array | None) -> Array:
        last = channels_last(batched(name, g, rank))
        return kernels.column_sum(last.reshape(-1, last.shape[-1]), out)

    return Into(write)


def _like(input: Tensor, rank: int, y: Array) -> Array:
    """y as one sample, where the input is one."""
    return y if input.ndim == rank + 2 else y[0]


def _windows(name: str, size: Sizes, kernel: Ints, dilation: Ints, padding: Padding, stride: Ints) -> Windows:
    """The windows that arguments of PyTorch's ask for; ValueError where none fits."""
    rank = len(size)
    kernel = sizes(name, "kernel_size", kernel, rank, least=1)
    step, spread = sizes(name, "stride", stride, rank, least=1), sizes(name, "dilation", dilation, rank, least=1)
    reach = tuple(d * (k - 1) for d, k in zip(spread, kernel, strict=True))
    if padding == "same":
        if max(step) > 1:
            raise ValueError(f"{name}: padding 'same' needs stride 1, got {stride}")
        before, both = tuple(r // 2 for r in reach), reach
    elif isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"{name}: padding is {padding!r}, expected 'valid', 'same', or numbers")
        before = both = (0,) * rank
    else:
        before = sizes(name, "padding", padding, rank, least=0)
        both = tuple(2 * p for p in before)
    out = tuple((length + p - r - 1) // s + 1 for length, p, r, s in zip(size, both, reach, step, strict=True))
    if min(out) < 1:
        raise ValueError(f"{name}: a kernel of {kernel} does not fit into {size}; raise padding or shrink the kernel")
    return Windows(size, kernel, step, spread, before, out)


def _gather(x: Array, windows: Windows) -> Array:
    """(N, I, *size) -> (N, I * K, L)"""
    view = windows.view(windows.padded(x))
    rank = len(windows.out)
    view = np.moveaxis(view, range(2 + rank, 2 + 2 * rank), range(2, 2 + rank))
    return view.reshape(len(x), x.shape[1] * windows.num_taps, windows.num_places)


def _scatter(columns: Array, windows: Windows) -> Array:
    """(N, I * K, L) -> (N, I, *size), each window added where it came from."""
    count, channels = len(columns), columns.shape[1] // windows.num_taps
    by_tap = columns.reshape(count, channels, windows.num_taps, *windows.out)
    padded = np.zeros((count, channels, *windows.padded_size), columns.dtype)
    for k, tap in enumerate(windows.taps()):
        padded[tap] += by_tap[:, :, k]
    return windows.unpadded(padded)


def _check(
    name: str,
    x: Array,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    rank: int,
    *,
    channels_in: int,
    channels_out: int,
) -> None:
    if weight.ndim != rank + 2:
        raise ValueError(f"{name}: weight has shape {weight.shape}, expected {rank + 2} dimensions")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"{name}: weight has shape {weight.shape}, whose first size groups={groups} does not divide")
    if x.shape[1] != channels_in:
        raise ValueError(f"{name}: input has {x.shape[1]} channels but weight takes {channels_in}")
    if x.dtype != weight.dtype and not {x.dtype, weight.dtype} <= MIXED:
        raise ValueError(f"{name}: input is {x.dtype} but weight is {weight.dtype}")
    if bias is not None and bias.shape != (channels_out,):
        raise ValueError(f"{name}: bias has shape {bias.shape}, expected ({channels_out},)")
