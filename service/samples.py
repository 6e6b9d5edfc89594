"""The samples of one job's steps that are kept: all of a short job, every so-manieth of a long one. Pure.

Kept are the steps that a power of two divides, and the last step of the job; the power is the smallest with which the
steps so far are at most `most`. So it depends on the newest step alone, and needs no place to be remembered in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter

from service import limits
from service.runs import StepSample

BY_STEP = attrgetter("step")


def stride_at(newest: int, *, most: int) -> int:
    """Every how manieth step is kept once the job is at step `newest`."""
    stride = 1
    while newest // stride > most:
        stride *= 2
    return stride


class SampleLog:
    """The samples of one unfinished job of `total` steps, by step; and those of them that are not stored yet."""

    def __init__(self, stored: Iterable[StepSample] = (), *, total: int, most: int = limits.MAX_SAMPLES) -> None:
        self._samples, self._unsaved = list[StepSample](), dict[int, StepSample]()
        self._total, self._most, self.stride = total, most, 1
        self.add(stored)
        self._unsaved.clear()

    def __repr__(self) -> str:
        return f"<SampleLog of {len(self._samples)} steps, every {self.stride}>"

    @property
    def unsaved(self) -> Sequence[StepSample]:
        """Those that were added since `note_saved`."""
        return tuple(self._unsaved.values())

    def add(self, samples: Iterable[StepSample]) -> None:
        """Takes in steps; one that is done again after a restart takes the place of what it was."""
        for sample in samples:
            if sample.step // self.stride > self._most:
                self.stride = stride_at(sample.step, most=self._most)
                self._samples = list(filter(self._is_kept, self._samples))
                self._unsaved = {one.step: one for one in self._unsaved.values() if self._is_kept(one)}
            if self._is_kept(sample):
                place = bisect_left(self._samples, sample.step, key=BY_STEP)
                is_there = place < len(self._samples) and self._samples[place].step == sample.step
                self._samples[place : place + is_there] = [sample]
                self._unsaved[sample.step] = sample

    def _is_kept(self, sample: StepSample) -> bool:
        return sample.step % self.stride == 0 or sample.step == self._total

    def after(self, step: int, *, limit: int = limits.SAMPLES_PER_READ) -> Sequence[StepSample]:
        """The oldest of the later steps, up to `limit` of them."""
        first = bisect_right(self._samples, step, key=BY_STEP)
        return self._samples[first : first + limit]

    def note_saved(self, samples: Sequence[StepSample]) -> None:
        """What `unsaved` gave is stored now."""
        for sample in samples:
            if self._unsaved.get(sample.step) is sample:
                del self._unsaved[sample.step]
