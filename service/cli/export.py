"""Writing a model file: complete or not there."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.cli.failure import CommandError, ExitCode
from service.cli.options import WhichWeights, connect
from service.pb.backprop.v1 import training_service_pb2 as pb


def write_model(parts: Iterable[pb.ExportModelResponse], path: Path) -> int:
    """Writes a model's parts to a file, or to standard output for "-"; its size in bytes."""
    if str(path) == "-":
        return _write_all(parts, sys.stdout.fileno())
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            size = _write_all(parts, file.fileno())
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"backprop: cannot write {path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return size


def _write_all(parts: Iterable[pb.ExportModelResponse], file: int) -> int:
    size, expected = 0, 0
    for part in parts:
        view = memoryview(part.chunk)
        while view:
            view = view[os.write(file, view) :]
        size, expected = size + len(part.chunk), part.size_bytes
    if size != expected:
        message = f"backprop: the model has {expected:,} bytes, but {size:,} came; try again"
        raise CommandError(message, code=ExitCode.JOB_FAILED)
    return size


@contextmanager
def model_of(name: str, address: str, weights: WhichWeights | None = None) -> Iterator[Path]:
    """The model file of a job or at a URL, fetched for as long as it is used; or the file itself, if `name` is one."""
    if Path(name).is_file():
        if weights is not None:
            raise CommandError(f"backprop: --weights: got {weights} for the file {name}, expected it for a job only")
        yield Path(name)
        return
    from worker.checkpoint_store import is_url

    with tempfile.TemporaryDirectory(prefix="backprop-") as directory:
        path = Path(directory) / "model.safetensors"
        if is_url(name):
            _fetch(name, path)
        else:
            with connect(address) as client:
                write_model(client.export_model(client.find_job(name).job_id, weights), path)
        yield path


def _fetch(url: str, path: Path) -> None:
    from worker.checkpoint_store import open_file

    try:
        _, pieces = open_file(url)
        with path.open("xb") as file:
            file.writelines(pieces)
    except (OSError, ValueError) as error:
        raise CommandError(f"backprop: cannot read {url}: {error}") from None
