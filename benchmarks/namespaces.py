"""Network namespaces joined by veth pairs: nodes of a cluster on one machine, for root."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NAMES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
BURST = "128kb"  # what passes at once: above the 64 kB that the kernel hands over as one, and not a whole exchange


@dataclass(frozen=True)
class Namespace:
    """A node's network: what `enter` takes, its address and its network device."""

    name: str
    host: str
    device: str

    def enter(self) -> None:
        """Moves this thread there, with all that it starts; before any socket is made."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (_NAMES / self.name).open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {self.name}")
        os.environ["GLOO_SOCKET_IFNAME"] = self.device

    @property
    def times_held_up(self) -> int:
        """How often the limited wire has let something wait that this node sent."""
        shown = _call("tc", "-n", self.name, "-s", "-j", "qdisc", "show", "dev", self.device)
        return sum(int(one["overlimits"]) for one in json.loads(shown) if one["kind"] == "tbf")

    def cut(self) -> None:
        """Takes the link away without a word to anybody."""
        _ip("-n", self.name, "link", "set", self.device, "down")


@contextmanager
def two_namespaces(*, rate: str | None = None) -> Iterator[tuple[Namespace, Namespace]]:
    """Two nodes on one wire, gone afterwards. `rate` limits the wire, as in "1gbit". Raises CalledProcessError."""
    token = secrets.token_hex(3)
    nodes = tuple(Namespace(f"bpx-{token}-{i}", f"10.77.0.{i}", f"bpx{i}") for i in (1, 2))
    first, second = nodes
    try:
        for node in nodes:
            _ip("netns", "add", node.name)
            _ip("-n", node.name, "link", "set", "lo", "up")
        ends = ("type", "veth", "peer", "name", second.device, "netns", second.name)
        _ip("link", "add", first.device, "netns", first.name, *ends)
        for node in nodes:
            _ip("-n", node.name, "addr", "add", f"{node.host}/24", "dev", node.device)
            _ip("-n", node.name, "link", "set", node.device, "up")
            if rate is not None:
                limit = ("tbf", "rate", rate, "burst", BURST, "latency", "50ms")
                _call("tc", "-n", node.name, "qdisc", "add", "dev", node.device, "root", *limit)
        yield first, second
    finally:
        for node in nodes:
            subprocess.run(["ip", "netns", "delete", node.name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    _call("ip", *arguments)


def _call(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
