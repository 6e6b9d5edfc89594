"""Which jobs start now, which grow, shrink or yield, and why the others wait: a pure decision.

Waiting jobs are taken by priority, among equals the recovering ones first, then in the order in which they were
acknowledged; nobody overtakes. A job starts when its fewest workers are free, and gets what is free up to its most.
For a job that does not fit, those of lower priority shrink to their fewest; where that is not enough, as few of them as
possible yield, the lowest and youngest first. They are queued again, and keep their place in the order.
What nobody waits for goes to those who run and can use more, by priority; a job may take for that what others of lower
priority have above their fewest. Among equals, nobody takes from anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.jobs import Job, JobState, StateReason


@dataclass(frozen=True)
class ClusterView:
    """What the cluster has: workers in all, and those nobody uses."""

    num_slots: int
    free_slots: int


@dataclass(frozen=True)
class Waiting:
    """A queued or recovering job that nothing runs of; it is not tried before `not_before`."""

    job: Job
    not_before: float = 0.0


@dataclass(frozen=True)
class Running:
    """A launched job: it is to have `target` workers, and holds `slots` of the cluster until the others are gone.

    One that `is_leaving` is about to give back all of them.
    """

    job: Job
    target: int
    slots: int
    is_leaving: bool = False


@dataclass(frozen=True)
class Launch:
    """Start this job with so many workers."""

    job_id: str
    workers: int


@dataclass(frozen=True)
class Scale:
    """From now on this running job is to have so many workers."""

    job_id: str
    workers: int
    reason: str


@dataclass(frozen=True)
class Preempt:
    """Pause this running job; it is queued again."""

    job_id: str
    reason: str


@dataclass(frozen=True)
class Wait:
    """Why a job waits, as a word and as a sentence."""

    reason: StateReason
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do now, why every job that waits does, and when to plan again although nothing has changed."""

    launches: tuple[Launch, ...] = ()
    scales: tuple[Scale, ...] = ()
    preemptions: tuple[Preempt, ...] = ()
    waits: Mapping[str, Wait] = field(default_factory=dict)
    next_time: float | None = None


def plan(now: float, jobs: Sequence[Waiting], cluster: ClusterView, running: Sequence[Running] = ()) -> Plan:
    """Decides; `jobs` wait, and both they and those that are `running` are given oldest first."""
    launches: list[Launch] = []
    waits: dict[str, Wait] = {}
    later = [waiting.not_before for waiting in jobs if waiting.not_before > now]
    room, ahead = _Room(cluster, running), ""
    for waiting in sorted(jobs, key=_rank):  # stable
        job, job_id, fewest = waiting.job, waiting.job.job_id, waiting.job.min_workers
        if fewest > cluster.num_slots:  # it may be right for tomorrow's cluster: it blocks nobody today
            waits[job_id] = Wait(
                StateReason.WAITING_FOR_WORKERS,
                f"waits for {_workers(fewest)}: the cluster has {cluster.num_slots}",
            )
        elif ahead:
            waits[job_id] = Wait(StateReason.WAITING_FOR_EARLIER_JOBS, f"waits behind job {ahead}")
        elif waiting.not_before > now:  # nobody takes its workers in the meantime
            room.free -= min(room.free, fewest)
            waits[job_id] = Wait(StateReason.WAITING_FOR_WORKERS, "waits a moment before it is started again")
        elif fewest > room.free:
            ahead = job_id
            room.make(job, fewest)
            coming = f", {room.coming} about to be" if room.coming else ""
            message = f"waits for {_workers(fewest)}: {room.free} of {cluster.num_slots} free{coming}"
            waits[job_id] = Wait(StateReason.WAITING_FOR_WORKERS, message)
        else:
            launches.append(Launch(job_id, room.take(job.max_workers)))
    if not ahead:
        room.share_out()
    return Plan(tuple(launches), room.scales(), tuple(room.preempted.values()), waits, min(later, default=None))


def _rank(waiting: Waiting) -> tuple[int, bool]:
    return -waiting.job.spec.priority, waiting.job.state is not JobState.RECOVERING


