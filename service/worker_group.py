"""The worker actors of one job, by seat, and the segment they share.

Workers are started in the background and take part from a step boundary on. A death is an answer here, not an
accident: whatever the others were doing under the plan is abandoned at once, they come back, and the lost one is
known to be dead before anybody goes on. `take_losses` tells what was lost.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from service import limits
from service.jobs import CompilationFinished, CompilationStarted
from service.losses import Loss
from service.resumption import RefusedError, check_alike, create_segment
from service.runs import Report
from service.seats import DEATHS, Standing, Worker, answer_of
from service.spare import Spare
from service.vigil import LOOK_SECONDS, Paces, Vigil, Window
from worker.objective import Scores
from worker.plan import Plan, shares_by_speed
from worker.reduce.segment import PHASES, RING_STEPS, Segment
from worker.replica import EVALUATION_CHUNK, Facts, Leg
from worker.spec import JobSpec

START_SECONDS = 300.0  # placing it, reading the data, compiling kernels, touching the segment, on a busy machine
MEDIAN_STEPS = 50  # the newest ones, for the median duration of a step


@dataclass(frozen=True)
class Order:
    """What a coordinator is to run and where. `worker_options` are Ray's, for each worker actor."""

    job_id: str
    spec_json: str
    num_workers: int  # wanted at first
    min_workers: int  # with whom it begins
    capacity: int  # at any time
    segment: Path
    checkpoints: str  # a path or a URL
    worker_options: Mapping[str, Any]
    allow_different_numerics: bool = False
    keep_seconds: float = limits.KEEP_RUN_SECONDS  # the run's result, when nobody asks for it


