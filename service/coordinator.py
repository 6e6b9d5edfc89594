"""The coordinator of one running job: observe, plan, act. A Ray actor of its own beside the job's workers.

It starts the workers and lets them train leg by leg: a leg is a run of steps up to the next evaluation or checkpoint,
in which the workers need nobody. Between legs the committed weights stand still and are evaluated and copied;
checkpoints are written while the next leg runs. A lost worker ends the leg for all; it is replaced, and the next leg
goes on from the last committed step. What happens goes to the service as `News`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from dataclasses import replace

import ray

from service.checkpoint_writer import CheckpointWriter, one_line
from service.jobs import Evaluation, StateReason, WorkerLost
from service.observer import SegmentObserver
from service.runs import News, Report, RunFailed, RunStarted, RunStopped, RunSucceeded
from service.worker_group import Order, RefusedError, WorkerGroup, WorkersLostError
from worker.objective import Scores
from worker.replica import Leg, LegEnd
from worker.spec import JobSpec

MAX_LOSSES_WITHOUT_A_STEP = 3  # a job that kills its workers again and again must not do so for ever
MAX_EXPONENT = 700.0  # exp of more is no float64
NEWS_SECONDS = 0.2  # how long a question for news waits for something to happen

logger = logging.getLogger(__name__)


class _Coordinator:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._spec = JobSpec.model_validate_json(order.spec_json)
        self._group: WorkerGroup | None = None
        self._observer: SegmentObserver | None = None
        self._is_cancelled = False
        self._reports: list[Report] = []
        self._has_news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # What the service calls.

    async def start(self) -> None:
        """Starts the run; its news tell what becomes of it."""
        self._task = asyncio.create_task(self._run())

    async def news(self) -> News:
        """What happened since the last call; waits a moment for something to happen."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_news.wait(), NEWS_SECONDS)
        self._has_news.clear()
        reports, self._reports = tuple(self._reports), []
        if self._observer is None:
            return News(reports)
        steps, phase_seconds = self._observer.read()
        workers = 0 if self._group is None else len(self._group)
        return News(reports, replace(self._observer.progress, current_workers=workers), steps, phase_seconds)

    async def cancel(self) -> None:
        """Stops at the next step boundary."""
        self._is_cancelled = True
        if self._group is not None:
            self._group.segment.control.stop_requested = True

    async def close(self) -> None:
        """Ends the run, its workers and its segment."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # The run.

    async def _run(self) -> None:
        try:
            self._report(await self._train())
        except RefusedError as refused:
            self._report(RunFailed(StateReason.INVALID_JOB, str(refused)))
        except WorkersLostError as lost:
            self._report(RunFailed(StateReason.TOO_MANY_FAILURES, str(lost)))
        except Exception as error:
            logger.exception("job %s", self._order.job_id)
            self._report(RunFailed(StateReason.INTERNAL, one_line(error)))
        finally:
            if self._group is not None:
                self._group.end()

    async def _train(self) -> Report:
        """From the first or the newest saved step to the last, and how it ended."""
        self._group = group = await self._start()
        control = group.segment.control
        self._observer = SegmentObserver(group.segment, self._spec)
        self._started(group)
        writer = CheckpointWriter(self._spec, self._order, group)
        total, losses, evaluated = self._spec.training.max_steps, 0, -1
        while not self._is_cancelled:
            committed = control.committed
            try:
                if evaluated != committed and self._is_due(committed, self._spec.evaluation.every_steps):
                    self._report(await self._evaluate(group))
                    evaluated = committed
                if committed == total:
                    return await self._finish(writer)
                legs: list[Leg] = await group.run(self._next_boundary(committed))
            except WorkersLostError as lost:
                losses = 1 if control.committed > committed else losses + 1
                await self._replace(group, lost, losses)
                continue
            broken = [leg for leg in legs if leg.end is LegEnd.NON_FINITE]
            if broken:
                return RunFailed(StateReason.NON_FINITE, broken[0].message)
            if control.committed < total and self._is_due(control.committed, self._spec.checkpoint.every_steps):
                await writer.start(self._report)
        return RunStopped()

    async def _start(self) -> WorkerGroup:
        losses = 0
        while True:
            try:
                return await WorkerGroup.start(self._order, self._report)
            except WorkersLostError as lost:
                losses += 1
                self._lost(lost, 0)
                if losses > MAX_LOSSES_WITHOUT_A_STEP:
                    raise

    def _started(self, group: WorkerGroup) -> None:
        self._report(RunStarted(len(group), group.facts.shape.num_parameters, group.segment.control.committed))

    def _lost(self, lost: WorkersLostError, step: int) -> None:
        for rank in lost.ranks:
            self._report(WorkerLost(rank, step, lost.cause))

    async def _evaluate(self, group: WorkerGroup) -> Evaluation:
        """The committed weights on the held-out samples; sums over chunks in their order, whoever computed them."""
        answers: list[dict[int, Scores]] = await group.all("evaluate")
        by_chunk = {chunk: scores for answer in answers for chunk, scores in answer.items()}
        chunks, objective = [by_chunk[chunk] for chunk in sorted(by_chunk)], group.facts.objective
        num_losses = sum(scores.num_losses for scores in chunks)
        loss = math.fsum(scores.loss_sum for scores in chunks) / num_losses
        return Evaluation(
            group.segment.control.committed,
            loss,
            accuracy=sum(scores.num_correct for scores in chunks) / num_losses if objective.has_classes else None,
            perplexity=math.exp(min(loss, MAX_EXPONENT)) if objective.is_per_token else None,
        )

    async def _replace(self, group: WorkerGroup, lost: WorkersLostError, losses: int) -> None:
        """New workers for lost ones; `losses` is how often in a row this happened without a step between."""
        while True:
            self._lost(lost, group.segment.control.committed)
            if losses > MAX_LOSSES_WITHOUT_A_STEP:
                raise lost
            try:
                await group.replace(lost.ranks)
                break
            except WorkersLostError as again:
                lost, losses = again, losses + 1
        self._started(group)

    async def _finish(self, writer: CheckpointWriter) -> Report:
        """The last checkpoint is the model."""
        await writer.start(self._report)
        published = await writer.wait()
        if published is None:
            message = f"the trained model could not be written to {self._order.checkpoints}; see the job's events"
            return RunFailed(StateReason.INTERNAL, message)
        return RunSucceeded(published.weights_digest, str(published.model))

    def _is_due(self, step: int, every_steps: int) -> bool:
        last = step == self._spec.training.max_steps
        return last or bool(every_steps and step and step % every_steps == 0)

    def _next_boundary(self, step: int) -> int:
        """The next step after which something is due."""
        total = self._spec.training.max_steps
        periods = (self._spec.evaluation.every_steps, self._spec.checkpoint.every_steps)
        return min(total, *((step // period + 1) * period if period else total for period in periods))

    def _report(self, report: Report) -> None:
        self._reports.append(report)
        self._has_news.set()


CoordinatorActor = ray.remote(num_cpus=0, max_restarts=0)(_Coordinator)
