"""The jobs of a campaign."""

from __future__ import annotations

from pathlib import Path

from worker.spec import JobSpec, parse_spec

SYNTHETIC = {"synthetic": {"samples": 5000, "features": 40, "outputs": 5}}
GPT = {"gpt": {"layers": 2, "heads": 2, "width": 16, "context": 16}}


def kinds(text: Path) -> list[JobSpec]:
    """A few kinds of small jobs, a few seconds each; `text` is a file to learn by heart."""

    def kind(name: str, model: object, data: object, *, steps: int, shards: int, **parts: object) -> JobSpec:
        training = {
            "global_batch_size": 2 * shards,
            "shards": shards,
            "max_steps": steps,
            "clip_norm": 1.0,
            "seed": steps,
        }
        document: dict[str, object] = {"name": name, "model": model, "data": data, "training": training}
        document |= {"evaluation": {"every_steps": steps // 4}, "checkpoint": {"every_steps": steps // 8, "keep": 2}}
        return parse_spec(document | {"workers": {"min": 1, "max": 2}} | parts)

    learn = {"text": {"path": str(text), "validation_fraction": 0.1}}
    return [
        kind("mlp", {"mlp": {"hidden": [24, 24]}}, SYNTHETIC, steps=480, shards=8),
        kind("gpt", GPT, learn, steps=64, shards=4),
        kind("digits", {"mlp": {"hidden": [16]}}, {"digits": {}}, steps=800, shards=3),
        kind("momentum", {"mlp": {"hidden": [64]}}, SYNTHETIC, steps=800, shards=5, optimizer={"momentum": {}}),
    ]
