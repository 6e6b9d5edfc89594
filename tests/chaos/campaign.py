"""A campaign: jobs are submitted to a service, processes are killed, the service is started again, jobs end."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from service.client import Client, ClientError
from service.pb.backprop.v1 import job_pb2
from tests.chaos.jobs import kinds
from tests.undisturbed import digest_of
from worker.spec import JobSpec

SHARES = {"coordinator": 0.16, "service": 0.04}  # of the kills; all others are workers'. A service takes long to start
ACTORS = {"worker": "ray::_Worker", "coordinator": "ray::_Coordinator"}  # Ray names a process after its actor
START_SECONDS = 90.0
MEAN_SECONDS = 0.5  # between kills
KILLS_IN_A_ROW = 4  # then every running job gets somewhere first: one that never does is given up, as it should be
END_SECONDS = 60.0  # by when a killed service's processes and files must be gone
MIN_JOBS = 2  # that have not ended, while there are kills to come; more are submitted
WORKER_SLOTS = 4  # so that two jobs of two workers run at once

ENDED = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)

Result = TypeVar("Result")


class Service:
    """`backprop serve` in a process of its own, on a port that the system picks."""

    def __init__(self, directory: Path, *options: str) -> None:
        serve = ["serve", "--listen", "127.0.0.1:0", "--http", "off", *options]
        command = [sys.executable, "-c", "from service.cli import main; main()"]
        with (directory / "serve.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *serve, "--data-dir", str(directory / "data")],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " serves gRPC on " in line, f"the service did not start: {line!r}; see {directory / 'serve.log'}"
        self.client = Client(line.split(" serves gRPC on ")[1].split(",")[0])

    def family(self) -> list[psutil.Process]:
        """All processes that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def actors(self, kind: str) -> list[psutil.Process]:
        """The processes of its workers, or of its coordinators."""
        found = []
        for process in self.family():
            with suppress(psutil.Error):  # it has just ended
                found += [process] if ACTORS[kind] in " ".join(process.cmdline()) else []
        return found

    def kill(self) -> None:
        """As the kernel does it: no goodbye. Returns when nothing of it is left."""
        family = self.family()
        self.process.kill()
        self._ended()
        _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
        assert not alive, f"left behind by a killed service: {alive}"

    def stop(self) -> None:
        """As a signal does it."""
        family = self.family()
        self.process.send_signal(signal.SIGTERM)
        self._ended()
        assert self.process.returncode == 0, f"the service ended with {self.process.returncode}"
        _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
        assert not alive, f"left behind by a stopped service: {alive}"

    def _ended(self) -> None:
        self.client.close()
        self.process.wait(END_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass
class Tally:
    """What a campaign has done and found."""

    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)  # of jobs, by state
    attempts: int = 0
    steps: int = 0
    seconds: float = 0.0
    different: list[str] = field(default_factory=list)  # jobs whose weights are not those of the undisturbed run
    failures: list[str] = field(default_factory=list)  # jobs that did not succeed, and why

    def __str__(self) -> str:
        kills = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.ends.items()))
        lines = [
            f"{self.kills.total()} kills ({kills}) in {self.seconds:.0f} s",
            f"{self.ends.total()} jobs, {self.steps} steps, {self.attempts} attempts: {ends}",
            f"{len(self.failures)} jobs lost, {len(self.different)} digests different",
            *self.failures,
            *self.different,
        ]
        return "\n".join(lines)


