"""How kernels are compiled: on first use, once a machine; later processes load them from numba's cache.

The cache lies beside the source, or in NUMBA_CACHE_DIR. numba throws a cached function away when the function's own
file has changed, but not when another file has that it calls into. So the names under which kernels are cached hold a
checksum of this whole package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
from numba import njit
from numba.core import config
from numba.core.event import Event, Listener
from numba.core.registry import cpu_target

Kernel = Callable[..., Any]

_sources = sorted(Path(__file__).parent.glob("*.py"))
_CHECKSUM = hashlib.sha256(b"".join(source.read_bytes() for source in _sources)).hexdigest()[:8]

# NaN and Inf mean what they mean everywhere: `nnan`, `ninf`, `arcp` and `afn` are never on.
_SUMS = {"reassoc", "contract", "nsz"}


# For Intel's processors LLVM prefers vectors of 256 bits, for fear of a lower clock. Theirs of today do not slow down,
# and an activation takes half the time in vectors of 512.
WIDE_VECTORS = "-prefer-256-bit"


def _choose_vectors() -> None:
    given: str | None = config.CPU_FEATURES  # type: ignore[attr-defined]  # set as numba is imported
    features = given if given is not None else llvmlite.binding.get_host_cpu_features().flatten()
    if "+avx512f" in features.split(",") and "prefer-256-bit" not in features:
        config.CPU_FEATURES = f"{features},{WIDE_VECTORS}"  # type: ignore[attr-defined]
    cpu_target.target_context.codegen()  # it takes them when it is made, and keeps them


_choose_vectors()


def target_features() -> tuple[str, ...]:
    """What numba compiles for, in LLVM's words and sorted: "+avx2", "+avx512f", "-xop"."""
    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return tuple(sorted(features.split(",")))


def cpu_features() -> frozenset[str]:
    """What the CPU that numba compiles for can do, in LLVM's words: "avx2", "avx512f"."""
    return frozenset(name.removeprefix("+") for name in target_features() if name.startswith("+"))


COMPILE = "numba:compile"  # the event around each compilation; loading a kernel from the cache is none


class NotCompiledError(Exception):
    """A kernel is not in the cache, and may not be compiled now."""


class Compilations(Listener):
    """Counts the kernels that are compiled while it listens; not `allowed`, it raises NotCompiledError at the first."""

    def __init__(self, *, allowed: bool) -> None:
        self.num_kernels = 0
        self._is_allowed, self._depth = allowed, 0

    def on_start(self, event: Event) -> None:
        if not self._is_allowed:
            raise NotCompiledError
        self.num_kernels += self._depth == 0  # those that it calls are compiled within
        self._depth += 1

    def on_end(self, event: Event) -> None:
        self._depth -= 1


def compiled(function: Kernel) -> Kernel:
    """Compile plain IEEE arithmetic: an element has the same bits wherever it stands and whatever stands beside it."""
    # False is said aloud: numba lets a function without `fastmath` inherit that of whoever has it compiled first.
    return _compile(function, fastmath=False)


def compiled_sum(function: Kernel) -> Kernel:
    """Compile sums so that they can be vectorised: they are reordered, in a way that is fixed by the compiler."""
    return _compile(function, fastmath=_SUMS)


def _compile(function: Kernel, **options: Any) -> Kernel:
    function.__qualname__ += f"_{_CHECKSUM}"
    kernel: Kernel = njit(error_model="numpy", nogil=True, cache=True, **options)(function)
    return kernel
