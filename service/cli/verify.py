"""`backprop verify`: trains a job again with another number of workers, and compares the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.failure import CommandError, ExitCode, say
from service.cli.follow import Output as OutputFormat
from service.cli.options import DEFAULT_ADDRESS, Address, JobName, Output, connect

if TYPE_CHECKING:
    from service.client import Client
    from service.pb.backprop.v1 import job_pb2
    from service.verification import Compared, Verification


def verify(
    job: JobName,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Train with N workers. [default: 1, or 2 if the job has 1]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=1,
            help="Compare K steps only. [default: all, or with --from-step up to the next checkpoint]",
        ),
    ] = None,
    from_step: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Begin with the job's newest checkpoint up to step N. Then K is counted from there.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not delete the second job when the weights agree.")] = False,
    output: Output = OutputFormat.TEXT,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Train a job again with another number of workers, and compare the weights at every checkpoint.

    With --from-step only a part of it is trained, from a checkpoint that is still there.

    Ends with 0 when they are the same to the last bit, with 1 when they are not.
    """
    from service.verification import Verification

    with connect(address) as client:
        first = client.find_job(job)
        start = 0 if from_step is None else start_of(client, first, from_step)
        expected = chosen(saved_digests(client, first), start, steps, only_next=from_step is not None)
        second = submit_again(client, first, workers, expected, start=start)
        is_text = output is OutputFormat.TEXT
        if is_text:
            begins = f" from step {start} on" if start else ""
            say(f"training {first.job_id} again{begins} with {workers_of(second)}: {second.job_id}")
        verification = follow(client, second, Verification(expected, start), is_text=is_text)
        if verification.is_equal and not keep:
            client.delete_job(second.job_id)
    if is_text:
        print(verdict(first, second, verification))
    else:
        print(json.dumps(document(first, second, verification)))
    raise typer.Exit(ExitCode.DONE if verification.is_equal else ExitCode.JOB_FAILED)


def start_of(client: Client, job: job_pb2.Job, step: int) -> int:
    """The step of the newest sound checkpoint that the job still has up to a step."""
    there = [one.step for one in client.list_checkpoints(job.job_id) if not one.problem]
    if not there:
        raise refused("--from-step", f"job {job.job_id} has no checkpoint now; verify it from its first step")
    if (start := max((one for one in there if one <= step), default=0)) == 0:
        raise refused("--from-step", f"got {step}, expected at least {min(there)}, the oldest checkpoint there is")
    if start != step:
        say(f"no checkpoint of step {step}: beginning with that of step {start}")
    return start


def saved_digests(client: Client, job: job_pb2.Job) -> dict[int, str]:
    """The digests of the job's checkpoints, those that are deleted too, by their steps."""
    events = client.list_events(job.job_id)
    saved = [event.checkpoint_saved for event in events if event.WhichOneof("kind") == "checkpoint_saved"]
    digests: dict[int, str] = {}
    for one in saved:
        earlier = digests.setdefault(one.step, one.weights_digest)
        if earlier != one.weights_digest:  # after a restart
            text = (
                f"job {job.job_id} has saved different weights after step {one.step}: {earlier}, {one.weights_digest}"
            )
            raise CommandError(f"backprop: verify: {text}", code=ExitCode.JOB_FAILED)
    if not digests:
        raise CommandError(
            f"backprop: verify: job {job.job_id} has saved no checkpoint yet, there is nothing to compare"
        )
    return digests


def chosen(digests: Mapping[int, str], start: int, steps: int | None, *, only_next: bool) -> dict[int, str]:
    """Those of the digests that are to be compared, of steps after `start`."""
    later = {step: digest for step, digest in digests.items() if step > start}
    if not later:
        raise refused("--from-step", f"no checkpoint was saved after step {start}, there is nothing to compare")
    first = min(later)
    until = start + steps if steps is not None else first if only_next else max(later)
    if until < first:
        after = f" after step {start}" if start else ""
        raise refused("--steps", f"got {steps}, expected at least {first - start}, the first checkpoint{after}")
    return {step: digest for step, digest in later.items() if step <= until}


