"""A cluster without processes: its runs follow a script. It ships, so that the service can be tried without Ray.

A run keeps its checkpoint in the job's directory like a real one, so that a job resumes where a service was killed;
its digest depends on the spec alone, as the promise says.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from service.jobs import CheckpointSaved, Evaluation, Job, Progress, StateReason, WorkerLost, WorkersChanged
from service.outbox import Outbox
from service.records import spec_digest
from service.runs import (
    News,
    Report,
    RunFailed,
    RunLostError,
    RunPaused,
    RunStarted,
    RunStopped,
    RunSucceeded,
    StepSample,
    Survivor,
)
from worker.spec import CheckpointSpec, EvaluationSpec, JobSpec, WorkersSpec

CHECKPOINT = "fake-checkpoint"
MODEL, AVERAGE = "weights.safetensors", "ema.safetensors"
NUM_PARAMETERS = 42


@dataclass(frozen=True)
class Script:
    """What a fake run does. The numbers are committed steps; each thing happens once, in the attempt it is given to."""

    steps_per_news: int = 10
    hold_at: int | None = None  # trains no further until FakeCluster.gate is set
    lose_worker_at: int | None = None
    lose_coordinator_at: int | None = None
    fail_at: int | None = None
    failure: RunFailed = RunFailed(StateReason.NON_FINITE, "step 7, shard 1: the gradient is not finite")
    break_at: int | None = None  # an error that nobody foresaw
    hang_at: int | None = None  # answers nothing any more
    lose_launch: bool = False
    hang_launch: bool = False
    ignore_cancel: bool = False
    ignore_pause: bool = False
    diverge_at: int | None = None  # from this step on its weights are others


def digest_of(spec: JobSpec) -> str:
    """The digest of the weights that a fake run makes: the same for any number of workers, as the promise says."""
    beside = {"name": "job", "workers": WorkersSpec(), "priority": 0}
    beside |= {"checkpoint": CheckpointSpec(), "evaluation": EvaluationSpec()}
    return hashlib.sha256(spec_digest(spec.model_copy(update=beside)).encode()).hexdigest()


def is_due(step: int, every_steps: int) -> bool:
    """Whether something that is done every so many steps is done after this one; 0 is never."""
    return every_steps > 0 and step % every_steps == 0


class FakeRun:
    """One scripted attempt."""

    def __init__(self, job: Job, workers: int, *, directory: Path, script: Script, gate: asyncio.Event) -> None:
        self._job, self._workers, self._directory = job, workers, directory
        self._script, self._gate = script, gate
        self._step = 0
        self._is_started = self._is_cancelled = self._is_pausing = self._has_lost_worker = False
        self._wanted, self._capacity = workers, max(workers, job.max_workers)
        self._outbox = Outbox()
        self.name = job.job_id, job.attempt
        self.is_closed = False

    @property
    def capacity(self) -> int:
        """See runs.Run."""
        return self._capacity

    @property
    def num_workers(self) -> int:
        """The workers that it has now."""
        return self._workers

    @property
    def num_wanted(self) -> int:
        """The workers that it was last told to have."""
        return self._wanted

    async def news(self, after: int) -> News:
        """See runs.Run."""
        news = await self.go_on()
        reports, last = self._outbox.take(after)
        return replace(news, reports=reports, last_report=last, slots_held=self._workers)

    async def go_on(self) -> News:
        """Trains some steps, asked or not; what nobody takes, of steps and times, is lost."""
        assert not self.is_closed, "a closed run does nothing any more"
        news = await self._news()
        for report in news.reports:
            self._outbox.add(report)
        return news

    async def _news(self) -> News:
        script = self._script
        if not self._is_started:
            return self._start()
        if self._is_cancelled and not script.ignore_cancel:
            return News((RunStopped(),), self._progress())
        if self._is_pausing and not script.ignore_pause:
            return News((self._save(self._step), RunPaused(self._step)), self._progress())
        first, self._step = self._step, min(self._step + script.steps_per_news, self._total)
        for limit in (
            script.lose_worker_at,
            script.lose_coordinator_at,
            script.fail_at,
            script.break_at,
            script.hang_at,
        ):
            if limit is not None and first < limit:
                self._step = min(self._step, limit)
        if script.hold_at is not None and not self._gate.is_set():
            self._step = min(self._step, max(script.hold_at, first))
        if self._step == script.break_at:
            raise ZeroDivisionError("a bug in the fake run")
        if self._step == script.lose_coordinator_at:
            raise RunLostError("the coordinator died")
        if self._step == script.hang_at:
            await asyncio.Event().wait()
        reports = self._reports(first)
        return replace(self._steps_since(first), reports=tuple(reports), progress=self._progress())

    @property
    def _total(self) -> int:
        return self._job.spec.training.max_steps

    def _start(self) -> News:
        self._is_started = True
        checkpoint, copies = self._directory / CHECKPOINT, self._directory.glob("checkpoints/step-*")
        first = max((int(copy.name.removeprefix("step-")) for copy in copies), default=0)  # what it is to begin with
        self._step = int(checkpoint.read_text()) if checkpoint.exists() else first
        return News((RunStarted(self._workers, NUM_PARAMETERS, self._step),), self._progress())

    def _reports(self, first: int) -> list[Report]:
        spec, reports, seen = self._job.spec, list[Report](), range(first + 1, self._step + 1)
        if self._step == self._script.fail_at:
            return [self._script.failure]
        if self._step == self._script.lose_worker_at and not self._has_lost_worker:
            self._has_lost_worker = True
            reports.append(WorkerLost(rank=1, step=self._step, reason="killed: signal 9"))
            reports.append(RunStarted(self._workers, NUM_PARAMETERS, self._step))
        if self._workers != self._wanted:
            self._workers = self._wanted
            reports.append(WorkersChanged(self._workers, first, f"scaled to {self._workers}"))
        done = self._total in seen
        for step in seen:
            if (done and step == self._total) or is_due(step, spec.evaluation.every_steps):
                reports.append(Evaluation(step, loss=1 / step, accuracy=1 - 1 / (step + 1)))
            if is_due(step, spec.checkpoint.every_steps):
                reports.append(self._save(step))
        if done:
            models = [self._directory / name for name in (MODEL, *([AVERAGE] if spec.optimizer.ema else []))]
            for model in models:
                model.write_bytes(f"fake model of {digest_of(spec)} in {model.name}".encode())
            reports.append(RunSucceeded(digest_of(spec), str(models[-1])))
        return reports

    def _save(self, step: int) -> CheckpointSaved:
        path = self._directory / CHECKPOINT
        path.write_text(str(step))
        return CheckpointSaved(step, str(path), self._digest_at(step), size_bytes=1000, seconds=0.01)

    def _digest_at(self, step: int) -> str:
        digest, diverge_at = digest_of(self._job.spec), self._script.diverge_at
        return digest if diverge_at is None or step < diverge_at else digest[::-1]

    def _steps_since(self, first: int) -> News:
        steps = [
            StepSample(step, 1 / step, 0.5, 0.1, 0.001, step % 2 == 0, False)
            for step in range(first + 1, self._step + 1)
        ]
        return News(steps=tuple(steps), phase_seconds={"forward": self._step * 1e-3, "backward": self._step * 2e-3})

    def _progress(self) -> Progress:
        loss = 1 / self._step if self._step else None
        return Progress(self._step, loss, 1000.0, (self._total - self._step) / 100, self._workers)

    def listen(self) -> None:
        """From now on it does as it is told."""
        self._script = replace(self._script, ignore_pause=False, ignore_cancel=False)

    async def scale(self, workers: int) -> None:
        """See runs.Run."""
        assert 1 <= workers <= self._capacity, "scaled beyond what the job's segment has room for"
        self._wanted = workers

    async def pause(self) -> None:
        """See runs.Run."""
        self._is_pausing = True

    async def cancel(self) -> None:
        """See runs.Run."""
        self._is_cancelled = True

    async def close(self) -> None:
        """See runs.Run."""
        self.is_closed = True


class FakeCluster:
    """Slots without processes. `script` is what every run does, or says it for each job.

    Where it `keeps_runs`, it may be given to one service after the other.
    """

    def __init__(
        self,
        *,
        num_slots: int = 2,
        script: Script | Callable[[Job], Script] = Script(),
        keeps_runs: bool = False,
    ) -> None:
        self.num_slots = num_slots
        self.keeps_runs = keeps_runs
        self.gate = asyncio.Event()
        self.runs: list[FakeRun] = []
        self.is_closed = False
        self._script = script

    async def launch(self, job: Job, workers: int, directory: Path) -> FakeRun:
        """See runs.Cluster."""
        in_use = sum(run.num_workers for run in self.runs if not run.is_closed)
        assert in_use + workers <= self.num_slots, "more workers launched than there are slots"
        script = self._script if isinstance(self._script, Script) else self._script(job)
        if script.lose_launch:
            raise RunLostError("the workers did not start")
        if script.hang_launch:
            await asyncio.Event().wait()
        run = FakeRun(job, workers, directory=directory, script=script, gate=self.gate)
        self.runs.append(run)
        return run

    async def survivors(self, jobs: Collection[Job]) -> Mapping[str, Survivor]:
        """See runs.Cluster."""
        wanted = {(job.job_id, job.attempt) for job in jobs}
        living = [run for run in self.runs if not run.is_closed] if self.keeps_runs else []
        for run in living:
            if run.name not in wanted:
                await run.close()
        return {run.name[0]: Survivor(run, run.num_wanted, run.num_workers) for run in living if run.name in wanted}

    async def close(self) -> None:
        """See runs.Cluster."""
        assert self.keeps_runs or all(run.is_closed for run in self.runs), (
            "the cluster is closed while something runs on it"
        )
        self.is_closed = True
