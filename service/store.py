"""Where jobs, their events and the requests that made them are kept.

A method returns when what it did is lasting: a job is acknowledged after its commit. `service.database` has the
store of a service, `MemoryStore` is the fake beside it; both pass the same contract tests. Knows no gRPC and no
state machine: it stores the jobs that it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service import limits
from service.errors import AlreadyExists, NotFound
from service.jobs import Happening, Job, JobEvent, JobState, StateChanged
from service.records import dump_job, load_job
from service.runs import StepSample


@dataclass(frozen=True)
class Request:
    """A client's own name for its call; `digest` is `records.spec_digest` of the spec it came with."""

    request_id: str
    digest: str


@dataclass(frozen=True)
class Page:
    """Jobs, newest first; `next_position` leads to the next page, None on the last."""

    jobs: tuple[Job, ...]
    next_position: int | None


class JobStore(Protocol):
    """Jobs and their history. Raises NotFound for an unknown job, Unavailable when nothing can be stored now."""

    async def create(self, job: Job, *, request: Request | None = None) -> Job:
        """Stores a new job and its first event; a request seen before gives the job it made then."""
        ...

    async def find(self, request: Request) -> Job | None:
        """The job that a request made; raises AlreadyExists when it came with another spec."""
        ...

    async def save(
        self,
        job: Job,
        happenings: Sequence[Happening] = (),
        *,
        now: float,
        samples: Sequence[StepSample] = (),
        stride: int = 1,
    ) -> tuple[JobEvent, ...]:
        """Stores the job as it is now together with what happened, all or nothing; the new events.

        The metrics of steps take the place of those that there are; others that `stride` does not divide are removed.
        """
        ...

    async def get(self, job_id: str) -> Job:
        """One job."""
        ...

    async def page(self, *, states: Collection[JobState] = (), before: int | None = None, size: int) -> Page:
        """Up to `size` jobs below position `before`, newest first; only those in `states`, if any are given."""
        ...

    async def unfinished(self) -> tuple[Job, ...]:
        """Every job that is not in a terminal state, oldest first."""
        ...

    async def counts(self) -> Mapping[JobState, int]:
        """Number of jobs in each state; a state without jobs may be absent."""
        ...

    async def events(self, job_id: str, after: int) -> tuple[JobEvent, ...]:
        """The job's events after number `after`, in order, up to limits.EVENTS_PER_READ of them."""
        ...

    async def last_event_id(self, job_id: str) -> int:
        """The number of the job's newest event."""
        ...

    async def samples(self, job_id: str, after: int, *, limit: int) -> tuple[StepSample, ...]:
        """The metrics of the job's steps after step `after`, in order, up to `limit` of them."""
        ...

    async def delete(self, job_id: str) -> None:
        """Removes a job with its events, its metrics and its request."""
        ...

    async def close(self) -> None:
        """Ends the store; safe to call twice."""
        ...


def check_same(request: Request, digest: str, job_id: str) -> None:
    """Raises AlreadyExists when a request_id comes back with another spec."""
    if request.digest != digest:
        raise AlreadyExists(
            f"request_id {request.request_id!r} already made job {job_id} from another spec, expected a new request_id",
            reason="REQUEST_ID_REUSED",
        )


class MemoryStore:
    """A store that forgets everything when it goes; for tests."""

    def __init__(self) -> None:
        self._jobs: dict[str, str] = {}  # oldest first
        self._positions: dict[str, int] = {}
        self._events: dict[str, list[JobEvent]] = {}
        self._samples: dict[str, dict[int, StepSample]] = {}
        self._requests: dict[str, tuple[Request, str]] = {}
        self._next_position = 1

    async def create(self, job: Job, *, request: Request | None = None) -> Job:
        """See JobStore."""
        if request is not None:
            if (earlier := await self.find(request)) is not None:
                return earlier
            self._requests[request.request_id] = (request, job.job_id)
        self._jobs[job.job_id] = dump_job(job)
        self._positions[job.job_id], self._next_position = self._next_position, self._next_position + 1
        self._events[job.job_id] = [JobEvent(job.job_id, 1, job.create_time, StateChanged(job.state))]
        return job

    async def find(self, request: Request) -> Job | None:
        """See JobStore."""
        known = self._requests.get(request.request_id)
        if known is None:
            return None
        check_same(request, known[0].digest, known[1])
        return await self.get(known[1])

    async def save(
        self,
        job: Job,
        happenings: Sequence[Happening] = (),
        *,
        now: float,
        samples: Sequence[StepSample] = (),
        stride: int = 1,
    ) -> tuple[JobEvent, ...]:
        """See JobStore."""
        await self.get(job.job_id)
        if samples:
            kept = {step: one for step, one in self._samples.get(job.job_id, {}).items() if step % stride == 0}
            self._samples[job.job_id] = kept | {one.step: one for one in samples}
        self._jobs[job.job_id] = dump_job(job)
        events = self._events[job.job_id]
        new = tuple(
            JobEvent(job.job_id, number, now, happening) for number, happening in enumerate(happenings, len(events) + 1)
        )
        events.extend(new)
        return new

    async def get(self, job_id: str) -> Job:
        """See JobStore."""
        if job_id not in self._jobs:
            raise NotFound(job_id)
        return load_job(self._jobs[job_id])

    async def page(self, *, states: Collection[JobState] = (), before: int | None = None, size: int) -> Page:
        """See JobStore."""
        below = [job_id for job_id, position in self._positions.items() if before is None or position < before]
        jobs = [load_job(self._jobs[job_id]) for job_id in reversed(below)]
        matching = [job for job in jobs if not states or job.state in states]
        shown = tuple(matching[:size])
        return Page(shown, self._positions[shown[-1].job_id] if len(matching) > size else None)

    async def unfinished(self) -> tuple[Job, ...]:
        """See JobStore."""
        return tuple(job for job in map(load_job, self._jobs.values()) if not job.state.is_terminal)

    async def counts(self) -> Mapping[JobState, int]:
        """See JobStore."""
        return Counter(load_job(text).state for text in self._jobs.values())

    async def events(self, job_id: str, after: int) -> tuple[JobEvent, ...]:
        """See JobStore."""
        await self.get(job_id)
        return tuple(self._events[job_id][max(after, 0) :][: limits.EVENTS_PER_READ])

    async def last_event_id(self, job_id: str) -> int:
        """See JobStore."""
        await self.get(job_id)
        return len(self._events[job_id])

    async def samples(self, job_id: str, after: int, *, limit: int) -> tuple[StepSample, ...]:
        """See JobStore."""
        await self.get(job_id)
        found = self._samples.get(job_id, {})
        return tuple(found[step] for step in sorted(found) if step > after)[:limit]

    async def delete(self, job_id: str) -> None:
        """See JobStore."""
        await self.get(job_id)
        self._samples.pop(job_id, None)
        del self._jobs[job_id], self._events[job_id], self._positions[job_id]
        self._requests = {key: known for key, known in self._requests.items() if known[1] != job_id}

    async def close(self) -> None:
        """See JobStore."""
