"""Several nodes: each has a segment of its own, and the weights are those of one node, whoever dies.

The workers are threads with real segments and real sockets; one that dies stops where it is and its sockets close, as a
killed process's do.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from worker.autodiff.kernels import BLOCK
from worker.checkpoint import weights_digest
from worker.phases import PhaseClock
from worker.plan import Plan, even_plan, shares_by_speed
from worker.reduce import exchange
from worker.reduce.mesh import TOKEN_BYTES
from worker.reduce.segment import DIRECTORY, NOTHING, Segment
from worker.replica import Leg, LegEnd, Replica
from worker.spec import JobSpec, parse_spec

STEPS = 12
TOKEN = bytes(range(TOKEN_BYTES))
STAGES = ("data", "forward", "backward", "reduce", "wait", "norm", "update", "commit")
Hook = Callable[[int, str], None]


def job(*, shards: int = 8, **parts: object) -> JobSpec:
    return parse_spec(
        {
            "model": {"mlp": {"hidden": [16, 300]}},
            "data": {"synthetic": {"samples": 300, "features": 70, "outputs": 5}},
            "training": {"global_batch_size": 24, "shards": shards, "max_steps": STEPS, "clip_norm": 1.0, "seed": 3},
            "workers": {"min": 1},
        }
        | parts
    )


class DeathError(Exception):
    """The worker does nothing more."""


class Fleet:
    """The workers of a job on nodes of so many workers each, and what a coordinator does with them."""

    def __init__(self, spec: JobSpec, nodes: tuple[int, ...], *, empty: tuple[int, ...] = ()) -> None:
        self.spec, self.num_shards = spec, spec.training.shards
        self.home = [node for node, count in enumerate(nodes) for _ in range(count)]
        self.replicas = [Replica.load(spec, capacity=len(self.home)) for _ in self.home]
        self.addresses = [replica.listen("127.0.0.1", TOKEN) for replica in self.replicas]
        self.segments: list[Segment] = []
        self.epoch = 0
        for node in range(len(nodes)):
            path = DIRECTORY / f"backprop-test-{os.getpid()}-{node}"
            first = self.replicas[self.home.index(node)]
            try:
                if node in empty:
                    first.create_empty_segment(path)
                else:
                    first.create_segment(path, "/nonexistent")
                for seat, home in enumerate(self.home):
                    if home == node:
                        self.replicas[seat].join(path, seat)
                self.segments.append(Segment.attach(path, first.facts.shape))
            finally:
                path.unlink(missing_ok=True)

    def open_plan(self, members: tuple[int, ...], shares: tuple[int, ...] | None = None) -> Plan:
        self.epoch += 10
        for segment in self.segments:
            segment.control.open_plan(self.epoch)
        return Plan(
            self.epoch,
            members,
            shares or shares_by_speed([1.0] * len(members), self.num_shards),
            tuple(self.home[seat] for seat in members),
            tuple(self.addresses[seat] for seat in members),
        )

    def run(self, until_step: int, members: tuple[int, ...] | None = None, **more: tuple[int, ...]) -> list[Leg]:
        """One leg; when a member dies, its node hears it, and after a while all others, as from a coordinator."""
        plan = self.open_plan(tuple(range(len(self.replicas))) if members is None else members, **more)

        def watch(seat: int) -> Callable[[Future[Leg]], None]:
            def look(leg: Future[Leg]) -> None:
                if leg.exception() is None:
                    return
                self.segments[self.home[seat]].control.abandon_plan(plan.epoch)
                finished.wait(0.2)
                for segment in self.segments:
                    segment.control.abandon_plan(plan.epoch)

            return look

        finished = threading.Event()

        with ThreadPoolExecutor(len(plan.members)) as pool:
            legs = {seat: pool.submit(self.replicas[seat].run, until_step, plan) for seat in plan.members}
            for seat, leg in legs.items():
                leg.add_done_callback(watch(seat))
        self.dead = {seat for seat, leg in legs.items() if isinstance(leg.exception(), DeathError)}
        return [leg.result() for seat, leg in legs.items() if seat not in self.dead]

    @property
    def committed(self) -> list[int]:
        return [segment.control.committed for segment in self.segments]

    def digests(self) -> list[str]:
        return [weights_digest(segment.weights(segment.control.committed)) for segment in self.segments]

    def close(self) -> None:
        for replica in self.replicas:
            replica.leave()


@pytest.fixture
def fleets() -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(*arguments: object, **more: object) -> Fleet:
        made.append(Fleet(*arguments, **more))  # type: ignore[arg-type]  # as Fleet takes them
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


def digest_alone(spec: JobSpec, steps: int = STEPS) -> str:
    path = DIRECTORY / f"backprop-alone-{os.getpid()}"
    replica = Replica.load(spec, capacity=1)
    replica.create_segment(path, "/nonexistent")
    replica.join(path, 0)
    segment = Segment.attach(path, replica.facts.shape)
    path.unlink()
    replica.run(steps, even_plan([0], num_shards=spec.training.shards, epoch=segment.control.open_plan()))
    return weights_digest(segment.weights(steps))


JOBS = {
    "two shards": job(shards=2),
    "three shards": job(shards=3),
    "six shards": job(shards=6),
    "eight shards": job(),
    "one block": job(model={"mlp": {}}),
    "several pieces": job(model={"mlp": {"hidden": [500, 500]}}),
    "momentum": job(optimizer={"momentum": {}}),
    "sgd": job(optimizer={"sgd": {}}),
    "adamw, ema": job(optimizer={"adamw": {}, "ema": {"decay": 0.9}}),
}
NODES = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 1, 1), (3, 1, 2), (1, 2, 1, 3)]


@pytest.fixture(scope="module")
def alone() -> Callable[[str], str]:
    known: dict[str, str] = {}

    def digest(name: str) -> str:
        if name not in known:
            known[name] = digest_alone(JOBS[name])
        return known[name]

    return digest


@pytest.mark.parametrize(
    ("name", "nodes"),
    [(name, nodes) for name, spec in JOBS.items() for nodes in NODES if sum(nodes) <= spec.training.shards],
    ids=str,
)
def test_any_nodes_give_the_digest_of_one(
    name: str,
    nodes: tuple[int, ...],
    alone: Callable[[str], str],
    fleets: Callable[..., Fleet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "several pieces":
        monkeypatch.setattr(exchange, "PIECE", 4 * BLOCK)
    fleet = fleets(JOBS[name], nodes)
    for until_step in (1, 5, STEPS):
        assert {(leg.end, leg.step) for leg in fleet.run(until_step)} == {(LegEnd.REACHED, until_step)}
    assert set(fleet.digests()) == {alone(name)}
    first, *others = (segment.control.ring[:, [0, 1, 2, 3, 5, 6]].tobytes() for segment in fleet.segments)
    assert set(others) == {first}, "the nodes recorded different losses or norms"


@pytest.mark.parametrize("shares", [(1, 6, 1), (5, 2, 1), (1, 1, 6), (3, 3, 2)])
def test_any_shares_give_the_digest_of_one(
    shares: tuple[int, ...], alone: Callable[[str], str], fleets: Callable[..., Fleet]
) -> None:
    fleet = fleets(JOBS["eight shards"], (1, 2))
    fleet.run(STEPS, shares=shares)
    assert set(fleet.digests()) == {alone("eight shards")}


@pytest.mark.parametrize("node", [0, 1])
def test_all_nodes_stop_after_the_same_step_whichever_is_asked(node: int, fleets: Callable[..., Fleet]) -> None:
    fleet = fleets(job(training={"global_batch_size": 24, "shards": 8, "max_steps": 10**6}), (2, 2))
    control = fleet.segments[node].control

    def ask() -> None:
        while control.committed < 5:
            time.sleep(0.001)
        control.stop_requested = True

    asking = threading.Thread(target=ask)
    asking.start()
    legs = fleet.run(10**6)
    asking.join()
    assert {leg.end for leg in legs} == {LegEnd.STOPPED}
    assert len({leg.step for leg in legs} | set(fleet.committed)) == 1
    assert legs[0].step >= 6


def test_a_new_node_begins_with_a_copy_of_the_state(alone: Callable[[str], str], fleets: Callable[..., Fleet]) -> None:
    fleet = fleets(JOBS["adamw, ema"], (2, 1, 2), empty=(1, 2))
    assert fleet.committed == [0, NOTHING, NOTHING]
    fleet.run(5, members=(0, 1))
    assert fleet.committed == [5, NOTHING, NOTHING]
    fleet.run(6)
    assert fleet.committed == [6, 6, 6]
    fleet.run(STEPS, members=(3, 4, 2))
    assert fleet.digests()[1:] == [alone("adamw, ema")] * 2


def test_a_node_that_is_behind_catches_up_by_a_copy(alone: Callable[[str], str], fleets: Callable[..., Fleet]) -> None:
    fleet = fleets(JOBS["eight shards"], (1, 2))
    fleet.run(3)
    fleet.run(4, members=(1, 2))
    assert fleet.committed == [3, 4]
    fleet.run(4)
    assert fleet.committed == [4, 4]
    fleet.run(7, members=(0,))
    fleet.run(STEPS, members=(1, 2, 0))
    assert fleet.digests() == [alone("eight shards")] * 2


def test_loss_scale_travels_with_the_state(fleets: Callable[..., Fleet]) -> None:
    spec = job(training={"global_batch_size": 24, "shards": 8, "max_steps": STEPS, "precision": "fp16"})
    fleet = fleets(spec, (1, 1), empty=(1,))
    fleet.run(3, members=(0,))
    fleet.run(STEPS)
    assert set(fleet.digests()) == {digest_alone(spec)}
    first, second = (segment.control.loss_scale(STEPS) for segment in fleet.segments)
    assert first == second


def test_all_nodes_fail_at_the_same_step_when_the_gradient_is_not_finite(fleets: Callable[..., Fleet]) -> None:
    spec = job(optimizer={"sgd": {"learning_rate": 1e30}}, training={"global_batch_size": 24, "clip_norm": None})
    legs = fleets(spec, (2, 1)).run(STEPS)
    assert {leg.end for leg in legs} == {LegEnd.NON_FINITE}
    assert len({leg.message for leg in legs}) == 1


class Hooks:
    """`hook(seat, stage)` is called wherever a worker goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hook: Hook = lambda seat, stage: None
        enter = PhaseClock.enter

        def enter_with_hook(clock: PhaseClock, stage: str) -> None:
            enter(clock, stage)
            self.hook(clock.seat, stage)

        monkeypatch.setattr(PhaseClock, "enter", enter_with_hook)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    return Hooks(monkeypatch)


