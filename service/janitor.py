"""Cleans up after a service that was killed: nothing of it may stay behind, even if it could not say goodbye.

`python -m service.janitor DIRECTORY SHARED_MEMORY` is started by the service, in a session of its own, with a pipe
from it as standard input. When the pipe ends, the service is gone. Then the janitor waits until no process of the
local Ray cluster in DIRECTORY is left, ends the ones that stay, removes DIRECTORY and the files that match
SHARED_MEMORY, and goes too.

`python service/janitor.py --beside FILE` returns at once; a child of it removes FILE when the pipe ends.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GRACE_SECONDS = 2.0  # most of Ray's processes see within a second that the service is gone
POLL_SECONDS = 0.05
_PIPES: list[subprocess.Popen[bytes]] = []


def main(directory: Path, shared_memory: str) -> None:
    """Waits for the end of standard input, then cleans up."""
    sys.stdin.buffer.read()
    clean(directory, shared_memory)


def leave_beside(path: Path) -> None:
    """Has a file removed when this process ends, however it does; Ray, which ends our children with us, knows nothing.

    Waits a moment, until the process that does it is nobody's child.
    """
    command = [sys.executable, "-I", __file__, "--beside", str(path)]
    quiet = subprocess.DEVNULL
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
    parent.wait()
    _PIPES.append(parent)  # which would close what it ends with


def stay_beside(path: Path) -> None:
    """Removes a file at the end of standard input, in a process whose parent has gone."""
    if os.fork() == 0:
        sys.stdin.buffer.read()
        path.unlink(missing_ok=True)


def clean(directory: Path, shared_memory: str, *, grace_seconds: float = GRACE_SECONDS) -> None:
    """Ends every process that uses `directory`, then removes the directory and the memory."""
    deadline = time.monotonic() + grace_seconds
    while any(True for _ in processes_of(directory)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for process_id in processes_of(directory):
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    while any(True for _ in processes_of(directory)) and time.monotonic() < deadline + grace_seconds:
        time.sleep(POLL_SECONDS)
    shutil.rmtree(directory, ignore_errors=True)
    for path in glob.glob(shared_memory):
        Path(path).unlink(missing_ok=True)


def processes_of(directory: Path) -> Iterator[int]:
    """The processes that name the directory in their command line or have a file in it open, as all of Ray's have.

    This one and its parent are left out: the parent is the service, as long as it lives.
    """
    spared = {os.getpid(), os.getppid()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spared:
            continue
        with suppress(OSError):  # it has just ended, or is another user's
            if os.fsencode(directory) in (entry / "cmdline").read_bytes() or any(
                os.readlink(file).startswith(f"{directory}/") for file in (entry / "fd").iterdir()
            ):
                yield int(entry.name)


if __name__ == "__main__":
    if sys.argv[1] == "--beside":
        stay_beside(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), sys.argv[2])
