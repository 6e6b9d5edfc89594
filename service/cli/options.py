"""Arguments and options that several commands share, and what is made of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import limits
from service.cli.failure import CommandError
from service.cli.follow import Output as OutputFormat

if TYPE_CHECKING:
    from service.client import Client
    from service.jobfile import FieldAtFault, JobFile, Override
    from service.pb.backprop.v1 import job_pb2
    from worker.spec import JobSpec


class WhichWeights(StrEnum):
    """Which weights of a trained model."""

    RAW = "raw"
    EMA = "ema"


Address = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        envvar="BACKPROP_ADDRESS",
        help="Where the service listens.",
        show_default=True,
    ),
]
Output = Annotated[
    OutputFormat,
    typer.Option("--output", help="text for people, json for programs: one value, or one a line for streams."),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its beginning if that is unique.")]
JobFileName = Annotated[str, typer.Argument(metavar="FILE", help="The job file, YAML or JSON; - reads standard input.")]
Weights = Annotated[
    WhichWeights | None,
    typer.Option(help="Those of the last step (raw) or their average (ema), which is the default if the job has one."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replaces a value of the file: --set training.max_steps=100."),
]
AllowDifferentNumerics = Annotated[
    bool,
    typer.Option(
        "--allow-different-numerics",
        help="Go on from checkpoints of another processor or other libraries; the weights may then differ.",
    ),
]
DEFAULT_ADDRESS = "127.0.0.1:50051"


def connect(address: str) -> Client:
    """A client of the service at `address`."""
    from service.client import Client
    from service.config import parse_address

    return Client(str(parse_address(address, option="--address")))


def read_job_file(name: str, overrides: Iterable[Override]) -> JobFile:
    """The job file of that name."""
    from service import jobfile

    try:
        data = sys.stdin.buffer.read(limits.MAX_JOB_FILE_BYTES + 1) if name == "-" else _read(Path(name))
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}, expected a job file") from None
    if len(data) > limits.MAX_JOB_FILE_BYTES:
        raise CommandError(f"{name}: more than {limits.MAX_JOB_FILE_BYTES:,} bytes, expected a job file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(f"{name}: byte {error.start} is not UTF-8, expected a text file in YAML or JSON") from None
    return jobfile.read("standard input" if name == "-" else name, text, overrides=overrides, directory=Path.cwd())


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(limits.MAX_JOB_FILE_BYTES + 1)


def overrides_of(settings: Sequence[str] | None) -> list[Override]:
    """What `--set` asks for."""
    from service.jobfile import parse_override

    return list(map(parse_override, settings or ()))


def spec_of(file: JobFile) -> JobSpec:
    """The job spec in a job file; each thing that is wrong with it becomes one line with its place."""
    from worker.spec import parse_spec
    from worker.violations import SpecError

    try:
        return parse_spec(file.document)
    except SpecError as error:
        raise refused(file, error.violations) from None


def refused(file: JobFile, violations: Iterable[FieldAtFault]) -> CommandError:
    """What to say about a job file whose fields are at fault."""
    from service.jobfile import explain

    return CommandError(*explain(file, violations))


def print_value(job: job_pb2.Job, output: OutputFormat, *, text: str) -> None:
    """Prints a job, or what is to be said about it."""
    if output is OutputFormat.JSON:
        from service.documents import to_json

        print(to_json(job))
    else:
        print(text)
