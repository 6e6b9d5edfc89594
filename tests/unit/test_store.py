"""The contract of a job store, for both stores, and what only the one on disk can promise."""

from __future__ import annotations

import asyncio
import math
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from service import limits
from service.database import MIGRATIONS, SqliteStore
from service.errors import AlreadyExists, NotFound, StartError, Unavailable
from service.jobs import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointSaved,
    CompilationFinished,
    CompilationStarted,
    Evaluation,
    ExactnessLost,
    Happening,
    Job,
    JobState,
    Progress,
    StateChanged,
    StateReason,
    WorkerLost,
    WorkersChanged,
    WorkerSlow,
)
from service.records import dump_job, spec_digest
from service.runs import StepSample
from service.store import JobStore, MemoryStore, Request
from worker.spec import parse_spec

SPEC = parse_spec({"model": {"mlp": {"hidden": [3]}}, "data": {"digits": {}}})
HAPPENINGS: tuple[Happening, ...] = (
    StateChanged(JobState.STARTING),
    StateChanged(JobState.RECOVERING, StateReason.WORKER_LOST, "worker 1 was lost"),
    Evaluation(step=5, loss=0.5, accuracy=0.9),
    Evaluation(step=5, loss=0.5),
    CheckpointSaved(step=5, path="/x", weights_digest="ab", size_bytes=3, seconds=0.1),
    CheckpointFailed(step=5, error="disk full"),
    WorkerLost(rank=1, step=5, reason="killed: signal 9", phase="forward"),
    WorkersChanged(workers=2, step=5, reason="worker 1 joined"),
    WorkerSlow(rank=1, step=5, times=3.5, shards=2),
    CompilationStarted(rank=1),
    CompilationFinished(num_kernels=14, seconds=9.5),
    CheckpointCorrupt(path="/c", reason="torn"),
    ExactnessLost(step=5, differences="numpy is 3, was 2"),
)


def make_job(job_id: str = "test-aaaaaa", state: JobState = JobState.QUEUED) -> Job:
    return Job(job_id, SPEC, create_time=1.5, state=state)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    opened = SqliteStore(tmp_path / "jobs.sqlite3")
    await opened.open()
    yield opened
    await opened.close()


async def test_a_created_job_is_there_with_its_first_event(store: JobStore) -> None:
    job = make_job()
    assert await store.create(job) == job
    assert await store.get(job.job_id) == job
    (event,) = await store.events(job.job_id, 0)
    assert (event.event_id, event.time, event.happening) == (1, 1.5, StateChanged(JobState.QUEUED))


async def test_every_part_of_a_job_is_kept(store: JobStore) -> None:
    job = replace(
        make_job(state=JobState.FAILED),
        state_reason=StateReason.NON_FINITE,
        state_message="why",
        start_time=2.0,
        end_time=3.0,
        attempt=2,
        progress=Progress(7, 0.5, 100.0, 3.0, 2),
        evaluation=Evaluation(5, 0.25, 0.5),
        num_parameters=9,
        weights_digest="ab",
        model_path="/m",
        error="why",
    )
    await store.create(make_job())
    await store.save(job, now=4.0)
    assert await store.get(job.job_id) == job


async def test_every_kind_of_event_is_kept_in_order_and_without_gaps(store: JobStore) -> None:
    job = await store.create(make_job())
    first = await store.save(job, HAPPENINGS[:3], now=7.0)
    second = await store.save(job, HAPPENINGS[3:], now=8.0)
    stored = await store.events(job.job_id, 0)
    assert [event.event_id for event in stored] == list(range(1, len(HAPPENINGS) + 2))
    assert tuple(event.happening for event in stored[1:]) == HAPPENINGS
    assert stored[1:] == first + second
    assert await store.events(job.job_id, 5) == stored[5:]
    assert await store.last_event_id(job.job_id) == len(stored)


SAMPLES = tuple(StepSample(step, 1 / step, 0.3, 1e-3, 0.01, step == 2, False) for step in (1, 2, 3, 4))


async def test_metrics_of_steps_are_kept_in_order_to_the_last_bit(store: JobStore) -> None:
    job = await store.create(make_job())
    assert await store.samples(job.job_id, 0, limit=9) == ()
    await store.save(job, now=2.0, samples=SAMPLES[2:])
    await store.save(job, now=2.0, samples=SAMPLES[:2])
    assert await store.samples(job.job_id, 0, limit=9) == SAMPLES
    assert await store.samples(job.job_id, 1, limit=2) == SAMPLES[1:3]
    again = StepSample(2, math.inf, -0.0, 1e-300, 0.02, is_clipped=False, is_non_finite=True)
    await store.save(job, now=2.0, samples=[again])
    assert await store.samples(job.job_id, 1, limit=1) == (again,)
    await store.save(job, now=2.0, samples=[replace(again, loss=math.nan)])
    (found,) = await store.samples(job.job_id, 1, limit=1)
    assert math.isnan(found.loss)


