"""What the loss of workers says about their job: bad luck, a poison batch, or something that will never work. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.jobs import StateReason
from service.runs import RunFailed

MAX_LOSSES_WITHOUT_A_STEP = 5  # in a row; a job that kills its workers again and again must not do so for ever
MAX_DEATHS_AT_A_SHARD = 2  # the second worker that dies of the same shard died of the shard
FIRST_PAUSE_SECONDS = 0.5  # before workers are started that failed to start twice in a row; then doubled
MAX_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Loss:
    """A worker that is known to be dead, and what it was at: `step` committed steps when it began, and the shards."""

    seat: int
    cause: str
    stage: str = ""
    step: int = -1
    shards: range = range(0)
    was_member: bool = True


@dataclass
class Losses:
    """The losses of one run."""

    _at_shard: dict[tuple[int, int], int] = field(default_factory=dict)
    _in_a_row: int = 0
    _furthest: int = -1
    _failed_starts: int = 0

    def note(self, losses: Sequence[Loss], *, committed: int, has_members: bool) -> RunFailed | None:
        """Takes in workers that were lost together; the verdict where it is the job's own fault.

        Workers that failed to start say nothing about the job while others train.
        """
        self._failed_starts += any(not loss.was_member for loss in losses)
        if any(loss.was_member for loss in losses) or not has_members:
            self._in_a_row = 1 if committed > self._furthest else self._in_a_row + 1
            self._furthest = max(self._furthest, committed)
        for loss in losses:
            for shard in loss.shards if loss.was_member else ():
                place = loss.step, shard
                self._at_shard[place] = deaths = self._at_shard.get(place, 0) + 1
                if deaths >= MAX_DEATHS_AT_A_SHARD:
                    return RunFailed(StateReason.POISON, _poison(loss, shard, deaths))
        if self._in_a_row > MAX_LOSSES_WITHOUT_A_STEP:
            causes = "; ".join(f"worker {loss.seat}: {loss.cause}" for loss in losses)
            message = f"workers were lost {self._in_a_row} times in a row without a step between: {causes}"
            return RunFailed(StateReason.TOO_MANY_FAILURES, message)
        return None

    def note_start(self) -> None:
        """A worker has come up well."""
        self._failed_starts = 0

    @property
    def pause_seconds(self) -> float:
        """How long to wait before more workers are started."""
        if self._failed_starts < 2:
            return 0.0
        return min(FIRST_PAUSE_SECONDS * 2.0 ** (self._failed_starts - 2), MAX_PAUSE_SECONDS)


def _poison(loss: Loss, shard: int, deaths: int) -> str:
    return (
        f"step {loss.step + 1}, shard {shard}: {deaths} workers were lost computing it "
        f"({loss.cause}, in {loss.stage}); the data of this batch or the model's code ends whoever computes it"
    )
