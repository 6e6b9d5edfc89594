"""What a worker process must be before its first array: one BLAS thread, and an allocator that keeps its pages."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

# Threads would add up in an order of their own, and there is one core a worker.
ENVIRONMENT: Mapping[str, str] = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
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
