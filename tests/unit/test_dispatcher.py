"""Jobs from submission to their end, over runs that follow a script: launch, recovery, cancellation, deletion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from service import limits
from service.admission import new_job_id
from service.directories import JobDirectories
from service.dispatcher import Dispatcher
from service.errors import FailedPrecondition, InvalidRequest, NotFound, ResourceExhausted, Unavailable
from service.fake_cluster import NUM_PARAMETERS, FakeCluster, FakeRun, Script, digest_of
from service.jobs import (
    CheckpointSaved,
    Happening,
    Job,
    JobEvent,
    JobState,
    StateChanged,
    StateReason,
    WorkerLost,
    WorkersChanged,
)
from service.ledger import Ledger
from service.metrics import Metrics
from service.runs import RunLostError, RunPaused, RunStarted
from service.store import JobStore, MemoryStore
from worker.spec import JobSpec

MakeSpec = Callable[..., JobSpec]
SECONDS = 20.0
HURRY = limits.Patience(poll_seconds=0, cancel_seconds=0.05, first_retry_seconds=0.001, max_retry_seconds=0.001)


class FailingStore(MemoryStore):
    """A store whose disk is full for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False
        self.refused = asyncio.Event()

    async def save(
        self, job: Job, happenings: Sequence[Happening] = (), *, now: float, **samples: Any
    ) -> tuple[JobEvent, ...]:
        """See JobStore."""
        if self.is_full:
            self.refused.set()
            raise Unavailable("disk full", reason="STORE_UNAVAILABLE")
        return await super().save(job, happenings, now=now, **samples)


@dataclass(eq=False)
class Bench:
    """A dispatcher with everything around it."""

    dispatcher: Dispatcher
    ledger: Ledger
    store: JobStore
    cluster: Any  # a FakeCluster, whose script and runs a test may look at; or a real one
    metrics: Metrics
    directory: Path
    seconds: float = SECONDS
    pause_seconds: float = 0.0

    async def submit(self, spec: JobSpec) -> str:
        """A new job's id."""
        job = Job(new_job_id(spec.name), spec, create_time=time.time())
        return (await self.dispatcher.submit(job, request=None)).job_id

    async def until(self, job_id: str, accept: Callable[[Job], bool]) -> Job:
        """The job as soon as it is accepted."""
        async with asyncio.timeout(self.seconds):
            while True:
                job = await self.ledger.get(job_id)
                if accept(job):
                    return job
                if job.state.is_terminal:
                    raise AssertionError(f"ended as {job.state}: {job.state_message}")
                await asyncio.sleep(self.pause_seconds)

    async def until_state(self, job_id: str, state: JobState) -> Job:
        """The job as soon as it is in a state."""
        return await self.until(job_id, lambda job: job.state is state)

    async def history(self, job_id: str) -> list[Happening]:
        """What has happened to a job."""
        return [event.happening for event in await self.store.events(job_id, 0)]

    async def states(self, job_id: str) -> list[str]:
        """The states a job went through, with their reasons."""
        changes = [happening for happening in await self.history(job_id) if isinstance(happening, StateChanged)]
        return [f"{one.state} {one.reason}".removesuffix(" unspecified") for one in changes]


MakeBench = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def make_bench(tmp_path: Path) -> AsyncIterator[MakeBench]:
    benches: list[Bench] = []

    async def make(
        *,
        cluster: FakeCluster | None = None,
        store: JobStore | None = None,
        patience: limits.Patience = HURRY,
        max_waiting_jobs: int = 100,
    ) -> Bench:
        cluster, store = cluster or FakeCluster(), store or MemoryStore()
        metrics = Metrics(version="test")
        ledger = Ledger(store, metrics=metrics, clock=time.time, retry_seconds=0.001)
        await ledger.open()
        directories = JobDirectories(tmp_path / "jobs")
        dispatcher = Dispatcher(
            ledger,
            cluster,
            directories=directories,
            metrics=metrics,
            clock=time.time,
            patience=patience,
            max_waiting_jobs=max_waiting_jobs,
        )
        await dispatcher.start()
        bench = Bench(dispatcher, ledger, store, cluster, metrics, tmp_path)
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.ledger.close()
        await bench.dispatcher.close()
        await bench.cluster.close()  # fails if a run is still open


