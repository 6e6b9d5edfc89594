"""Which jobs start, with how many workers, and what the others are told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs import Job, JobState, StateReason
from service.scheduler import ClusterView, Launch, Running, Wait, Waiting, plan
from worker.spec import parse_spec


def make(
    job_id: str, low: int, high: int | None = None, state: JobState = JobState.QUEUED, priority: int = 0
) -> Waiting:
    parts = {"workers": {"min": low, "max": high or low}, "priority": priority}
    training = {"global_batch_size": 64, "shards": 64}
    spec = parse_spec({"model": {"mlp": {}}, "data": {"digits": {}}, "training": training} | parts)
    return Waiting(Job(job_id, spec, create_time=0.0, state=state))


def view(free: int, slots: int = 4) -> ClusterView:
    return ClusterView(num_slots=slots, free_slots=free)


def test_nothing_waits_and_nothing_starts() -> None:
    decided = plan(0.0, [], view(4))
    assert (decided.launches, dict(decided.waits), decided.next_time) == ((), {}, None)


def test_a_job_gets_what_is_free_up_to_its_maximum() -> None:
    assert plan(0.0, [make("a", 1, 8)], view(3)).launches == (Launch("a", 3),)
    assert plan(0.0, [make("a", 1, 2)], view(3)).launches == (Launch("a", 2),)


def test_jobs_start_in_the_order_of_their_submission() -> None:
    decided = plan(0.0, [make("a", 1), make("b", 1), make("c", 1)], view(2))
    assert decided.launches == (Launch("a", 1), Launch("b", 1))
    assert decided.waits == {"c": Wait(StateReason.WAITING_FOR_WORKERS, "waits for 1 worker: 0 of 4 free")}


def test_a_job_that_does_not_fit_says_what_it_waits_for() -> None:
    decided = plan(0.0, [make("a", 2)], view(1))
    assert decided.waits == {"a": Wait(StateReason.WAITING_FOR_WORKERS, "waits for 2 workers: 1 of 4 free")}


def test_nobody_overtakes() -> None:
    decided = plan(0.0, [make("big", 4), make("small", 1)], view(3))
    assert decided.launches == ()
    assert decided.waits["small"] == Wait(StateReason.WAITING_FOR_EARLIER_JOBS, "waits behind job big")


def test_recovering_jobs_come_first() -> None:
    decided = plan(0.0, [make("queued", 2), make("recovering", 2, state=JobState.RECOVERING)], view(2))
    assert decided.launches == (Launch("recovering", 2),)
    assert decided.waits["queued"].message == "waits for 2 workers: 0 of 4 free"


def test_a_job_that_waits_before_a_new_attempt_keeps_its_workers_and_stops_nobody() -> None:
    again = Waiting(make("again", 2, state=JobState.RECOVERING).job, not_before=10.0)
    decided = plan(9.0, [again, make("a", 2), make("b", 1)], view(4))
    assert decided.launches == (Launch("a", 2),)
    assert decided.waits["again"].message == "waits a moment before it is started again"
    assert decided.next_time == 10.0
    assert plan(10.0, [again], view(4)).launches == (Launch("again", 2),)


def test_a_job_that_is_too_big_for_todays_cluster_stops_nobody() -> None:
    decided = plan(0.0, [make("huge", 9), make("a", 1)], view(4))
    assert decided.launches == (Launch("a", 1),)
    assert decided.waits["huge"].message == "waits for 9 workers: the cluster has 4"


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.booleans()), max_size=12),
    st.integers(0, 8),
    st.integers(1, 8),
)
def test_a_plan_never_gives_out_more_than_there_is_and_forgets_nobody(
    wanted: list[tuple[int, int, bool]], free: int, slots: int
) -> None:
    states = {True: JobState.RECOVERING, False: JobState.QUEUED}
    jobs = [make(f"job-{n}", low, low + more, states[lost]) for n, (low, more, lost) in enumerate(wanted)]
    decided = plan(0.0, jobs, ClusterView(slots, min(free, slots)))
    specs = {waiting.job.job_id: waiting.job.spec.workers for waiting in jobs}
    assert sum(launch.workers for launch in decided.launches) <= min(free, slots)
    assert all(specs[one.job_id].min <= one.workers <= specs[one.job_id].max for one in decided.launches)
    assert {launch.job_id for launch in decided.launches} | set(decided.waits) == set(specs)
    assert not {launch.job_id for launch in decided.launches} & set(decided.waits)


# --- Priority: who runs, who waits, who makes way -------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Jobs are "name min-max priority", running ones "... target[/slots]" or "... leaving slots"; 4 slots."""

    what: str
    running: str
    waiting: str
    expected: str


