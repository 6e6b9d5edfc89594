"""How jobs and events look to a human: words and tables. Knows the answers of the service, no commands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from service.documents import document_of, enum_name
from service.pb.backprop.v1 import job_pb2

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.console import Console

MAX_NUMBERS = 8  # of workers on one line
WIDTH_WITHOUT_TERMINAL = 200  # a table that is piped into a file must not be squeezed into 80 columns
TERMINAL = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


def make_console() -> Console:
    """Standard output for humans: colours and bars on a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL, highlight=False, markup=False)


def state_of(job: job_pb2.Job) -> str:
    """A job's state, such as RUNNING."""
    return enum_name(job_pb2.JobState.DESCRIPTOR, job.state)


def reason_of(number: int) -> str:
    """Why a job is in its state, such as WORKER_LOST; empty for no particular reason."""
    return enum_name(job_pb2.StateReason.DESCRIPTOR, number) if number else ""


def number(value: float | None, digits: int = 4) -> str:
    """A measured value, short."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if math.isfinite(value) else str(value)


def percent(value: float) -> str:
    """A share as users say it."""
    return f"{100 * value:.2f} %"


def span(seconds: float) -> str:
    """A duration: 0.8 s, 1:05, 2:03:04."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def local_time(timestamp: Timestamp) -> str:
    """A time on the user's clock."""
    return timestamp.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration_of(job: job_pb2.Job, *, now: datetime) -> float | None:
    """Seconds since the job's first start, or from there to its end; None before it."""
    if not job.HasField("start_time"):
        return None
    end = job.end_time.ToDatetime(tzinfo=UTC) if job.HasField("end_time") else now
    return max((end - job.start_time.ToDatetime(tzinfo=UTC)).total_seconds(), 0.0)


def evaluation_text(evaluation: job_pb2.Evaluation) -> str:
    """An evaluation in words."""
    accuracy = f", accuracy {percent(evaluation.accuracy)}" if evaluation.HasField("accuracy") else ""
    perplexity = f", perplexity {number(evaluation.perplexity)}" if evaluation.HasField("perplexity") else ""
    return f"held-out loss {number(evaluation.loss)}{accuracy}{perplexity}"


def progress_text(job: job_pb2.Job) -> str:
    """How far a job is, on one line."""
    parts = [f"step {job.steps_completed}/{job.total_steps}"]
    parts += [f"loss {number(job.loss)}"] if job.HasField("loss") else []
    if job.HasField("evaluation") and job.evaluation.HasField("accuracy"):
        parts.append(f"accuracy {percent(job.evaluation.accuracy)}")
    parts += [f"{job.samples_per_second:,.0f} samples/s"] if job.HasField("samples_per_second") else []
    parts += [f"{job.current_workers} worker{'s' * (job.current_workers != 1)}"] if job.current_workers else []
    if job.HasField("estimated_remaining"):
        parts.append(f"{span(job.estimated_remaining.ToTimedelta().total_seconds())} left")
    return ", ".join(parts)


def event_text(event: job_pb2.JobEvent) -> str:
    """What happened, on one line."""
    match event.WhichOneof("kind"):
        case "state_changed":
            changed = event.state_changed
            state = enum_name(job_pb2.JobState.DESCRIPTOR, changed.state)
            text = state + (f" ({reason_of(changed.reason)})" if changed.reason else "")
            return text + (f": {changed.message}" if changed.message else "")
        case "evaluation":
            return f"evaluation after step {event.evaluation.step}: {evaluation_text(event.evaluation)}"
        case "checkpoint_saved":
            saved = event.checkpoint_saved
            return f"checkpoint after step {saved.step}: {saved.size_bytes:,} bytes, digest {saved.weights_digest[:12]}"
        case "checkpoint_failed":
            return f"checkpoint after step {event.checkpoint_failed.step} failed: {event.checkpoint_failed.error}"
        case "checkpoint_corrupt":
            corrupt = event.checkpoint_corrupt
            return f"damaged checkpoint, the one before is used: {corrupt.path}: {corrupt.reason}"
        case "exactness_lost":
            lost_exactness = event.exactness_lost
            return f"goes on from step {lost_exactness.step} with other numerics: {lost_exactness.differences}"
        case "worker_lost":
            lost = event.worker_lost
            at = f" at {lost.phase}" if lost.phase else ""
            return f"worker {lost.rank} lost after step {lost.step}{at}: {lost.reason}"
        case "workers_changed":
            changed_to = event.workers_changed
            number_of = f"{changed_to.workers} worker{'s' * (changed_to.workers != 1)}"
            return f"{number_of} after step {changed_to.step}: {changed_to.reason}"
        case "workers_wanted":
            wanted = event.workers_wanted
            return f"{wanted.workers} worker{'s' * (wanted.workers != 1)} wanted: {wanted.reason}"
        case "worker_slow":
            slow = event.worker_slow
            part = f"it computes {slow.shards} shard{'s' * (slow.shards != 1)} from here on"
            return f"worker {slow.rank} is {slow.times:.1f} times slower after step {slow.step}: {part}"
        case "compilation_started":
            return f"worker {event.compilation_started.rank} compiles kernels, for the first such job on this machine"
        case "compilation_finished":
            finished = event.compilation_finished
            return f"compiled {finished.num_kernels} kernels in {span(finished.seconds)}"
        case "progress":
            return progress_text(event.progress)
    return "an event that this version of backprop does not know"


