"""Where the files of jobs lie: one directory a job, below the service's data directory.

Blocking calls run in a thread, for a slow disk must not hold up the service.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

HIDDEN = ".deleted-"


class JobDirectories:
    """The directories of jobs below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def make(self, job_id: str) -> Path:
        """The job's directory; it is there afterwards."""
        directory = self._root / job_id
        await asyncio.to_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
        return directory

    async def hide(self, job_id: str) -> Path:
        """Takes a job's directory away in one step, so that a crash amid a deletion leaves no half of it."""
        directory, hidden = self._root / job_id, self._root / f"{HIDDEN}{job_id}"

        def rename() -> None:
            shutil.rmtree(hidden, ignore_errors=True)
            if directory.exists():
                directory.rename(hidden)

        await asyncio.to_thread(rename)
        return hidden

    async def remove(self, hidden: Path) -> None:
        """Frees the space of a hidden directory."""
        await asyncio.to_thread(shutil.rmtree, hidden, ignore_errors=True)

    async def sweep(self) -> None:
        """Removes what a crash in the middle of a deletion has left."""
        for hidden in await asyncio.to_thread(lambda: list(self._root.glob(f"{HIDDEN}*"))):
            await self.remove(hidden)
