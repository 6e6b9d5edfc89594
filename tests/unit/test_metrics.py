"""Prometheus series: their names, what they count, and when they go."""

from __future__ import annotations

import errno
import re
from dataclasses import replace

import pytest

from service.checkpoint_writer import one_line
from service.jobs import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointSaved,
    Evaluation,
    Happening,
    Job,
    JobState,
    Progress,
    StateChanged,
    Trigger,
    WorkerLost,
    advance,
)
from service.metrics import MAX_FINISHED_JOBS, Metrics, cause_of
from service.runs import News, StepSample
from worker.checkpoint_store import StoreUnreachableError
from worker.spec import parse_spec

SPEC = parse_spec({"model": {"mlp": {}}, "data": {"digits": {}}, "training": {"global_batch_size": 8}})
# What dashboards and alerts rely on: renaming one is a breaking change.
NAMES = [
    "backprop_build_info",
    "backprop_checkpoint_bytes",
    "backprop_checkpoint_failures_total",
    "backprop_checkpoint_seconds",
    "backprop_clipped_steps_total",
    "backprop_job_gradient_norm",
    "backprop_job_learning_rate",
    "backprop_job_loss",
    "backprop_job_samples_total",
    "backprop_job_step",
    "backprop_job_workers",
    "backprop_jobs",
    "backprop_nonfinite_steps_total",
    "backprop_queue_seconds",
    "backprop_step_phase_seconds_total",
    "backprop_step_seconds",
    "backprop_workers_lost_total",
    "backprop_steps_redone_total",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds",
]


def job(job_id: str = "test-abcdef") -> Job:
    return Job(job_id, SPEC, create_time=100.0)


def running(job_id: str = "test-abcdef") -> Job:
    started = advance(job(job_id), Trigger.LAUNCH, now=102.0)
    return replace(advance(started, Trigger.RUN, now=103.0), progress=Progress(steps_completed=7, current_workers=2))


def sample(step: int, *, is_clipped: bool = False, is_non_finite: bool = False) -> StepSample:
    return StepSample(step, 1 / step, 0.5, 0.1, 0.002, is_clipped, is_non_finite)


