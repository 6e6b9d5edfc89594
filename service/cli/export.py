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
    """The model file of a job, fetched for as long as it is used; or the file itself, if `name` is one."""
    if Path(name).is_file():
        if weights is not None:
            raise CommandError(f"backprop: --weights: got {weights} for the file {name}, expected it for a job only")
        yield Path(name)
        return
    with connect(address) as client, tempfile.TemporaryDirectory(prefix="backprop-") as directory:
        path = Path(directory) / "model.safetensors"
        write_model(client.export_model(client.find_job(name).job_id, weights), path)
        yield path
