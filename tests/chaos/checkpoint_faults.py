"""Fails, kills and cuts the power at every single file operation of the checkpoint store, and looks at what is left.

    python -m tests.chaos.checkpoint_faults                    prints a tally; exit code 1 where a promise was broken
    python -m tests.chaos.checkpoint_faults --mutant flush     the same with a planted bug, which must be found
    python -m tests.chaos.checkpoint_faults --flips 10000      flips random bits, one a checkpoint

The promises: whatever is visible is sound, bit for bit; what was acknowledged is there; the next try works, and leaves
nothing lying about. A process of its own, for it forks: a child dies, its parent looks.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.disk import KILLED, Disk, installed
from tests.unit.checkpoints import ORIGIN, TENSORS, flips_found, save, state_of, tensors_of
from worker import checkpoint, checkpoint_store
from worker.checkpoint import WEIGHTS, name_of
from worker.checkpoint_store import CorruptCheckpointError, LocalStore

MAX_OPERATIONS = 1000
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
KEEP = 2
MODES = [*(("fail", error) for error in ERRORS), ("break", errno.EROFS), ("kill", 0), ("power", 0)]


@dataclass(frozen=True)
class Scenario:
    """What is there before, what is done, and which steps are acknowledged before and after it."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], object]
    acknowledged: int
    acknowledges: int
    damaged: int = 0  # a step whose checkpoint may be there and unsound, for the scenario has damaged it


def two_there(directory: Path) -> None:
    """Steps 1 and 2: the next one makes the first superfluous."""
    for step in (1, 2):
        save(LocalStore(directory), step, keep=KEEP)


def second_damaged(directory: Path) -> None:
    """Step 2 unsound, and what a dead writer left."""
    two_there(directory)
    (directory / name_of(2) / WEIGHTS).write_bytes(b"damaged")
    shutil.copytree(directory / name_of(1), directory / ".tmp-step-0000000002-1")


def publish(step: int) -> Callable[[Path], object]:
    """Writes the checkpoint of a step."""
    return lambda directory: save(LocalStore(directory), step, keep=KEEP)


def restore(directory: Path) -> checkpoint.Found:
    """What a restarted job does first."""
    return checkpoint.newest(LocalStore(directory), TENSORS, spec_sha256=ORIGIN.spec_sha256)


SCENARIOS = {
    "the first": Scenario(lambda directory: None, publish(1), 0, 1),
    "one more": Scenario(two_there, publish(3), 2, 3),
    "the same again": Scenario(two_there, publish(2), 2, 2),
    "over a damaged one": Scenario(second_damaged, publish(2), 1, 2, damaged=2),
    "restore": Scenario(second_damaged, restore, 1, 1, damaged=2),
}


def broken_promises(directory: Path, scenario: Scenario, acknowledged: int) -> list[str]:
    """What is not as it must be, after a fault."""
    store, broken = LocalStore(directory), []
    for entry in store.entries():
        try:
            state, _ = checkpoint.read(store, entry.name, TENSORS)
            if tensors_of(state) != tensors_of(state_of(state.step)):
                broken.append(f"{entry.name} has other weights")
        except (CorruptCheckpointError, OSError) as error:
            if entry.name != name_of(scenario.damaged):
                broken.append(f"{entry.name} is visible and unsound: {error}")
    found = restore(directory)
    step = 0 if found.state is None else found.state.step
    if step < acknowledged:
        broken.append(f"step {acknowledged} was acknowledged, but the newest is {step}")
    try:
        scenario.act(directory)
    except OSError as error:
        broken.append(f"the next try fails: {error}")
    restore(directory)
    if left := [name for name in os.listdir(directory) if name.startswith((".tmp-", ".trash-"))]:
        broken.append(f"left behind: {left}")
    return broken


def strike(directory: Path, scenario: Scenario, disk: Disk) -> bool:
    """Acts with a disk that fails or dies on the way; whether what was done is acknowledged."""
    if disk.mode in ("kill", "power"):
        child = os.fork()
        if child == 0:
            with installed(disk):
                scenario.act(directory)
            if disk.mode == "power":
                disk.lose_what_was_not_flushed()  # after the last operation
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, KILLED), f"the child ended with {status}"
        return status == 0
    try:
        with installed(disk):
            scenario.act(directory)
    except OSError:
        return False
    return True


def tally(base: Path, *, enough: int) -> tuple[int, list[str]]:
    """Every fault at every operation of every scenario: how many there were, and the promises that were broken.

    Stops when so many are broken.
    """
    faults, broken = 0, list[str]()
    for name, scenario in SCENARIOS.items():
        for mode, error in MODES:
            for at in range(1, MAX_OPERATIONS):
                directory = base / "checkpoints"
                shutil.rmtree(directory, ignore_errors=True)
                scenario.prepare(directory)
                disk = Disk(base, at, mode, error)
                is_done = strike(directory, scenario, disk)
                acknowledged = scenario.acknowledges if is_done else scenario.acknowledged
                directory.mkdir(exist_ok=True)
                found = broken_promises(directory, scenario, acknowledged)
                broken += [
                    f"{name}, {mode} {errno.errorcode.get(error, '')} at operation {at}: {what}" for what in found
                ]
                if is_done and (mode in ("kill", "power") or disk.count < at):
                    break  # beyond the last operation
                faults += 1
                if len(broken) >= enough:
                    return faults, broken
    return faults, broken


def unflushed(directory: Path) -> None:
    """Does nothing where something should be done."""


def publish_in_place(self: LocalStore, name: str, files: dict[str, bytes], manifest: bytes, check: object) -> None:
    """How not to do it: into the place where everybody looks."""
    target = self._directory / name
    target.mkdir(parents=True, exist_ok=True)
    for file, content in {checkpoint_store.MANIFEST: manifest, **files}.items():
        (target / file).unlink(missing_ok=True)
        checkpoint_store._write(target / file, content)


def write_without_flush(path: Path, content: bytes) -> None:
    """Writes a file and hopes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, content)
    os.close(fd)


def plant(mutant: str) -> None:
    """A bug in the store, to see that it is found."""
    match mutant:
        case "flush":
            checkpoint_store._flush = unflushed
        case "fsync":
            checkpoint_store._write = write_without_flush
        case "in-place":
            LocalStore.publish = publish_in_place  # type: ignore[method-assign,assignment]  # that is the bug
        case "retention":
            checkpoint._retain = lambda store, keep, *, but: store.remove(but)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mutant", choices=["flush", "fsync", "in-place", "retention"])
    parser.add_argument("--flips", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.flips:
        found = flips_found(arguments.flips, seed=arguments.seed)
        print(json.dumps({"flips": arguments.flips, "found": found}))
        return int(found < arguments.flips)
    if arguments.mutant:
        plant(arguments.mutant)
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/dev/shm") as base:
        faults, broken = tally(Path(base), enough=1 if arguments.mutant else 20)
    print(json.dumps({"faults": faults, "broken": broken}, indent=1))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