ROWS = [
    Row("a job that runs grows where there is room", "a 1-4 0 1", "", "a=4"),
    Row("it has what it can use", "a 1-2 0 2", "", ""),
    Row("the higher one grows first", "a 1-4 0 1, b 1-4 5 1", "", "b=3"),
    Row("among equals the older one grows first", "a 1-4 0 1, b 1-4 0 1", "", "a=3"),
    Row("nobody grows while somebody waits", "a 1-4 0 3", "b 2-2 0", "b waits"),
    Row("an equal one does not take", "a 1-4 0 4", "b 1-1 0", "b waits"),
    Row("a higher one takes what is above the fewest, as much as it needs", "a 1-4 0 4", "b 2-2 5", "a=2 b waits"),
    Row("a lower one does not take", "a 1-4 5 4", "b 1-1 0", "b waits"),
    Row("it waits for what is coming already", "a 1-4 0 2/4", "b 2-2 5", "b waits"),
    Row("and takes only what is missing beyond that", "a 1-4 0 3/4", "b 2-2 5", "a=2 b waits"),
    Row("a leaving one is not asked again", "a 4-4 0 leaving 4", "b 2-2 5", "b waits"),
    Row("where shrinking is not enough, one yields", "a 2-4 0 4", "b 3-3 5", "a! b waits"),
    Row("the lowest yields", "a 2-2 1 2, b 2-2 0 2", "c 2-2 5", "b! c waits"),
    Row("among equals the youngest yields", "a 2-2 0 2, b 2-2 0 2", "c 2-2 5", "b! c waits"),
    Row("as few as possible yield", "a 1-1 0 1, b 3-3 1 3", "c 3-3 5", "b! c waits"),
    Row("shrinking comes before yielding", "a 1-3 1 3, b 1-1 0 1", "c 2-2 5", "a=1 c waits"),
    Row("nobody yields in vain", "a 2-2 5 2, b 2-2 0 2", "c 3-3 5", "c waits"),
    Row("a preempted one comes back", "a 2-2 5 2", "b 2-2 0", "b:2"),
    Row("a job that grows takes from lower ones", "a 1-4 0 3, b 1-4 5 1", "", "a=1"),
    Row("but not from equal ones", "a 1-4 5 3, b 1-4 5 1", "", ""),
    Row("nor what is on its way already", "a 1-4 0 1/3, b 1-4 5 1", "", ""),
    Row("the higher one starts first", "", "a 3-3 0, b 3-3 5", "b:3 a waits"),
    Row("and the recovering one among equals", "", "a 3-3 0, b 3-3 0 recovering", "b:3 a waits"),
    Row("priority counts more than recovering", "", "a 3-3 5, b 3-3 0 recovering", "a:3 b waits"),
    Row("a job that was scaled down shrinks", "a 1-4 0 4 wants 2", "", "a=2"),
    Row("a job that was scaled up grows", "a 1-2 0 2 wants 4", "", "a=4"),
    Row("a job that was scaled starts so", "", "a 2-2 0 wants 1", "a:1"),
]


def job_of(words: list[str]) -> Job:
    low, high = map(int, words[1].split("-"))
    state = JobState.RECOVERING if "recovering" in words else JobState.QUEUED
    job = make(words[0], low, high, state, priority=int(words[2])).job
    return replace(job, wanted_workers=int(words[-1])) if "wants" in words else job


def parsed(text: str) -> list[list[str]]:
    return [one.split() for one in text.split(", ") if one]


def running_of(words: list[str]) -> Running:
    if words[3] == "leaving":
        return Running(job_of(words), int(words[4]), int(words[4]), is_leaving=True)
    target, _, slots = words[3].partition("/")
    return Running(job_of(words), int(target), int(slots or target))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_priority_decides_who_gets_workers(row: Row) -> None:
    running = [running_of(words) for words in parsed(row.running)]
    waiting = [Waiting(job_of(words)) for words in parsed(row.waiting)]
    decided = plan(0.0, waiting, view(4 - sum(one.slots for one in running)), running)
    told = [f"{one.job_id}={one.workers}" for one in decided.scales]
    told += [f"{one.job_id}!" for one in decided.preemptions]
    told += [f"{one.job_id}:{one.workers}" for one in decided.launches]
    assert " ".join([*told, *(f"{job_id} waits" for job_id in decided.waits)]) == row.expected


def test_whoever_makes_way_is_told_for_whom() -> None:
    waiting = [make("high", 3, priority=5)]
    decided = plan(0.0, waiting, view(0), [Running(make("low", 2, 4).job, 4, 4)])
    assert [one.reason for one in decided.preemptions] == ["job high of priority 5 needs workers"]
    assert decided.waits["high"].message == "waits for 3 workers: 0 of 4 free, 4 about to be"
    decided = plan(0.0, [make("high", 2, priority=5)], view(0), [Running(make("low", 2, 4).job, 4, 4)])
    assert [one.reason for one in decided.scales] == ["job high of priority 5 needs workers"]


