"""A training step of several workers, end to end, against PyTorch DDP: data, forward, backward, all-reduce, clip, Adam.

    python -m benchmarks.step [--models mlp cnn gpt-small gpt-large] [--precision fp32] [--shards 2 8] [--rounds 5]

Both sides: one process and one thread a worker, batches gathered from memory by a fresh permutation, cross-entropy,
clipping by global norm, Adam; DDP over gloo with Adam(fused=True). Ours is the worker's own step over a segment as it
runs under Ray, which has no part in a step. The aims are those for two workers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.teams import Team, at_work, free_port, interleave, segment_path, table, verdict
from benchmarks.workloads import WORKLOADS

MODELS = [name for name, workload in WORKLOADS.items() if workload.ddp_targets]


def compare(
    name: str, precision: str, *, workers: int, numbers_of_shards: Sequence[int], rounds: int, seconds: float
) -> str:
    """The comparison of one model, as text."""
    from benchmarks import job, pytorch  # here, so that no side's process loads the other's libraries

    workload, reference = WORKLOADS[name], f"PyTorch DDP, gloo, {workers} x 1 thread"
    target = workload.ddp_targets.get(precision) if workers == 2 else None
    teams = {reference: Team(pytorch.ddp, workers, name, precision, free_port())}
    with ExitStack() as stack:
        for shards in numbers_of_shards:
            path = stack.enter_context(segment_path())
            teams[f"backpropd, {shards} shards"] = Team(job.side, workers, path, name, precision, shards)
        stack.enter_context(at_work(teams))
        times = interleave(teams, rounds=rounds, seconds=seconds)
    lines = [f"{workload.text} a worker, {workers} workers, {precision}", table(times, reference=reference)]
    for team in list(teams)[1:]:
        ratio = statistics.median(times[reference]) / statistics.median(times[team])
        aim = "" if target is None else f", target {target:.2f}x: {verdict(ratio >= target)}"
        lines.append(f"  {team}: {ratio:.2f}x as fast{aim}")
    return "\n".join(lines)


def main() -> None:
    """Prints the comparison, model by model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, nargs="+", default=[2, 8], help="the job's, a comparison each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each side in a round, about")
    options = parser.parse_args()
    workers = options.workers
    for name in options.models:
        batch = WORKLOADS[name].batch * workers
        for shards in options.shards:
            if shards < workers or batch % shards:
                parser.error(
                    f"--shards: got {shards}, expected at least {workers}, one a worker, and a divisor of {batch}, "
                    f"the global batch of {name}"
                )
    for name in options.models:
        text = compare(
            name,
            options.precision,
            workers=workers,
            numbers_of_shards=options.shards,
            rounds=options.rounds,
            seconds=options.seconds,
        )
        print(text, flush=True)


if __name__ == "__main__":
    main()
