"""A convolution in general: its windows copied side by side, and one matrix product, for any rank, groups and dtype.

Shapes: N samples, I and O channels in and out, G groups, L places of a window, K taps of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.windows import Array, Windows, channels_first, channels_last

BLOCK_BYTES = 4 << 20  # of the windows that are copied side by side at a time; larger blocks leave the cache


def forward(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    """x (N, I, *size), weight (O, I/G, *kernel) and bias (O,) -> (N, O, *out)."""
    matrix = _matrix(weight, groups)
    y = np.empty((len(x), *windows.out, len(weight)), np.result_type(x, weight))
    for block in _blocks(x, windows):
        columns = _columns(x[block], windows, groups)
        np.matmul(columns, matrix, out=_rows(y[block], groups))
    if bias is not None:
        kernels.add_bias(y, bias)
    return channels_first(y)


def input_gradient(g: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """g (N, O, *out) and weight (O, I/G, *kernel) -> (N, I, *size)."""
    matrix = _matrix(weight, groups).swapaxes(1, 2)
    g_last, channels = channels_last(g), weight.shape[1] * groups
    padded = np.zeros((len(g), *windows.padded_size, channels), np.result_type(g, weight))
    for block in _blocks(g, windows):
        columns = np.matmul(_rows(g_last[block], groups), matrix)
        _add_columns(columns, padded[block], windows, groups)
    return windows.unpadded(channels_first(padded))


def weight_gradient(x: Array, g: Array, windows: Windows, groups: int) -> Array:
    """x (N, I, *size) and g (N, O, *out) -> (O, I/G, *kernel)."""
    channels_in, channels_out = x.shape[1] // groups, g.shape[1] // groups
    g_last = channels_last(g)
    total = np.zeros((groups, windows.num_taps * channels_in, channels_out), np.result_type(x, g))
    for block in _blocks(x, windows):
        columns = _columns(x[block], windows, groups)
        total += np.matmul(columns.swapaxes(1, 2), _rows(g_last[block], groups))
    # (G, *K, I/G, O/G) -> (G, O/G, I/G, *K)
    parts = total.reshape(groups, *windows.kernel, channels_in, channels_out)
    parts = np.moveaxis(parts, (-1, -2), (1, 2))
    return parts.reshape(groups * channels_out, channels_in, *windows.kernel)


def _blocks(x: Array, windows: Windows) -> Iterator[slice]:
    """Runs of samples whose windows fill BLOCK_BYTES, or one sample each."""
    sample_bytes = max(windows.num_places * windows.num_taps * x.shape[1] * x.itemsize, 1)
    count = max(BLOCK_BYTES // sample_bytes, 1)
    return (slice(start, start + count) for start in range(0, len(x), count))


def _matrix(weight: Array, groups: int) -> Array:
    """The weight (O, I/G, *kernel) as matrices (G, K * I/G, O/G)."""
    parts = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    return np.moveaxis(parts, (1, 2), (-1, -2)).reshape(groups, -1, len(weight) // groups)


def _rows(y: Array, groups: int) -> Array:
    """The view (G, N * L, O/G) of y (N, *L, O), which is contiguous."""
    return y.reshape(-1, groups, y.shape[-1] // groups).transpose(1, 0, 2)


def _columns(x: Array, windows: Windows, groups: int) -> Array:
    """All windows of x (N, I, *size) side by side: (G, N * L, K * I/G)."""
    view = windows.view(windows.padded(channels_first(channels_last(x))))  # (N, I, *out, *kernel)
    view = np.moveaxis(view, 1, -1)
    view = np.moveaxis(view.reshape(*view.shape[:-1], groups, -1), -2, 0)
    return view.reshape(groups, len(x) * windows.num_places, windows.num_taps * view.shape[-1])


def _add_columns(columns: Array, padded: Array, windows: Windows, groups: int) -> None:
    """Add windows (G, N * L, K * I/G), side by side, to padded (N, *padded_size, I), where they came from."""
    count, channels = len(padded), padded.shape[-1]
    by_tap = columns.reshape(groups, count, *windows.out, windows.num_taps, channels // groups)
    by_tap = np.moveaxis(by_tap, 0, -2)  # (N, *out, K, G, I/G)
    target = channels_first(padded)
    for k, tap in enumerate(windows.taps()):
        target[tap] += channels_first(by_tap[..., k, :, :].reshape(count, *windows.out, channels))
