"""Where checkpoints lie, behind a few calls: a directory here, an object store in `object_store`.

A checkpoint has a name, some files and a manifest that names them with their checksums. It is visible with all of
them or not at all, and what is visible is never changed. Knows bytes, nothing of weights or jobs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MANIFEST = "manifest.json"
VISIBLE, TEMPORARY, TRASH, CORRUPT = "step-", ".tmp-", ".trash-", ".corrupt-"
LOCAL_SCHEME = "file://"
CHUNK_BYTES = 1 << 20

Read = Callable[[str, str], bytes]
"""The content of one of a checkpoint's files, by its name and the sha256 that the manifest has for it."""


@dataclass(frozen=True)
class Entry:
    """A visible checkpoint. `time` is when it was written, in seconds since 1970."""

    name: str
    time: float
    size_bytes: int


class StoreUnreachableError(OSError):
    """The store does not answer, or does not let us in: nothing is known of what it holds."""


class CorruptCheckpointError(Exception):
    """A checkpoint is not what its manifest says."""


class CheckpointStore(Protocol):
    """The checkpoints of one job. What cannot be done raises OSError, and leaves what is visible as it was."""

    @property
    def location(self) -> str:
        """The path or URL of it all, for people."""
        ...

    def locate(self, name: str, file: str, sha256: str) -> str:
        """The path or URL of one file, for `open_file`."""
        ...

    def entries(self) -> list[Entry]:
        """The visible checkpoints, oldest step first."""
        ...

    def read(self, name: str, file: str, sha256: str = "") -> bytes:
        """A file of a visible checkpoint, unchecked; raises FileNotFoundError where it is missing."""
        ...

    def publish(self, name: str, files: Mapping[str, bytes], manifest: bytes, check: Callable[[Read], None]) -> None:
        """Writes a new checkpoint, lets `check` read it back, and makes it visible, for good.

        One of this name that is there already and is equal is left alone. What `check` raises is passed on.
        """
        ...

    def remove(self, name: str) -> None:
        """Takes a checkpoint away; at no time is it visible in part."""
        ...

    def set_aside(self, name: str) -> str:
        """Makes a corrupt checkpoint invisible but keeps it for whoever wants to look; its new location."""
        ...

    def sweep(self) -> None:
        """Removes what writers that died have left half done."""
        ...

    def clear(self) -> None:
        """Removes everything, what was set aside, too."""
        ...

    def probe(self) -> None:
        """Tries that something can be written and removed."""
        ...


