"""One worker's part of a job: its copy of the model and the data, its place in the segment. No Ray here.

The life of a replica: `load` and `rehearse`, then `create_segment` on one of each node and `join` on all, then `run`
and `evaluate` as the coordinator says. Those that can have peers on other nodes `listen`, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from worker import checkpoint
from worker.autodiff import autocast, philox
from worker.checkpoint_store import open_store
from worker.data import source
from worker.data.dataset import Dataset
from worker.data.sampler import Sampler
from worker.fingerprint import differences, fingerprint
from worker.loss_scale import UNSCALED, LossScale
from worker.model_file import Description
from worker.nn.flat import FlatParameters
from worker.objective import Objective, Scores
from worker.optim.rules import EMA
from worker.phases import PhaseClock
from worker.plan import Plan
from worker.recipe import recipe_of, spans_of
from worker.reduce.barrier import Barrier, PlanChangedError
from worker.reduce.exchange import Exchange, NodeReduce, Reduce
from worker.reduce.lanes import Lanes
from worker.reduce.link import Link, PeerLostError
from worker.reduce.mesh import Address, Listener
from worker.reduce.segment import NOTHING, Segment, Shape
from worker.reduce.tree import first_slots, max_slots
from worker.rehearsal import rehearse
from worker.spec import JobSpec
from worker.step import TrainingStep
from worker.update import NEVER, NonFiniteError, RangeUpdate
from worker.violations import SpecError, Violation

EVALUATION_CHUNK = 256  # held-out samples evaluated at once: the job's, so that the sums have one order


class LegEnd(StrEnum):
    """Why a leg, a run of steps without the coordinator, is over."""

    REACHED = "reached"
    STOPPED = "stopped"
    PLAN_CHANGED = "plan_changed"
    NON_FINITE = "non_finite"


@dataclass(frozen=True)
class Leg:
    """What `run` comes back with: the steps committed, as this worker knows them."""

    end: LegEnd
    step: int
    message: str = ""


@dataclass(frozen=True)
class Facts:
    """What the coordinator must know of a loaded job."""

    shape: Shape
    tensors: checkpoint.Tensors
    state_names: tuple[str, ...]
    objective: Objective
    description: Description
    origin: checkpoint.Origin


@dataclass(frozen=True)
class Resumed:
    """Where a segment begins: the step, and what was found on the way to it.

    `differences` are those of the numeric fingerprint: with any, the bits that follow may be others.
    """

    step: int
    corrupt: tuple[checkpoint.Corrupt, ...] = ()
    differences: tuple[str, ...] = ()


class NumericsChangedError(Exception):
    """The newest checkpoint was made by other numerics than this worker has."""


def spec_sha256(spec: JobSpec) -> str:
    """What a checkpoint must agree on to be this job's: all of the spec that decides the weights."""
    beside = dict.fromkeys(("name", "workers", "priority", "evaluation", "checkpoint"), True)
    deciding = spec.model_dump_json(exclude={**beside, "training": {"gradient_checkpointing"}})
    return hashlib.sha256(deciding.encode()).hexdigest()


