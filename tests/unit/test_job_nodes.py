"""Which nodes have a job's state: those from which it can go on, on real segments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.node import LocalNode
from service.nodes import Nodes
from service.order import Order
from service.seats import Standing, Worker, node_by_node, plan_over
from service.worker_group import WorkerGroup
from tests.conftest import MakeSpec
from worker.plan import Plan
from worker.reduce.segment import DIRECTORY, NOTHING, Segment, Shape

SHAPE = Shape(10, 1, num_shards=4, num_seats=3, num_slots=3)


class Site:
    """Nodes of a job that are all on this machine, without processes."""

    def __init__(self, nodes: Nodes, directory: Path) -> None:
        self.nodes, self._directory = nodes, directory

    async def add(self, name: str, committed: int) -> LocalNode:
        node = self.nodes.here if name == "here" else LocalNode(self._directory / name, number=len(name))
        self.nodes._by_id[name] = node
        Segment.create(node.path, SHAPE).close()
        await node.attach(SHAPE)
        node.path.unlink()
        assert node.segment is not None
        node.segment.control.commit(committed)
        await node.look()
        return node


@pytest.fixture
def directory() -> Iterator[Path]:
    path = DIRECTORY / f"backprop-test-nodes-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


@pytest.fixture
def site(directory: Path) -> Site:
    return Site(Nodes("here", directory / "backprop-job-1-token"), directory)


@pytest.mark.parametrize(
    ("here", "far", "bearing"),
    [
        (7, 7, ["here", "far"]),
        (7, 8, ["here", "far"]),  # one step apart: that of either node is good
        (6, 8, ["far"]),
        (8, NOTHING, ["here"]),  # it has only begun to copy
        (NOTHING, NOTHING, []),
    ],
)
async def test_a_job_goes_on_from_whoever_is_furthest(site: Site, here: int, far: int, bearing: list[str]) -> None:
    await site.add("here", here)
    await site.add("far", far)
    nodes = site.nodes
    assert nodes.ids(nodes.bearing()) == bearing
    assert nodes.has_state is bool(bearing)
    assert nodes.are_level is (here == far)


async def test_a_lost_node_has_nothing(site: Site) -> None:
    await site.add("here", 3)
    far = await site.add("far", 9)
    far.lost = "cut off"
    assert site.nodes.ids(site.nodes.bearing()) == ["here"]
    assert site.nodes.lost_ids == ["far"]


async def test_phase_seconds_never_go_back_when_a_node_goes(site: Site) -> None:
    for name in ("here", "far"):
        node = await site.add(name, 1)
        assert node.segment is not None
        node.segment.control.phase_seconds[1] = 1.0
    await site.nodes.look()
    before = site.nodes.phase_seconds()
    await site.nodes.release(["here"], committed=1)
    assert len(site.nodes.living) == 1
    assert np.array_equal(site.nodes.phase_seconds(), before)
    await site.nodes.begin_anew()
    assert np.array_equal(site.nodes.phase_seconds(), before)


async def test_a_node_is_kept_that_knows_more_than_the_others(site: Site) -> None:
    await site.add("here", 1)
    await site.add("far", 2)
    await site.nodes.release(["here"], committed=1)
    assert site.nodes.ids(site.nodes.living) == ["here", "far"]


async def test_a_late_word_to_give_up_does_not_end_the_plan_after(site: Site) -> None:
    node = await site.add("here", 0)
    assert node.segment is not None
    control = node.segment.control
    await node.open_plan(2)
    node.abandon_plan(2)
    assert control.epoch == 3
    await node.open_plan(4)
    node.abandon_plan(2)
    assert control.epoch == 4


class Team:
    """A group with workers that have no processes, on nodes that have."""

    def __init__(self, make_spec: MakeSpec, directory: Path) -> None:
        spec = make_spec(training={"global_batch_size": 8, "shards": 4, "max_steps": 10})
        order = Order("job", spec.model_dump_json(), 3, 1, 3, directory / "backprop-job-1-token", "", {}, node="here")
        self.group = WorkerGroup(order, lambda report: None)
        self.group.startup.has_segment = True
        self.site = Site(self.group.nodes, directory)

    def add(self, seat: int, place: str, standing: Standing) -> None:
        worker = Worker(seat, None, place=place, takes_slot=True)  # type: ignore[arg-type]  # it has no actor
        worker.standing = standing
        if standing is not Standing.STARTING:
            worker.node = self.group.nodes._by_id[place]
        self.group._workers[seat] = worker


@pytest.fixture
def team(make_spec: MakeSpec, directory: Path) -> Team:
    return Team(make_spec, directory)


async def test_workers_without_the_state_come_last_and_cannot_go_on_alone(team: Team) -> None:
    await team.site.add("here", 2)
    await team.site.add("far", 9)
    team.add(0, "here", Standing.READY)
    team.add(1, "far", Standing.READY)
    group = team.group
    assert group.seats(Standing.READY) == (1, 0)
    assert group.can_go_on([0, 1])
    assert not group.can_go_on([0])
    assert group.stranded() == ()


@pytest.mark.parametrize(("place", "stranded"), [("far", ()), ("here", (0,))])
async def test_nobody_waits_for_a_state_where_no_worker_is_coming(
    team: Team, place: str, stranded: tuple[int, ...]
) -> None:
    await team.site.add("here", 2)
    await team.site.add("far", 9)
    team.add(0, "here", Standing.READY)
    team.add(1, place, Standing.STARTING)
    assert team.group.stranded() == stranded


async def test_the_members_of_a_node_stand_together_in_a_plan(team: Team) -> None:
    await team.site.add("here", 2)
    await team.site.add("far", 2)
    for seat, place in ((4, "far"), (2, "here"), (7, "far")):
        team.add(seat, place, Standing.READY)
    workers = node_by_node(list(team.group._workers.values()))
    for worker in workers:
        worker.address = "192.0.2.1", 1000 + worker.seat
    plan = plan_over(workers, (1, 2, 1), epoch=6)
    assert (plan.members, plan.nodes, plan.epoch) == ((4, 7, 2), (3, 3, 0), 6)
    assert [port for _, port in plan.addresses] == [1004, 1007, 1002]
    assert plan_over(workers[:2], (2, 2), epoch=8) == Plan(8, (4, 7), (2, 2))


async def test_a_state_without_workers_is_fetched_to_those_that_wait_for_it(team: Team) -> None:
    here, far = await team.site.add("here", 2), await team.site.add("far", 9)
    for number, vector in enumerate(far.state(9)):
        vector[:] = number + 1
    team.add(0, "here", Standing.READY)
    await team.group.rescue()
    assert here.committed == 9
    assert [vector.tolist() for vector in here.state(9)] == [[1.0] * 10, [2.0] * 10]
    assert team.group.can_go_on([0])


async def test_a_job_whose_state_is_nowhere_has_lost_all(team: Team) -> None:
    await team.site.add("here", 5)
    assert not team.group.has_lost_all
    await team.site.add("here", NOTHING)
    assert team.group.has_lost_all
    assert team.group.committed == 0
    await team.group.start_over()
    assert not team.group.has_lost_all
