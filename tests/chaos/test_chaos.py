"""A short campaign; `python -m tests.chaos` has a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign

pytestmark = pytest.mark.ray


@pytest.mark.timeout(900)  # two minutes alone, and five were seen beside other tests on a busy machine
def test_thirty_kills_lose_no_job_and_change_no_bit(tmp_path: Path) -> None:
    """What they leave behind, every test looks for at its end."""
    tally = Campaign(tmp_path, jobs=4, kills=30, seed=1, say=print).run()
    assert not tally.failures, tally
    assert not tally.different, tally
    assert tally.kills.keys() == {"worker", "coordinator", "service"}, tally
