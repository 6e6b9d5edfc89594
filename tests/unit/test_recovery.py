"""Death at any instruction, without processes: the workers are threads, and one that dies stops where it is.

What a thread has written stays, as a killed process's stores to shared memory do. tests/integration has real kills.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from service.membership import Team, decide
from tests.undisturbed import digest_of
from worker.checkpoint import weights_digest
from worker.phases import PhaseClock
from worker.plan import Plan, shares_by_speed
from worker.reduce.segment import DIRECTORY, Segment
from worker.replica import LegEnd, Replica
from worker.spec import JobSpec, parse_spec

STAGES = ("data", "forward", "backward", "reduce", "wait", "norm", "update", "commit")
SHARDS, STEPS, SEATS = 6, 30, 3


def spec_of(**training: object) -> JobSpec:
    batches = {"global_batch_size": 12, "shards": SHARDS, "max_steps": STEPS, "clip_norm": 1.0}
    return parse_spec(
        {
            "model": {"mlp": {"hidden": [16, 300]}},
            "data": {"synthetic": {"samples": 200, "features": 20, "outputs": 3}},
            "training": batches | training,
            "workers": {"min": 1, "max": SEATS},
        }
    )


SPEC, HALF = spec_of(), spec_of(precision="fp16")
Hook = Callable[[int, str], None]


class DeathError(Exception):
    """The worker does nothing more."""


class Crew:
    """Three workers and what a coordinator does with them; `hook(seat, stage)` is called wherever a worker goes."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, spec: JobSpec = SPEC) -> None:
        self.spec = spec
        self.hook: Hook = lambda seat, stage: None
        enter = PhaseClock.enter

        def enter_with_hook(clock: PhaseClock, stage: str) -> None:
            enter(clock, stage)
            self.hook(clock.seat, stage)

        monkeypatch.setattr(PhaseClock, "enter", enter_with_hook)
        self.replicas = [Replica.load(spec, capacity=SEATS) for _ in range(SEATS)]
        self.replicas[0].create_segment(path, "/nonexistent")
        for seat, replica in enumerate(self.replicas):
            replica.join(path, seat)
        self.path = path
        self.segment = Segment.attach(path, self.replicas[0].facts.shape)
        self.control = self.segment.control
        self.on_abandon: Callable[[], None] = lambda: None

    def leg(self, members: tuple[int, ...], until_step: int) -> tuple[int, ...]:
        """Runs one plan until its members have come back or died; returns the survivors."""
        shares = shares_by_speed([1.0] * len(members), SHARDS)
        plan = Plan(self.control.open_plan(), members, shares)
        with ThreadPoolExecutor(len(members)) as pool:
            legs = {seat: pool.submit(self.replicas[seat].run, until_step, plan) for seat in members}
            wait(legs.values(), return_when=FIRST_EXCEPTION)
            if any(leg.done() and leg.exception() for leg in legs.values()):
                self.control.abandon_plan()
                self.on_abandon()
        dead = {seat for seat, leg in legs.items() if isinstance(leg.exception(), DeathError)}
        ends = {seat: leg.result().end for seat, leg in legs.items() if seat not in dead}
        assert set(ends.values()) <= {LegEnd.REACHED, LegEnd.PLAN_CHANGED} if dead else {LegEnd.REACHED}
        return tuple(seat for seat in members if seat not in dead)

    def replace(self, seats: tuple[int, ...]) -> None:
        for seat in seats:
            self.replicas[seat] = Replica.load(self.spec, capacity=SEATS)
            self.replicas[seat].join(self.path, seat)

    def train(self, *, deaths: Hook, replace_after: int = 1) -> int:
        """The whole job as a coordinator does it: survivors go on, replacements join some legs later."""
        self.hook = deaths
        members, num_deaths, ready = tuple(range(SEATS)), 0, list[tuple[int, tuple[int, ...]]]()
        legs = 0
        while self.control.committed < STEPS:
            joining = tuple(seat for due, seats in ready if due <= legs for seat in seats)
            ready = [(due, seats) for due, seats in ready if due > legs]
            self.replace(joining)
            decided = decide(Team(SEATS, SEATS, members=members, ready=joining, may_start=False))
            if not decided.members:
                legs += 1
                continue
            before = self.control.committed
            survivors = self.leg(decided.members, min(before + 4, STEPS))
            lost = tuple(seat for seat in decided.members if seat not in survivors)
            assert before <= self.control.committed <= before + 4
            num_deaths += len(lost)
            members, legs = survivors, legs + 1
            if lost:
                ready.append((legs + replace_after, lost))
        return num_deaths

    @property
    def digest(self) -> str:
        return weights_digest(self.segment.weights(STEPS))


