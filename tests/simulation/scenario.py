"""A job and its misfortunes, drawn from a seed, and what must hold whatever happens.

After every event: the committed step moves by one at most, and only up; the weights and the optimizer's state that it
names are the reference's, to the bit; no plan is opened while a worker still works under another. At the end: the job
has succeeded, with the reference's digest, in a finite time; nothing is left. A job may fail only for what it met:
two deaths of the same shard, or too many without a step between.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.jobs import CheckpointSaved, Evaluation, StateReason
from service.runs import Report, RunFailed, RunPaused, RunSucceeded
from tests.simulation import tiny
from tests.simulation.world import HERE, Process, SegmentPath, Violation, World
from worker import checkpoint
from worker.data.sampler import Sampler
from worker.spec import JobSpec, parse_spec

NEWS_SECONDS = 0.3  # from one question for news to the next
LIMIT_SECONDS = 1500.0  # a job that takes longer, with all that befell it, will never end


@dataclass
class Outcome:
    """What became of a simulated job."""

    seed: int
    end: str
    steps: int = 0
    seconds: float = 0.0  # of the simulated clock
    met: Counter[str] = field(default_factory=Counter)
    violation: str = ""


class Scenario:
    """One seed's job. `product` are the modules, see tests.simulation.world."""

    def __init__(self, seed: int, product: Mapping[str, Any]) -> None:
        self.rng = random.Random(f"scenario {seed}")
        self.world = HERE.world = World(f"world {seed}")
        self._product = product
        self.spec = self.world.spec = self._draw_job()
        self.world.replica, self.world.look = product["worker.replica"], self._look
        training = self.spec.training
        self.total = training.max_steps
        self.states = tiny.reference(
            Sampler(tiny.NUM_SAMPLES, training.global_batch_size, seed=training.seed),
            num_shards=training.shards,
            batch_size=training.global_batch_size,
            num_steps=self.total,
        )
        self.outcome = Outcome(seed, "")
        self.reports: list[Report] = []
        self.coordinator: Any = None
        self._views: tuple[Any, ...] = ()
        self._arrivals = 0
        self._committed = -1

    def _draw_job(self) -> JobSpec:
        rng = self.rng
        shards, most = rng.randint(1, 8), rng.randint(1, 4)
        most = min(most, shards)
        return parse_spec(
            {
                "model": {"mlp": {"hidden": [1]}},
                "data": {"synthetic": {"samples": 10}},
                "training": {
                    "global_batch_size": shards * rng.randint(1, 2),
                    "shards": shards,
                    "max_steps": rng.randint(3, 14),
                    "seed": rng.randint(0, 99),
                },
                "evaluation": {"every_steps": rng.choice([0, 1, 3, 5])},
                "checkpoint": {"every_steps": rng.choice([0, 1, 2, 4])},
                "workers": {"min": rng.randint(1, most), "max": most},
            }
        )

    # What must hold.

    def _look(self) -> None:
        """After every event."""
        world, memory = self.world, self.world.memory
        if memory is None or not memory.is_made or memory.attempt != world.attempt:
            return
        if not self._views or self._views[0] is not memory:
            shape = next(p.replica.facts.shape for p in world.processes.values() if p.replica is not None)
            segment = self._product["worker.reduce.segment"].Segment.attach(SegmentPath(world, 0), shape)
            self._views, self._committed = (memory, segment), segment.control.committed
            newest = world.saved[-1][0].step if world.saved else 0
            self._demand(self._committed == newest, f"began at step {self._committed}, saved was {newest}")
        segment = self._views[1]
        control = segment.control
        arrivals = sum(control.arrivals)
        if arrivals != self._arrivals:
            self._arrivals = arrivals
            world.wake()
        committed = control.committed
        self._demand(committed in (self._committed, self._committed + 1), f"step {committed} after {self._committed}")
        self._committed = committed
        content = segment.weights(committed).tobytes(), segment.state(committed)[0].tobytes()
        self._demand(content == self.states[committed].content, f"other weights or optimizer state at {committed}")

    def _demand(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Violation(f"{otherwise} (at {self.world.clock.now:.4f} s)")

    def _judge(self, report: Report) -> None:
        """What the coordinator says must be so."""
        match report:
            case CheckpointSaved(step=step, weights_digest=digest):
                self._demand(digest == self.states[step].digest, f"other weights in the checkpoint of step {step}")
            case Evaluation(step=step, loss=loss):
                self._demand(loss == tiny.evaluation_of(self.states[step].weights), f"other evaluation at step {step}")
            case RunSucceeded(weights_digest=digest):
                self._demand(digest == self.states[-1].digest, "other weights at the end")
                self._demand(self.world.saved[-1][0].step == self.total, "the last step was not saved")
            case RunFailed(reason=reason, message=message):
                self._demand(self._is_deserved(reason, message), f"the job failed: {message}")

    def _is_deserved(self, reason: StateReason, message: str) -> bool:
        match reason:
            case StateReason.POISON:
                return max(self.world.deaths_at.values(), default=0) >= 2
            case StateReason.TOO_MANY_FAILURES:
                return self.world.num_deaths > 5
        return "could not be written" in message and self.outcome.met["full disk"] > 0

    # What happens.

    async def run(self) -> None:
        """Attempt after attempt, as the service does it, until the job has ended."""
        misfortunes = asyncio.create_task(self._misfortunes())
        while not self.outcome.end:
            await self._attempt()
        misfortunes.cancel()
        await asyncio.sleep(10)
        living = self.world.living()
        self._demand(not living, f"left behind: {living}")
        self._demand(self.world.memory is None, "shared memory was left behind")

    async def _attempt(self) -> None:
        world, rng = self.world, self.rng
        world.attempt += 1
        world.memory = None  # as RayCluster.launch does it
        workers = rng.randint(self.spec.workers.min, self.spec.workers.max)
        order = self._product["service.order"].Order(
            job_id="simulated",
            spec_json=self.spec.model_dump_json(),
            num_workers=workers,
            min_workers=min(self.spec.workers.min, workers),
            capacity=self.spec.workers.max,
            segment=SegmentPath(world, world.attempt),
            checkpoints="checkpoints",
            worker_options={},
        )
        self.coordinator = coordinator = self._product["service.coordinator"]._Coordinator(order)
        await coordinator.start()
        stored = 0
        while coordinator is self.coordinator:
            news = await coordinator.news(stored)
            stored = news.last_report
            if coordinator is not self.coordinator:
                break
            for report in news.reports:
                self.reports.append(report)
                self._judge(report)
                if isinstance(report, RunSucceeded | RunFailed):
                    name = "" if isinstance(report, RunSucceeded) else f": {report.reason}"
                    self.outcome.end = ("succeeded" if isinstance(report, RunSucceeded) else "failed") + name
                if isinstance(report, RunSucceeded | RunFailed | RunPaused):
                    await coordinator.close()
                    self.coordinator = None
            await asyncio.sleep(NEWS_SECONDS)
        await asyncio.sleep(rng.uniform(0.0, 3.0))

    async def _misfortunes(self) -> None:
        """One after the other, some of them while the last is not over."""
        rng = self.rng
        mean_seconds = rng.choice([0.2, 0.8, 3.0])
        kinds = [self._kill, self._kill, self._kill, self._stop, self._slow, self._scale, self._lose_sight]
        kinds += [self._pause, self._kill_coordinator, self._fill_disk, self._spoil_checkpoint]
        kinds += [self._lose_store]
        some = rng.sample(kinds, rng.randint(1, 5))
        for _ in range(rng.randint(0, 9)):
            await asyncio.sleep(rng.expovariate(1 / mean_seconds))
            await rng.choice(some)()

    def _note(self, what: str) -> None:
        self.outcome.met[what] += 1

    def _somebody(self) -> Process | None:
        living = [process for process in self.world.living() if process.attempt == self.world.attempt]
        process = self.rng.choice(living) if living else None
        if process is not None:
            process.is_harmed = True
        return process

    async def _kill(self) -> None:
        if (process := self._somebody()) is not None:
            self._note("kill")
            process.kill()

    async def _stop(self) -> None:
        """A process is stopped; some day it may wake up."""
        if (process := self._somebody()) is not None:
            self._note("stop")
            process.stop()
            if self.rng.random() < 0.5:
                self.world.later(self.rng.uniform(0.1, 40), process.go_on)

    async def _slow(self) -> None:
        if (process := self._somebody()) is not None:
            self._note("slow")
            process.slowness = self.rng.uniform(2, 30)

    async def _lose_sight(self) -> None:
        """Ray takes a worker for dead that lives."""
        if (process := self._somebody()) is not None:
            self._note("out of reach")
            self.world.actors[process.number].is_out_of_reach = True
            for call in (process.call, *process.calls):
                if call is not None:
                    call.lose()

    async def _scale(self) -> None:
        if self.coordinator is not None:
            self._note("scale")
            await self.coordinator.scale(self.rng.randint(1, self.spec.workers.max))

    async def _pause(self) -> None:
        if self.coordinator is not None:
            self._note("pause")
            await self.coordinator.pause()

    async def _kill_coordinator(self) -> None:
        """Its workers die some time after it."""
        coordinator, world = self.coordinator, self.world
        if coordinator is None:
            return
        self._note("coordinator")
        self.coordinator = None
        attempt, world.attempt = world.attempt, world.attempt + 1
        node = coordinator._group.nodes.here
        if node.segment is not None:  # what the dead would still write, nobody sees
            node.segment = self._product["worker.reduce.segment"].Segment(
                node.segment.path, node.segment.shape, bytearray(node.segment._memory)
            )
            node.segment.control.memory = self.world.memory
        for process in world.living():
            if process.attempt == attempt:
                world.later(self.rng.expovariate(1.0), process.die)
        await coordinator.close()

    async def _fill_disk(self) -> None:
        self._note("full disk")
        self.world.disk_is_full = True
        self.world.later(self.rng.uniform(0.1, 3), self._empty_disk)

    def _empty_disk(self) -> None:
        self.world.disk_is_full = False

    async def _lose_store(self) -> None:
        """For a while nobody can read checkpoints, nor write any."""
        self._note("store out of reach")
        self.world.store_is_away = True
        self.world.later(self.rng.uniform(0.1, 10), self._find_store)

    def _find_store(self) -> None:
        self.world.store_is_away = False

    async def _spoil_checkpoint(self) -> None:
        """The newest checkpoint is corrupt, if it is not the last word."""
        if self.world.saved and self.world.saved[-1][0].step < self.total:
            self._note("corrupt checkpoint")
            self.world.saved.pop()


def simulate(seed: int, product: Mapping[str, Any]) -> Outcome:
    """The whole life of a seed's job."""
    scenario = Scenario(seed, product)
    world, outcome = scenario.world, scenario.outcome
    clock = world.clock
    logging.disable(logging.CRITICAL)
    try:
        task = clock.create_task(scenario.run())
        limit = clock.call_later(LIMIT_SECONDS, clock.stop)
        try:
            clock.run_until_complete(task)
        except Exception as error:
            if not task.done():
                task.cancel()
            outcome.violation = f"{type(clock.error or error).__name__}: {clock.error or error}"
            if clock.error is None and isinstance(error, RuntimeError):
                outcome.violation = f"the job has not ended after {LIMIT_SECONDS:.0f} s"
            outcome.end = "violation"
            limit.cancel()
            _wind_up(scenario)
        outcome.seconds, outcome.steps = clock.now, scenario._committed
    finally:
        logging.disable(logging.NOTSET)
        clock.close()
    return outcome


def _wind_up(scenario: Scenario) -> None:
    """Ends what a violation has left running, so that the next seed begins anew."""
    world, clock = scenario.world, scenario.world.clock
    world.look, clock.is_ending = lambda: None, True
    for process in world.living():
        process.die()
    tasks = asyncio.all_tasks(clock)
    for task in tasks:
        task.cancel()
    ended: Callable[..., Any] = asyncio.gather

    async def wait() -> None:
        await ended(*tasks, return_exceptions=True)

    clock.run_until_complete(wait())
    gc.collect(0)


__all__ = ["Outcome", "Scenario", "checkpoint", "simulate"]
