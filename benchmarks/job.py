"""Workers of a job on one node, without a coordinator: this project's side where several processes train together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.ours import model_of
from benchmarks.teams import Run
from benchmarks.timing import timed
from benchmarks.workloads import BATCHES, CLIP_NORM, LEARNING_RATE, WORKLOADS, batch_of
from worker.autodiff import Tensor
from worker.autodiff.precision import Precision, autocast
from worker.data.dataset import Table
from worker.data.sampler import Sampler
from worker.nn import FlatParameters, Module
from worker.objective import Objective
from worker.optim import rules
from worker.phases import PhaseClock
from worker.plan import even_plan
from worker.process import settle_memory
from worker.recipe import Recipe, spans_of
from worker.reduce.barrier import Barrier
from worker.reduce.kernels import reduce_range
from worker.reduce.segment import Floats, Segment, SegmentError, Shape
from worker.reduce.tree import Assignment, Join, cross_joins, first_slots
from worker.spec import NonFinitePolicy
from worker.step import TrainingStep
from worker.update import NEVER, RangeUpdate

SEED = 1


class JoinedReduce:
    """The sum of all gradients by given joins of slots, over the range of one place."""

    def __init__(self, segment: Segment, joins: Sequence[Join], *, place: int, num_members: int) -> None:
        self._slots, self._control = segment.slots, segment.control
        self._joins = np.array([(join.into, join.other) for join in joins], np.int64).reshape(-1, 2)
        self._first, self._last = segment.shape.range_of(place, num_members)

    def __call__(self, step: int) -> bool:
        reduce_range(self._slots, self._joins, self._first, self._last, self._control.block_squares)
        return self._control.stop_requested


def side(rank: int, world: int, path: Path, name: str, precision: Precision, num_shards: int) -> Run:
    """Training steps of a workload as the worker in seat `rank` does them, in a segment at `path`.

    The global batch is the workload's times `world`, cut into `num_shards`.
    """
    assignments = even_plan(range(world), num_shards=num_shards, epoch=0).assignments()
    return training(rank, path, name, precision, assignments, cross_joins(assignments))


def training(
    rank: int,
    path: Path,
    name: str,
    precision: Precision,
    assignments: Sequence[Assignment],
    joins: tuple[Join, ...],
    make_step: type[TrainingStep] = TrainingStep,
) -> Run:
    """The same by any assignments of the shards to the workers, and any joins of what these leave in their slots."""
    settle_memory()
    world, workload = len(assignments), WORKLOADS[name]
    model, _ = model_of(workload)
    flat, recipe = FlatParameters(model.parameters()), recipe_of(model)
    samples = Table(*batch_of(replace(workload, batch=workload.batch * world * BATCHES)))
    segment = joined(
        path,
        Shape(
            num_parameters=flat.size,
            num_states=len(recipe.rule.state_names),
            num_shards=sum(len(assignment.shards) for assignment in assignments),
            num_seats=world,
            num_slots=sum(assignment.num_slots for assignment in assignments),
        ),
        rank,
        first_weights=flat.weights,
    )
    control = segment.control
    barrier, clock = Barrier(control, rank, members=range(world), epoch=0), PhaseClock(control, rank)
    step = make_step(
        recipe,
        flat,
        segment=segment,
        first_slot=first_slots(assignments)[rank],
        assignment=assignments[rank],
        update=RangeUpdate(
            recipe,
            segment,
            place=rank,
            num_members=world,
            reduce=JoinedReduce(segment, joins, place=rank, num_members=world),
            spans=spans_of(recipe.rule, [parameter.shape for parameter in flat.parameters]),
            barrier=barrier,
            clock=clock,
        ),
        barrier=barrier,
        clock=clock,
        samples=samples,
        sampler=Sampler(len(samples), workload.batch * world, seed=SEED),
        seed=SEED,
    )

    def one() -> float:
        with autocast(precision), np.errstate(all="ignore"):
            step(control.committed)
        return float(control.shard_losses[assignments[rank].shards.start])

    run = timed(one)

    def together(num_steps: int) -> list[float]:
        path.unlink(missing_ok=True)  # everyone has it mapped
        barrier.wait()
        return run(num_steps)

    return together


def recipe_of(model: Module) -> Recipe:
    """Cross-entropy, clipping by global norm and Adam, as on PyTorch's side."""
    return Recipe(
        model=model,
        objective=Objective(
            lambda model, batch: (_rows(model(Tensor(batch.inputs))), batch.targets.reshape(-1)), has_classes=True
        ),
        rule=rules.Adam(),
        learning_rate=lambda step: LEARNING_RATE,
        clip_norm=CLIP_NORM,
        on_non_finite=NonFinitePolicy.FAIL,
    )


def _rows(logits: Tensor) -> Tensor:
    return logits.reshape(-1, logits.shape[-1])


def joined(path: Path, shape: Shape, rank: int, *, first_weights: Floats | None = None) -> Segment:
    """The segment at `path`, which rank 0 creates; the weights are there when all ranks are ready."""
    if rank == 0:
        created = Segment.create(path, shape)
        if first_weights is not None:
            created.weights(0)[:] = first_weights
        created.control.last_step = NEVER
        created.control.shard_counts[:] = 1.0
        created.close()
    return attached(path, shape)


def attached(path: Path, shape: Shape) -> Segment:
    """The segment that rank 0 creates at `path`, when it is there."""
    while True:
        try:
            return Segment.attach(path, shape)
        except (FileNotFoundError, SegmentError):  # not there, or not whole
            time.sleep(0.01)