class Replica:
    """One worker's part of a job that can have `capacity` workers at once."""

    def __init__(self, spec: JobSpec, dataset: Dataset, *, capacity: int) -> None:
        self._spec, self._dataset = spec, dataset
        self._recipe = recipe_of(spec, dataset)
        self._flat = FlatParameters(self._recipe.model.parameters())
        self._first_weights = self._flat.weights
        self._precision = spec.training.precision.value
        training = spec.training
        self._sampler = Sampler(len(dataset.training), training.global_batch_size, seed=training.seed)
        num_shards = training.shards
        named = dict(self._recipe.model.named_parameters())
        self.facts = Facts(
            Shape(
                num_parameters=self._flat.size,
                num_states=len(self._recipe.rule.state_names),
                num_shards=num_shards,
                num_seats=capacity,
                num_slots=max_slots(capacity, num_shards),
            ),
            checkpoint.Tensors(tuple(named), tuple(parameter.shape for parameter in named.values())),
            self._recipe.rule.state_names,
            self._recipe.objective,
            Description(spec.model, dataset.input_shape, dataset.num_outputs, dataset.vocabulary),
            checkpoint.Origin(spec_sha256(spec), dataset.sha256, fingerprint()),
        )
        self._segment: Segment | None = None
        self._listener: Listener | None = None
        self._seat = -1

    @classmethod
    def load(cls, spec: JobSpec, *, capacity: int) -> Replica:
        """A replica with its data read and its model built. Raises SpecError where the data does not work."""
        return cls(spec, source.load(spec), capacity=capacity)

    def rehearse(self, *, may_compile: bool) -> int | None:
        """Loads all kernels, before `join`: how many were compiled, None where some must be and may not."""
        training = self._spec.training
        with autocast(self._precision):
            return rehearse(
                self._recipe,
                self._flat,
                self._dataset,
                shard_size=training.global_batch_size // training.shards,
                spans=spans_of(self._recipe.rule, self.facts.tensors.shapes),
                may_compile=may_compile,
            )

    def create_segment(self, path: Path, checkpoints: str, *, allow_different_numerics: bool = False) -> Resumed:
        """Creates the job's segment with the newest good checkpoint of a path or URL in it, or the first weights.

        Raises NumericsChangedError, SpecError where the data is not what it was, OSError where the checkpoints cannot
        be reached.
        """
        shape, names = self.facts.shape, self.facts.state_names
        found = checkpoint.newest(
            open_store(checkpoints), self.facts.tensors, spec_sha256=self.facts.origin.spec_sha256
        )
        saved, changed = found.state, self._compare(found, allow_different_numerics=allow_different_numerics)
        segment = Segment.create(path, shape)
        step = 0 if saved is None else saved.step
        segment.weights(step)[:] = self._first_weights if saved is None else saved.weights
        if saved is None:
            self._recipe.rule.start(segment.weights(step), segment.state(step))
        else:
            for name, vector in zip(names, segment.state(step), strict=True):
                vector[:] = saved.optimizer[name]
        first_scale = LossScale() if self._recipe.scales_loss else UNSCALED
        segment.control.set_loss_scale(step, first_scale if saved is None else saved.loss_scale)
        segment.control.commit(step)
        segment.control.last_step = NEVER
        segment.close()
        return Resumed(step, found.corrupt, changed)

    def _compare(self, found: checkpoint.Found, *, allow_different_numerics: bool) -> tuple[str, ...]:
        """How the numerics differ from those that made a checkpoint."""
        if found.state is None or found.origin is None:
            return ()
        ours, theirs, step = self.facts.origin, found.origin, found.state.step
        if ours.data_sha256 != theirs.data_sha256:
            text = f"got sha256 {ours.data_sha256}, expected {theirs.data_sha256} as up to step {step}: "
            advice = "the data has changed since; give the job back the data it began with, or submit a new one"
            raise SpecError([Violation(f"data.{self._spec.data.kind}", text + advice)])
        changed = differences(ours.fingerprint, theirs.fingerprint)
        if changed and not allow_different_numerics:
            raise NumericsChangedError(
                f"the checkpoint of step {step} was made with other numerics, so that the weights would not be those "
                f"of an undisturbed run: {'; '.join(changed)}. Restore the machine or the libraries, or submit the job "
                "anew; a service started with --allow-different-numerics goes on all the same"
            )
        return changed

    def create_empty_segment(self, path: Path) -> None:
        """Creates the segment of one more node; its first plan begins with a copy of what another node has."""
        segment = Segment.create(path, self.facts.shape)
        segment.control.commit(NOTHING)
        segment.control.last_step = NEVER
        segment.close()

    def listen(self, host: str, token: bytes) -> Address:
        """Lets the members on other nodes connect, from now on; `token` is the job's secret. Raises OSError."""
        self._listener = Listener(host, token)
        return self._listener.address

    def leave(self) -> None:
        """Lets nobody connect any more."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def join(self, path: Path, seat: int) -> None:
        """Takes a seat in the segment, for life."""
        self._segment, self._seat = Segment.attach(path, self.facts.shape), seat
        self._clock = PhaseClock(self._segment.control, seat)
        self._segment.control.take_seat(seat, os.getpid())
        self._clock.enter("idle")

    def run(self, until_step: int, plan: Plan) -> Leg:
        """Trains, with all other members of the plan, until so many steps are committed or something ends the leg."""
        control = self._joined.control
        committed = control.committed
        try:
            with self._reduce(plan) as (barrier, reduce):
                committed = control.committed
                step = self._training_step(plan, barrier, reduce)
                with autocast(self._precision), np.errstate(all="ignore"):  # what is not finite shows in the norm
                    while committed < until_step:
                        goes_on = step(committed)
                        committed += 1
                        if not goes_on:
                            return Leg(LegEnd.STOPPED, committed)
        except PlanChangedError as change:
            return Leg(LegEnd.PLAN_CHANGED, control.committed, str(change))
        except NonFiniteError as error:
            return Leg(LegEnd.NON_FINITE, committed, str(error))
        finally:
            self._clock.enter("idle")
        return Leg(LegEnd.REACHED, committed)

    def evaluate(self, plan: Plan) -> dict[int, Scores] | Leg:
        """This member's chunks of the held-out samples, by their numbers, under the committed weights.

        A job that keeps an average of its weights is judged by it. A leg, cut short, when the plan was given up.
        """
        segment, held_out, model = self._joined, self._dataset.validation, self._recipe.model
        if plan.is_spread:
            try:
                with self._reduce(plan):
                    pass  # only so that all nodes judge the same weights
            except PlanChangedError as change:
                self._clock.enter("idle")
                return Leg(LegEnd.PLAN_CHANGED, segment.control.committed, str(change))
        committed, states = segment.control.committed, self.facts.state_names
        averaged = EMA in states
        self._flat.bind_weights(segment.state(committed)[states.index(EMA)] if averaged else segment.weights(committed))
        scores = {}
        model.eval()
        num_chunks = -(-len(held_out) // EVALUATION_CHUNK)
        for chunk in range(plan.place_of(self._seat), num_chunks, len(plan.members)):
            if segment.control.epoch != plan.epoch:
                break
            self._clock.enter("evaluate")
            positions = np.arange(chunk * EVALUATION_CHUNK, min((chunk + 1) * EVALUATION_CHUNK, len(held_out)))
            philox.seed(self._spec.training.seed, chunk)
            with autocast(self._precision), np.errstate(all="ignore"):
                scores[chunk] = self._recipe.objective.score(model, held_out.take(positions))
        model.train()
        self._clock.enter("idle")
        return scores if segment.control.epoch == plan.epoch else Leg(LegEnd.PLAN_CHANGED, committed)

    @property
    def _joined(self) -> Segment:
        assert self._segment is not None, "join comes first"
        return self._segment

    @contextmanager
    def _reduce(self, plan: Plan) -> Iterator[tuple[Barrier, Reduce]]:
        """The node's barrier under a plan, and the reduce; all nodes have the same state then. PlanChangedError."""
        segment, place, assignments = self._joined, plan.place_of(self._seat), plan.assignments()
        barrier = Barrier(segment.control, self._seat, members=plan.on_node_of(self._seat), epoch=plan.epoch)
        if not plan.is_spread:
            yield barrier, NodeReduce(segment, assignments, place)
            return
        self._clock.enter("wait")
        lanes = Lanes(plan.nodes)
        links = self._links(plan, lanes.peers(place), barrier)
        exchange = Exchange(
            segment, assignments, lanes, place=place, links=links, barrier=barrier, enter=self._clock.enter
        )
        try:
            exchange.align()
            yield barrier, exchange
        finally:
            exchange.close()

    def _links(self, plan: Plan, peers: tuple[int, ...], barrier: Barrier) -> dict[int, Link]:
        assert self._listener is not None, "listen comes first"
        addresses = {peer: plan.addresses[peer] for peer in peers}

        def check() -> None:
            self._clock.enter("wait")  # again and again: it is a sign of life
            barrier.check()

        try:
            connections = self._listener.connections(
                addresses, place=plan.place_of(self._seat), epoch=plan.epoch, check=check
            )
        except PeerLostError as error:
            barrier.give_up()
            raise PlanChangedError(str(error)) from None
        return {
            peer: Link(connection, f"worker {plan.members[peer]}", epoch=plan.epoch)
            for peer, connection in connections.items()
        }

    def _training_step(self, plan: Plan, barrier: Barrier, reduce: Reduce) -> TrainingStep:
        segment, place, assignments = self._joined, plan.place_of(self._seat), plan.assignments()
        neighbours = plan.on_node_of(self._seat)
        update = RangeUpdate(
            self._recipe,
            segment,
            place=neighbours.index(self._seat),
            num_members=len(neighbours),
            reduce=reduce,
            spans=spans_of(self._recipe.rule, self.facts.tensors.shapes),
            barrier=barrier,
            clock=self._clock,
        )
        return TrainingStep(
            self._recipe,
            self._flat,
            segment=segment,
            first_slot=first_slots(assignments)[place],
            assignment=assignments[place],
            update=update,
            barrier=barrier,
            clock=self._clock,
            samples=self._dataset.training,
            sampler=self._sampler,
            seed=self._spec.training.seed,
        )
