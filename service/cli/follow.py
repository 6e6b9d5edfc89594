"""Following a job live: a progress bar on a terminal, lines elsewhere, JSON on request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from service.cli.show import event_text, make_console, progress_text, state_of
from service.documents import to_json
from service.pb.backprop.v1 import job_pb2

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY_SECONDS = 5.0  # without a terminal: enough to see that it lives, few enough to read afterwards


class Output(StrEnum):
    """How a command shows its result."""

    TEXT = "text"
    JSON = "json"


class View(Protocol):
    """Shows a stream of events."""

    def show(self, event: job_pb2.JobEvent) -> None:
        """Takes in the next event."""
        ...


class JsonView:
    """One event a line."""

    def show(self, event: job_pb2.JobEvent) -> None:
        """See View."""
        print(to_json(event), flush=True)


class LineView:
    """Lasting events as they come, progress now and then."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._next_line = clock() + LINE_EVERY_SECONDS

    def show(self, event: job_pb2.JobEvent) -> None:
        """See View."""
        if event.event_id == 0:
            if self._clock() < self._next_line or not event.progress.current_workers:
                return
            self._next_line = self._clock() + LINE_EVERY_SECONDS
        self._console.print(event_text(event))


class BarView:
    """A progress bar at the bottom, what happens scrolls by above it."""

    def __init__(self, bar: Any, console: Console) -> None:
        self._bar, self._console = bar, console
        self._task = bar.add_task("", total=None, facts="")

    def show(self, event: job_pb2.JobEvent) -> None:
        """See View."""
        if event.event_id != 0:
            self._console.print(event_text(event))
            return
        job = event.progress
        waiting = job.state_message if not job.current_workers else ""
        self._bar.update(
            self._task,
            total=job.total_steps,
            completed=job.steps_completed,
            description=state_of(job),
            facts=waiting or facts_beside_bar(job),
        )


def facts_beside_bar(job: job_pb2.Job) -> str:
    """The numbers behind a progress bar."""
    return progress_text(job).partition(", ")[2]


@contextmanager
def view_of(output: Output) -> Iterator[View]:
    """What suits the output: JSON, a live bar, or plain lines."""
    if output is Output.JSON:
        yield JsonView()
        return
    console = make_console()
    if not console.is_terminal:
        yield LineView(console)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, transient=True, refresh_per_second=5) as bar:
        yield BarView(bar, console)


def follow(events: Iterable[job_pb2.JobEvent], output: Output) -> job_pb2.Job | None:
    """Shows a job's events until they end; the job as it stood then."""
    job: job_pb2.Job | None = None
    with view_of(output) as view:
        for event in events:
            if event.WhichOneof("kind") == "progress":
                job = event.progress
            view.show(event)
    return job


def now() -> datetime:
    """The time, for durations of jobs that run."""
    return datetime.now(UTC)
