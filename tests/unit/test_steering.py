"""Jobs that are paused, resumed, scaled and preempted while they run, over runs that follow a script."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import FailedPrecondition, InvalidRequest, NotFound
from service.fake_cluster import FakeCluster, FakeRun, Script, digest_of
from service.jobs import CheckpointSaved, Job, JobState, StateReason, WorkersChanged, WorkersWanted
from service.runs import RunLostError
from tests.unit.test_dispatcher import HURRY, Bench, MakeBench, MakeSpec, make_bench, stop
from worker.spec import JobSpec

__all__ = ["make_bench"]  # a fixture

HELD = Script(hold_at=15)
DEAF = Script(hold_at=15, ignore_pause=True)


def deaf_at_first(job: Job) -> Script:
    return DEAF if job.attempt == 1 else Script()


async def running(bench: Bench, spec: object, step: int = 15) -> str:
    job_id = await bench.submit(spec)  # type: ignore[arg-type]
    await bench.until(job_id, lambda job: job.progress.steps_completed == step)
    return job_id


async def test_a_paused_job_holds_nothing_and_goes_on_where_it_was(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=HELD))
    spec = make_spec(workers={"min": 2})
    job_id = await running(bench, spec)
    assert (await bench.dispatcher.pause(job_id)).state is JobState.PAUSING
    paused = await bench.until_state(job_id, JobState.PAUSED)
    assert bench.cluster.runs[0].is_closed
    assert (paused.state_reason, paused.state_message) == (StateReason.USER_REQUEST, "paused by the user")
    assert (paused.progress.steps_completed, paused.progress.current_workers) == (15, 0)
    await bench.until(job_id, lambda _: bench.dispatcher.free_slots == 2)
    other = await bench.submit(make_spec(training={"global_batch_size": 8, "max_steps": 10}))
    await bench.until_state(other, JobState.SUCCEEDED)
    assert (await bench.ledger.get(job_id)).state is JobState.PAUSED, "nothing starts it but its user"
    bench.cluster.gate.set()
    assert (await bench.dispatcher.resume(job_id)).state is JobState.QUEUED
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert (job.weights_digest, job.attempt) == (digest_of(spec), 2)
    assert await bench.states(job_id) == [
        "queued",
        "starting",
        "running",
        "pausing user_request",
        "paused user_request",
        "queued",
        "starting",
        "running",
        "succeeded",
    ]
    saved = [one.step for one in await bench.history(job_id) if isinstance(one, CheckpointSaved)]
    assert saved == [10, 15, 20, 30, 40]


async def test_a_queued_job_is_paused_at_once_and_is_not_started(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=HELD))
    first = await running(bench, make_spec(workers={"min": 2}))
    second = await bench.submit(make_spec())
    assert (await bench.dispatcher.pause(second)).state is JobState.PAUSED
    bench.cluster.gate.set()
    await bench.until_state(first, JobState.SUCCEEDED)
    third = await bench.submit(make_spec())
    await bench.until_state(third, JobState.SUCCEEDED)
    assert (await bench.ledger.get(second)).attempt == 0
    await bench.dispatcher.resume(second)
    await bench.until_state(second, JobState.SUCCEEDED)


async def test_a_job_that_starts_is_paused_as_soon_as_it_is_there(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=HELD))
    job_id = await bench.submit(make_spec())
    await bench.until_state(job_id, JobState.STARTING)
    await bench.dispatcher.pause(job_id)
    await bench.until_state(job_id, JobState.PAUSED)
    assert "running" not in await bench.states(job_id)


async def test_whoever_changes_his_mind_has_his_job_queued_when_it_has_paused(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    bench = await make_bench(cluster=FakeCluster(script=deaf_at_first), patience=replace(HURRY, pause_seconds=0.5))
    spec = make_spec()
    job_id = await running(bench, spec)
    await bench.dispatcher.pause(job_id)
    assert (await bench.dispatcher.resume(job_id)).state is JobState.PAUSING
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert job.weights_digest == digest_of(spec)
    states = await bench.states(job_id)
    assert states[3:7] == ["pausing user_request", "pausing", "paused", "queued"]


@pytest.mark.parametrize("is_resumed", [False, True])
async def test_a_pause_survives_a_restart_at_any_time(
    make_bench: MakeBench, make_spec: MakeSpec, is_resumed: bool
) -> None:
    script = lambda job: DEAF if job.spec.name == "deaf" else HELD  # noqa: E731
    first = await make_bench(cluster=FakeCluster(script=script))
    spec = make_spec()
    job_id = await running(first, spec)
    other = await running(first, make_spec(name="deaf"))
    await first.dispatcher.pause(job_id)
    await first.until_state(job_id, JobState.PAUSED)
    await first.dispatcher.pause(other)  # the service goes while it is PAUSING
    if is_resumed:
        await first.dispatcher.resume(other)
    await stop(first)
    assert (await first.store.get(other)).state is JobState.PAUSING
    second = await make_bench(store=first.store)
    if is_resumed:
        await second.until_state(other, JobState.SUCCEEDED)
    else:
        await second.until_state(other, JobState.PAUSED)
        await second.dispatcher.resume(other)
        await second.until_state(other, JobState.SUCCEEDED)
    assert (await second.ledger.get(job_id)).state is JobState.PAUSED
    await second.dispatcher.resume(job_id)
    assert (await second.until_state(job_id, JobState.SUCCEEDED)).weights_digest == digest_of(spec)


async def test_a_paused_job_can_be_cancelled_and_then_deleted(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=HELD))
    job_id = await running(bench, make_spec())
    await bench.dispatcher.pause(job_id)
    await bench.until_state(job_id, JobState.PAUSED)
    with pytest.raises(FailedPrecondition, match="got state PAUSED, expected a finished job; cancel it first"):
        await bench.dispatcher.delete(job_id)
    assert (await bench.dispatcher.cancel(job_id)).state is JobState.CANCELLED
    with pytest.raises(FailedPrecondition, match="cannot resume"):
        await bench.dispatcher.resume(job_id)
    await bench.dispatcher.delete(job_id)
    with pytest.raises(NotFound):
        await bench.dispatcher.pause(job_id)


async def test_a_run_that_does_not_listen_is_paused_by_force(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=deaf_at_first), patience=replace(HURRY, pause_seconds=0.05))
    spec = make_spec()
    job_id = await running(bench, spec)
    await bench.dispatcher.pause(job_id)
    await bench.until_state(job_id, JobState.PAUSED)
    assert bench.cluster.runs[0].is_closed
    await bench.dispatcher.resume(job_id)
    assert (await bench.until_state(job_id, JobState.SUCCEEDED)).weights_digest == digest_of(spec)


async def test_a_run_that_dies_while_it_pauses_is_paused(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    class DyingRun(FakeRun):
        async def pause(self) -> None:
            raise RunLostError("the coordinator died")

    class DyingCluster(FakeCluster):
        async def launch(self, job: Job, workers: int, directory: Path) -> FakeRun:
            kind = DyingRun if job.attempt == 1 else FakeRun
            run = kind(job, workers, directory=directory, script=HELD, gate=self.gate)
            self.runs.append(run)
            return run

    bench = await make_bench(cluster=DyingCluster())
    spec = make_spec()
    job_id = await running(bench, spec)
    await bench.dispatcher.pause(job_id)
    await bench.until_state(job_id, JobState.PAUSED)
    bench.cluster.gate.set()
    await bench.dispatcher.resume(job_id)
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert (job.weights_digest, job.attempt) == (digest_of(spec), 2)


async def test_a_paused_job_may_be_cancelled_while_it_pauses(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=DEAF))
    job_id = await running(bench, make_spec())
    await bench.dispatcher.pause(job_id)
    assert (await bench.dispatcher.cancel(job_id)).state is JobState.CANCELLING
    await bench.until_state(job_id, JobState.CANCELLED)


# --- Scaling ----------------------------------------------------------------------------------------------------------


async def test_a_job_is_scaled_while_it_runs(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(num_slots=4, script=HELD))
    spec = make_spec(workers={"min": 1, "max": 4})
    job_id = await running(bench, spec)
    assert bench.dispatcher.free_slots == 0
    assert (await bench.dispatcher.scale(job_id, 1)).wanted_workers == 1
    await bench.until(job_id, lambda job: job.progress.current_workers == 1)
    await bench.until(job_id, lambda _: bench.dispatcher.free_slots == 3)
    await bench.dispatcher.scale(job_id, 3)
    await bench.until(job_id, lambda job: job.progress.current_workers == 3)
    bench.cluster.gate.set()
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert (job.weights_digest, job.attempt, job.max_workers) == (digest_of(spec), 1, 3)
    told = [one for one in await bench.history(job_id) if isinstance(one, WorkersWanted | WorkersChanged)]
    assert [(type(one).__name__, one.workers) for one in told] == [
        ("WorkersWanted", 1),
        ("WorkersWanted", 1),
        ("WorkersChanged", 1),
        ("WorkersWanted", 3),
        ("WorkersWanted", 3),
        ("WorkersChanged", 3),
    ]


async def test_a_run_without_room_for_so_many_makes_way_for_another(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(num_slots=4, script=HELD))
    spec = make_spec(workers={"min": 1})
    job_id = await running(bench, spec)
    await bench.dispatcher.scale(job_id, 4)
    await bench.until(job_id, lambda job: job.progress.current_workers == 4)
    bench.cluster.gate.set()
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert (job.weights_digest, job.attempt) == (digest_of(spec), 2)


async def test_a_job_waits_with_the_workers_it_has_been_scaled_to(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    first = await make_bench(cluster=FakeCluster(num_slots=1, script=HELD))
    await running(first, make_spec())
    job_id = await first.submit(make_spec())
    await first.dispatcher.scale(job_id, 3)
    await stop(first)
    second = await make_bench(store=first.store, cluster=FakeCluster(num_slots=4, script=HELD))
    await second.until(job_id, lambda job: job.progress.current_workers == 3)


async def test_impossible_numbers_of_workers_are_refused(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    bench = await make_bench(cluster=FakeCluster(script=HELD))
    job_id = await running(bench, make_spec())
    for workers in (0, 9, -1):
        with pytest.raises(InvalidRequest, match=r"expected 1 to 8, the job's training\.shards"):
            await bench.dispatcher.scale(job_id, workers)
    bench.cluster.gate.set()
    await bench.until_state(job_id, JobState.SUCCEEDED)
    with pytest.raises(FailedPrecondition, match="cannot scale"):
        await bench.dispatcher.scale(job_id, 2)


# --- Priority ---------------------------------------------------------------------------------------------------------


async def test_a_higher_job_takes_workers_and_gives_them_back(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    script = lambda job: HELD if job.spec.name == "low" else Script(hold_at=5)  # noqa: E731
    bench = await make_bench(cluster=FakeCluster(num_slots=4, script=script))
    low = make_spec(name="low", workers={"min": 1, "max": 4})
    low_id = await running(bench, low)
    high_id = await running(bench, make_spec(name="high", workers={"min": 3}, priority=5), step=5)
    job = await bench.until(low_id, lambda job: job.progress.current_workers == 1)
    assert job.state is JobState.RUNNING
    assert bench.dispatcher.free_slots == 0
    await bench.dispatcher.cancel(high_id)
    await bench.until_state(high_id, JobState.CANCELLED)
    await bench.until(low_id, lambda job: job.progress.current_workers == 4)
    bench.cluster.gate.set()
    job = await bench.until_state(low_id, JobState.SUCCEEDED)
    assert (job.weights_digest, job.attempt) == (digest_of(low), 1)
    wanted = [one.reason for one in await bench.history(low_id) if isinstance(one, WorkersWanted)]
    assert wanted == [f"job {high_id} of priority 5 needs workers", "the cluster has room"]


async def test_a_preempted_job_comes_back_by_itself(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    script = lambda job: HELD if job.spec.name == "low" else Script(hold_at=5)  # noqa: E731
    bench = await make_bench(cluster=FakeCluster(num_slots=2, script=script))
    low = make_spec(name="low", workers={"min": 2})
    low_id = await running(bench, low)
    young_id = await bench.submit(make_spec(name="young", workers={"min": 2}))
    high_id = await running(bench, make_spec(name="high", workers={"min": 1}, priority=5), step=5)
    waiting = await bench.until(low_id, lambda job: "made way" in job.state_message)
    assert (waiting.state, waiting.state_reason) == (JobState.QUEUED, StateReason.PREEMPTED)
    assert waiting.state_message == "made way for a job of higher priority; waits for 2 workers: 1 of 2 free"
    bench.cluster.gate.set()
    await bench.until_state(high_id, JobState.SUCCEEDED)
    job = await bench.until_state(low_id, JobState.SUCCEEDED)
    assert (job.weights_digest, job.attempt) == (digest_of(low), 2)
    assert await bench.states(low_id) == [
        "queued",
        "starting",
        "running",
        "pausing preempted",
        "paused preempted",
        "queued preempted",
        "starting",
        "running",
        "succeeded",
    ]
    await bench.until_state(young_id, JobState.SUCCEEDED)
    assert [run._job.job_id for run in bench.cluster.runs] == [low_id, high_id, low_id, young_id], "it kept its place"


# --- Everything at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_users_do_no_slot_is_used_twice_and_every_job_ends_as_it_should(
    make_bench: MakeBench, make_spec: MakeSpec, seed: int
) -> None:
    rng, slots = random.Random(seed), 4
    scripts = [Script(steps_per_news=1), Script(lose_worker_at=9), Script(steps_per_news=3, lose_coordinator_at=12)]
    chosen: dict[str, Script] = {}

    def script(job: Job) -> Script:
        return chosen.setdefault(job.job_id, rng.choice(scripts)) if job.attempt == 1 else Script(steps_per_news=2)

    bench = await make_bench(cluster=FakeCluster(num_slots=slots, script=script))
    specs: dict[str, JobSpec] = {}
    cancelled: set[str] = set()

    async def call(job_id: str) -> None:
        what = rng.choice(["pause", "pause", "resume", "resume", "scale", "scale", "cancel"])
        try:
            if what == "scale":
                await bench.dispatcher.scale(job_id, rng.randint(1, 8))
            else:
                await getattr(bench.dispatcher, what)(job_id)
        except FailedPrecondition as error:
            assert error.reason in ("JOB_FINISHED", "JOB_CANCELLING")  # noqa: PT017
        else:
            cancelled.update({job_id} if what == "cancel" else ())

    for _ in range(60):
        if len(specs) < 8 and rng.random() < 0.3:
            low = rng.randint(1, 3)
            workers = {"min": low, "max": rng.randint(low, 6)}
            spec = make_spec(workers=workers, priority=rng.randint(0, 2))
            specs[await bench.submit(spec)] = spec
        elif specs and rng.random() < 0.5:
            await call(rng.choice(list(specs)))
        for _ in range(rng.randint(0, 6)):
            await asyncio.sleep(0)
            assert sum(run.num_workers for run in bench.cluster.runs if not run.is_closed) <= slots
    for job_id in specs.keys() - cancelled:
        with suppress(FailedPrecondition):  # it has finished
            await bench.dispatcher.resume(job_id)
    for job_id, spec in specs.items():
        state = JobState.CANCELLED if job_id in cancelled else JobState.SUCCEEDED
        job = await bench.until(job_id, lambda job, state=state: job.state is state)  # type: ignore[misc]
        assert job_id in cancelled or job.weights_digest == digest_of(spec)
    async with asyncio.timeout(bench.seconds):
        while bench.dispatcher.free_slots != slots:
            await asyncio.sleep(0)
