"""Who may connect to a worker, what may be said on a link, and how a lost peer is noticed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from worker.plan import Plan
from worker.reduce.barrier import PlanChangedError
from worker.reduce.lanes import Lanes
from worker.reduce.link import HEADER, Frame, Kind, Link, PeerLostError, ProtocolError
from worker.reduce.mesh import TOKEN_BYTES, Address, Listener
from worker.reduce.segment import DIRECTORY, Segment
from worker.replica import LegEnd, Replica
from worker.spec import parse_spec

TOKEN = bytes(range(TOKEN_BYTES))
EPOCH = 7
HELLO_BYTES = 8 + 2 + 2 + 32 + 32

LAYOUTS = [(0, 1), (0, 0, 1), (0, 1, 1, 1), (0, 0, 0, 1, 1), (2, 2, 0, 1, 1), (0, 1, 2, 3), (5, 5, 5, 5, 1)]


@pytest.mark.parametrize("homes", LAYOUTS, ids=str)
def test_everybody_is_served_once_on_each_other_node(homes: tuple[int, ...]) -> None:
    lanes = Lanes(homes)
    for owner, home in enumerate(homes):
        servers = lanes.servers(owner)
        assert sorted(homes[server] for server in servers) == sorted(set(homes) - {home})
        assert all(owner in lanes.served_by(server) for server in servers)
        assert all(owner in lanes.peers(peer) for peer in lanes.peers(owner))
    for home in set(homes):
        served = [owner for place in lanes.members(home) for owner in lanes.served_by(place)]
        assert sorted(served) == [owner for owner, whose in enumerate(homes) if whose != home]


def test_with_as_many_workers_everywhere_a_worker_has_one_peer_on_each_other_node() -> None:
    lanes = Lanes([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert [lanes.peers(place) for place in (0, 4, 8)] == [(3, 6), (1, 7), (2, 5)]


def test_the_members_of_a_node_stand_together() -> None:
    with pytest.raises(ValueError, match="one after the other"):
        Lanes([0, 1, 0])


def never() -> None:
    """Nobody gives up."""


@pytest.fixture
def listeners() -> Iterator[list[Listener]]:
    made = [Listener("127.0.0.1", TOKEN) for _ in range(2)]
    yield made
    for listener in made:
        listener.close()


def connected(first: Listener, second: Listener) -> list[Link]:
    with ThreadPoolExecutor(2) as pool:
        lower = pool.submit(first.connections, {1: second.address}, place=0, epoch=EPOCH, check=never)
        higher = second.connections({0: first.address}, place=1, epoch=EPOCH, check=never)
        return [Link(lower.result()[1], "peer", epoch=EPOCH), Link(higher[0], "peer", epoch=EPOCH)]


@pytest.fixture
def links(listeners: list[Listener]) -> Iterator[list[Link]]:
    made = connected(*listeners)
    yield made
    for link in made:
        link.close()


def receive_all(link: Link) -> None:
    while link.has_expected:
        link.receive()


def exchange(links: list[Link]) -> None:
    while any(link.has_expected or link.has_outgoing for link in links):
        for link in links:
            link.send()
            link.receive()


def test_frames_go_both_ways_in_streams_of_their_own(links: list[Link]) -> None:
    random = np.random.default_rng(0)
    sent = [random.standard_normal(size) for size in (1, 1 << 20, 5, 300_000)]
    got = [np.zeros_like(array) for array in sent]
    left, right = links
    for link in links:
        link.begin(3)
    right.expect(*(Frame(Kind.SUM, got[i].data.cast("B"), first=i) for i in (0, 1)))
    right.expect(Frame(Kind.PARTIAL, got[2].data.cast("B"), slot=4), Frame(Kind.SHARDS, memoryview(b"")))
    left.expect(Frame(Kind.STATE, got[3].data.cast("B")))
    left.put(Frame(Kind.PARTIAL, sent[2].data.cast("B"), slot=4))
    left.put_later(Frame(Kind.SUM, sent[i].data.cast("B"), first=i) for i in (0, 1))
    left.put(Frame(Kind.SHARDS, memoryview(b"")))
    right.put(Frame(Kind.STATE, sent[3].data.cast("B")))
    exchange(links)
    assert all(np.array_equal(a, b) for a, b in zip(sent, got, strict=True))


SIXTEEN = memoryview(bytearray(16))
GOOD = Frame(Kind.SUM, SIXTEEN, slot=2, first=4096).header(EPOCH, 3)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n".ljust(HEADER.size), r"no frame \(b'GET / HT' ...\)"),
        (bytes(HEADER.size), "no frame"),
        (Frame(Kind.SUM, SIXTEEN, slot=2, first=4096).header(EPOCH, 4), "step 4"),
        (Frame(Kind.SUM, SIXTEEN, slot=2, first=4096).header(EPOCH - 1, 3), "epoch 6"),
        (Frame(Kind.SUM, SIXTEEN, slot=1, first=4096).header(EPOCH, 3), "slot 1"),
        (Frame(Kind.SUM, SIXTEEN, slot=2, first=0).header(EPOCH, 3), "first 0"),
        (Frame(Kind.PARTIAL, SIXTEEN, slot=2, first=4096).header(EPOCH, 3), "PARTIAL"),
        (Frame(Kind.SUM, memoryview(bytes(17)), slot=2, first=4096).header(EPOCH, 3), "17 bytes"),
        (GOOD[:-8] + struct.pack("<Q", 1 << 62), "4611686018427387904 bytes"),
        (GOOD[:4] + struct.pack("<H", 99) + GOOD[6:], "kind 99"),
    ],
)
def test_what_is_not_expected_is_refused(links: list[Link], header: bytes, said: str) -> None:
    left, right = links
    right.begin(3)
    target = bytearray(16)
    right.expect(Frame(Kind.SUM, memoryview(target), slot=2, first=4096))
    os.write(left.fileno(), header + b"x" * 16)
    with pytest.raises(ProtocolError, match=rf"{said}.*expected SUM \(slot 2, epoch 7, step 3, first 4096, 16 bytes\)"):
        receive_all(right)
    assert target == bytes(16), "a payload that was not expected was taken in"


def test_the_end_of_a_peer_is_noticed_in_the_middle_of_a_frame(links: list[Link]) -> None:
    left, right = links
    right.begin(3)
    right.expect(Frame(Kind.SUM, memoryview(bytearray(16)), slot=2, first=4096))
    os.write(left.fileno(), GOOD + b"x")
    left.close()
    with pytest.raises(PeerLostError, match="lost peer"):
        receive_all(right)


def test_a_token_is_long_and_a_port_is_the_systems(listeners: list[Listener]) -> None:
    with pytest.raises(ValueError, match="got 3 bytes, expected 32"):
        Listener("127.0.0.1", b"abc")
    assert {listener.address[0] for listener in listeners} == {"127.0.0.1"}


def send_garbage(address: Address) -> socket.socket:
    guest = socket.create_connection(address)
    guest.sendall(b"\xff" * HELLO_BYTES)
    return guest


def send_too_little(address: Address) -> socket.socket:
    guest = socket.create_connection(address)
    guest.sendall(b"\xff")
    guest.shutdown(socket.SHUT_WR)
    return guest


def say_nothing(address: Address) -> socket.socket:
    return socket.create_connection(address)


@pytest.mark.parametrize(
    ("intrude", "line"),
    [
        (send_garbage, "does not know the job's token"),
        (send_too_little, "gone before it said who it is"),
        (say_nothing, "nothing to be heard for 2 s"),
    ],
)
def test_strangers_are_refused_and_keep_nobody_out(
    listeners: list[Listener],
    caplog: pytest.LogCaptureFixture,
    intrude: Callable[[Address], socket.socket],
    line: str,
) -> None:
    first, second = listeners
    with intrude(first.address) as guest, ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING):
        lower = pool.submit(first.connections, {1: second.address}, place=0, epoch=EPOCH, check=never)
        guest.settimeout(30)
        greeting = guest.recv(100)
        assert greeting.startswith(b"bpxhello")
        assert not ended(guest), "a stranger was told something"
        higher = second.connections({0: first.address}, place=1, epoch=EPOCH, check=never)
        for connection in (*lower.result().values(), *higher.values()):
            connection.close()
    assert [line in record.getMessage() for record in caplog.records] == [True]


def ended(guest: socket.socket) -> bytes:
    """What a guest still hears; a reset is an end, too."""
    try:
        return guest.recv(100)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    ("token", "epoch", "place", "line"),
    [
        (bytes(TOKEN_BYTES), EPOCH, 1, "does not know the job's token"),
        (TOKEN, EPOCH - 1, 1, "got epoch 6, from place 1 to 0, expected epoch 7"),
        (TOKEN, EPOCH, 2, r"from place 2 to 0, expected epoch 7, from one of \[1\] to 0"),
    ],
)
def test_a_worker_of_another_job_or_plan_is_refused(
    listeners: list[Listener], caplog: pytest.LogCaptureFixture, token: bytes, epoch: int, place: int, line: str
) -> None:
    first, second = listeners
    other = Listener("127.0.0.1", token)
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING):
        lower = pool.submit(first.connections, {1: second.address}, place=0, epoch=EPOCH, check=never)
        with pytest.raises(PeerLostError, match="it closed the connection"):
            other.connections({0: first.address}, place=place, epoch=epoch, check=never)
        higher = second.connections({0: first.address}, place=1, epoch=EPOCH, check=never)
        for connection in (*lower.result().values(), *higher.values()):
            connection.close()
    other.close()
    (record,) = caplog.records
    assert re.search(line, record.getMessage())


def serve_once(server: socket.socket, answers: list[bytes]) -> None:
    """A peer that accepts one connection and says these things, whatever it hears."""
    connection, _ = server.accept()
    with connection:
        for answer in answers:
            connection.sendall(answer)
        while connection.recv(1000):
            pass


@pytest.mark.parametrize(
    ("answers", "error", "line"),
    [
        ([b"SSH-2.0-OpenSSH_9.6\r\n".ljust(40)], ProtocolError, "got b'SSH-2.0-', expected a worker of this job"),
        ([b"bpxhello" + bytes(32), bytes(32)], ProtocolError, "it does not know the job's token"),
    ],
)
def test_a_stranger_in_a_peers_place_is_refused(
    listeners: list[Listener], answers: list[bytes], error: type[Exception], line: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        stranger = pool.submit(serve_once, server, answers)
        with pytest.raises(error, match=line):
            listeners[1].connections({0: server.getsockname()}, place=1, epoch=EPOCH, check=never)
        stranger.result()


def test_a_message_overheard_is_of_no_use_again(listeners: list[Listener]) -> None:
    """The acceptor's random numbers are part of the proof."""
    first, second = listeners
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as relay, ThreadPoolExecutor(2) as pool:

        def pass_on() -> None:
            near, _ = relay.accept()
            with near, socket.create_connection(first.address) as far:
                near.sendall(far.recv(40, socket.MSG_WAITALL))
                heard.append(near.recv(HELLO_BYTES, socket.MSG_WAITALL))
                far.sendall(heard[0])
                near.sendall(far.recv(32, socket.MSG_WAITALL))

        passing = pool.submit(pass_on)
        lower = pool.submit(first.connections, {1: second.address}, place=0, epoch=EPOCH, check=never)
        higher = second.connections({0: relay.getsockname()}, place=1, epoch=EPOCH, check=never)
        passing.result()
        for connection in (*lower.result().values(), *higher.values()):
            connection.close()
        lower = pool.submit(first.connections, {1: second.address}, place=0, epoch=EPOCH, check=never)
        with socket.create_connection(first.address) as guest:
            guest.settimeout(30)
            guest.recv(40, socket.MSG_WAITALL)
            guest.sendall(heard[0])
            assert not ended(guest)
        for connection in second.connections({0: first.address}, place=1, epoch=EPOCH, check=never).values():
            connection.close()
        for connection in lower.result().values():
            connection.close()