def values(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.exposition().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


def test_the_names_are_the_ones_that_dashboards_know(metrics: Metrics) -> None:
    described = re.findall(r"^# TYPE (\S+) \w+$", metrics.exposition().decode(), flags=re.MULTILINE)
    assert sorted(described) == sorted(NAMES)


def test_every_series_of_a_job_has_its_id_and_none_the_label_job(metrics: Metrics) -> None:
    metrics.observe_job(job(), running(), [Evaluation(5, 0.5), CheckpointSaved(5, "/c", "ab", 10, 0.1)])
    metrics.observe_news(running(), News(steps=(sample(1),), phase_seconds={"forward": 1.0}))
    series = [name for name in values(metrics) if name.startswith("backprop_job_") or "step" in name]
    assert series
    assert all('job_id="test-abcdef"' in name for name in series)
    assert not re.search(r"[{,]job=", metrics.exposition().decode())


def test_steps_are_counted_with_their_samples(metrics: Metrics) -> None:
    news = News(steps=(sample(1, is_clipped=True), sample(2), sample(4, is_clipped=True, is_non_finite=True)))
    metrics.observe_news(running(), news)
    seen = values(metrics)
    label = '{job_id="test-abcdef"}'
    assert seen[f"backprop_job_samples_total{label}"] == 24
    assert seen[f"backprop_step_seconds_count{label}"] == 3
    assert seen[f"backprop_clipped_steps_total{label}"] == 2
    assert seen[f"backprop_nonfinite_steps_total{label}"] == 1
    assert seen['backprop_job_loss{job_id="test-abcdef",split="train"}'] == 0.25
    assert seen[f"backprop_job_gradient_norm{label}"] == 0.5
    assert seen[f"backprop_job_learning_rate{label}"] == 0.1


def test_phases_add_up_over_answers_and_over_runs(metrics: Metrics) -> None:
    for seconds in (1.0, 2.5, 0.5):  # the third is less than before: a new run has begun
        metrics.observe_news(running(), News(phase_seconds={"forward": seconds}))
    assert values(metrics)['backprop_step_phase_seconds_total{job_id="test-abcdef",phase="forward"}'] == 3.0


def test_steps_redone_add_up_over_answers_and_over_runs(metrics: Metrics) -> None:
    for redone in (0, 2, 3, 1):  # the last is less than before: a new run has begun
        metrics.observe_news(running(), News(steps_redone=redone))
    assert values(metrics)['backprop_steps_redone_total{job_id="test-abcdef"}'] == 4


def test_what_happens_to_a_job_is_counted(metrics: Metrics) -> None:
    lost = WorkerLost(1, 5, "killed: signal 9")
    metrics.observe_job(
        running(), running(), [lost, lost, Evaluation(5, 0.25), CheckpointSaved(5, "/c", "ab", 10, 0.1)]
    )
    seen = values(metrics)
    assert seen['backprop_workers_lost_total{job_id="test-abcdef",reason="killed"}'] == 2
    assert seen['backprop_job_loss{job_id="test-abcdef",split="validation"}'] == 0.25
    assert seen['backprop_checkpoint_bytes{job_id="test-abcdef"}'] == 10
    assert seen['backprop_job_workers{job_id="test-abcdef"}'] == 2
    assert seen['backprop_job_step{job_id="test-abcdef"}'] == 7


@pytest.mark.parametrize(
    ("happening", "reason"),
    [
        (CheckpointFailed(5, one_line(OSError(errno.ENOSPC, "No space left on device", "/c/weights"))), "disk_full"),
        (CheckpointFailed(5, one_line(OSError(errno.EDQUOT, "Disk quota exceeded")) + "; tried again"), "disk_full"),
        (CheckpointFailed(5, one_line(OSError(errno.EIO, "Input/output error"))), "not_written"),
        (CheckpointFailed(5, one_line(OSError("what was read back is not what was written"))), "not_written"),
        (CheckpointFailed(0, one_line(StoreUnreachableError("s3://b: no answer"))), "unreachable"),
        (CheckpointCorrupt("/c", "weights.safetensors: got 3 bytes"), "corrupt"),
        (CheckpointCorrupt("/c", "cannot be read: [Errno 5] Input/output error"), "unreadable"),
    ],
)
def test_checkpoints_that_fail_are_counted_by_their_reason(metrics: Metrics, happening: Happening, reason: str) -> None:
    metrics.observe_job(running(), running(), [happening, happening])
    name = "backprop_checkpoint_failures_total"
    counted = {series: value for series, value in values(metrics).items() if series.startswith(name)}
    assert counted == {f'{name}{{job_id="test-abcdef",reason="{reason}"}}': 2}


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("killed: signal 9", "killed"),
        ("hung", "hung"),
        ("no answer: for 10 s", "no_answer"),
        ("exit-code: 3", "exit_code"),
        ("Process 1234 died", "other"),
        ("", "other"),
        ("x" * 100, "other"),
    ],
)
def test_causes_are_few_words_and_not_sentences(reason: str, label: str) -> None:
    assert cause_of(reason) == label


def test_jobs_are_counted_by_state(metrics: Metrics) -> None:
    metrics.count_jobs({JobState.SUCCEEDED: 3})
    metrics.observe_job(None, job())
    seen = values(metrics)
    assert (seen['backprop_jobs{state="queued"}'], seen['backprop_jobs{state="succeeded"}']) == (1, 3)
    metrics.observe_job(job(), advance(job(), Trigger.LAUNCH, now=102.0), [StateChanged(JobState.STARTING)])
    seen = values(metrics)
    assert (seen['backprop_jobs{state="queued"}'], seen['backprop_jobs{state="starting"}']) == (0, 1)
    assert (seen["backprop_queue_seconds_count"], seen["backprop_queue_seconds_sum"]) == (1, 2.0)


def test_a_finished_job_keeps_its_last_values_until_it_is_deleted(metrics: Metrics) -> None:
    done = advance(running(), Trigger.SUCCEED, now=110.0)
    metrics.observe_job(job(), running())
    metrics.observe_job(running(), done)
    seen = values(metrics)
    assert seen['backprop_job_step{job_id="test-abcdef"}'] == 7
    assert seen['backprop_job_workers{job_id="test-abcdef"}'] == 0
    metrics.drop(done)
    assert "test-abcdef" not in metrics.exposition().decode()


def test_the_series_of_finished_jobs_do_not_pile_up(metrics: Metrics) -> None:
    for number in range(MAX_FINISHED_JOBS + 5):
        one = running(f"test-{number}")
        metrics.observe_job(one, advance(one, Trigger.SUCCEED, now=110.0))
    steps = [name for name in values(metrics) if name.startswith("backprop_job_step")]
    assert len(steps) == MAX_FINISHED_JOBS
    assert 'backprop_job_step{job_id="test-4"}' not in steps


def test_no_created_series_and_nothing_of_other_libraries(metrics: Metrics) -> None:
    text = metrics.exposition().decode()
    assert "_created" not in text
    assert "python_" not in text
    assert 'backprop_build_info{version="1.2.3"} 1.0' in text
