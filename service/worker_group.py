"""The worker actors of one job, by seat, and the nodes that they are on.

Workers are started in the background and take part from a step boundary on. A death is an answer here, not an
accident: whatever the others were doing under the plan is abandoned at once, they come back, and the lost one is
known to be dead, or lost with its node, before anybody goes on. `take_losses` tells what was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import RayTaskError

from service.lookout import Lookout, pulse_of
from service.losses import Loss
from service.node import Node, NodeLostError
from service.nodes import Nodes
from service.order import Order
from service.placement import free_slots, place, preferring
from service.runs import Report
from service.seats import DEATHS, Standing, Worker, answer_of, node_by_node, plan_over
from service.spare import Spare
from service.startup import Startup
from service.vigil import Paces
from worker.objective import Scores
from worker.plan import Plan, shares_by_speed
from worker.reduce.segment import NOTHING
from worker.replica import Facts, Leg, LegEnd
from worker.spec import JobSpec

START_SECONDS = 300.0  # placing it, reading the data, compiling kernels, touching the segment, on a busy machine
MAX_GIVE_UPS = 3  # of plans in a row, without a step and a loss: the members on different nodes cannot reach each other


class WorkerGroup:
    """All workers of a job. `end` ends them; `changed` is set when somebody should decide anew who takes part."""

    def __init__(self, order: Order, report: Callable[[Report], None]) -> None:
        self._order = order
        self._workers: dict[int, Worker] = {}
        self.nodes = Nodes(order.node, order.segment)
        self.startup = Startup(order, report)
        self._plan: Plan | None = None
        self._plan_nodes: tuple[Node, ...] = ()
        self._epoch = 0  # of the newest plan; an abandoned one says the number behind it
        self._is_abandoned = False
        self._give_ups: list[str] = []  # why plans were given up in a row, without a loss and without a step
        self._fault: Exception | None = None  # why a worker that lives could not start
        self._spare = Spare(order.worker_options, place=order.node)
        training = JobSpec.model_validate_json(order.spec_json).training
        self._lookout = Lookout(self.nodes, lambda: self.furthest, global_batch_size=training.global_batch_size)
        self.changed = asyncio.Event()

    # Who is there.

    def seats(self, standing: Standing) -> tuple[int, ...]:
        """Workers that live and stand so: first those whose nodes have the job's state; among them members in the
        order of the plan, others the oldest first."""
        workers = [w for w in self._workers.values() if w.standing is standing and not w.is_dead]
        if standing is Standing.MEMBER and self._plan is not None:
            members = self._plan.members
            workers.sort(key=lambda worker: members.index(worker.seat))
        bearing = self.nodes.bearing()
        return tuple(worker.seat for worker in sorted(workers, key=lambda worker: worker.node not in bearing))

    def __len__(self) -> int:
        return len(self.seats(Standing.MEMBER))

    @property
    def num_processes(self) -> int:
        """Workers that are there, on their way, or not known to be gone yet."""
        return len(self._workers)

    @property
    def paces(self) -> Paces:
        """Who is slow."""
        return self._lookout.paces

    @property
    def facts(self) -> Facts:
        """What is known of the job since the first worker is up."""
        return self.startup.facts

    @property
    def furthest(self) -> Node:
        """A node with the committed state: one of the plan's, as far as any is left that has one."""
        left = [node for node in self._plan_nodes if not node.lost and node.committed != NOTHING]
        return max(left or self.nodes.bearing() or [self.nodes.here], key=lambda node: node.committed)

    @property
    def committed(self) -> int:
        """Committed steps, as far as they are known; between legs they stand still."""
        return max(self.furthest.committed, 0)

    async def take_losses(self) -> list[Loss]:
        """The workers that are known to be dead, each told once; their seats are free again.

        Raises RefusedError, or the error of our own code, that kept a worker from starting, unless others train.
        """
        losses = []
        if dead := [worker for worker in self._workers.values() if worker.is_dead]:
            await self.nodes.look()
        for worker in dead:
            cause, was_member = await worker.find_cause(), worker.standing is Standing.MEMBER
            loss = Loss(worker.seat, cause, was_member=was_member)
            if was_member and worker.node is not None and not worker.node.lost:
                pulse = pulse_of(worker)
                loss = Loss(worker.seat, cause, pulse.stage, pulse.step, pulse.shards)
            losses.append(loss)
            self._workers.pop(worker.seat).close()
        if self._fault is not None and not self.seats(Standing.MEMBER):
            raise self._fault
        return losses

    # Who has the state.

    def can_go_on(self, seats: Sequence[int]) -> bool:
        """Whether one of these workers has the job's state on its node, for the others to copy."""
        bearing = self.nodes.bearing()
        return any(self._workers[seat].node in bearing for seat in seats)

    def stranded(self) -> tuple[int, ...]:
        """Workers that can do nothing: the state is on nodes where no worker is, nor any on its way there."""
        places = self.nodes.ids(self.nodes.bearing())
        if not places or any(worker.place in places and not worker.is_dead for worker in self._workers.values()):
            return ()
        return self.seats(Standing.MEMBER) + self.seats(Standing.READY)

    async def rescue(self) -> None:
        """Where there are stranded workers, fetches the state to those on the coordinator's node, or ends them."""
        stranded, here = self.stranded(), self.nodes.here
        if any(self._workers[seat].node is here for seat in stranded):
            await here.copy_from(max(self.nodes.bearing(), key=lambda node: node.committed))
        else:
            await self.dismiss(stranded)

    @property
    def has_lost_all(self) -> bool:
        """Whether the job's state was there and is no more, on any node."""
        return self.startup.has_segment and not self.nodes.has_state

    async def start_over(self) -> None:
        """Ends everybody, so that the next ones begin with the newest checkpoint."""
        self.startup.has_segment, self._plan, self._plan_nodes = False, None, ()
        await self.dismiss(list(self._workers))
        await self.nodes.begin_anew()

    # Coming and going.

    async def start(self, seats: Sequence[int], *, on_ready: Callable[[], None]) -> None:
        """Starts workers in the background."""
        if not seats:
            return
        for seat, node_id in zip(seats, await self._places(len(seats)), strict=True):
            self.nodes.prepare(node_id)
            worker = self._spare.take(node_id)
            if worker is None:
                options = dict(self._order.worker_options)
                if self._order.token:
                    options["scheduling_strategy"] = preferring(node_id)
                worker = Worker.launch(seat, options, place=node_id)
            worker.seat, self._workers[seat] = seat, worker
            worker.start = asyncio.create_task(self._bring_up(worker, on_ready))

    async def _places(self, count: int) -> tuple[str, ...]:
        """Nodes for so many more workers, by id."""
        if not self._order.token:
            return (self._order.node,) * count
        free = dict(await asyncio.to_thread(free_slots))
        for worker in self._workers.values():
            if worker.process is None or not worker.takes_slot:  # Ray does not count it yet, or never
                free[worker.place] = free.get(worker.place, 0) - 1
        for node_id in self.nodes.lost_ids:  # Ray may know of it later
            free[node_id] = 0
        return place(count, free, home=self.nodes.ids(self.nodes.bearing()) or [self._order.node])

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
        """Ends all workers and removes the segments; nothing of the group is left but files on disk."""
        await self.nodes.here.clear()
        await asyncio.gather(self._spare.end(), self.dismiss(list(self._workers)))
        await self.nodes.end()

    async def _bring_up(self, worker: Worker, on_ready: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await worker.hold(self.nodes)
                await self.startup.prepare(worker)
        except Exception as error:
            cause = "" if isinstance(error, (*DEATHS, NodeLostError)) else f"start failed: {_one_line(error)}"
            if isinstance(error, TimeoutError):
                cause = f"hung: not ready {START_SECONDS:.0f} s after its start"
                if worker.process is None and self._order.token:
                    cause = f"no room: no node had a slot for it for {START_SECONDS:.0f} s"
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

    # Working together.

    def request_boundary(self) -> None:
        """Makes the members come back after the step under way, and wakes whoever waits for a change."""
        self.changed.set()
        self.nodes.request_stop()

    async def open_plan(self, members: Sequence[int]) -> Plan:
        """Makes these workers the members of the next plan, those of a node one after the other; between legs only.

        What has `changed` since it was cleared is still to be decided upon: then the plan lasts for one step.
        """
        workers, committed = node_by_node([self._workers[seat] for seat in members]), self.committed
        for worker in workers:
            if worker.standing is not Standing.MEMBER:
                worker.standing, worker.first_step = Standing.MEMBER, committed
                self.paces.forget(worker.seat)
        self._epoch += 2
        shares = shares_by_speed([self.paces.speeds.get(w.seat, 1.0) for w in workers], self.facts.shape.num_shards)
        before, self._plan = self._plan, plan_over(workers, shares, epoch=self._epoch)
        self._plan_nodes = tuple(dict.fromkeys(node for worker in workers if (node := worker.node) is not None))
        self._is_abandoned = False
        await self.nodes.open_plan(self._epoch, self._plan_nodes)
        if self.changed.is_set():
            self.nodes.request_stop()
        if before is None or (before.members, before.shares) != (self._plan.members, self._plan.shares):
            await self.nodes.look()
            self._lookout.begin_paces(workers)
            await self.nodes.release([w.place for w in self._workers.values()], committed=self.committed)
        return self._plan

    async def run(self, until_step: int) -> list[Leg]:
        """Lets the members train alone up to a step; the legs of those that came back."""
        assert self._plan is not None, "open_plan comes first"
        return await self._together("run", until_step, self._plan)

    async def evaluate(self) -> list[dict[int, Scores]] | None:
        """All chunks of the held-out samples under the committed weights; None when the plan was abandoned."""
        assert self._plan is not None, "open_plan comes first"
        answers: list[dict[int, Scores] | Leg] = await self._together("evaluate", self._plan)
        scores = [answer for answer in answers if not isinstance(answer, Leg)]
        return scores if len(scores) == len(self._plan.members) else None

    async def _together(self, method: str, *arguments: object) -> list[Any]:
        """The answers of the members that lived to give one. An error of our own code in one of them is raised.

        Returns when every member has come back or is known to be dead.
        """
        plan, committed = self._plan, self.committed
        assert plan is not None
        workers = [self._workers[seat] for seat in plan.members]
        self._lookout.begin(workers)
        watching = asyncio.create_task(self._lookout.watch(plan, workers, on_change=self.request_boundary))
        try:
            calls = (self._outcome(worker, getattr(worker.actor, method).remote(*arguments)) for worker in workers)
            answers = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            watching.cancel()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer.cause if isinstance(answer, RayTaskError) else answer
        await self.nodes.look()
        if not self._is_abandoned or any(worker.is_dead for worker in workers) or self.committed > committed:
            self._give_ups.clear()
        elif len(self._give_ups) >= MAX_GIVE_UPS:
            await self._part(workers)
        return [answer for answer in answers if answer is not None]

    async def _outcome(self, worker: Worker, call: Any) -> Any:
        """A member's answer, or None when it is dead; then the others are called back at once, as when it gave up."""
        assert worker.end is not None
        answer = asyncio.ensure_future(answer_of(call))
        await asyncio.wait({answer, worker.end}, return_when=asyncio.FIRST_COMPLETED)
        self._lookout.note_return(worker)
        error = answer.exception() if answer.done() else None
        if answer.done() and error is None:
            result = answer.result()
            if isinstance(result, Leg) and result.end is LegEnd.PLAN_CHANGED:
                self._abandon(result.message)
            return result
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
        plan, committed = self._plan, self.committed
        assert plan is not None
        workers = [self._workers[seat] for seat in plan.members]
        reached = [worker for worker in workers if worker.node is not None and not worker.node.lost]
        return self._is_abandoned and any(pulse_of(worker).step == committed for worker in reached)

    def _abandon(self, why: str = "") -> None:
        """Makes the members of the plan come back."""
        if self._plan is not None and not self._is_abandoned:
            self._is_abandoned = True
            self._give_ups.append(why)
            self.nodes.abandon_plan(self._plan.epoch)
            self._lookout.note_abandonment()
        elif self._give_ups:
            self._give_ups[-1] = self._give_ups[-1] or why  # the first to come back need not know

    async def _part(self, workers: Sequence[Worker]) -> None:
        """Ends the members that cannot reach the others: those on other nodes than the furthest."""
        home, why = self.furthest, next(filter(None, self._give_ups), "the plan was given up")
        self._give_ups.clear()
        away = [worker for worker in workers if worker.node is not home]
        await asyncio.gather(*(worker.kill(f"out of reach: {why}") for worker in away))


def _one_line(error: BaseException) -> str:
    known = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(known).__name__}: {' '.join(str(known).split())}"[:300]