@pytest.fixture
def path() -> Iterator[Path]:
    path = DIRECTORY / f"backprop-test-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def crew(path: Path, monkeypatch: pytest.MonkeyPatch) -> Crew:
    return Crew(path, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return digest_of(SPEC, STEPS)


def dying(seat: int, stage: str, *, at: int) -> Hook:
    """The worker in a seat dies when it comes to a stage for the `at`-th time."""
    seen = 0

    def hook(whose: int, where: str) -> None:
        nonlocal seen
        if (whose, where) == (seat, stage):
            seen += 1
            if seen == at:
                raise DeathError

    return hook


@pytest.mark.parametrize("seat", range(SEATS))
@pytest.mark.parametrize("stage", STAGES)
def test_one_death_at_any_stage_changes_nothing(crew: Crew, undisturbed: str, stage: str, seat: int) -> None:
    assert crew.train(deaths=dying(seat, stage, at=8)) == 1
    assert crew.digest == undisturbed


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_members_death_leaves_the_loss_scale_right(
    path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: str, stage: str
) -> None:
    """It writes the scale of the next step, beside that of this one."""
    crew, expected = Crew(path, monkeypatch, HALF), digest_of(HALF, STEPS)
    assert crew.train(deaths=dying(0, stage, at=8)) == 1
    assert crew.digest == expected != undisturbed


@pytest.mark.parametrize("seed", range(25))
def test_deaths_and_delays_at_random_change_nothing(crew: Crew, undisturbed: str, seed: int) -> None:
    """Delays between any two instructions bring about the interleavings that a quiet machine does not."""
    chances = [random.Random(seed * SEATS + seat) for seat in range(SEATS)]

    def hook(seat: int, stage: str) -> None:
        rng = chances[seat]
        if rng.random() < 0.1:
            time.sleep(rng.random() * 0.002)
        if rng.random() < 0.02 and stage in STAGES:
            raise DeathError

    deaths = crew.train(deaths=hook, replace_after=seed % 3)
    assert deaths > 0
    assert crew.digest == undisturbed


def test_a_step_that_one_survivor_committed_and_another_gave_up_is_committed(crew: Crew, undisturbed: str) -> None:
    """Seat 1 dies in the last barrier; seat 0 gives up waiting for seat 2, which comes there only then, and commits."""
    gave_up, waits = threading.Event(), [0, 0, 0]

    def hook(seat: int, stage: str) -> None:
        waits[seat] += stage == "wait"
        if seat == 1 and stage == "commit":
            raise DeathError
        if seat == 2 and stage == "wait" and waits[2] == 3:
            assert gave_up.wait(60)
        if seat == 0 and stage == "idle":
            gave_up.set()

    def two_of_three_have_come_to_the_last_barrier() -> bool:
        arrivals = [crew.control.pulse(seat).arrivals for seat in range(SEATS)]
        return waits == [3, 3, 3] and arrivals[0] == arrivals[1] == arrivals[2] + 1

    crew.hook = hook
    plan = Plan(crew.control.open_plan(), (0, 1, 2), (2, 2, 2))
    with ThreadPoolExecutor(3) as pool:
        legs = [pool.submit(replica.run, STEPS, plan) for replica in crew.replicas]
        while not two_of_three_have_come_to_the_last_barrier():
            time.sleep(0.001)
        assert crew.control.committed == 0
        crew.control.abandon_plan()
    first, last = legs[0].result(), legs[2].result()
    assert {first.end, last.end} == {LegEnd.PLAN_CHANGED}
    assert first.step == 0, "seat 0 saw nothing committed when it gave up"
    assert last.step == crew.control.committed == 1, "seat 2 found that all had come, and committed"
    crew.hook = lambda seat, stage: None
    assert crew.leg((2, 0), STEPS) == (2, 0)
    assert crew.digest == undisturbed
