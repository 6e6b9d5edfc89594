"""Addresses and directories that a service is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import Address, Settings, check_loopback, default_data_dir, parse_address
from service.errors import StartError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:50051", Address("127.0.0.1", 50051)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:80", Address("::1", 80)),
        ("train.example.org:1", Address("train.example.org", 1)),
    ],
)
def test_an_address_is_read_and_shown_alike(text: str, address: Address) -> None:
    assert parse_address(text, option="--listen") == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "50051", ":50051", "localhost", "localhost:", "localhost:x", "a:65536", "a:-1", "a:²"]
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(StartError, match=r"^--listen: got .*, expected HOST:PORT such as 127.0.0.1:50051$"):
        parse_address(text, option="--listen")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_allowed(host: str) -> None:
    assert check_loopback(Address(host, 1), option="--listen") == Address(host, 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_interfaces_are_refused_while_there_is_no_authentication(host: str) -> None:
    with pytest.raises(
        StartError, match=r"expected a loopback address such as 127\.0\.0\.1:1: the service has no auth"
    ):
        check_loopback(Address(host, 1), option="--listen")


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({}, "/home/me/.local/share/backprop"),
        ({"XDG_DATA_HOME": "/data"}, "/data/backprop"),
        ({"XDG_DATA_HOME": "data"}, "/home/me/.local/share/backprop"),
        ({"XDG_DATA_HOME": ""}, "/home/me/.local/share/backprop"),
    ],
)
def test_data_lies_where_xdg_says(environment: dict[str, str], directory: str) -> None:
    assert default_data_dir(environment, home=Path("/home/me")) == Path(directory)


def test_the_default_is_loopback_only() -> None:
    settings = Settings(Path("/data"))
    assert str(settings.listen) == "127.0.0.1:50051"
    assert str(settings.http) == "127.0.0.1:8080"
