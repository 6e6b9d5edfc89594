"""What stands in for a node: processes that take their time, die and stop; Ray's actors; shared memory; a disk."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Generator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np
from ray.exceptions import RayActorError, RayTaskError

from tests.simulation import tiny
from tests.simulation.clock import Clock, GoneError
from tests.simulation.weave import Mutation, load
from worker import checkpoint
from worker.checkpoint_store import StoreUnreachableError

SPIN = "spin"  # a worker looks at a barrier again when something there has changed
SECONDS_AT = {"forward": 0.02, "backward": 0.02, "update": 0.003, "commit": 0.02}  # by stage, for each point in it
ELSEWHERE_SECONDS = 0.001  # what is short in life is long here, so that others come between
PREEMPTED, MAX_PREEMPTED_SECONDS = 0.02, 0.5  # how often, at any point, somebody else has the processor, and how long
KILL_SECONDS = 0.02  # at most, from a SIGKILL until the process is gone; it may run on for so long
Work = Generator[str, None, Any]
_task_error: Callable[..., Exception] = RayTaskError  # whose own types say nothing


class Violation(Exception):
    """A promise was broken."""


class Process:
    """A worker process: it does what it is called for, call by call, until it dies."""

    def __init__(self, world: World, attempt: int, number: int) -> None:
        self.world, self.attempt, self.number = world, attempt, number
        self.is_dead = self.is_stopped = self.is_due = self.is_parked = False
        self.is_harmed = False  # by a misfortune; nobody else may be killed at work
        self.slowness = 1.0
        self.stage = ""
        self.call: Call | None = None
        self.work: Work | None = None
        self.calls: deque[Call] = deque()
        self.replica: Any = None
        self.deaths: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"process {self.number}"

    @property
    def is_at_work(self) -> bool:
        """Whether it works under a plan."""
        return not self.is_dead and self.call is not None and self.call.epoch is not None

    def take(self, call: Call) -> None:
        self.calls.append(call)
        if self.work is None:
            self._next_call()

    def _next_call(self) -> None:
        self.call = self.calls.popleft() if self.calls else None
        self.work = None if self.call is None else self.call.begin(self)
        if self.call is not None:
            self.resume_later(ELSEWHERE_SECONDS)

    def resume_later(self, seconds: float) -> None:
        rng = self.world.rng
        waits = rng.uniform(0, MAX_PREEMPTED_SECONDS) if rng.random() < PREEMPTED else 0.0
        self.world.later(self.slowness * rng.uniform(0.2, 1.8) * seconds + waits, self._resume)

    def _resume(self) -> None:
        if self.is_dead:
            return
        if self.is_stopped:
            self.is_due = True
            return
        assert self.work is not None
        assert self.call is not None
        self.world.running = self
        try:
            point = next(self.work)
        except StopIteration as stop:
            self.call.answer(stop.value)
            self._next_call()
        except (Violation, AssertionError, AttributeError, TypeError, NameError):
            raise
        except Exception as error:
            self.call.fail(_task_error(self.call.method, "", error, "worker", self.number, "here"))
            self._next_call()
        else:
            if point == SPIN:
                self.is_parked = True
            else:
                self.resume_later(SECONDS_AT.get(self.stage, ELSEWHERE_SECONDS))
        finally:
            self.world.running = None
        self.world.look()

    def wake(self) -> None:
        if self.is_parked:
            self.is_parked = False
            self.resume_later(ELSEWHERE_SECONDS)

    def stop(self) -> None:
        self.is_stopped = True

    def go_on(self) -> None:
        self.is_stopped = False
        if self.is_due and not self.is_dead:
            self.is_due = False
            self.resume_later(ELSEWHERE_SECONDS)

    def kill(self) -> None:
        """SIGKILL; death comes a moment later."""
        self.world.later(self.world.rng.uniform(0, KILL_SECONDS), self.die)

    def die(self) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        self.world.note_death(self)
        if self.work is not None:
            self.work.close()
        for call in (self.call, *self.calls):
            if call is not None:
                call.lose()
        for tell in self.deaths:
            tell()


class Held:
    """service.processes.Process, by whose descriptor a death is seen."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    def hold(cls, process_id: int, *, start_time: int) -> Self:
        return cls(HERE.world.processes[process_id])

    async def ended(self) -> None:
        if self._process.is_dead:
            return
        gone = asyncio.Event()
        self._process.deaths.append(lambda: self._process.world.later(0.001, gone.set))
        await gone.wait()

    @property
    def has_ended(self) -> bool:
        return self._process.is_dead

    def kill(self) -> None:
        process = self._process
        if process.attempt == process.world.attempt:  # a dead coordinator kills nobody
            if process.is_at_work and not process.is_harmed:
                process.world.accuse(f"{process} did well and was killed at work")
            process.kill()

    def close(self) -> None:
        """No descriptor is there to close."""


