"""The commands. Each loads what it needs when it runs, so that `backprop --help` and `backprop jobs` are quick."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import __version__
from service.cli.failure import CommandError, ExitCode, say
from service.cli.follow import Output as OutputFormat
from service.cli.models import checkpoints, export, sample
from service.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    AllowDifferentNumerics,
    JobFileName,
    JobName,
    Output,
    Settings,
    connect,
    overrides_of,
    print_value,
    read_job_file,
    refused,
    spec_of,
)
from service.cli.steering import cancel, pause, resume, scale
from service.cli.verify import verify

if TYPE_CHECKING:
    from service.client import Client
    from service.pb.backprop.v1 import job_pb2

EPILOG = """Start with `backprop run examples/digits.yaml`. With a service running (`backprop serve`), submit jobs to
it: `backprop submit FILE --follow`. Exit codes: 0 done, 1 the job failed, 2 wrong usage or input, 3 the service
cannot be reached."""

app = typer.Typer(
    name="backprop",
    help="Trains models on Ray workers: the same job gives the same weights, to the last bit, on any number of them.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(is_asked: bool) -> None:
    """Prints the version and ends."""
    if is_asked:
        print(f"backprop {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What may stand in front of a command."""


@app.command()
def serve(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where gRPC listens.")] = DEFAULT_ADDRESS,
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where metrics and health are; 'off' for nowhere.")
    ] = "127.0.0.1:8080",
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keeps jobs and models. [default: ~/.local/share/backprop]")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running Ray cluster. [default: a local one of its own]")
    ] = None,
    worker_slots: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Workers that may run at once. [default: one a core]")
    ] = None,
    checkpoint_store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Keeps checkpoints: a path, s3://, gs:// or az://. [default: in --data-dir]"),
    ] = None,
    allow_different_numerics: AllowDifferentNumerics = False,
) -> None:
    """Run the service until Ctrl-C. The next start takes up running jobs; with --ray-address they go on meanwhile."""
    from service.config import KERNELS, check_loopback, default_data_dir, parse_address
    from service.config import Settings as ServiceSettings
    from service.ray_environment import prepare_local

    directory = (data_dir or default_data_dir(os.environ, home=Path.home())).absolute()
    if ray_address is None:
        prepare_local(kernels=directory / KERNELS)  # before anything imports ray, grpc or numba
    from service.checkpoints import CheckpointPolicy, prepare_store
    from service.cli.serving import serve_until_signalled

    serve_until_signalled(
        ServiceSettings(
            data_dir=directory,
            listen=check_loopback(parse_address(listen, option="--listen"), option="--listen"),
            http=None if http == "off" else check_loopback(parse_address(http, option="--http"), option="--http"),
            ray_address=ray_address,
            worker_slots=worker_slots,
            checkpoints=CheckpointPolicy(
                None if checkpoint_store is None else prepare_store(checkpoint_store), allow_different_numerics
            ),
        )
    )


