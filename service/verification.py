"""Whether training a job again gives the same weights: the second job's spec, and the comparison. Pure.

The second job has the spec of the first, but another number of workers. Both write checkpoints, and a checkpoint's
event holds the digest of its weights; at the steps that both have saved, the digests must be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from service.records import spec_document
from worker.spec import JobSpec, parse_spec

PREFIX = "verify-"


@dataclass(frozen=True)
class Compared:
    """One step of both jobs."""

    step: int
    expected: str
    found: str

    @property
    def is_equal(self) -> bool:
        """Whether the weights are the same, to the last bit."""
        return self.expected == self.found


@dataclass
class Verification:
    """Digests as they were, `expected` by step, and as they are found again. Changes with each `compare`."""

    expected: Mapping[int, str]
    start: int = 0  # the step that both begin with
    compared: list[Compared] = field(default_factory=list)

    def compare(self, step: int, found: str) -> Compared | None:
        """Takes in a checkpoint of the second job; None where the first has none of that step, or nothing is new."""
        if step not in self.expected:
            return None
        compared = Compared(step, self.expected[step], found)
        if compared in self.compared:  # saved again after a restart, with the same weights
            return None
        self.compared.append(compared)
        return compared

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing more to learn: all was compared, or the runs have parted."""
        return self.is_equal or self.parted_at is not None

    @property
    def is_equal(self) -> bool:
        """Whether all was compared, and was the same."""
        return len(self.compared) == len(self.expected) and self.parted_at is None

    @property
    def parted_at(self) -> int | None:
        """The first step at which the weights are different."""
        return next((one.step for one in self.compared if not one.is_equal), None)

    @property
    def agreed_until(self) -> int:
        """The last step before that at which they were the same; `start` where there is none."""
        return max((one.step for one in self.compared if one.is_equal), default=self.start)


def another_number_of_workers(spec: JobSpec) -> int:
    """One worker instead of several, two instead of one, where there are shards for two."""
    return 1 if spec.workers.max > 1 else min(2, spec.training.shards)


def spec_to_verify(spec: JobSpec, job_id: str, *, workers: int, saved: Iterable[int]) -> JobSpec:
    """The spec of the second job, which must meet steps that the first has `saved`. Raises SpecError.

    It saves as often as the first; where that would meet none of them (a job that saved only when it was paused, say),
    it saves at the first of them.
    """
    document = spec_document(spec)
    every, steps = spec.checkpoint.every_steps, sorted(saved)
    if not steps_met(steps, every, last=spec.training.max_steps):
        every = steps[0]
    return parse_spec(
        document
        | {
            "name": f"{PREFIX}{job_id}",
            "workers": {"min": workers, "max": workers},
            "checkpoint": {"every_steps": every, "keep": 1},
        }
    )


def steps_met(steps: Iterable[int], every: int, *, last: int) -> list[int]:
    """Those of the steps at which a job saves that saves after so many steps, and after its last one."""
    return [step for step in steps if step == last or (every and step % every == 0)]
