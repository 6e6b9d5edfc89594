"""All-reduce, clip and Adam alone, against gloo all-reduce + clip + fused Adam, by number of parameters.

    python -m benchmarks.reduce [--workers 2] [--parameters 0.1 1 10 50] [--rounds 6]

Both sides start with a gradient a worker and end with the next weights seen by every worker. PyTorch's is what
DistributedDataParallel does: all-reduce of the average over gloo, clip_grad_norm_, Adam(fused=True), on every rank.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.teams import Run, Team, free_port, interleave, segment_path, table

if TYPE_CHECKING:
    from worker.recipe import Recipe

CLIP_NORM = 1.0


def recipe() -> Recipe:
    """Adam with clipping, and no model."""
    from worker.autodiff import Tensor
    from worker.nn import Sequential
    from worker.objective import Objective
    from worker.optim import rules
    from worker.recipe import Recipe
    from worker.spec import NonFinitePolicy

    return Recipe(
        model=Sequential(),
        objective=Objective(lambda model, batch: (Tensor(batch.inputs), batch.targets), has_classes=False),
        rule=rules.Adam(),
        learning_rate=lambda step: 1e-3,
        clip_norm=CLIP_NORM,
        on_non_finite=NonFinitePolicy.FAIL,
    )


def ours(rank: int, world: int, path: Path, num_parameters: int) -> Run:
    """This project's reduce and update, over the node's shared memory."""
    import numpy as np

    from worker.phases import PhaseClock
    from worker.plan import even_plan
    from worker.reduce.barrier import Barrier
    from worker.reduce.exchange import NodeReduce
    from worker.reduce.segment import Segment, SegmentError, Shape
    from worker.update import NEVER, RangeUpdate

    shape = Shape(num_parameters, num_states=2, num_shards=world, num_seats=world, num_slots=world)
    if rank == 0:
        created = Segment.create(path, shape)
        created.control.last_step = NEVER
        created.control.shard_counts[:] = 1.0
    while True:
        try:
            segment = Segment.attach(path, shape)
            break
        except (FileNotFoundError, SegmentError):
            time.sleep(0.01)
    segment.gradient(rank)[:] = np.random.default_rng(rank).standard_normal(num_parameters, np.float32)
    job = recipe()
    plan = even_plan(range(world), num_shards=world, epoch=0)
    barrier = Barrier(segment.control, rank, members=plan.members, epoch=plan.epoch)
    update = RangeUpdate(
        job,
        segment,
        place=rank,
        num_members=world,
        reduce=NodeReduce(segment, plan.assignments(), rank),
        spans=[(0, num_parameters, job.rule)],
        barrier=barrier,
        clock=PhaseClock(segment.control, rank),
    )
    original = segment.gradient(rank).copy()

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


def main() -> None:
    """Prints the comparison, size by size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parameters", type=float, nargs="+", default=[0.1, 1, 10, 50], help="in millions")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    workers = options.workers
    for millions in options.parameters:
        size = int(millions * 1e6)
        steps = max(5, min(200, int(40 / millions)))
        reference = f"gloo + clip + fused Adam, {workers} ranks"
        print(f"{millions:g} M parameters: all-reduce + clip + Adam")
        with segment_path() as segment:
            teams = {
                reference: Team(gloo, workers, free_port(), size),
                f"backpropd, {workers} workers": Team(ours, workers, segment, size),
            }
            print(table(interleave(teams, rounds=options.rounds, steps=steps), reference=reference), flush=True)


if __name__ == "__main__":
    main()
