"""Who hangs and who is slow, on a clock that the test holds."""

import pytest

from service.vigil import FIRST_STEP_SECONDS, HANG_SECONDS, SLOW_SECONDS, SLOW_STEPS, Paces, Vigil, Window
from worker.reduce.segment import Pulse

LONG = HANG_SECONDS + 0.1


def pulse(beat: float, arrivals: int, stage: str = "forward") -> Pulse:
    return Pulse(stage, beat, step=5, shards=range(1), arrivals=arrivals)


def hung(now: float, *pulses: Pulse, fresh: tuple[int, ...] = (), median: float = 0.01, since: float = 0.0) -> set[int]:
    """Who hangs at a time to which the watch has looked every second."""
    vigil = Vigil(since=since)
    at = since
    while at < now:
        vigil.hung(at, {}, fresh=(), median_step_seconds=median)
        at += 1.0
    return set(vigil.hung(now, dict(enumerate(pulses)), fresh=fresh, median_step_seconds=median))


@pytest.mark.parametrize(
    ("pulses", "expected"),
    [
        ([pulse(0, 7)], {0}),
        ([pulse(LONG, 7)], set()),
        ([pulse(0, 7, "wait"), pulse(0, 6)], {1}),  # stopped while it computes, and one that waits for it
        ([pulse(0, 7, "wait"), pulse(0, 6, "wait")], {1}),  # stopped in the barrier before, behind which others are
        ([pulse(0, 7, "wait"), pulse(LONG, 6), pulse(0, 6)], {2}),  # one of two that have not come still computes
        ([pulse(0, 7, "wait"), pulse(LONG, 6)], set()),
        ([pulse(0, 7), pulse(0, 7)], {0, 1}),  # nobody waits for anybody
        ([pulse(0, 7, "wait"), pulse(0, 7, "wait")], {0, 1}),  # the barrier is over, but nobody has noticed
        ([pulse(0, 0, "idle")], {0}),  # stopped before it began
        ([pulse(0, 7, "evaluate")], set()),
        ([], set()),
    ],
)
def test_the_silent_hang_unless_they_are_kept_waiting(pulses: list[Pulse], expected: set[int]) -> None:
    assert hung(LONG, *pulses) == expected


def test_a_workers_first_step_may_take_longer() -> None:
    assert hung(LONG, pulse(0, 7), fresh=(0,)) == set()
    assert hung(FIRST_STEP_SECONDS + 0.1, pulse(0, 7), fresh=(0,)) == {0}


def test_the_deadline_grows_with_the_step() -> None:
    assert hung(LONG, pulse(0, 7), median=2.0) == set()
    assert hung(20.1, pulse(0, 7), median=2.0) == {0}


def test_a_chunk_of_an_evaluation_may_take_as_long_as_it_is_worth() -> None:
    at = FIRST_STEP_SECONDS + 0.1
    for chunk_steps, expected in ((1.0, {0}), (20.0, set[int]())):
        vigil = Vigil(since=at - 1)
        vigil.restart(0.0)
        found = vigil.hung(at, {0: pulse(0, 7, "evaluate")}, fresh=(), median_step_seconds=1, chunk_steps=chunk_steps)
        assert set(found) == expected


def test_time_counts_from_when_the_plan_began() -> None:
    """A worker was silent between two legs; that says nothing."""
    assert hung(100.0 + LONG - 1, pulse(0, 7), since=100.0) == set()
    assert hung(100.0 + LONG, pulse(0, 7), since=100.0) == {0}


def test_who_comes_back_from_an_abandoned_plan_has_its_time_anew() -> None:
    vigil = Vigil(since=0.0)
    for at in range(int(LONG)):
        vigil.hung(at, {}, fresh=(), median_step_seconds=0.0)
    vigil.restart(LONG)
    assert not vigil.hung(LONG, {0: pulse(0, 7)}, fresh=(), median_step_seconds=0.0)