async def test_a_job_runs_from_submission_to_success(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench()
    spec = make_spec(workers={"min": 2})
    job = await bench.until_state(await bench.submit(spec), JobState.SUCCEEDED)
    assert await bench.states(job.job_id) == ["queued", "starting", "running", "succeeded"]
    assert (job.progress.steps_completed, job.attempt, job.weights_digest) == (40, 1, digest_of(spec))
    assert job.evaluation is not None
    assert job.evaluation.step == 40
    assert Path(job.model_path).read_bytes().startswith(b"fake model")


async def test_the_store_has_what_memory_has(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench()
    job = await bench.until_state(await bench.submit(make_spec()), JobState.SUCCEEDED)
    assert await bench.store.get(job.job_id) == job


async def test_jobs_queue_and_say_what_they_wait_for(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(num_slots=2, script=Script(hold_at=10)))
    first = await bench.submit(make_spec(workers={"min": 2}))
    second = await bench.submit(make_spec(workers={"min": 1}))
    third = await bench.submit(make_spec(workers={"min": 1}))
    await bench.until(second, lambda job: job.state_message == "waits for 1 worker: 0 of 2 free")
    waiting = await bench.until(third, lambda job: job.state_message == f"waits behind job {second}")
    assert waiting.state_reason is StateReason.WAITING_FOR_EARLIER_JOBS
    assert bench.dispatcher.free_slots == 0
    bench.cluster.gate.set()
    for job_id in (first, second, third):
        await bench.until_state(job_id, JobState.SUCCEEDED)
    assert await bench.states(third) == ["queued", "starting", "running", "succeeded"]


async def test_a_lost_worker_is_an_event_and_the_same_run_goes_on(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(lose_worker_at=15)))
    job = await bench.until_state(await bench.submit(make_spec()), JobState.SUCCEEDED)
    assert await bench.states(job.job_id) == [
        "queued",
        "starting",
        "running",
        "recovering worker_lost",
        "running",
        "succeeded",
    ]
    lost = [happening for happening in await bench.history(job.job_id) if isinstance(happening, WorkerLost)]
    assert lost == [WorkerLost(rank=1, step=15, reason="killed: signal 9")]
    assert job.attempt == 1


async def test_a_fake_run_scales_and_pauses_like_a_real_one(tmp_path: Path, make_spec: MakeSpec) -> None:
    job = Job("test-abcdef", make_spec(workers={"min": 1, "max": 2}), create_time=0.0)
    cluster = FakeCluster(num_slots=2)
    run = await cluster.launch(job, 1, tmp_path)
    news = await run.news(0)
    await run.scale(2)
    news = await run.news(news.last_report)
    assert news.reports[0] == WorkersChanged(2, 0, "scaled to 2")
    assert news.progress.current_workers == 2
    await run.pause()
    reports = (await run.news(news.last_report)).reports
    assert isinstance(reports[0], CheckpointSaved)
    assert reports[1:] == (RunPaused(10),)
    await run.close()
    again = await cluster.launch(job, 1, tmp_path)
    assert (await again.news(0)).reports == (RunStarted(1, NUM_PARAMETERS, step=10),)
    await again.close()


def lose_first(attempts: int, **script: Any) -> Callable[[Job], Script]:
    """Loses the coordinator in the first attempts, and never after."""
    return lambda job: Script(**script) if job.attempt <= attempts else Script()


async def test_a_job_whose_coordinator_dies_starts_again_from_its_checkpoint(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    bench = await make_bench(cluster=FakeCluster(script=lose_first(1, lose_coordinator_at=25)))
    spec = make_spec()
    job = await bench.until_state(await bench.submit(spec), JobState.SUCCEEDED)
    assert await bench.states(job.job_id) == [
        "queued",
        "starting",
        "running",
        "recovering coordinator_lost",
        "starting",
        "running",
        "succeeded",
    ]
    assert (job.attempt, job.weights_digest) == (2, digest_of(spec))
    saved = [one.step for one in await bench.history(job.job_id) if isinstance(one, CheckpointSaved)]
    assert saved == [10, 20, 30, 40], "the second attempt went on from step 20"


async def test_a_job_that_keeps_dying_at_the_same_step_fails(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(lose_coordinator_at=25)))
    job_id = await bench.submit(make_spec())
    job = await bench.until_state(job_id, JobState.FAILED)
    assert job.state_reason is StateReason.TOO_MANY_FAILURES
    assert job.error == "lost 5 times in a row without getting beyond step 20: the coordinator died"
    assert job.attempt == HURRY.max_failed_attempts


async def test_a_job_that_gets_further_with_each_attempt_never_fails_for_its_losses(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    many = HURRY.max_failed_attempts + 3
    script = lambda job: Script(lose_coordinator_at=10 * job.attempt + 5) if job.attempt <= many else Script()  # noqa: E731
    bench = await make_bench(cluster=FakeCluster(script=script))
    job_id = await bench.submit(make_spec(training={"global_batch_size": 8, "max_steps": 200}))
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert job.attempt == many + 1


async def test_workers_that_never_start_fail_the_job_in_the_end(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(lose_launch=True)))
    job_id = await bench.submit(make_spec())
    job = await bench.until_state(job_id, JobState.FAILED)
    assert (job.state_reason, job.attempt) == (StateReason.TOO_MANY_FAILURES, HURRY.max_failed_attempts)


async def test_a_job_that_fails_says_why(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(fail_at=7)))
    job = await bench.until_state(await bench.submit(make_spec()), JobState.FAILED)
    assert (job.state_reason, job.error) == (
        StateReason.NON_FINITE,
        "step 7, shard 1: the gradient is not finite",
    )


