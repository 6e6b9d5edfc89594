"""A connection to one member on another node: frames out, frames in, and nothing that was not expected.

A frame is a header of 40 bytes, little endian, and its payload:

    magic    4 bytes   "bpx1"
    kind     uint16    what it is, see Kind
    slot     uint16    the gradient slot, or the vector of the state, that it belongs to
    epoch    uint64    of the plan
    step     uint64    committed steps when it was sent
    first    uint64    the first parameter
    bytes    uint64    of the payload

Both sides know which frames come next and how long they are, so a header is compared as a whole and a payload goes
straight to where it belongs. Several streams of frames may share a link; within a stream the order is fixed. Sockets
never block: `send` and `receive` do what can be done at once. Whoever sends fast is held by TCP, for nothing is read
that is not expected yet.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct("<4sHHQQQQ")
_MAGIC = b"bpx1"
_MAX_BUFFERS = 16  # handed to the kernel at once


class Kind(IntEnum):
    """What a frame carries."""

    PARTIAL = 1  # a partial sum of gradients over some parameters
    SUM = 2  # the sum over all shards, over some parameters
    SQUARES = 3  # sums of squares of the blocks of a range
    SHARDS = 4  # losses and counts of a node's shards, and whether it asks to stop
    COMMITTED = 5  # how many steps a node has committed
    STATE = 6  # weights or optimizer state over some parameters
    LOSS_SCALE = 7


class PeerLostError(Exception):
    """The member at the other end is gone, or out of reach."""


class ProtocolError(Exception):
    """The member at the other end does not speak as it should: other code, or a stranger."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Frame:
    """A frame to send, or one that is expected: its payload lies, or goes, where the array is."""

    kind: Kind
    payload: memoryview  # bytes
    slot: int = 0
    first: int = 0
    done: Callable[[], None] = _nothing  # called when it has come in whole

    def header(self, epoch: int, step: int) -> bytes:
        """The header's bytes."""
        return HEADER.pack(_MAGIC, self.kind, self.slot, epoch, step, self.first, self.payload.nbytes)


class Link:
    """A connection between members of one plan that know each other."""

    def __init__(self, connection: socket.socket, name: str, *, epoch: int) -> None:
        connection.setblocking(False)
        self._socket, self._epoch, self.name = connection, epoch, name
        self._step = 0
        self._outgoing: deque[memoryview] = deque()
        self._later: Iterator[Frame] = iter(())
        self._expected: list[deque[tuple[bytes, Frame]]] = []
        self._num_expected = 0
        self._header = bytearray(HEADER.size)
        self._frame: Frame | None = None  # whose payload is coming in
        self._target = memoryview(self._header)  # what is still to come of the header or the payload

    def __repr__(self) -> str:
        return f"<Link to {self.name}, {self._num_expected} frames to come>"

    def fileno(self) -> int:
        """The socket's, to wait for it."""
        return self._socket.fileno()

    def begin(self, step: int) -> None:
        """Frames to come belong to this step."""
        assert not self.has_outgoing, "the step before is not sent"
        assert not self.has_expected, "the step before has not come"
        self._step, self._expected = step, []

    def expect(self, *frames: Frame) -> None:
        """Opens a stream of frames to come in this order."""
        if frames:
            self._expected.append(deque((frame.header(self._epoch, self._step), frame) for frame in frames))
            self._num_expected += len(frames)

    def put(self, frame: Frame) -> None:
        """Sends a frame as soon as may be; its payload must stay as it is until then."""
        self._outgoing.append(memoryview(frame.header(self._epoch, self._step)))
        if frame.payload.nbytes:
            self._outgoing.append(frame.payload)

    def put_later(self, frames: Iterator[Frame]) -> None:
        """Sends these frames, each made when there is nothing else to send."""
        self._later = frames

    @property
    def has_outgoing(self) -> bool:
        """Whether something is left to send; a frame is taken from those for later if need be."""
        if not self._outgoing:
            frame = next(self._later, None)
            if frame is not None:
                self.put(frame)
        return bool(self._outgoing)

    @property
    def has_expected(self) -> bool:
        """Whether frames are still to come."""
        return self._num_expected > 0

    def send(self) -> bool:
        """Sends what can be sent now; whether that was anything. Raises PeerLostError."""
        if not self.has_outgoing:
            return False
        try:
            count = self._socket.sendmsg([*self._outgoing][:_MAX_BUFFERS])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise self._lost(error) from None
        while count:
            head = self._outgoing[0]
            if count < head.nbytes:
                self._outgoing[0] = head[count:]
                break
            count -= head.nbytes
            self._outgoing.popleft()
        return True

    def receive(self) -> bool:
        """Takes in what is there, one frame at most; whether that was anything. Raises PeerLostError, ProtocolError."""
        has_come = False
        while self._num_expected:
            try:
                count = self._socket.recv_into(self._target)
            except (BlockingIOError, InterruptedError):
                return has_come
            except OSError as error:
                raise self._lost(error) from None
            if not count:
                raise PeerLostError(f"lost {self.name}: the connection ended")
            has_come = True
            self._target = self._target[count:]
            if self._target.nbytes:
                continue
            if self._frame is None:
                self._frame = self._match()
                self._target = self._frame.payload
            if not self._target.nbytes:
                frame, self._frame, self._target = self._frame, None, memoryview(self._header)
                self._num_expected -= 1
                frame.done()
                return True
        return has_come

    def _match(self) -> Frame:
        """The frame whose header has come in."""
        for stream in self._expected:
            if stream and stream[0][0] == self._header:
                return stream.popleft()[1]
        expected = " or ".join(_in_words(stream[0][0]) for stream in self._expected if stream)
        raise ProtocolError(f"{self.name}: got {_in_words(self._header)}, expected {expected}; the link is closed")

    def _lost(self, error: OSError) -> PeerLostError:
        return PeerLostError(f"lost {self.name}: {error.strerror}")

    def close(self) -> None:
        """Ends the connection; the other side sees it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._outgoing.clear()
        self._later, self._expected, self._target = iter(()), [], memoryview(b"")
        self._num_expected, self._frame = 0, None


def _in_words(header: bytes | bytearray) -> str:
    magic, kind, slot, epoch, step, first, num_bytes = HEADER.unpack(header)
    if magic != _MAGIC:
        return f"bytes that are no frame ({bytes(header[:8])!r} ...)"
    name = Kind(kind).name if kind in [*Kind] else f"kind {kind}"
    return f"{name} (slot {slot}, epoch {epoch}, step {step}, first {first}, {num_bytes} bytes)"
