"""How a run finds the state that it goes on from: what is told on the way, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from service.checkpoints import RETRY_PAUSES
from service.jobs import CheckpointCorrupt, CheckpointFailed, ExactnessLost
from service.runs import Report
from worker.actor import Refused
from worker.checkpoint_store import StoreUnreachableError
from worker.fingerprint import differences
from worker.replica import Facts, NumericsChangedError, Resumed
from worker.violations import Violation


class RefusedError(Exception):
    """The job's data or model do not work, on any worker."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(map(str, violations)))


async def create_segment(
    actor: ActorHandle[Any],
    segment: Path,
    checkpoints: str,
    *,
    allow_different_numerics: bool,
    report: Callable[[Report], None],
) -> None:
    """Lets a worker make the segment with the newest saved or the first weights, and tells what it found.

    A store of checkpoints that cannot be reached is tried again for a while. Raises RefusedError, NumericsChangedError.
    """
    pauses = iter(RETRY_PAUSES)
    while True:
        try:
            answer: Resumed | Refused = await actor.create_segment.remote(
                segment, checkpoints, allow_different_numerics=allow_different_numerics
            )
            break
        except RayTaskError as error:
            pause = next(pauses, None)
            if pause is None or not isinstance(error.cause, StoreUnreachableError):
                raise
            report(CheckpointFailed(0, f"StoreUnreachableError: {error.cause}; tried again in {pause:g} s"))
            await asyncio.sleep(pause)
    if isinstance(answer, Refused):
        raise NumericsChangedError(answer.numerics) if answer.numerics else RefusedError(answer.violations)
    for corrupt in answer.corrupt:
        report(CheckpointCorrupt(corrupt.location, corrupt.reason))
    if answer.differences:
        report(ExactnessLost(answer.step, "; ".join(answer.differences)))


def check_alike(facts: Facts, others: Facts, *, allow_different_numerics: bool) -> None:
    """All workers must have the same data, and compute the same bits. Raises RefusedError, NumericsChangedError."""
    ours, theirs = facts.origin, others.origin
    if ours.data_sha256 != theirs.data_sha256:
        text = f"got sha256 {ours.data_sha256} on one node and {theirs.data_sha256} on another, expected the same"
        raise RefusedError([Violation("data", text)])
    changed = differences(ours.fingerprint, theirs.fingerprint)
    if changed and not allow_different_numerics:
        raise NumericsChangedError(
            f"the nodes do not compute the same bits: {'; '.join(changed)}. Use equal nodes; "
            "a service started with --allow-different-numerics trains all the same"
        )
