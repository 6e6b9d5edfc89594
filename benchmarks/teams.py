"""Teams of processes that do the same work in different ways, timed in turn.

A machine's speed drifts from minute to minute, so the sides of a comparison take turns in one run, and the ratio of
their medians is what counts.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import socket
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.process import ENVIRONMENT

Run = Callable[[int], list[float]]  # number of steps -> seconds of each, as this rank saw them
MakeRun = Callable[..., Run]  # (rank, world, *arguments) -> Run; called in the process itself
WARM_UP_STEPS, MOST_STEPS = 4, 1000


class Team:
    """`world` processes, each made ready by `make_run(rank, world, *arguments)`; a context manager."""

    def __init__(self, make_run: MakeRun, world: int, *arguments: object) -> None:
        self._make_run, self._world, self._arguments = make_run, world, arguments

    def __enter__(self) -> Self:
        os.environ.update(ENVIRONMENT)  # read by the children when they import their libraries
        spawn = multiprocessing.get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(self._world)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [
            spawn.Process(target=_serve, args=(theirs, self._make_run, rank, self._world, self._arguments), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()
        self._answers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(10)
            process.kill()

    def run(self, num_steps: int) -> list[float]:
        """Seconds of each step, as rank 0 saw them."""
        for connection in self._connections:
            connection.send(num_steps)
        return self._answers()[0]

    def _answers(self) -> list[list[float]]:
        return [connection.recv() for connection in self._connections]


def _serve(connection: Connection, make_run: MakeRun, rank: int, world: int, arguments: Sequence[object]) -> None:
    run = make_run(rank, world, *arguments)
    connection.send([])
    while True:
        try:
            num_steps = connection.recv()
        except EOFError:
            return
        connection.send(run(num_steps))


@contextmanager
def segment_path() -> Iterator[Path]:
    """A fresh name for a segment in shared memory, which is gone afterwards whatever happened."""
    path = Path(f"/dev/shm/backprop-benchmark-{secrets.token_hex(4)}")
    with exit_on_sigterm():
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM ends this process by an exception, so that what it has made is taken away."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def at_work(teams: Mapping[str, Team]) -> Iterator[None]:
    """All of them, made ready one after another; their processes end with the block."""
    with ExitStack() as stack:
        for team in teams.values():
            stack.enter_context(team)
        yield


def interleave(teams: Mapping[str, Team], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of every step of every team that is at work; in each round each takes its turn of about `seconds`.

    The order alternates. A turn has at least 3 steps and at most MOST_STEPS; a few before the first are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in teams}
    fastest = {name: min(team.run(WARM_UP_STEPS)) for name, team in teams.items()}  # compiles, maps, warms
    steps = {name: min(max(3, int(seconds / step)), MOST_STEPS) for name, step in fastest.items()}
    for number in range(rounds):
        for name in list(teams) if number % 2 == 0 else list(teams)[::-1]:
            times[name] += teams[name].run(steps[name])
    return times


def table(seconds: Mapping[str, Sequence[float]], *, reference: str) -> str:
    """Medians in milliseconds, and each team's speed and time against the reference's."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    lines = [f"  {'':38} {'median ms':>10} {'min ms':>9} {'steps':>6} {'speed':>7} {'time':>7}"]
    for name, median in medians.items():
        ratio = median / medians[reference]
        lines.append(
            f"  {name:38} {median * 1e3:10.3f} {min(seconds[name]) * 1e3:9.3f} {len(seconds[name]):6d}"
            f" {1 / ratio:6.2f}x {ratio:6.2f}x"
        )
    return "\n".join(lines)


def verdict(is_reached: bool) -> str:
    """Of a measured value against its target."""
    return "reached" if is_reached else "not reached"
