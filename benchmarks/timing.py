"""Steps that are timed, and what a side of `benchmarks.models` reports beside their times."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.teams import Run

REPORT = -1  # a number of steps that asks for a report instead: see `timed`


def timed(step: Callable[[], float], report: Callable[[], list[float]] | None = None) -> Run:
    """Run steps and time each; asked for REPORT steps, report instead: a loss, the peak memory, and what `report` has.

    `step` gives the loss before it.
    """

    def run(num_steps: int) -> list[float]:
        if num_steps == REPORT:
            return [step(), peak_memory(), *(report() if report else [])]
        seconds = []
        for _ in range(num_steps):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def peak_memory() -> float:
    """MiB that this process has had resident at most; 0 where the system does not say.

    Not getrusage's, which begins with what the process that started this one had.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
