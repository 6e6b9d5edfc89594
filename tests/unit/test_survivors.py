"""A service that goes while its runs go on, and the next one that finds them: nothing is lost, nothing told twice."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.fake_cluster import NUM_PARAMETERS, FakeCluster, FakeRun, Script, digest_of
from service.jobs import CheckpointSaved, Evaluation, Happening, Job, JobState, StateChanged, StateReason, WorkersWanted
from service.runs import News, RunStarted
from service.survival import IDENTITY_FILE, identity_of
from tests.unit.test_dispatcher import HURRY, SECONDS, Bench, FailingStore, MakeBench, MakeSpec, make_bench, stop

__all__ = ["make_bench"]  # a fixture

HELD = Script(hold_at=15)
UNDISTURBED = ["queued", "starting", "running", "succeeded"]


async def running(bench: Bench, spec: Any, step: int = 15) -> str:
    job_id = await bench.submit(spec)
    await bench.until(job_id, lambda job: job.progress.steps_completed == step)
    return job_id


async def closed(run: FakeRun) -> None:
    """Returns when a run is closed."""
    async with asyncio.timeout(SECONDS):
        while not run.is_closed:
            await asyncio.sleep(0)


async def told(bench: Bench, job_id: str) -> list[Happening]:
    """What its run has told; not where the job stood."""
    return [happening for happening in await bench.history(job_id) if not isinstance(happening, StateChanged)]


def due(directory: Path, job_id: str, spec: Any) -> list[Happening]:
    """What happens to an undisturbed job of 40 steps."""
    path = str(directory / "jobs" / job_id / "fake-checkpoint")

    def saved(step: int) -> CheckpointSaved:
        return CheckpointSaved(step, path, digest_of(spec), size_bytes=1000, seconds=0.01)

    def evaluated(step: int) -> Evaluation:
        return Evaluation(step, loss=1 / step, accuracy=1 - 1 / (step + 1))

    return [saved(10), evaluated(20), saved(20), saved(30), evaluated(40), saved(40)]


async def test_a_stopped_service_leaves_its_run_alone_and_the_next_one_follows_it(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    cluster, spec = FakeCluster(script=HELD, keeps_runs=True), make_spec()
    first = await make_bench(cluster=cluster)
    job_id = await running(first, spec)
    await stop(first)
    (run,) = cluster.runs
    assert not run.is_closed
    cluster.gate.set()
    await run.go_on()  # to step 25, with nobody there
    second = await make_bench(cluster=cluster, store=first.store)
    assert (await second.ledger.get(job_id)).state is JobState.RUNNING
    job = await second.until_state(job_id, JobState.SUCCEEDED)
    assert (job.attempt, job.weights_digest, job.num_parameters) == (1, digest_of(spec), NUM_PARAMETERS)
    assert await second.states(job_id) == UNDISTURBED
    assert await told(second, job_id) == due(second.directory, job_id, spec)
    await closed(run)
    assert cluster.runs == [run]


async def test_a_job_that_ended_with_nobody_there_has_its_result(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    cluster, spec = FakeCluster(script=HELD, keeps_runs=True), make_spec()
    first = await make_bench(cluster=cluster)
    job_id = await running(first, spec)
    await stop(first)
    cluster.gate.set()
    for _ in range(10):
        await cluster.runs[0].go_on()
    second = await make_bench(cluster=cluster, store=first.store)
    job = await second.until_state(job_id, JobState.SUCCEEDED)
    assert (job.attempt, job.progress.steps_completed, job.weights_digest) == (1, 40, digest_of(spec))
    assert await told(second, job_id) == due(second.directory, job_id, spec)
    await closed(cluster.runs[0])


@pytest.mark.parametrize("seed", range(40))
async def test_every_report_is_recorded_once_whenever_services_die(
    make_bench: MakeBench, make_spec: MakeSpec, seed: int
) -> None:
    rng, store, spec = random.Random(seed), FailingStore(), make_spec()
    cluster = FakeCluster(script=Script(steps_per_news=rng.choice([1, 3, 7, 40])), keeps_runs=True)
    bench = await make_bench(cluster=cluster, store=store)
    job_id = await bench.submit(spec)
    await bench.until(job_id, lambda _: cluster.runs != [])
    for _ in range(rng.randint(1, 8)):
        for _ in range(rng.randint(0, 30)):
            await asyncio.sleep(0)
        store.is_full = rng.random() < 0.5  # what arrives now is not stored when the service goes
        for _ in range(rng.randint(0, 10)):
            await asyncio.sleep(0)
        await stop(bench)
        store.is_full = False
        if not cluster.runs[0].is_closed:
            for _ in range(rng.randint(0, 4)):
                await cluster.runs[0].go_on()
        bench = await make_bench(cluster=cluster, store=store)
    job = await bench.until_state(job_id, JobState.SUCCEEDED)
    assert (job.attempt, job.weights_digest, job.num_parameters) == (1, digest_of(spec), NUM_PARAMETERS)
    assert await bench.states(job_id) == UNDISTURBED
    assert await told(bench, job_id) == due(bench.directory, job_id, spec)
    assert len(cluster.runs) == 1


async def test_a_run_that_died_with_its_service_starts_again(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    cluster, spec = FakeCluster(script=HELD, keeps_runs=True), make_spec()
    first = await make_bench(cluster=cluster)
    job_id = await running(first, spec)
    await stop(first)
    await cluster.runs[0].close()
    cluster.gate.set()
    second = await make_bench(cluster=cluster, store=first.store)
    job = await second.until_state(job_id, JobState.SUCCEEDED)
    assert (job.attempt, job.weights_digest) == (2, digest_of(spec))
    assert (await second.states(job_id))[3] == "recovering service_restarted"


@pytest.mark.parametrize(("state", "end"), [(JobState.PAUSING, JobState.PAUSED), (JobState.CANCELLING, "cancelled")])
async def test_what_the_user_asked_for_is_done_by_the_next_service(
    make_bench: MakeBench, make_spec: MakeSpec, state: JobState, end: str
) -> None:
    deaf = Script(hold_at=15, ignore_pause=True, ignore_cancel=True)
    patience = replace(HURRY, cancel_seconds=SECONDS)
    cluster = FakeCluster(script=deaf, keeps_runs=True)
    first = await make_bench(cluster=cluster, patience=patience)
    job_id = await running(first, make_spec())
    await (first.dispatcher.pause if state is JobState.PAUSING else first.dispatcher.cancel)(job_id)
    await stop(first)
    assert (await first.store.get(job_id)).state is state
    cluster.runs[0].listen()
    second = await make_bench(cluster=cluster, store=first.store, patience=patience)
    await second.until(job_id, lambda job: job.state == end)
    await closed(cluster.runs[0])
    assert len(cluster.runs) == 1


async def test_that_a_run_has_paused_is_told_again_to_who_could_not_close_it(
    make_bench: MakeBench, make_spec: MakeSpec
) -> None:
    cluster = FakeCluster(script=HELD, keeps_runs=True)
    first = await make_bench(cluster=cluster)
    job_id = await running(first, make_spec())
    (run,), is_closing = cluster.runs, asyncio.Event()
    close = run.close

    async def hang() -> None:
        is_closing.set()
        await asyncio.Event().wait()

    run.close = hang  # type: ignore[method-assign]  # the service dies in the midst of it
    await first.dispatcher.pause(job_id)
    await asyncio.wait_for(is_closing.wait(), SECONDS)
    await stop(first)
    run.close = close  # type: ignore[method-assign]
    assert (await first.store.get(job_id)).state is JobState.PAUSING
    second = await make_bench(cluster=cluster, store=first.store)
    await second.until_state(job_id, JobState.PAUSED)
    assert run.is_closed
    assert [one.step for one in await told(second, job_id) if isinstance(one, CheckpointSaved)] == [10, 15]


async def test_runs_of_jobs_that_have_ended_are_ended(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    cluster = FakeCluster(script=HELD, keeps_runs=True)
    first = await make_bench(cluster=cluster)
    job_id = await running(first, make_spec())
    await stop(first)
    job = await first.store.get(job_id)
    await first.store.save(replace(job, state=JobState.FAILED), now=1.0)  # and then it died, with the run still there
    await make_bench(cluster=cluster, store=first.store)
    assert cluster.runs[0].is_closed


async def test_slots_of_runs_that_go_on_are_taken_from_the_start(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    cluster = FakeCluster(script=lambda job: HELD if job.spec.name == "long" else Script(), keeps_runs=True)
    first = await make_bench(cluster=cluster)
    job_id = await running(first, make_spec(name="long", workers={"min": 2, "max": 2}))
    other = await first.submit(make_spec(name="other"))
    await stop(first)
    second = await make_bench(cluster=cluster, store=first.store)
    assert second.dispatcher.free_slots == 0
    waiting = await second.until(other, lambda job: job.state_reason is StateReason.WAITING_FOR_WORKERS)
    assert waiting.attempt == 0
    cluster.gate.set()
    await second.until_state(job_id, JobState.SUCCEEDED)
    await second.until_state(other, JobState.SUCCEEDED)


async def test_a_run_that_goes_on_is_scaled_like_any_other(make_bench: MakeBench, make_spec: MakeSpec) -> None:
    cluster = FakeCluster(script=HELD, keeps_runs=True)
    first = await make_bench(cluster=cluster)
    job_id = await running(first, make_spec(workers={"min": 1, "max": 2}))
    await first.until(job_id, lambda job: job.progress.current_workers == 2)
    await stop(first)
    second = await make_bench(cluster=cluster, store=first.store)
    await second.dispatcher.scale(job_id, 1)
    await second.until(job_id, lambda job: job.progress.current_workers == 1)
    wanted = [one.workers for one in await second.history(job_id) if isinstance(one, WorkersWanted)]
    assert wanted == [1, 1], "by the user, and then of the run"
    cluster.gate.set()
    assert (await second.until_state(job_id, JobState.SUCCEEDED)).attempt == 1


async def test_lost_reports_are_said_to_be_lost(
    make_bench: MakeBench, make_spec: MakeSpec, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = FakeCluster(script=HELD, keeps_runs=True)
    bench = await make_bench(cluster=cluster)
    job_id = await running(bench, make_spec())
    ask = cluster.runs[0].news

    async def news(after: int) -> News:
        return replace(await ask(after), reports_dropped=7)

    with caplog.at_level(logging.WARNING):
        cluster.runs[0].news = news  # type: ignore[method-assign]  # a run that has lost some
        cluster.gate.set()
        await bench.until_state(job_id, JobState.SUCCEEDED)
    assert [record.getMessage() for record in caplog.records] == [
        f"job {job_id}: 7 events were lost: too many while nobody asked"
    ]


async def test_a_cluster_that_goes_with_its_service_has_no_survivors(tmp_path: Path, make_spec: MakeSpec) -> None:
    cluster, job = FakeCluster(), Job("test-abcdef", make_spec(), create_time=0.0)
    run = await cluster.launch(job, 1, tmp_path)
    assert await cluster.survivors([job]) == {}
    await run.close()


async def test_a_fake_run_tells_again_what_was_not_stored_like_a_real_one(tmp_path: Path, make_spec: MakeSpec) -> None:
    job = Job("test-abcdef", make_spec(), create_time=0.0)
    run = await FakeCluster().launch(job, 1, tmp_path)
    started = RunStarted(1, NUM_PARAMETERS, 0)
    assert (await run.news(0)).reports == (started,)
    news = await run.news(0)
    assert (news.reports[0], news.last_report) == (started, len(news.reports))
    assert started not in (await run.news(1)).reports
    await run.close()


def test_a_service_has_one_name_for_life(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert identity_of(first) == identity_of(first) != identity_of(second)
    (second / IDENTITY_FILE).write_text("")  # a disk that was full
    assert identity_of(second) == identity_of(second) != ""
    assert [path.name for path in second.iterdir()] == [IDENTITY_FILE]
