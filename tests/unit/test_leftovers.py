"""What tests leave behind is found, and what others on this machine do is not taken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import resource_tracker

import psutil
import pytest

from tests.leftovers import belongs_to_others, described, left_behind, processes

SLEEP = [sys.executable, "-c", "import sys; print('here', flush=True); sys.stdin.read()"]


def sleeper(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*SLEEP, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_process_that_goes_on_is_found_and_named() -> None:
    before = processes(), left_behind()
    with sleeper("a-name") as process:
        (found,) = processes() - before[0]
        assert found.pid == process.pid
        (name,) = left_behind() - before[1]
        assert {name} == described([found])
        assert "a-name" in name
        process.communicate()
    assert (processes(), left_behind()) == before


def test_a_process_whose_parent_has_gone_is_found() -> None:
    before = processes()
    start = "import subprocess; print(subprocess.Popen(['tail', '-f', '/dev/null'], stdout=subprocess.DEVNULL).pid)"
    done = subprocess.run([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True, check=True)
    (found,) = processes() - before
    assert found.pid == int(done.stdout)
    found.kill()
    psutil.wait_procs([found], timeout=20)


def test_what_python_keeps_for_itself_is_nobodys() -> None:
    before = processes(), left_behind()
    resource_tracker.ensure_running()
    assert (processes(), left_behind()) == before


@pytest.mark.parametrize("mark", [None, "1"], ids=["ours", "others"])
@pytest.mark.parametrize("by", ["arguments", "number"])
def test_a_path_belongs_to_who_names_it_or_is_named_in_it(by: str, mark: str | None) -> None:
    environment = {} if mark is None else {"BACKPROP_TESTS": mark}
    with sleeper("/dev/shm/backprop-*-0a0b", **environment) as process:
        path = f"/dev/shm/backprop-{'job-0a0b' if by == 'arguments' else f'test-{process.pid}-1'}"
        assert belongs_to_others(path) == (mark is not None)
        process.communicate()
    assert not belongs_to_others(path)


def test_a_path_with_this_processs_number_is_ours() -> None:
    assert not belongs_to_others(f"/dev/shm/backprop-test-{os.getpid()}-1")
