"""Where the files of jobs lie: one directory a job, below the service's data directory; checkpoints perhaps elsewhere.

Blocking calls run in a thread, for a slow disk must not hold up the service.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from service.checkpoints import CheckpointPolicy
from service.start_checkpoint import StartCheckpoint, copy_checkpoint
from worker.checkpoint_store import open_store

log = logging.getLogger(__name__)

HIDDEN, NEW = ".deleted-", ".new-"


class JobDirectories:
    """The directories of jobs below `root`."""

    def __init__(self, root: Path, policy: CheckpointPolicy = CheckpointPolicy()) -> None:
        self._root, self._policy = root, policy

    def checkpoints(self, job_id: str) -> str:
        """Where a job's checkpoints lie, a path or a URL."""
        return self._policy.location(job_id, self._root / job_id)

    async def make(self, job_id: str) -> Path:
        """The job's directory; it is there afterwards."""
        directory, prepared = self._root / job_id, self._root / f"{NEW}{job_id}"

        def make() -> None:
            with suppress(FileNotFoundError):
                prepared.rename(directory)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

        await asyncio.to_thread(make)
        return directory

    async def prepare(self, job_id: str, start: StartCheckpoint) -> None:
        """Copies the checkpoint that a job begins with, before there is such a job; `make` puts it in its place.

        What was prepared for a job that did not come to be is for `discard`, by the service's next life if need be.
        """
        directory = self._root / f"{NEW}{job_id}"
        await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
        await copy_checkpoint(start, self.checkpoints(start.job_id), self._policy.location(job_id, directory))

    async def discard(self, job_id: str) -> None:
        """Removes what was prepared for a job that did not come to be."""
        await self.remove(await self.hide(job_id))

    async def hide(self, job_id: str) -> Path:
        """Takes a job's directory away in one step, so that a crash amid a deletion leaves no half of it.

        What is hidden is removed in the end, by the service's next life if need be, and checkpoints elsewhere with it.
        """
        directory, hidden = self._root / job_id, self._root / f"{HIDDEN}{job_id}"

        def rename() -> None:
            shutil.rmtree(hidden, ignore_errors=True)
            for place in (directory, self._root / f"{NEW}{job_id}"):
                if place.exists():
                    place.rename(hidden)

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

    async def sweep(self, is_job: Callable[[str], Awaitable[bool]]) -> None:
        """Removes what a crash in the middle of a deletion has left, or before a job came to be."""
        for hidden in await self._below(HIDDEN):
            await self.remove(hidden)
        for prepared in await self._below(NEW):
            if not await is_job(job_id := prepared.name.removeprefix(NEW)):
                await self.discard(job_id)

    async def _below(self, prefix: str) -> list[Path]:
        return await asyncio.to_thread(lambda: list(self._root.glob(f"{prefix}*")))
