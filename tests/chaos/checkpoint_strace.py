"""Lets every system call of the checkpoint store fail, lie or be the last, by strace, and looks at what is left.

    python -m tests.chaos.checkpoint_strace                      prints a tally; exit code 1 where a promise was broken
    python -m tests.chaos.checkpoint_strace --scenarios "one more" --calls rename fsync
    python -m tests.chaos.checkpoint_strace --mutant in-place    the same with a planted bug, which must be found

Beside `tests.chaos.checkpoint_faults`, whose shim stands in the place of `os`, this one fails whatever really reaches
the kernel, of whatever library. The promises are the same. Each try is a child that strace attaches to before it acts;
the calls are those on files and descriptors that a first, undisturbed try was seen to make.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.checkpoint_faults import SCENARIOS, Scenario, broken_promises, plant

FAULTS = (
    *(f"error={errno.errorcode[error]}" for error in (errno.EIO, errno.ENOSPC, errno.EROFS)),
    "signal=KILL",
    "retval=1",  # a write that says it has done something
)
LIES = "retval=1"
LIARS = ("write", "pwrite64")
NOT_OF_THE_DISK = {"mmap", "munmap", "mprotect", "fadvise64"}  # memory, and advice
DONE, FAILED = 0, 1
CHILD_SECONDS, DETACH_SECONDS = 60, 30
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, ctypes.c_ulong(-1)


@dataclass(frozen=True)
class Try:
    """What became of one: whether it is acknowledged, whether the fault has struck, what calls were made."""

    is_done: bool
    has_struck: bool
    calls: Counter[str]


def attempt(directory: Path, scenario: Scenario, *, inject: str = "") -> Try:
    """Acts in a child under strace, which injects a fault, such as "fsync:error=EIO:when=2"."""
    log = directory.with_name("strace")
    with tempfile.TemporaryFile() as messages:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)  # strace is no ancestor
            signal.alarm(CHILD_SECONDS)
            signal.sigwait({signal.SIGUSR1})
            try:
                scenario.act(directory)
            except OSError:
                os._exit(FAILED)
            os._exit(DONE)
        arguments = ["-e", f"inject={inject}"] if inject else []
        command = ["strace", "-p", str(child), "-e", "trace=%file,%desc", *arguments, "-o", str(log)]
        tracer = subprocess.Popen(command, stderr=messages)
        try:
            _wait_until_attached(child, tracer)
            os.kill(child, signal.SIGUSR1)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            tracer.wait(DETACH_SECONDS)
    assert status in (DONE, FAILED, -signal.SIGKILL), f"the child ended with {status}"
    text = log.read_text()
    calls = Counter(re.findall(r"^(\w+)\(", text, flags=re.MULTILINE))
    return Try(status == DONE, "(INJECTED)" in text or status == -signal.SIGKILL, calls)


def _wait_until_attached(child: int, tracer: subprocess.Popen[bytes]) -> None:
    status = Path(f"/proc/{child}/status")
    while "TracerPid:\t0\n" in status.read_text():
        if tracer.poll() is not None:
            raise SystemExit("strace cannot attach to a child: is ptrace allowed here?")


def faults_of(directory: Path, scenario: Scenario, calls: Collection[str]) -> Iterator[tuple[str, str, int]]:
    """Every call to strike, with what, and at which of its times."""
    _prepared(directory, scenario)
    seen = attempt(directory, scenario).calls
    for call in sorted(set(seen) - NOT_OF_THE_DISK):
        if not calls or call in calls:
            for fault in FAULTS:
                if fault != LIES or call in LIARS:
                    for at in range(1, seen[call] + 1):
                        yield call, fault, at


def _prepared(directory: Path, scenario: Scenario) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    scenario.prepare(directory)


def tally(base: Path, scenarios: Collection[str], calls: Collection[str], *, enough: int) -> tuple[int, list[str]]:
    """Every fault at every call of the scenarios: how many struck, and the promises that were broken."""
    struck, broken, directory = 0, list[str](), base / "checkpoints"
    for name in scenarios:
        scenario = SCENARIOS[name]
        for call, fault, at in faults_of(directory, scenario, calls):
            _prepared(directory, scenario)
            tried = attempt(directory, scenario, inject=f"{call}:{fault}:when={at}")
            struck += tried.has_struck
            directory.mkdir(exist_ok=True)
            acknowledged = scenario.acknowledges if tried.is_done else scenario.acknowledged
            broken += [
                f"{name}, {call} number {at}, {fault}: {what}"
                for what in broken_promises(directory, scenario, acknowledged)
            ]
            if len(broken) >= enough:
                return struck, broken
    return struck, broken


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--calls", nargs="+", default=[], help="system calls to strike; all by default")
    parser.add_argument("--mutant", choices=["in-place", "retention"])
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("the program strace is not installed here")
    if arguments.mutant:
        plant(arguments.mutant)
    enough = 1 if arguments.mutant else 20
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/dev/shm") as base:
        struck, broken = tally(Path(base), arguments.scenarios, arguments.calls, enough=enough)
    print(json.dumps({"faults": struck, "broken": broken}, indent=1))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
