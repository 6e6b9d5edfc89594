"""The direct convolution: the general path's results, and bits that never change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import pytest

from worker.autodiff import correlation
from worker.autodiff.kernels import tiles
from worker.autodiff.windows import Windows
from worker.nn import init

Array = np.ndarray[Any, np.dtype[Any]]
Geometry = dict[str, Any]

pytestmark = pytest.mark.skipif(not tiles.AVAILABLE, reason="this CPU has no kernel; the general path is all there is")


def windows_of(size: tuple[int, int], kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Windows:
    out = tuple((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in size)
    return Windows(size, (kernel,) * 2, (stride,) * 2, (dilation,) * 2, (padding,) * 2, out)


def products(windows: Windows, groups: int, x: Array, weight: Array, bias: Array, g: Array) -> list[Array]:
    return [
        correlation.forward(x, weight, bias, windows, groups),
        correlation.input_gradient(g, weight, windows, groups),
        correlation.weight_gradient(x, g, windows, groups),
    ]


def arguments(channels_in: int, channels_out: int, windows: Windows, groups: int = 1) -> list[Array]:
    rng = init.generator(3, channels_in, channels_out)
    shapes = (
        (2, channels_in, *windows.size),
        (channels_out, channels_in // groups, *windows.kernel),
        (channels_out,),
        (2, channels_out, *windows.out),
    )
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


# Channels around the sizes of blocks and tiles.
CHANNELS = [(1, 32), (3, 16), (4, 1), (5, 15), (16, 17), (17, 33), (32, 64), (40, 24)]
GEOMETRIES: list[Geometry] = [
    {"size": (9, 15), "kernel": 3, "padding": 1},
    {"size": (5, 4), "kernel": 1},
    {"size": (6, 31), "kernel": 5, "padding": 4, "dilation": 1},
    {"size": (4, 5), "kernel": 2, "padding": 3},
    {"size": (11, 8), "kernel": 3, "stride": 2, "padding": 1},
    {"size": (12, 9), "kernel": 3, "dilation": 2, "padding": 2},
    {"size": (10, 10), "kernel": 2, "stride": 3, "dilation": 2},
    {"size": (13, 10), "kernel": 5, "stride": 3, "padding": 2},
    {"size": (7, 8), "kernel": 1, "stride": 2, "padding": 1},
    {"size": (75, 73), "kernel": 3, "padding": 1},  # more than one strip, for many channels
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("channels_in", "channels_out"), CHANNELS)
def test_products_are_those_of_the_general_path(channels_in: int, channels_out: int, geometry: Geometry) -> None:
    windows = windows_of(**geometry)
    inputs = arguments(channels_in, channels_out, windows)
    exact = products(windows, 1, *[a.astype(np.float64) for a in inputs])  # float64 takes the general path
    for got, expected in zip(products(windows, 1, *inputs), exact, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("channels_in", "channels_out", "groups"), [(5, 5, 5), (32, 32, 32), (4, 8, 4), (32, 16, 2)])
def test_grouped_products_are_those_of_the_general_path(
    channels_in: int, channels_out: int, groups: int, geometry: Geometry
) -> None:
    windows = windows_of(**geometry)
    inputs = arguments(channels_in, channels_out, windows, groups)
    exact = products(windows, groups, *[a.astype(np.float64) for a in inputs])
    for got, expected in zip(products(windows, groups, *inputs), exact, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_samples_have_the_same_bits_in_any_batch() -> None:
    windows = windows_of((9, 15), kernel=3, padding=1)
    x, weight, bias, g = arguments(17, 33, windows)
    y, dx, _ = products(windows, 1, x, weight, bias, g)
    one, d_one, _ = products(windows, 1, x[1:], weight, bias, g[1:])
    np.testing.assert_array_equal(y[1:], one)
    np.testing.assert_array_equal(dx[1:], d_one)


@pytest.mark.parametrize("channels", [(1, 32), (17, 33), (32, 64)], ids=str)
def test_bits_do_not_depend_on_where_arrays_lie(channels: tuple[int, int]) -> None:
    windows = windows_of((9, 15), kernel=3, padding=1)
    inputs = arguments(*channels, windows)
    inputs[0], inputs[3] = (np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1) for a in (inputs[0], inputs[3]))
    for got, expected in zip(
        products(windows, 1, *[moved(a) for a in inputs]), products(windows, 1, *inputs), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def moved(a: Array) -> Array:
    """The same array in the same layout, four bytes behind a cache line's beginning."""
    room = np.empty(a.size + 32, np.float32)
    start = -room.ctypes.data // 4 % 16 + 1
    copy = np.lib.stride_tricks.as_strided(room[start:], a.shape, a.strides)
    copy[...] = a
    return copy


PROGRAM = """
import hashlib, sys, numpy as np
from tests.unit.test_convolution_kernels import arguments, products, windows_of
from worker.autodiff.kernels import tiles
windows = windows_of((9, 15), kernel=3, padding=1)
inputs = arguments(17, 33, windows)
exact = products(windows, 1, *[a.astype(np.float64) for a in inputs])
results = products(windows, 1, *inputs)
error = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(results, exact))
print(tiles.LANES, error < 1e-6, hashlib.sha256(b"".join(r.tobytes() for r in results)).hexdigest())
"""


def run_elsewhere(**environment: str) -> list[str]:
    """What another process prints."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def test_two_processes_get_the_same_bits() -> None:
    first, second = run_elsewhere(), run_elsewhere()
    assert first == second
    assert first[:2] == [str(tiles.LANES), "True"]


@pytest.mark.parametrize(("features", "lanes"), [("+avx,+avx2,+fma,+sse4.2", "8"), ("", "0")])
def test_cpus_without_avx512_have_their_own_path(features: str, lanes: str) -> None:
    host = llvmlite.binding.get_host_cpu_features()
    if any(not host.get(name.removeprefix("+")) for name in features.split(",") if name):
        pytest.skip("this CPU lacks the features")
    assert run_elsewhere(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES=features)[:2] == [lanes, "True"]
