"""How often a job's runs were lost in a row, and when it may be started again."""

from __future__ import annotations

from dataclasses import dataclass

from service.limits import Patience


@dataclass
class Failures:
    """A job's losses in a row: `count` of them since it last got beyond `furthest` committed steps."""

    furthest: int = 0
    count: int = 0
    not_before: float = 0.0  # by the service's clock

    def note(self, steps: int, *, now: float, patience: Patience) -> bool:
        """Takes in one more, with so many steps committed; whether the job may be started again, `not_before` a time.

        The first is made good at once; after that the pauses double.
        """
        self.count = 1 if steps > self.furthest else self.count + 1
        self.furthest = max(self.furthest, steps)
        if self.count > 1:
            pause = patience.first_retry_seconds * 2 ** (self.count - 2)
            self.not_before = now + min(pause, patience.max_retry_seconds)
        return self.count < patience.max_failed_attempts