class WorkerGroup:
    """All workers of a job. `end` ends them; `changed` is set when somebody should decide anew who takes part."""

    segment: Segment
    facts: Facts

    def __init__(self, order: Order, report: Callable[[Report], None]) -> None:
        self._order, self._report = order, report
        self._global_batch_size = JobSpec.model_validate_json(order.spec_json).training.global_batch_size
        self._workers: dict[int, Worker] = {}
        self._creating, self._compiling = asyncio.Lock(), asyncio.Lock()
        self._plan: Plan | None = None
        self._vigil = Vigil(since=0.0)
        self._out: set[int] = set()  # members that have not come back
        self._fault: Exception | None = None  # why a worker that lives could not start
        self._spare = Spare(order.worker_options)
        self.paces = Paces()
        self.has_segment = False
        self.changed = asyncio.Event()

    # Who is there.

    def seats(self, standing: Standing) -> tuple[int, ...]:
        """Workers that live and stand so, the oldest first; members in the order of the plan."""
        seats = [w.seat for w in self._workers.values() if w.standing is standing and not w.is_dead]
        if standing is Standing.MEMBER and self._plan is not None:
            seats.sort(key=self._plan.members.index)
        return tuple(seats)

    def __len__(self) -> int:
        return len(self.seats(Standing.MEMBER))

    @property
    def num_processes(self) -> int:
        """Workers that are there, on their way, or not known to be gone yet."""
        return len(self._workers)

    @property
    def committed(self) -> int:
        """Committed steps, as far as they are known; between legs they stand still."""
        return self.segment.control.committed if self.has_segment else 0

    async def take_losses(self) -> list[Loss]:
        """The workers that are known to be dead, each told once; their seats are free again.

        Raises RefusedError, or the error of our own code, that kept a worker from starting, unless others train.
        """
        losses = []
        for worker in [worker for worker in self._workers.values() if worker.is_dead]:
            cause, was_member = await worker.find_cause(), worker.standing is Standing.MEMBER
            loss = Loss(worker.seat, cause, was_member=was_member)
            if was_member:
                pulse = self.segment.control.pulse(worker.seat)
                loss = Loss(worker.seat, cause, pulse.stage, pulse.step, pulse.shard)
            losses.append(loss)
            self._workers.pop(worker.seat).close()
        if self._fault is not None and not self.seats(Standing.MEMBER):
            raise self._fault
        return losses

    # Coming and going.

    def start(self, seats: Sequence[int], *, on_ready: Callable[[], None]) -> None:
        """Starts workers in the background."""
        for seat in seats:
            worker = self._spare.take() or Worker.launch(seat, self._order.worker_options)
            worker.seat, self._workers[seat] = seat, worker
            worker.start = asyncio.create_task(self._bring_up(worker, on_ready))

    def keep_spare(self) -> None:
        """Has a worker in reserve, where the node has room, now that nobody is missing."""
        self._spare.prepare()

    async def dismiss(self, seats: Sequence[int]) -> None:
        """Ends workers that are not needed any more, and frees their seats; between legs only, where members are."""
        await asyncio.gather(*map(self._dismiss, seats))

    async def _dismiss(self, seat: int) -> None:
        await self._workers[seat].dismiss()
        del self._workers[seat]  # not before: whoever breaks this off has still to end it

    async def end(self) -> None:
        """Ends all workers and removes the segment; nothing of the group is left but files on disk."""
        self._order.segment.unlink(missing_ok=True)
        await asyncio.gather(self._spare.end(), self.dismiss(list(self._workers)))
        if self.has_segment:  # its memory is the node's again, however long the coordinator stays
            self.has_segment = False
            del self.segment

    async def _bring_up(self, worker: Worker, on_ready: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await worker.hold()
                await self._prepare(worker)
        except Exception as error:
            cause = "" if isinstance(error, DEATHS) else f"start failed: {_one_line(error)}"
            if isinstance(error, TimeoutError):
                cause = f"hung: not ready {START_SECONDS:.0f} s after its start"
            elif cause:
                self._fault = error.cause if isinstance(error, RayTaskError) else error
            await worker.kill(cause)
            await worker.find_cause()
            worker.standing = Standing.FAILED
        else:
            worker.standing = Standing.READY
            on_ready()
        self.request_boundary()
        if worker.end is not None:
            worker.end.add_done_callback(lambda _: self.request_boundary())

    async def _prepare(self, worker: Worker) -> None:
        """Lets a worker read the data, build the model and map the segment."""
        order, actor = self._order, worker.actor
        facts = await actor.load.remote(order.spec_json, capacity=order.capacity)
        if not isinstance(facts, Facts):
            raise RefusedError(facts)
        await self._rehearse(worker)
        async with self._creating:
            if self.has_segment:
                check_alike(facts, self.facts, allow_different_numerics=order.allow_different_numerics)
            else:
                await self._create_segment(actor, facts)
        await actor.join.remote(order.segment, worker.seat)

    async def _rehearse(self, worker: Worker) -> None:
        """Lets a worker load its kernels. What the cache lacks one worker compiles, so that the others can load it."""

        async def rehearse(*, may_compile: bool) -> int | None:
            num_kernels: int | None = await worker.actor.rehearse.remote(may_compile=may_compile)
            return num_kernels

        if await rehearse(may_compile=False) is not None:
            return
        async with self._compiling:
            if await rehearse(may_compile=False) is not None:  # another worker has compiled them
                return
            started = time.monotonic()
            self._report(CompilationStarted(worker.seat))
            num_kernels = await rehearse(may_compile=True)
            self._report(CompilationFinished(num_kernels or 0, time.monotonic() - started))

    async def _create_segment(self, actor: ActorHandle[Any], facts: Facts) -> None:
        """The segment with the newest saved or the first weights, made by the first worker that has loaded them."""
        self._order.segment.unlink(missing_ok=True)  # of a worker that died making it
        await create_segment(
            actor,
            self._order.segment,
            self._order.checkpoints,
            allow_different_numerics=self._order.allow_different_numerics,
            report=self._report,
        )
        self.facts, self.segment = facts, Segment.attach(self._order.segment, facts.shape)
        self.has_segment = True

    # Working together.

    def request_boundary(self) -> None:
        """Makes the members come back after the step under way, and wakes whoever waits for a change."""
        self.changed.set()
        if self.has_segment:
            self.segment.control.stop_requested = True

    def open_plan(self, members: Sequence[int]) -> Plan:
        """Makes these workers the members of the next plan; between legs only.

        What has `changed` since it was cleared is still to be decided upon: then the plan lasts for one step.
        """
        control = self.segment.control
        control.stop_requested = self.changed.is_set()
        for seat in members:
            worker = self._workers[seat]
            if worker.standing is not Standing.MEMBER:
                worker.standing, worker.first_step = Standing.MEMBER, control.committed
                self.paces.forget(seat)
        speeds = [self.paces.speeds.get(seat, 1.0) for seat in members]
        shares = shares_by_speed(speeds, self.facts.shape.num_shards)
        before, self._plan = self._plan, Plan(control.open_plan(), tuple(members), shares)
        if before is None or (before.members, before.shares) != (self._plan.members, self._plan.shares):
            self.paces.restart(self._window(self._plan))
        return self._plan

    async def run(self, until_step: int) -> list[Leg]:
        """Lets the members train alone up to a step; the legs of those that came back."""
        assert self._plan is not None, "open_plan comes first"
        return await self._together("run", until_step, self._plan)

    async def evaluate(self) -> list[dict[int, Scores]] | None:
        """All chunks of the held-out samples under the committed weights; None when a member was lost."""
        assert self._plan is not None, "open_plan comes first"
        answers: list[dict[int, Scores]] = await self._together("evaluate", self._plan)
        return answers if len(answers) == len(self._plan.members) else None

    async def _together(self, method: str, *arguments: object) -> list[Any]:
        """The answers of the members that lived to give one. An error of our own code in one of them is raised.

        Returns when every member has come back or is known to be dead.
        """
        plan = self._plan
        assert plan is not None
        workers = [self._workers[seat] for seat in plan.members]
        self._out, self._vigil = set(plan.members), Vigil(since=time.monotonic())
        watching = asyncio.create_task(self._watch(plan))
        try:
            calls = (self._outcome(worker, getattr(worker.actor, method).remote(*arguments)) for worker in workers)
            answers = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            watching.cancel()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer.cause if isinstance(answer, RayTaskError) else answer
        return [answer for answer in answers if answer is not None]

    async def _outcome(self, worker: Worker, call: Any) -> Any:
        """A member's answer, or None when it is dead; then the others are called back at once."""
        assert worker.end is not None
        answer = asyncio.ensure_future(answer_of(call))
        await asyncio.wait({answer, worker.end}, return_when=asyncio.FIRST_COMPLETED)
        self._out.discard(worker.seat)
        error = answer.exception() if answer.done() else None
        if answer.done() and error is None:
            return answer.result()
        self._abandon()
        if error is not None and not isinstance(error, DEATHS):
            raise error
        await worker.kill("")  # should it live on where nobody can reach it
        await worker.find_cause()
        answer.cancel()
        return None

    @property
    def step_was_redone(self) -> bool:
        """Whether the plan was abandoned with a step under way, which the next plan does again."""
        control, plan = self.segment.control, self._plan
        assert plan is not None
        begun = any(control.pulse(seat).step == control.committed for seat in plan.members)
        return control.epoch != plan.epoch and begun

    def _abandon(self) -> None:
        """Makes the members of the plan come back."""
        control = self.segment.control
        if self._plan is not None and control.epoch == self._plan.epoch:
            control.abandon_plan()
            self._vigil.restart(time.monotonic())

    # Watching over them.

    async def _watch(self, plan: Plan) -> None:
        """Kills members that hang, while the members work; asks for a step boundary when one turns out to be slow."""
        control, shares = self.segment.control, dict(zip(plan.members, plan.shares, strict=True))
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            committed = control.committed
            pulses = {seat: control.pulse(seat) for seat in self._out}
            fresh = [seat for seat in self._out if committed <= self._workers[seat].first_step]
            hung = self._vigil.hung(
                time.monotonic(),
                pulses,
                fresh=fresh,
                median_step_seconds=self._median_step_seconds(committed),
                chunk_steps=EVALUATION_CHUNK * len(plan.members) / self._global_batch_size,
            )
            for seat, cause in hung.items():
                worker = self._workers[seat]
                assert worker.process is not None
                worker.cause = cause
                worker.process.kill()
            if self.paces.look(self._window(plan), shares):
                self.request_boundary()

    def _median_step_seconds(self, committed: int) -> float:
        steps = range(max(1, committed - MEDIAN_STEPS + 1), committed + 1)
        records = (self.segment.control.ring[step % RING_STEPS] for step in steps)
        return statistics.median([float(record[4]) for record, step in zip(records, steps, strict=True)] or [0.0])

    def _window(self, plan: Plan) -> Window:
        control, wait = self.segment.control, PHASES.index("wait")
        sums = {seat: control.phase_seconds[seat] for seat in plan.members}
        busy = {seat: float(seconds.sum() - seconds[wait]) for seat, seconds in sums.items()}
        return Window(time.monotonic(), control.committed, busy)


def _one_line(error: BaseException) -> str:
    known = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(known).__name__}: {' '.join(str(known).split())}"[:300]
