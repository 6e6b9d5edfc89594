"""The checkpoints of jobs as the service sees them: where they lie, which there are, and how a model is read from them.

Blocking calls run in a thread. Knows the stores of `worker.checkpoint_store`, not what is in a checkpoint.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import DataLoss, FailedPrecondition, StartError, Unavailable
from service.jobs import Job, JobState
from worker.checkpoint_store import LOCAL_SCHEME, StoreUnreachableError, is_url, local_path, open_file, open_store

if TYPE_CHECKING:
    from worker.checkpoint import Listed


RETRY_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Between tries, in seconds, where there is nothing better to do: two minutes in which somebody may free a disk."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """What the operator says for the checkpoints of all jobs.

    `store` is the path or URL below which each job has its own; by default they lie with the job's other files.
    """

    store: str | None = None
    allow_different_numerics: bool = False

    def location(self, job_id: str, directory: Path) -> str:
        """Where a job's checkpoints lie, a path or a URL; `directory` is the job's own."""
        return str(directory / "checkpoints") if self.store is None else f"{self.store.rstrip('/')}/{job_id}"


def prepare_store(location: str) -> str:
    """The location as an absolute path or a URL, after trying that it can be written; raises StartError."""
    try:
        if not is_url(location):
            location = os.path.abspath(local_path(location) if location.startswith(LOCAL_SCHEME) else location)
        open_store(location).probe()
        return location
    except (ValueError, OSError) as error:
        advice = "; credentials and endpoint come from the environment" if is_url(location) else ""
        raise StartError(f"--checkpoint-store: {error}{advice}", reason="CHECKPOINT_STORE_UNUSABLE") from None


async def checkpoints_at(location: str, *, verify: bool) -> list[Listed]:
    """The checkpoints below a location, newest first; raises Unavailable where it cannot be read now."""

    def look() -> list[Listed]:
        from worker.checkpoint import listed  # numpy and numba load when somebody asks

        return listed(open_store(location), verify=verify)

    try:
        return await asyncio.to_thread(look)
    except OSError as error:
        raise unreachable(error) from None


async def model_of(job: Job, *, raw: bool = False) -> AsyncGenerator[tuple[int, bytes]]:
    """A job's trained model in pieces, each with the size of it all; `raw` is without the average that it keeps.

    Raises FailedPrecondition while there is none, DataLoss if it is gone, Unavailable if it cannot be read now.
    """
    if job.state is not JobState.SUCCEEDED:
        raise FailedPrecondition(
            f"cannot export job {job.job_id}: got state {job.state.upper()}, expected SUCCEEDED",
            reason="JOB_NOT_SUCCEEDED",
        )
    try:
        size, pieces = await asyncio.to_thread(lambda: open_file(weights_of(job.model_path) if raw else job.model_path))
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield size, piece
    except StoreUnreachableError as error:
        raise unreachable(error) from None
    except OSError as error:
        raise DataLoss(
            f"the model of job {job.job_id} is gone from {job.model_path}: {error.strerror or error}",
            reason="MODEL_GONE",
        ) from None


def weights_of(model: str) -> str:
    """Where the weights of the last step are, beside the average that is the model."""
    from worker.checkpoint import WEIGHTS, beside  # numpy and numba load when somebody asks

    return beside(model, WEIGHTS)


def unreachable(error: OSError) -> Unavailable:
    """The store of the checkpoints does not answer."""
    return Unavailable(f"the checkpoints cannot be read now: {error}; try again", reason="CHECKPOINTS_UNREACHABLE")
