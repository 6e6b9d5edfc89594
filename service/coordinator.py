"""The coordinator of one running job: observe, plan, act. A Ray actor of its own beside the job's workers.

It lets the workers train leg by leg: a leg is a run of steps up to the next evaluation or checkpoint, in which the
workers need nobody. Between legs the committed weights stand still and are evaluated and copied; checkpoints are
written while the next leg runs. Workers come and go between legs: whoever is ready takes part in the next plan, and
asks for a leg's end to do so. A lost worker ends the leg for all; those that are left do the step again at once, and
a new one is started in the background. What happens goes to the service as `News`.

It does not need the service: it goes on to the end without one, and then keeps what became of the run for a while.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from service import __version__
from service.checkpoint_writer import CheckpointWriter, one_line
from service.janitor import leave_beside
from service.jobs import Evaluation, StateReason, WorkerLost, WorkersChanged, WorkerSlow
from service.losses import Losses
from service.membership import Team, decide
from service.node import NodeLostError
from service.observer import Observer
from service.order import Order
from service.outbox import Outbox
from service.resumption import RefusedError
from service.runs import News, Report, RunFailed, RunPaused, RunStarted, RunStopped, RunSucceeded
from service.seats import Standing
from service.worker_group import WorkerGroup
from worker.checkpoint_store import StoreUnreachableError
from worker.plan import Plan
from worker.replica import LegEnd, NumericsChangedError
from worker.spec import JobSpec

MAX_EXPONENT = 700.0  # exp of more is no float64
NEWS_SECONDS = 0.2  # how long a question for news waits for something to happen

logger = logging.getLogger(__name__)


class ClosedError(Exception):
    """The run was closed before it had ended: nobody can follow it any more."""


@dataclass(frozen=True)
class Situation:
    """How a run stands, for a service that has just come to it; `workers` are wanted."""

    version: str
    segment: Path
    capacity: int
    workers: int
    slots_held: int


class _Coordinator:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._spec = JobSpec.model_validate_json(order.spec_json)
        self._group = WorkerGroup(order, self._report)
        self._losses = Losses()
        self._wanted = order.num_workers
        self._pause_of_starts: asyncio.TimerHandle | None = None
        self._members: frozenset[int] = frozenset()  # as last reported
        self._slow: frozenset[int] = frozenset()
        self._has_begun = self._is_cancelled = self._is_pausing = False
        self._evaluated = -1  # the step of the last evaluation
        self._observer: Observer | None = None
        self._steps_redone = 0
        self._outbox = Outbox()
        self._has_news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._departure: asyncio.TimerHandle | None = None
        self._watch_for_service()

    # What the service calls.

    async def start(self) -> Situation:
        """Starts the run, unless it was; its news tell what becomes of it. Raises ClosedError."""
        if self._is_closed:
            raise ClosedError(f"the run of job {self._order.job_id} was closed")
        self._watch_for_service()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        order, held = self._order, self._group.num_processes
        return Situation(__version__, order.segment, order.capacity, self._wanted, held)

    async def news(self, after: int) -> News:
        """What happened after that report, all up to which are stored; waits a moment for something to happen."""
        self._watch_for_service()
        reports, last = self._outbox.take(after)
        if not reports:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_news.wait(), NEWS_SECONDS)
            reports, last = self._outbox.take(after)
        self._has_news.clear()
        held, dropped = self._group.num_processes, self._outbox.num_dropped
        if self._observer is None:
            return News(reports, slots_held=held, last_report=last, reports_dropped=dropped)
        steps, phase_seconds = await self._observer.read()
        progress, redone = replace(self._observer.progress, current_workers=len(self._group)), self._steps_redone
        return News(reports, progress, steps, phase_seconds, redone, held, last, dropped)

    async def scale(self, workers: int) -> None:
        """From the next step boundary on, or when they are ready, so many workers train."""
        self._wanted = workers
        self._group.request_boundary()

    async def pause(self) -> None:
        """Stops at the next step boundary and saves what is committed there."""
        self._is_pausing = True
        self._group.request_boundary()

    async def cancel(self) -> None:
        """Stops at the next step boundary."""
        self._is_cancelled = True
        self._group.request_boundary()

    async def close(self) -> None:
        """Ends the run, its workers and its segment."""
        self._is_closed = True
        self._watch_for_service()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._group.end()  # the cancellation may have come in the midst of it

    # The run.

    async def _run(self) -> None:
        try:
            if self._order.token:  # on a machine where nobody else would clean up
                await asyncio.to_thread(leave_beside, self._order.segment)
            ended = await self._train()
            if self._observer is not None:
                await self._observer.look()  # once more, while there is something to be seen
            self._report(ended)
        except RefusedError as refused:
            self._report(RunFailed(StateReason.INVALID_JOB, str(refused)))
        except NumericsChangedError as changed:
            self._report(RunFailed(StateReason.NUMERICS_CHANGED, str(changed)))
        except StoreUnreachableError as error:
            self._report(RunFailed(StateReason.CHECKPOINT_FAILED, f"the checkpoints cannot be read: {error}"))
        except Exception as error:
            logger.exception("job %s", self._order.job_id)
            self._report(RunFailed(StateReason.INTERNAL, one_line(error)))
        finally:
            await self._group.end()
            if self._observer is not None:
                self._observer.let_go()
            self._watch_for_service()

    async def _train(self) -> Report:
        """From the first or the newest saved step to the last, and how it ended."""
        group = self._group
        writer = CheckpointWriter(self._spec, self._order, group, report=self._report)
        while True:
            group.changed.clear()
            verdict = await self._take_losses()
            if verdict is not None:
                return verdict
            if self._is_cancelled:
                return RunStopped()
            with suppress(NodeLostError):  # then its workers are losses, and others have the state
                if self._is_pausing:
                    return await self._pause(writer)
                if not await self._gather():
                    await group.changed.wait()
                elif (end := await self._leg(writer)) is not None:
                    return end

    async def _leg(self, writer: CheckpointWriter) -> Report | None:
        """What is due at the step where the plan begins, and the steps up to the next boundary; the end, if it is."""
        group, total = self._group, self._spec.training.max_steps
        if self._spec.checkpoint.every_steps:
            writer.prepare()
        committed = group.committed
        if self._evaluated != committed and self._is_due(committed, self._spec.evaluation.every_steps):
            evaluation = await self._evaluate()
            if evaluation is None:
                return None
            self._report(evaluation)
            self._evaluated = committed
        if committed == total:
            return await self._finish(writer)
        legs = await group.run(self._next_boundary(committed))
        self._steps_redone += group.step_was_redone
        broken = [leg for leg in legs if leg.end is LegEnd.NON_FINITE]
        if broken:
            return RunFailed(StateReason.NON_FINITE, broken[0].message)
        before, committed = committed, group.committed
        if before < committed < total and self._is_due(committed, self._spec.checkpoint.every_steps):
            await writer.start(committed)
        return None

    async def _take_losses(self) -> RunFailed | None:
        """Tells of the workers that were lost; the verdict where that is the job's own fault."""
        group = self._group
        losses = await group.take_losses()
        if not losses:
            return None
        step = group.committed
        for loss in losses:
            self._report(WorkerLost(loss.seat, step, loss.cause, loss.stage))
        self._members = frozenset()  # the job recovers: it is to be told that it runs again
        verdict = self._losses.note(losses, committed=step, has_members=len(group) > 0)
        if pause := self._losses.pause_seconds:
            if self._pause_of_starts is not None:
                self._pause_of_starts.cancel()
            self._pause_of_starts = asyncio.get_running_loop().call_later(pause, self._start_again)
        return verdict

    def _start_again(self) -> None:
        self._pause_of_starts = None
        self._group.request_boundary()

    async def _gather(self) -> bool:
        """Decides who takes part, starts who is missing, ends who is not needed; whether the next leg can begin."""
        group = self._group
        if group.has_lost_all:
            await group.start_over()
        await group.rescue()
        team = Team(
            capacity=self._order.capacity,
            wanted=self._wanted,
            members=group.seats(Standing.MEMBER),
            ready=group.seats(Standing.READY),
            starting=group.seats(Standing.STARTING),
            at_least=1 if self._has_begun else self._order.min_workers,
            may_start=self._pause_of_starts is None,
        )
        decided = decide(team)
        await group.start(decided.start, on_ready=self._losses.note_start)
        await group.dismiss(decided.leave)
        if not group.can_go_on(decided.members):
            return False
        if self._observer is not None and not group.nodes.are_level:
            await self._observer.look()
        self._tell(await group.open_plan(decided.members), decided.reason)
        if len(decided.members) >= self._wanted:
            group.keep_spare()
        return True

    def _tell(self, plan: Plan, reason: str) -> None:
        """Tells of a plan what is new in it."""
        group, committed = self._group, self._group.committed
        if self._observer is None:
            self._observer = Observer(group.nodes, self._spec, committed=committed)
        if self._has_begun and reason:
            self._report(WorkersChanged(len(plan.members), committed, reason))
        if self._members != frozenset(plan.members):
            self._report(RunStarted(len(plan.members), group.facts.shape.num_parameters, committed))
        for seat in sorted(group.paces.speeds.keys() - self._slow):
            shards = plan.shares[plan.place_of(seat)]
            self._report(WorkerSlow(seat, committed, 1 / group.paces.speeds[seat], shards))
        self._slow, self._members, self._has_begun = frozenset(group.paces.speeds), frozenset(plan.members), True

    async def _evaluate(self) -> Evaluation | None:
        """The committed weights on the held-out samples; sums over chunks in their order, whoever computed them."""
        group = self._group
        answers = await group.evaluate()
        if answers is None:
            return None
        by_chunk = {chunk: scores for answer in answers for chunk, scores in answer.items()}
        chunks, objective = [by_chunk[chunk] for chunk in sorted(by_chunk)], group.facts.objective
        num_losses = sum(scores.num_losses for scores in chunks)
        loss = math.fsum(scores.loss_sum for scores in chunks) / num_losses
        return Evaluation(
            group.committed,
            loss,
            accuracy=sum(scores.num_correct for scores in chunks) / num_losses if objective.has_classes else None,
            perplexity=math.exp(min(loss, MAX_EXPONENT)) if objective.is_per_token else None,
        )

    async def _pause(self, writer: CheckpointWriter) -> RunPaused:
        """The end of a run that goes on one day, from its newest checkpoint."""
        if not self._has_begun:
            return RunPaused(self._group.committed)
        await writer.start(self._group.committed)
        await writer.wait()
        return RunPaused(self._group.committed)

    async def _finish(self, writer: CheckpointWriter) -> Report:
        """The last checkpoint is the model."""
        published = await writer.finish(self._spec.training.max_steps)
        if published is None:
            message = f"the trained model could not be written to {self._order.checkpoints}; see the job's events"
            return RunFailed(StateReason.CHECKPOINT_FAILED, message)
        return RunSucceeded(published.weights_digest, published.model)

    def _is_due(self, step: int, every_steps: int) -> bool:
        last = step == self._spec.training.max_steps
        return last or bool(every_steps and step and step % every_steps == 0)

    def _next_boundary(self, step: int) -> int:
        """The next step after which something is due."""
        total = self._spec.training.max_steps
        periods = (self._spec.evaluation.every_steps, self._spec.checkpoint.every_steps)
        return min(total, *((step // period + 1) * period if period else total for period in periods))

    def _report(self, report: Report) -> None:
        self._outbox.add(report)
        self._has_news.set()

    def _watch_for_service(self) -> None:
        """The service was heard of just now: gives it the whole time again."""
        if self._departure is not None:
            self._departure.cancel()
        seconds = self._order.keep_seconds
        self._departure = asyncio.get_running_loop().call_later(seconds, self._leave)

    def _leave(self) -> None:
        """Ends this process, of which nobody wants to know any more, unless its run is under way."""
        if self._task is not None and not self._task.done():
            self._watch_for_service()
            return
        logger.warning("job %s: nobody asked what became of its run; it is given up", self._order.job_id)
        ray.kill(ray.get_runtime_context().current_actor)


CoordinatorActor = ray.remote(num_cpus=0, max_restarts=0)(_Coordinator)
