"""From the workers' partial gradients to the next weights: reduce, clip, update, commit.

Each worker does it for its own range of the parameters, and so for everybody. Four vectors flow by once: what a
worker reads was last written by the others before a barrier, and what it writes nobody reads until the next one.

    barrier                           every partial sum is there
    reduce     own range           -> the sum of all shards, in place, and its squares block by block
    barrier                           every block's squares are there
    clip       the whole norm      -> one scale, the same on every worker (by value: in the update); the loss scale is
                                      taken off with it, and a step whose gradient overflowed by it is skipped
    update     own range           -> weights and optimizer state of t+1, beside those of t
    barrier                           every range of t+1 is there
    commit
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from worker.loss_scale import LossScale
from worker.optim.clip import clip_scale
from worker.recipe import Recipe, Span
from worker.reduce.barrier import Barrier
from worker.reduce.kernels import fence, reduce_range
from worker.reduce.segment import PHASES, RING_STEPS, Segment
from worker.reduce.tree import Join
from worker.spec import NonFinitePolicy

NEVER = np.iinfo(np.int64).max


class NonFiniteError(Exception):
    """The gradient of a step is NaN or infinite, and the job says that this is the end."""


class PhaseClock:
    """Adds up the seconds that a worker spends in each phase of its steps."""

    def __init__(self, seconds: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def restart(self) -> None:
        """What was done since the last lap belongs to no phase."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What was done since the last lap was `phase`."""
        now = time.perf_counter()
        self._seconds[PHASES.index(phase)] += now - self._last
        self._last = now


class RangeUpdate:
    """The second half of a step, as the worker of one rank: its range of the parameters.

    `spans` says which rule updates which part of the flat vector, see recipe.spans_of.
    """

    def __init__(
        self,
        recipe: Recipe,
        segment: Segment,
        *,
        rank: int,
        joins: tuple[Join, ...],
        spans: Sequence[Span],
        barrier: Barrier,
        clock: PhaseClock,
    ) -> None:
        self._recipe, self._segment, self._control = recipe, segment, segment.control
        self._rank, self._barrier, self._clock = rank, barrier, clock
        self._joins = np.array([(join.into, join.other) for join in joins], np.int64).reshape(-1, 2)
        self._first, self._last = segment.shape.range_of(rank)
        within = ((max(first, self._first), min(last, self._last), rule) for first, last, rule in spans)
        self._spans = [(slice(first, last), rule) for first, last, rule in within if first < last]
        self._committed_at = time.perf_counter()

    def __call__(self, step: int) -> bool:
        """Takes the job from `step` to `step` + 1 committed steps; returns whether all workers go on.

        Raises PlanChangedError when another worker was lost, NonFiniteError; nothing is committed then.
        """
        self._wait()
        reduce_range(self._segment.slots, self._joins, self._first, self._last, self._control.block_squares)
        self._clock.lap("reduce")
        self._wait()
        self._write_next(step)
        self._clock.lap("update")
        self._wait()
        self._control.commit(step + 1)
        return step + 1 < self._control.last_step

    def _wait(self) -> None:
        self._barrier.wait()
        self._clock.lap("wait")

    def _write_next(self, step: int) -> None:
        """This worker's range of the weights and optimizer state of the next step."""
        recipe, control = self._recipe, self._control
        count, loss_scale = math.fsum(control.shard_counts), control.loss_scale(step)
        divisor = count * loss_scale.scale
        norm = math.sqrt(math.fsum(control.block_squares)) / divisor  # exact sums: there is no order to agree on
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
        if self._rank == 0:
            control.set_loss_scale(step + 1, next_scale)
            self._record(step, norm, learning_rate, is_clipped=clip < 1.0, is_finite=is_finite)
            control.last_step = step + 1 if control.stop_requested else NEVER

    def _apply(self, step: int, *, learning_rate: float, scale: float) -> None:
        segment = self._segment
        for span, rule in self._spans:
            rule.update(
                segment.weights(step)[span],
                segment.gradient(0, 0)[span],
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
