"""A disk that fails, or dies, at its Nth operation: a shim over `os` that counts what is done below one directory.

    fail     the Nth operation raises an error (ENOSPC, EIO, EROFS), a write after half of it; later ones work
    break    from the Nth on, every operation that writes raises EROFS
    kill     the process is gone before the Nth operation, or after half of a write
    power    the same, and what was not flushed is lost: bytes of files, and names in directories

The shim sees what goes through `os`, as `worker.checkpoint_store` and `shutil.rmtree` do it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir", "close", "listdir")
KILLED = 77
REAL = {name: getattr(os, name) for name in NAMES}


@dataclass
class Disk:
    """What happens to operation number `at`, counted from 1; 0 is none of them."""

    directory: Path
    at: int = 0
    mode: str = "fail"
    error: int = errno.EIO
    count: int = 0
    unflushed_files: dict[str, None] = field(default_factory=dict)
    unflushed_names: list[tuple[str, str, str]] = field(default_factory=list)
    """(directory that does not have the name on disk yet, path, what it was renamed from or ""), newest last."""
    _paths: dict[int, str] = field(default_factory=dict)

    def perform(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """One operation."""
        path = self._path_of(name, *arguments, **keywords)
        if path is None or not path.startswith(str(self.directory)):
            return REAL[name](*arguments, **keywords)
        self.count += 1
        is_hit = self.count == self.at or (self.mode == "break" and self.at and self.count >= self.at)
        if is_hit and name == "write":
            REAL["write"](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        if is_hit and self.mode in ("kill", "power"):
            if self.mode == "power":
                self.lose_what_was_not_flushed()
            os._exit(KILLED)
        if is_hit and name == "close":
            REAL["close"](*arguments)  # an error at close has closed the file all the same
        if is_hit and not (self.mode == "break" and self._only_reads(name, *arguments)):
            raise OSError(self.error, os.strerror(self.error), path)
        result = REAL[name](*arguments, **keywords)
        self._note(name, path, result, *arguments)
        return result

    def _only_reads(self, name: str, *arguments: Any) -> bool:
        return name in ("close", "listdir") or (name == "open" and not arguments[1] & (os.O_WRONLY | os.O_CREAT))

    def _path_of(self, name: str, *arguments: Any, dir_fd: int | None = None, **keywords: Any) -> str | None:
        target = arguments[0]
        if isinstance(target, int):
            return self._paths.pop(target, None) if name == "close" else self._paths.get(target)
        path = os.fspath(target)
        return os.path.join(self._paths.get(dir_fd, "/"), path) if dir_fd is not None else path

    def _note(self, name: str, path: str, result: Any, *arguments: Any) -> None:
        parent = os.path.dirname(path)
        if name == "open":
            self._paths[result] = path
            if arguments[1] & os.O_CREAT:
                self.unflushed_names.append((parent, path, ""))
                self.unflushed_files[path] = None
        elif name == "write":
            self.unflushed_files[path] = None
        elif name == "fsync":
            self.unflushed_files.pop(path, None)
            self.unflushed_names = [entry for entry in self.unflushed_names if entry[0] != path]
        elif name == "mkdir":
            self.unflushed_names.append((parent, path, ""))
        elif name == "rename":
            target = os.fspath(arguments[1])
            self._follow(path, target)
            self.unflushed_names.append((os.path.dirname(target), target, path))

    def _follow(self, old: str, new: str) -> None:
        """What lies below a directory that was renamed has other paths now."""

        def moved(path: str) -> str:
            return new + path.removeprefix(old) if path == old or path.startswith(f"{old}/") else path

        self.unflushed_files = {moved(file): None for file in self.unflushed_files}
        self.unflushed_names = [(moved(parent), moved(path), before) for parent, path, before in self.unflushed_names]

    def lose_what_was_not_flushed(self) -> None:
        """As after a power cut: names that no directory has on disk are undone, newest first, and files are empty."""
        for file in self.unflushed_files:
            if os.path.isfile(file):
                os.truncate(file, 0)
        while self.unflushed_names:
            _, path, before = self.unflushed_names.pop()
            if before and os.path.lexists(path):
                REAL["rename"](path, before)
                self._follow(path, before)
            elif before:  # renamed, emptied and removed: the disk may know of the emptying alone
                REAL["mkdir"](before)
            elif os.path.isfile(path):
                REAL["unlink"](path)


@contextmanager
def installed(disk: Disk) -> Iterator[Disk]:
    """The shim in the place of `os`, for the time of the block."""

    def shim(name: str) -> Callable[..., Any]:
        return lambda *arguments, **keywords: disk.perform(name, *arguments, **keywords)

    try:
        for name in NAMES:
            setattr(os, name, shim(name))
        yield disk
    finally:
        for name in NAMES:
            setattr(os, name, REAL[name])
