"""A real Ray cluster for tests, on this machine, of which nothing may be left when it has been closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from glob import glob
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from service.checkpoints import CheckpointPolicy
from service.cluster import RayCluster
from service.local_cluster import open_local_cluster
from tests import failpoints
from tests.leftovers import END_SECONDS, described, processes, wait_until_gone


@asynccontextmanager
async def local_cluster(
    *, worker_slots: int, points: Path | None = None, policy: CheckpointPolicy = CheckpointPolicy()
) -> AsyncIterator[RayCluster]:
    """Opens a cluster, whose workers obey the failpoints in `points`, and closes it.

    Fails where a process that came with it, or while it was there, outlives it, or shared memory of its runs.
    """
    before = processes()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (failpoints.environment(points) if points else {}).items():
            patch.setenv(name, value)
        cluster = await open_local_cluster(worker_slots=worker_slots, policy=policy)
    came = processes() - before
    node: Any = ray._private.worker._global_node
    started = [info.process for infos in node.all_processes.values() for info in infos]
    yield cluster
    await cluster.close()
    for process in started:  # Ray waits a second for those that it kills, too short on a busy machine
        process.wait(END_SECONDS)
    wait_until_gone(lambda: described(one for one in came | processes() - before if one.is_running()), "Ray")
    assert not glob(cluster.segment_pattern), "shared memory was left"


def command_of(process: psutil.Process) -> str:
    """Its command line, which for an actor's names the actor; nothing for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
