"""Processes held by descriptor: known to be alive, known to be dead, never taken for another."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.processes import Process
from worker.process import start_time_of


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def held(process: subprocess.Popen[bytes]) -> Process:
    start_time = start_time_of(process.pid)
    assert start_time is not None
    return Process.hold(process.pid, start_time=start_time)


async def test_a_killed_process_is_known_to_be_dead(sleeper: subprocess.Popen[bytes]) -> None:
    process = held(sleeper)
    assert not process.has_ended
    process.kill()
    await process.ended()
    assert process.has_ended
    assert "ended" in repr(process)
    process.kill()  # once more does no harm
    process.close()


async def test_a_stopped_process_can_be_killed(sleeper: subprocess.Popen[bytes]) -> None:
    process = held(sleeper)
    os.kill(sleeper.pid, signal.SIGSTOP)
    process.kill()
    await process.ended()
    assert sleeper.wait() == -signal.SIGKILL
    process.close()


async def test_a_number_used_again_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    """It counts as ended, and is not killed in the place of the one that is meant."""
    start_time = start_time_of(sleeper.pid)
    assert start_time is not None
    process = Process.hold(sleeper.pid, start_time=start_time - 1)
    assert process.has_ended
    await process.ended()
    process.kill()
    assert sleeper.poll() is None


async def test_a_process_that_is_gone_counts_as_ended(sleeper: subprocess.Popen[bytes]) -> None:
    start_time = start_time_of(sleeper.pid)
    assert start_time is not None
    sleeper.kill()
    sleeper.wait()
    assert start_time_of(sleeper.pid) is None
    assert Process.hold(sleeper.pid, start_time=start_time).has_ended
