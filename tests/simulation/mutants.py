"""Known bugs, planted one at a time in the product's source: a simulation that misses one proves nothing.

`python -m tests.simulation.mutants` prints, for each, the first seed that finds it, and what that seed says.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from tests.simulation.scenario import Outcome, simulate
from tests.simulation.weave import Mutation
from tests.simulation.world import product

MAX_SEEDS = 1000  # in which each must be found

MUTANTS: Mapping[str, Mutation] = {
    "a wait does not watch the epoch": Mutation(
        "worker.reduce.barrier", "if self._control.epoch != self._epoch:", "if False:"
    ),
    "a plan's barriers count on from the one before": Mutation(
        "worker.reduce.barrier", "max(self._arrivals[self._mine], epoch << 32)", "self._arrivals[self._mine]"
    ),
    "a barrier lets pass before all have come": Mutation(
        "worker.reduce.barrier", "while self._arrivals[other] < self._count:", "while self._arrivals[other] == 0:"
    ),
    "partial sums are added from left to right": Mutation(
        "worker.reduce.tree",
        "return parts[0].joins",
        "return tuple(Join(0, first + slot) for first, one in zip(first_slots(assignments), assignments) "
        "for slot in range(len(one.partials)) if first + slot)",
    ),
    "a range of the sum is left out": Mutation(
        "worker.reduce.exchange",
        "self._first, self._last = segment.shape.range_of(place, len(assignments))",
        "self._first, self._last = segment.shape.range_of(0, len(assignments))",
    ),
    "commit comes before the last barrier": Mutation(
        "worker.update",
        '        self._wait()\n        self._clock.enter("commit")\n        self._control.commit(step + 1)\n',
        '        self._clock.enter("commit")\n        self._control.commit(step + 1)\n        self._wait()\n',
    ),
    "the norm is taken before all squares are there": Mutation(
        "worker.update", '        self._wait()\n        self._clock.enter("norm")', '        self._clock.enter("norm")'
    ),
    "the next weights are written over the present ones": Mutation(
        "worker.reduce.segment", "return self._buffers[step % 2][0]", "return self._buffers[0][0]"
    ),
    "each member decides alone whether to stop": Mutation(
        "worker.update", "return step + 1 < self._control.last_step", "return not self._control.stop_requested"
    ),
    "a step is redone from where the worker thinks it was": Mutation(
        "worker.replica",
        "committed = control.committed\n                step = ",
        "committed = self._at = max(control.committed, getattr(self, '_at', 0) + 1)\n                step = ",
    ),
    "a restored job has no momentum": Mutation(
        "worker.replica", "vector[:] = saved.optimizer[name]", "vector[:] = 0"
    ),
    "a store that does not answer is the end": Mutation(
        "service.resumption", "if pause is None or not isinstance(error.cause, StoreUnreachableError):", "if True:"
    ),
    "nobody waits until the killed are dead": Mutation(
        "service.seats", "await asyncio.wait({self.end})", "await asyncio.sleep(0)"
    ),
    "the others are not called back from a lost one": Mutation(
        "service.worker_group", "        self._abandon()\n        if error is not None", "        if error is not None"
    ),
    "a loss is forgotten": Mutation(
        "service.membership", "missing = on_their_way - len(team.starting[:on_their_way])", "missing = 0"
    ),
    "an evaluation with a lost member counts": Mutation(
        "service.worker_group", "return scores if len(scores) == len(self._plan.members) else None", "return scores"
    ),
    "nobody hangs": Mutation("service.vigil", "if silence > deadline:", "if False:"),
    "no start hangs": Mutation(
        "service.worker_group", "async with asyncio.timeout(START_SECONDS):", "async with asyncio.timeout(None):"
    ),
    "whoever waits for another hangs": Mutation(
        "service.vigil", "if somebody_lags and pulse.arrivals == furthest:", "if False:"
    ),
    "a checkpoint is written from live memory": Mutation(
        "service.checkpoint_writer", "weights, *states = self._copies", "weights, *states = vectors"
    ),
    "a checkpoint's memory is taken before it is written": Mutation(
        "service.checkpoint_writer",
        "        await self.wait()\n        if self._reserving",
        "        if self._reserving",
    ),
    "who is sent away is forgotten before it is dead": Mutation(
        "service.worker_group",
        "await asyncio.gather(*map(self._dismiss, seats))",
        "await asyncio.gather(*(self._workers.pop(seat).dismiss() for seat in seats))",
    ),
    "a run's end can be broken off": Mutation(
        "service.coordinator",
        "        await self._group.end()  # the cancellation may have come in the midst of it\n",
        "",
    ),
    "workers are started again before their pause is over, or never": Mutation(
        "service.coordinator", "        self._pause_of_starts = None\n        self._group", "        self._group"
    ),
}  # fmt: skip


def find(name: str, *, max_seeds: int = MAX_SEEDS) -> Outcome | None:
    """The outcome of the first seed that finds a mutant; None where none does."""
    modules = product((MUTANTS[name],))
    outcomes = (simulate(seed, modules) for seed in range(max_seeds))
    return next((outcome for outcome in outcomes if outcome.violation), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=MAX_SEEDS, help="give up after so many")
    options = parser.parse_args()
    for name in MUTANTS:
        found = find(name, max_seeds=options.seeds)
        told = "NOT FOUND" if found is None else f"seed {found.seed:3}: {found.violation[:90]}"
        print(f"{name:64} {told}", flush=True)


if __name__ == "__main__":
    main()
