"""A full training step of each model against PyTorch eager: forward, loss, backward, clip by global norm, Adam.

    python -m benchmarks.models [--models mlp gpt-small ...] [--rounds 5] [--seconds 4]

One process and one thread a side, both on one core, in turn. PyTorch's side is its stronger form: one projection for
query, key and value, scaled_dot_product_attention, Adam(fused=True); BERT's logits at every position, as in Hugging
Face's model. Beside the ratio of the medians stand the share of our step that is spent in matrix products, their
GFLOP/s, those of a large product on this core, and the peak resident memory of both sides.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.teams import Run, Team, table

CLIP_NORM, LEARNING_RATE = 1.0, 1e-3
MASKED = 0.15  # share of the positions whose tokens BERT predicts
REPORT = -1  # a number of steps that asks for a report instead: see `timed`


@dataclass(frozen=True)
class Workload:
    """A model's size; `target` is the speed against PyTorch that is aimed at."""

    kind: str
    target: float
    batch: int
    layers: int = 0
    width: int = 0
    heads: int = 0
    time: int = 0
    vocabulary: int = 0
    only_masked: bool = False  # ours computes logits where they are needed

    @property
    def text(self) -> str:
        if self.kind == "mlp":
            return f"MLP 784-512-256-10, batch {self.batch}"
        size = f"{self.layers} layers, width {self.width}, {self.heads} heads, T {self.time}, V {self.vocabulary}"
        head = ", our logits at the masked positions only" if self.only_masked else ""
        return f"{self.kind.upper()} {size}, batch {self.batch}{head}"


SMALL: Mapping[str, Any] = {"batch": 8, "layers": 4, "width": 256, "heads": 4, "time": 128, "vocabulary": 256}
LARGE: Mapping[str, Any] = {"batch": 4, "layers": 6, "width": 384, "heads": 6, "time": 256, "vocabulary": 8192}

WORKLOADS = {
    "mlp": Workload("mlp", 1.25, batch=128),
    "gpt-small": Workload("gpt", 1.2, **SMALL),
    "gpt-large": Workload("gpt", 1.25, **LARGE),
    "bert-small": Workload("bert", 1.15, **SMALL),
    "bert-large": Workload("bert", 1.15, **LARGE),
    "bert-large-masked": Workload("bert", 1.4, **LARGE, only_masked=True),
}


def batch_of(workload: Workload) -> tuple[Any, Any]:
    """Inputs and targets as arrays, the same on both sides."""
    import numpy as np

    rng = np.random.default_rng(1)
    if workload.kind == "mlp":
        return rng.standard_normal((workload.batch, 784), np.float32), rng.integers(0, 10, workload.batch)
    shape = (workload.batch, workload.time)
    inputs, targets = rng.integers(0, workload.vocabulary, shape), rng.integers(0, workload.vocabulary, shape)
    if workload.kind == "bert":
        targets[rng.random(shape) >= MASKED] = -100
    return inputs, targets


def ours(rank: int, world: int, name: str) -> Run:
    """This project's autodiff core."""
    import numpy as np

    from worker.autodiff import Tensor, kernels
    from worker.autodiff import functional as F
    from worker.models.bert import Bert, MaskedLanguageModel
    from worker.models.gpt import Gpt
    from worker.models.mlp import Mlp
    from worker.nn import FlatParameters, Module, init
    from worker.optim import clip_scale, rules
    from worker.process import keep_freed_memory

    keep_freed_memory()
    workload, generator = WORKLOADS[name], init.generator(1)
    inputs, targets = map(Tensor, batch_of(workload))
    size: dict[str, Any] = {
        "layers": workload.layers,
        "heads": workload.heads,
        "width": workload.width,
        "context": workload.time,
        "generator": generator,
    }
    model: Module
    loss: Callable[[], Tensor]
    match workload.kind:
        case "mlp":
            model = mlp = Mlp(784, (512, 256), 10, generator=generator)
            loss = lambda: F.cross_entropy(mlp(inputs), targets)  # noqa: E731
        case "gpt":
            model = gpt = Gpt(workload.vocabulary, **size)
            loss = lambda: gpt.loss(inputs, targets)  # noqa: E731
        case _:
            model = bert = MaskedLanguageModel(Bert(workload.vocabulary, **size), generator=generator)
            rows = targets.reshape(-1)
            if workload.only_masked:
                loss = lambda: bert.loss(inputs, targets)  # noqa: E731
            else:
                loss = lambda: F.cross_entropy(bert(inputs).reshape(-1, workload.vocabulary), rows)  # noqa: E731

    flat, rule = FlatParameters(model.parameters()), rules.Adam()
    state = tuple(np.zeros(flat.size, np.float32) for _ in rule.state_names)
    gradient, num_steps = flat.views_of(flat.gradient), 0

    def step() -> float:
        nonlocal num_steps
        num_steps += 1
        flat.bind_gradient(gradient)
        value = loss()
        value.backward()
        flat.fill_unused()
        scale = clip_scale(float(kernels.block_square_sums(flat.gradient).sum()), CLIP_NORM)
        rule.update(
            flat.weights,
            flat.gradient,
            state,
            flat.weights,
            state,
            step=num_steps,
            learning_rate=LEARNING_RATE,
            scale=scale,
        )
        return float(value.item())

    def report() -> list[float]:
        """Share of a step in matrix products, their GFLOP/s, those of a large product, peak memory in MiB, loss."""
        counts = Products(np.matmul)
        np.matmul = counts  # type: ignore[assignment]  # the one door to BLAS, timed for a few steps
        seconds, losses = [], []
        for _ in range(3):
            started = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - started)
        np.matmul = counts.matmul
        return [
            counts.seconds / sum(seconds),
            counts.operations / counts.seconds / 1e9,
            measured_peak(),
            peak_memory(),
            losses[-1],
        ]

    return timed(step, report)