async def test_a_bug_in_one_run_fails_that_job_and_no_other(
    make_bench: MakeBench, make_spec: MakeSpec, caplog: pytest.LogCaptureFixture
) -> None:
    script = lambda job: Script(break_at=5) if job.spec.name == "broken" else Script()  # noqa: E731
    bench = await make_bench(cluster=FakeCluster(script=script))
    broken = await bench.submit(make_spec(name="broken"))
    sound = await bench.submit(make_spec(name="sound"))
    job = await bench.until_state(broken, JobState.FAILED)
    assert (job.state_reason, job.error) == (
        StateReason.INTERNAL,
        "an error inside the service: ZeroDivisionError: a bug in the fake run",
    )
    assert "Traceback" in caplog.text
    await bench.until_state(sound, JobState.SUCCEEDED)
    await bench.until_state(await bench.submit(make_spec()), JobState.SUCCEEDED)


async def test_a_queued_job_is_cancelled_at_once(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(hold_at=10)))
    await bench.submit(make_spec(workers={"min": 2}))
    waiting = await bench.submit(make_spec())
    job = await bench.dispatcher.cancel(waiting)
    assert (job.state, job.state_reason) == (JobState.CANCELLED, StateReason.USER_REQUEST)
    assert await bench.states(waiting) == ["queued", "cancelled user_request"]


async def test_a_running_job_is_cancelled_when_nothing_of_it_runs(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(hold_at=10)))
    job_id = await bench.submit(make_spec())
    await bench.until_state(job_id, JobState.RUNNING)
    assert (await bench.dispatcher.cancel(job_id)).state is JobState.CANCELLING
    job = await bench.until_state(job_id, JobState.CANCELLED)
    assert bench.cluster.runs[0].is_closed
    assert job.end_time is not None
    assert await bench.states(job_id) == [
        "queued",
        "starting",
        "running",
        "cancelling user_request",
        "cancelled user_request",
    ]
    assert (await bench.dispatcher.cancel(job_id)).state is JobState.CANCELLED


async def test_a_run_that_ignores_its_cancellation_is_ended_by_force(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(hold_at=10, ignore_cancel=True)))
    job_id = await bench.submit(make_spec())
    await bench.until_state(job_id, JobState.RUNNING)
    await bench.dispatcher.cancel(job_id)
    await bench.until_state(job_id, JobState.CANCELLED)
    assert bench.cluster.runs[0].is_closed


@pytest.mark.parametrize("script", [Script(), Script(fail_at=5)])
async def test_a_finished_job_cannot_be_cancelled(make_bench: MakeBench, make_spec: MakeSpec, script: Script) -> None:
    bench = await make_bench(cluster=FakeCluster(script=script))
    job = await bench.until(await bench.submit(make_spec()), lambda job: job.state.is_terminal)
    with pytest.raises(FailedPrecondition, match=f"got state {job.state.upper()}, expected a job that is not finished"):
        await bench.dispatcher.cancel(job.job_id)


