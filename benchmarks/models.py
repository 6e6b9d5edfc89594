"""A full training step of each model against PyTorch eager: forward, loss, backward, clip by global norm, Adam.

    python -m benchmarks.models [--precision fp32 bf16] [--models mlp gpt-small ...] [--rounds 5] [--seconds 4]

One process and one thread a side, all on one core, in turn. Precision bf16 stands against PyTorch's autocast, whose
products run on AMX where the processor has it; ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment keeps them to
AVX512. In fp32, JAX jit and, for the MLP, HIPS autograd and MyGrad take turns too where they are installed (pip install
jax autograd mygrad). Beside the ratio of the medians stand the share of our step that is spent in matrix products and
convolutions, their GFLOP/s, those of a large product on this core, and the peak resident memory of both sides.
"""

from __future__ import annotations

import argparse
import os
import statistics

from benchmarks.teams import Team, at_work, interleave, table, verdict
from benchmarks.timing import REPORT
from benchmarks.workloads import WORKLOADS

REFERENCES = {"fp32": "PyTorch eager, fused Adam", "bf16": "PyTorch eager, autocast, fused Adam"}
OURS = "backpropd"


def compare(name: str, precision: str, *, rounds: int, seconds: float) -> str:
    """The comparison of one model, as text."""
    from benchmarks import ours, peers, pytorch  # here, so that no side's process loads the other's libraries

    workload, reference = WORKLOADS[name], REFERENCES[precision]
    teams = {reference: Team(pytorch.side, 1, name, precision), OURS: Team(ours.side, 1, name, precision)}
    if precision == "fp32":
        teams |= {peer: Team(side, 1, name) for peer, side in peers.peers_of(workload).items()}
    with at_work(teams):
        times = interleave(teams, rounds=rounds, seconds=seconds)
        reports = {name: team.run(REPORT) for name, team in teams.items()}
    ratio = statistics.median(times[reference]) / statistics.median(times[OURS])
    target = workload.targets[precision]
    _, memory, share, speed, peak = reports[OURS]
    return "\n".join(
        [
            f"{workload.text}, {precision}",
            table(times, reference=reference),
            f"  {ratio:.2f}x, target {target:.2f}x: {verdict(ratio >= target)};"
            f" {share:.0%} of our step in products at {speed:.0f} GFLOP/s ({speed / peak:.0%} of {peak:.0f});"
            f" peak memory {memory:.0f} MiB, PyTorch {reports[reference][1]:.0f} MiB",
        ]
    )


def main() -> None:
    """Prints the comparison, model by model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=REFERENCES, default=["fp32"])
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each side in a round, about")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})  # the children inherit it
    for precision in options.precision:
        for name in options.models:
            print(compare(name, precision, rounds=options.rounds, seconds=options.seconds), flush=True)


if __name__ == "__main__":
    main()
