"""A run: one attempt at a job on a cluster, seen from the service. The seam between the two.

The service launches runs through a `Cluster`, asks each for its news, and knows nothing of Ray, workers'
addresses or arrays. `service.cluster` has the real cluster, `service.fake_cluster` one without processes.

Where a cluster `keeps_runs`, a run does not need the service: it goes on without one, and the next one finds it among
the `survivors`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service.jobs import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointSaved,
    CompilationFinished,
    CompilationStarted,
    Evaluation,
    ExactnessLost,
    Job,
    Progress,
    StateReason,
    WorkerLost,
    WorkersChanged,
    WorkerSlow,
)


@dataclass(frozen=True)
class RunStarted:
    """The workers train (again), from `step` committed steps on."""

    workers: int
    num_parameters: int
    step: int


@dataclass(frozen=True)
class RunSucceeded:
    """All steps are done and the model lies at `model_path`."""

    weights_digest: str
    model_path: str


@dataclass(frozen=True)
class RunFailed:
    """The run ended by an error that another attempt would meet again."""

    reason: StateReason
    message: str


@dataclass(frozen=True)
class RunStopped:
    """The run ended because it was cancelled."""


@dataclass(frozen=True)
class RunPaused:
    """The run ended because it was asked to, after `step` committed steps; it goes on from its newest checkpoint."""

    step: int


Report = (
    RunStarted
    | WorkerLost
    | WorkersChanged
    | WorkerSlow
    | CompilationStarted
    | CompilationFinished
    | Evaluation
    | CheckpointSaved
    | CheckpointFailed
    | CheckpointCorrupt
    | ExactnessLost
    | RunSucceeded
    | RunFailed
    | RunStopped
    | RunPaused
)
ENDS = (RunSucceeded, RunFailed, RunStopped, RunPaused)


@dataclass(frozen=True)
class StepSample:
    """What is known of one committed step; `seconds` is its duration, `loss` the mean over its global batch."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    is_clipped: bool
    is_non_finite: bool


@dataclass(frozen=True)
class News:
    """What a run has to tell, in the order of what happened.

    Reports count from 1 within a run. They are told until whoever asks says that they are stored; steps are told once.
    """

    reports: tuple[Report, ...] = ()
    progress: Progress = Progress()
    steps: tuple[StepSample, ...] = ()
    phase_seconds: Mapping[str, float] = field(default_factory=dict)  # summed over workers since the run started
    steps_redone: int = 0  # since the run started
    slots_held: int = 0  # worker processes that are there, and those that are being started or ended
    last_report: int = 0  # the number of the last of the reports, or where there is none of the last that is stored
    reports_dropped: int = 0  # since the run started, for want of room while nobody asked


class RunLostError(Exception):
    """The run's coordinator died; what it committed to disk is still there."""


class Run(Protocol):
    """One attempt at a job."""

    @property
    def capacity(self) -> int:
        """The most workers that it can be scaled to."""
        ...

    async def news(self, after: int) -> News:
        """What happened after report number `after`; all up to it are stored, and are never told again.

        Returns at once or within a quarter of a second. Raises RunLostError.
        """
        ...

    async def scale(self, workers: int) -> None:
        """Sets the number of workers wanted, from 1 to `capacity`; takes effect at step boundaries."""
        ...

    async def pause(self) -> None:
        """Asks the run to stop at a step boundary and to save what it has; a RunPaused report follows."""
        ...

    async def cancel(self) -> None:
        """Asks the run to stop; a RunStopped report follows."""
        ...

    async def close(self) -> None:
        """Ends everything that the run started; safe to call at any time, and twice."""
        ...


@dataclass(frozen=True)
class Survivor:
    """A run that has outlived its service: so many workers are wanted of it, and so many slots it holds."""

    run: Run
    workers: int
    slots_held: int


class Cluster(Protocol):
    """Where runs run."""

    @property
    def keeps_runs(self) -> bool:
        """Whether runs go on when the service is gone."""
        ...

    @property
    def num_slots(self) -> int:
        """Worker processes that can run at once, over all jobs; one job may have all of them."""
        ...

    async def launch(self, job: Job, workers: int, directory: Path) -> Run:
        """Starts `job` with `workers` workers; it resumes from the newest good checkpoint in `directory`, if any."""
        ...

    async def survivors(self, jobs: Collection[Job]) -> Mapping[str, Survivor]:
        """The runs of the service's last life that are there, by job; of the jobs' present attempts alone.

        Whatever else of that life still runs is ended. To be called once, before anything is launched.
        """
        ...

    async def close(self) -> None:
        """Ends the cluster, if it is ours, and leaves nothing behind but runs that it keeps."""
        ...