@app.command()
def run(
    file: JobFileName,
    settings: Settings = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use exactly N workers.")] = None,
    model_file: Annotated[
        Path | None, typer.Option("-o", "--export", metavar="FILE", help="Write the trained model (safetensors) here.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(metavar="DIR", help="Keeps jobs, models and the log.")] = Path(".backprop"),
    allow_different_numerics: AllowDifferentNumerics = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """Train one job here and now: starts a service and Ray, follows the job, and stops everything again."""
    from service.config import KERNELS
    from service.ray_environment import prepare_local

    prepare_local(kernels=data_dir.absolute() / KERNELS)  # before anything imports ray, grpc or numba
    from service.checkpoints import CheckpointPolicy
    from service.cli.serving import run_here
    from service.jobfile import Override

    overrides = overrides_of(settings)
    if workers is not None:
        overrides.append(Override(f"--workers {workers}", "workers", {"min": workers, "max": workers}))
    job_file = read_job_file(file, overrides)
    job = run_here(
        job_file,
        spec_of(job_file),
        data_dir=data_dir.absolute(),
        output=output,
        model_file=model_file,
        checkpoints=CheckpointPolicy(allow_different_numerics=allow_different_numerics),
    )
    raise typer.Exit(exit_code_of(job))


@app.command()
def submit(
    file: JobFileName,
    settings: Settings = None,
    follow: Annotated[bool, typer.Option("--follow", help="Watch the job until it ends.")] = False,
    request_id: Annotated[
        str, typer.Option(metavar="ID", help="Makes a repeated submission the same job: any text you choose.")
    ] = "",
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Only check the job file.")] = False,
    output: Output = OutputFormat.TEXT,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Submit a job to the service. When this returns, the job is on disk and will not be lost."""
    from service.client import ClientError

    job_file = read_job_file(file, overrides_of(settings))
    spec = spec_of(job_file)
    with connect(address) as client:
        try:
            job = client.create_job(spec, request_id=request_id, validate_only=validate_only)
        except ClientError as error:
            if error.violations and error.reason in ("INVALID_JOB", "TOO_FEW_WORKER_SLOTS"):
                raise refused(job_file, error.violations) from None
            raise
        if validate_only:
            print_value(job, output, text="the job is valid")
        elif follow:
            say(f"submitted {job.job_id}")
            raise typer.Exit(follow_to_end(client, job.job_id, output=output))
        else:
            print_value(job, output, text=f"submitted {job.job_id}; follow it with `backprop watch {job.job_id}`")


@app.command()
def jobs(
    state: Annotated[
        list[str] | None, typer.Option(metavar="STATE", help="Only jobs in this state, such as RUNNING.")
    ] = None,
    output: Output = OutputFormat.TEXT,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """List the jobs, newest first."""
    from service.documents import document_of

    with connect(address) as client:
        found = client.list_jobs(states=list(map(state_name, state or ())))
        if output is OutputFormat.JSON:
            print(json.dumps([document_of(job) for job in found], allow_nan=False, ensure_ascii=False))
            return
        from service.cli.follow import now
        from service.cli.show import jobs_table, make_console

        jobs_table(found, make_console(), now=now())


@app.command()
def show(job: JobName, output: Output = OutputFormat.TEXT, address: Address = DEFAULT_ADDRESS) -> None:
    """Show all about one job."""
    from service.cli.follow import now
    from service.cli.show import make_console, print_job
    from service.documents import to_json

    with connect(address) as client:
        found = client.find_job(job)
    if output is OutputFormat.JSON:
        print(to_json(found))
    else:
        print_job(found, make_console(), now=now())


@app.command()
def watch(
    job: JobName,
    after_event: Annotated[int, typer.Option(metavar="ID", min=0, help="Leave out events up to this one.")] = 0,
    output: Output = OutputFormat.TEXT,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Follow a job live: its events, progress, loss and speed, until it ends."""
    with connect(address) as client:
        job_id = client.find_job(job).job_id
        raise typer.Exit(follow_to_end(client, job_id, output=output, after=after_event, with_job=False))


@app.command()
def events(job: JobName, output: Output = OutputFormat.TEXT, address: Address = DEFAULT_ADDRESS) -> None:
    """List what has happened to a job so far."""
    from service.cli.show import event_text, local_time
    from service.documents import to_json

    with connect(address) as client:
        for event in client.list_events(client.find_job(job).job_id):
            line = f"{event.event_id:>5}  {local_time(event.time)}  {event_text(event)}"
            print(to_json(event) if output is OutputFormat.JSON else line)


for command in (pause, resume, scale, cancel, checkpoints, verify, export, sample):
    app.command()(command)


@app.command()
def delete(job: JobName, address: Address = DEFAULT_ADDRESS) -> None:
    """Remove a finished job with its history, checkpoints and model."""
    with connect(address) as client:
        job_id = client.find_job(job).job_id
        client.delete_job(job_id)
    say(f"deleted {job_id}")


def state_name(word: str) -> str:
    """A state's name in the API for the word that users know."""
    from service.pb.backprop.v1 import job_pb2

    name = f"JOB_STATE_{word.upper()}"
    known = [known for known in job_pb2.JobState.keys() if not known.endswith("UNSPECIFIED")]  # noqa: SIM118
    if name not in known:
        words = ", ".join(known.removeprefix("JOB_STATE_") for known in known)
        raise CommandError(f"backprop: --state: got {word!r}, expected one of {words}")
    return name


def follow_to_end(
    client: Client, job_id: str, *, output: OutputFormat, after: int = 0, with_job: bool = True
) -> ExitCode:
    """Shows a job until it ends; with `with_job`, JSON ends with the job itself."""
    from service.cli.follow import follow, now
    from service.cli.show import outcome_lines
    from service.documents import to_json

    try:
        job = follow(client.watch_job(job_id, after_event_id=after), output)
    except KeyboardInterrupt:
        say(f"\n{job_id} goes on without you; see it with `backprop watch {job_id}`, stop it with `backprop cancel`")
        return ExitCode.INTERRUPTED
    if job is None:
        job = client.get_job(job_id)
    if output is OutputFormat.TEXT:
        export_command = f"backprop export {job_id} -o {job_id}.safetensors"
        print(*outcome_lines(job, now=now(), how_to_export=export_command), sep="\n")
    elif with_job:
        print(to_json(job))
    return exit_code_of(job)


def exit_code_of(job: job_pb2.Job) -> ExitCode:
    """0 for a job that succeeded, 1 for any other end."""
    from service.pb.backprop.v1 import job_pb2

    return ExitCode.DONE if job.state == job_pb2.JOB_STATE_SUCCEEDED else ExitCode.JOB_FAILED
