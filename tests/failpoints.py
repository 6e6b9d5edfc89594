"""Workers that die, stop, hang or dawdle exactly where a test wants it; nothing of this is in the product.

Ray calls `install` in every worker process, see `environment`. A failpoint is a file: its name says which worker (by
seat) and at what stage of a step or of its start, its content what happens there. All but `slow` happen once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

DIRECTORY = "BACKPROP_FAILPOINTS"
ROOT = Path(__file__).parents[1]
NOBODY = 1  # a port at which nobody listens


def environment(directory: Path) -> Mapping[str, str]:
    """What must be in the environment of a Ray cluster before it starts."""
    return {
        DIRECTORY: str(directory),
        "PYTHONPATH": str(ROOT),
        "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "tests.failpoints.install",
    }


def arm(directory: Path, seat: int | str, stage: str, action: str) -> Path:
    """Lets the worker in a seat ("any": whoever comes first) `kill`, `stop`, `hold` (the GIL) or `slow SECONDS`.

    Stage "listen" is another matter: as long as it is there, all give away a wrong port to be reached at.
    """
    path = directory / f"{seat}-{stage}"
    partial = path.with_suffix(".partial")
    partial.write_text(action)
    return partial.rename(path)


def poison(directory: Path, *, step: int, shard: int) -> Path:
    """Whoever computes this shard of the step after `step` committed ones dies of it."""
    path = directory / f"poison-{step}-{shard}"
    path.touch()
    return path


def install() -> None:
    """Puts the failpoints into this process."""
    from worker.phases import PhaseClock
    from worker.reduce.mesh import Address
    from worker.replica import Replica

    directory = os.environ[DIRECTORY]
    enter, work_on = PhaseClock.enter, PhaseClock.work_on

    def enter_and_fail(self: PhaseClock, stage: str) -> None:
        enter(self, stage)
        for who in (self.seat, "any"):
            path = f"{directory}/{who}-{stage}"
            if os.path.exists(path):
                _fail(Path(path))

    def work_on_and_fail(self: PhaseClock, step: int, shards: range = range(0)) -> None:
        work_on(self, step, shards)
        if any(os.path.exists(f"{directory}/poison-{step}-{shard}") for shard in shards):
            os.kill(os.getpid(), signal.SIGKILL)

    PhaseClock.enter, PhaseClock.work_on = enter_and_fail, work_on_and_fail  # type: ignore[method-assign]  # on purpose

    def failing_first(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            _fail(Path(f"{directory}/any-{name}"))
            return method(*arguments, **keywords)

        return call

    for name in ("load", "create_segment", "join"):
        setattr(Replica, name, failing_first(name, getattr(Replica, name)))

    listen = Replica.listen

    def listen_elsewhere(self: Replica, host: str, token: bytes) -> Address:
        address = listen(self, host, token)
        return (host, NOBODY) if os.path.exists(f"{directory}/any-listen") else address

    Replica.listen = listen_elsewhere  # type: ignore[method-assign]  # as above


def _fail(path: Path) -> None:
    with suppress(FileNotFoundError):
        action, *arguments = path.read_text().split()
        if action == "slow":
            time.sleep(float(arguments[0]))
            return
        path.unlink()  # whoever removes it is the one
        match action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hold":
                ctypes.PyDLL(None).pause()  # unlike CDLL, it keeps the GIL
