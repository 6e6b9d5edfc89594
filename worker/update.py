"""From the workers' partial gradients to the next weights: reduce, clip, update, commit.

Each worker does it for its own range of the parameters, and so for everybody. Four vectors flow by once: what a
worker reads was last written by the others before a barrier, and what it writes nobody reads until the next one.

    barrier                           every partial sum is there
    reduce     own range           -> the sum of all shards, in place, and its squares block by block; over several
                                      nodes see worker.reduce.exchange
    barrier                           every block's squares are there
    clip       the whole norm      -> one scale, the same on every worker (by value: in the update); the loss scale is
                                      taken off with it, and a step whose gradient overflowed by it is skipped
    update     own range           -> weights and optimizer state of t+1, beside those of t
    barrier                           every range of t+1 is there
    commit

Why a death at any instruction does no harm. Say a step takes the job from t to t+1, and call the three barriers
above the first, second and last.

- *Nothing of t is written while it may be needed.* The step writes gradient slots, the control page's sums and the
  buffers of t+1; the state t stays as it is. The buffers of t are overwritten by the step after, behind its second
  barrier, and by then t+1 is committed: each member commits before it comes to the next step's first barrier.
- *Committed means complete.* A member commits behind the last barrier, and that holds only when every member has
  written its whole range of t+1. So `Control.committed` is t or t+1, and whichever it says is all there. Members that
  die before, between or after their commit instructions change nothing: one such instruction is as good as all.
- *Nobody is lost behind.* When a member dies, the coordinator abandons the plan, and each survivor ends the step in
  one of two ways: it committed t+1, or it gave up. They need not agree, for one may have looked at the epoch before
  the last member came to the last barrier, and another after. Then it is t+1: the one that gave up had written its
  range before it came there. One that committed may have begun the next step; it cannot pass that one's first barrier.
- *The dead write nothing more.* The next plan is opened when every survivor has come back and every lost process is
  known to be gone, a stopped one killed. Only then is `committed` read, and slots and ranges change hands.

So at most one step is redone: none if `committed` moved, and then from whole state; the one under way if it did not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from worker.loss_scale import LossScale
from worker.optim.clip import clip_scale
from worker.phases import PhaseClock
from worker.recipe import Recipe, Span
from worker.reduce.barrier import Barrier
from worker.reduce.exchange import Reduce
from worker.reduce.kernels import fence
from worker.reduce.segment import RING_STEPS, Segment
from worker.spec import NonFinitePolicy

NEVER = np.iinfo(np.int64).max


class NonFiniteError(Exception):
    """The gradient of a step is NaN or infinite, and the job says that this is the end."""


class RangeUpdate:
    """The second half of a step, as the member in one place among those of its node: its range of the parameters.

    `spans` says which rule updates which part of the flat vector, see recipe.spans_of.
    """

    def __init__(
        self,
        recipe: Recipe,
        segment: Segment,
        *,
        place: int,
        num_members: int,
        reduce: Reduce,
        spans: Sequence[Span],
        barrier: Barrier,
        clock: PhaseClock,
    ) -> None:
        self._recipe, self._segment, self._control = recipe, segment, segment.control
        self._is_first, self._barrier, self._clock = place == 0, barrier, clock
        self._reduce, self._stops = reduce, False
        self._first, self._last = segment.shape.range_of(place, num_members)
        within = ((max(first, self._first), min(last, self._last), rule) for first, last, rule in spans)
        self._spans = [(slice(first, last), rule) for first, last, rule in within if first < last]
        self._committed_at = time.perf_counter()

    def __call__(self, step: int) -> bool:
        """Takes the job from `step` to `step` + 1 committed steps; returns whether all workers go on.

        Raises PlanChangedError when another worker was lost, NonFiniteError; nothing is committed then.
        """
        self._wait()
        self._clock.enter("reduce")
        self._stops = self._reduce(step)
        self._wait()
        self._clock.enter("norm")
        self._write_next(step)
        self._wait()
        self._clock.enter("commit")
        self._control.commit(step + 1)
        return step + 1 < self._control.last_step

    def _wait(self) -> None:
        self._clock.enter("wait")
        self._barrier.wait()

    def _write_next(self, step: int) -> None:
        """This worker's range of the weights and optimizer state of the next step."""
        recipe, control = self._recipe, self._control
        count, loss_scale = math.fsum(control.shard_counts), control.loss_scale(step)
        divisor = count * loss_scale.scale
        norm = math.sqrt(math.fsum(control.block_squares)) / divisor  # exact sums: there is no order to agree on
        self._clock.enter("update")
        learning_rate = recipe.learning_rate(step)
        is_finite = math.isfinite(norm)
        clip = 1.0
        if is_finite:
            if recipe.clip_norm is not None:
                clip = clip_scale(norm * norm, recipe.clip_norm)
            self._apply(step, learning_rate=learning_rate, scale=clip / divisor)
            next_scale = loss_scale.after_finite() if recipe.scales_loss else loss_scale
        elif (smaller := loss_scale.after_overflow()) or recipe.on_non_finite is NonFinitePolicy.SKIP:
            self._carry_over(step)
            next_scale = smaller or LossScale(loss_scale.scale)
        else:
            raise NonFiniteError(self._non_finite_message(step, norm))
        if self._is_first:
            control.set_loss_scale(step + 1, next_scale)
            self._record(step, norm, learning_rate, is_clipped=clip < 1.0, is_finite=is_finite)
            control.last_step = step + 1 if self._stops else NEVER

    def _apply(self, step: int, *, learning_rate: float, scale: float) -> None:
        segment = self._segment
        for span, rule in self._spans:
            rule.update(
                segment.weights(step)[span],
                segment.gradient(0)[span],
                [vector[span] for vector in segment.state(step)],
                segment.weights(step + 1)[span],
                [vector[span] for vector in segment.state(step + 1)],
                step=step + 1,
                learning_rate=learning_rate,
                scale=scale,
                limit=self._recipe.clip_value,
            )

    def _carry_over(self, step: int) -> None:
        """A skipped step: the next weights and state are those of this one."""
        segment, mine = self._segment, slice(self._first, self._last)
        segment.weights(step + 1)[mine] = segment.weights(step)[mine]
        for vector, next_vector in zip(segment.state(step), segment.state(step + 1), strict=True):
            next_vector[mine] = vector[mine]

    def _record(self, step: int, norm: float, learning_rate: float, *, is_clipped: bool, is_finite: bool) -> None:
        """Tells the coordinator about the step; the step's number comes last and makes the record valid."""
        control = self._control
        now = time.perf_counter()
        loss = sum(control.shard_losses.tolist()) / math.fsum(control.shard_counts)
        record = control.ring[(step + 1) % RING_STEPS]
        record[1:7] = loss, norm, learning_rate, now - self._committed_at, is_clipped, not is_finite
        fence()
        record[0] = step + 1
        self._committed_at = now

    def _non_finite_message(self, step: int, norm: float) -> str:
        losses = self._control.shard_losses
        shards = [str(shard) for shard, loss in enumerate(losses) if not math.isfinite(loss)]
        where = f"the loss of shard {', '.join(shards)} is not finite" if shards else "every shard's loss is finite"
        scaled = " at the smallest loss scale" if self._recipe.scales_loss else ""
        return (
            f"step {step + 1}: the gradient's norm is {norm}{scaled} ({where}); lower the learning rate, set "
            "training.clip_norm, or set training.on_non_finite to skip"
        )
