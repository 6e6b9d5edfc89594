"""The environment of a local Ray cluster. It must stand before `ray` and `grpc` are imported: they read it then.

So whoever starts a local cluster calls `prepare_local` first and imports `service.local_cluster` after.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from worker.process import ENVIRONMENT

RAY_ENVIRONMENT: Mapping[str, str] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Named for the systems on which Ray does so by itself: every process listens on 127.0.0.1 and nowhere else.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",  # the default of 15 leaves the processor to whoever else wants it
    "RAY_task_events_report_interval_ms": "0",  # the head would keep every call it ever saw
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # A lost worker is an event of its job; Ray would write a paragraph about it on the service's terminal.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",
    # Ray forks while our gRPC server has threads: its fork handlers can hold the child up, and it only starts programs.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "GRPC_VERBOSITY": "ERROR",
}


def prepare_local(*, kernels: Path | None = None) -> None:
    """Sets this process's environment, and with it that of all it starts; a second call changes nothing.

    `kernels` is where compiled kernels are kept, unless NUMBA_CACHE_DIR says so already; by default numba chooses.
    """
    if kernels is not None:
        os.environ.setdefault("NUMBA_CACHE_DIR", str(kernels))
    if os.environ.items() >= RAY_ENVIRONMENT.items():
        return
    assert "ray" not in sys.modules, "ray was imported before its environment was prepared"
    os.environ.update({**RAY_ENVIRONMENT, **ENVIRONMENT}, RAY_AUTH_TOKEN=secrets.token_hex(32))
