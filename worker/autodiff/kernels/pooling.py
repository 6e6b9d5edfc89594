"""Pooling of float32 images: the largest element of each window, and its gradient.

Shapes: N samples, H and W rows and columns, P and Q of windows, C channels. Images are contiguous (N, H, W, C), so that
the loops run over channels. kernel, stride, dilation and before are (rows, columns); out is written.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.autodiff.kernels.approximations import ZERO
from worker.autodiff.kernels.compilation import compiled

Array = NDArray[np.float32]
Taps = NDArray[np.uint8]  # which tap of the kernel, row by row
Pair = tuple[int, int]

MAX_TAPS = 255
LOWEST = np.float32(-np.inf)


@compiled
def max_pool(x: Array, kernel: Pair, stride: Pair, dilation: Pair, before: Pair, out: Array, where: Taps) -> None:
    """out (N, P, Q, C) = the largest of each window of x (N, H, W, C), NaN before all; where = its tap, the first."""
    samples, height, width, channels = x.shape
    for n in range(samples):
        for p in range(out.shape[1]):
            for q in range(out.shape[2]):
                best, tap_of_best = out[n, p, q], where[n, p, q]
                is_first = True
                for i in range(kernel[0]):
                    h = p * stride[0] + i * dilation[0] - before[0]
                    if h < 0 or h >= height:
                        continue
                    for j in range(kernel[1]):
                        w = q * stride[1] + j * dilation[1] - before[1]
                        if w < 0 or w >= width:
                            continue
                        seen, tap = x[n, h, w], np.uint8(i * kernel[1] + j)
                        if is_first:
                            is_first = False
                            for c in range(channels):
                                best[c] = seen[c]
                                tap_of_best[c] = tap
                        else:
                            for c in range(channels):
                                is_larger = (seen[c] > best[c]) | (seen[c] != seen[c])
                                best[c] = seen[c] if is_larger else best[c]
                                tap_of_best[c] = tap if is_larger else tap_of_best[c]
                if is_first:
                    best[:] = LOWEST
                    tap_of_best[:] = 0


@compiled
def max_pool_backward(
    g: Array, where: Taps, kernel: Pair, stride: Pair, dilation: Pair, before: Pair, overlapping: bool, out: Array
) -> None:
    """out (N, H, W, C) = g (N, P, Q, C), each where the largest of its window is; added up if windows overlap.

    out holds zeros at first if windows overlap or leave gaps.
    """
    samples, height, width, channels = out.shape
    for n in range(samples):
        for p in range(g.shape[1]):
            for i in range(kernel[0]):
                h = p * stride[0] + i * dilation[0] - before[0]
                if h < 0 or h >= height:
                    continue
                for q in range(g.shape[2]):
                    gradient, largest = g[n, p, q], where[n, p, q]
                    for j in range(kernel[1]):
                        w = q * stride[1] + j * dilation[1] - before[1]
                        if w < 0 or w >= width:
                            continue
                        pixel, tap = out[n, h, w], np.uint8(i * kernel[1] + j)
                        if overlapping:
                            for c in range(channels):
                                pixel[c] += gradient[c] if largest[c] == tap else ZERO
                        else:
                            for c in range(channels):
                                pixel[c] = gradient[c] if largest[c] == tap else ZERO
