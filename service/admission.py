"""How a spec becomes a job: what must hold before the service takes it on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from service import limits
from service.checkpoints import checkpoints_at
from service.directories import JobDirectories
from service.dispatcher import Dispatcher
from service.errors import FailedPrecondition, InvalidJob, InvalidRequest
from service.jobs import Job
from service.ledger import Ledger
from service.records import spec_digest
from service.runs import Cluster
from service.start_checkpoint import StartCheckpoint, check_same_training, check_step, check_there
from service.store import Request
from worker.spec import JobSpec
from worker.violations import SpecError, Violation

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


def new_job_id(name: str) -> str:
    """An id for a job of this name; it also names its directory."""
    suffix = "".join(secrets.choice(BASE32) for _ in range(limits.JOB_ID_SUFFIX_LENGTH))
    return f"{name[: limits.MAX_NAME_IN_JOB_ID]}-{suffix}"


class Admission:
    """Takes jobs on. `check_data` raises SpecError for data that does not work; it may block, and runs in a thread."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        ledger: Ledger,
        cluster: Cluster,
        check_data: Callable[[JobSpec], None],
        directories: JobDirectories,
        clock: Callable[[], float],
    ) -> None:
        self._dispatcher, self._ledger, self._cluster = dispatcher, ledger, cluster
        self._check_data, self._directories, self._clock = check_data, directories, clock
        self._data_checks = asyncio.Semaphore(limits.MAX_DATA_CHECKS)

    async def validate(self, spec: JobSpec, start: StartCheckpoint | None = None) -> Job:
        """The job that `spec` would become here, without an id; raises what `admit` would raise."""
        await self._check(spec, start)
        return Job("", spec, create_time=self._clock(), start_checkpoint=start)

    async def admit(self, spec: JobSpec, *, request_id: str = "", start: StartCheckpoint | None = None) -> Job:
        """A new job, on disk; or the one that this request_id made before."""
        request = self._request(request_id, spec_digest(spec, start))
        if request is not None and (earlier := await self._ledger.find(request)) is not None:
            return earlier
        await self._check(spec, start)
        job = Job(new_job_id(spec.name), spec, create_time=self._clock(), start_checkpoint=start)
        return await self._dispatcher.submit(job, request=request)

    def _request(self, request_id: str, digest: str) -> Request | None:
        if len(request_id) > limits.MAX_REQUEST_ID_LENGTH:
            text = f"got {len(request_id)} characters, expected at most {limits.MAX_REQUEST_ID_LENGTH}"
            raise InvalidRequest([Violation("request_id", text)])
        return Request(request_id, digest) if request_id else None

    async def _check_start(self, spec: JobSpec, start: StartCheckpoint) -> None:
        check_step(start)
        source = await self._ledger.get(start.job_id)
        await check_same_training(start, source.spec, spec)
        check_there(start, await checkpoints_at(self._directories.checkpoints(source.job_id), verify=False))

    async def _check(self, spec: JobSpec, start: StartCheckpoint | None) -> None:
        if start is not None:
            await self._check_start(spec, start)
        most = self._cluster.num_slots
        if spec.workers.min > most:
            violation = Violation(
                "workers.min",
                f"got {spec.workers.min}, expected at most {most}: this cluster cannot run more workers",
            )
            raise FailedPrecondition(str(violation), reason="TOO_FEW_WORKER_SLOTS", violations=[violation])
        try:
            async with self._data_checks, asyncio.timeout(limits.DATA_CHECK_SECONDS):
                await asyncio.to_thread(self._check_data, spec)
        except SpecError as error:
            raise InvalidJob(error.violations) from None
        except TimeoutError:
            text = f"could not be read within {limits.DATA_CHECK_SECONDS:g} s"
            raise InvalidJob([Violation(f"data.{spec.data.kind}", text)]) from None
