"""What a service is started with. Reads no environment and opens nothing: `cli` passes in what it was given."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.checkpoints import CheckpointPolicy
from service.errors import StartError


@dataclass(frozen=True)
class Address:
    """A host, as the user wrote it, and a TCP port; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


KERNELS = "kernels"  # where in the data directory compiled kernels are kept
DEFAULT_LISTEN = Address("127.0.0.1", 50051)
DEFAULT_HTTP = Address("127.0.0.1", 8080)


@dataclass(frozen=True)
class Settings:
    """Where a service listens, keeps its files and finds its workers; `http` None is off."""

    data_dir: Path
    listen: Address = DEFAULT_LISTEN
    http: Address | None = DEFAULT_HTTP
    ray_address: str | None = None
    worker_slots: int | None = None
    checkpoints: CheckpointPolicy = CheckpointPolicy()


def parse_address(text: str, *, option: str) -> Address:
    """HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051; raises StartError naming the option."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise StartError(f"{option}: got {text!r}, expected HOST:PORT such as 127.0.0.1:50051", reason="BAD_ADDRESS")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def check_loopback(address: Address, *, option: str) -> Address:
    """The address, if only this machine can reach it; raises StartError, for there is no authentication yet."""
    try:
        is_loopback = address.host == "localhost" or ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise StartError(
            f"{option}: got {address}, expected a loopback address such as 127.0.0.1:{address.port}: "
            "the service has no authentication yet, whoever reaches it may use it",
            reason="NOT_LOOPBACK",
        )
    return address


def default_data_dir(environment: Mapping[str, str], *, home: Path) -> Path:
    """Where a service keeps its jobs unless told otherwise, by the XDG rule: an absolute XDG_DATA_HOME counts."""
    base = Path(environment.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else home / ".local" / "share") / "backprop"
