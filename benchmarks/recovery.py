"""How fast a job goes on when a worker is killed: real Ray, a real job, SIGKILL again and again.

    python -m benchmarks.recovery [--workers 2] [--kills 10] [--width 256] [--no-spare] [--torchrun-kills 5]

Prints, from the kill on: when the survivors begin to compute again, when they have committed the next step, and when
the job is at full strength, that is, when a step is committed in which the replacement has taken part. Times are read
off the job's control page every half millisecond. A job keeps a worker in reserve where its node has a slot free; with
--no-spare there is none.

Beside it, where PyTorch is installed: torchrun, whose workers train a model of the same size, and how long it is until
all of them have done a step again. --torchrun-kills says how often one is killed; 0 leaves it out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path

from service.ray_environment import prepare_local

prepare_local()

from benchmarks import torchrun
from service.cluster import RayCluster
from service.jobs import Job
from service.local_cluster import open_local_cluster
from service.runs import Run, RunFailed, RunStarted
from worker.reduce.segment import Control, Segment
from worker.replica import Replica
from worker.spec import JobSpec, parse_spec

POLL_SECONDS = 0.0005
PATIENCE_SECONDS = 60.0
STEPS_BETWEEN = 20
CALM_SECONDS = 8.0  # between kills: long enough for a new reserve


class Stopwatch:
    """Reads a running job's control page, while its news are taken in, so that it never waits for anybody."""

    def __init__(self, run: Run, control: Control) -> None:
        self.run, self.control = run, control

    async def until(self, condition: Callable[[], bool]) -> float:
        """When a condition came true, on the monotonic clock."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit("the job did not go on")
            await asyncio.sleep(POLL_SECONDS)
        return time.monotonic()

    async def kill(self, seat: int) -> tuple[float, float, float]:
        """Kills the worker in a seat, once all have been at work for a while, and reads off the three times."""
        control, start = self.control, self.control.committed
        await self.until(lambda: control.committed > start + STEPS_BETWEEN)
        epoch, killed = control.epoch, time.monotonic()
        os.kill(control.pulse(seat).process_id, signal.SIGKILL)
        others = [other for other in range(control.num_seats) if other != seat]

        def survivors_compute() -> bool:
            beats = (control.pulse(other) for other in others)
            return control.epoch > epoch + 1 and any(p.stage == "forward" and p.beat > killed for p in beats)

        computing, step = await self.until(survivors_compute), control.committed
        committed = await self.until(lambda: control.committed > step)
        await self.until(lambda: control.pulse(seat).step > step)
        first = control.pulse(seat).step
        complete = await self.until(lambda: control.committed > first)
        return computing - killed, committed - killed, complete - killed

    async def take_in_news(self) -> None:
        """As the service does it."""
        stored = 0
        while True:
            news = await self.run.news(stored)
            stored = news.last_report
            for report in news.reports:
                if isinstance(report, RunFailed):
                    raise SystemExit(f"the job failed: {report.message}")


async def measure(
    cluster: RayCluster, directory: Path, *, workers: int, kills: int, width: int
) -> list[tuple[float, float, float]]:
    """For each kill, the seconds until survivors compute, until the next commit, and until full strength."""
    spec = parse_spec(
        {
            "model": {"mlp": {"hidden": [width, width]}},
            "data": {"synthetic": {"samples": 20_000, "features": 128, "outputs": 10}},
            "training": {"global_batch_size": 256, "shards": 8, "max_steps": 1_000_000_000, "clip_norm": 1.0},
            "workers": {"min": workers, "max": workers},
        }
    )
    run = await cluster.launch(Job("recovery", spec, create_time=0.0), workers, directory)
    try:
        return await measure_run(run, spec, cluster.segment_pattern, workers=workers, kills=kills)
    finally:
        await run.close()


async def measure_run(
    run: Run, spec: JobSpec, segment_pattern: str, *, workers: int, kills: int
) -> list[tuple[float, float, float]]:
    """The same, of a run that has been launched."""
    while not any(isinstance(report, RunStarted) for report in (await run.news(0)).reports):
        pass
    shape = Replica.load(spec, capacity=run.capacity).facts.shape
    control = Segment.attach(Path(*glob(segment_pattern)), shape).control
    watch = Stopwatch(run, control)
    news = asyncio.create_task(watch.take_in_news())
    times = []
    try:
        for _ in range(kills):
            await asyncio.sleep(CALM_SECONDS)
            times.append(await watch.kill(random.randrange(workers)))
    finally:
        news.cancel()
    return times


async def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--width", type=int, default=256, help="of the two hidden layers")
    parser.add_argument("--no-spare", action="store_true", help="leave no slot free for a worker in reserve")
    parser.add_argument("--torchrun-kills", type=int, default=5, help="of torchrun's workers; 0 does without it")
    options = parser.parse_args()
    if options.workers < 2:
        parser.error("--workers: expected at least 2: without survivors nobody goes on")
    cluster = await open_local_cluster(worker_slots=options.workers + (not options.no_spare))
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # after Ray has set a handler of its own
    try:
        with tempfile.TemporaryDirectory(prefix="backprop-recovery-") as directory:
            sizes = {"workers": options.workers, "kills": options.kills, "width": options.width}
            times = await measure(cluster, Path(directory), **sizes)
    finally:
        await cluster.close()
    names = ("survivors compute again", "next step committed", "full strength")
    print(f"{options.workers} workers, {len(times)} kills; seconds from the kill: median (worst)")
    for name, seconds in zip(names, zip(*times, strict=True), strict=True):
        print_line(name, seconds)
    if options.torchrun_kills:
        print_torchrun(workers=options.workers, kills=options.torchrun_kills, width=options.width)


def print_torchrun(*, workers: int, kills: int, width: int) -> None:
    """Prints how long torchrun takes, or why that is not known."""
    if not torchrun.is_installed():
        print("torchrun was not measured: PyTorch is not installed here")
        return
    try:
        seconds = torchrun.restarts(workers=workers, kills=kills, width=width)
    except torchrun.TorchrunError as error:
        print(f"torchrun was not measured: {error}")
        return
    print(
        f"torchrun, {workers} gloo workers, {len(seconds)} kills; it starts all workers anew, without a checkpoint here"
    )
    print_line("all train again", seconds)


def print_line(name: str, seconds: Sequence[float]) -> None:
    """Prints a median, and the worst beside it."""
    print(f"  {name:<24} {statistics.median(seconds):.3f} ({max(seconds):.3f})", flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
