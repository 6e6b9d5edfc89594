"""What a worker process must be before its first array: one BLAS thread, an allocator that keeps its pages, and a
garbage collector that stays out of the way.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Mapping
from pathlib import Path

# Threads would add up in an order of their own, and there is one core a worker.
ENVIRONMENT: Mapping[str, str] = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)

# More objects than these make Python look for cycles. A step's graph has none, and some 200 objects a layer: with 700,
# as is usual, they are looked through again and again: a tenth of what a step spends outside kernels.
MOST_OBJECTS = 20_000

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def settle_memory() -> None:
    """Makes memory management ready for many steps that are alike: `malloc`, and the collector of cycles."""
    _keep_freed_memory()
    gc.freeze()  # what is there now stays
    gc.set_threshold(MOST_OBJECTS)


def _keep_freed_memory() -> None:
    """Tells glibc's malloc to reuse what a step frees instead of giving it back to the kernel page by page.

    A step allocates and frees the same arrays every time; page faults cost it a fifth of its speed otherwise. Where
    the C library has no `mallopt`, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_M_TOP_PAD, 64 << 20)


def start_time_of(process_id: int) -> int | None:
    """When a process started, in clock ticks since boot: with its number, its name for life; None: there is none."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # the command, in parentheses, may hold spaces