def test_a_peer_that_is_not_there_is_a_lost_peer(listeners: list[Listener]) -> None:
    gone = Listener("127.0.0.1", TOKEN)
    gone.close()
    with pytest.raises(PeerLostError, match=r"cannot connect to place 0 at 127\.0\.0\.1:.*refused"):
        listeners[1].connections({0: gone.address}, place=1, epoch=EPOCH, check=never)


@pytest.mark.parametrize("place", [0, 1])
def test_whoever_waits_for_a_peer_ends_with_its_plan(listeners: list[Listener], place: int) -> None:
    def check() -> None:
        raise PlanChangedError

    with pytest.raises(PlanChangedError):
        listeners[place].connections({1 - place: listeners[1 - place].address}, place=place, epoch=EPOCH, check=check)


ENDLESS = parse_spec(
    {
        "model": {"mlp": {"hidden": [1000, 300]}},
        "data": {"synthetic": {"samples": 100, "features": 20, "outputs": 3}},
        "training": {"global_batch_size": 12, "shards": 4, "max_steps": 10**6},
        "workers": {"min": 1},
    }
)


def _train_until_killed(path: Path, seat: int, addresses: Address, connection: object) -> None:
    """A node with one worker, in a process of its own."""
    replica = Replica.load(ENDLESS, capacity=2)
    replica.create_segment(path, "/nonexistent")
    replica.join(path, seat)
    segment = Segment.attach(path, replica.facts.shape)
    path.unlink()
    segment.control.open_plan(EPOCH)
    mine = replica.listen("127.0.0.1", TOKEN)
    connection.send(mine)  # type: ignore[attr-defined]  # multiprocessing's
    replica.run(10**6, Plan(EPOCH, (0, 1), (2, 2), (0, 1), (addresses, mine)))