class Campaign:
    """At least so many jobs, and so many kills: of what kind follows from the seed, which process from the day."""

    def __init__(self, directory: Path, *, jobs: int, kills: int, seed: int, say: Callable[[str], None]) -> None:
        self._directory, self._num_jobs, self._num_kills, self._say = directory, jobs, kills, say
        self._rng = random.Random(seed)
        text = directory / "input.txt"
        text.write_text("".join(self._rng.choices("abcdefgh \n", k=4000)))
        self._kinds = kinds(text)
        self._digests: list[str] = []  # by kind
        self._expected: dict[str, str] = {}  # digest by job
        self._furthest: dict[str, int] = {}  # steps by job
        self._tally = Tally()

    def run(self) -> Tally:
        """Everything, from the undisturbed runs to the end of the last job; leaves no process."""
        self._digests = [digest_of(spec) for spec in self._kinds]
        self._say(f"{len(self._digests)} undisturbed digests are there")
        started = time.monotonic()
        with self._serving():
            for kind in self._schedule():
                self._submit_enough()
                time.sleep(self._rng.expovariate(1 / MEAN_SECONDS))
                self._kill(kind)
                if self._tally.kills.total() % KILLS_IN_A_ROW == 0:
                    self._let_them_get_on()
            self._say("no more kills; the rest ends undisturbed")
            self._wait_for_the_end()
        self._tally.seconds = time.monotonic() - started
        return self._tally

    @contextmanager
    def _serving(self) -> Iterator[None]:
        self._service = self._serve()
        try:
            yield
            self._service.stop()
        finally:
            if self._service.process.poll() is None:
                self._service.kill()

    def _serve(self) -> Service:
        return Service(self._directory, "--worker-slots", str(WORKER_SLOTS))

    def _submit_enough(self) -> None:
        """Sees to it that there are jobs to kill something of."""
        while len(self._expected) < self._num_jobs or self._unfinished() < MIN_JOBS:
            number = len(self._expected)
            kind = number % len(self._kinds)
            self._expected[self._submit(self._kinds[kind], f"chaos-{number}")] = self._digests[kind]

    def _submit(self, spec: JobSpec, request_id: str) -> str:
        job = self._answer(lambda: self._service.client.create_job(spec, request_id=request_id))
        return job.job_id

    def _answer(self, call: Callable[[], Result]) -> Result:
        """What the service says, once it can be reached."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return call()
            except ClientError as error:
                if not error.is_unreachable or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _jobs(self) -> list[job_pb2.Job]:
        jobs = self._answer(lambda: list(self._service.client.list_jobs()))
        for job in jobs:
            self._furthest[job.job_id] = max(job.steps_completed, self._furthest.get(job.job_id, 0))
        return jobs

    def _unfinished(self) -> int:
        return sum(not _has_ended(job) for job in self._jobs())

    def _schedule(self) -> list[str]:
        """What kind of process is killed each time; every kind has its turn."""
        kinds = [kind for kind, share in SHARES.items() for _ in range(max(1, round(share * self._num_kills)))]
        kinds += ["worker"] * (self._num_kills - len(kinds))
        self._rng.shuffle(kinds)
        return kinds

    def _kill(self, kind: str) -> None:
        if kind == "service":
            self._service.kill()
            self._service = self._serve()
        else:
            self._kill_one(kind)
        self._tally.kills[kind] += 1
        if self._tally.kills.total() % 50 == 0:
            self._say(f"{self._tally.kills.total()} kills, {self._unfinished()} jobs to go")

    def _let_them_get_on(self) -> None:
        """Waits until each job that runs has come further than it ever was, or has ended."""
        deadline, furthest = time.monotonic() + START_SECONDS, dict(self._furthest)
        while any(
            job.state not in (job_pb2.JOB_STATE_QUEUED, *ENDED) and job.steps_completed <= furthest.get(job.job_id, 0)
            for job in self._jobs()
        ):
            assert time.monotonic() < deadline, f"no step in {START_SECONDS:.0f} s: {self._jobs()}"
            time.sleep(0.1)

    def _kill_one(self, kind: str) -> None:
        """One of the worker or coordinator processes, as soon as there is one."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(psutil.NoSuchProcess, IndexError):  # it has just ended by itself; there is none
                self._rng.choice(self._service.actors(kind)).kill()
                return
            self._submit_enough()  # on a fast machine all of them may have ended meanwhile
            time.sleep(0.05)
        raise AssertionError(f"no {kind} has come in {START_SECONDS:.0f} s")

    def _wait_for_the_end(self) -> None:
        deadline, last = time.monotonic() + START_SECONDS, None
        while True:
            jobs = self._jobs()
            progress = [(job.job_id, job.steps_completed, job.state) for job in jobs]
            if progress != last:  # as long as something moves, it may take its time
                deadline, last = time.monotonic() + START_SECONDS, progress
            if all(_has_ended(job) for job in jobs) or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        self._judge({job.job_id: job for job in jobs})

    def _judge(self, jobs: dict[str, job_pb2.Job]) -> None:
        tally = self._tally
        for job_id, expected in self._expected.items():
            job = jobs.get(job_id)
            state = "LOST" if job is None else job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")
            tally.ends[state] += 1
            if job is None or state != "SUCCEEDED":
                why = "the service does not know it" if job is None else job.error or job.state_message
                tally.failures.append(f"{job_id}: {state}: {why}")
                continue
            tally.attempts += job.attempt
            tally.steps += job.steps_completed
            if job.weights_digest != expected:
                tally.different.append(f"{job_id}: got {job.weights_digest}, expected {expected}")


def _has_ended(job: job_pb2.Job) -> bool:
    return job.state in ENDED
