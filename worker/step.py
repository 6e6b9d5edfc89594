"""One training step on one worker, readable from top to bottom.

A batch flows forward, its gradient flows back and is added up in the canonical order; then the update takes the
weights from step t to step t+1. No Ray call, no allocation of vectors, and nothing whose order or shape depends on
the number of workers: a shard is computed in the same way wherever it runs.
"""

from __future__ import annotations

import numpy as np

from worker.autodiff import philox
from worker.data.dataset import Batch, Samples
from worker.data.sampler import Sampler
from worker.nn.flat import FlatParameters
from worker.phases import PhaseClock
from worker.recipe import Recipe
from worker.reduce.barrier import Barrier
from worker.reduce.kernels import add_into
from worker.reduce.segment import Segment
from worker.reduce.tree import Assignment, Compute, Join
from worker.update import RangeUpdate


class TrainingStep:
    """Advances a job by one step, as one member of a plan. Every member must call it with the same step."""

    def __init__(
        self,
        recipe: Recipe,
        flat: FlatParameters,
        *,
        segment: Segment,
        first_slot: int,
        assignment: Assignment,
        update: RangeUpdate,
        barrier: Barrier,
        clock: PhaseClock,
        samples: Samples,
        sampler: Sampler,
        seed: int,
    ) -> None:
        self._recipe, self._flat, self._control = recipe, flat, segment.control
        self._assignment, self._update, self._clock, self._barrier = assignment, update, clock, barrier
        self._samples, self._sampler, self._seed = samples, sampler, seed
        self._num_shards = segment.shape.num_shards
        self._weights = [flat.views_of(segment.weights(parity)) for parity in (0, 1)]
        self._slots = [flat.views_of(segment.gradient(first_slot + slot)) for slot in range(assignment.num_slots)]

    def __call__(self, step: int) -> bool:
        """Takes the job from `step` to `step` + 1 committed steps; returns whether all workers go on.

        Raises PlanChangedError when another worker was lost, NonFiniteError; nothing is committed then.
        """
        self._clock.enter("data")
        self._clock.work_on(step)
        self._flat.bind_weights(self._weights[step % 2])
        batch = self._sampler.batch(step)
        loss_scale = self._control.loss_scale(step).scale
        shard_size = len(batch) // self._num_shards
        for action in self._assignment.actions:
            self._barrier.check()
            match action:
                case Compute(shard, slot):
                    self._clock.enter("data")
                    self._clock.work_on(step, shard)
                    part = self._samples.take(batch[shard * shard_size : (shard + 1) * shard_size])
                    philox.seed(self._seed, step, shard)
                    self._compute(part, shard=shard, slot=slot, loss_scale=loss_scale)
                case Join(into, other):
                    self._clock.enter("reduce")
                    add_into(self._slots[into].vector, self._slots[other].vector)
        self._clock.work_on(step)
        return self._update(step)

    def _compute(self, batch: Batch, *, shard: int, slot: int, loss_scale: float) -> None:
        """Forward and backward over one shard; the gradient of its scaled loss sum goes into a gradient slot."""
        self._clock.enter("forward")
        self._flat.bind_gradient(self._slots[slot])
        loss, num_losses = self._recipe.objective.loss(self._recipe.model, batch)
        self._clock.enter("backward")
        loss.backward(np.full(loss.shape, loss_scale, np.float32))
        self._flat.fill_unused()
        self._control.shard_losses[shard] = loss.item()
        self._control.shard_counts[shard] = num_losses
