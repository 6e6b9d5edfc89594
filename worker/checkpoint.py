"""Checkpoints on disk: complete and verified, or not there.

    <directory>/step-0000000200/weights.safetensors     the model, see model_file
                                ema.safetensors         the same with the averaged weights, if the job keeps them
                                optimizer.safetensors   the optimizer's other state vectors, flat
                                manifest.json           step, loss scale, job, checksums, fingerprint; written last

A checkpoint is written into a temporary directory, every file and the directory are flushed to disk, it is read
back, and one rename publishes it. `newest` verifies before it believes, sets a bad one aside and takes the one
before. Knows files and arrays, nothing of workers or jobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from worker import model_file
from worker.loss_scale import UNSCALED, LossScale
from worker.model_file import Description
from worker.optim.rules import EMA

FORMAT = 1
WEIGHTS, AVERAGE = "weights.safetensors", "ema.safetensors"
OPTIMIZER, MANIFEST = "optimizer.safetensors", "manifest.json"
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
    """All that training goes on from: `weights` (P,), the optimizer's state vectors, (P,) each, by name, loss scale."""

    step: int
    weights: Floats
    optimizer: Mapping[str, Floats]
    loss_scale: LossScale = UNSCALED


@dataclass(frozen=True)
class Published:
    """A checkpoint that is there to stay; `model` is the file to use, with the averaged weights if there are such."""

    path: Path
    step: int
    weights_digest: str
    size_bytes: int
    model: Path


class CorruptCheckpointError(Exception):
    """A checkpoint is not what its manifest says."""


def weights_digest(weights: Floats) -> str:
    """sha256 of the weights in parameter order, little-endian float32: equal digests are equal weights."""
    return hashlib.sha256(np.ascontiguousarray(weights, "<f4").data).hexdigest()


def fingerprint() -> dict[str, object]:
    """What besides the job decides the last bits: libraries and instruction set."""
    features = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]  # NumPy has no public name for it
    return {
        "machine": platform.machine(),
        "cpu_features": sorted(name for name, found in features.items() if found),
        "blas": np.show_config(mode="dicts")["Build Dependencies"]["blas"].get("version", ""),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "python": platform.python_version(),
    }


def publish(
    directory: Path,
    state: TrainingState,
    *,
    tensors: Tensors,
    description: Description,
    job: Mapping[str, str],
    keep: int,
) -> Published:
    """Writes a checkpoint, verifies it and makes it visible; then removes all but the `keep` newest.

    `job` goes into the manifest as it is. Raises OSError, with nothing half there, where the disk does not take it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = directory / f"step-{state.step:010d}"
    temporary = directory / f".tmp-{target.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    digest = weights_digest(state.weights)
    try:
        temporary.mkdir(mode=0o700)
        models, others = {WEIGHTS: state.weights}, dict(state.optimizer)
        if EMA in others:
            models[AVERAGE] = others.pop(EMA)
        files = {name: model_file.encode(tensors.named(vector), description) for name, vector in models.items()}
        files[OPTIMIZER] = save(others)
        sums = {name: _write(temporary / name, content) for name, content in files.items()}
        manifest = {
            "format": FORMAT,
            "step": state.step,
            "weights_digest": digest,
            "loss_scale": asdict(state.loss_scale),
            "job": dict(job),
            "files": {name: {"sha256": sums[name], "bytes": len(content)} for name, content in files.items()},
            "parameters": list(tensors.names),
            "fingerprint": fingerprint(),
        }
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        _flush_directory(temporary)
        read(temporary, tensors)
        shutil.rmtree(target, ignore_errors=True)  # of the same step, from before a restart
        temporary.rename(target)
        _flush_directory(directory)
    except CorruptCheckpointError as error:
        raise OSError(f"what was read back is not what was written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _retain(directory, keep)
    size = sum(file.stat().st_size for file in target.iterdir())
    return Published(target, state.step, digest, size, target / (AVERAGE if AVERAGE in files else WEIGHTS))


def newest(directory: Path, tensors: Tensors, *, job: Mapping[str, str]) -> TrainingState | None:
    """The newest checkpoint of this very job that verifies; ones that do not are renamed to `.corrupt-...`."""
    for path in reversed(_published(directory)):
        try:
            return read(path, tensors, job=job)
        except (CorruptCheckpointError, OSError):
            path.rename(path.with_name(f".corrupt-{path.name}-{os.urandom(3).hex()}"))
    return None


def read(path: Path, tensors: Tensors, *, job: Mapping[str, str] | None = None) -> TrainingState:
    """A checkpoint, every byte of it checked against the manifest. Raises CorruptCheckpointError."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        for name, expected in manifest["files"].items():
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected["sha256"]:
                raise CorruptCheckpointError(f"{path / name}: got sha256 {found}, expected {expected['sha256']}")
        if set(manifest["files"]) - {AVERAGE} != {WEIGHTS, OPTIMIZER} or manifest["format"] != FORMAT:
            raise CorruptCheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
        if job is not None and manifest["job"] != dict(job):
            raise CorruptCheckpointError(f"{path}: belongs to another job: {manifest['job']}")
        weights, optimizer = load_file(path / WEIGHTS), load_file(path / OPTIMIZER)
        if AVERAGE in manifest["files"]:
            optimizer[EMA] = _flat(load_file(path / AVERAGE), tensors)
        scale = LossScale(**manifest.get("loss_scale", asdict(UNSCALED)))
        state = TrainingState(int(manifest["step"]), _flat(weights, tensors), optimizer, scale)
        if weights_digest(state.weights) != manifest["weights_digest"]:
            raise CorruptCheckpointError(f"{path}: the weights' digest is not the manifest's")
        return state
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{path}: {error}") from error


def _flat(weights: Mapping[str, np.ndarray[Any, np.dtype[Any]]], tensors: Tensors) -> Floats:
    if set(weights) != set(tensors.names):
        raise CorruptCheckpointError(f"got the parameters {sorted(weights)}, expected {sorted(tensors.names)}")
    for name, shape in zip(tensors.names, tensors.shapes, strict=True):
        if weights[name].shape != shape or weights[name].dtype != np.float32:
            raise CorruptCheckpointError(f"{name}: got {weights[name].dtype} {weights[name].shape}, expected {shape}")
    return np.concatenate([weights[name].reshape(-1) for name in tensors.names])


def _published(directory: Path) -> list[Path]:
    """The visible checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if path.is_dir())


def _retain(directory: Path, keep: int) -> None:
    """Removes all but the newest; a rename first, so that none is ever visible in part."""
    for path in _published(directory)[:-keep]:
        trash = path.with_name(f".trash-{path.name}")
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _write(path: Path, content: bytes) -> str:
    """Writes a new file and flushes it to disk; returns its sha256."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _flush_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
