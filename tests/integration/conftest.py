"""Failpoints for the modules that train on a Ray cluster; `tests.clusters` has the cluster itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers of the module's cluster look for failpoints; see `tests.failpoints`."""
    return tmp_path_factory.mktemp("failpoints")


@pytest.fixture(autouse=True)
def _no_failpoint_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if "points" not in request.fixturenames:
        yield
        return
    points: Path = request.getfixturevalue("points")
    yield
    for path in points.iterdir():
        path.unlink(missing_ok=True)  # a worker may have met it just now
