"""What besides a job and its data decides the last bits of its weights: processor, libraries, and our own core.

Equal fingerprints are what the promise of equal digests stands on. It is taken in the process that computes, for a
variable of its environment (OPENBLAS_CORETYPE, NPY_DISABLE_CPU_FEATURES, NUMBA_CPU_NAME) is enough to change it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np

from worker.autodiff.kernels import units
from worker.autodiff.kernels.compilation import WIDE_VECTORS, target_features

Fingerprint = Mapping[str, Any]

CORE = 3
"""Raised by every change of ours that moves the bits of a job that is under way."""


def fingerprint() -> Fingerprint:
    """This process's, as a mapping that JSON can hold: words, numbers, and sorted lists of words."""
    simd: Mapping[str, bool] = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]  # NumPy has no public name for it
    config: Any = numba.config
    return {
        "core": CORE,
        "machine": platform.machine(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "libc": " ".join(platform.libc_ver()),
        "numpy": np.__version__,
        "numpy_simd": sorted(name for name, found in simd.items() if found),
        "blas": blas(),
        "float32": units.NAMES[units.SINGLE],
        "bfloat16": units.NAMES[units.BFLOAT16],
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "llvm": ".".join(map(str, llvm.llvm_version_info)),
        "llvm_cpu": config.CPU_NAME or llvm.get_host_cpu_name(),
        "llvm_features": [name for name in target_features() if name.startswith("+") or name == WIDE_VECTORS],
    }


def differences(got: Fingerprint, expected: Fingerprint) -> tuple[str, ...]:
    """What two fingerprints do not agree on, an entry each, in words; none where they are equal."""
    return tuple(
        _difference(name, got.get(name), expected.get(name))
        for name in sorted({*got, *expected})
        if got.get(name) != expected.get(name)
    )


def _difference(name: str, got: object, expected: object) -> str:
    if isinstance(got, Sequence) and isinstance(expected, Sequence) and not isinstance(got, str):
        changes = {"gained": sorted({*got} - {*expected}), "lost": sorted({*expected} - {*got})}
        return f"{name} " + ", ".join(f"{verb} {' '.join(map(str, words))}" for verb, words in changes.items() if words)
    return f"{name} is {got}, was {expected}"


def blas() -> str:
    """The BLAS that NumPy uses: version, the core whose kernels it has chosen, and its threads.

    OpenBLAS chooses by the processor when it is loaded; its names differ by who built it (in NumPy: scipy_...64_).
    """
    built_with: Any = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    words = [built_with.get("name", ""), built_with.get("version", "")]
    for path in _loaded("openblas"):
        library = ctypes.CDLL(str(path))
        for prefix, suffix in product(("scipy_", ""), ("64_", "")):
            try:
                core = getattr(library, f"{prefix}openblas_get_corename{suffix}")
                threads = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
            except AttributeError:
                continue
            core.restype = ctypes.c_char_p
            return " ".join([*words, core().decode(), f"threads={threads()}"])
    return " ".join(words)


def _loaded(name: str) -> list[Path]:
    """The shared libraries of this process that have `name` in theirs; NumPy's own first, for SciPy brings one, too."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if name in os.path.basename(line)}
    return [Path(path) for path in sorted(paths, key=lambda path: ("numpy" not in path, path)) if ".so" in path]
