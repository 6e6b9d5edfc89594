"""PyTorch's side of `benchmarks.models` and `benchmarks.step`, in its stronger form.

One projection for query, key and value, scaled_dot_product_attention, Adam(fused=True); BERT's logits at every
position, as in Hugging Face's model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.teams import Run
from benchmarks.timing import timed
from benchmarks.workloads import (
    BATCHES,
    CLIP_NORM,
    CNN_CHANNELS,
    CNN_CLASSES,
    CNN_FEATURES,
    LEARNING_RATE,
    MLP_WIDTHS,
    WORKLOADS,
    Workload,
    batch_of,
)


def side(rank: int, world: int, name: str, precision: str) -> Run:
    """Steps of a workload: eager, bf16 by autocast."""
    workload = _started(name)
    inputs, targets = (torch.from_numpy(array) for array in batch_of(workload))
    return timed(_step_of(torch_model(workload), lambda: (inputs, targets), precision))


def ddp(rank: int, world: int, name: str, precision: str, port: int) -> Run:
    """The same with DistributedDataParallel over gloo; every batch is gathered from memory by a permutation."""
    workload = _started(name)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    model = nn.parallel.DistributedDataParallel(torch_model(workload), gradient_as_bucket_view=True)
    every = replace(workload, batch=workload.batch * world * BATCHES)
    inputs, targets = (torch.from_numpy(array) for array in batch_of(every))
    batches = itertools.cycle(torch.randperm(every.batch).split(workload.batch)[rank::world])

    def batch() -> tuple[Any, Any]:
        positions = next(batches)
        return inputs[positions], targets[positions]

    run = timed(_step_of(model, batch, precision))

    def together(num_steps: int) -> list[float]:
        torch.distributed.barrier()
        return run(num_steps)

    return together


def _started(name: str) -> Workload:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    return WORKLOADS[name]


def _step_of(model: Any, batch: Callable[[], tuple[Any, Any]], precision: str) -> Callable[[], float]:
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step() -> float:
        inputs, targets = batch()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(inputs)
            loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return float(loss.item())

    return step


def torch_model(workload: Workload, *, bias: bool = True, approximate: str = "tanh") -> Any:
    """The same model as PyTorch users write it when they want it fast.

    A GPT may have no biases, and GELU of another kind.
    """
    width, heads, is_gpt = workload.width, workload.heads, workload.kind == "gpt"
    epsilon = 1e-5 if is_gpt else 1e-12

    class Block(nn.Module):  # type: ignore[misc]  # torch is not seen by mypy
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, epsilon, bias=bias) for _ in range(2))
            self.qkv, self.projection = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)
            self.linear1, self.linear2 = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)

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
                return x + self.linear2(F.gelu(self.linear1(self.norm2(x)), approximate=approximate))
            x = self.norm1(x + self.attend(x))
            return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))

    class LanguageModel(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(workload.vocabulary, width)
            self.positions = nn.Embedding(workload.time, width)
            self.blocks = nn.ModuleList(Block() for _ in range(workload.layers))
            self.norm = nn.LayerNorm(width, epsilon, bias=bias)
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
        layers = [nn.Linear(*widths) for widths in itertools.pairwise(MLP_WIDTHS)]
        return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    if workload.kind == "cnn":
        convolutions = [nn.Conv2d(*channels, 3, padding=1) for channels in itertools.pairwise(CNN_CHANNELS)]
        pool, head = nn.MaxPool2d(2), nn.Linear(CNN_FEATURES, CNN_CLASSES)
        return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), pool, nn.Flatten(), head)
    return LanguageModel()