async def test_metrics_are_thinned_and_go_with_their_job(store: JobStore) -> None:
    job, other = await store.create(make_job()), await store.create(make_job("test-bbbbbb"))
    for one in (job, other):
        await store.save(one, now=2.0, samples=SAMPLES[:3])
    await store.save(job, now=2.0, samples=SAMPLES[3:], stride=2)
    assert [one.step for one in await store.samples(job.job_id, 0, limit=9)] == [2, 4]
    await store.delete(job.job_id)
    with pytest.raises(NotFound):
        await store.samples(job.job_id, 0, limit=9)
    with pytest.raises(NotFound):
        await store.save(job, now=2.0, samples=SAMPLES)
    await store.create(job)
    assert await store.samples(job.job_id, 0, limit=9) == ()
    assert len(await store.samples(other.job_id, 0, limit=9)) == 3


async def test_a_nan_loss_is_kept(store: JobStore) -> None:
    job = await store.create(make_job())
    await store.save(replace(job, progress=Progress(1, math.nan)), [Evaluation(1, math.nan)], now=2.0)
    loss = (await store.get(job.job_id)).progress.loss
    assert loss is not None
    assert math.isnan(loss)
    happening = (await store.events(job.job_id, 1))[0].happening
    assert isinstance(happening, Evaluation)
    assert math.isnan(happening.loss)


async def test_a_long_history_is_read_in_pieces(store: JobStore) -> None:
    job = await store.create(make_job())
    many = [Evaluation(step, 0.5) for step in range(limits.EVENTS_PER_READ)]
    await store.save(job, many, now=2.0)
    assert len(await store.events(job.job_id, 0)) == limits.EVENTS_PER_READ
    assert len(await store.events(job.job_id, limits.EVENTS_PER_READ)) == 1


async def test_an_unknown_job_is_not_found(store: JobStore) -> None:
    for call in (
        store.get("nope"),
        store.events("nope", 0),
        store.last_event_id("nope"),
        store.delete("nope"),
        store.save(make_job("nope"), HAPPENINGS, now=1.0),
    ):
        with pytest.raises(NotFound, match="no job 'nope'"):
            await call


async def test_a_request_seen_before_gives_the_same_job(store: JobStore) -> None:
    request = Request("r1", spec_digest(SPEC))
    assert await store.find(request) is None
    first = await store.create(make_job("test-aaaaaa"), request=request)
    assert await store.create(make_job("test-bbbbbb"), request=request) == first
    assert await store.find(request) == first
    with pytest.raises(NotFound):
        await store.get("test-bbbbbb")


async def test_a_request_id_with_another_spec_is_refused(store: JobStore) -> None:
    await store.create(make_job(), request=Request("r1", "digest"))
    for call in (store.find(Request("r1", "other")), store.create(make_job("b"), request=Request("r1", "other"))):
        with pytest.raises(AlreadyExists, match="'r1' already made job test-aaaaaa from another spec"):
            await call


async def test_pages_go_from_the_newest_to_the_oldest(store: JobStore) -> None:
    ids = [f"test-{number}" for number in range(7)]
    for job_id in ids:
        await store.create(make_job(job_id))
    seen, position = list[str](), None
    for size in (3, 3, 1):
        page = await store.page(before=position, size=3)
        assert len(page.jobs) == size
        seen += [job.job_id for job in page.jobs]
        position = page.next_position
    assert seen == ids[::-1]
    assert position is None


async def test_an_exactly_full_last_page_says_that_it_is_the_last(store: JobStore) -> None:
    for number in range(4):
        await store.create(make_job(f"test-{number}"))
    first = await store.page(size=2)
    last = await store.page(before=first.next_position, size=2)
    assert (len(last.jobs), last.next_position) == (2, None)


async def test_pages_can_be_limited_to_states(store: JobStore) -> None:
    for state in JobState:
        await store.create(make_job(f"test-{state}", state))
    page = await store.page(states=[JobState.FAILED, JobState.RUNNING], size=10)
    assert {job.state for job in page.jobs} == {JobState.FAILED, JobState.RUNNING}
    assert await store.counts() == dict.fromkeys(JobState, 1)


