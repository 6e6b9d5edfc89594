"""A job that begins with another's checkpoint: what is refused, what is copied, what a crash leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.checkpoints import checkpoints_at
from service.directories import JobDirectories
from service.dispatcher import Dispatcher
from service.errors import DataLoss, ServiceError, Unavailable
from service.fake_cluster import FakeCluster
from service.jobs import Job, JobState
from service.ledger import Ledger
from service.metrics import Metrics
from service.records import dump_job, load_job, spec_digest
from service.start_checkpoint import StartCheckpoint, check_same_training, check_step, check_there, copy_checkpoint
from service.store import MemoryStore
from tests.conftest import MakeSpec
from tests.unit.checkpoints import TENSORS, save, state_of, tensors_of
from worker import checkpoint
from worker.checkpoint_store import LocalStore

START = StartCheckpoint("one", 10)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """The directory of jobs, with one that has saved steps 10 and 20."""
    for step in (10, 20):
        save(LocalStore(tmp_path / "jobs" / "one" / "checkpoints"), step)
    return tmp_path / "jobs"


async def test_a_checkpoint_is_copied_to_the_last_bit(jobs: Path) -> None:
    directories = JobDirectories(jobs)
    await directories.prepare("two", START)
    assert not (jobs / "two").exists(), "it is not there before the job is"
    await directories.make("two")
    assert not list(jobs.glob(".*"))
    state, origin = checkpoint.read(LocalStore(jobs / "two" / "checkpoints"), checkpoint.name_of(10), TENSORS)
    assert tensors_of(state) == tensors_of(state_of(10))
    assert origin == checkpoint.read(LocalStore(jobs / "one" / "checkpoints"), checkpoint.name_of(10), TENSORS)[1]
    assert [one.step for one in await checkpoints_at(directories.checkpoints("one"), verify=True)] == [20, 10]


@pytest.mark.parametrize(("exists", "left"), [(True, [".new-two", "one"]), (False, ["one"])])
async def test_what_was_prepared_lasts_as_long_as_the_job(jobs: Path, exists: bool, left: list[str]) -> None:
    directories = JobDirectories(jobs)
    await directories.prepare("two", START)

    async def is_job(job_id: str) -> bool:
        assert job_id == "two"
        return exists

    await directories.sweep(is_job)
    assert sorted(path.name for path in jobs.iterdir()) == left


async def test_a_job_that_is_deleted_before_it_began_leaves_nothing(jobs: Path) -> None:
    directories = JobDirectories(jobs)
    await directories.prepare("two", START)
    await directories.remove(await directories.hide("two"))
    assert [path.name for path in jobs.iterdir()] == ["one"]


async def test_a_damaged_checkpoint_is_not_copied(jobs: Path) -> None:
    source, target = jobs / "one" / "checkpoints", jobs / "two" / "checkpoints"
    weights = source / checkpoint.name_of(10) / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DataLoss, match=r"the checkpoint of step 10 of job one is damaged: weights.safetensors: got"):
        await copy_checkpoint(START, str(source), str(target))
    assert await checkpoints_at(str(target), verify=False) == []
    with pytest.raises(DataLoss, match="is missing"):
        await copy_checkpoint(StartCheckpoint("one", 15), str(source), str(target))


async def test_a_disk_that_takes_no_copy_is_not_the_checkpoints_fault(jobs: Path) -> None:
    (jobs / "two").write_text("in the way")
    with pytest.raises(Unavailable, match="step 10 of job one cannot be copied now: "):
        await copy_checkpoint(START, str(jobs / "one" / "checkpoints"), str(jobs / "two" / "checkpoints"))


@pytest.mark.parametrize(
    ("parts", "is_same"),
    [
        ({"name": "x", "priority": 3, "workers": {"min": 2}}, True),
        ({"checkpoint": {"every_steps": 1}, "evaluation": {"every_steps": 1}}, True),
        ({"training": {"global_batch_size": 8, "max_steps": 40, "gradient_checkpointing": True}}, True),
        ({"training": {"global_batch_size": 8, "max_steps": 41}}, False),
        ({"training": {"global_batch_size": 8, "max_steps": 40, "seed": 1}}, False),
        ({"optimizer": {"sgd": {}}}, False),
        ({"model": {"mlp": {"hidden": [9]}}}, False),
    ],
)
async def test_only_a_job_that_trains_the_same_begins_with_it(
    make_spec: MakeSpec, parts: dict[str, object], is_same: bool
) -> None:
    if is_same:
        await check_same_training(START, make_spec(), make_spec(**parts))
    else:
        with pytest.raises(ServiceError, match=r"start_checkpoint.job_id: got a job that trains something else"):
            await check_same_training(START, make_spec(), make_spec(**parts))


@pytest.mark.parametrize("step", [0, -1])
def test_no_checkpoint_is_of_no_step(step: int) -> None:
    with pytest.raises(ServiceError, match=rf"start_checkpoint.step: got {step}, expected at least 1"):
        check_step(StartCheckpoint("one", step))


async def test_a_checkpoint_must_be_there_and_sound(jobs: Path) -> None:
    (jobs / "one" / "checkpoints" / checkpoint.name_of(10) / "manifest.json").write_text("{}")
    found = await checkpoints_at(str(jobs / "one" / "checkpoints"), verify=False)
    check_there(StartCheckpoint("one", 20), found)
    for step in (10, 15):
        with pytest.raises(ServiceError, match=rf"got {step}, expected the step of .* has now: 20$"):
            check_there(StartCheckpoint("one", step), found)
    with pytest.raises(ServiceError, match=r"has now: none$"):
        check_there(START, [])


async def test_a_job_that_is_not_acknowledged_leaves_no_copy(jobs: Path, make_spec: MakeSpec) -> None:
    metrics, cluster = Metrics(version="test"), FakeCluster()
    ledger = Ledger(MemoryStore(), metrics=metrics, clock=lambda: 1.0)
    dispatcher = Dispatcher(
        ledger, cluster, directories=JobDirectories(jobs), metrics=metrics, clock=lambda: 1.0, max_waiting_jobs=2
    )
    job = Job("two", make_spec(), create_time=0.0, start_checkpoint=StartCheckpoint("one", 15))
    with pytest.raises(DataLoss):
        await dispatcher.submit(job, request=None)
    assert [path.name for path in jobs.iterdir()] == ["one"]
    await dispatcher.submit(Job("two", make_spec(), create_time=0.0, start_checkpoint=START), request=None)
    assert sorted(path.name for path in jobs.iterdir()) == [".new-two", "one"]
    assert (await dispatcher.cancel("two")).state is JobState.CANCELLED
    await dispatcher.delete("two")
    assert [path.name for path in jobs.iterdir()] == ["one"]


def test_what_a_job_began_with_is_kept_and_is_part_of_what_was_asked_for(make_spec: MakeSpec) -> None:
    job = Job("two", make_spec(), create_time=0.0, start_checkpoint=START)
    assert load_job(dump_job(job)) == job
    asked = [spec_digest(job.spec, start) for start in (None, START, StartCheckpoint("one", 11))]
    assert len(set(asked)) == 3
    assert asked[0] == spec_digest(job.spec)
