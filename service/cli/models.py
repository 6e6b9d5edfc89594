"""The commands about what a job has learned: its checkpoints, its model, and what a gpt writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from service.cli.failure import CommandError, say
from service.cli.follow import Output as OutputFormat
from service.cli.options import DEFAULT_ADDRESS, Address, JobName, Output, Weights, connect


def checkpoints(
    job: JobName,
    verify: Annotated[bool, typer.Option(help="Read all of each, and check every byte.")] = True,
    output: Output = OutputFormat.TEXT,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """List the checkpoints of a job that are there now, newest first, and whether they are sound."""
    with connect(address) as client:
        found = client.list_checkpoints(client.find_job(job).job_id, verify=verify)
    if output is OutputFormat.JSON:
        from service.documents import document_of

        print(json.dumps([document_of(checkpoint) for checkpoint in found], allow_nan=False, ensure_ascii=False))
        return
    from service.cli.show import checkpoints_table, make_console

    checkpoints_table(found, make_console())


def export(
    job: JobName,
    model_file: Annotated[
        Path, typer.Option("-o", "--export", metavar="FILE", help="Where to write; - is standard output.")
    ],
    weights: Weights = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Write the trained model of a job to a file, in safetensors format."""
    from service.cli.export import write_model

    with connect(address) as client:
        job_id = client.find_job(job).job_id
        size = write_model(client.export_model(job_id, weights), model_file)
    say(f"{model_file}: {size:,} bytes, the model of {job_id}")


def sample(
    job: JobName,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What the text begins with.")] = "",
    tokens: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="How many tokens to write.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 writes what is likeliest, 1 as the model sees it.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Choose among the K most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Choose among the likeliest, P in all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same text.")] = 0,
    weights: Weights = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Let a trained gpt write. JOB may be a job, a model file that was exported, or the URL of one."""
    from service.cli.export import model_of
    from worker.sampling import Sampling, continue_text

    sampling = Sampling(tokens, temperature, top_k, top_p, seed)
    with model_of(job, address, weights) as model_file:
        try:
            print(continue_text(model_file, prompt, sampling))
        except ValueError as error:
            raise CommandError(f"backprop: sample: {error}") from None
