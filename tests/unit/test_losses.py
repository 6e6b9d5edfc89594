"""What losses say about their job: bad luck, poison, or no hope."""

import pytest

from service.jobs import StateReason
from service.losses import FIRST_PAUSE_SECONDS, MAX_LOSSES_WITHOUT_A_STEP, MAX_PAUSE_SECONDS, Loss, Losses


def died(seat: int, step: int, *shards: int) -> Loss:
    return Loss(seat, "process died", "forward", step, range(shards[0], shards[-1] + 1) if shards else range(0))


def test_two_workers_that_die_of_one_shard_died_of_it() -> None:
    losses = Losses()
    assert losses.note([died(0, 11, 3)], committed=11, has_members=True) is None
    verdict = losses.note([died(1, 11, 3)], committed=11, has_members=True)
    assert verdict is not None
    assert verdict.reason is StateReason.POISON
    assert verdict.message == (
        "step 12, shard 3: 2 workers were lost computing it (process died, in forward); "
        "the data of this batch or the model's code ends whoever computes it"
    )


def test_of_shards_that_shared_a_pass_it_was_the_one_that_another_worker_died_of() -> None:
    losses = Losses()
    assert losses.note([died(0, 11, 0, 3)], committed=11, has_members=True) is None
    verdict = losses.note([died(1, 11, 2)], committed=11, has_members=True)
    assert verdict is not None
    assert verdict.message.startswith("step 12, shard 2: 2 workers were lost computing it")


@pytest.mark.parametrize(
    "second", [died(1, 11, 4), died(1, 12, 3), died(1, 11), died(1, 12)], ids=["shard", "step", "none", "no shard"]
)
def test_deaths_at_different_places_are_bad_luck(second: Loss) -> None:
    losses = Losses()
    assert losses.note([died(0, 11, 0, 3)], committed=11, has_members=True) is None
    assert losses.note([second], committed=12, has_members=True) is None


def test_two_that_die_together_at_different_shards_are_bad_luck() -> None:
    assert Losses().note([died(0, 11, 3), died(1, 11, 4)], committed=11, has_members=False) is None


def test_losses_in_a_row_without_a_step_end_the_job() -> None:
    losses = Losses()
    for number in range(MAX_LOSSES_WITHOUT_A_STEP):
        assert losses.note([died(number, 11)], committed=11, has_members=True) is None
    verdict = losses.note([died(7, 11)], committed=11, has_members=True)
    assert verdict is not None
    assert verdict.reason is StateReason.TOO_MANY_FAILURES
    assert "worker 7: process died" in verdict.message


def test_a_step_between_gives_new_hope() -> None:
    losses = Losses()
    for number in range(10 * MAX_LOSSES_WITHOUT_A_STEP):
        assert losses.note([died(number, number)], committed=number, has_members=True) is None


def test_failing_starts_end_a_job_only_when_nobody_trains() -> None:
    failed = Loss(1, "start failed: OSError: no", was_member=False)
    training, alone = Losses(), Losses()
    for _ in range(10 * MAX_LOSSES_WITHOUT_A_STEP):
        assert training.note([failed], committed=0, has_members=True) is None
    verdicts = [alone.note([failed], committed=0, has_members=False) for _ in range(MAX_LOSSES_WITHOUT_A_STEP + 1)]
    assert [verdict is None for verdict in verdicts] == [True] * MAX_LOSSES_WITHOUT_A_STEP + [False]


def test_the_pause_before_new_starts_grows_and_ends_with_a_good_one() -> None:
    losses, failed = Losses(), Loss(1, "start failed", was_member=False)
    pauses = []
    for _ in range(12):
        losses.note([failed], committed=0, has_members=True)
        pauses.append(losses.pause_seconds)
    assert pauses[:4] == [0.0, FIRST_PAUSE_SECONDS, 2 * FIRST_PAUSE_SECONDS, 4 * FIRST_PAUSE_SECONDS]
    assert pauses[-1] == MAX_PAUSE_SECONDS
    losses.note_start()
    assert losses.pause_seconds == 0.0