def jobs_table(jobs: Iterable[job_pb2.Job], console: Console, *, now: datetime) -> None:
    """Prints jobs as a table."""
    rows = [
        (
            job.job_id,
            state_of(job),
            f"{job.steps_completed}/{job.total_steps}",
            number(job.loss if job.HasField("loss") else None),
            percent(job.evaluation.accuracy) if job.evaluation.HasField("accuracy") else "-",
            str(job.current_workers or "-"),
            "-" if (seconds := duration_of(job, now=now)) is None else span(seconds),
            job.error or job.state_message,
        )
        for job in jobs
    ]
    if not rows:
        console.print("no jobs; submit one with `backprop submit FILE`")
        return
    print_table(("JOB", "STATE", "STEP", "LOSS", "ACCURACY", "WORKERS", "TIME", ""), rows, console)


def checkpoints_table(checkpoints: Iterable[job_pb2.Checkpoint], console: Console) -> None:
    """Prints checkpoints as a table."""
    rows = [
        (
            str(found.step),
            local_time(found.time),
            f"{found.size_bytes:,}",
            found.weights_digest[:12] or "-",
            found.problem or ("yes" if found.verified else "-"),
            found.location,
        )
        for found in checkpoints
    ]
    if not rows:
        console.print("no checkpoints")
        return
    print_table(("STEP", "TIME", "BYTES", "DIGEST", "VERIFIED", "LOCATION"), rows, console)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Prints a table without lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def job_facts(job: job_pb2.Job, *, now: datetime) -> Iterator[tuple[str, str]]:
    """What there is to say about a job, as pairs of name and value."""
    yield "job", job.job_id
    reason = reason_of(job.state_reason)
    yield "state", state_of(job) + (f" ({reason})" if reason else "")
    if job.error or job.state_message:
        yield "because", job.error or job.state_message
    yield "progress", progress_text(job)
    if job.HasField("evaluation"):
        yield "evaluation", f"after step {job.evaluation.step}: {evaluation_text(job.evaluation)}"
    yield "submitted", local_time(job.create_time)
    if job.HasField("start_checkpoint"):
        yield "begins with", f"the checkpoint of step {job.start_checkpoint.step} of {job.start_checkpoint.job_id}"
    if (seconds := duration_of(job, now=now)) is not None:
        yield "started", f"{local_time(job.start_time)}, attempt {job.attempt}, {span(seconds)}"
    yield "workers", cost_text(job)
    if job.num_parameters:
        yield "parameters", f"{job.num_parameters:,}"
    if job.weights_digest:
        yield "weights digest", job.weights_digest
    if job.model_path:
        yield "model", job.model_path


def cost_text(job: job_pb2.Job) -> str:
    """How well a job's shards fit so many workers: the share of their time in which they do not wait for one another.

    Every number of workers that it may have; numbers that make a step no shorter are left out where there are many.
    """
    from worker.plan import busy_share, useful_workers

    most = job.wanted_workers or job.spec.workers.max  # 0: from a service that is older than this command
    least = min(job.spec.workers.min, most)
    shards = job.spec.training.shards
    numbers = range(least, most + 1) if most - least < MAX_NUMBERS else useful_workers(least, most, shards)
    shares = ", ".join(f"{100 * busy_share(number, shards):.0f} % on {number}" for number in numbers)
    keep = "1 shard keeps" if shards == 1 else f"{shards} shards keep"
    return f"{least} to {most}; {keep} them busy {shares}"


def print_job(job: job_pb2.Job, console: Console, *, now: datetime) -> None:
    """Prints all about a job, and what was asked for."""
    import io

    from ruamel.yaml import YAML

    for name, value in job_facts(job, now=now):
        console.print(f"{name:<16}{value}")
    text, yaml = io.StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    yaml.dump(document_of(job.spec), text)
    console.print("\nasked for:")
    console.print("\n".join(f"  {line}" for line in text.getvalue().splitlines()))


def outcome_lines(job: job_pb2.Job, *, now: datetime, how_to_export: str) -> list[str]:
    """What came out of a finished job."""
    seconds = duration_of(job, now=now)
    took = "" if seconds is None else f" in {span(seconds)}"
    if job.state != job_pb2.JOB_STATE_SUCCEEDED:
        reason = reason_of(job.state_reason)
        why = job.error or job.state_message
        return [f"{job.job_id}: {state_of(job)}{f' ({reason})' if reason else ''}{f': {why}' if why else ''}"]
    lines = [f"{job.job_id}: SUCCEEDED{took}, {job.steps_completed} steps"]
    if job.HasField("evaluation"):
        if job.evaluation.HasField("accuracy"):
            lines.append(f"  held-out accuracy  {percent(job.evaluation.accuracy)}")
        lines.append(f"  held-out loss      {number(job.evaluation.loss)}")
    lines.append(f"  weights digest     {job.weights_digest}")
    lines.append(f"  model              {job.model_path}")
    lines.append(f"  export             {how_to_export}")
    return lines