class Call:
    """A call of an actor on its way."""

    def __init__(self, actor: Actor, method: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.actor, self.method, self.arguments, self.keywords = actor, method, arguments, keywords
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be there to ask

    @property
    def epoch(self) -> int | None:
        """Of the plan that it works under."""
        return next((a.epoch for a in self.arguments if hasattr(a, "epoch")), None)

    def begin(self, process: Process) -> Work:
        method = getattr(Body, self.method)
        work: Work = method(process, *self.arguments, **self.keywords)
        return work

    def answer(self, value: Any) -> None:
        self._arrive(lambda: self.future.set_result(value))

    def fail(self, error: Exception) -> None:
        self._arrive(lambda: self.future.set_exception(error))

    def lose(self) -> None:
        """Its actor is dead, or Ray believes so."""
        self._arrive(lambda: self.future.set_exception(RayActorError()))

    def _arrive(self, act: Callable[[], None]) -> None:
        world = self.actor.process.world
        world.later(world.latency(), lambda: None if self.future.done() else act())


class Actor:
    """A Ray actor's handle."""

    def __init__(self, process: Process) -> None:
        self.process, self.is_out_of_reach = process, False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *a, **k: self._call(Call(self, method, a, k)))

    def _call(self, call: Call) -> asyncio.Future[Any]:
        if self.process.is_dead or self.is_out_of_reach:
            call.lose()
        else:
            world = self.process.world
            world.later(world.latency(), lambda: call.lose() if self.process.is_dead else self.process.take(call))
        return call.future


class Body:
    """What a worker process does for each call, as worker.actor."""

    @staticmethod
    def identity(process: Process) -> Work:
        yield "start"
        return process.number, 0, "here"

    @staticmethod
    def load(process: Process, spec_json: str, *, capacity: int) -> Work:
        world = process.world
        for _ in range(4):
            process.stage = "start"
            yield "start"
        replica = process.replica = world.replica.Replica(world.spec, tiny.Dataset(), capacity=capacity)
        replica._recipe.objective.flat = replica._flat
        return replica.facts

    @staticmethod
    def rehearse(process: Process, *, may_compile: bool) -> Work:
        yield "start"
        if process.world.is_compiled:
            return 0
        if not may_compile:
            return None
        yield "start"
        process.world.is_compiled = True
        return 3

    @staticmethod
    def create_segment(process: Process, *arguments: Any, **keywords: Any) -> Work:
        return (yield from process.replica.create_segment(*arguments, **keywords))

    @staticmethod
    def join(process: Process, *arguments: Any) -> Work:
        return (yield from process.replica.join(*arguments))

    @staticmethod
    def run(process: Process, *arguments: Any) -> Work:
        return (yield from process.replica.run(*arguments))

    @staticmethod
    def evaluate(process: Process, *arguments: Any) -> Work:
        return (yield from process.replica.evaluate(*arguments))


class SegmentPath:
    """A file in /dev/shm."""

    def __init__(self, world: World, attempt: int) -> None:
        self.name, self._world, self._attempt = "backprop-simulated", world, attempt

    def unlink(self, missing_ok: bool = False) -> None:
        if self._attempt == self._world.attempt:  # a dead coordinator removes nothing
            self._world.memory = None


@dataclass
class Memory:
    """What is in it, by whom it was made, and the newest plan opened in it."""

    content: bytearray
    attempt: int
    is_made: bool = False
    opened: int = 0


