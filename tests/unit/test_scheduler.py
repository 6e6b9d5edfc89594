"""Which jobs start, with how many workers, and what the others are told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.jobs import Job, JobState, StateReason
from service.scheduler import ClusterView, Launch, Wait, Waiting, plan
from worker.spec import parse_spec


def make(job_id: str, low: int, high: int | None = None, state: JobState = JobState.QUEUED) -> Waiting:
    workers = {"min": low, "max": high or low}
    training = {"global_batch_size": 64, "shards": 64}
    spec = parse_spec({"model": {"mlp": {}}, "data": {"digits": {}}, "training": training, "workers": workers})
    return Waiting(Job(job_id, spec, create_time=0.0, state=state))


def view(free: int, slots: int = 4) -> ClusterView:
    return ClusterView(num_slots=slots, free_slots=free, largest_node_slots=slots)


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
    assert decided.waits["huge"].message == "waits for 9 workers on one node: the largest node has 4"


def test_a_job_stays_on_one_node() -> None:
    cluster = ClusterView(num_slots=8, free_slots=8, largest_node_slots=4)
    assert plan(0.0, [make("a", 1, 8)], cluster).launches == (Launch("a", 4),)


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
    decided = plan(0.0, jobs, ClusterView(slots, min(free, slots), slots))
    specs = {waiting.job.job_id: waiting.job.spec.workers for waiting in jobs}
    assert sum(launch.workers for launch in decided.launches) <= min(free, slots)
    assert all(specs[one.job_id].min <= one.workers <= specs[one.job_id].max for one in decided.launches)
    assert {launch.job_id for launch in decided.launches} | set(decided.waits) == set(specs)
    assert not {launch.job_id for launch in decided.launches} & set(decided.waits)