@pytest.mark.parametrize("seat", [0, 1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_one_death_at_any_stage_changes_nothing(
    hooks: Hooks, stage: str, seat: int, alone: Callable[[str], str], fleets: Callable[..., Fleet]
) -> None:
    fleet, seen = fleets(JOBS["six shards"], (2, 1)), 0

    def hook(whose: int, where: str) -> None:
        nonlocal seen
        if (whose, where) == (seat, stage):
            seen += 1
            if seen == 5:
                raise DeathError

    hooks.hook = hook
    legs = fleet.run(STEPS)
    assert fleet.dead == {seat}
    assert {leg.end for leg in legs} <= {LegEnd.PLAN_CHANGED, LegEnd.REACHED}
    assert max(fleet.committed) - min(fleet.committed) <= 1
    survivors = tuple(other for other in range(3) if other != seat)
    fleet.run(STEPS, members=survivors)
    digests = fleet.digests()
    assert [digests[fleet.home[survivor]] for survivor in survivors] == [alone("six shards")] * 2


@pytest.mark.parametrize("seed", range(12))
def test_deaths_and_delays_at_random_change_nothing(
    hooks: Hooks, seed: int, alone: Callable[[str], str], fleets: Callable[..., Fleet]
) -> None:
    """Dead workers come back a leg later; a node whose workers are all dead at once loses what it had."""
    fleet = fleets(JOBS["eight shards"], (2, 1, 2))
    chances = [random.Random(seed * 5 + seat) for seat in range(5)]

    def hook(seat: int, stage: str) -> None:
        rng = chances[seat]
        if rng.random() < 0.1:
            time.sleep(rng.random() * 0.002)
        if rng.random() < 0.01 and stage in STAGES:
            raise DeathError

    hooks.hook = hook
    members, lost, num_deaths = tuple(range(5)), set[int](), 0
    for _ in range(200):
        if max(fleet.committed) == STEPS:
            break
        before = fleet.committed
        fleet.run(STEPS, members=members)
        furthest = max(fleet.committed)
        assert furthest >= max(before)
        for seat in members:  # at the end of a step, or at its beginning, or still waiting for its copy
            home = fleet.home[seat]
            assert fleet.committed[home] in {furthest, furthest - 1, before[home], NOTHING}
        num_deaths += len(fleet.dead)
        survivors = tuple(seat for seat in members if seat not in fleet.dead)
        if not any(fleet.committed[fleet.home[seat]] == furthest for seat in survivors):
            survivors = members  # all that knew the state have died: here it is found again, as in a checkpoint
        members, lost = tuple(sorted({*survivors, *lost})), {*members} - {*survivors}
    assert num_deaths > 0
    assert max(fleet.committed) == STEPS
    assert fleet.digests()[fleet.committed.index(STEPS)] == alone("eight shards")
