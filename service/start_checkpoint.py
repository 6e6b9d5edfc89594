"""A job that begins with a checkpoint of another, which trains the same: whether it may, and the copying.

The copy is made before the job is acknowledged, so that nothing that happens to the other job later matters. Blocking
calls run in a thread. Knows the stores of `worker.checkpoint_store`, not what is in a checkpoint.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import DataLoss, FailedPrecondition, InvalidRequest, Unavailable
from worker.checkpoint_store import CorruptCheckpointError, open_store
from worker.violations import Violation

if TYPE_CHECKING:
    from worker.checkpoint import Listed
    from worker.spec import JobSpec

FIELD = "start_checkpoint"


@dataclass(frozen=True)
class StartCheckpoint:
    """The checkpoint of `job_id` after `step` committed steps."""

    job_id: str
    step: int


def check_step(start: StartCheckpoint) -> None:
    """Raises InvalidRequest for a step that no checkpoint is of."""
    if start.step < 1:
        raise InvalidRequest([Violation(f"{FIELD}.step", f"got {start.step}, expected at least 1")])


async def check_same_training(start: StartCheckpoint, theirs: JobSpec, ours: JobSpec) -> None:
    """Raises InvalidRequest where a job of spec `ours` would not train what the other job does, of spec `theirs`."""

    def digests() -> set[str]:
        from worker.replica import spec_sha256  # numpy and numba load when somebody asks

        return {spec_sha256(theirs), spec_sha256(ours)}

    if len(await asyncio.to_thread(digests)) > 1:
        text = f"got a job that trains something else, expected {start.job_id}'s model, data, optimizer and training"
        raise InvalidRequest([Violation(f"{FIELD}.job_id", text)])


def check_there(start: StartCheckpoint, found: list[Listed]) -> None:
    """Raises FailedPrecondition where the step is not one of those that were found."""
    steps = [one.step for one in found if not one.problem]
    if start.step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        text = f"got {start.step}, expected the step of a checkpoint that job {start.job_id} has now: {there}"
        violation = Violation(f"{FIELD}.step", text)
        raise FailedPrecondition(str(violation), reason="CHECKPOINT_NOT_THERE", violations=[violation])


async def copy_checkpoint(start: StartCheckpoint, source: str, target: str) -> None:
    """Copies the checkpoint from one location to another, every byte of it checked twice."""

    def copy() -> None:
        from worker.checkpoint import copy  # as above

        copy(open_store(source), open_store(target), start.step)

    what = f"the checkpoint of step {start.step} of job {start.job_id}"
    try:
        await asyncio.to_thread(copy)
    except CorruptCheckpointError as error:
        raise DataLoss(f"{what} is damaged: {error}; use another", reason="CHECKPOINT_CORRUPT") from None
    except OSError as error:
        text = f"{what} cannot be copied now: {error}; try again"
        raise Unavailable(text, reason="CHECKPOINTS_UNREACHABLE") from None