def submit_again(
    client: Client, first: job_pb2.Job, workers: int | None, expected: dict[int, str], *, start: int
) -> job_pb2.Job:
    """The second job. Leaves in `expected` what it will meet."""
    from service.convert import spec_from_proto
    from service.pb.backprop.v1 import job_pb2
    from service.verification import another_number_of_workers, spec_to_verify, steps_met
    from worker.violations import SpecError

    spec = spec_from_proto(first.spec)
    try:
        again = spec_to_verify(spec, first.job_id, workers=workers or another_number_of_workers(spec), saved=expected)
    except SpecError as error:
        raise CommandError(f"backprop: verify: --workers: {error}") from None
    met = steps_met(expected, again.checkpoint.every_steps, last=again.training.max_steps)
    for step in expected.keys() - set(met):
        del expected[step]
    begin = job_pb2.StartCheckpoint(job_id=first.job_id, step=start) if start else None
    return client.create_job(again, start_checkpoint=begin)


def follow(client: Client, job: job_pb2.Job, verification: Verification, *, is_text: bool) -> Verification:
    """Compares as the second job trains, and ends it when there is nothing more to learn."""
    from service.cli.follow import now
    from service.cli.show import TERMINAL, outcome_lines

    told = ""
    try:
        for event in client.watch_job(job.job_id):
            if event.WhichOneof("kind") == "checkpoint_saved":
                saved = event.checkpoint_saved
                compared = verification.compare(saved.step, saved.weights_digest)
                if compared is not None and is_text:
                    print(line_of(compared), flush=True)
                if verification.is_complete and saved.step < job.total_steps:
                    end(client, job)
            elif event.WhichOneof("kind") == "progress":
                job = event.progress
                if is_text and not job.current_workers and job.state_message not in ("", told):
                    say(told := job.state_message)
    except KeyboardInterrupt:
        end(client, job)
        raise
    if not verification.is_complete:
        assert job.state in TERMINAL
        why = outcome_lines(job, now=now(), how_to_export="")[0]
        raise CommandError(f"backprop: verify: the second job ended too early: {why}", code=ExitCode.JOB_FAILED)
    return verification


def refused(option: str, why: str) -> CommandError:
    """An option that cannot be served."""
    return CommandError(f"backprop: verify: {option}: {why}")


def end(client: Client, job: job_pb2.Job) -> None:
    """Cancels a job, unless it has just ended by itself."""
    from service.client import ClientError

    try:
        client.cancel_job(job.job_id)
    except ClientError as error:
        if error.reason != "JOB_FINISHED":
            raise


def workers_of(job: job_pb2.Job) -> str:
    """How many workers it has, in words."""
    return f"{job.wanted_workers} worker{'s' * (job.wanted_workers != 1)}"


def line_of(compared: Compared) -> str:
    """One comparison."""
    if compared.is_equal:
        return f"step {compared.step:>8}  same       {compared.found}"
    return f"step {compared.step:>8}  DIFFERENT  {compared.expected} before, {compared.found} now"


def verdict(first: job_pb2.Job, second: job_pb2.Job, verification: Verification) -> str:
    """What came out."""
    if verification.is_equal:
        number = len(verification.compared)
        at = f"at all {number} checkpoints" if number > 1 else f"after step {verification.agreed_until}"
        return f"OK: with {workers_of(second)}, {first.job_id} has the same weights {at}"
    between = f"between step {verification.agreed_until} and step {verification.parted_at}"
    return f"DIFFERENT: the runs part {between}; {second.job_id} is kept"


def document(first: job_pb2.Job, second: job_pb2.Job, verification: Verification) -> dict[str, object]:
    """What came out, for programs."""
    return {
        "job_id": first.job_id,
        "verify_job_id": second.job_id,
        "workers": second.wanted_workers,
        "from_step": verification.start,
        "is_equal": verification.is_equal,
        "agreed_until": verification.agreed_until,
        "parted_at": verification.parted_at,
        "checkpoints": [
            {"step": one.step, "expected": one.expected, "found": one.found, "is_equal": one.is_equal}
            for one in verification.compared
        ],
    }
