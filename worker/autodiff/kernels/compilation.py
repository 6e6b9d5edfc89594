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

from numba import njit

Kernel = Callable[..., Any]

_sources = sorted(Path(__file__).parent.glob("*.py"))
_CHECKSUM = hashlib.sha256(b"".join(source.read_bytes() for source in _sources)).hexdigest()[:8]

# NaN and Inf mean what they mean everywhere: `nnan`, `ninf`, `arcp` and `afn` are never on.
_SUMS = {"reassoc", "contract", "nsz"}


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
