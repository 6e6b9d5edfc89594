"""The command line against a real server with a cluster that the test controls."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from service.fake_cluster import FakeCluster, Script
from tests.conftest import RunningService, StartService
from tests.unit.checkpoints import ORIGIN, save
from worker.checkpoint_store import LocalStore
from worker.replica import spec_sha256
from worker.spec import parse_spec

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "examples/digits.yaml")
SECONDS = 30.0


@dataclass(frozen=True)
class Done:
    code: int
    output: str
    errors: str

    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines()]


async def backprop(*arguments: str, service: RunningService | None = None, stdin: str = "") -> Done:
    """Runs a command as a user does, in a process of its own."""
    address = "127.0.0.1:1" if service is None else service.address
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from service.cli import main; main()",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "BACKPROP_ADDRESS": address},
    )
    async with asyncio.timeout(SECONDS):
        output, errors = await process.communicate(stdin.encode())
    assert process.returncode is not None
    assert b"Traceback" not in errors
    return Done(process.returncode, output.decode(), errors.decode())


async def test_help_names_every_command() -> None:
    done = await backprop("--help")
    assert done.code == 0
    commands = "serve run submit jobs show watch events pause resume scale cancel checkpoints verify"
    commands += " export sample delete"
    for command in commands.split():
        assert f"\n  {command} " in done.output
        assert (await backprop(command, "--help")).code == 0


async def test_a_job_from_submission_to_deletion(start_service: StartService, tmp_path: Path) -> None:
    service = await start_service()
    submitted = await backprop("submit", DIGITS, "--follow", "--output", "json", service=service)
    assert submitted.code == 0
    job = submitted.jobs()[-1]
    assert job["state"] == "SUCCEEDED"
    assert job["steps_completed"] == job["total_steps"] == 800
    job_id = job["job_id"]
    shown = await backprop("show", job_id[:8], "--output", "json", service=service)
    assert shown.jobs() == [job]
    assert job_id in (await backprop("jobs", service=service)).output
    assert [
        listed["job_id"] for listed in json.loads((await backprop("jobs", "--output", "json", service=service)).output)
    ] == [job_id]
    events = (await backprop("events", job_id, "--output", "json", service=service)).jobs()
    assert [event["event_id"] for event in events] == list(range(1, len(events) + 1))
    watched = (await backprop("watch", job_id, "--output", "json", service=service)).jobs()
    assert [event for event in watched if event["event_id"]] == events
    for command in ("show", "events", "watch"):
        assert "SUCCEEDED" in (await backprop(command, job_id, service=service)).output
    model = tmp_path / "model.safetensors"
    assert (await backprop("export", job_id, "-o", str(model), service=service)).code == 0
    assert model.read_bytes() == Path(job["model_path"]).read_bytes()
    assert (await backprop("delete", job_id, service=service)).code == 0
    assert (await backprop("show", job_id, service=service)).code == 2


@pytest.mark.parametrize(
    ("settings", "weights", "file"),
    [
        ([], [], "weights.safetensors"),
        ([], ["--weights", "raw"], "weights.safetensors"),
        (["--set", "optimizer.ema.decay=0.9"], [], "ema.safetensors"),
        (["--set", "optimizer.ema.decay=0.9"], ["--weights", "ema"], "ema.safetensors"),
        (["--set", "optimizer.ema.decay=0.9"], ["--weights", "raw"], "weights.safetensors"),
    ],
)
async def test_the_average_is_exported_where_there_is_one(
    settings: list[str], weights: list[str], file: str, start_service: StartService, tmp_path: Path
) -> None:
    service, model = await start_service(), tmp_path / "model.safetensors"
    job = (await backprop("submit", DIGITS, *settings, "--follow", "--output", "json", service=service)).jobs()[-1]
    assert (await backprop("export", job["job_id"], "-o", str(model), *weights, service=service)).code == 0
    assert model.read_bytes() == Path(job["model_path"]).with_name(file).read_bytes()


async def test_weights_that_there_are_not_are_refused(start_service: StartService, tmp_path: Path) -> None:
    service, model = await start_service(), tmp_path / "model.safetensors"
    job = (await backprop("submit", DIGITS, "--follow", "--output", "json", service=service)).jobs()[-1]
    refused = await backprop("export", job["job_id"], "-o", str(model), "--weights", "ema", service=service)
    assert refused.code == 2
    assert "the job keeps no average; ask for raw, or train with optimizer.ema" in refused.errors
    assert not model.exists()
    of_file = await backprop("sample", job["model_path"], "--weights", "raw", service=service)
    assert of_file.code == 2
    assert f"--weights: got raw for the file {job['model_path']}, expected it for a job only" in of_file.errors


async def test_checkpoints_are_listed_with_what_is_wrong_with_them(start_service: StartService) -> None:
    service = await start_service()
    submitted = await backprop("submit", DIGITS, "--follow", "--output", "json", service=service)
    job_id = submitted.jobs()[-1]["job_id"]
    assert (await backprop("checkpoints", job_id, service=service)).output == "no checkpoints\n"
    store = LocalStore(service.data_dir / "jobs" / job_id / "checkpoints")
    sound, damaged = (save(store, step) for step in (5, 6))
    Path(damaged.model).write_bytes(b"damaged")
    lines = (await backprop("checkpoints", job_id, service=service)).output.splitlines()
    assert lines[0].split() == ["STEP", "TIME", "BYTES", "DIGEST", "VERIFIED", "LOCATION"]
    assert "weights.safetensors" in lines[1]
    listed = json.loads((await backprop("checkpoints", job_id, "--output", "json", service=service)).output)
    assert [(found["step"], found["verified"], bool(found["problem"])) for found in listed] == [
        (6, False, True),
        (5, True, False),
    ]
    assert listed[1]["location"] == sound.location
    assert (listed[1]["size_bytes"], listed[1]["weights_digest"]) == (sound.size_bytes, sound.weights_digest)
    quick = await backprop("checkpoints", job_id, "--no-verify", "--output", "json", service=service)
    assert [(found["verified"], found["problem"]) for found in json.loads(quick.output)] == [(False, "")] * 2
    assert (await backprop("checkpoints", "nobody", service=service)).code == 2


async def test_a_failed_job_ends_with_exit_code_1(start_service: StartService) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(fail_at=20)))
    done = await backprop("submit", DIGITS, "--follow", "--output", "json", service=service)
    assert done.code == 1
    assert done.jobs()[-1]["state"] == "FAILED"
    assert "not finite" in done.jobs()[-1]["error"]


async def test_overrides_reach_the_service(start_service: StartService) -> None:
    service = await start_service()
    settings = ("--set", "training.max_steps=70", "--set", "optimizer.adam.learning_rate=1e-3")
    done = await backprop("submit", DIGITS, *settings, "--output", "json", service=service)
    (job,) = done.jobs()
    assert job["total_steps"] == 70
    assert job["spec"]["optimizer"]["adam"]["learning_rate"] == 0.001


JOB = "model: {mlp: {hidden: [8]}}\ndata: {digits: {}}\n"
BAD_FILES = [
    ("unknown key", JOB + "optimiser: {adam: {}}", ":3: optimiser: unknown key; did you mean optimizer?"),
    ("deep", JOB + "optimizer:\n  adam:\n    learning_rat: 1", ":5: optimizer.adam.learning_rat: unknown key; did"),
    ("wrong type", JOB + "training: {max_steps: many}", ":3: training.max_steps: got 'many', expected a whole"),
    ("negative rate", JOB + "optimizer: {sgd: {learning_rate: -1}}", ":3: optimizer.sgd.learning_rate: got -1, expect"),
    ("NaN rate", JOB + "optimizer: {sgd: {learning_rate: .nan}}", ":3: optimizer.sgd.learning_rate: got nan, expected"),
    ("zero workers", JOB + "workers: {min: 0}", ":3: workers.min: got 0, expected a number >= 1"),
    ("shards", JOB + "training: {global_batch_size: 10, shards: 4}", ":3: training.shards: got 4, expected a divisor"),
    ("unknown model", "model: {mpl: {}}\ndata: {digits: {}}", ":1: model.mpl: unknown key; did you mean mlp?"),
    ("no data", "model: {mlp: {}}", "data: missing, expected one of digits, synthetic, arrays"),
    ("no file", "model: {mlp: {}}\ndata: {arrays: {path: /no/a.npz}}", ":2: data.arrays.path: /no/a.npz: no such file"),
    ("duplicate key", JOB + "data: {digits: {}}", ":3:"),
    ("not YAML", "model: {mlp\n", ":2:"),
    ("no mapping", "- 1", "expected a mapping"),
    ("empty", "", "expected a mapping"),
]


@pytest.mark.parametrize(("content", "expected"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES])
async def test_a_bad_job_file_is_one_line_with_its_place(
    content: str, expected: str, start_service: StartService, tmp_path: Path
) -> None:
    from worker.data import source

    service = await start_service(data_check=source.check)
    path = tmp_path / "job.yaml"
    path.write_text(content)
    done = await backprop("submit", str(path), service=service)
    assert done.code == 2
    (line,) = done.errors.splitlines()
    assert line.startswith(str(path))
    assert expected in line


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("jobs",), 3, "cannot reach the service at 127.0.0.1:1; start it with `backprop serve`"),
        (("submit", "/no/job.yaml"), 2, "/no/job.yaml: No such file or directory, expected a job file"),
        (("submit", DIGITS, "--set", "training.max_steps=0"), 2, "training.max_steps: got 0, expected a number >= 1"),
        (("submit", DIGITS, "--set", "nonsense"), 2, "nonsense"),
        (("serve", "--listen", "0.0.0.0:50051"), 2, "0.0.0.0"),
        (("serve", "--listen", "nowhere"), 2, "nowhere"),
        (("serve", "--data-dir", "/proc/none"), 2, "/proc/none"),
        (("nonsense",), 2, "No such command"),
        (("run", DIGITS, "--workers", "0"), 2, "Invalid value for '--workers'"),
        (("run", DIGITS, "--workers", "99"), 2, "workers.max: got 99, expected at most training.shards (4)"),
    ],
)
async def test_wrong_usage_is_explained(arguments: tuple[str, ...], code: int, expected: str) -> None:
    done = await backprop(*arguments)
    assert done.code == code
    assert expected in done.errors


async def test_too_many_workers_for_the_cluster_are_refused_with_the_line(
    start_service: StartService, tmp_path: Path
) -> None:
    service = await start_service(cluster=FakeCluster(num_slots=2))
    path = tmp_path / "job.yaml"
    path.write_text(JOB + "workers:\n  min: 3\n")
    done = await backprop("submit", str(path), service=service)
    assert done.code == 2
    assert f"{path}:4: workers.min: got 3, expected at most 2" in done.errors


async def test_a_job_is_paused_scaled_and_resumed(start_service: StartService, tmp_path: Path) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=10)))
    submitted = await backprop("submit", DIGITS, "--set", "priority=3", "--output", "json", service=service)
    job_id = submitted.jobs()[0]["job_id"]
    assert submitted.jobs()[0]["spec"]["priority"] == 3
    assert (await backprop("pause", job_id, service=service)).output.startswith(f"{job_id}: PAUS")
    async with asyncio.timeout(SECONDS):
        while (await backprop("pause", job_id, service=service)).output != f"{job_id}: PAUSED\n":
            pass
    scaled = await backprop("scale", job_id, "--workers", "1", service=service)
    assert scaled.output == f"{job_id}: PAUSED, takes up to 1 worker\n"
    refused = await backprop("scale", job_id, "--workers", "99", service=service)
    assert (refused.code, refused.output) == (2, "")
    assert "workers: got 99, expected 1 to 4, the job's training.shards" in refused.errors
    service.cluster.gate.set()
    resumed = await backprop("resume", job_id, "--output", "json", service=service)
    assert resumed.jobs()[0]["state"] == "QUEUED"
    assert (await backprop("watch", job_id, service=service)).code == 0
    late = await backprop("pause", job_id, service=service)
    assert late.code == 2
    assert late.errors == (
        f"backprop: cannot pause job {job_id}: got state SUCCEEDED, expected a job that is not finished\n"
    )


async def trained(service: RunningService, *settings: str) -> str:
    """The id of a finished job."""
    options = [word for setting in settings for word in ("--set", setting)]
    done = await backprop("submit", DIGITS, *options, "--follow", "--output", "json", service=service)
    job_id: str = done.jobs()[-1]["job_id"]
    return job_id


async def test_a_job_that_is_trained_again_alike_is_verified(start_service: StartService) -> None:
    service = await start_service()
    job_id = await trained(service, "checkpoint.every_steps=200", "evaluation.every_steps=0")
    done = await backprop("verify", job_id, "--output", "json", service=service)
    assert done.code == 0, done.errors
    (result,) = done.jobs()
    assert (result["job_id"], result["workers"], result["is_equal"]) == (job_id, 1, True)
    assert [one["step"] for one in result["checkpoints"]] == [200, 400, 600, 800]
    assert (result["agreed_until"], result["parted_at"]) == (800, None)
    assert result["verify_job_id"].startswith(f"verify-{job_id}-")
    listed = json.loads((await backprop("jobs", "--output", "json", service=service)).output)
    assert [job["job_id"] for job in listed] == [job_id], "the second job is gone"
    done = await backprop("verify", job_id, "--workers", "2", "--steps", "450", "--keep", service=service)
    assert done.code == 0
    assert [line.split()[:3] for line in done.output.splitlines()[:2]] == [["step", n, "same"] for n in ("200", "400")]
    assert done.output.splitlines()[2] == f"OK: with 2 workers, {job_id} has the same weights at all 2 checkpoints"
    (second,) = [
        job
        for job in json.loads((await backprop("jobs", "--output", "json", service=service)).output)
        if job["job_id"] != job_id
    ]
    assert second["state"] == "CANCELLED", "nothing is trained that is not compared"
    assert second["spec"]["workers"] == {"min": 2, "max": 2}


async def with_checkpoints(service: RunningService, *steps: int) -> str:
    """A trained job that still has its checkpoints of these steps."""
    job_id = await trained(service, "checkpoint.every_steps=200")
    (shown,) = (await backprop("show", job_id, "--output", "json", service=service)).jobs()
    spec = parse_spec(shown["spec"])
    store = LocalStore(service.data_dir / "jobs" / job_id / "checkpoints")
    for step in steps:
        save(store, step, origin=replace(ORIGIN, spec_sha256=spec_sha256(spec)))
    return job_id


async def test_a_part_of_a_job_is_verified(start_service: StartService) -> None:
    service = await start_service()
    job_id = await with_checkpoints(service, 200, 400)
    done = await backprop("verify", job_id, "--from-step", "550", "--output", "json", service=service)
    assert done.code == 0, done.errors
    assert "no checkpoint of step 550: beginning with that of step 400" in done.errors
    (result,) = done.jobs()
    assert (result["from_step"], result["is_equal"], result["agreed_until"]) == (400, True, 600)
    assert [one["step"] for one in result["checkpoints"]] == [600], "up to the next checkpoint"
    done = await backprop("verify", job_id, "--from-step", "200", "--steps", "450", "--keep", service=service)
    assert done.code == 0
    assert f"training {job_id} again from step 200 on with 1 worker: verify-{job_id}-" in done.errors
    assert [line.split()[1] for line in done.output.splitlines()[:-1]] == ["400", "600"]
    listed = json.loads((await backprop("jobs", "--output", "json", service=service)).output)
    (kept,) = (job for job in listed if job["job_id"] != job_id)
    assert kept["start_checkpoint"] == {"job_id": job_id, "step": 200}
    assert f"step 200 of {job_id}" in (await backprop("show", kept["job_id"], service=service)).output
    rows = [
        (("--from-step", "100"), "--from-step: got 100, expected at least 200, the oldest checkpoint there is"),
        (
            ("--from-step", "400", "--steps", "9"),
            "--steps: got 9, expected at least 200, the first checkpoint after step",
        ),
    ]
    for arguments, expected in rows:
        done = await backprop("verify", job_id, *arguments, service=service)
        assert (done.code, done.output) == (2, "")
        assert expected in done.errors


async def test_a_part_that_cannot_be_verified_is_explained(start_service: StartService) -> None:
    script = lambda job: Script(diverge_at=500 if job.spec.name.startswith("verify-") else None)  # noqa: E731
    service = await start_service(cluster=FakeCluster(script=script))
    job_id = await with_checkpoints(service, 400, 800)
    done = await backprop("verify", job_id, "--from-step", "400", service=service)
    assert done.code == 1
    assert done.output.splitlines()[-1].startswith("DIFFERENT: the runs part between step 400 and step 600; verify-")
    done = await backprop("verify", job_id, "--from-step", "800", service=service)
    assert (done.code, "no checkpoint was saved after step 800" in done.errors) == (2, True)
    without = await trained(service, "checkpoint.every_steps=200")
    done = await backprop("verify", without, "--from-step", "400", service=service)
    assert (done.code, f"job {without} has no checkpoint now" in done.errors) == (2, True)


async def test_runs_that_part_are_told_where(start_service: StartService) -> None:
    script = lambda job: Script(diverge_at=500 if job.spec.name.startswith("verify-") else None)  # noqa: E731
    service = await start_service(cluster=FakeCluster(script=script))
    job_id = await trained(service, "checkpoint.every_steps=200")
    done = await backprop("verify", job_id, service=service)
    assert done.code == 1
    *same, different, verdict = done.output.splitlines()
    assert [line.split()[1] for line in same] == ["200", "400"]
    assert different.split()[:3] == ["step", "600", "DIFFERENT"]
    assert verdict.startswith(f"DIFFERENT: the runs part between step 400 and step 600; verify-{job_id}-")
    result = (await backprop("verify", job_id, "--output", "json", service=service)).jobs()[0]
    assert (result["is_equal"], result["agreed_until"], result["parted_at"]) == (False, 400, 600)


async def test_what_cannot_be_verified_is_explained(start_service: StartService) -> None:
    scripts = {"verify": Script(fail_at=300), "held": Script(hold_at=0)}
    script = lambda job: scripts.get(job.spec.name.partition("-")[0], Script())  # noqa: E731
    service = await start_service(cluster=FakeCluster(script=script))
    job_id = await trained(service, "checkpoint.every_steps=400")
    rows = [
        (("--workers", "9"), 2, "verify: --workers: workers.max: got 9, expected at most training.shards (4)"),
        (("--steps", "10"), 2, "verify: --steps: got 10, expected at least 400, the first checkpoint"),
        ((), 1, "the second job ended too early: verify-"),
    ]
    for arguments, code, expected in rows:
        done = await backprop("verify", job_id, *arguments, service=service)
        assert (done.code, done.output) == (code, "")
        assert expected in done.errors
    early = (await backprop("submit", DIGITS, "--set", "name=held", "--output", "json", service=service)).jobs()[0]
    done = await backprop("verify", early["job_id"], service=service)
    assert (done.code, done.output) == (2, "")
    assert f"job {early['job_id']} has saved no checkpoint yet" in done.errors


async def test_an_ambiguous_beginning_of_an_id_is_refused(start_service: StartService) -> None:
    service = await start_service(cluster=FakeCluster(script=Script(hold_at=0)))
    for _ in range(2):
        await backprop("submit", DIGITS, service=service)
    done = await backprop("show", "digits", service=service)
    assert done.code == 2
    assert "stands for 2 jobs" in done.errors


async def test_standard_input_is_a_job_file_too(start_service: StartService) -> None:
    service = await start_service()
    done = await backprop("submit", "-", "--output", "json", service=service, stdin=JOB)
    assert done.code == 0
    bad = await backprop("submit", "-", service=service, stdin=JOB + "x: 1\n")
    assert bad.errors.startswith("standard input:3: x: unknown key")
