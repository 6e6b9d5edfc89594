"""Every Prometheus metric of the service, named once.

A job's series carry the label `job_id`. They keep their last values when the job ends, so that the final loss can be
scraped, and go when the job is deleted or when MAX_FINISHED_JOBS younger ones have ended.
"""

from __future__ import annotations

import errno
import re
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics import MetricWrapperBase

from service.jobs import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointSaved,
    Evaluation,
    Happening,
    Job,
    JobState,
    WorkerLost,
)
from service.runs import News

MAX_FINISHED_JOBS = 100  # about 60 series each: what the scrapes of a long-lived service may grow by

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
STEP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CHECKPOINT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
QUEUE_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

Metric = TypeVar("Metric", bound=MetricWrapperBase)


class Metrics:
    """The service's own registry: nothing of the process or of other libraries is in it."""

    def __init__(self, *, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no annotation there
        self.registry = registry = CollectorRegistry()
        build = Gauge("backprop_build_info", "Version of the service; always 1.", ["version"], registry=registry)
        build.labels(version).set(1)
        self._jobs = Gauge("backprop_jobs", "Number of jobs in a state.", ["state"], registry=registry)
        self._queue_seconds = Histogram(
            "backprop_queue_seconds",
            "Time from a job's acknowledgement to its first start.",
            buckets=QUEUE_BUCKETS,
            registry=registry,
        )
        self.calls = CallMetrics(registry)
        self._series = JobSeries(registry)
        self._finished: deque[str] = deque()
        self.count_jobs({})

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def count_jobs(self, counts: Mapping[JobState, int]) -> None:
        """Sets the number of jobs in each state, as the store has them at the start."""
        for state in JobState:
            self._jobs.labels(state.value).set(counts.get(state, 0))

    def observe_job(self, before: Job | None, job: Job, happenings: Iterable[Happening] = ()) -> None:
        """Takes in that a job changed; `before` is None for a new one."""
        if before is None or before.state is not job.state:
            self._jobs.labels(job.state.value).inc()
            if before is not None:
                self._jobs.labels(before.state.value).dec()
        if before is not None and before.start_time is None and job.start_time is not None:
            self._queue_seconds.observe(max(job.start_time - job.create_time, 0.0))
        self._series.observe_job(job, happenings)
        if before is not None and job.state.is_terminal and not before.state.is_terminal:
            self._finished.append(job.job_id)
            if len(self._finished) > MAX_FINISHED_JOBS:
                self._series.drop(self._finished.popleft())

    def observe_news(self, job: Job, news: News) -> None:
        """Takes in what a run told of its steps."""
        self._series.observe_news(job, news)

    def drop(self, job: Job) -> None:
        """Forgets a deleted job."""
        self._jobs.labels(job.state.value).dec()
        if job.job_id in self._finished:
            self._finished.remove(job.job_id)
        self._series.drop(job.job_id)


class CallMetrics:
    """The calls to the gRPC server, by the names that dashboards know."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._handled = Counter(
            "grpc_server_handled_total",
            "Number of gRPC calls that ended, by code.",
            ["grpc_method", "grpc_code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of gRPC calls; a stream counts until it ends.",
            ["grpc_method"],
            buckets=CALL_BUCKETS,
            registry=registry,
        )

    def observe(self, method: str, *, code: str, seconds: float) -> None:
        """Takes in a call that ended."""
        self._handled.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)


class JobSeries:
    """The series of single jobs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._labels: dict[str, set[tuple[MetricWrapperBase, tuple[str, ...]]]] = {}
        self._phases_seen: dict[str, Mapping[str, float]] = {}
        self._redone_seen: dict[str, int] = {}
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        job = ["job_id"]
        self._step = gauge("backprop_job_step", "Optimizer steps committed.", job)
        self._loss = gauge("backprop_job_loss", "Newest loss on a split of the data.", [*job, "split"])
        self._gradient_norm = gauge(
            "backprop_job_gradient_norm", "Global gradient norm of the newest step, before clipping.", job
        )
        self._learning_rate = gauge("backprop_job_learning_rate", "Learning rate of the newest step.", job)
        self._samples = counter("backprop_job_samples_total", "Number of samples trained on.", job)
        self._workers = gauge("backprop_job_workers", "Number of workers that the job has now.", job)
        self._step_seconds = histogram(
            "backprop_step_seconds", "Duration of an optimizer step.", job, buckets=STEP_BUCKETS
        )
        self._phase_seconds = counter(
            "backprop_step_phase_seconds_total", "Time spent in a phase of steps, over all workers.", [*job, "phase"]
        )
        self._clipped = counter("backprop_clipped_steps_total", "Number of steps with a clipped gradient.", job)
        self._nonfinite = counter(
            "backprop_nonfinite_steps_total", "Number of steps with a NaN or an infinity in the gradient.", job
        )
        self._redone = counter("backprop_steps_redone_total", "Number of steps begun anew after a loss.", job)
        self._workers_lost = counter("backprop_workers_lost_total", "Number of workers lost.", [*job, "reason"])
        self._checkpoint_seconds = histogram(
            "backprop_checkpoint_seconds", "Time to write and verify a checkpoint.", job, buckets=CHECKPOINT_BUCKETS
        )
        self._checkpoint_bytes = gauge("backprop_checkpoint_bytes", "Size of the newest checkpoint.", job)
        self._checkpoint_failures = counter(
            "backprop_checkpoint_failures_total",
            "Number of times that a checkpoint could not be written (disk_full, not_written), that the store did not "
            "answer (unreachable), or that a checkpoint was passed over (corrupt, unreadable).",
            [*job, "reason"],
        )

    def _of(self, metric: Metric, job_id: str, *others: str) -> Metric:
        """A job's own series of a metric, remembered so that it can be dropped."""
        self._labels.setdefault(job_id, set()).add((metric, (job_id, *others)))
        return metric.labels(job_id, *others)

    def drop(self, job_id: str) -> None:
        """Removes every series of a job."""
        self._phases_seen.pop(job_id, None)
        self._redone_seen.pop(job_id, None)
        for metric, labels in self._labels.pop(job_id, ()):
            metric.remove(*labels)

    def observe_job(self, job: Job, happenings: Iterable[Happening]) -> None:
        """Takes in where a job stands and what happened to it."""
        if job.attempt > 0:
            self._of(self._step, job.job_id).set(job.progress.steps_completed)
            self._of(self._workers, job.job_id).set(job.progress.current_workers)
        for happening in happenings:
            match happening:
                case Evaluation():
                    self._of(self._loss, job.job_id, "validation").set(happening.loss)
                case CheckpointSaved():
                    self._of(self._checkpoint_seconds, job.job_id).observe(happening.seconds)
                    self._of(self._checkpoint_bytes, job.job_id).set(happening.size_bytes)
                case CheckpointFailed():
                    self._of(self._checkpoint_failures, job.job_id, failure_of(happening)).inc()
                case CheckpointCorrupt():
                    reason = "unreadable" if happening.reason.startswith("cannot be read") else "corrupt"
                    self._of(self._checkpoint_failures, job.job_id, reason).inc()
                case WorkerLost():
                    self._of(self._workers_lost, job.job_id, cause_of(happening.reason)).inc()

    def observe_news(self, job: Job, news: News) -> None:
        """Takes in the newest steps of a job's run."""
        job_id, batch_size = job.job_id, job.spec.training.global_batch_size
        for sample in news.steps:
            self._of(self._step_seconds, job_id).observe(sample.seconds)
            self._of(self._samples, job_id).inc(batch_size)
            self._of(self._clipped, job_id).inc(sample.is_clipped)
            self._of(self._nonfinite, job_id).inc(sample.is_non_finite)
        if news.steps:
            newest = news.steps[-1]
            self._of(self._loss, job_id, "train").set(newest.loss)
            self._of(self._gradient_norm, job_id).set(newest.gradient_norm)
            self._of(self._learning_rate, job_id).set(newest.learning_rate)
        seen = self._phases_seen.get(job_id, {})
        for phase, seconds in news.phase_seconds.items():
            grown = seconds - seen.get(
                phase, 0.0
            )  # a run's sums only grow: less than before means that a new run began
            self._of(self._phase_seconds, job_id, phase).inc(grown if grown >= 0 else seconds)
        self._phases_seen[job_id] = {**seen, **news.phase_seconds}
        redone = news.steps_redone - self._redone_seen.get(job_id, 0)
        self._of(self._redone, job_id).inc(redone if redone >= 0 else news.steps_redone)
        self._redone_seen[job_id] = news.steps_redone


def failure_of(failed: CheckpointFailed) -> str:
    """Why a checkpoint failed, as a label."""
    if failed.error.startswith("StoreUnreachableError:"):
        return "unreachable"
    return "disk_full" if any(f"[Errno {number}]" in failed.error for number in DISK_FULL) else "not_written"


def cause_of(reason: str) -> str:
    """A lost worker's cause as a label: the words before the colon, for every sentence would be a series of its own."""
    words = re.match(r"[a-z][a-z_ -]{0,30}(?=:|$)", reason)
    return re.sub("[ -]", "_", words[0].strip()) if words else "other"
