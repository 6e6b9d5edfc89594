"""The commands that steer a job: pause, resume, scale, cancel. Each may be repeated."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.follow import Output as OutputFormat
from service.cli.options import DEFAULT_ADDRESS, Address, JobName, Output, connect, print_value


def pause(job: JobName, output: Output = OutputFormat.TEXT, address: Address = DEFAULT_ADDRESS) -> None:
    """Stop a job at a step boundary, save what it has and free its workers, until it is resumed."""
    from service.cli.show import state_of

    with connect(address) as client:
        paused = client.pause_job(client.find_job(job).job_id)
    print_value(paused, output, text=f"{paused.job_id}: {state_of(paused)}")


def resume(job: JobName, output: Output = OutputFormat.TEXT, address: Address = DEFAULT_ADDRESS) -> None:
    """Let a paused job go on where it was."""
    from service.cli.show import state_of

    with connect(address) as client:
        resumed = client.resume_job(client.find_job(job).job_id)
    print_value(resumed, output, text=f"{resumed.job_id}: {state_of(resumed)}")


def scale(
    job: JobName,
    workers: Annotated[
        int, typer.Option(metavar="N", help="The most workers that it takes, from 1 to its training.shards.")
    ],
    output: Output = OutputFormat.TEXT,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Give a job more or fewer workers, while it trains or before. The weights will be the same."""
    from service.cli.show import state_of

    with connect(address) as client:
        scaled = client.scale_job(client.find_job(job).job_id, workers)
    number = f"{scaled.wanted_workers} worker{'s' * (scaled.wanted_workers != 1)}"
    print_value(scaled, output, text=f"{scaled.job_id}: {state_of(scaled)}, takes up to {number}")


def cancel(job: JobName, output: Output = OutputFormat.TEXT, address: Address = DEFAULT_ADDRESS) -> None:
    """Stop a job. What it has learned so far is not kept as a model."""
    from service.cli.show import state_of

    with connect(address) as client:
        cancelled = client.cancel_job(client.find_job(job).job_id)
    print_value(cancelled, output, text=f"{cancelled.job_id}: {state_of(cancelled)}")