class World:
    """One simulation's node. Everything that can happen is drawn from its random numbers."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock(self._in_thread)
        self.processes: dict[int, Process] = {}
        self.running: Process | None = None
        self.memory: Memory | None = None
        self.attempt = 0
        self.is_compiled = self.disk_is_full = self.store_is_away = False
        self.saved: list[tuple[checkpoint.TrainingState, checkpoint.Origin]] = []
        self.deaths_at: dict[tuple[int, int, int], int] = {}
        self.num_deaths = 0
        self.actors: dict[int, Actor] = {}
        self.look: Callable[[], None] = lambda: None
        self.spec: Any = None
        self.replica: Any = None
        self._barrier: tuple[int, ...] = ()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        self.clock.later(seconds, act)

    def accuse(self, what: str) -> None:
        """Ends the simulation, wherever it is: no coroutine can swallow this."""
        self.clock.error = self.clock.error or Violation(f"{what} (at {self.clock.now:.4f} s)")
        self.clock.stop()

    def latency(self) -> float:
        """Of a message: short, and now and then long."""
        return self.rng.uniform(0.0005, 0.003) if self.rng.random() < 0.97 else self.rng.uniform(0.01, 1.0)

    def launch(self, attempt: int) -> Actor:
        number = len(self.processes) + 1000
        process = self.processes[number] = Process(self, attempt, number)
        actor = self.actors[number] = Actor(process)
        return actor

    def living(self) -> list[Process]:
        return [process for process in self.processes.values() if not process.is_dead]

    def note_death(self, process: Process) -> None:
        """Remembers of which shards it died."""
        self.num_deaths += 1
        replica = process.replica
        if replica is not None and replica._segment is not None:
            pulse = replica._segment.control.pulse(replica._seat)
            for shard in pulse.shards:
                place = process.attempt, pulse.step, shard
                self.deaths_at[place] = self.deaths_at.get(place, 0) + 1

    def wake(self) -> None:
        for process in self.living():
            process.wake()

    def publish(
        self, _: object, state: checkpoint.TrainingState, *, origin: checkpoint.Origin, **__: object
    ) -> checkpoint.Published:
        """A checkpoint, whole or not at all, of what its memory holds now."""
        self._reach_store()
        if self.disk_is_full:
            raise OSError(28, "No space left on device")
        state = deepcopy(state)
        self.saved.append((state, origin))
        digest = checkpoint.weights_digest(state.weights)
        return checkpoint.Published("checkpoint", "model", state.step, digest, 1)

    def found(self) -> checkpoint.Found:
        """The newest checkpoint."""
        self._reach_store()
        return checkpoint.Found(*self.saved[-1]) if self.saved else checkpoint.Found()

    def _reach_store(self) -> None:
        if self.store_is_away:
            raise StoreUnreachableError("no answer")

    def _in_thread(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """A thread of the coordinator; with it, it dies at any moment."""
        done: asyncio.Future[Any] = self.clock.create_future()
        attempt = self.attempt

        def run() -> None:
            if done.done():
                return
            try:
                if attempt != self.attempt:
                    raise GoneError("its process is gone")
                done.set_result(work())
            except OSError as error:
                done.set_exception(error)

        self.later(self.rng.uniform(0.001, 0.3), run)
        return done


class Here:
    """The world of the simulation that runs now."""

    world: World


HERE = Here()
FAKE_TIME: Any = SimpleNamespace(
    monotonic=lambda: HERE.world.clock.now,
    monotonic_ns=lambda: int(HERE.world.clock.now * 1e9),
    perf_counter=lambda: HERE.world.clock.now,
)


def _spin(*_: object) -> Work:
    yield SPIN


def _point() -> Work:
    yield "point"


def _add_into(into: Any, other: Any) -> Work:
    half = len(into) // 2
    into[:half] += other[:half]
    yield "add"
    into[half:] += other[half:]


def _reduce_range(slots: Any, joins: Any, first: int, last: int, squares: Any) -> Work:
    for start in range(first, last, tiny.BLOCK):
        block = slice(start, min(start + tiny.BLOCK, last))
        for into, other in joins:
            slots[into, block] += slots[other, block]
        (squares[start // tiny.BLOCK],) = tiny.squares_of(slots[0, block])
        yield "reduce"


def _segment(module: ModuleType) -> dict[str, object]:
    real: Any = module

    class Control(real.Control):  # type: ignore[misc]  # loaded a moment ago
        """Tells the world what happens to it."""

        memory: Memory

        def commit(self, step: int) -> None:
            before = self.committed
            if self.memory.is_made and step not in (before, before + 1):
                HERE.world.accuse(f"committed {step} after {before}")
            super().commit(step)
            self.memory.is_made = True

        def open_plan(self, epoch: int | None = None) -> int:
            epoch = super().open_plan(epoch)
            for process in HERE.world.living():
                if process.is_at_work and process.attempt == self.memory.attempt == HERE.world.attempt:
                    HERE.world.accuse(f"plan {epoch} was opened while {process} works under another")
            assert epoch is not None
            self.memory.opened = epoch
            return epoch

        def abandon_plan(self, epoch: int | None = None) -> None:
            super().abandon_plan(epoch)
            HERE.world.wake()

    class Segment(real.Segment):  # type: ignore[misc]  # as above
        """In ordinary memory."""

        @classmethod
        def create(cls, path: SegmentPath, shape: Any) -> Generator[str, None, Segment]:
            yield "create"
            world = HERE.world
            if world.memory is not None:
                raise FileExistsError(f"{path.name} is there already")
            assert world.running is not None
            world.memory = Memory(bytearray(shape.num_bytes), world.running.attempt)
            yield "create"
            segment = cls.attach(path, shape)
            segment.control.set_loss_scale(0, real.UNSCALED)
            segment.control.set_loss_scale(1, real.UNSCALED)
            yield "create"
            return segment

        @classmethod
        def attach(cls, path: SegmentPath, shape: Any) -> Segment:
            memory = HERE.world.memory
            if memory is None:
                raise FileNotFoundError(path.name)
            segment = cls(path, shape, memory.content)
            segment.control.memory = memory
            return segment

    return {"Control": Control, "Segment": Segment, "BLOCK": tiny.BLOCK, "RING_STEPS": 64, "time": FAKE_TIME}


def _phases(module: ModuleType) -> dict[str, object]:
    real: Any = module

    class PhaseClock(real.PhaseClock):  # type: ignore[misc]  # as above
        """Others may come between at every stage."""

        def enter(self, stage: str) -> Work:
            process = HERE.world.running
            if process is None:  # it is being killed
                return
            process.stage = stage
            super().enter(stage)
            yield stage

    return {"PhaseClock": PhaseClock, "time": FAKE_TIME}


def _seats(module: ModuleType) -> dict[str, object]:
    attempts = SimpleNamespace(remote=lambda: HERE.world.launch(HERE.world.attempt))
    return {
        "WorkerActor": SimpleNamespace(options=lambda **_: attempts),
        "ray": SimpleNamespace(kill=lambda actor: actor.process.kill()),
    }


PUT: dict[str, Callable[[ModuleType], dict[str, object]]] = {
    "worker.reduce.segment": _segment,
    "worker.reduce.barrier": lambda _: {
        "fence": _point,
        "os": SimpleNamespace(sched_yield=_spin),
        "time": SimpleNamespace(sleep=_spin),
    },
    "worker.reduce.exchange": lambda _: {"reduce_range": _reduce_range},
    "worker.phases": _phases,
    "worker.update": lambda _: {"fence": _point, "time": FAKE_TIME},
    "worker.step": lambda _: {
        "add_into": _add_into,
        "philox": SimpleNamespace(seed_parts=lambda _: None),
        "in_parts": nullcontext,
    },
    "worker.replica": lambda _: {
        "recipe_of": lambda spec, dataset: tiny.Recipe(),
        "spans_of": lambda rule, shapes: [(0, tiny.NUM_PARAMETERS, rule)],
        "FlatParameters": tiny.Flat,
        "Description": lambda *_: None,
        "EVALUATION_CHUNK": tiny.CHUNK,
        "autocast": nullcontext,
        "np": SimpleNamespace(**(vars(np) | {"errstate": lambda **_: nullcontext()})),  # it would outlive its worker
        "philox": SimpleNamespace(seed=lambda *_: None),
        "os": SimpleNamespace(getpid=lambda: HERE.world.running and HERE.world.running.number),
        "open_store": lambda *_: None,
        "fingerprint": dict,
        "checkpoint": SimpleNamespace(**(vars(checkpoint) | {"newest": lambda *_, **__: HERE.world.found()})),
    },
    "service.node": lambda _: {"time": FAKE_TIME, "Process": Held},
    "service.observer": lambda _: {"time": FAKE_TIME},
    "service.seats": _seats,
    "service.spare": lambda _: {"_node_has_room": lambda _: HERE.world.rng.random() < 0.7},
    "service.lookout": lambda _: {"time": FAKE_TIME},
    "service.startup": lambda _: {"time": FAKE_TIME},
    "service.checkpoint_writer": lambda _: {
        "time": FAKE_TIME,
        "open_store": lambda *_: None,
        "checkpoint": SimpleNamespace(
            publish=lambda *a, **k: HERE.world.publish(*a, **k), TrainingState=checkpoint.TrainingState
        ),
    },
}


def product(mutations: tuple[Mutation, ...] = ()) -> dict[str, Any]:
    """The product's modules over this world."""
    return load(PUT, mutations)
