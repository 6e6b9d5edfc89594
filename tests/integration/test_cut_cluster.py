"""The link between two nodes of a Ray cluster is cut while a job trains on both: it goes on where its coordinator is.

Each raylet is in a network namespace of its own, which takes root and iproute2.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks.namespaces import Namespace, two_namespaces
from tests import failpoints
from tests.raylets import begin, two_raylets

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        os.getuid() != 0 or not (shutil.which("ip") and shutil.which("tc")),
        reason="network namespaces need root and the programs ip and tc",
    ),
]

NOTICED_SECONDS = 20.0  # it takes 2; Ray alone takes more than a minute


async def _train(namespaces: tuple[Namespace, Namespace], points: Path, directory: Path) -> float:
    """Cuts the link under a job; after how many seconds its node was lost. Whoever calls is in the first namespace."""
    failpoints.arm(points, "any", "norm", "slow 0.005")
    async with two_raylets(points, namespaces=namespaces) as nodes:
        trial = await begin(nodes, directory, workers=3)
        await trial.until_steps(15)
        assert [len(processes) for processes in trial.processes()] == [2, 1]
        namespaces[0].cut()
        cut = time.monotonic()
        await trial.until(lambda: trial.lost)
        noticed = time.monotonic() - cut
        await trial.until_steps(30)
        assert [lost.reason.partition(":")[0] for lost in trial.lost] == ["node lost"]
        assert trial.news.progress.current_workers == 2
        assert trial.news.steps_redone <= 1
        await trial.stop()  # what is behind the cut goes with its raylet
    return noticed


def _work(namespaces: tuple[Namespace, Namespace], points: Path, directory: Path, connection: Connection) -> None:
    namespaces[0].enter()
    connection.send(asyncio.run(_train(namespaces, points, directory)))


def test_a_node_behind_a_cut_link_is_lost_within_seconds_and_the_others_go_on(points: Path, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with two_namespaces() as namespaces:
        process = spawn.Process(target=_work, args=(namespaces, points, tmp_path, theirs))
        process.start()
        theirs.close()
        try:
            assert ours.recv() <= NOTICED_SECONDS
            process.join()
        finally:
            process.kill()
            process.join()
            ours.close()
