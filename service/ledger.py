"""The jobs of a service: unfinished ones in memory, all of them in the store, watched by whoever asks.

A change of a job goes through `Ledger.record`: stored first, then seen. Progress alone is stored only now and then,
for it can be made again. Decides nothing about a job: that is done by `reports`, `scheduler` and `dispatcher`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from service import limits
from service.errors import InvalidRequest, NotFound, Unavailable
from service.jobs import Happening, Job, JobEvent, JobState
from service.metrics import Metrics
from service.runs import StepSample
from service.samples import SampleLog
from service.store import JobStore, Page, Request
from service.watch import Feed
from worker.violations import Violation

log = logging.getLogger(__name__)


@dataclass(eq=False)
class LiveJob:
    """An unfinished job. `job` is replaced, never changed; whoever replaces it holds `lock` from reading to writing."""

    job: Job
    last_event_id: int
    saved_at: float
    samples: SampleLog
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Ledger:
    """Jobs and their history, for everyone in the service."""

    def __init__(
        self,
        store: JobStore,
        *,
        metrics: Metrics,
        clock: Callable[[], float],
        retry_seconds: float = limits.RETRY_STORE_SECONDS,
    ) -> None:
        self._store, self._metrics, self._clock, self._retry_seconds = store, metrics, clock, retry_seconds
        self._feed = Feed()
        self._live: dict[str, LiveJob] = {}  # oldest first

    @property
    def live(self) -> Mapping[str, LiveJob]:
        """The unfinished jobs, oldest first."""
        return self._live

    async def open(self) -> None:
        """Reads the unfinished jobs of the service's last life."""
        for job in await self._store.unfinished():
            last = await self._store.last_event_id(job.job_id)
            stored = await self._store.samples(job.job_id, 0, limit=limits.MAX_SAMPLES + 1)
            self._live[job.job_id] = LiveJob(job, last, self._clock(), _log_of(job, stored))
        self._metrics.count_jobs(await self._store.counts())

    def close(self) -> None:
        """Sends every watcher away."""
        self._feed.close()

    async def create(self, job: Job, *, request: Request | None) -> Job:
        """Stores a new job; a request seen before gives the job that it made then."""
        stored = await self._store.create(job, request=request)
        if stored.job_id == job.job_id:
            self._live[job.job_id] = LiveJob(job, 1, self._clock(), _log_of(job))
            self._metrics.observe_job(None, job)
        return self._newest(stored)

    async def find(self, request: Request) -> Job | None:
        """The job that a request made earlier."""
        job = await self._store.find(request)
        return None if job is None else self._newest(job)

    async def get(self, job_id: str) -> Job:
        """One job as it stands now; raises NotFound."""
        if len(job_id) > limits.MAX_JOB_ID_LENGTH:
            raise NotFound(f"{job_id[: limits.MAX_JOB_ID_LENGTH]}...")
        live = self._live.get(job_id)
        return live.job if live is not None else await self._store.get(job_id)

    async def knows(self, job_id: str) -> bool:
        """Whether there is such a job."""
        try:
            await self.get(job_id)
            return True
        except NotFound:
            return False

    async def page(self, *, states: Collection[JobState], before: int | None, size: int) -> Page:
        """Jobs, newest first; see JobStore.page."""
        page = await self._store.page(states=states, before=before, size=size)
        return replace(page, jobs=tuple(map(self._newest, page.jobs)))

    def _newest(self, job: Job) -> Job:
        live = self._live.get(job.job_id)
        return job if live is None else live.job

    async def record(self, live: LiveJob, job: Job, happenings: Sequence[Happening] = ()) -> None:
        """Makes `job` what the live job is now. The caller holds its lock. Raises Unavailable; then nothing changed."""
        now = self._clock()
        is_due = now - live.saved_at >= limits.SAVE_PROGRESS_SECONDS
        if happenings or is_due or job.reports_taken != live.job.reports_taken:  # those are never told again
            samples, stride = live.samples.unsaved, live.samples.stride
            await self._store.save(job, happenings, now=now, samples=samples, stride=stride)
            live.samples.note_saved(samples)
            live.saved_at = now
        before, live.job = live.job, job
        live.last_event_id += len(happenings)
        self._metrics.observe_job(before, job, happenings)
        self._feed.notify(job.job_id)

    async def record_surely(self, live: LiveJob, job: Job, happenings: Sequence[Happening] = ()) -> None:
        """Like `record`, but a store that cannot write (a full disk) is tried again until it can."""
        while True:
            try:
                return await self.record(live, job, happenings)
            except Unavailable as error:
                log.error("job %s: %s; trying again in %g s", job.job_id, error, self._retry_seconds)
                await asyncio.sleep(self._retry_seconds)

    def retire(self, job_id: str) -> None:
        """Takes a finished job, of which nothing runs any more, out of memory."""
        self._live.pop(job_id, None)

    async def delete(self, job: Job) -> None:
        """Removes a finished job."""
        await self._store.delete(job.job_id)
        self._metrics.drop(job)
        self._feed.notify(job.job_id)

    async def watch(self, job_id: str, after_event_id: int) -> AsyncGenerator[JobEvent | Job]:
        """The job's events after a given one, and between them its newest progress; ends with the finished job."""
        cursor, shown = after_event_id, None
        _, last = await self._now(job_id)
        if not 0 <= cursor <= last:
            violation = f"got {cursor}, expected a number from 0 to {last}, the job's newest event"
            raise InvalidRequest([Violation("after_event_id", violation)])
        while True:
            change = self._feed.next_change(job_id)
            job, last = await self._now(job_id)
            while cursor < last:
                for event in await self._store.events(job_id, cursor):
                    if event.event_id > last:  # stored already, but the job as we have it is older
                        break
                    yield event
                    cursor = event.event_id
            if job is not shown:
                yield job
                shown = job
            if job.state.is_terminal:
                return
            await change.wait()

    async def steps(self, job_id: str, after_step: int) -> AsyncGenerator[StepSample]:
        """The metrics of the job's steps after a given one, as they come; ends with the job."""
        cursor, total = after_step, (await self.get(job_id)).spec.training.max_steps
        if not 0 <= cursor <= total:
            violation = f"got {cursor}, expected a number from 0 to {total}, the job's last step"
            raise InvalidRequest([Violation("after_step", violation)])
        while True:
            change = self._feed.next_change(job_id)
            job = await self.get(job_id)
            while samples := await self._samples(job_id, cursor):
                for sample in samples:
                    yield sample
                    cursor = sample.step
            if job.state.is_terminal:
                return
            await change.wait()

    async def _samples(self, job_id: str, after: int) -> Sequence[StepSample]:
        if (live := self._live.get(job_id)) is not None:
            return live.samples.after(after)
        return await self._store.samples(job_id, after, limit=limits.SAMPLES_PER_READ)

    async def _now(self, job_id: str) -> tuple[Job, int]:
        """The job and the number of its newest event, both of the same moment."""
        job = await self.get(job_id)
        live = self._live.get(job_id)
        if live is not None:
            return live.job, live.last_event_id
        return job, await self._store.last_event_id(job_id)


def _log_of(job: Job, stored: Sequence[StepSample] = ()) -> SampleLog:
    return SampleLog(stored, total=job.spec.training.max_steps)
