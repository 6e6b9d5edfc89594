"""All-reduce, clip and Adam alone, against gloo all-reduce + clip + fused Adam, by number of parameters.

    python -m benchmarks.reduce [--workers 2 4] [--parameters 0.1 1 10 50] [--rounds 6]

Both sides start with a gradient a worker and end with the next weights seen by every worker. PyTorch's is what
DistributedDataParallel does: all-reduce of the average over gloo, clip_grad_norm_, Adam(fused=True), on every rank.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from benchmarks.teams import Run, Team, at_work, free_port, interleave, segment_path, table, verdict
from benchmarks.workloads import CLIP_NORM

MOST_OF_ITS_TIME = {0.1: 0.15, 1.0: 0.2, 10.0: 0.3, 50.0: 0.3}  # by millions of parameters


def ours(rank: int, world: int, path: Path, num_parameters: int) -> Run:
    """This project's reduce and update, over the node's shared memory."""
    import numpy as np

    from benchmarks.job import joined, recipe_of
    from worker.nn import Sequential
    from worker.phases import PhaseClock
    from worker.plan import even_plan
    from worker.reduce.barrier import Barrier
    from worker.reduce.exchange import NodeReduce
    from worker.reduce.segment import Shape
    from worker.update import RangeUpdate

    shape = Shape(num_parameters, num_states=2, num_shards=world, num_seats=world, num_slots=world)
    segment = joined(path, shape, rank)
    original = np.random.default_rng(rank).standard_normal(num_parameters, np.float32)
    recipe = recipe_of(Sequential())
    plan = even_plan(range(world), num_shards=world, epoch=0)
    barrier = Barrier(segment.control, rank, members=plan.members, epoch=plan.epoch)
    update = RangeUpdate(
        recipe,
        segment,
        place=rank,
        num_members=world,
        reduce=NodeReduce(segment, plan.assignments(), rank),
        spans=[(0, num_parameters, recipe.rule)],
        barrier=barrier,
        clock=PhaseClock(segment.control, rank),
    )

    def run(num_steps: int) -> list[float]:
        path.unlink(missing_ok=True)  # everyone has it mapped
        seconds = []
        for _ in range(num_steps):
            segment.gradient(rank)[:] = original  # a fresh gradient, not timed
            barrier.wait()
            started = time.perf_counter()
            update(segment.control.committed)
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def gloo(rank: int, world: int, port: int, num_parameters: int, *, host: str = "127.0.0.1") -> Run:
    """PyTorch's all-reduce over gloo, clip_grad_norm_ and fused Adam."""
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://{host}:{port}", rank=rank, world_size=world)
    weights = torch.nn.Parameter(torch.zeros(num_parameters))
    original = torch.randn(num_parameters, generator=torch.Generator().manual_seed(rank))
    gradient = original.clone()
    weights.grad = gradient
    optimizer = torch.optim.Adam([weights], fused=True)

    def run(num_steps: int) -> list[float]:
        seconds = []
        for _ in range(num_steps):
            gradient.copy_(original)
            torch.distributed.barrier()
            started = time.perf_counter()
            torch.distributed.all_reduce(gradient)
            gradient.div_(world)
            torch.nn.utils.clip_grad_norm_([weights], CLIP_NORM)
            optimizer.step()
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def compare(millions: float, *, workers: int, rounds: int, seconds: float) -> str:
    """The comparison at one size, as text."""
    reference, mine = f"gloo + clip + fused Adam, {workers} ranks", f"backpropd, {workers} workers"
    size = int(millions * 1e6)
    with segment_path() as segment:
        teams = {
            reference: Team(gloo, workers, free_port(), size),
            mine: Team(ours, workers, segment, size),
        }
        with at_work(teams):
            times = interleave(teams, rounds=rounds, seconds=seconds)
    share = statistics.median(times[mine]) / statistics.median(times[reference])
    most = MOST_OF_ITS_TIME.get(millions)
    aim = "" if most is None else f", at most {most:.2f}: {verdict(share <= most)}"
    return "\n".join(
        [
            f"{millions:g} M parameters, {workers} workers: all-reduce + clip + Adam",
            table(times, reference=reference),
            f"  {share:.3f} of its time{aim}",
        ]
    )


def main() -> None:
    """Prints the comparison, size by size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--parameters", type=float, nargs="+", default=list(MOST_OF_ITS_TIME), help="in millions")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2, help="of each side in a round, about")
    options = parser.parse_args()
    for workers in options.workers:
        for millions in options.parameters:
            text = compare(millions, workers=workers, rounds=options.rounds, seconds=options.seconds)
            print(text, flush=True)


if __name__ == "__main__":
    main()
