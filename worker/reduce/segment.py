"""The shared memory of one job on one node: weights, optimizer state, gradients and a control page.

Weights and optimizer state are there twice. Buffer t % 2 holds step t; step t+1 is written beside it, and
`Control.commit` makes it the job's state by changing one number. Gradient slots belong to one worker each while
shards are computed; in the reduce each worker reads all of them, over its own range of parameters only.

A segment is made for a capacity, the seats, of which the workers of a plan take some. A seat has its lines in the
control page; gradient slots are given out anew by each plan.

A segment is a file in /dev/shm, mode 0600. Whoever creates it removes it with `unlink`; its memory is freed when
the last process has closed it.
"""

from __future__ import annotations

import mmap
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.autodiff.kernels import BLOCK
from worker.loss_scale import UNSCALED, LossScale

DIRECTORY = Path("/dev/shm")
PHASES = ("data", "forward", "backward", "reduce", "update", "wait")
STAGES = ("idle", *PHASES, "norm", "commit", "evaluate")  # what a worker can be at
LINE = 8  # 64-bit words of a cache line: what different workers write lies on different lines
NOTHING = -1  # committed steps of a segment that no state has been copied to yet
RING_STEPS = 8192  # steps that a coordinator may lag behind before samples are lost
RING_FIELDS = 8  # step, loss, gradient norm, learning rate, seconds, clipped, non-finite, unused
_PAGE = 4096
_MAGIC = 0x6270_7365_676D_3031  # "bpsegm01"
_HEADER_WORDS = 8 * LINE

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Doubles = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Words = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Shape:
    """All sizes that decide where things lie in a segment."""

    num_parameters: int
    num_states: int  # vectors of optimizer state: 0 for SGD, 2 for Adam
    num_shards: int
    num_seats: int  # workers that the job can have at once
    num_slots: int  # gradient slots, enough for any plan

    @property
    def num_blocks(self) -> int:
        """Blocks of the parameter vector, the last one possibly shorter."""
        return -(-self.num_parameters // BLOCK)

    @property
    def stride(self) -> int:
        """Floats from one vector to the next: whole pages."""
        return -(-self.num_parameters // (_PAGE // 4)) * (_PAGE // 4)

    def range_of(self, place: int, num_members: int) -> tuple[int, int]:
        """The parameters [first, last) that a member of a plan reduces and updates: whole blocks."""
        first, last = (self.num_blocks * p // num_members * BLOCK for p in (place, place + 1))
        return min(first, self.num_parameters), min(last, self.num_parameters)

    def blocks_of(self, first: int, last: int) -> slice:
        """The blocks of a member's range."""
        return slice(first // BLOCK, -(-last // BLOCK)) if first < last else slice(0, 0)

    @property
    def control_words(self) -> int:
        """64-bit words of the control page."""
        per_seat = LINE + LINE + LINE  # arrivals, phase seconds, pulse
        words = _HEADER_WORDS + self.num_seats * per_seat + 2 * self.num_shards + self.num_blocks
        return words + RING_STEPS * RING_FIELDS

    @property
    def control_bytes(self) -> int:
        """Bytes of the control page, whole pages."""
        return -(-self.control_words * 8 // _PAGE) * _PAGE

    @property
    def num_vectors(self) -> int:
        """Vectors as long as the parameter vector: two buffers, and the gradient slots."""
        return 2 * (1 + self.num_states) + self.num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole segment."""
        return self.control_bytes + self.num_vectors * self.stride * 4


@dataclass(frozen=True)
class Pulse:
    """A worker's newest sign of life; `beat` is in seconds of this node's monotonic clock."""

    stage: str
    beat: float
    step: int  # committed steps when it began: the step that it computes is the next
    shards: range  # that it computes
    arrivals: int
    process_id: int = 0


class SegmentError(Exception):
    """The node's shared memory cannot hold the job, or the segment is not what it should be."""


class Control:
    """The control page: what the workers of a job and its coordinator tell each other during a step.

    Words are 64 bits, aligned, and each has one writer at a time.
    """

    def __init__(self, page: memoryview, shape: Shape) -> None:
        self._words = page.cast("q")
        self._numbers = page.cast("d")
        self.num_seats = shape.num_seats
        offset = _HEADER_WORDS
        self.arrivals = self._words[offset : offset + shape.num_seats * LINE]
        offset += shape.num_seats * LINE
        self.pulses = self._words[offset : offset + shape.num_seats * LINE]
        offset += shape.num_seats * LINE
        doubles: Doubles = np.frombuffer(page, np.float64)
        self.phase_seconds = doubles[offset : offset + shape.num_seats * LINE].reshape(-1, LINE)[:, : len(PHASES)]
        offset += shape.num_seats * LINE
        self.shard_losses = doubles[offset : offset + shape.num_shards]
        offset += shape.num_shards
        self.shard_counts = doubles[offset : offset + shape.num_shards]
        offset += shape.num_shards
        self.block_squares = doubles[offset : offset + shape.num_blocks]
        offset += shape.num_blocks
        self.ring = doubles[offset : offset + RING_STEPS * RING_FIELDS].reshape(RING_STEPS, RING_FIELDS)

    @property
    def committed(self) -> int:
        """The number of committed steps: the one number that says which weights are the job's."""
        return self._words[1 * LINE]

    def commit(self, step: int) -> None:
        """Makes `step` the job's state. Every worker may say so, once all ranges are written."""
        self._words[1 * LINE] = step

    @property
    def epoch(self) -> int:
        """The number of the coordinator's plan; a wait that sees another one gives up."""
        return self._words[2 * LINE]

    def open_plan(self, epoch: int | None = None) -> int:
        """Starts the next plan and returns its epoch, the one that is given or the next; only between legs."""
        self._words[2 * LINE] = self.epoch + 1 if epoch is None else epoch
        return self.epoch

    def abandon_plan(self, epoch: int | None = None) -> None:
        """Makes every worker that waits under the present plan give up.

        A member of the plan says which it is: others may say so at the same time, and all write the same number.
        """
        self._words[2 * LINE] = (self.epoch if epoch is None else epoch) + 1

    @property
    def stop_requested(self) -> bool:
        """Whether the coordinator wants the workers to stop at the next step boundary."""
        return bool(self._words[3 * LINE])

    @stop_requested.setter
    def stop_requested(self, wanted: bool) -> None:
        self._words[3 * LINE] = wanted

    @property
    def last_step(self) -> int:
        """The step after which all workers stop; a plan's first member writes it before the last barrier of a step."""
        return self._words[4 * LINE]

    @last_step.setter
    def last_step(self, step: int) -> None:
        self._words[4 * LINE] = step

    def loss_scale(self, step: int) -> LossScale:
        """The loss scale that belongs to the weights of a step."""
        word = 5 * LINE + 2 * (step % 2)
        return LossScale(self._numbers[word], self._words[word + 1])

    def set_loss_scale(self, step: int, loss_scale: LossScale) -> None:
        """Writes the loss scale of a step, beside that of the step before."""
        word = 5 * LINE + 2 * (step % 2)
        self._numbers[word], self._words[word + 1] = loss_scale.scale, loss_scale.num_finite

    def pulse_words(self, seat: int) -> memoryview[int]:
        """The words that only the worker in a seat writes: stage, when it began (ns), step, process, and the shards."""
        return self.pulses[seat * LINE : seat * LINE + 6]

    def take_seat(self, seat: int, process_id: int) -> None:
        """A new worker's first word: what the one before it said is over."""
        words = self.pulse_words(seat)
        words[0], words[2], words[3], words[4], words[5] = 0, -1, process_id, 0, 0

    def pulse(self, seat: int) -> Pulse:
        """What a worker last said, and how often it came to a barrier."""
        stage, beat_ns, step, process_id, first, last = self.pulse_words(seat)
        return Pulse(STAGES[stage], beat_ns * 1e-9, step, range(first, last), self.arrivals[seat * LINE], process_id)

    def close(self) -> None:
        """Lets go of the memory."""
        self.arrivals.release()
        self.pulses.release()
        self._words.release()
        self._numbers.release()
        del self.phase_seconds, self.shard_losses, self.shard_counts, self.block_squares, self.ring


class Segment:
    """A mapped segment. `create` and `attach` make one; `unlink` and `close` end it."""

    def __init__(self, path: Path, shape: Shape, memory: mmap.mmap) -> None:
        self.path, self.shape = path, shape
        self._memory = memory
        self.control = Control(memoryview(memory)[: shape.control_bytes], shape)
        body = np.frombuffer(memory, np.float32, offset=shape.control_bytes).reshape(shape.num_vectors, shape.stride)
        vectors = body[:, : shape.num_parameters]
        buffers = 2 * (1 + shape.num_states)
        self._buffers: list[list[Floats]] = [list(vectors[parity:buffers:2]) for parity in (0, 1)]
        self.slots = body[buffers:]  # (slots, stride)

    def __repr__(self) -> str:
        return f"Segment({self.path.name}, {self.shape.num_bytes / 2**20:.1f} MiB, step {self.control.committed})"

    @classmethod
    def create(cls, path: Path, shape: Shape) -> Segment:
        """A new segment, zeroed and with all its memory reserved. Raises SegmentError where there is no room."""
        free = shutil.disk_usage(path.parent).free
        if shape.num_bytes > free:
            raise SegmentError(
                f"shared memory: the job needs {shape.num_bytes} bytes in {path.parent} but {free} are free; "
                "use a smaller model or fewer workers, or give the node more shared memory"
            )
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, shape.num_bytes)  # reserves now what would be a SIGBUS later
            memory = _mapped(fd, shape.num_bytes)
        except OSError as error:
            path.unlink()
            raise SegmentError(f"shared memory: cannot reserve {shape.num_bytes} bytes: {error.strerror}") from None
        finally:
            os.close(fd)
        header: Words = np.frombuffer(memory, np.int64, count=LINE)
        header[:] = _header(shape)
        segment = cls(path, shape, memory)
        segment.control.set_loss_scale(0, UNSCALED)
        segment.control.set_loss_scale(1, UNSCALED)
        return segment

    @classmethod
    def attach(cls, path: Path, shape: Shape) -> Segment:
        """A segment that another process created; its memory is touched once, so that no step pays for it."""
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            size = os.fstat(fd).st_size
            if size != shape.num_bytes:
                raise SegmentError(f"{path}: got {size} bytes, expected {shape.num_bytes}")
            memory = _mapped(fd, size)
        finally:
            os.close(fd)
        found = np.frombuffer(memory, np.int64, count=LINE).tolist()
        if found != _header(shape):
            raise SegmentError(f"{path}: got the sizes {found[1:]}, expected {_header(shape)[1:]}")
        return cls(path, shape, memory)

    def weights(self, step: int) -> Floats:
        """(P,) The weights of a step: the committed one, or the one being written."""
        return self._buffers[step % 2][0]

    def state(self, step: int) -> list[Floats]:
        """The optimizer's state vectors, (P,) each, that belong to the weights of a step."""
        return self._buffers[step % 2][1:]

    def gradient(self, slot: int) -> Floats:
        """(P,) A gradient slot."""
        vector: Floats = self.slots[slot, : self.shape.num_parameters]
        return vector

    def gradients(self, slots: range) -> Matrix:
        """(len(slots), P) Gradient slots that lie one after the other."""
        vectors: Matrix = self.slots[slots.start : slots.stop, : self.shape.num_parameters]
        return vectors

    def unlink(self) -> None:
        """Removes the file; processes that have it mapped keep their memory."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the memory; arrays taken from the segment must not be used any more."""
        self.control.close()
        self._buffers.clear()
        del self.slots


def _header(shape: Shape) -> list[int]:
    sizes = (shape.num_parameters, shape.num_states, shape.num_shards, shape.num_seats, shape.num_slots)
    return [_MAGIC, *sizes, BLOCK, RING_STEPS]


def _mapped(fd: int, size: int) -> mmap.mmap:
    memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages for shared memory: only slower
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
