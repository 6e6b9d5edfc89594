"""Checkpoints: all that training goes on from exactly, complete and verified, or not there.

    step-0000000200/weights.safetensors     the model, see model_file
                    ema.safetensors         the same with the averaged weights, if the job keeps them
                    optimizer.safetensors   the optimizer's other state vectors, flat: m and v, ...
                    manifest.json           step, loss scale, whose it is, checksums of the files and of itself

Nothing else decides how a job goes on. The schedule, the keys of all random numbers (dropout, masks) and the place in
the data are functions of the job spec and the step; the spec and the data are named by their checksums, the numerics
by their fingerprint, so that a checkpoint is gone on from only where the next bits will be the same.

A manifest has one form only, byte for byte: whatever is changed in it is found. It holds no time and no place, so that
equal states are equal files, and a step that is written again after a restart is the same checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from worker import model_file
from worker.checkpoint_store import (
    MANIFEST,
    VISIBLE,
    CheckpointStore,
    CorruptCheckpointError,
    Read,
    StoreUnreachableError,
    is_url,
    open_store,
)
from worker.fingerprint import Fingerprint
from worker.loss_scale import UNSCALED, LossScale
from worker.model_file import Description
from worker.optim.rules import EMA

FORMAT = 2
WEIGHTS, AVERAGE, OPTIMIZER = "weights.safetensors", "ema.safetensors", "optimizer.safetensors"
Floats = np.ndarray[tuple[int], np.dtype[np.float32]]


@dataclass(frozen=True)
class Tensors:
    """The names and shapes of a model's parameters, in the order in which they lie in the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def named(self, vector: Floats) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """The parameters by name, as views of the flat vector."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        return {name: part.reshape(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}


@dataclass(frozen=True)
class TrainingState:
    """All that training goes on from: `weights` (P,), the optimizer's state vectors, (P,) each, the loss scale."""

    step: int
    weights: Floats
    optimizer: Mapping[str, Floats]
    loss_scale: LossScale = UNSCALED


@dataclass(frozen=True)
class Origin:
    """What made a state, beside the step: it goes on exactly only where all of this is the same."""

    spec_sha256: str
    data_sha256: str
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Published:
    """A checkpoint that is there to stay; `model` is where the file to use is, the average where there is one."""

    location: str
    model: str
    step: int
    weights_digest: str
    size_bytes: int


@dataclass(frozen=True)
class Corrupt:
    """A checkpoint that was passed over: where it is now, and what is wrong with it."""

    location: str
    reason: str


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint, if there is one, with what it was made by; and those newer that are not."""

    state: TrainingState | None = None
    origin: Origin | None = None
    corrupt: tuple[Corrupt, ...] = ()


def weights_digest(weights: Floats) -> str:
    """sha256 of the weights in parameter order, little-endian float32: equal digests are equal weights."""
    return hashlib.sha256(np.ascontiguousarray(weights, "<f4").data).hexdigest()


def name_of(step: int) -> str:
    """A checkpoint's name: in the order of their names, they are in that of their steps."""
    return f"{VISIBLE}{step:010d}"


def publish(
    store: CheckpointStore,
    state: TrainingState,
    *,
    tensors: Tensors,
    description: Description,
    origin: Origin,
    keep: int,
) -> Published:
    """Writes a checkpoint, verifies it and makes it visible; then removes all but the `keep` newest.

    Raises OSError, with nothing half there, where the store does not take it.
    """
    name, digest = name_of(state.step), weights_digest(state.weights)
    models, others = {WEIGHTS: state.weights}, dict(state.optimizer)
    if EMA in others:
        models[AVERAGE] = others.pop(EMA)
    files = {file: model_file.encode(tensors.named(vector), description) for file, vector in models.items()}
    files[OPTIMIZER] = save(others)
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    manifest = _manifest(
        {
            "format": FORMAT,
            "step": state.step,
            "loss_scale": asdict(state.loss_scale),
            "weights_digest": digest,
            "spec_sha256": origin.spec_sha256,
            "data_sha256": origin.data_sha256,
            "files": {file: {"sha256": sums[file], "bytes": len(content)} for file, content in files.items()},
            "parameters": list(tensors.names),
            "fingerprint": dict(origin.fingerprint),
        }
    )
    try:
        store.publish(name, files, manifest, lambda read: _check(read, manifest))
    except CorruptCheckpointError as error:
        raise OSError(f"what was read back is not what was written: {error}") from error
    _retain(store, keep, but=name)
    size = len(manifest) + sum(map(len, files.values()))
    model = AVERAGE if AVERAGE in files else WEIGHTS
    return Published(_location(store, name), store.locate(name, model, sums[model]), state.step, digest, size)


