"""torchrun's restart, which `benchmarks.recovery` prints beside ours: gloo workers that train the same MLP, SIGKILL.

torchrun (`torch.distributed.run`) ends all workers when one dies, and starts all of them anew. Its workers here train
from the first step on each time: what a user's script loads of its last snapshot, and the steps since, come on top.
As a program this is such a worker; it notes what it does in a page of memory that the measuring side reads.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.teams import exit_on_sigterm
from worker.process import ENVIRONMENT, start_time_of

POLL_SECONDS = 0.0005
PATIENCE_SECONDS = 60.0
STEPS_BETWEEN = 20
SPARE_RESTARTS = 20
# Workers that share the store of torchrun itself meet the addresses of their former lives there, and cannot connect.
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
END_SECONDS = 10.0
FEATURES, OUTPUTS, BATCH_SIZE = 128, 10, 256  # as in benchmarks.recovery
PROCESS_ID, START_TIME, LIFE, STEP = range(4)  # what a worker's row of the page says

Page = np.memmap[tuple[int, int], np.dtype[np.float64]]


class TorchrunError(Exception):
    """torchrun did not do what it was to be timed at."""


def is_installed() -> bool:
    """Whether there is a PyTorch here."""
    return find_spec("torch") is not None


def restarts(*, workers: int, kills: int, width: int) -> list[float]:
    """For each kill of one worker, the seconds until each of the workers has committed a step again.

    Raises TorchrunError. Leaves no process and no directory.
    """
    with exit_on_sigterm(), tempfile.TemporaryDirectory(prefix="backprop-torchrun-") as directory:
        path, log = Path(directory) / "page", Path(directory) / "log"
        page: Page = np.memmap(path, np.float64, "w+", shape=(workers, 4))
        page[:, LIFE] = -1
        arguments = ["--standalone", f"--nproc-per-node={workers}", f"--max-restarts={SPARE_RESTARTS + kills}"]
        module = ["-m", __spec__.name, str(path), str(width)]
        with log.open("wb") as output:
            agent = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *arguments, *module],
                stdout=output,
                stderr=output,
                env={**os.environ, **ENVIRONMENT, **OWN_STORE},
            )
            try:
                return [_restart(page, agent) for _ in range(kills)]
            except TorchrunError as error:
                raise TorchrunError(f"{error}: {log.read_text()[-500:]}") from None
            finally:
                _end(agent, page)


def _restart(page: Page, agent: subprocess.Popen[bytes]) -> float:
    """Kills a worker, once all have been at work for a while, and waits until all have begun another life."""

    def work(life: float, *, steps: int) -> bool:
        return bool(page[0, LIFE] > life and (page[:, LIFE] == page[0, LIFE]).all() and (page[:, STEP] >= steps).all())

    _wait(lambda: work(-1, steps=STEPS_BETWEEN), agent)
    life, killed = page[0, LIFE].item(), time.monotonic()
    os.kill(int(random.choice(page[:, PROCESS_ID])), signal.SIGKILL)
    _wait(lambda: work(life, steps=1), agent)
    return time.monotonic() - killed


def _wait(condition: Callable[[], bool], agent: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if agent.poll() is not None:
            raise TorchrunError(f"torchrun ended with {agent.returncode}")
        if time.monotonic() > deadline:
            raise TorchrunError(f"its workers did not train within {PATIENCE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _end(agent: subprocess.Popen[bytes], page: Page) -> None:
    """Ends torchrun, which ends its workers; and those, should it have failed to."""
    agent.terminate()
    try:
        agent.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
    for process_id, started in page[:, [PROCESS_ID, START_TIME]].astype(int).tolist():
        if process_id and start_time_of(process_id) == started:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)


def work(path: Path, width: int) -> None:
    """A worker: DistributedDataParallel over gloo, clipping by the global norm, Adam; until it is killed."""
    import torch
    from torch import distributed, nn

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    row = np.memmap(path, np.float64, "r+", shape=(world, 4))[rank]
    row[STEP] = 0
    row[PROCESS_ID], row[START_TIME] = os.getpid(), start_time_of(os.getpid())
    row[LIFE] = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    torch.manual_seed(1)
    layers = [nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, OUTPUTS)]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    inputs = torch.randn(BATCH_SIZE // world, FEATURES)
    targets = torch.randint(OUTPUTS, (BATCH_SIZE // world,))
    while True:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        row[STEP] += 1


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
