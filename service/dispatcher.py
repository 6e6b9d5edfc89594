"""Brings jobs and cluster together: does what the scheduler says and what users ask, recovers what was lost.

One task plans, one task for each attempt follows its run; they change jobs through the ledger alone. Knows neither
Ray nor gRPC.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from service import calls, limits
from service.attempts import STOPPING, Attempt
from service.directories import JobDirectories
from service.errors import FailedPrecondition, ResourceExhausted, Unavailable
from service.failures import Failures
from service.jobs import Job, JobState, StateReason, Trigger, WorkersWanted
from service.ledger import Ledger, LiveJob
from service.metrics import Metrics
from service.reports import BY_THE_USER, Outcome, move, rest
from service.runs import Cluster, RunLostError, Survivor
from service.scheduler import ClusterView, Launch, Preempt, Running, Scale, Wait, Waiting, plan
from service.store import Request

log = logging.getLogger(__name__)
Result = TypeVar("Result")
STARTABLE = (JobState.QUEUED, JobState.RECOVERING)
RESTING = (JobState.QUEUED, JobState.PAUSED)  # nothing of it runs
HAS_WORKERS = (JobState.STARTING, JobState.RUNNING, JobState.RECOVERING)  # and keeps them, once launched


class Dispatcher:
    """Owns every run."""

    def __init__(
        self,
        ledger: Ledger,
        cluster: Cluster,
        *,
        directories: JobDirectories,
        metrics: Metrics,
        clock: Callable[[], float],
        patience: limits.Patience = limits.PATIENCE,
        max_waiting_jobs: int = limits.MAX_WAITING_JOBS,
    ) -> None:
        self._ledger, self._cluster, self._directories = ledger, cluster, directories
        self._metrics, self._clock = metrics, clock
        self._patience, self._max_waiting_jobs = patience, max_waiting_jobs
        self._attempts: dict[str, Attempt] = {}
        self._failures: dict[str, Failures] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        self._replan = asyncio.Event()
        self._planner: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._ledger.live)} unfinished jobs, {len(self._attempts)} launched>"

    # --- Life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up the jobs of the service's last life, and starts to plan."""
        await self._directories.sweep(self._ledger.knows)
        launched = [live for live in self._ledger.live.values() if live.job.state not in RESTING]
        survivors = await self._cluster.survivors([live.job for live in launched])
        for live in launched:
            job_id = live.job.job_id
            if (survivor := survivors.get(job_id)) is not None:
                log.info("job %s: attempt %d has gone on, and is followed again", job_id, live.job.attempt)
                self._begin_attempt(live, survivor)
                continue
            message = "the service was restarted; the job goes on from its newest checkpoint"
            await self._move(live, Trigger.LOSE, reason=StateReason.SERVICE_RESTARTED, message=message)
            if live.job.state.is_terminal:
                self._ledger.retire(job_id)
        self._planner = asyncio.create_task(self._plan_forever(), name="planner")

    async def close(self) -> None:
        """Leaves the jobs' states as they are, for the next start; ends every run, unless the cluster keeps them."""
        tasks = [attempt.task for attempt in self._attempts.values()]
        if self._planner is not None:
            tasks.append(self._planner)
        for task in tasks:
            task.cancel()
        if self._cluster.keeps_runs and self._attempts:
            log.info("%d runs go on without the service", len(self._attempts))
        await asyncio.gather(*tasks, *self._calls, return_exceptions=True)

    @property
    def free_slots(self) -> int:
        """Worker slots that no job has."""
        return max(self._cluster.num_slots - sum(attempt.slots for attempt in self._attempts.values()), 0)

    # --- What users ask for: a call that has begun is carried out, even when its client goes away ------------------

    async def submit(self, job: Job, *, request: Request | None) -> Job:
        """Takes a new job; when this returns, it is on disk."""
        return await self._carry_out(self._submit(job, request))

    async def pause(self, job_id: str) -> Job:
        """Stops a job for a while; returns as soon as the call will not be forgotten."""
        now = self._clock()
        return await self._carry_out(
            self._change(job_id, lambda job, has_run: calls.pause(job, now=now, has_run=has_run))
        )

    async def resume(self, job_id: str) -> Job:
        """Queues a paused job again."""
        now = self._clock()
        return await self._carry_out(self._change(job_id, lambda job, _: calls.resume(job, now=now)))

    async def scale(self, job_id: str, workers: int) -> Job:
        """Sets the most workers that a job takes."""
        return await self._carry_out(self._change(job_id, lambda job, _: calls.scale(job, workers)))

    async def cancel(self, job_id: str) -> Job:
        """Stops a job; returns as soon as the cancellation will not be forgotten."""
        now = self._clock()
        return await self._carry_out(
            self._change(job_id, lambda job, has_run: calls.cancel(job, now=now, has_run=has_run))
        )

    async def delete(self, job_id: str) -> None:
        """Removes a finished job and its files."""
        await self._carry_out(self._delete(job_id))

    async def _carry_out(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await asyncio.shield(task)

    async def _submit(self, job: Job, request: Request | None) -> Job:
        waiting = sum(live.job.state is JobState.QUEUED for live in self._ledger.live.values())
        if waiting >= self._max_waiting_jobs:
            raise ResourceExhausted(
                f"{waiting} jobs are waiting already, expected less than {self._max_waiting_jobs}; try again later",
                reason="QUEUE_FULL",
            )
        stored = await self._create(job, request)
        self._replan.set()
        return stored

    async def _create(self, job: Job, request: Request | None) -> Job:
        if job.start_checkpoint is None:
            return await self._ledger.create(job, request=request)
        stored = None
        try:
            await self._directories.prepare(job.job_id, job.start_checkpoint)
            stored = await self._ledger.create(job, request=request)
            return stored
        finally:
            if stored is None or stored.job_id != job.job_id:
                await self._directories.discard(job.job_id)

    async def _change(self, job_id: str, call: Callable[[Job, bool], Outcome]) -> Job:
        """What a call makes of a job, which has a run or not; stored before it returns."""
        live = self._ledger.live.get(job_id)
        if live is None:
            job, _ = call(await self._ledger.get(job_id), False)  # it is finished: the call is refused, or finds it so
            if not job.state.is_terminal:  # created a moment ago, by a call that is not through yet
                raise Unavailable(f"job {job.job_id} is not ready to be changed; try again", reason="TRY_AGAIN")
            return job
        async with live.lock:
            job, happenings = call(live.job, job_id in self._attempts)
            if happenings:
                await self._ledger.record(live, job, happenings)
        if job.state.is_terminal and job_id not in self._attempts:
            self._retire(job_id)
        self._replan.set()
        return job

    async def _delete(self, job_id: str) -> None:
        job = await self._ledger.get(job_id)
        if not job.state.is_terminal:
            raise FailedPrecondition(
                f"cannot delete job {job_id}: got state {job.state.upper()}, expected a finished job; cancel it first",
                reason="JOB_NOT_FINISHED",
            )
        if (attempt := self._attempts.get(job_id)) is not None:  # its workers are still being ended
            await asyncio.wait({attempt.task})
        hidden = await self._directories.hide(job_id)
        await self._ledger.delete(job)
        await self._directories.remove(hidden)

    # --- Planning -------------------------------------------------------------------------------------------------

    async def _plan_forever(self) -> None:
        while True:
            self._replan.clear()
            pause = self._patience.replan_seconds
            try:
                next_time = await self._plan_once()
                if next_time is not None:
                    pause = min(pause, max(next_time - self._clock(), 0.01))
            except Exception:
                log.exception("planning failed; trying again in %g s", pause)
            with suppress(TimeoutError):  # asyncio.wait_for may swallow a cancellation before Python 3.12
                async with asyncio.timeout(pause):
                    await self._replan.wait()

    async def _plan_once(self) -> float | None:
        """Does what the scheduler says; the time to plan again although nothing has changed."""
        live = dict(self._ledger.live)  # jobs may end while the plan is carried out: each step looks again
        waiting = [
            Waiting(one.job, not_before=self._failures.get(job_id, Failures()).not_before)
            for job_id, one in live.items()
            if one.job.state in STARTABLE and job_id not in self._attempts
        ]
        running = [
            Running(one.job, attempt.target, attempt.slots, is_leaving=one.job.state not in HAS_WORKERS)
            for job_id, one in live.items()
            if (attempt := self._attempts.get(job_id)) is not None
        ]
        view = ClusterView(self._cluster.num_slots, self.free_slots)
        decided = plan(self._clock(), waiting, view, running)
        for job_id, wait in decided.waits.items():
            await self._tell(live[job_id], wait)
        for preempt in decided.preemptions:
            await self._preempt(live[preempt.job_id], preempt)
        for scale in decided.scales:
            await self._scale(live[scale.job_id], scale)
        for launch in decided.launches:
            await self._begin(live[launch.job_id], launch)
        return decided.next_time

    async def _tell(self, live: LiveJob, wait: Wait) -> None:
        """Shows why a queued job waits; no event, for it may change with every other job."""
        async with live.lock:
            job, reason, message = live.job, wait.reason, wait.message
            if job.state_reason is StateReason.PREEMPTED:
                reason, message = job.state_reason, f"made way for a job of higher priority; {message}"
            if job.state is JobState.QUEUED and (job.state_reason, job.state_message) != (reason, message):
                await self._ledger.record(live, replace(job, state_reason=reason, state_message=message))

    async def _preempt(self, live: LiveJob, preempt: Preempt) -> None:
        """Pauses a running job, which is queued again when nothing of it runs."""
        async with live.lock:
            if live.job.state in HAS_WORKERS:
                now, reason = self._clock(), StateReason.PREEMPTED
                job, happenings = move(live.job, Trigger.PAUSE, now=now, reason=reason, message=preempt.reason)
                await self._ledger.record(live, job, happenings)
        log.info("job %s: preempted: %s", preempt.job_id, preempt.reason)

    async def _scale(self, live: LiveJob, scale: Scale) -> None:
        """Gives a running job another number of workers."""
        async with live.lock:
            attempt = self._attempts.get(scale.job_id)
            if attempt is None or live.job.state not in HAS_WORKERS:
                return
            await self._ledger.record(live, live.job, [WorkersWanted(scale.workers, scale.reason)])
            attempt.aim(scale.workers)
        log.info("job %s: %d workers wanted: %s", scale.job_id, scale.workers, scale.reason)

    async def _begin(self, live: LiveJob, launch: Launch) -> None:
        job_id = launch.job_id
        async with live.lock:
            if live.job.state not in STARTABLE or job_id in self._attempts:  # cancelled in the meantime
                return
            workers = f"{launch.workers} worker{'s' * (launch.workers > 1)}"
            job, happenings = move(live.job, Trigger.LAUNCH, now=self._clock(), message=f"starting {workers}")
            await self._ledger.record(live, job, happenings)
            self._begin_attempt(live, launch.workers)
        log.info("job %s: attempt %d with %s", job_id, job.attempt, workers)

    def _begin_attempt(self, live: LiveJob, start: int | Survivor) -> None:
        job_id = live.job.job_id
        attempt = self._attempts[job_id] = Attempt(
            live,
            start,
            ledger=self._ledger,
            cluster=self._cluster,
            directories=self._directories,
            metrics=self._metrics,
            clock=self._clock,
            patience=self._patience,
            freed=self._replan.set,
        )
        attempt.task = asyncio.create_task(self._attempt(live, attempt), name=f"attempt {job_id}")

    # --- One attempt ------------------------------------------------------------------------------------------------

    async def _attempt(self, live: LiveJob, attempt: Attempt) -> None:
        """From launch to end of one run. Whatever goes wrong in here is this job's affair alone."""
        job_id = live.job.job_id
        try:
            try:
                await attempt.run()
            except RunLostError as error:
                await self._lose(live, str(error))
            except Exception as error:
                log.exception("job %s: an error inside the service", job_id)
                message = f"an error inside the service: {type(error).__name__}: {error}"
                await self._move(live, Trigger.FAIL, reason=StateReason.INTERNAL, message=message)
            if live.job.state in STOPPING:
                await self._move(live, Trigger.STOP)
        finally:
            self._attempts.pop(job_id, None)
            if live.job.state.is_terminal:
                self._retire(job_id)
            self._replan.set()
        log.info("job %s: %s %s", job_id, live.job.state, live.job.state_message)

    async def _lose(self, live: LiveJob, message: str) -> None:
        """The run died: the job is started again, unless it keeps dying without getting any further."""
        if live.job.state is JobState.PAUSING:  # it goes on from its newest checkpoint, when it goes on
            await self._move(live, Trigger.LOSE)
            return
        failures = self._failures.setdefault(live.job.job_id, Failures())
        if not failures.note(live.job.progress.steps_completed, now=self._clock(), patience=self._patience):
            why = f"lost {failures.count} times in a row without getting beyond step {failures.furthest}: {message}"
            await self._move(live, Trigger.FAIL, reason=StateReason.TOO_MANY_FAILURES, message=why)
            return
        await self._move(live, Trigger.LOSE, reason=StateReason.COORDINATOR_LOST, message=message)

    async def _move(
        self, live: LiveJob, trigger: Trigger, *, reason: StateReason = StateReason.UNSPECIFIED, message: str = ""
    ) -> None:
        """Moves an unfinished job of which nothing runs; what the user asked for counts, whatever else befell it."""
        async with live.lock:
            if live.job.state is JobState.PAUSING and trigger in (Trigger.STOP, Trigger.LOSE):
                job, happenings = rest(live.job, now=self._clock())
                await self._ledger.record_surely(live, job, happenings)
                return
            if live.job.state is JobState.CANCELLING:
                trigger, reason, message = Trigger.STOP, StateReason.USER_REQUEST, BY_THE_USER
            if not live.job.state.is_terminal:
                job, happenings = move(live.job, trigger, now=self._clock(), reason=reason, message=message)
                await self._ledger.record_surely(live, job, happenings)

    def _retire(self, job_id: str) -> None:
        self._failures.pop(job_id, None)
        self._ledger.retire(job_id)
