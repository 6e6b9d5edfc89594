"""The price of exactness: what it costs a step that its bits depend on nobody and nothing.

    python -m benchmarks.exactness [--model gpt-small] [--rounds 10] [--seconds 4]

GPT 4x256 on two workers. Three teams of the worker's own steps take turns:

- 8 shards, digest-stable: gradients are added in the tree over the shards.
- 8 shards, plain: each worker adds the gradients of its shards up in one buffer as they come, parameter by parameter,
  and the workers' buffers are added one after another.
- 2 shards, digest-stable: one a worker, the fewest that two workers can have.

The first against the second is the price of the order, the first against the third that of shards enough for 8
workers.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import job
from benchmarks.teams import Run, Team, at_work, interleave, segment_path, table, verdict
from benchmarks.workloads import WORKLOADS
from worker.autodiff import Tensor, backward, in_parts
from worker.autodiff.precision import Precision
from worker.autodiff.tensor import Array
from worker.data.dataset import Batch
from worker.nn.flat import FlatParameters
from worker.plan import even_plan
from worker.recipe import Recipe
from worker.reduce.tree import Assignment, Compute, Join
from worker.step import MOST_AT_ONCE, TrainingStep

WORKERS, SHARDS = 2, 8
MOST_FOR_ORDER, MOST_FOR_SHARDS = 0.03, 0.10  # of a step's time


class PlainStep(TrainingStep):
    """A step that adds each parameter's gradients up as they come, as whoever does not care for the order would do.

    Its worker has one slot, and memory of its own for the gradients of a pass.
    """

    def __init__(self, recipe: Recipe, flat: FlatParameters, **rest: Any) -> None:
        super().__init__(recipe, flat, **rest)
        self._sums: dict[Tensor, Array] = dict(zip(flat.parameters, self._gradients(0).arrays, strict=True))
        memory = np.zeros((MOST_AT_ONCE, flat.size), np.float32)
        self._own = [flat.views_of(memory[0]), *(flat.views_of(memory[:n]) for n in range(2, MOST_AT_ONCE + 1))]

    def _compute(self, batch: Batch, chunk: Compute, *, loss_scale: float) -> None:
        count, shards = len(chunk.shards), slice(chunk.shards.start, chunk.shards.stop)
        is_first = shards.start == self._assignment.shards.start

        def add(parameter: Tensor, gradients: Array) -> None:
            sums = self._sums[parameter]
            for number, gradient in enumerate(gradients.reshape(count, *parameter.shape)):
                if is_first and number == 0:
                    sums[...] = gradient
                else:
                    sums += gradient

        self._clock.enter("forward")
        self._flat.bind_gradient(self._own[count - 1])
        with in_parts(count):
            loss, num_losses = self._recipe.objective.loss(self._recipe.model, batch)
            self._clock.enter("backward")
            backward(loss, np.full(loss.shape, loss_scale, np.float32), on_leaf=add)
        self._control.shard_losses[shards] = loss.data
        self._control.shard_counts[shards] = num_losses // count


def plain(rank: int, world: int, path: Path, name: str, precision: Precision, num_shards: int) -> Run:
    """`job.side` in free order."""
    assignments = [
        Assignment(stable.shards, (Compute(stable.shards, 0),), partials=(), num_slots=1)
        for stable in even_plan(range(world), num_shards=num_shards, epoch=0).assignments()
    ]
    joins = tuple(Join(0, other) for other in range(1, world))
    return job.training(rank, path, name, precision, assignments, joins, PlainStep)


def main() -> None:
    """Prints both prices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mlp", "cnn", "gpt-small", "gpt-large"], default="gpt-small")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4, help="of each team in a round, about")
    options = parser.parse_args()
    exact, free, few = f"{SHARDS} shards, digest-stable", f"{SHARDS} shards, plain", f"{WORKERS} shards, digest-stable"
    makers = {exact: (job.side, SHARDS), free: (plain, SHARDS), few: (job.side, WORKERS)}
    with ExitStack() as stack:
        teams = {
            team: Team(make, WORKERS, stack.enter_context(segment_path()), options.model, "fp32", shards)
            for team, (make, shards) in makers.items()
        }
        stack.enter_context(at_work(teams))
        times = interleave(teams, rounds=options.rounds, seconds=options.seconds)
    print(f"{WORKLOADS[options.model].text} a worker, {WORKERS} workers, fp32")
    print(table(times, reference=exact))
    for other, most, what in (
        (free, MOST_FOR_ORDER, "digest-stable against plain"),
        (few, MOST_FOR_SHARDS, f"{SHARDS} shards against {WORKERS}"),
    ):
        price = statistics.median(times[exact]) / statistics.median(times[other]) - 1
        print(f"  {what}: {price:+.1%} of a step's time, at most {most:.0%}: {verdict(price <= most)}")


if __name__ == "__main__":
    main()
