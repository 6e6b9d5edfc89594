"""One training step on one worker, readable from top to bottom.

A batch flows forward, its gradient flows back and is added up in the canonical order; then the update takes the
weights from step t to step t+1. No Ray call, no allocation of vectors, and nothing whose bits depend on the number of
workers: a shard's gradient is summed in the same shapes and order wherever it is computed. Several shards may share a
pass, as parts of one batch (see autodiff.parts): that is faster, and gives the same bits.
"""

from __future__ import annotations

import functools

import numpy as np

from worker.autodiff import in_parts, philox
from worker.data.dataset import Batch, Samples
from worker.data.sampler import Sampler
from worker.nn.flat import FlatParameters, Views
from worker.phases import PhaseClock
from worker.recipe import Recipe
from worker.reduce.barrier import Barrier
from worker.reduce.kernels import add_into
from worker.reduce.segment import Segment
from worker.reduce.tree import Assignment, Compute, Join
from worker.update import RangeUpdate

MOST_AT_ONCE = 4  # shards in a pass: what it gains is nearly all there, and memory for a whole batch is not needed


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
        self._at_once = 1

        @functools.cache
        def gradients(slot: int, count: int = 1) -> Views:
            """Of a slot of this worker's, or of several from it on."""
            first = first_slot + slot
            vectors = segment.gradient(first) if count == 1 else segment.gradients(range(first, first + count))
            return flat.views_of(vectors)

        self._gradients = gradients

    def __call__(self, step: int) -> bool:
        """Takes the job from `step` to `step` + 1 committed steps; returns whether all workers go on.

        The first time it goes shard by shard: if a worker was lost in this step before, and now this one is, it will
        be known of which shard. Raises PlanChangedError when another worker was lost, NonFiniteError; nothing is
        committed then.
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
                case Compute():
                    for chunk in action.passes(self._at_once):
                        self._clock.enter("data")
                        self._clock.work_on(step, chunk.shards)
                        first, last = chunk.shards.start, chunk.shards.stop
                        part = self._samples.take(batch[first * shard_size : last * shard_size])
                        philox.seed_parts([(self._seed, step, shard) for shard in chunk.shards])
                        self._compute(part, chunk, loss_scale=loss_scale)
                case Join(into, other):
                    self._clock.enter("reduce")
                    add_into(self._gradients(into).vector, self._gradients(other).vector)
        self._clock.work_on(step)
        self._at_once = MOST_AT_ONCE if self._recipe.knows_parts else 1
        return self._update(step)

    def _compute(self, batch: Batch, chunk: Compute, *, loss_scale: float) -> None:
        """One pass, forward and backward: the gradient of each shard's scaled loss sum goes into its slot."""
        count, shards = len(chunk.shards), slice(chunk.shards.start, chunk.shards.stop)
        self._clock.enter("forward")
        self._flat.bind_gradient(self._gradients(chunk.slot, count))
        with in_parts(count):
            loss, num_losses = self._recipe.objective.loss(self._recipe.model, batch)
            self._clock.enter("backward")
            self._barrier.check()
            loss.backward(np.full(loss.shape, loss_scale, np.float32))
        self._flat.fill_unused()
        self._control.shard_losses[shards] = loss.data
        self._control.shard_counts[shards] = num_losses // count
