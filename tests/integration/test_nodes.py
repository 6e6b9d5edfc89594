"""One job over two nodes of a Ray cluster: two raylets on this machine, each with its own workers and segment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from glob import glob
from pathlib import Path

import pytest
import pytest_asyncio

from service.jobs import Evaluation
from service.runs import RunLostError
from tests import failpoints
from tests.raylets import SECONDS, Nodes, begin, launch, two_raylets

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(points: Path) -> AsyncIterator[Nodes]:
    async with two_raylets(points) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def _slowly(points: Path) -> None:
    for path in points.iterdir():
        path.unlink()
    failpoints.arm(points, "any", "norm", "slow 0.005")  # so that the reference has fewer steps to do again


async def test_a_job_that_fits_stays_on_one_node_and_spreads_when_it_grows(nodes: Nodes, tmp_path: Path) -> None:
    trial = await begin(nodes, tmp_path, workers=2)
    assert [len(processes) for processes in trial.processes()] == [2]
    await trial.run.scale(3)
    await trial.until_workers(3)
    await trial.until_steps(15)
    assert [len(processes) for processes in trial.processes()] == [2, 1]
    (agent,) = nodes.on_second("ray::_NodeAgent")
    os.kill(agent, signal.SIGKILL)
    await trial.until(lambda: trial.lost)
    assert [lost.reason for lost in trial.lost] == ["node lost: the connection to its agent ended"]
    await trial.until_workers(3)
    await trial.until_steps(15)
    await trial.run.scale(1)
    await trial.until_workers(1)
    await trial.until(lambda: len(glob(nodes.service.segment_pattern)) == 1)
    await trial.until(lambda: not nodes.on_second("ray::_"))
    assert trial.of(Evaluation)
    await trial.finish()


async def test_workers_killed_on_either_node_change_nothing(nodes: Nodes, tmp_path: Path) -> None:
    trial = await begin(nodes, tmp_path, workers=3)
    await trial.until_steps(15)
    first, second = trial.processes()
    for process in first.values():
        os.kill(process, signal.SIGKILL)
    await trial.until(lambda: len(trial.lost) == 2)
    await trial.until_steps(60)  # on the other node alone: there is the state, and checkpoints are read from there
    for process in second.values():
        os.kill(process, signal.SIGKILL)
    await trial.until(lambda: len(trial.lost) == 3)
    await trial.until_workers(3)
    await trial.until_steps(15)
    assert {lost.rank for lost in trial.lost} == {0, 1, 2}
    assert {lost.reason for lost in trial.lost} == {"process died"}
    assert [len(processes) for processes in trial.processes()] == [2, 1]
    await trial.finish()


async def test_members_that_cannot_reach_each_other_part_and_a_killed_coordinator_leaves_nothing(
    nodes: Nodes, points: Path, tmp_path: Path
) -> None:
    failpoints.arm(points, "any", "listen", "wrong")
    trial = await launch(nodes, tmp_path, workers=3)
    await trial.until(lambda: trial.lost)
    assert trial.lost[0].reason == "out of reach: cannot connect to place 0 at 127.0.0.1:1: Connection refused"
    await trial.until_steps(15)
    (coordinator,) = nodes.processes("ray::_Coordinator")
    os.kill(coordinator, signal.SIGKILL)
    with pytest.raises(RunLostError):
        await trial.until_steps(1_000_000)
    await trial.run.close()
    async with asyncio.timeout(SECONDS):
        while nodes.processes("ray::_") or glob(nodes.service.segment_pattern):
            await asyncio.sleep(0.05)


async def test_a_node_that_dies_is_lost_with_its_workers_and_the_others_go_on(nodes: Nodes, tmp_path: Path) -> None:
    trial = await begin(nodes, tmp_path, workers=3)
    await trial.until_steps(15)
    nodes.kill_second()
    await trial.until(lambda: trial.lost)
    await trial.until_steps(30)
    assert [lost.reason.partition(":")[0] for lost in trial.lost] == ["node lost"]
    assert trial.news.progress.current_workers == 2
    assert trial.news.steps_redone <= 1
    await trial.finish()
    async with asyncio.timeout(SECONDS):
        while nodes.service.num_slots != 2:  # Ray believes in a node for some seconds
            await asyncio.sleep(0.1)
