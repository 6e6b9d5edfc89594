"""The HTTP side: health, readiness, metrics."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import urllib.error
import urllib.request

import grpc
import pytest

from service.convert import spec_to_proto
from service.pb.backprop.v1 import job_pb2, training_service_pb2_grpc
from service.pb.backprop.v1 import training_service_pb2 as pb
from tests.conftest import MakeSpec, RunningService, StartService
from tests.integration.test_api import until_state


async def get(service: RunningService, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(service.endpoints.http_url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def test_health_and_readiness(start_service: StartService) -> None:
    service = await start_service()
    assert (await get(service, "/healthz"))[0] == 200
    assert (await get(service, "/readyz"))[0] == 200
    assert (await get(service, "/nowhere"))[0] == 404


async def test_metrics_follow_a_job_and_forget_a_deleted_one(start_service: StartService, make_spec: MakeSpec) -> None:
    service = await start_service()
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub = training_service_pb2_grpc.TrainingServiceStub(channel)
        job = await stub.CreateJob(pb.CreateJobRequest(spec=spec_to_proto(make_spec())))
        await until_state(stub, job.job_id, job_pb2.JOB_STATE_SUCCEEDED)
        _, text = await get(service, "/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        label = f'job_id="{job.job_id}"'
        assert float(lines[f"backprop_job_step{{{label}}}"]) == 40
        assert float(lines[f"backprop_job_samples_total{{{label}}}"]) == 320
        assert float(lines[f"backprop_step_seconds_count{{{label}}}"]) == 40
        assert float(lines[f'backprop_job_loss{{{label},split="validation"}}']) == 1 / 40
        assert float(lines['backprop_jobs{state="succeeded"}']) == 1
        assert float(lines['grpc_server_handled_total{grpc_code="OK",grpc_method="CreateJob"}']) == 1
        promtool(text)
        await stub.DeleteJob(pb.DeleteJobRequest(job_id=job.job_id))
        assert job.job_id not in (await get(service, "/metrics"))[1]


def promtool(text: str) -> None:
    """Checks names and types as Prometheus' own tool does."""
    path = shutil.which("promtool")
    if path is None:
        message = "promtool is not installed (Debian: prometheus)"
        (pytest.fail if os.environ.get("BACKPROP_REQUIRE_ALL") == "1" else pytest.skip)(message)
    done = subprocess.run([path, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
