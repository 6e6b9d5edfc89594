"""How commands fail: one line for each thing that is wrong, and an exit code that scripts can rely on."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """What a command's exit code means."""

    DONE = 0
    JOB_FAILED = 1
    WRONG_INPUT = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


class CommandError(Exception):
    """A command that cannot go on; `lines` go to standard error."""

    def __init__(self, *lines: str, code: ExitCode = ExitCode.WRONG_INPUT) -> None:
        super().__init__("\n".join(lines))
        self.lines, self.code = lines, code


@contextmanager
def explained() -> Iterator[None]:
    """Ends the process with the right exit code when the block fails."""
    try:
        yield
    except CommandError as error:
        say(*error.lines)
        sys.exit(error.code)
    except BrokenPipeError:  # `backprop jobs | head` is no error
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.DONE)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:
        if os.environ.get("BACKPROP_DEBUG") == "1":
            raise
        line, code = explanation(error)
        say(*line)
        sys.exit(code)


def explanation(error: Exception) -> tuple[tuple[str, ...], ExitCode]:
    """What to say about an error, and the exit code for it."""
    from service.client import ClientError  # loads gRPC, which `backprop --help` can do without
    from service.errors import ServiceError
    from service.jobfile import JobFileError

    match error:
        case JobFileError():
            return error.lines, ExitCode.WRONG_INPUT
        case ServiceError():
            return (f"backprop: {error}",), ExitCode.WRONG_INPUT
        case ClientError(code="INTERNAL" | "UNKNOWN" | "DATA_LOSS"):
            return (f"backprop: {error}",), ExitCode.JOB_FAILED
        case ClientError():
            return (f"backprop: {error}",), ExitCode.UNREACHABLE if error.is_unreachable else ExitCode.WRONG_INPUT
    summary = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (f"backprop: an unexpected error, {summary}; {written_down(error)}",), ExitCode.JOB_FAILED


def written_down(error: Exception) -> str:
    """Appends the traceback to a log of the user's, and says where."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    log = (base if base.is_absolute() else Path.home() / ".local" / "state") / "backprop" / "errors.log"
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {' '.join(sys.argv)}\n")
            traceback.print_exception(error, file=file)
    except OSError:
        return "set BACKPROP_DEBUG=1 to see more"
    return f"{log} has more"


def say(*lines: str) -> None:
    """Tells the user something that is not the command's result."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)
