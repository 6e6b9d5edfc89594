"""The Ray worker: a replica in a process of its own. The only module of the worker package that imports ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import ray

from worker.objective import Scores
from worker.plan import Plan
from worker.process import settle_memory, start_time_of
from worker.reduce.mesh import Address
from worker.replica import Facts, Leg, NumericsChangedError, Replica, Resumed
from worker.spec import JobSpec
from worker.violations import SpecError, Violation


@dataclass(frozen=True)
class Refused:
    """Why a job does not go on from its newest checkpoint: its numerics, or what is wrong with its data."""

    numerics: str = ""
    violations: tuple[Violation, ...] = ()


class _Worker:
    """Results and refusals come back as values: only a death or a fault of ours is an exception to the caller."""

    def __init__(self) -> None:
        settle_memory()
        self._replica: Replica | None = None

    def identity(self) -> tuple[int, int | None, str]:
        """Its process, by number and start time, and Ray's name for its node."""
        return os.getpid(), start_time_of(os.getpid()), ray.get_runtime_context().get_node_id()

    def load(self, spec_json: str, *, capacity: int) -> Facts | tuple[Violation, ...]:
        """Reads the data and builds the model; the violations where the data does not work."""
        try:
            self._replica = Replica.load(JobSpec.model_validate_json(spec_json), capacity=capacity)
        except SpecError as error:
            return error.violations
        return self._replica.facts

    def rehearse(self, *, may_compile: bool) -> int | None:
        return self._loaded.rehearse(may_compile=may_compile)

    def create_segment(self, path: Path, checkpoints: str, *, allow_different_numerics: bool) -> Resumed | Refused:
        """The segment with the newest state in it; why not, where the checkpoints are of other numerics or data."""
        try:
            return self._loaded.create_segment(path, checkpoints, allow_different_numerics=allow_different_numerics)
        except NumericsChangedError as error:
            return Refused(str(error))
        except SpecError as error:
            return Refused(violations=error.violations)

    def create_empty_segment(self, path: Path) -> None:
        self._loaded.create_empty_segment(path)

    def listen(self, token: bytes) -> Address:
        """Lets members on other nodes connect, at this node's address in the cluster."""
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's own
        return self._loaded.listen(host, token)

    def join(self, path: Path, seat: int) -> None:
        self._loaded.join(path, seat)

    def run(self, until_step: int, plan: Plan) -> Leg:
        return self._loaded.run(until_step, plan)

    def evaluate(self, plan: Plan) -> dict[int, Scores] | Leg:
        return self._loaded.evaluate(plan)

    @property
    def _loaded(self) -> Replica:
        assert self._replica is not None, "load comes first"
        return self._replica


# The coordinator replaces a lost worker; Ray must not, for it would take a second and rejoin nothing.
WorkerActor = ray.remote(max_restarts=0, max_task_retries=0)(_Worker)