def test_a_killed_process_ends_the_plan_of_the_others() -> None:
    path = DIRECTORY / f"backprop-test-{os.getpid()}"
    replica = Replica.load(ENDLESS, capacity=2)
    replica.create_segment(path, "/nonexistent")
    replica.join(path, 0)
    segment = Segment.attach(path, replica.facts.shape)
    path.unlink()
    segment.control.open_plan(EPOCH)
    here = replica.listen("127.0.0.1", TOKEN)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    other = spawn.Process(target=_train_until_killed, args=(Path(f"{path}-other"), 1, here, theirs))
    other.start()
    try:
        there = ours.recv()
        with ThreadPoolExecutor(1) as pool:
            leg = pool.submit(replica.run, 10**6, Plan(EPOCH, (0, 1), (2, 2), (0, 1), (here, there)))
            while segment.control.committed < 20 and not leg.done():
                pass
            assert other.pid is not None
            os.kill(other.pid, signal.SIGKILL)
            result = leg.result(60)
    finally:
        other.kill()
        other.join()
        ours.close()
        theirs.close()
        replica.leave()
    assert result.end is LegEnd.PLAN_CHANGED
    assert result.message.startswith("lost worker 1: ")
    assert result.step == segment.control.committed >= 20
    assert segment.control.epoch == EPOCH + 1, "the rest of the node was not told"
    replica.run(result.step + 2, Plan(segment.control.open_plan(), (0,), (4,)))
    assert segment.control.committed == result.step + 2
