"""Depthwise convolution of float32 images, every channel with a kernel of its own: the loops run over channels.

Shapes: N samples, C channels, H and W rows and columns, P and Q of windows, K taps of the kernel, row by row. Images
are contiguous (N, H, W, C), weights (K, C). kernel, stride, dilation and before are (rows, columns); out is written.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.approximations import ZERO
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.intrinsics import fma

Array = NDArray[np.float32]
Pair = tuple[int, int]


@compiled
def forward(
    x: Array, weight: Array, bias: Array, kernel: Pair, stride: Pair, dilation: Pair, before: Pair, out: Array
) -> None:
    """out (N, P, Q, C) = the sum over the taps of x (N, H, W, C) * weight (K, C), and bias (C,)."""
    for n in range(out.shape[0]):
        for p in range(out.shape[1]):
            for q in range(out.shape[2]):
                y = out[n, p, q]
                y[:] = bias
                for i in range(kernel[0]):
                    h = p * stride[0] + i * dilation[0] - before[0]
                    if h < 0 or h >= x.shape[1]:
                        continue
                    for j in range(kernel[1]):
                        w = q * stride[1] + j * dilation[1] - before[1]
                        if w < 0 or w >= x.shape[2]:
                            continue
                        pixel, factors = x[n, h, w], weight[i * kernel[1] + j]
                        for c in range(y.size):
                            y[c] = fma(pixel[c], factors[c], y[c])


@compiled
def input_gradient(
    g: Array, weight: Array, kernel: Pair, stride: Pair, dilation: Pair, before: Pair, out: Array
) -> None:
    """out (N, H, W, C) = the gradient of x, by g (N, P, Q, C)."""
    out[:] = ZERO
    for n in range(g.shape[0]):
        for p in range(g.shape[1]):
            for q in range(g.shape[2]):
                gradient = g[n, p, q]
                for i in range(kernel[0]):
                    h = p * stride[0] + i * dilation[0] - before[0]
                    if h < 0 or h >= out.shape[1]:
                        continue
                    for j in range(kernel[1]):
                        w = q * stride[1] + j * dilation[1] - before[1]
                        if w < 0 or w >= out.shape[2]:
                            continue
                        pixel, factors = out[n, h, w], weight[i * kernel[1] + j]
                        for c in range(gradient.size):
                            pixel[c] = fma(gradient[c], factors[c], pixel[c])


@compiled
def weight_gradient(x: Array, g: Array, kernel: Pair, stride: Pair, dilation: Pair, before: Pair, out: Array) -> None:
    """out (K, C) = the gradient of the weight: sums over a sample first, then over samples."""
    out[:] = ZERO
    sums = np.empty_like(out)
    for n in range(g.shape[0]):
        sums[:] = ZERO
        for p in range(g.shape[1]):
            for q in range(g.shape[2]):
                gradient = g[n, p, q]
                for i in range(kernel[0]):
                    h = p * stride[0] + i * dilation[0] - before[0]
                    if h < 0 or h >= x.shape[1]:
                        continue
                    for j in range(kernel[1]):
                        w = q * stride[1] + j * dilation[1] - before[1]
                        if w < 0 or w >= x.shape[2]:
                            continue
                        pixel, total = x[n, h, w], sums[i * kernel[1] + j]
                        for c in range(gradient.size):
                            total[c] = fma(pixel[c], gradient[c], total[c])
        out += sums