def newest(store: CheckpointStore, tensors: Tensors, *, spec_sha256: str) -> Found:
    """The newest checkpoint of this very job that verifies; ones that do not are set aside, for the one before.

    Raises OSError where nothing can be known of the checkpoints: one that cannot be reached is not corrupt.
    """
    store.sweep()
    corrupt: list[Corrupt] = []
    for entry in reversed(store.entries()):
        try:
            state, origin = read(store, entry.name, tensors)
            if origin.spec_sha256 != spec_sha256:
                raise CorruptCheckpointError(f"belongs to another job spec: got {origin.spec_sha256}")
            return Found(state, origin, tuple(corrupt))
        except StoreUnreachableError:
            raise
        except CorruptCheckpointError as error:
            corrupt.append(Corrupt(_set_aside(store, entry.name), str(error)))
        except OSError as error:  # whether it is sound, nobody knows: it stays, and may be read another time
            corrupt.append(Corrupt(_location(store, entry.name), f"cannot be read: {error}"))
    return Found(corrupt=tuple(corrupt))


def _set_aside(store: CheckpointStore, name: str) -> str:
    try:
        return store.set_aside(name)
    except OSError:  # a disk that cannot be written to any more: it stays, and is found corrupt again next time
        return _location(store, name)


def _location(store: CheckpointStore, name: str) -> str:
    return store.locate(name, MANIFEST, "").removesuffix(f"/{MANIFEST}")


def read(store: CheckpointStore, name: str, tensors: Tensors) -> tuple[TrainingState, Origin]:
    """A checkpoint, every byte of it checked against the manifest. Raises CorruptCheckpointError, OSError."""
    content = partial(store.read, name)
    with _corruption():
        manifest = _parse(content(MANIFEST, ""))
        if name != name_of(manifest["step"]):
            raise CorruptCheckpointError(f"is of step {manifest['step']}")
        files = dict(_files(manifest, content))
        weights, optimizer = load(files[WEIGHTS]), load(files[OPTIMIZER])
        if AVERAGE in files:
            optimizer[EMA] = _flat(load(files[AVERAGE]), tensors)
        scale = LossScale(**manifest["loss_scale"])
        state = TrainingState(manifest["step"], _flat(weights, tensors), optimizer, scale)
        for vector_name, vector in optimizer.items():
            if vector.shape != state.weights.shape or vector.dtype != np.float32:
                raise CorruptCheckpointError(
                    f"{vector_name}: got {vector.dtype} {vector.shape}, expected {state.weights.shape}"
                )
        if weights_digest(state.weights) != manifest["weights_digest"]:
            raise CorruptCheckpointError("the weights' digest is not the manifest's")
        return state, Origin(manifest["spec_sha256"], manifest["data_sha256"], manifest["fingerprint"])


def copy(source: CheckpointStore, target: CheckpointStore, step: int) -> None:
    """Makes the checkpoint of a step visible in another store, too. Raises CorruptCheckpointError, OSError."""
    name = name_of(step)
    with _corruption():
        manifest = source.read(name, MANIFEST)
        files = dict(_files(_parse(manifest), partial(source.read, name)))
    target.publish(name, files, manifest, lambda read: _check(read, manifest))