def test_who_was_kept_waiting_has_its_time_anew_when_the_wait_is_over() -> None:
    """Another has come at last; the watcher may see it before those who waited have woken up."""
    vigil, at = Vigil(since=0.0), 0.0
    while at < LONG:
        at += 1.0
        found = vigil.hung(at, {0: pulse(0, 7, "wait"), 1: pulse(at, 6)}, fresh=(), median_step_seconds=0.0)
        assert not found
    over = {0: pulse(0, 7, "wait"), 1: pulse(at, 7, "wait")}
    assert not vigil.hung(at + 0.5, over, fresh=(), median_step_seconds=0.0)
    while at < 2 * LONG + 1:
        at += 1.0
        found = vigil.hung(at, over, fresh=(), median_step_seconds=0.0)
    assert found.keys() == {0, 1}


def test_a_watcher_that_slept_blames_nobody() -> None:
    """The whole machine may have been stopped with it."""
    vigil = Vigil(since=0.0)
    assert not vigil.hung(1000.0, {0: pulse(0, 7)}, fresh=(), median_step_seconds=0.0)
    assert not vigil.hung(1001.0, {0: pulse(0, 7)}, fresh=(), median_step_seconds=0.0)


def test_the_reason_says_where_and_how_long() -> None:
    vigil = Vigil(since=0.0)
    for at in range(10):
        vigil.hung(at, {}, fresh=(), median_step_seconds=0.0)
    found = vigil.hung(LONG, {3: pulse(0, 7, "backward")}, fresh=(), median_step_seconds=0.0)
    assert found == {3: "hung: no sign of life for 10 s (stage backward)"}


def window(at: float, step: int, *busy: float) -> Window:
    return Window(at, step, dict(enumerate(busy)))


SHARES = {0: 3, 1: 3, 2: 2}


def test_a_worker_three_times_slower_than_the_others_is_found_with_its_speed() -> None:
    paces = Paces()
    paces.restart(window(0, 100, 0, 0, 0))
    assert paces.look(window(3, 200, 3.0, 12.0, 2.0), SHARES)
    assert paces.speeds == {1: pytest.approx(1 / 4)}


def test_pace_is_by_shard() -> None:
    """Who has twice the shards takes twice the time and is not slow."""
    paces = Paces()
    paces.restart(window(0, 100, 0, 0))
    assert not paces.look(window(3, 200, 1.0, 4.0), {0: 1, 1: 4})
    assert paces.look(window(6, 300, 2.0, 8.0), {0: 1, 1: 1})


@pytest.mark.parametrize(
    ("at", "step"), [(SLOW_SECONDS - 0.1, 1000), (100.0, SLOW_STEPS - 1)], ids=["too short", "too few steps"]
)
def test_a_moment_says_nothing(at: float, step: int) -> None:
    paces = Paces()
    paces.restart(window(0, 0, 0, 0))
    assert not paces.look(window(at, step, 1.0, 9.0), {0: 1, 1: 1})
    assert not paces.speeds


def test_one_worker_has_nobody_to_be_slower_than() -> None:
    paces = Paces()
    paces.restart(window(0, 0, 0))
    assert not paces.look(window(100, 1000, 90.0), {0: 8})


def test_a_slow_worker_keeps_its_speed_until_it_has_recovered_and_is_forgotten_when_it_goes() -> None:
    paces, shares = Paces(), {0: 4, 1: 4}
    paces.restart(window(0, 0, 0, 0))
    assert paces.look(window(3, 100, 1.0, 4.0), shares)
    assert not paces.look(window(6, 200, 2.0, 6.0), shares)  # twice as slow: not yet recovered
    assert paces.speeds == {1: pytest.approx(1 / 4)}
    assert paces.look(window(9, 300, 3.0, 7.0), shares)
    assert not paces.speeds
    assert paces.look(window(12, 400, 4.0, 11.0), shares)
    paces.restart(Window(12, 400, {0: 4.0}))
    assert not paces.speeds
