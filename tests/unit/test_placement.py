"""Where new workers go: on as few nodes as possible, the job's own first."""

from __future__ import annotations

import pytest

from service.placement import place


@pytest.mark.parametrize(
    ("count", "free", "home", "expected"),
    [
        (2, {"a": 4, "b": 8}, ["a"], "aa"),  # it stays where it is
        (5, {"a": 4, "b": 8}, ["a"], "aaaab"),
        (5, {"a": 2, "b": 1, "c": 8}, ["a"], "aaccc"),  # the roomiest next, so that there are two nodes and not three
        (3, {"a": 0, "b": 1, "c": 2}, ["a"], "ccb"),
        (3, {"a": 1, "b": 1, "c": 5}, ["b", "a"], "bac"),  # its nodes in the order in which they are given
        (3, {"a": 1}, ["a"], "aaa"),  # nobody has room: they wait at home
        (1, {"b": 2}, ["a"], "b"),  # Ray knows nothing of its node any more
        (2, {"a": -1, "b": 1}, ["a"], "ba"),  # more workers are there than slots
        (1, {}, ["a"], "a"),
        (0, {"a": 1}, ["a"], ""),
    ],
)
def test_workers_are_placed(count: int, free: dict[str, int], home: list[str], expected: str) -> None:
    assert "".join(place(count, free, home=home)) == expected


def test_equally_roomy_nodes_are_taken_in_one_order() -> None:
    assert place(2, {"b": 1, "a": 1, "c": 1}, home=["c"]) == ("c", "a")
