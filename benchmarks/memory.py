"""Activation memory of a training step, with and without gradient checkpointing, and PyTorch's.

    python -m benchmarks.memory [--models gpt-large ...]

Each side is a fresh process, as a worker's is: weights, gradients and optimizer state are there and touched, and a
step on one short row has loaded every kernel. Then comes one step on the full batch. Printed are the resident memory
before it, the most during it (the kernel's own count, VmHWM), and the difference, which is what activations and
everything else that a step needs for itself take. Where PyTorch is installed, its eager step stands beside, with and
without torch.utils.checkpoint around each layer.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.workloads import CLIP_NORM, LEARNING_RATE, WORKLOADS, Workload, batch_of
from worker.process import ENVIRONMENT

MIB = 1024.0  # KiB; the kernel counts in these
SHORT = 8  # tokens of the row that warms up


@dataclass(frozen=True)
class Usage:
    """Resident memory in MiB; and the loss, which a side has to have the same with and without."""

    before: float
    peak: float
    loss: float

    @property
    def of_the_step(self) -> float:
        return self.peak - self.before


Step = Callable[[Any, Any], float]


def usage_of(step: Step, workload: Workload, of_array: Callable[[Any], Any]) -> Usage:
    """What one step takes beside all that is there before it."""
    inputs, targets = batch_of(workload)
    short = (slice(0, 1), slice(0, SHORT)) if workload.time else slice(0, SHORT)
    step(of_array(inputs[short].copy()), of_array(targets[short].copy()))
    batch = of_array(inputs), of_array(targets)
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    loss = step(*batch)
    return Usage(before / MIB, status("VmHWM") / MIB, loss)


def status(field: str) -> float:
    """A field of /proc/self/status in KiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[field].split()[0])


def ours(workload: Workload, again: bool) -> Usage:
    """This project's step, as a worker does it."""
    import numpy as np

    from benchmarks.ours import model_of
    from worker.autodiff import Tensor, kernels
    from worker.nn import FlatParameters
    from worker.optim import clip_scale, rules
    from worker.process import settle_memory

    settle_memory()
    model, loss_of = model_of(workload, gradient_checkpointing=again)
    flat, rule = FlatParameters(model.parameters()), rules.Adam()
    weights, *state = (np.ones(flat.size, np.float32) for _ in range(1 + len(rule.state_names)))
    for vector in state:
        vector[:] = 0

    def step(inputs: Tensor, targets: Tensor) -> float:
        flat.bind_gradient(flat.gradient)
        loss = loss_of(inputs, targets)
        loss.backward()
        flat.fill_unused()
        scale = clip_scale(float(kernels.block_square_sums(flat.gradient).sum()), CLIP_NORM)
        rule.update(
            flat.weights, flat.gradient, state, weights, state, step=1, learning_rate=LEARNING_RATE, scale=scale
        )
        return float(loss.item())

    return usage_of(step, workload, Tensor)


def pytorch(workload: Workload, again: bool) -> Usage:
    """PyTorch eager with fused Adam; the gradients stay from step to step, as ours do."""
    import torch
    from torch.utils.checkpoint import checkpoint

    from benchmarks.pytorch import torch_model

    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = torch_model(workload)
    if again:
        for block in model.blocks if workload.time else [model[:2], model[2:4]]:
            block.forward = lambda x, forward=block.forward: checkpoint(forward, x, use_reentrant=False)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step(inputs: Any, targets: Any) -> float:
        optimizer.zero_grad(set_to_none=False)
        if workload.time:
            model.time = torch.arange(inputs.shape[-1])
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return float(loss.item())

    return usage_of(step, workload, torch.from_numpy)


SIDES = {"backpropd": ours, "PyTorch": pytorch}


def measured(side: str, workload: Workload, again: bool) -> Usage:
    """A side's usage in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measure, args=(sender, side, workload, again))
    process.start()
    sender.close()
    try:
        usage: Usage = receiver.recv()
    except EOFError:
        sys.exit(f"{side}: the process died")
    finally:
        process.join()
    return usage


def _measure(sender: Connection, side: str, workload: Workload, again: bool) -> None:
    sender.send(SIDES[side](workload, again))


def main() -> None:
    """Prints the table, model by model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=[name for name in WORKLOADS if name != "cnn"],
        default=["gpt-large", "bert-large-masked"],
    )
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)  # read by the children when they import their libraries
    sides = ["backpropd", *(["PyTorch"] if find_spec("torch") else [])]
    for name in options.models:
        workload = WORKLOADS[name]
        print(workload.text)
        print(f"  {'MiB':36} {'before':>8} {'peak':>8} {'of the step':>12}   loss")
        for side in sides:
            kept, again = (measured(side, workload, again) for again in (False, True))
            for usage, text in ((kept, "every activation kept"), (again, "gradient checkpointing")):
                print(
                    f"  {side + ', ' + text:36} {usage.before:8.1f} {usage.peak:8.1f} {usage.of_the_step:12.1f}"
                    f"   {usage.loss:.6f}"
                )
            print(f"  {'':36} {kept.of_the_step / again.of_the_step:30.2f} times less", flush=True)


if __name__ == "__main__":
    main()
