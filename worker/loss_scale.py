"""Dynamic loss scaling (Micikevicius et al., 2018): what keeps small gradients within the range of float16.

Backward starts from the scale instead of 1, and the update divides by it. Where the gradient overflows, the step is
skipped and the scale halved; after many finite steps it is doubled. The numbers are those of torch.amp.GradScaler. All
scales are powers of two, so that scaling by itself changes no bit.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SCALE = 65536.0
GROWTH_FACTOR, BACKOFF_FACTOR = 2.0, 0.5
GROWTH_INTERVAL = 2000  # finite steps
SMALLEST_SCALE = 1.0


@dataclass(frozen=True)
class LossScale:
    """The scale of a step, and how many finite steps in a row it has seen. Part of a job's state."""

    scale: float = FIRST_SCALE
    num_finite: int = 0

    def after_finite(self) -> LossScale:
        """The next step's, where the gradient was finite."""
        if self.num_finite + 1 < GROWTH_INTERVAL:
            return LossScale(self.scale, self.num_finite + 1)
        return LossScale(self.scale * GROWTH_FACTOR)

    def after_overflow(self) -> LossScale | None:
        """The next step's, where the gradient was not finite; None where the scale cannot be the reason any more."""
        smaller = self.scale * BACKOFF_FACTOR
        return LossScale(smaller) if smaller >= SMALLEST_SCALE else None


UNSCALED = LossScale(1.0)