async def test_a_coordinator_that_does_not_answer_is_taken_for_dead(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    patience = replace(HURRY, news_seconds=0.02)
    bench = await make_bench(cluster=FakeCluster(script=lose_first(1, hang_at=15)), patience=patience)
    job = await bench.until_state(await bench.submit(make_spec()), JobState.SUCCEEDED)
    changes = [one for one in await bench.history(job.job_id) if isinstance(one, StateChanged)]
    assert "the coordinator did not answer for 0.02 s" in {change.message for change in changes}
    assert job.attempt == 2


async def test_workers_that_take_too_long_to_start_are_given_up(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    patience = replace(HURRY, launch_seconds=0.02)
    bench = await make_bench(cluster=FakeCluster(script=lose_first(1, hang_launch=True)), patience=patience)
    job = await bench.until_state(await bench.submit(make_spec()), JobState.SUCCEEDED)
    assert job.attempt == 2


async def test_a_cancelled_job_stays_cancelled_even_if_its_coordinator_dies(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    class DyingRun(FakeRun):
        async def cancel(self) -> None:
            raise RunLostError("the coordinator died")

    class DyingCluster(FakeCluster):
        async def launch(self, job: Job, workers: int, directory: Path) -> FakeRun:
            run = DyingRun(job, workers, directory=directory, script=Script(hold_at=10), gate=self.gate)
            self.runs.append(run)
            return run

    bench = await make_bench(cluster=DyingCluster())
    job_id = await bench.submit(make_spec())
    await bench.until_state(job_id, JobState.RUNNING)
    await bench.dispatcher.cancel(job_id)
    job = await bench.until_state(job_id, JobState.CANCELLED)
    assert job.state_reason is StateReason.USER_REQUEST


async def test_only_finished_jobs_can_be_deleted(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(hold_at=10)))
    job_id = await bench.submit(make_spec())
    await bench.until_state(job_id, JobState.RUNNING)
    with pytest.raises(FailedPrecondition, match="got state RUNNING, expected a finished job; cancel it first"):
        await bench.dispatcher.delete(job_id)


async def test_a_deleted_job_leaves_neither_record_nor_files_nor_series(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    bench = await make_bench()
    job_id = await bench.submit(make_spec())
    await bench.until_state(job_id, JobState.SUCCEEDED)
    assert job_id in bench.metrics.exposition().decode()
    await bench.dispatcher.delete(job_id)
    assert bench.dispatcher.free_slots == 2, "nothing of it runs any more"
    assert list((bench.directory / "jobs").iterdir()) == []
    assert job_id not in bench.metrics.exposition().decode()
    with pytest.raises(NotFound):
        await bench.ledger.get(job_id)


async def test_a_deletion_that_was_cut_off_is_finished_by_the_next_start(make_bench: MakeBench, tmp_path: Path) -> None:
    hidden = tmp_path / "jobs" / ".deleted-test-abcdef"
    hidden.mkdir(parents=True)
    (hidden / "model").touch()
    await make_bench()
    assert not hidden.exists()


async def test_a_full_queue_refuses_more(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(max_waiting_jobs=2, cluster=FakeCluster(num_slots=1, script=Script(hold_at=10)))
    await bench.until_state(await bench.submit(make_spec()), JobState.RUNNING)
    await bench.submit(make_spec())
    await bench.submit(make_spec())
    with pytest.raises(ResourceExhausted, match="2 jobs are waiting already, expected less than 2"):
        await bench.submit(make_spec())


# --- Restarts -------------------------------------------------------------------------------------------------------


async def stop(bench: Bench) -> None:
    """Ends a service as a signal does."""
    bench.ledger.close()
    await bench.dispatcher.close()


async def test_a_restarted_service_takes_up_what_ran(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    first = await make_bench(cluster=FakeCluster(script=Script(hold_at=15)))
    spec = make_spec(workers={"min": 2})
    running, queued = await first.submit(spec), await first.submit(spec)
    await first.until(running, lambda job: job.progress.steps_completed == 15)
    await stop(first)
    assert (await first.store.get(running)).state is JobState.RUNNING, "a stopped service leaves states as they are"
    assert first.cluster.runs[0].is_closed
    second = await make_bench(store=first.store)
    job = await second.until_state(running, JobState.SUCCEEDED)
    await second.until_state(queued, JobState.SUCCEEDED)
    assert await second.states(running) == [
        "queued",
        "starting",
        "running",
        "recovering service_restarted",
        "starting",
        "running",
        "succeeded",
    ]
    assert (job.attempt, job.weights_digest) == (2, digest_of(spec))
    assert await second.states(queued) == ["queued", "starting", "running", "succeeded"]


async def test_a_cancellation_that_was_acknowledged_survives_a_restart(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    store = MemoryStore()
    job = Job("test-abcdef", make_spec(), create_time=1.0, state=JobState.CANCELLING)
    await store.create(job)
    bench = await make_bench(store=store)
    stored = await bench.ledger.get(job.job_id)
    assert (stored.state, stored.state_reason) == (JobState.CANCELLED, StateReason.USER_REQUEST)
    assert bench.cluster.runs == []


# --- A store that fails -------------------------------------------------------------------------------------------


async def test_a_full_disk_delays_the_record_and_loses_nothing(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    store = FailingStore()
    bench = await make_bench(store=store, cluster=FakeCluster(script=Script(hold_at=10)))
    job_id = await bench.submit(make_spec())
    await bench.until_state(job_id, JobState.RUNNING)
    store.is_full = True
    bench.cluster.gate.set()
    await asyncio.wait_for(store.refused.wait(), SECONDS)
    assert (await bench.ledger.get(job_id)).state is JobState.RUNNING
    store.is_full = False
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert job.progress.steps_completed == 40


# --- Watching ---------------------------------------------------------------------------------------------------------


async def test_a_watcher_sees_every_event_once_and_the_job_last(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench()
    job_id = await bench.submit(make_spec())
    seen = [one async for one in bench.ledger.watch(job_id, 0)]
    events = [one for one in seen if isinstance(one, JobEvent)]
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert tuple(events) == await bench.store.events(job_id, 0)
    last = seen[-1]
    assert isinstance(last, Job)
    assert last.state is JobState.SUCCEEDED
    assert isinstance(seen[-2], JobEvent)


async def test_a_watcher_resumes_after_any_event(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench()
    job_id = await bench.submit(make_spec())
    await bench.until_state(job_id, JobState.SUCCEEDED)
    everything = await bench.store.events(job_id, 0)
    for after in range(len(everything) + 1):
        seen = [one async for one in bench.ledger.watch(job_id, after) if isinstance(one, JobEvent)]
        assert tuple(seen) == everything[after:]


@pytest.mark.parametrize("after", [-1, 2])
async def test_a_watcher_cannot_start_behind_the_newest_event(
    make_bench: MakeBench, make_spec: MakeSpec, after: int
) -> None:
    bench = await make_bench(cluster=FakeCluster(num_slots=0))
    job_id = await bench.submit(make_spec())
    with pytest.raises(InvalidRequest, match="expected a number from 0 to 1, the job's newest event"):
        await anext(bench.ledger.watch(job_id, after))


async def test_a_slow_watcher_gets_the_newest_progress_only_and_every_event(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(steps_per_news=1)))
    job_id = await bench.submit(make_spec())
    watch = bench.ledger.watch(job_id, 0)
    first = await anext(watch)
    assert isinstance(first, JobEvent)
    job = await bench.until_state(job_id, JobState.SUCCEEDED)  # forty steps pass while the watcher sleeps
    rest = [one async for one in watch]
    progress = [one for one in rest if isinstance(one, Job)]
    assert len(progress) <= 2
    assert progress[-1] == job
    numbers = [one.event_id for one in rest if isinstance(one, JobEvent)]
    assert numbers == list(range(2, await bench.store.last_event_id(job_id) + 1))


async def test_watchers_are_sent_away_when_the_service_stops(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(hold_at=10)))
    job_id = await bench.submit(make_spec())

    async def watch() -> None:
        async for _ in bench.ledger.watch(job_id, 0):
            pass

    watching = asyncio.create_task(watch())
    await bench.until(job_id, lambda job: job.progress.steps_completed == 10)
    bench.ledger.close()
    with pytest.raises(Unavailable, match="the service stops"):
        await asyncio.wait_for(watching, SECONDS)


async def test_a_call_whose_client_leaves_is_carried_out(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    class SlowStore(MemoryStore):
        entered, release = asyncio.Event(), asyncio.Event()

        async def create(self, job: Job, *, request: object = None) -> Job:
            self.entered.set()
            await self.release.wait()
            return await super().create(job)

    store = SlowStore()
    bench = await make_bench(store=store)
    job = Job("test-abcdef", make_spec(), create_time=1.0)
    call = asyncio.create_task(bench.dispatcher.submit(job, request=None))
    await store.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    store.release.set()
    async with asyncio.timeout(SECONDS):
        while job.job_id not in bench.ledger.live:
            await asyncio.sleep(0)
    await bench.until_state(job.job_id, JobState.SUCCEEDED)


async def test_a_dispatcher_tells_an_operator_what_it_does(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(hold_at=10)))
    await bench.until_state(await bench.submit(make_spec(workers={"min": 2})), JobState.RUNNING)
    await bench.submit(make_spec())
    assert repr(bench.dispatcher) == "<Dispatcher 2 unfinished jobs, 1 launched>"


async def test_what_a_run_tells_at_once_is_stored_at_once(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=Script(steps_per_news=40)))
    job = await bench.until_state(await bench.submit(make_spec()), JobState.SUCCEEDED)
    _queued, _starting, _running, *rest = await bench.store.events(job.job_id, 0)
    assert len(rest) == 7, "two evaluations, four checkpoints, success"
    assert len({event.time for event in rest}) == 1
