"""Small checkpoints, for whoever tests what becomes of them; and bits flipped in one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worker import checkpoint
from worker.checkpoint import Origin, Published, Tensors, TrainingState
from worker.checkpoint_store import MANIFEST, CheckpointStore, CorruptCheckpointError, Entry, Read
from worker.fingerprint import fingerprint
from worker.loss_scale import LossScale
from worker.model_file import Description
from worker.spec import MlpModel, ModelSpec

TENSORS = Tensors(("0.weight", "0.bias", "scale"), ((3, 4), (3,), ()))
DESCRIPTION = Description(ModelSpec(mlp=MlpModel()), (4,), 3)
ORIGIN = Origin("spec", "data", fingerprint())


def state_of(step: int) -> TrainingState:
    """A state that is the step's own."""
    random = np.random.default_rng(step)
    weights, m, v = random.standard_normal((3, 16)).astype(np.float32)
    return TrainingState(step, weights, {"m": m, "v": v}, LossScale(1024.0, step))


def tensors_of(state: TrainingState) -> Mapping[str, bytes]:
    """Everything of a state, bit for bit."""
    return {"": state.weights.tobytes(), **{name: vector.tobytes() for name, vector in state.optimizer.items()}}


def save(
    store: CheckpointStore,
    step: int,
    *,
    keep: int = 3,
    state: TrainingState | None = None,
    origin: Origin = ORIGIN,
) -> Published:
    """Publishes the state of a step."""
    return checkpoint.publish(
        store, state or state_of(step), tensors=TENSORS, description=DESCRIPTION, origin=origin, keep=keep
    )


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another content for a checkpoint's manifest, with its own checksum right."""
    document = json.loads((path / MANIFEST).read_bytes())
    change(document)
    del document["sha256"]
    (path / MANIFEST).write_bytes(checkpoint._manifest(document))


class MemoryStore:
    """One checkpoint in memory, its files by name: enough to read from."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.name = ""

    location = "memory"

    def locate(self, name: str, file: str, sha256: str) -> str:
        return f"{name}/{file}"

    def entries(self) -> list[Entry]:
        return [Entry(self.name, 0.0, sum(map(len, self.files.values())))] if self.files else []

    def read(self, name: str, file: str, sha256: str = "") -> bytes:
        return self.files[file]

    def publish(self, name: str, files: Mapping[str, bytes], manifest: bytes, check: Callable[[Read], None]) -> None:
        self.name, self.files = name, {**files, "manifest.json": manifest}
        check(lambda file, sha256: self.files[file])

    def remove(self, name: str) -> None:
        self.files = {}

    def set_aside(self, name: str) -> str:
        self.files = {}
        return name

    def sweep(self) -> None: ...

    clear = probe = sweep


def flips_found(flips: int, *, seed: int) -> int:
    """How many of so many checkpoints are found corrupt, each with one random bit flipped somewhere in it."""
    store = MemoryStore()
    save(store, 2)
    sound, random, found = dict(store.files), np.random.default_rng(seed), 0
    places = [(file, position) for file, content in sound.items() for position in range(len(content))]
    for place in random.integers(len(places), size=flips):
        file, position = places[place]
        content = bytearray(sound[file])
        content[position] ^= 1 << int(random.integers(8))
        store.files = {**sound, file: bytes(content)}
        try:
            checkpoint.read(store, store.name, TENSORS)
        except CorruptCheckpointError:
            found += 1
    return found
