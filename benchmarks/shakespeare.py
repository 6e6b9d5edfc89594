"""A step of the Shakespeare example against the same recipe in PyTorch eager, on as many threads as there are workers.

    python -m benchmarks.shakespeare TEXT [--set training.precision=bf16] [--rounds 10] [--seconds 4]

Ours is the job of examples/shakespeare.yaml as its two workers run it, over a segment and without Ray, which has no
part in a step. PyTorch's is nanoGPT's recipe for a CPU: a GPT without biases and with GELU by erf, batches drawn at
random places of TEXT, clipping, and AdamW as PyTorch has it where there is no CUDA, neither fused nor foreach; beside
it the same with AdamW(fused=True). The aim is two thirds of nanoGPT's time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.job import attached
from benchmarks.teams import Run, Team, at_work, interleave, segment_path, table, verdict
from benchmarks.timing import timed
from benchmarks.workloads import CLIP_NORM, Workload
from service import jobfile
from worker.plan import even_plan
from worker.process import settle_memory
from worker.reduce.segment import RING_STEPS
from worker.replica import LegEnd, Replica
from worker.spec import parse_spec

EXAMPLE = Path(__file__).parent.parent / "examples" / "shakespeare.yaml"
WORKERS, AIM = 2, 2 / 3
SECONDS = 4  # where the segment's ring has a step's duration
NANOGPT, FUSED, OURS = "PyTorch, nanoGPT's recipe, 2 threads", "the same with fused AdamW", "backpropd, 2 workers"
SIZE = Workload("gpt", batch=12, layers=4, width=128, heads=4, time=64, vocabulary=65)


def pytorch(rank: int, world: int, text: str, is_fused: bool) -> Run:
    """Steps of nanoGPT's recipe on WORKERS threads."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from benchmarks.pytorch import torch_model

    torch.set_num_threads(WORKERS)
    torch.manual_seed(1)
    characters = Path(text).read_text()
    vocabulary = {character: number for number, character in enumerate(sorted(set(characters)))}
    tokens = torch.tensor([vocabulary[character] for character in characters])
    model = torch_model(SIZE, bias=False, approximate="none")
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=is_fused or None)

    def step() -> float:
        starts = torch.randint(len(tokens) - SIZE.time, (SIZE.batch,))
        inputs = torch.stack([tokens[start : start + SIZE.time] for start in starts])
        targets = torch.stack([tokens[start + 1 : start + 1 + SIZE.time] for start in starts])
        loss = F.cross_entropy(model(inputs).view(-1, SIZE.vocabulary), targets.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return timed(step)


def example(rank: int, world: int, path: Path, text: str, settings: Sequence[str]) -> Run:
    """Steps of the example's job, as the worker in seat `rank`."""
    settle_memory()
    settings = [f"data.text.path={Path(text).absolute()}", f"training.max_steps={RING_STEPS}", *settings]
    overrides = [jobfile.parse_override(setting) for setting in settings]
    file = jobfile.read(EXAMPLE.name, EXAMPLE.read_text(), overrides=overrides, directory=EXAMPLE.parent)
    spec = parse_spec(file.document)
    replica = Replica.load(spec, capacity=world)
    if rank == 0:
        replica.create_segment(path, "/nonexistent")
    control = attached(path, replica.facts.shape).control
    replica.join(path, rank)
    plan = even_plan(range(world), num_shards=spec.training.shards, epoch=control.epoch)

    def run(num_steps: int) -> list[float]:
        first = control.committed
        leg = replica.run(first + num_steps, plan)
        if leg.end is not LegEnd.REACHED:  # the ring would have the times of other steps
            raise RuntimeError(f"the example stopped at step {leg.step}: {leg.message}")
        steps = np.arange(first + 2, first + num_steps + 1)  # the first one's time has the pause before it
        seconds: list[float] = control.ring[steps % RING_STEPS, SECONDS].tolist()
        return seconds

    return run


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="a file to learn from, such as Tiny Shakespeare")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4, help="of each side in a round, about")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replaces one of the example's")
    options = parser.parse_args()
    with segment_path() as path:
        teams = {
            NANOGPT: Team(pytorch, 1, options.text, False),
            FUSED: Team(pytorch, 1, options.text, True),
            OURS: Team(example, WORKERS, path, options.text, options.set),
        }
        with at_work(teams):
            times = interleave(teams, rounds=options.rounds, seconds=options.seconds)
    share = statistics.median(times[OURS]) / statistics.median(times[NANOGPT])
    print(table(times, reference=NANOGPT))
    print(f"  {share:.2f} of the time, at most {AIM:.2f}: {verdict(share <= AIM)}")


if __name__ == "__main__":
    main()
