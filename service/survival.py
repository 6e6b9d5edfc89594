"""Coordinators that outlive the service on a Ray cluster: what they are called, and how the next service finds them.

A coordinator is a named actor in the service's own namespace, so that nobody takes another service's runs. Its name
says to which attempt at which job it belongs.
"""

from __future__ import annotations

import asyncio
import glob
import logging
import os
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service import __version__
from service.coordinator import Situation
from service.jobs import Job
from service.seats import answer_of

logger = logging.getLogger(__name__)

IDENTITY_FILE = "service-id"
CLOSE_SECONDS = 15.0  # a coordinator that does not end its run in this time is killed with it
FIND_SECONDS = 30.0  # a coordinator answers in milliseconds, and one that is being started within seconds
SWEEP_SECONDS = 30.0  # a process has to be started on the node


def identity_of(data_dir: Path) -> str:
    """Who the service with this data directory is on a cluster, from its first start on."""
    path = data_dir / IDENTITY_FILE
    with suppress(FileNotFoundError):
        if identity := path.read_text().strip():
            return identity
    identity, draft = secrets.token_hex(8), path.with_suffix(".new")
    with draft.open("w") as file:
        file.write(f"{identity}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    return identity


def name_of(job: Job) -> str:
    """What the coordinator of a job's present attempt is called."""
    return f"{job.job_id}.{job.attempt}"


def options_of(job: Job, namespace: str) -> Mapping[str, str]:
    """What makes Ray keep the coordinator of a job's present attempt when the service is gone."""
    return {"name": name_of(job), "namespace": namespace, "lifetime": "detached"}


async def find(names: Collection[str], *, namespace: str) -> Mapping[str, tuple[ActorHandle[Any], Situation]]:
    """The living coordinators of these names, and how they stand; all others of the namespace are ended."""
    actors = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
    there = [actor["name"] for actor in actors if actor["namespace"] == namespace]
    found = await asyncio.gather(*(_find(name, namespace, is_wanted=name in names) for name in there))
    return {name: one for name, one in zip(there, found, strict=True) if one is not None}


async def _find(name: str, namespace: str, *, is_wanted: bool) -> tuple[ActorHandle[Any], Situation] | None:
    try:
        coordinator = await asyncio.to_thread(ray.get_actor, name, namespace)
    except ValueError:  # it has just ended
        return None
    if is_wanted:
        try:
            situation: Situation = await asyncio.wait_for(answer_of(coordinator.start.remote()), FIND_SECONDS)
            if situation.version == __version__:
                return coordinator, situation
            logger.warning("run %s: got version %s, expected %s: it is ended", name, situation.version, __version__)
        except (RayError, TimeoutError) as error:
            logger.warning("run %s cannot be taken up: %s", name, " ".join(str(error).split())[:200])
    await end(coordinator)
    return None


async def end(coordinator: ActorHandle[Any]) -> None:
    """Ends a coordinator, with its workers and its segment."""
    try:
        await asyncio.wait_for(answer_of(coordinator.close.remote()), CLOSE_SECONDS)
    except (RayError, TimeoutError):
        logger.warning("the coordinator did not end its run; it is killed, and its workers with it")
    ray.kill(coordinator)


async def sweep(pattern: str, *, spared: Collection[Path]) -> None:
    """Removes the shared memory of coordinators that died with nobody there to see it, on every node."""
    here = ray.get_runtime_context().get_node_id()
    _remove(pattern, spared)
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray has no types here
    others = [node["NodeID"] for node in nodes if node["Alive"] and node["NodeID"] != here]
    sweeps = await asyncio.gather(*(sweep_node(node, pattern, spared) for node in others), return_exceptions=True)
    for failure in sweeps:
        if failure is not None:
            logger.warning("a node's shared memory could not be cleaned: %s", " ".join(str(failure).split())[:200])


async def sweep_node(node: str, pattern: str, spared: Collection[Path]) -> None:
    """The same on one node, by a process there. Raises what Ray raises, and TimeoutError."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(_remove).options(scheduling_strategy=there)
    await asyncio.wait_for(answer_of(task.remote(pattern, spared)), SWEEP_SECONDS)


def _remove(pattern: str, spared: Collection[Path]) -> None:
    stems = tuple(path.name.rpartition("-")[0] + "-" for path in spared)  # a run's on other nodes begin alike
    for path in map(Path, glob.glob(pattern)):
        if not path.name.startswith(stems):
            path.unlink(missing_ok=True)
