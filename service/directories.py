"""Where the files of jobs lie: one directory a job, below the service's data directory; checkpoints perhaps elsewhere.

Blocking calls run in a thread, for a slow disk must not hold up the service.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

from service.checkpoints import CheckpointPolicy
from worker.checkpoint_store import open_store

log = logging.getLogger(__name__)

HIDDEN = ".deleted-"


class JobDirectories:
    """The directories of jobs below `root`."""

    def __init__(self, root: Path, policy: CheckpointPolicy = CheckpointPolicy()) -> None:
        self._root, self._policy = root, policy

    def checkpoints(self, job_id: str) -> str:
        """Where a job's checkpoints lie, a path or a URL."""
        return self._policy.location(job_id, self._root / job_id)

    async def make(self, job_id: str) -> Path:
        """The job's directory; it is there afterwards."""
        directory = self._root / job_id
        await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
        return directory

    async def hide(self, job_id: str) -> Path:
        """Takes a job's directory away in one step, so that a crash amid a deletion leaves no half of it.

        What is hidden is removed in the end, by the service's next life if need be, and checkpoints elsewhere with it.
        """
        directory, hidden = self._root / job_id, self._root / f"{HIDDEN}{job_id}"

        def rename() -> None:
            shutil.rmtree(hidden, ignore_errors=True)
            if directory.exists():
                directory.rename(hidden)

        await asyncio.to_thread(rename)
        return hidden

    async def remove(self, hidden: Path) -> None:
        """Frees the space of a hidden directory, and of checkpoints that lie elsewhere."""

        def free() -> None:
            if self._policy.store is not None:
                open_store(self.checkpoints(hidden.name.removeprefix(HIDDEN))).clear()
            shutil.rmtree(hidden, ignore_errors=True)

        try:
            await asyncio.to_thread(free)
        except OSError as error:  # the store cannot be reached: the next start of the service tries again
            log.warning("%s: its checkpoints could not be removed: %s", hidden.name, error)

    async def sweep(self) -> None:
        """Removes what a crash in the middle of a deletion has left."""
        for hidden in await asyncio.to_thread(lambda: list(self._root.glob(f"{HIDDEN}*"))):
            await self.remove(hidden)
