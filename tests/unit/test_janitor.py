"""The janitor: ends what uses a directory, and nothing else."""

import subprocess
import sys
import time
from pathlib import Path

from service import janitor

SLEEP = "import sys, time; file = sys.argv[1:] and open(sys.argv[1]); print('ready', flush=True); time.sleep(60)"


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SLEEP, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(10)


def test_it_ends_who_has_a_file_open_and_removes_everything(tmp_path: Path) -> None:
    directory, segment, other = tmp_path / "ray", tmp_path / "backprop-job-1a2b", tmp_path / "backprop-job-ffff"
    directory.mkdir()
    (directory / "log").write_text("")
    segment.write_text("")
    other.write_text("")
    outside = tmp_path / "file"
    outside.write_text("")
    user, bystander = start(str(directory / "log")), start(str(outside))
    janitor.clean(directory, f"{tmp_path}/backprop-*-1a2b", grace_seconds=0.2)
    assert end(user) == -9
    assert bystander.poll() is None
    bystander.kill()
    end(bystander)
    assert not directory.exists()
    assert not segment.exists()
    assert other.exists()


def test_it_waits_for_the_end_of_its_input(tmp_path: Path) -> None:
    directory = tmp_path / "ray"
    directory.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "service.janitor", str(directory), str(tmp_path / "none-*")], stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    assert directory.exists()
    process.stdin.close()
    assert process.wait(20) == 0
    assert not directory.exists()


def test_a_file_is_removed_when_whoever_made_it_is_killed(tmp_path: Path) -> None:
    segment = tmp_path / "segment"
    segment.touch()
    maker = "import sys; from pathlib import Path; from service.janitor import leave_beside; "
    maker += "leave_beside(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", maker, str(segment)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert segment.exists()
        process.kill()
    deadline = time.monotonic() + 20
    while segment.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
