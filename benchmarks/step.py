"""One optimizer step, end to end, against PyTorch DDP: data, forward, backward, all-reduce, clip, Adam.

    python -m benchmarks.step [--workers 2] [--rounds 10] [--steps 50]

The MLP 784-512-256-10 at a batch of 128 a worker. Both sides: one process and one thread a worker, batches gathered
from memory by a fresh permutation, cross-entropy, clipping by global norm, Adam; DDP over gloo with
Adam(fused=True). Ours is the worker's own code as it runs under Ray, which has no part in a step.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.teams import Run, Team, free_port, interleave, segment_path, table

if TYPE_CHECKING:
    from worker.replica import Replica

FEATURES, HIDDEN, CLASSES = 784, (512, 256), 10
BATCH_A_WORKER, SAMPLES, CLIP_NORM = 128, 12_800, 1.0


def ours(rank: int, world: int, segment: Path, shards: int) -> Run:
    """This project's worker."""
    from worker.plan import even_plan
    from worker.process import keep_freed_memory
    from worker.reduce.segment import RING_STEPS, Segment
    from worker.replica import Replica
    from worker.spec import parse_spec

    keep_freed_memory()
    document = {
        "model": {"mlp": {"hidden": list(HIDDEN)}},
        "data": {"synthetic": {"samples": SAMPLES, "features": FEATURES, "outputs": CLASSES}},
        "optimizer": {"adam": {}},
        "training": {"global_batch_size": BATCH_A_WORKER * world, "shards": shards, "clip_norm": CLIP_NORM},
    }
    replica = Replica.load(parse_spec(document), capacity=world)
    if rank == 0:
        replica.create_segment(segment, "/nonexistent")
    join_when_there(replica, segment, rank)
    control = Segment.attach(segment, replica.facts.shape).control
    plan = even_plan(range(world), num_shards=shards, epoch=control.epoch)

    def run(num_steps: int) -> list[float]:
        segment.unlink(missing_ok=True)  # everyone has it mapped
        first = control.committed
        replica.run(first + num_steps, plan)
        return [float(control.ring[step % RING_STEPS][4]) for step in range(first + 1, first + num_steps + 1)]

    return run


def join_when_there(replica: Replica, segment: Path, rank: int) -> None:
    """Joins as soon as rank 0 has created the segment."""
    from worker.reduce.segment import SegmentError

    while True:
        try:
            return replica.join(segment, rank)
        except (FileNotFoundError, SegmentError):
            time.sleep(0.01)


def ddp(rank: int, world: int, port: int) -> Run:
    """PyTorch DistributedDataParallel over gloo."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    widths = (FEATURES, *HIDDEN, CLASSES)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = DistributedDataParallel(nn.Sequential(*layers[:-1]))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    inputs, targets = torch.randn(SAMPLES, FEATURES), torch.randint(CLASSES, (SAMPLES,))
    order = torch.randperm(SAMPLES)

    def step(number: int) -> None:
        start = (number * world + rank) * BATCH_A_WORKER % (SAMPLES - BATCH_A_WORKER)
        batch = order[start : start + BATCH_A_WORKER]
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs[batch]), targets[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    def run(num_steps: int) -> list[float]:
        torch.distributed.barrier()
        seconds = []
        for number in range(num_steps):
            started = time.perf_counter()
            step(number)
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50, help="steps of each side in a round")
    options = parser.parse_args()
    workers = options.workers

    reference = f"PyTorch DDP, gloo, {workers} x 1 thread"
    with segment_path() as few, segment_path() as many:
        teams = {
            reference: Team(ddp, workers, free_port()),
            f"backpropd, {workers} workers, {workers} shards": Team(ours, workers, few, workers),
            f"backpropd, {workers} workers, 8 shards": Team(ours, workers, many, 8),
        }
        print(f"MLP {FEATURES}-{'-'.join(map(str, HIDDEN))}-{CLASSES}, batch {BATCH_A_WORKER} a worker")
        print(table(interleave(teams, rounds=options.rounds, steps=options.steps), reference=reference))


if __name__ == "__main__":
    main()
