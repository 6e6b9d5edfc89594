"""Writing beside training: what fails is told and tried again, and nothing is raised."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.checkpoint_writer import CheckpointWriter
from service.jobs import CheckpointFailed, CheckpointSaved
from service.node import NodeLostError
from service.order import Order
from service.runs import Report
from service.worker_group import WorkerGroup
from tests.conftest import MakeSpec
from worker.checkpoint import newest
from worker.checkpoint_store import LocalStore
from worker.plan import Plan
from worker.reduce.segment import DIRECTORY, Segment
from worker.replica import Replica


class Job:
    """A job's segment, without processes, and a writer of its checkpoints."""

    def __init__(self, make_spec: MakeSpec, checkpoints: Path, segment: Path, pauses: tuple[float, ...]) -> None:
        spec = make_spec(data={"synthetic": {"samples": 50}})
        replica = Replica.load(spec, capacity=1)
        replica.create_segment(segment, str(checkpoints))
        replica.join(segment, 0)
        order = Order("job", spec.model_dump_json(), 1, 1, 1, segment, str(checkpoints), {})
        self.reports = list[Report]()
        self.group = WorkerGroup(order, self.reports.append)
        self.group.startup.facts = replica.facts
        self.segment = self.group.nodes.here.segment = Segment.attach(segment, replica.facts.shape)
        self.replica, self.shards = replica, spec.training.shards
        self.writer = CheckpointWriter(spec, order, self.group, report=self.reports.append, pauses=pauses)

    def train(self, step: int) -> None:
        self.replica.run(step, Plan(self.segment.control.open_plan(), (0,), (self.shards,)))


@pytest.fixture
def segment() -> Iterator[Path]:
    path = DIRECTORY / f"backprop-test-{os.getpid()}"
    path.unlink(missing_ok=True)
    yield path
    path.unlink()


@pytest.fixture
def job(make_spec: MakeSpec, tmp_path: Path, segment: Path) -> Job:
    return Job(make_spec, tmp_path / "checkpoints", segment, pauses=(0.0, 0.0))


async def test_it_holds_the_state_of_the_moment_and_training_goes_on(job: Job, tmp_path: Path) -> None:
    job.train(3)
    before = job.segment.weights(3).copy()
    await job.writer.start(3)
    job.train(5)
    assert await job.writer.finish(5) is not None
    assert [report.step for report in job.reports if isinstance(report, CheckpointSaved)] == [3, 5]
    store = LocalStore(tmp_path / "checkpoints")
    store.remove("step-0000000005")
    facts = job.group.facts
    found = newest(store, facts.tensors, spec_sha256=facts.origin.spec_sha256)
    assert found.state is not None
    assert found.state.weights.tobytes() == before.tobytes()
    assert found.origin == facts.origin


async def test_one_that_cannot_be_written_is_told_and_left(job: Job, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    await job.writer.start(0)
    assert await job.writer.finish(0) is None
    errors = [report.error for report in job.reports if isinstance(report, CheckpointFailed)]
    assert len(errors) == 4, "one, and the last one three times"
    assert [error.endswith("; tried again in 0 s") for error in errors] == [False, True, True, False]
    assert len(job.reports) == 4


async def test_the_last_one_is_tried_again_until_it_is_there(job: Job, tmp_path: Path) -> None:
    blocked = tmp_path / "checkpoints"
    blocked.write_text("in the way")
    reports = job.reports

    def unblock(report: Report) -> None:
        reports.append(report)
        if blocked.is_file():
            blocked.unlink()

    job.writer._report = unblock
    assert await job.writer.finish(0) is not None
    assert [type(report) for report in reports] == [CheckpointFailed, CheckpointSaved]


async def test_a_step_that_nobody_has_is_not_written(job: Job) -> None:
    job.train(3)
    with pytest.raises(NodeLostError, match="nobody has step 4 any more"):
        await job.writer.start(4)
    await job.writer.wait()
    assert not job.reports