@dataclass(frozen=True)
class Listed:
    """A visible checkpoint as its manifest has it; `problem` says what is wrong with it, if anything.

    Without `is_verified`, only the manifest was looked at.
    """

    location: str
    time: float
    size_bytes: int
    step: int = 0
    weights_digest: str = ""
    is_verified: bool = False
    problem: str = ""


def listed(store: CheckpointStore, *, verify: bool) -> list[Listed]:
    """The visible checkpoints, newest first. Nothing is set aside or changed. Raises OSError."""
    found = []
    for entry in reversed(store.entries()):
        location = _location(store, entry.name)
        step = int(entry.name.removeprefix(VISIBLE)) if entry.name.removeprefix(VISIBLE).isdigit() else 0
        try:
            with _corruption():
                manifest = _parse(store.read(entry.name, MANIFEST))
                digest = str(manifest["weights_digest"])
                if verify:
                    for _ in _files(manifest, partial(store.read, entry.name)):
                        pass
            found.append(Listed(location, entry.time, entry.size_bytes, step, digest, is_verified=verify))
        except StoreUnreachableError:
            raise
        except (CorruptCheckpointError, OSError) as error:
            found.append(Listed(location, entry.time, entry.size_bytes, step, problem=str(error)))
    return found


def beside(model: str, file: str) -> str:
    """Where another file of a checkpoint is, by where its model is. Raises CorruptCheckpointError, OSError."""
    if not is_url(model):
        return str(Path(model).with_name(file))
    url, name, _ = model.rsplit("/", 2)
    store = open_store(url)
    with _corruption():
        return store.locate(name, file, _parse(store.read(name, MANIFEST))["files"][file]["sha256"])


def _manifest(document: Mapping[str, Any]) -> bytes:
    """A manifest's bytes, its own checksum in front."""
    body = json.dumps(document, indent=1)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), **document}, indent=1).encode()


def _parse(manifest: bytes) -> Any:
    document = json.loads(manifest)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CorruptCheckpointError(f"not a checkpoint of format {FORMAT}")
    del document["sha256"]
    if _manifest(document) != manifest:
        raise CorruptCheckpointError(f"{MANIFEST} is not as it was written")
    return document


def _files(manifest: Any, content: Read) -> Iterator[tuple[str, bytes]]:
    """A checkpoint's files one by one, each with the checksum that it must have. Raises CorruptCheckpointError."""
    for file, expected in manifest["files"].items():
        found = content(file, expected["sha256"])
        sha256 = hashlib.sha256(found).hexdigest()
        if sha256 != expected["sha256"]:
            raise CorruptCheckpointError(
                f"{file}: got {len(found)} bytes with sha256 {sha256}, "
                f"expected {expected['bytes']} with {expected['sha256']}"
            )
        yield file, found


def _check(content: Read, written: bytes) -> None:
    """Whether what can be read back is what was to be written; raises CorruptCheckpointError, OSError."""
    with _corruption():
        if content(MANIFEST, "") != written:
            raise CorruptCheckpointError(f"{MANIFEST} is not as it was written")
        for _ in _files(_parse(written), content):
            pass


@contextmanager
def _corruption() -> Iterator[None]:
    """Whatever bytes may do to those who parse them is one error: the checkpoint is corrupt."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{error.filename or error} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{type(error).__name__}: {error}") from error


def _flat(weights: Mapping[str, np.ndarray[Any, np.dtype[Any]]], tensors: Tensors) -> Floats:
    if set(weights) != set(tensors.names):
        raise CorruptCheckpointError(f"got the parameters {sorted(weights)}, expected {sorted(tensors.names)}")
    for name, shape in zip(tensors.names, tensors.shapes, strict=True):
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            raise CorruptCheckpointError(f"{name}: got {weights[name].dtype} {weights[name].shape}, expected {shape}")
    return np.concatenate([weights[name].reshape(-1) for name in tensors.names])


def _retain(store: CheckpointStore, keep: int, *, but: str) -> None:
    """Removes all but the newest, and the one just written; what cannot be removed now is, after the next one."""
    with suppress(OSError):
        for entry in store.entries()[:-keep]:
            if entry.name != but:
                store.remove(entry.name)
