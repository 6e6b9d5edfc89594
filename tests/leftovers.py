"""What tests leave behind: processes, shared memory and temporary directories. Knows nothing of the product's code.

Importing this marks whatever this process starts from now on, so that several test runs on one machine, side by side
or beside somebody's training, do not take each other's things for their own.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")
END_SECONDS = 20.0  # how long what ends by itself may take to end
MARK = f"BACKPROP_TESTS={os.getpid()}"  # in the environment of everything that these tests start
NAMED_BY_TESTS = re.compile(r"backprop-(?:test|alone|undisturbed)-(\d+)")  # by the number of their process
HELPERS_OF_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # they end with their parent

os.environ["BACKPROP_TESTS"] = str(os.getpid())


def left_behind() -> set[str]:
    """Child processes, shared memory and temporary directories of ours that are there now."""
    found = {str(path) for path in SHARED_MEMORY.glob("backprop-*")}
    found |= {str(path) for path in Path(tempfile.gettempdir()).glob("backprop-*")}
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has just ended
            for process in children.read_text().split():
                found |= {f"process {process}: {command}" for command in command_of(process)}
    return found


def left_since(before: set[str]) -> set[str]:
    """What is left behind now, was not there before, and belongs to nobody else."""
    return {thing for thing in left_behind() - before if not belongs_to_others(thing)}


def command_of(process: str) -> Iterator[str]:
    """The command line of a process, unless it has ended (it may not be reaped yet) or Python keeps it for itself."""
    with suppress(OSError):
        command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        if command and not any(helper in command for helper in HELPERS_OF_PYTHON):
            yield command


def belongs_to_others(thing: str) -> bool:
    """Whether a process that these tests did not start names this path, or is named in it: others train here, too."""
    named = NAMED_BY_TESTS.match(Path(thing).name)
    if named:
        return named[1] != str(os.getpid()) and is_of_others(Path("/proc", named[1]))
    who = [process for process in Path("/proc").glob("[0-9]*") if names(process, thing)]
    return bool(who) and all(map(is_of_others, who))


def names(process: Path, thing: str) -> bool:
    """Whether a process, given its directory in /proc, names a path, or a pattern of it, or maps it."""
    with suppress(OSError):  # it has just ended, or is not ours to look at
        arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if any(thing in argument or fnmatch(thing, argument) for argument in arguments):
            return True
        return thing.startswith(str(SHARED_MEMORY)) and thing.encode() in (process / "maps").read_bytes()
    return False


def is_of_others(process: Path) -> bool:
    """Whether there is such a process, given its directory in /proc, and these tests have not started it."""
    try:
        return MARK.encode() not in (process / "environ").read_bytes()
    except PermissionError:
        return True
    except OSError:  # it has just ended
        return False


def processes() -> set[psutil.Process]:
    """What these tests have started and still runs, near or far, but for what Python keeps for itself."""
    found = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        if process.pid != os.getpid() and not is_of_others(Path("/proc", str(process.pid))):
            found.add(process)
    return {process for process in found if list(command_of(str(process.pid)))}


def described(processes: Iterable[psutil.Process]) -> set[str]:
    """For whoever has to find out where they come from."""
    return {f"process {one.pid}: {command}" for one in processes for command in command_of(str(one.pid))}


def wait_until_gone(left: Callable[[], set[str]], what: str) -> None:
    """Fails with the names of what is still left after a while."""
    deadline = time.monotonic() + END_SECONDS
    while found := left():
        assert time.monotonic() < deadline, f"{what} has left something behind: {found}"
        time.sleep(0.02)
