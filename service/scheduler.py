"""Which waiting jobs start now, and why the others do not: a pure decision.

Recovering jobs come first, then queued ones in the order in which they were acknowledged; nobody overtakes. A job
starts when its `workers.min` are free, and gets what is free up to its `workers.max`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.jobs import Job, JobState, StateReason


@dataclass(frozen=True)
class ClusterView:
    """What the cluster has: workers in all, those nobody uses, and the most that one job can have."""

    num_slots: int
    free_slots: int
    largest_node_slots: int


@dataclass(frozen=True)
class Waiting:
    """A queued or recovering job that nothing runs of; it is not tried before `not_before`."""

    job: Job
    not_before: float = 0.0


@dataclass(frozen=True)
class Launch:
    """Start this job with so many workers."""

    job_id: str
    workers: int


@dataclass(frozen=True)
class Wait:
    """Why a job waits, as a word and as a sentence."""

    reason: StateReason
    message: str


@dataclass(frozen=True)
class Plan:
    """What to start now, why every other job waits, and when to plan again although nothing has changed."""

    launches: tuple[Launch, ...] = ()
    waits: Mapping[str, Wait] = field(default_factory=dict)
    next_time: float | None = None


def plan(now: float, jobs: Sequence[Waiting], cluster: ClusterView) -> Plan:
    """Decides for `jobs`, given oldest first."""
    launches: list[Launch] = []
    waits: dict[str, Wait] = {}
    later = [waiting.not_before for waiting in jobs if waiting.not_before > now]
    free, ahead = cluster.free_slots, ""
    for waiting in sorted(jobs, key=lambda waiting: waiting.job.state is not JobState.RECOVERING):  # stable
        job_id, workers = waiting.job.job_id, waiting.job.spec.workers
        if workers.min > cluster.largest_node_slots:  # it may be right for tomorrow's cluster: it blocks nobody today
            waits[job_id] = Wait(
                StateReason.WAITING_FOR_WORKERS,
                f"waits for {_workers(workers.min)} on one node: the largest node has {cluster.largest_node_slots}",
            )
        elif ahead:
            waits[job_id] = Wait(StateReason.WAITING_FOR_EARLIER_JOBS, f"waits behind job {ahead}")
        elif waiting.not_before > now:  # nobody takes its workers in the meantime
            free -= min(free, workers.min)
            waits[job_id] = Wait(StateReason.WAITING_FOR_WORKERS, "waits a moment before it is started again")
        elif workers.min > free:
            ahead = job_id
            waits[job_id] = Wait(
                StateReason.WAITING_FOR_WORKERS,
                f"waits for {_workers(workers.min)}: {free} of {cluster.num_slots} free",
            )
        else:
            given = min(free, workers.max, cluster.largest_node_slots)
            free -= given
            launches.append(Launch(job_id, given))
    return Plan(tuple(launches), waits, min(later, default=None))


def _workers(number: int) -> str:
    return f"{number} worker" if number == 1 else f"{number} workers"
