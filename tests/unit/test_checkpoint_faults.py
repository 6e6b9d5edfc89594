"""Checkpoints on a disk that fails or dies at any operation: never a bad one visible, never an acknowledged one lost.

The faults run in a process of their own, see tests/chaos/checkpoint_faults.py and checkpoint_strace.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, program: str = "checkpoint_faults") -> tuple[int, Any]:
    """The program's exit code, and its tally."""
    command = [sys.executable, "-m", f"tests.chaos.{program}", *arguments]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_no_fault_at_any_operation_breaks_a_promise() -> None:
    code, tally = run()
    assert (code, tally["broken"]) == (0, [])
    assert tally["faults"] > 500, "each of six ways to fail, at each operation of five scenarios"


@pytest.mark.parametrize("mutant", ["flush", "fsync", "in-place", "retention"])
def test_a_planted_bug_is_found(mutant: str) -> None:
    """Otherwise the test above would prove nothing."""
    code, tally = run("--mutant", mutant)
    assert code == 1
    assert tally["broken"]


def test_the_program_tells_how_many_flips_were_found() -> None:
    assert run("--flips", "20", "--seed", "3") == (0, {"flips": 20, "found": 20})


with_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="failing system calls need the program strace")


@with_strace
def test_no_system_call_that_fails_breaks_a_promise() -> None:
    """Those that decide what is visible; the program by itself lets all of them fail, which takes minutes."""
    calls = ("--scenarios", "over a damaged one", "--calls", "rename", "mkdir")
    code, tally = run(*calls, program="checkpoint_strace")
    assert (code, tally["broken"]) == (0, [])
    assert tally["faults"] >= 12, "each of four ways to fail, at each of three calls and more"


@with_strace
def test_a_planted_bug_is_found_by_a_system_call_that_fails() -> None:
    code, tally = run(
        "--scenarios", "one more", "--calls", "write", "--mutant", "in-place", program="checkpoint_strace"
    )
    assert code == 1
    assert "visible and unsound" in tally["broken"][0]
