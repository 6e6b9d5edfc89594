"""The connections between the members of a plan on different nodes: who may connect, and how they are made.

Each worker that can have peers on other nodes listens, for life, on one address of its node. For a plan, the member
with the higher place connects to the one with the lower. Both prove that they know the job's secret token, in three
messages of fixed length; the proofs cover the plan's epoch and both places, and random numbers of both sides, so that
no message is of use to anybody who overhears it or plays it again:

    acceptor  -> connector   "bpxhello", 32 random bytes
    connector -> acceptor    epoch, from place, to place, 32 random bytes, HMAC-SHA256(token, "connect" + all above)
    acceptor  -> connector   HMAC-SHA256(token, "accept" + all above)

What does not fit is closed, with one line in the log, and keeps nobody else from connecting. Payloads are neither
encrypted nor signed: the network between the nodes must be one that strangers cannot write to.

A dead peer shows by end-of-file or reset, at once; a cut link by keepalive where nothing is under way, and by
TCP_USER_TIMEOUT where something is, within 2 seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from worker.reduce.link import PeerLostError, ProtocolError

Address = tuple[str, int]  # host and port
Check = Callable[[], None]  # raises when nobody needs to wait any longer

TOKEN_BYTES = 32
BUFFER_BYTES = 4 << 20
LOST_SECONDS = 1.2  # without a word from the other kernel, a link is cut; noticed when it next tries, within 2 s
CONNECT_SECONDS = 2.0  # for the other kernel, not the worker: one more try after a second
MEET_SECONDS = 20.0  # for the members of a plan to begin with it; should one die, the coordinator says so before
GUEST_SECONDS = 2.0  # for a stranger to say who it is
LOOK_SECONDS = 0.02  # between two looks at the epoch
_GREETING = b"bpxhello"
_NONCE_BYTES = 32
_HELLO = struct.Struct("<QHH32s32s")  # epoch, from place, to place, random bytes, proof
_SAID = struct.calcsize("<QHH32s")
_PROOF_BYTES = 32
_MAX_GUESTS = 64  # at once, beside the members

logger = logging.getLogger(__name__)


@dataclass
class _Guest:
    """Somebody who has connected and not yet said who it is."""

    connection: socket.socket
    greeting: bytes
    until: float
    said: bytearray = field(default_factory=bytearray)


class Listener:
    """Where a worker's peers connect to. `host` is an address of this node; the port is the system's choice."""

    def __init__(self, host: str, token: bytes) -> None:
        if len(token) < TOKEN_BYTES:
            raise ValueError(f"token: got {len(token)} bytes, expected {TOKEN_BYTES} random ones or more")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._token = token
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            _size_buffers(self._socket)  # accepted connections have the listener's
            self._socket.bind((host, 0))
            self._socket.listen(_MAX_GUESTS)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.address: Address = (host, self._socket.getsockname()[1])

    def close(self) -> None:
        """Nobody can connect any more."""
        self._socket.close()

    def connections(
        self, addresses: dict[int, Address], *, place: int, epoch: int, check: Check
    ) -> dict[int, socket.socket]:
        """Connections to the members of a plan in these places, as the one in `place`.

        Raises PeerLostError where one cannot be had, ProtocolError where one does not know the token, and what `check`
        raises; nothing stays open then.
        """
        made: dict[int, socket.socket] = {}
        try:
            for other in sorted(addresses):
                if other < place:
                    made[other] = self._connect(addresses[other], place, other, epoch=epoch, check=check)
            self._accept(made, {other for other in addresses if other > place}, place, epoch=epoch, check=check)
        except BaseException:
            for connection in made.values():
                connection.close()
            raise
        for connection in made.values():
            watch_over(connection)
        return made

    def _connect(self, address: Address, place: int, other: int, *, epoch: int, check: Check) -> socket.socket:
        """A connection to the member in another place, which may come to accept it a little later."""
        name = f"place {other} at {address[0]}:{address[1]}"
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        _size_buffers(connection)
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(address)
            watch_over(connection)
            greeting = _receive(connection, len(_GREETING) + _NONCE_BYTES, check)
            if not greeting.startswith(_GREETING):
                raise ProtocolError(
                    f"{name}: got {greeting[:8]!r}, expected a worker of this job; is the address right?"
                )
            said = _HELLO.pack(epoch, place, other, secrets.token_bytes(_NONCE_BYTES), b"")[:_SAID]
            connection.sendall(said + self._proof(b"connect", greeting + said))
            proof = _receive(connection, _PROOF_BYTES, check)
            if not hmac.compare_digest(proof, self._proof(b"accept", greeting + said)):
                raise ProtocolError(f"{name}: it does not know the job's token; the connection is closed")
        except (OSError, EOFError) as error:
            connection.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise PeerLostError(f"cannot connect to {name}: {reason}") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _accept(
        self, made: dict[int, socket.socket], awaited: set[int], place: int, *, epoch: int, check: Check
    ) -> None:
        """Adds the connections of the awaited places."""
        guests: dict[int, _Guest] = {}
        until = time.monotonic() + MEET_SECONDS
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        try:
            while not made.keys() >= awaited:
                check()
                if time.monotonic() > until:
                    missing = sorted(awaited - made.keys())
                    raise PeerLostError(f"no word from the workers in places {missing} for {MEET_SECONDS:g} s")
                for descriptor, _ in poll.poll(LOOK_SECONDS * 1000):
                    if descriptor == self._socket.fileno():
                        if (guest := self._welcome(guests)) is not None:
                            guests[guest.connection.fileno()] = guest
                            poll.register(guest.connection, select.POLLIN)
                        continue
                    guest = guests[descriptor]
                    with _refusing(guest):
                        sender = self._hear(guest, awaited - made.keys(), place, epoch)
                        if sender is None:
                            continue
                        made[sender] = guest.connection
                    poll.unregister(descriptor)
                    del guests[descriptor]
                for descriptor, guest in list(guests.items()):
                    if time.monotonic() > guest.until:
                        with _refusing(guest):
                            raise ProtocolError(f"nothing to be heard for {GUEST_SECONDS:g} s")
                        poll.unregister(descriptor)
                        del guests[descriptor]
        finally:
            for guest in guests.values():
                guest.connection.close()

    def _welcome(self, guests: dict[int, _Guest]) -> _Guest | None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return None
        if len(guests) >= _MAX_GUESTS:
            connection.close()
            return None
        connection.setblocking(False)
        greeting = _GREETING + secrets.token_bytes(_NONCE_BYTES)
        with suppress(OSError):  # it has gone already: seen when it is heard
            connection.send(greeting)
        return _Guest(connection, greeting, time.monotonic() + GUEST_SECONDS)

    def _hear(self, guest: _Guest, awaited: Collection[int], place: int, epoch: int) -> int | None:
        """The place of a guest that has proved itself, None where more is to be said. Raises ProtocolError, OSError."""
        part = guest.connection.recv(_HELLO.size - len(guest.said))
        guest.said += part
        if not part:
            raise ProtocolError("it has gone before it said who it is")
        if len(guest.said) < _HELLO.size:
            return None
        said = bytes(guest.said)
        if not hmac.compare_digest(said[_SAID:], self._proof(b"connect", guest.greeting + said[:_SAID])):
            raise ProtocolError("it does not know the job's token")
        its_epoch, sender, receiver, _, _ = _HELLO.unpack(said)
        assert isinstance(sender, int)
        if (its_epoch, receiver) != (epoch, place) or sender not in awaited:
            raise ProtocolError(
                f"got epoch {its_epoch}, from place {sender} to {receiver}, expected epoch {epoch}, "
                f"from one of {sorted(awaited)} to {place}"
            )
        guest.connection.send(self._proof(b"accept", guest.greeting + said[:_SAID]))
        return sender

    def _proof(self, role: bytes, said: bytes) -> bytes:
        return hmac.new(self._token, role + said, hashlib.sha256).digest()


@contextmanager
def _refusing(guest: _Guest) -> Iterator[None]:
    """Closes the connection of a guest with whom something is wrong; the log says what."""
    try:
        yield
    except (ProtocolError, OSError) as error:
        try:
            host, port = guest.connection.getpeername()[:2]
            logger.warning("refused a connection from %s:%s: %s", host, port, error)
        except OSError:
            logger.warning("refused a connection: %s", error)
        guest.connection.close()


def _receive(connection: socket.socket, num_bytes: int, check: Check) -> bytes:
    """So many bytes, however long it takes: who accepts may be at the end of the plan before. Raises EOFError."""
    connection.settimeout(LOOK_SECONDS)
    received = bytearray()
    while len(received) < num_bytes:
        check()
        try:
            part = connection.recv(num_bytes - len(received))
        except TimeoutError:
            continue
        if not part:
            raise EOFError("it closed the connection")
        received += part
    return bytes(received)


def _size_buffers(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)


def watch_over(connection: socket.socket) -> None:
    """Makes the kernel tell of a cut link in time, and send small frames at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(LOST_SECONDS * 1000))
