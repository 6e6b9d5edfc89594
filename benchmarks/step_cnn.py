"""One step of a small CNN on one thread, against PyTorch eager: forward, loss, backward, clip, Adam.

    python -m benchmarks.step_cnn [--batch 64] [--rounds 10] [--steps 20]

conv3x3 1-32, ReLU, conv3x3 32-64, ReLU, max_pool 2, linear, cross-entropy on images of 28x28; clipping by global norm;
Adam, PyTorch's fused. Pin it to one core (taskset) for steady numbers. GFLOP/s count the products of convolutions and
linear layers alone, over the time of the whole step.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.teams import Run, Team, interleave, table

SIZE, CHANNELS, CLASSES, CLIP_NORM = 28, (1, 32, 64), 10, 1.0
FEATURES = CHANNELS[2] * (SIZE // 2) ** 2


def flops(batch: int) -> int:
    """Floating-point operations of a step. The images themselves get no gradient."""
    pixels = batch * SIZE * SIZE
    first, second = (2 * pixels * 9 * i * o for i, o in itertools.pairwise(CHANNELS))
    return 2 * first + 3 * second + 3 * 2 * batch * FEATURES * CLASSES


def data(batch: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, 1, SIZE, SIZE), np.float32), rng.integers(0, CLASSES, batch)


def timed(step: Callable[[], None]) -> Run:
    def run(num_steps: int) -> list[float]:
        seconds = []
        for _ in range(num_steps):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def ours(rank: int, world: int, batch: int) -> Run:
    """This project's core, as a worker runs it."""
    from worker import nn, optim
    from worker.autodiff import Tensor
    from worker.autodiff import functional as F
    from worker.nn import init
    from worker.process import keep_freed_memory

    keep_freed_memory()
    generator = init.generator(0)
    model = nn.Sequential(
        nn.Conv2d(CHANNELS[0], CHANNELS[1], 3, padding=1, generator=generator),
        nn.ReLU(),
        nn.Conv2d(CHANNELS[1], CHANNELS[2], 3, padding=1, generator=generator),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(FEATURES, CLASSES, generator=generator),
    )
    optimizer = optim.Adam(model.parameters())
    inputs, targets = map(Tensor, data(batch))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optim.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return timed(step)


def pytorch(rank: int, world: int, batch: int) -> Run:
    """PyTorch eager with its faster Adam."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(CHANNELS[0], CHANNELS[1], 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(CHANNELS[1], CHANNELS[2], 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(FEATURES, CLASSES),
    )
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    inputs, targets = map(torch.from_numpy, data(batch))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return timed(step)


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="steps of each side in a round")
    options = parser.parse_args()

    reference = "PyTorch eager, Adam(fused=True)"
    teams = {reference: Team(pytorch, 1, options.batch), "backpropd": Team(ours, 1, options.batch)}
    seconds = interleave(teams, rounds=options.rounds, steps=options.steps)
    print(f"CNN {'-'.join(map(str, CHANNELS))} of 3x3, {SIZE}x{SIZE}, batch {options.batch}, 1 thread")
    print(table(seconds, reference=reference))
    for name, times in seconds.items():
        print(f"  {name:38} {flops(options.batch) / statistics.median(times) / 1e9:10.1f} GFLOP/s")


if __name__ == "__main__":
    main()
