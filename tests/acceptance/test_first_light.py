"""The product as its users have it: the command line, a real service, real Ray, a real Prometheus."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import load_file

from service.client import Client
from service.documents import to_json
from tests.conftest import LeftByTest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "examples/digits.yaml")
LONG = ["--set", "training.max_steps=4000", "--set", "checkpoint.every_steps=500", "--set", "workers.min=2"]
SECONDS = 90.0
COMPILATION = ["compilation_started", "compilation_finished"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from service.cli import main; main()", *arguments]


def backprop(*arguments: str, expected: int = 0) -> str:
    """What a command prints; it must end with the expected exit code."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def last_job(output: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(output.splitlines()[-1])
    return job


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


class Service:
    """`backprop serve` in a process of its own, on ports that the system picks."""

    def __init__(self, data_dir: Path) -> None:
        arguments = ("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir", str(data_dir))
        self._log = (data_dir.parent / f"serve-{os.urandom(3).hex()}.log").open("w+")
        self.process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        grpc, http = self.process.stdout.readline(), self.process.stdout.readline()
        self.address = grpc.split(" serves gRPC on ")[1].split(",")[0]
        self.http = http.split("metrics on ")[1].split("/metrics")[0]

    def call(self, *arguments: str, expected: int = 0) -> str:
        return backprop(*arguments, "--address", self.address, expected=expected)

    def job(self, job_id: str) -> dict[str, Any]:
        """As `show` prints it; asked for again and again, a command of its own each time would take the tests' time."""
        with Client(self.address) as client:
            job: dict[str, Any] = json.loads(to_json(client.get_job(job_id)))
        return job

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.http + path, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def kill(self) -> None:
        """As the kernel does it: no goodbye."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self._ended()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, f"left behind: {alive}"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self._ended()
        assert self.process.returncode == 0

    def _ended(self) -> None:
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


@contextmanager
def service(data_dir: Path) -> Iterator[Service]:
    running = Service(data_dir)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def test_run_trains_the_example_to_its_accuracy(tmp_path: Path) -> None:
    output = backprop("run", DIGITS, "--data-dir", str(tmp_path), "--output", "json")
    job = last_job(output)
    assert job["state"] == "SUCCEEDED"
    assert job["evaluation"]["accuracy"] >= 0.95
    assert job["steps_completed"] == job["total_steps"] == 800
    progress = [json.loads(line)["progress"] for line in output.splitlines() if '"progress": {' in line]
    assert max(event["current_workers"] for event in progress) == 2
    model = load_file(job["model_path"])
    assert {name: array.shape for name, array in model.items()} == {
        "layers.0.weight": (64, 64),
        "layers.0.bias": (64,),
        "layers.2.weight": (10, 64),
        "layers.2.bias": (10,),
    }


def test_more_workers_than_cores_give_the_same_digest(tmp_path: Path) -> None:
    shorter = ["--set", "training.max_steps=100", "--output", "json", "--data-dir", str(tmp_path)]
    digests = {
        last_job(backprop("run", DIGITS, "--workers", workers, *shorter))["weights_digest"] for workers in ("1", "4")
    }
    assert len(digests) == 1


def test_a_killed_service_finishes_its_job_with_the_same_digest(tmp_path: Path, left_by_test: LeftByTest) -> None:
    undisturbed = last_job(backprop("run", DIGITS, *LONG, "--data-dir", str(tmp_path / "one"), "--output", "json"))
    with service(tmp_path / "two") as first:
        job_id = last_job(first.call("submit", DIGITS, *LONG, "--output", "json"))["job_id"]
        wait_for(lambda: 500 < first.job(job_id)["steps_completed"] < 3500, "the middle of the job")
        first.kill()
    wait_for(lambda: not left_by_test(), "the killed service's files to go")
    with service(tmp_path / "two") as second:
        wait_for(lambda: second.job(job_id)["state"] == "SUCCEEDED", "the end of the job")
        job = second.job(job_id)
        assert job["attempt"] == 2
        events = [json.loads(line) for line in second.call("events", job_id, "--output", "json").splitlines()]
        model = tmp_path / "model.safetensors"
        second.call("export", job_id, "-o", str(model))
    assert job["weights_digest"] == undisturbed["weights_digest"]
    assert [event["event_id"] for event in events] == list(range(1, len(events) + 1))
    assert "SERVICE_RESTARTED" in [event["state_changed"]["reason"] for event in events if "state_changed" in event]
    assert model.read_bytes() == Path(undisturbed["model_path"]).read_bytes()


def test_a_paused_job_outlives_its_service_and_is_verified(tmp_path: Path, left_by_test: LeftByTest) -> None:
    with service(tmp_path / "data") as first:
        job_id = last_job(first.call("submit", DIGITS, *LONG, "--output", "json"))["job_id"]
        wait_for(lambda: first.job(job_id)["steps_completed"], "the first steps")
        first.call("pause", job_id)
        wait_for(lambda: first.job(job_id)["state"] == "PAUSED", "the pause")
        paused = first.job(job_id)
        assert (paused["current_workers"], paused["state_reason"]) == (0, "USER_REQUEST")
        first.kill()
    wait_for(lambda: not left_by_test(), "the killed service's files to go")
    with service(tmp_path / "data") as second:
        assert second.job(job_id) == paused
        assert last_job(second.call("scale", job_id, "--workers", "4", "--output", "json"))["wanted_workers"] == 4
        second.call("resume", job_id)
        wait_for(lambda: second.job(job_id)["state"] == "SUCCEEDED", "the end of the job")
        events = [json.loads(line) for line in second.call("events", job_id, "--output", "json").splitlines()]
        saved = [event["checkpoint_saved"]["step"] for event in events if "checkpoint_saved" in event]
        assert {paused["steps_completed"], 3000, 3500, 4000} <= set(saved)
        with Client(second.address) as client:
            steps = [metrics.step for metrics in client.stream_metrics(job_id)]
        assert steps == sorted(set(steps))
        assert (steps[0] <= paused["steps_completed"], steps[-1]) == (True, 4000), "those before the kill are kept"
        before = max(step for step in saved if step <= 3300)
        arguments = ("--from-step", "3300", "--steps", "1000", "--workers", "1", "--output", "json")
        verified = last_job(second.call("verify", job_id, *arguments))
        assert verified["from_step"] == before, "the newest before it"
        assert [one["step"] for one in verified["checkpoints"]] == [step for step in saved if step > before]
        assert verified["checkpoints"][-1]["found"] == second.job(job_id)["weights_digest"]


def test_kernels_are_compiled_once_for_a_data_directory_and_the_events_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    settings = ["--set", "model.mlp.hidden=[]", "--set", "training.max_steps=60", "--set", "workers.min=2"]
    with service(tmp_path / "data") as running:
        arguments = ("submit", DIGITS, *settings, "--follow", "--output", "json")
        events = [[json.loads(line) for line in running.call(*arguments).splitlines()] for _ in range(2)]
    happened = [[name for event in run for name in ("state_changed", *COMPILATION) if name in event] for run in events]
    assert [name for name in happened[0] if name in COMPILATION] == COMPILATION
    assert happened[0].index(COMPILATION[-1]) < len(happened[0]) - 1, "it is over before the job runs"
    (finished,) = (event["compilation_finished"] for event in events[0] if "compilation_finished" in event)
    assert finished["num_kernels"] > 0
    assert list((tmp_path / "data" / "kernels").rglob("*.nbc"))
    assert not set(happened[1]) & set(COMPILATION)
    assert events[0][-1]["weights_digest"] == events[1][-1]["weights_digest"]


def test_ctrl_c_stops_everything(tmp_path: Path, left_by_test: LeftByTest) -> None:
    arguments = command("run", DIGITS, "--set", "training.max_steps=1000000", "--data-dir", str(tmp_path))
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "evaluation" in line:
            break
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert not left_by_test()


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed (Debian: prometheus)"
        (pytest.fail if os.environ.get("BACKPROP_REQUIRE_ALL") == "1" else pytest.skip)(message)
    return path


def test_prometheus_scrapes_a_running_job(tmp_path: Path) -> None:
    prometheus, promtool = program("prometheus"), program("promtool")
    with service(tmp_path / "data") as running:
        endless = ("--set", "training.max_steps=1000000")
        job_id = last_job(running.call("submit", DIGITS, *endless, "--output", "json"))["job_id"]
        wait_for(lambda: running.job(job_id)["evaluation"], "the first evaluation")
        metrics = running.get("/metrics")
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=metrics, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
        for name in ("step", "loss", "gradient_norm", "learning_rate", "samples_total", "workers"):
            assert f'backprop_job_{name}{{job_id="{job_id}"' in metrics
        config = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
        assert "127.0.0.1:8080" in config
        ours = tmp_path / "prometheus.yml"
        ours.write_text(config.replace("127.0.0.1:8080", running.http.removeprefix("http://")))
        port = "19091"
        scraper = subprocess.Popen(
            [
                prometheus,
                f"--config.file={ours}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            query = [
                promtool,
                "query",
                "instant",
                f"http://127.0.0.1:{port}",
                f'backprop_job_workers{{job_id="{job_id}"}}',
            ]
            answer = wait_for(
                lambda: subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip(), "a scrape"
            )
            assert "=> 2 @" in answer
        finally:
            scraper.terminate()
            scraper.wait(20)
        running.call("cancel", job_id)
        wait_for(lambda: running.job(job_id)["state"] == "CANCELLED", "the cancellation")
        running.call("cancel", job_id)  # cancelling a cancelled job is no error
        running.call("delete", job_id)
        assert job_id not in running.get("/metrics")
        assert (
            "no job"
            in subprocess.run(
                command("show", job_id, "--address", running.address), capture_output=True, text=True, check=False
            ).stderr.lower()
        )
