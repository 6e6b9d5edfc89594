"""An asyncio event loop whose time passes only when nobody has anything to do: a minute of a job takes milliseconds."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError


class StandstillError(Exception):
    """Everybody waits, and nothing will ever happen again."""


class GoneError(OSError):
    """What a dead process's threads were at."""


class Clock(asyncio.BaseEventLoop):
    """Deterministic: what is due at one time runs in the order in which it was asked for. `now` is in seconds."""

    def __init__(self, executor: Callable[[Callable[[], Any]], asyncio.Future[Any]]) -> None:
        super().__init__()
        self.now = 0.0
        self.error: BaseException | None = None
        self.is_ending = False  # what is broken off may break
        self._selector = self
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._executor = executor

    def time(self) -> float:
        """The simulated time."""
        return self.now

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """As call_later, at a fraction of its cost; an error of `act` ends the simulation."""
        self._num_events += 1
        heapq.heappush(self._events, (self.now + seconds, self._num_events, act))

    def select(self, timeout: float | None) -> tuple[()]:
        """Time jumps from event to event until a coroutine can go on. Raises StandstillError where nothing is left."""
        until = math.inf if timeout is None else self.now + timeout
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
            if self._ready or self._stopping:  # type: ignore[attr-defined]  # typeshed hides them
                return ()
        if timeout is None:
            raise StandstillError(f"at {self.now:.3f} s everybody waits, and nothing will ever happen")
        self.now = until
        return ()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]  # a simpler type
        """What other threads do takes its time here, too."""
        return self._executor(lambda: func(*args))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """The first error ends the simulation; but a death that nobody asks about any more is none."""
        error = context.get("exception")
        if self.is_ending or error is None or isinstance(error, RayActorError | GoneError):
            return
        self.error = self.error or error
        self.stop()

    def _process_events(self, events: Any) -> None:
        """There are none from outside."""

    def _write_to_self(self) -> None:
        """Nobody waits outside."""