def pytorch(rank: int, world: int, name: str) -> Run:
    """PyTorch eager with fused Adam."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(1)
    workload = WORKLOADS[name]
    inputs, targets = (torch.from_numpy(array) for array in batch_of(workload))
    model = torch_model(workload)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return float(loss.item())

    return timed(step, lambda: [0.0, 0.0, 0.0, peak_memory(), step()])


def torch_model(workload: Workload) -> Any:
    """The same model as PyTorch users write it when they want it fast."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    width, heads, is_gpt = workload.width, workload.heads, workload.kind == "gpt"
    epsilon = 1e-5 if is_gpt else 1e-12

    class Block(nn.Module):  # type: ignore[misc]  # torch is not seen by mypy
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
            self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def attend(self, x: Any) -> Any:
            batch, time, _ = x.shape
            q, k, v = (
                part.view(batch, time, heads, width // heads).transpose(1, 2) for part in self.qkv(x).split(width, 2)
            )
            out = F.scaled_dot_product_attention(q, k, v, is_causal=is_gpt)
            return self.projection(out.transpose(1, 2).reshape(batch, time, width))

        def forward(self, x: Any) -> Any:
            if is_gpt:
                x = x + self.attend(self.norm1(x))
                return x + self.linear2(F.gelu(self.linear1(self.norm2(x)), approximate="tanh"))
            x = self.norm1(x + self.attend(x))
            return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))

    class LanguageModel(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(workload.vocabulary, width)
            self.positions = nn.Embedding(workload.time, width)
            self.blocks = nn.ModuleList(Block() for _ in range(workload.layers))
            self.norm = nn.LayerNorm(width, epsilon)
            for embedding in (self.tokens, self.positions):
                nn.init.normal_(embedding.weight, std=0.02)
            if not is_gpt:
                self.types, self.transform = nn.Embedding(2, width), nn.Linear(width, width)
                self.head_norm = nn.LayerNorm(width, epsilon)
                self.bias = nn.Parameter(torch.zeros(workload.vocabulary))
            self.register_buffer("time", torch.arange(workload.time))
            self.register_buffer("first_type", torch.zeros(1, dtype=torch.int64))

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions(self.time)
            if not is_gpt:
                x = self.norm(x + self.types(self.first_type))
            for block in self.blocks:
                x = block(x)
            if is_gpt:
                return F.linear(self.norm(x), self.tokens.weight)
            return F.linear(self.head_norm(F.gelu(self.transform(x))), self.tokens.weight, self.bias)

    if workload.kind == "mlp":
        return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
    return LanguageModel()


class Products:
    """np.matmul, counting the operations and the time of matrix products."""

    def __init__(self, matmul: Any) -> None:
        self.matmul, self.seconds, self.operations = matmul, 0.0, 0.0

    def __call__(self, a: Any, b: Any, out: Any = None) -> Any:
        started = time.perf_counter()
        result = self.matmul(a, b, out=out)
        self.seconds += time.perf_counter() - started
        self.operations += 2.0 * result.size * a.shape[-1]
        return result


def timed(step: Callable[[], float], report: Callable[[], list[float]]) -> Run:
    """Run steps and time each; asked for REPORT steps, report instead."""

    def run(num_steps: int) -> list[float]:
        if num_steps == REPORT:
            return report()
        seconds = []
        for _ in range(num_steps):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        return seconds

    return run


def measured_peak() -> float:
    """GFLOP/s of the best of many products of 1024 x 1024 matrices on this core, now."""
    import numpy as np

    a = np.random.default_rng(1).standard_normal((1024, 1024), np.float32)
    out, seconds = np.empty_like(a), []
    for _ in range(12):
        started = time.perf_counter()
        np.matmul(a, a.copy(), out=out)
        seconds.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(seconds) / 1e9


def peak_memory() -> float:
    """MiB that this process has had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(
    teams: Mapping[str, Team], *, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every step of every team, about so many in each round, in turn; and every team's report."""
    times: dict[str, list[float]] = {name: [] for name in teams}
    with ExitStack() as stack:
        for team in teams.values():
            stack.enter_context(team)
        steps = {name: max(3, int(seconds / min(team.run(4)))) for name, team in teams.items()}
        for number in range(rounds):
            for name in list(teams) if number % 2 == 0 else list(teams)[::-1]:
                times[name] += teams[name].run(steps[name])
        return times, {name: team.run(REPORT) for name, team in teams.items()}


def main() -> None:
    """Prints the comparison, model by model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each side in a round, about")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})  # the children inherit it
    reference = "PyTorch eager, fused Adam"
    for name in options.models:
        workload = WORKLOADS[name]
        print(workload.text)
        teams = {reference: Team(pytorch, 1, name), "backpropd": Team(ours, 1, name)}
        seconds, reports = measure(teams, rounds=options.rounds, seconds=options.seconds)
        print(table(seconds, reference=reference))
        medians = [statistics.median(seconds[side]) for side in teams]
        share, speed, peak, memory, _ = reports["backpropd"]
        print(
            f"  {medians[0] / medians[1]:.2f}x, target {workload.target:.2f}x; {share:.0%} of our step in matrix"
            f" products at {speed:.0f} GFLOP/s ({speed / peak:.0%} of {peak:.0f}); peak memory {memory:.0f} MiB,"
            f" PyTorch {reports[reference][3]:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