async def test_unfinished_jobs_come_oldest_first(store: JobStore) -> None:
    for number, state in enumerate([JobState.RUNNING, JobState.SUCCEEDED, JobState.QUEUED, JobState.CANCELLING]):
        await store.create(make_job(f"test-{number}", state))
    assert [job.job_id for job in await store.unfinished()] == ["test-0", "test-2", "test-3"]


async def test_a_deleted_job_is_gone_with_its_history_and_its_request(store: JobStore) -> None:
    request = Request("r1", "digest")
    await store.create(make_job(), request=request)
    await store.delete("test-aaaaaa")
    with pytest.raises(NotFound):
        await store.events("test-aaaaaa", 0)
    assert (await store.page(size=10)).jobs == ()
    assert (await store.create(make_job("test-bbbbbb"), request=request)).job_id == "test-bbbbbb"


# --- The store on disk ------------------------------------------------------------------------------------------


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / "jobs.sqlite3")
    await first.open()
    job = await first.create(make_job(), request=Request("r1", "digest"))
    events = await first.save(job, HAPPENINGS, now=3.0)
    await first.close()
    second = SqliteStore(tmp_path / "jobs.sqlite3")
    await second.open()
    assert await second.get(job.job_id) == job
    assert await second.events(job.job_id, 1) == events
    assert await second.find(Request("r1", "digest")) == job
    await second.close()


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    program = """
        import asyncio, os, signal, sys
        from pathlib import Path
        from service.database import SqliteStore
        from service.jobs import Evaluation, Job
        from worker.spec import parse_spec

        async def main():
            store = SqliteStore(Path(sys.argv[1]))
            await store.open()
            spec = parse_spec({"model": {"mlp": {}}, "data": {"digits": {}}})
            job = await store.create(Job("test-killed", spec, create_time=1.0))
            for step in range(100):
                await store.save(job, [Evaluation(step, 0.5)], now=2.0)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    path = tmp_path / "jobs.sqlite3"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    ended = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    store = SqliteStore(path)
    await store.open()
    assert await store.last_event_id("test-killed") == 101
    await store.close()


async def test_a_second_service_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path / "jobs.sqlite3"), SqliteStore(tmp_path / "jobs.sqlite3")
    await first.open()
    with pytest.raises(StartError) as caught:
        await second.open()
    assert (
        str(caught.value) == f"data directory {tmp_path} is in use by another backprop service; stop it or use another"
    )
    await first.close()
    third = SqliteStore(tmp_path / "jobs.sqlite3")
    await third.open()
    await third.close()


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be looked at" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
async def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(content)
    with pytest.raises(StartError, match=f"the job store {path} cannot be used: "):
        await SqliteStore(path).open()


async def test_the_schema_before_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    connection = sqlite3.connect(path)
    connection.executescript(MIGRATIONS[0])
    row = ("test-aaaaaa", "queued", dump_job(make_job()))
    connection.execute("INSERT INTO jobs (job_id, state, body) VALUES (?, ?, ?)", row)
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    store = SqliteStore(path)
    await store.open()
    await store.save(make_job(), now=2.0, samples=SAMPLES)
    assert await store.get("test-aaaaaa") == make_job()
    assert len(await store.samples("test-aaaaaa", 0, limit=10)) == 4
    await store.close()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StartError, match="a newer backprop wrote it"):
        await SqliteStore(path).open()


async def test_a_store_that_cannot_write_says_so_and_changes_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.sqlite3")
    await store.open()
    job = await store.create(make_job())
    await store._run(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
    many = [CheckpointFailed(step, "x" * 1000) for step in range(500)]
    with pytest.raises(Unavailable, match="database or disk is full"):
        await store.save(replace(job, attempt=5), many, now=2.0)
    assert await store.get(job.job_id) == job
    assert await store.last_event_id(job.job_id) == 1
    await store._run(lambda connection: connection.execute("PRAGMA max_page_count = 100000"))
    await store.save(replace(job, attempt=5), many, now=2.0)
    assert await store.last_event_id(job.job_id) == 501
    await store.close()


async def test_a_closed_store_is_unavailable(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.sqlite3")
    await store.open()
    await store.close()
    with pytest.raises(Unavailable):
        await store.get("test-aaaaaa")
    await store.close()


async def test_the_store_tells_an_operator_what_it_is(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.sqlite3")
    assert repr(store) == f"<SqliteStore {tmp_path}/jobs.sqlite3 closed>"