class World:
    """A cluster that does at once, or a step later, what the plans say."""

    def __init__(self, slots: int, jobs: list[Job]) -> None:
        self.slots, self.jobs = slots, {job.job_id: job for job in jobs}  # oldest first
        self.left = {job.job_id: 3 for job in jobs}  # turns of work that a job needs
        self.running: dict[str, Running] = {}
        self.starts: list[str] = []

    def turn(self) -> None:
        """Plans, checks the plan, carries it out; then everyone works, and those who are done go."""
        held = sum(one.slots for one in self.running.values())
        waiting = [Waiting(job) for job_id, job in self.jobs.items() if job_id not in self.running]
        running = [self.running[job_id] for job_id in self.jobs if job_id in self.running]
        decided = plan(0.0, waiting, ClusterView(self.slots, self.slots - held), running)
        self.check(decided.launches, held, running)
        for job_id, one in list(self.running.items()):  # what was on its way has arrived
            self.running[job_id] = replace(one, slots=one.target)
            self.left[job_id] -= not one.is_leaving
            if one.is_leaving:
                del self.running[job_id]
        for scale in decided.scales:
            one = self.running[scale.job_id]
            assert one.job.min_workers <= scale.workers <= one.job.max_workers or scale.workers < one.target
            self.running[scale.job_id] = replace(one, target=scale.workers, slots=max(scale.workers, one.slots))
        for preempt in decided.preemptions:
            assert not self.running[preempt.job_id].is_leaving
            self.running[preempt.job_id] = replace(self.running[preempt.job_id], is_leaving=True)
        for launch in decided.launches:
            self.running[launch.job_id] = Running(self.jobs[launch.job_id], launch.workers, launch.workers)
            self.starts.append(launch.job_id)
        for job_id in [job_id for job_id, turns in self.left.items() if turns <= 0 and job_id in self.running]:
            del self.running[job_id], self.jobs[job_id]
        assert sum(one.slots for one in self.running.values()) <= self.slots, "more was given out than there is"

    def check(self, launches: tuple[Launch, ...], held: int, running: list[Running]) -> None:
        assert held + sum(launch.workers for launch in launches) <= self.slots
        for launch in launches:
            job = self.jobs[launch.job_id]
            assert job.min_workers <= launch.workers <= job.max_workers
            for other_id, other in self.jobs.items():  # nobody overtakes among equals
                if other_id == launch.job_id:
                    break
                is_equal = other.spec.priority == job.spec.priority
                assert not is_equal or other_id in self.running or other_id in {one.job_id for one in launches}


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=8),
    st.integers(4, 8),
)
def test_whatever_the_jobs_all_of_them_end_and_no_slot_is_used_twice(
    wanted: list[tuple[int, int, int]], slots: int
) -> None:
    jobs = [make(f"job-{n}", low, low + more, priority=high).job for n, (low, more, high) in enumerate(wanted)]
    world = World(slots, jobs)
    for _ in range(20 * len(jobs)):
        world.turn()
    assert not world.jobs, "one starves"
    assert set(world.starts) == {job.job_id for job in jobs}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 2)), max_size=6),
    st.integers(0, 4),
)
def test_only_lower_ones_make_way_and_only_for_a_job_that_will_fit(
    running: list[tuple[int, int, int]], wanted: list[tuple[int, int, int]], free: int
) -> None:
    there = [make(f"run-{n}", low, low + more, priority=high).job for n, (low, more, high) in enumerate(running)]
    having = [Running(job, job.max_workers, job.max_workers) for job in there]
    waiting = [make(f"wait-{n}", low, low + more, priority=high) for n, (low, more, high) in enumerate(wanted)]
    slots = free + sum(one.slots for one in having)
    decided = plan(0.0, waiting, ClusterView(slots, free), having)
    yielding = {one.job_id for one in decided.preemptions}
    losers = yielding | {one.job_id for one in decided.scales}
    if not losers:
        return
    short_of_workers = {k for k, wait in decided.waits.items() if wait.reason is StateReason.WAITING_FOR_WORKERS}
    fitting = [one.job for one in waiting if one.job.min_workers <= slots]  # a larger one waits for another cluster
    (ahead,) = [job for job in fitting if job.job_id in short_of_workers]
    lower = {job.job_id: job for job in there if job.spec.priority < ahead.spec.priority}
    assert losers <= set(lower)
    gained = sum(lower[job_id].max_workers for job_id in yielding)
    gained += sum(lower[one.job_id].max_workers - one.workers for one in decided.scales)
    left = free - sum(launch.workers for launch in decided.launches)
    assert left + gained >= ahead.min_workers
    most = {job_id: job.max_workers for job_id, job in lower.items()}
    spare = {job_id: job.max_workers - job.min_workers for job_id, job in lower.items()}
    for spared in yielding:
        others = yielding - {spared}
        without = left + sum(most[k] if k in others else spare[k] for k in lower)
        assert without < ahead.min_workers, f"{spared} yields although it need not"
