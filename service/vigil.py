"""Watching over workers at work: who hangs and who is slow, from what the control page says. Pure: time is passed in.

A worker hangs when it has given no sign of life for longer than its deadline although nobody keeps it waiting. It is
kept waiting while it has come to a barrier to which another has not come; so among workers that have all come equally
far, whoever is silent hangs.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from worker.reduce.segment import Pulse

HANG_SECONDS = 10.0  # a stage of a step takes milliseconds; a machine that is busy elsewhere gives way within seconds
HANG_STEPS = 10.0  # and for large models so many median steps
FIRST_STEP_SECONDS = 120.0  # for a worker's first step, and for evaluations, of which any may be its first
LOOK_SECONDS = 0.5  # from one look to the next
SLEPT_SECONDS = 5.0  # a look so late means that the watcher itself was stopped, and perhaps everybody with it
SLOW_TIMES = 3.0  # slower than the median of the others
RECOVERED_TIMES = 1.5
SLOW_STEPS = 20  # over so many steps
SLOW_SECONDS = 2.0  # and at least so long: in shorter times a worker may just have been off its processor


class Vigil:
    """The watch over one plan. `since` is when it began."""

    def __init__(self, *, since: float) -> None:
        self._floor = self._looked = since
        self._kept_waiting: dict[int, float] = {}  # when each was last seen waiting for another

    def restart(self, now: float) -> None:
        """Everybody's time begins anew: the plan was abandoned, and those who waited are on their way back."""
        self._floor = now

    def hung(
        self,
        now: float,
        pulses: Mapping[int, Pulse],
        *,
        fresh: Collection[int],
        median_step_seconds: float,
        chunk_steps: float = 1.0,
    ) -> dict[int, str]:
        """Of the workers that have not come back, those that hang, by seat, with the reason.

        `fresh` are those that have no committed step behind them yet; a chunk of an evaluation, between whose ends
        there is no sign of life, is as much work as `chunk_steps` steps.
        """
        if now - self._looked > SLEPT_SECONDS:
            self._floor = now
        self._looked = now
        furthest = max((pulse.arrivals for pulse in pulses.values()), default=0)
        somebody_lags = any(pulse.arrivals < furthest for pulse in pulses.values())
        found = {}
        for seat, pulse in pulses.items():
            if somebody_lags and pulse.arrivals == furthest:
                self._kept_waiting[seat] = now
                continue
            deadline = max(HANG_SECONDS, HANG_STEPS * median_step_seconds)
            if pulse.stage == "evaluate":
                deadline = max(deadline, HANG_STEPS * median_step_seconds * chunk_steps)
            if seat in fresh or pulse.stage == "evaluate":  # compiles, and touches memory for the first time
                deadline = max(deadline, FIRST_STEP_SECONDS)
            silence = now - max(pulse.beat, self._floor, self._kept_waiting.get(seat, self._floor))
            if silence > deadline:
                found[seat] = f"hung: no sign of life for {silence:.0f} s (stage {pulse.stage})"
        return found


@dataclass(frozen=True)
class Window:
    """What the workers of a plan had done at a moment: committed steps, and seconds at work by seat."""

    at: float
    step: int
    busy: Mapping[int, float]


@dataclass
class Paces:
    """Who is slow, and how slow: by seat, the speed as a part of the others' speed."""

    speeds: dict[int, float] = field(default_factory=dict)
    _window: Window | None = None

    def forget(self, seat: int) -> None:
        """Another worker has the seat now."""
        self.speeds.pop(seat, None)

    def restart(self, window: Window) -> None:
        """A new plan begins; those who have gone are forgotten."""
        self._window = window
        self.speeds = {seat: speed for seat, speed in self.speeds.items() if seat in window.busy}

    def look(self, window: Window, shares: Mapping[int, int]) -> bool:
        """Takes in what was done by now; returns whether `speeds` has changed."""
        before = self._window
        assert before is not None, "restart comes first"
        steps = window.step - before.step
        if steps < SLOW_STEPS or window.at - before.at < SLOW_SECONDS or len(shares) < 2:
            return False
        self._window = window
        pace = {seat: (window.busy[seat] - before.busy[seat]) / (steps * share) for seat, share in shares.items()}
        speeds = {}
        for seat, seconds in pace.items():
            others = statistics.median(other for at, other in pace.items() if at != seat)
            times = RECOVERED_TIMES if seat in self.speeds else SLOW_TIMES
            if others > 0 and seconds > times * others:
                speeds[seat] = self.speeds.get(seat, others / seconds)
        has_changed = speeds.keys() != self.speeds.keys()
        self.speeds = speeds
        return has_changed