class LocalStore:
    """Checkpoints in a directory.

        <directory>/step-0000000200/...     visible
                    .tmp-...                being written; renamed when all of it is flushed and was read back
                    .trash-...              being removed
                    .corrupt-...            set aside

    A file is flushed before the directory that names it, and that before the rename; the rename is flushed before it is
    acknowledged. After a failed flush nothing is known of a file, so it is never flushed again but written anew.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __repr__(self) -> str:
        return f"<LocalStore {self._directory}>"

    @property
    def location(self) -> str:
        """See CheckpointStore."""
        return str(self._directory)

    def locate(self, name: str, file: str, sha256: str) -> str:
        """See CheckpointStore."""
        return str(self._directory / name / file)

    def entries(self) -> list[Entry]:
        """See CheckpointStore."""
        found = []
        for name in self._names(VISIBLE):
            with suppress(FileNotFoundError):  # removed in the meantime
                stats = [file.stat() for file in os.scandir(self._directory / name)]
                time = os.stat(self._directory / name).st_mtime
                found.append(Entry(name, time, sum(stat.st_size for stat in stats)))
        return found

    def _names(self, prefix: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._directory) if name.startswith(prefix))
        except FileNotFoundError:  # nothing was written yet
            return []
        except OSError as error:
            raise StoreUnreachableError(f"{self._directory}: {error.strerror}") from None

    def read(self, name: str, file: str, sha256: str = "") -> bytes:
        """See CheckpointStore."""
        return _read(self._directory / name / file)

    def publish(self, name: str, files: Mapping[str, bytes], manifest: bytes, check: Callable[[Read], None]) -> None:
        """See CheckpointStore."""
        _make(self._directory)
        if self._is_there(name, manifest, check):
            return
        target, temporary = self._directory / name, self._directory / f"{TEMPORARY}{name}-{os.getpid()}"
        trash = self._directory / f"{TRASH}{name}-{os.urandom(3).hex()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            os.mkdir(temporary, 0o700)
            for file, content in {**files, MANIFEST: manifest}.items():
                _write(temporary / file, content)
            _flush(temporary)
            check(lambda file, sha256: _read(temporary / file))
            with suppress(FileNotFoundError):
                os.rename(target, trash)  # of the same step and not equal: unsound, or from other numerics
            try:
                os.rename(temporary, target)
            except OSError:
                with suppress(FileNotFoundError):
                    os.rename(trash, target)
                raise
            _flush(self._directory)
            shutil.rmtree(trash, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _is_there(self, name: str, manifest: bytes, check: Callable[[Read], None]) -> bool:
        """Whether a checkpoint is visible already, written by an earlier attempt at the same steps."""
        try:
            if self.read(name, MANIFEST) != manifest:
                return False
            check(lambda file, sha256: self.read(name, file))
        except (OSError, CorruptCheckpointError):
            return False
        _flush(self._directory)  # whoever wrote it may have died before
        return True

    def remove(self, name: str) -> None:
        """See CheckpointStore."""
        trash = self._directory / f"{TRASH}{name}-{os.urandom(3).hex()}"
        os.rename(self._directory / name, trash)
        _flush(self._directory)  # or a power cut could bring the name back, and not what was in it
        shutil.rmtree(trash, ignore_errors=True)

    def set_aside(self, name: str) -> str:
        """See CheckpointStore."""
        corrupt = self._directory / f"{CORRUPT}{name}-{os.urandom(3).hex()}"
        os.rename(self._directory / name, corrupt)
        return str(corrupt)

    def sweep(self) -> None:
        """See CheckpointStore."""
        for name in [*self._names(TEMPORARY), *self._names(TRASH)]:
            shutil.rmtree(self._directory / name, ignore_errors=True)

    def clear(self) -> None:
        """See CheckpointStore."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._directory)

    def probe(self) -> None:
        """See CheckpointStore."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._directory):
            pass


def is_url(location: str) -> bool:
    """Whether a location is one of an object store, not a path or a file:// URL."""
    return "://" in location and not location.startswith(LOCAL_SCHEME)


def open_store(location: str) -> CheckpointStore:
    """The store at a path or URL; nothing is written yet. Raises ValueError for a URL that stands for none."""
    if is_url(location):
        from worker.object_store import ObjectStore  # a library of 16 MB, which few jobs need

        return ObjectStore(location)
    return LocalStore(local_path(location))


def local_path(location: str) -> Path:
    """The path of a local location; raises ValueError for a file:// URL that names another machine."""
    path = location.removeprefix(LOCAL_SCHEME)
    if not path.startswith("/"):
        raise ValueError(
            f"got {location!r}, expected an absolute path, file:///path, or a URL such as s3://bucket/path"
        )
    return Path(path)


def open_file(location: str) -> tuple[int, Iterator[bytes]]:
    """A file that `locate` named: its size, and its content in pieces. Raises OSError, for the pieces, too."""
    if is_url(location):
        from worker.object_store import open_object

        return open_object(location)
    file = local_path(location).open("rb")

    def pieces() -> Iterator[bytes]:
        with file:
            while piece := file.read(CHUNK_BYTES):
                yield piece

    return os.fstat(file.fileno()).st_size, pieces()


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _write(path: Path, content: bytes) -> None:
    """Writes a new file and flushes it to disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _make(directory: Path) -> None:
    """Makes a directory that a power cut does not take away again, nor those above it."""
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for parent in directory.parents:
            with suppress(PermissionError):  # somebody else's, and there for long
                _flush(parent)


def _flush(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