class _Room:
    """The cluster's slots while a plan is made: what is free, what is coming, who could do with less."""

    def __init__(self, cluster: ClusterView, running: Sequence[Running]) -> None:
        self._num_slots = cluster.num_slots
        self._running = [one for one in running if not one.is_leaving]  # oldest first
        self._targets = {one.job.job_id: one.target for one in self._running}
        self._reasons: dict[str, str] = {}
        self.preempted: dict[str, Preempt] = {}
        self.free = cluster.free_slots
        self.coming = sum(one.slots if one.is_leaving else one.slots - one.target for one in running)
        for one in self._running:
            if (too_many := one.target - one.job.max_workers) > 0:
                self._shrink(one.job, too_many, f"{_workers(one.job.max_workers)} wanted")

    def take(self, most: int) -> int:
        """Takes what is free, up to so many."""
        taken = min(self.free, most)
        self.free -= taken
        return taken

    def make(self, job: Job, needed: int) -> None:
        """Lets those of lower priority shrink or yield, so that the job will fit; none of them, if it would not."""
        why = f"job {job.job_id} of priority {job.spec.priority} needs workers"
        missing = needed - self.free - self.coming
        lower = self._below(job)
        yielding: list[Running] = []
        for one in lower:
            if self._gain(lower, yielding) >= missing:
                break
            yielding.append(one)
        if self._gain(lower, yielding) < missing:
            return
        for one in list(reversed(yielding)):
            if self._gain(lower, rest := [other for other in yielding if other is not one]) >= missing:
                yielding = rest
        for one in yielding:
            self.preempted[one.job.job_id] = Preempt(one.job.job_id, why)
            self.coming += self._targets[one.job.job_id]
            missing -= self._targets.pop(one.job.job_id)
        for one in lower:
            if one not in yielding and missing > 0:
                missing -= self._shrink(one.job, min(self._spare(one), missing), why)

    def share_out(self) -> None:
        """Gives what is free to those who can use it, the highest priority first."""
        for one in sorted(self._running, key=lambda one: -one.job.spec.priority):  # stable
            job_id = one.job.job_id
            wished = min(one.job.max_workers, self._num_slots) - self._targets[job_id]
            if wished <= 0:
                continue
            if taken := self.take(wished):
                self._targets[job_id] += taken
                self._reasons[job_id] = "the cluster has room"
            on_the_way = min(wished - taken, self.coming)
            self.coming -= on_the_way
            wished -= taken + on_the_way
            for lower in self._below(one.job):
                why = f"job {job_id} of priority {one.job.spec.priority} can use them"
                taken = self._shrink(lower.job, min(self._spare(lower), wished), why)
                self.coming -= taken
                wished -= taken

    def scales(self) -> tuple[Scale, ...]:
        """The running jobs whose number of workers changes."""
        before = {one.job.job_id: one.target for one in self._running}
        changed = [job_id for job_id, workers in self._targets.items() if workers != before[job_id]]
        return tuple(Scale(job_id, self._targets[job_id], self._reasons[job_id]) for job_id in changed)

    def _below(self, job: Job) -> list[Running]:
        """Those of lower priority, the lowest and youngest first."""
        lower = [one for one in reversed(self._running) if one.job.spec.priority < job.spec.priority]
        return sorted(lower, key=lambda one: one.job.spec.priority)  # stable

    def _spare(self, one: Running) -> int:
        return max(self._targets[one.job.job_id] - one.job.min_workers, 0)

    def _gain(self, lower: Sequence[Running], yielding: Sequence[Running]) -> int:
        """Slots that come when some yield and the others shrink."""
        return sum(self._targets[one.job.job_id] if one in yielding else self._spare(one) for one in lower)

    def _shrink(self, job: Job, workers: int, why: str) -> int:
        """Takes so many workers from a running job; how many."""
        if workers > 0:
            self._targets[job.job_id] -= workers
            self._reasons[job.job_id] = why
            self.coming += workers
        return workers


def _workers(number: int) -> str:
    return f"{number} worker" if number == 1 else f"{number} workers"
