"""One attempt at a job: a run from its launch, or from where it is found, to its end; its news enter the job's record.

What the job's record says the run is told: its state, whether it is to stop, and `Attempt.aim`, how many workers it
is to have. Changes jobs through the ledger alone. Knows neither Ray nor gRPC.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from service import limits
from service.directories import JobDirectories
from service.jobs import Happening, JobState, Trigger
from service.ledger import Ledger, LiveJob
from service.metrics import Metrics
from service.reports import absorb, absorb_progress, move
from service.runs import Cluster, News, Run, RunLostError, RunPaused, RunStopped, Survivor

log = logging.getLogger(__name__)
STOPPING = (JobState.PAUSING, JobState.CANCELLING)


class Attempt:
    """A launched job. `task` runs it; `freed` is called when it holds fewer worker slots than before.

    Where the cluster keeps runs and the task is cancelled, for the service stops, the run goes on.
    """

    task: asyncio.Task[None]

    def __init__(
        self,
        live: LiveJob,
        start: int | Survivor,  # with so many workers, or with what is there
        *,
        ledger: Ledger,
        cluster: Cluster,
        directories: JobDirectories,
        metrics: Metrics,
        clock: Callable[[], float],
        patience: limits.Patience,
        freed: Callable[[], None],
    ) -> None:
        self._live, self._ledger, self._cluster, self._directories = live, ledger, cluster, directories
        self._metrics, self._clock, self._patience, self._freed = metrics, clock, patience, freed
        self._survivor = start if isinstance(start, Survivor) else None
        self._target = self._told = start.workers if isinstance(start, Survivor) else start
        self._held = start.slots_held if isinstance(start, Survivor) else 0  # as the run last said
        self._dropped = 0

    def __repr__(self) -> str:
        return f"<Attempt {self._live.job.job_id}, {self._target} workers wanted, {self.slots} slots held>"

    @property
    def target(self) -> int:
        """The workers that the run is to have."""
        return self._target

    @property
    def slots(self) -> int:
        """The worker slots that nobody else can have: those of workers that are to go, too, until they are gone."""
        return max(self._target, self._held)

    def aim(self, workers: int) -> None:
        """Wants so many workers from now on; the run is told before it is next asked for news."""
        self._held, self._target = self.slots, workers

    async def run(self) -> None:
        """Launches the run, unless it is there, and follows it to its end. Raises RunLostError."""
        run, is_over = self._survivor.run if self._survivor is not None else await self._launch(), True
        try:
            await self._follow(run)
        except asyncio.CancelledError:
            is_over = not self._cluster.keeps_runs
            raise
        finally:
            if is_over:
                await self._close(run)

    async def _launch(self) -> Run:
        job = self._live.job
        directory = await self._directories.make(job.job_id)
        try:
            async with asyncio.timeout(self._patience.launch_seconds):
                return await self._cluster.launch(job, self._told, directory)
        except TimeoutError:
            raise RunLostError(f"the workers were not there after {self._patience.launch_seconds:g} s") from None

    async def _follow(self, run: Run) -> None:
        """Takes in a run's news until it has ended, or has had its time to end after it was asked to."""
        live, asked, deadline = self._live, None, 0.0
        loop = asyncio.get_running_loop()
        while not live.job.state.is_terminal:
            if live.job.state in STOPPING and live.job.state is not asked:
                asked = live.job.state
                deadline = loop.time() + await self._stop(run)
            elif asked is None and self._target != self._told:
                await self._scale(run)
            if asked is not None and loop.time() > deadline:
                log.warning("job %s did not stop in time: its run is ended by force", live.job.job_id)
                return
            told = self._told
            try:
                async with asyncio.timeout(self._patience.news_seconds):
                    news = await run.news(live.job.reports_taken)
            except TimeoutError:
                raise RunLostError(f"the coordinator did not answer for {self._patience.news_seconds:g} s") from None
            if self._target == told:
                self._hold(news.slots_held)
            if await self._take_in(news):
                return
            await asyncio.sleep(self._patience.poll_seconds)

    async def _stop(self, run: Run) -> float:
        """Asks the run to stop; the seconds that it has for that."""
        if self._live.job.state is JobState.CANCELLING:
            await run.cancel()
            return self._patience.cancel_seconds
        await run.pause()
        return self._patience.pause_seconds

    async def _scale(self, run: Run) -> None:
        """Tells the run how many workers are wanted; one that has no room for so many makes way for another run."""
        if self._target <= run.capacity:
            self._told = self._target
            await run.scale(self._told)
            return
        live, message = self._live, f"starts again with room for {self._target} workers"
        async with live.lock:
            if live.job.state not in STOPPING and not live.job.state.is_terminal:
                job, happenings = move(live.job, Trigger.PAUSE, now=self._clock(), message=message)
                await self._ledger.record_surely(live, job, happenings)

    def _hold(self, slots: int) -> None:
        before, self._held = self.slots, slots
        if self.slots < before:
            self._freed()

    async def _take_in(self, news: News) -> bool:
        """Records a run's news; whether the run has stopped."""
        live, reports = self._live, news.reports
        live.samples.add(news.steps)  # before the job may end, and its readers with it
        has_stopped = bool(reports) and isinstance(reports[-1], RunStopped | RunPaused)
        if has_stopped:  # counts when the run is closed, and nothing is left of it: until then it is told again
            reports = reports[:-1]
        async with live.lock:
            job = replace(absorb_progress(live.job, news.progress), reports_taken=news.last_report - has_stopped)
            happenings: list[Happening] = []
            for report in reports:
                job, more = absorb(job, report, now=self._clock())
                happenings.extend(more)
            if job != live.job or happenings:
                await self._ledger.record_surely(live, job, happenings)
        self._metrics.observe_news(live.job, news)
        if news.reports_dropped > self._dropped:
            log.warning("job %s: %d events were lost: too many while nobody asked", job.job_id, news.reports_dropped)
            self._dropped = news.reports_dropped
        if has_stopped and live.job.state not in STOPPING and not live.job.state.is_terminal:
            raise RunLostError("the run stopped although nobody asked it to")
        return has_stopped

    async def _close(self, run: Run) -> None:
        """Ends what is left of a run; an error in that must not hide what became of the job."""
        try:
            async with asyncio.timeout(self._patience.close_seconds):
                await run.close()
        except Exception:
            log.exception("job %s: its run could not be closed", self._live.job.job_id)
