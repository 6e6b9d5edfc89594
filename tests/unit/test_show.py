"""What people read on their terminal."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from service.cli.follow import LINE_EVERY_SECONDS, BarView, LineView
from service.cli.show import cost_text, event_text, jobs_table, number, outcome_lines, progress_text, span
from service.pb.backprop.v1 import job_pb2, spec_pb2

NOW = datetime(2026, 1, 1, 0, 1, 0, tzinfo=UTC)


def make_job(**fields: object) -> job_pb2.Job:
    job = job_pb2.Job(job_id="test-abcdef", state="JOB_STATE_RUNNING", steps_completed=5, total_steps=40)
    job.start_time.FromJsonString("2026-01-01T00:00:00Z")
    job.MergeFrom(job_pb2.Job(**fields))  # type: ignore[arg-type]
    return job


def progress(steps: int, workers: int = 2) -> job_pb2.JobEvent:
    return job_pb2.JobEvent(progress=make_job(steps_completed=steps, current_workers=workers))


def test_progress_is_one_line_of_what_is_known() -> None:
    assert progress_text(make_job()) == "step 5/40"
    everything = make_job(
        loss=0.12345,
        samples_per_second=12345.6,
        current_workers=2,
        evaluation=job_pb2.Evaluation(step=4, loss=0.5, accuracy=0.9666),
    )
    everything.estimated_remaining.FromMilliseconds(75_000)
    assert progress_text(everything) == (
        "step 5/40, loss 0.1235, accuracy 96.66 %, 12,346 samples/s, 2 workers, 1:15 left"
    )
    assert progress_text(make_job(current_workers=1)) == "step 5/40, 1 worker"


@pytest.mark.parametrize(("seconds", "text"), [(0.83, "0.8 s"), (59.9, "59.9 s"), (65, "1:05"), (7384, "2:03:04")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_numbers_that_are_none_are_shown() -> None:
    assert [number(None), number(float("nan")), number(float("inf")), number(0.000123456)] == [
        "-",
        "nan",
        "inf",
        "0.0001235",
    ]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            job_pb2.JobEvent(
                state_changed=job_pb2.StateChanged(
                    state="JOB_STATE_RECOVERING", reason="STATE_REASON_WORKER_LOST", message="worker 1 was lost"
                )
            ),
            "RECOVERING (WORKER_LOST): worker 1 was lost",
        ),
        (job_pb2.JobEvent(state_changed=job_pb2.StateChanged(state="JOB_STATE_RUNNING")), "RUNNING"),
        (
            job_pb2.JobEvent(evaluation=job_pb2.Evaluation(step=5, loss=0.25)),
            "evaluation after step 5: held-out loss 0.25",
        ),
        (
            job_pb2.JobEvent(checkpoint_failed=job_pb2.CheckpointFailed(step=5, error="disk full")),
            "checkpoint after step 5 failed: disk full",
        ),
        (
            job_pb2.JobEvent(checkpoint_corrupt=job_pb2.CheckpointCorrupt(path="/c", reason="torn")),
            "damaged checkpoint, the one before is used: /c: torn",
        ),
        (
            job_pb2.JobEvent(exactness_lost=job_pb2.ExactnessLost(step=5, differences="numpy is 3, was 2")),
            "goes on from step 5 with other numerics: numpy is 3, was 2",
        ),
        (
            job_pb2.JobEvent(worker_lost=job_pb2.WorkerLost(rank=1, step=5, reason="killed")),
            "worker 1 lost after step 5: killed",
        ),
        (
            job_pb2.JobEvent(compilation_started=job_pb2.CompilationStarted(rank=1)),
            "worker 1 compiles kernels, for the first such job on this machine",
        ),
        (
            job_pb2.JobEvent(compilation_finished=job_pb2.CompilationFinished(num_kernels=14, seconds=9.53)),
            "compiled 14 kernels in 9.5 s",
        ),
        (
            job_pb2.JobEvent(worker_lost=job_pb2.WorkerLost(rank=1, step=5, reason="process died", phase="backward")),
            "worker 1 lost after step 5 at backward: process died",
        ),
        (
            job_pb2.JobEvent(workers_changed=job_pb2.WorkersChanged(workers=3, step=5, reason="worker 2 joined")),
            "3 workers after step 5: worker 2 joined",
        ),
        (
            job_pb2.JobEvent(worker_slow=job_pb2.WorkerSlow(rank=1, step=5, times=4.21, shards=1)),
            "worker 1 is 4.2 times slower after step 5: it computes 1 shard from here on",
        ),
        (
            job_pb2.JobEvent(workers_wanted=job_pb2.WorkersWanted(workers=1, reason="scaled by the user")),
            "1 worker wanted: scaled by the user",
        ),
        (job_pb2.JobEvent(), "an event that this version of backprop does not know"),
    ],
)
def test_every_event_is_one_line(event: job_pb2.JobEvent, text: str) -> None:
    assert event_text(event) == text


@pytest.mark.parametrize(
    ("least", "most", "wanted", "shards", "text"),
    [
        (1, 2, 2, 8, "1 to 2; 8 shards keep them busy 100 % on 1, 100 % on 2"),
        (2, 3, 5, 8, "2 to 5; 8 shards keep them busy 100 % on 2, 89 % on 3, 100 % on 4, 80 % on 5"),
        (2, 3, 1, 8, "1 to 1; 8 shards keep them busy 100 % on 1"),
        (1, 1, 0, 1, "1 to 1; 1 shard keeps them busy 100 % on 1"),
        (10, 64, 64, 64, "10 to 64; 64 shards keep them busy 91 % on 10, 97 % on 11, 98 % on 13, 100 % on 16, "
         "97 % on 22, 100 % on 32, 100 % on 64"),
    ],
)  # fmt: skip
def test_a_job_says_what_workers_are_worth(least: int, most: int, wanted: int, shards: int, text: str) -> None:
    spec = spec_pb2.JobSpec(workers={"min": least, "max": most}, training={"shards": shards})
    assert cost_text(make_job(spec=spec, wanted_workers=wanted)) == text


def test_a_success_says_accuracy_digest_model_and_how_to_take_it_home() -> None:
    job = make_job(
        state="JOB_STATE_SUCCEEDED",
        evaluation=job_pb2.Evaluation(step=40, loss=0.5, accuracy=0.97),
        weights_digest="ab" * 32,
        model_path="/data/model",
    )
    text = "\n".join(outcome_lines(job, now=NOW, how_to_export="cp a b"))
    for part in ("test-abcdef: SUCCEEDED in 1:00", "97.00 %", "ab" * 32, "/data/model", "cp a b"):
        assert part in text


def test_a_failure_says_why_on_one_line() -> None:
    job = make_job(state="JOB_STATE_FAILED", state_reason="STATE_REASON_NON_FINITE", error="step 7: NaN")
    assert outcome_lines(job, now=NOW, how_to_export="") == ["test-abcdef: FAILED (NON_FINITE): step 7: NaN"]


def test_a_table_that_is_piped_is_not_cut() -> None:
    text = io.StringIO()
    long_id = "a" * 40 + "-abcdef"
    waiting = make_job(job_id="", state_message="waits for 2 workers: 1 of 4 free")
    waiting.job_id = long_id
    jobs_table([waiting], Console(file=text, width=200), now=NOW)
    assert long_id in text.getvalue()
    assert "waits for 2 workers: 1 of 4 free" in text.getvalue()


def test_no_jobs_is_no_empty_table() -> None:
    text = io.StringIO()
    jobs_table([], Console(file=text), now=NOW)
    assert text.getvalue() == "no jobs; submit one with `backprop submit FILE`\n"


def test_without_a_terminal_events_are_lines_and_progress_comes_now_and_then() -> None:
    text, times = io.StringIO(), [0.0]
    view = LineView(Console(file=text, width=200), clock=lambda: times[0])
    for step in range(20):
        view.show(progress(step))
    view.show(job_pb2.JobEvent(event_id=4, evaluation=job_pb2.Evaluation(step=19, loss=0.5)))
    times[0] = LINE_EVERY_SECONDS
    view.show(progress(20))
    view.show(progress(21))
    assert text.getvalue().splitlines() == [
        "evaluation after step 19: held-out loss 0.5",
        "step 20/40, 2 workers",
    ]


def test_on_a_terminal_a_bar_moves_below_the_events() -> None:
    class Bar:
        """Takes down what the bar is told."""

        def __init__(self) -> None:
            self.seen: dict[str, object] = {}

        def add_task(self, description: str, **fields: object) -> int:
            return 7

        def update(self, task: int, **fields: object) -> None:
            assert task == 7
            self.seen = fields

    text, bar = io.StringIO(), Bar()
    view = BarView(bar, Console(file=text, width=200))
    view.show(progress(20))
    assert bar.seen == {"total": 40, "completed": 20, "description": "RUNNING", "facts": "2 workers"}
    view.show(job_pb2.JobEvent(progress=make_job(state="JOB_STATE_QUEUED", state_message="waits behind job x")))
    assert bar.seen["facts"] == "waits behind job x"
    view.show(job_pb2.JobEvent(event_id=1, state_changed=job_pb2.StateChanged(state="JOB_STATE_RUNNING")))
    assert text.getvalue() == "RUNNING\n"
