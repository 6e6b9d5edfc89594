"""Checkpoints in S3, Google Cloud Storage or Azure, through obstore.

    <prefix>/step-0000000200/weights.safetensors.<sha256>      written first, then read back
                             manifest.json                     written last: what has one is visible
             corrupt-step-.../...                              set aside

Credentials and endpoints come from the environment, as obstore reads it (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).

Objects are named by their content and never changed, so that a second writer of the same step writes the same ones.
The manifest is put only where there is none yet (If-None-Match), so that of two writers one wins and the other sees it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import from_url

from worker.checkpoint_store import (
    CHUNK_BYTES,
    MANIFEST,
    VISIBLE,
    CorruptCheckpointError,
    Entry,
    Read,
    StoreUnreachableError,
)

SCHEMES = ("s3", "gs", "az")
SET_ASIDE = "corrupt-"
LEFTOVER_SECONDS = 3600.0  # an upload that began an hour ago is not under way any more
MULTIPART_BYTES = 1 << 30  # below, one request a file: a writer that dies leaves no parts that cost and do not show
RETRY = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
CLIENT = {"connect_timeout": "5s", "timeout": "600s", "allow_http": True}  # a gigabyte takes minutes on a slow line


class ObjectStore:
    """The checkpoints of one job below a URL such as s3://bucket/path; raises ValueError for others."""

    def __init__(self, url: str, *, leftover_seconds: float = LEFTOVER_SECONDS) -> None:
        self._url, self._leftover_seconds = url.rstrip("/"), leftover_seconds
        self._store = _connect(self._url)

    def __repr__(self) -> str:
        return f"<ObjectStore {self._url}>"

    @property
    def location(self) -> str:
        """See CheckpointStore."""
        return self._url

    def locate(self, name: str, file: str, sha256: str) -> str:
        """See CheckpointStore."""
        return f"{self._url}/{_key(name, file, sha256)}"

    def entries(self) -> list[Entry]:
        """See CheckpointStore."""
        entries = []
        for name, parts in sorted(self._parts().items()):
            written = [part["last_modified"].timestamp() for part in parts if part["path"] == _key(name, MANIFEST)]
            if name.startswith(VISIBLE) and written:
                entries.append(Entry(name, written[0], sum(part["size"] for part in parts)))
        return entries

    def read(self, name: str, file: str, sha256: str = "") -> bytes:
        """See CheckpointStore."""
        return self._get(_key(name, file, sha256))

    def publish(self, name: str, files: Mapping[str, bytes], manifest: bytes, check: Callable[[Read], None]) -> None:
        """See CheckpointStore."""

        def written(file: str, sha256: str) -> bytes:
            return manifest if file == MANIFEST else self.read(name, file, sha256)

        if self._is_there(name, manifest, check):
            return
        for file, content in files.items():
            with self._errors():
                key = _key(name, file, hashlib.sha256(content).hexdigest())
                obstore.put(self._store, key, content, use_multipart=len(content) > MULTIPART_BYTES)
        check(written)
        if not self._create(_key(name, MANIFEST), manifest) and not self._is_there(name, manifest, check):
            self._delete([_key(name, MANIFEST)])  # of the same step and not equal: unsound, or from other numerics
            if not self._create(_key(name, MANIFEST), manifest):
                raise OSError(f"{self._url}/{name}: another writer is at work there")
        if self.read(name, MANIFEST) != manifest:
            self._delete([_key(name, MANIFEST)])
            raise CorruptCheckpointError(f"{self._url}/{name}: the manifest read back is not the one written")

    def _is_there(self, name: str, manifest: bytes, check: Callable[[Read], None]) -> bool:
        """Whether a checkpoint is visible already, written by an earlier attempt at the same steps."""
        try:
            if self.read(name, MANIFEST) != manifest:
                return False
            check(lambda file, sha256: self.read(name, file, sha256))
        except (FileNotFoundError, CorruptCheckpointError):
            return False
        return True

    def _create(self, key: str, content: bytes) -> bool:
        """Puts an object where there is none; whether there was none."""
        with self._errors():
            try:
                obstore.put(self._store, key, content, mode="create")
            except AlreadyExistsError:
                return False
            except NotSupportedError:  # some S3 servers know no conditions; one writer a job is the rule anyhow
                obstore.put(self._store, key, content)
        return True

    def remove(self, name: str) -> None:
        """See CheckpointStore."""
        self._delete([_key(name, MANIFEST)])
        self._delete([part["path"] for part in self._parts().get(name, [])])

    def set_aside(self, name: str) -> str:
        """See CheckpointStore."""
        aside = f"{SET_ASIDE}{name}-{os.urandom(3).hex()}"
        keys = [part["path"] for part in self._parts().get(name, [])]
        for key in sorted(keys, key=lambda key: key != _key(name, MANIFEST)):  # what makes it visible goes first
            with self._errors():
                obstore.rename(self._store, key, f"{aside}{key.removeprefix(name)}")
        return f"{self._url}/{aside}"

    def sweep(self) -> None:
        """See CheckpointStore."""
        for name, parts in self._parts().items():
            newest = max(part["last_modified"].timestamp() for part in parts)
            has_manifest = any(part["path"] == _key(name, MANIFEST) for part in parts)
            if name.startswith(VISIBLE) and not has_manifest and newest < time.time() - self._leftover_seconds:
                self._delete([part["path"] for part in parts])

    def clear(self) -> None:
        """See CheckpointStore."""
        self._delete([part["path"] for parts in self._parts().values() for part in parts])

    def probe(self) -> None:
        """See CheckpointStore."""
        key = f".probe-{os.urandom(6).hex()}"
        with self._errors():
            obstore.put(self._store, key, b"may be deleted")
        self._delete([key])

    def _parts(self) -> dict[str, list[Any]]:
        """The objects by the first part of their names."""
        parts: dict[str, list[Any]] = {}
        with self._errors():
            for found in (found for page in obstore.list(self._store) for found in page):
                parts.setdefault(found["path"].partition("/")[0], []).append(found)
        return parts

    def _get(self, key: str) -> bytes:
        with self._errors():
            return bytes(obstore.get(self._store, key).bytes())

    def _delete(self, keys: list[str]) -> None:
        with self._errors(), suppress(FileNotFoundError):
            if keys:
                obstore.delete(self._store, keys)

    def _errors(self) -> Any:
        return _translated(self._url)


def open_object(url: str) -> tuple[int, Iterator[bytes]]:
    """An object's size, and its content in pieces as they come in. Raises OSError, for the pieces, too."""
    parent, _, key = url.rpartition("/")
    with _translated(url):
        found = obstore.get(_connect(parent), key)

    def pieces() -> Iterator[bytes]:
        with _translated(url):
            for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                view = memoryview(chunk)
                for start in range(0, len(view), CHUNK_BYTES):
                    yield bytes(view[start : start + CHUNK_BYTES])

    return found.meta["size"], pieces()


def _connect(url: str) -> Any:
    scheme, separator, rest = url.partition("://")
    if scheme not in SCHEMES or not separator or not rest.strip("/"):
        expected = "a path, file:///path, s3://bucket/path, gs://bucket/path or az://account/container/path"
        raise ValueError(f"got {url!r}, expected {expected}")
    try:
        return from_url(url, client_options=CLIENT, retry_config=RETRY)  # type: ignore[call-overload]  # the same for each
    except (BaseError, ValueError) as error:
        raise ValueError(f"{url}: {_first_line(error)}") from None


def _key(name: str, file: str, sha256: str = "") -> str:
    return f"{name}/{file}.{sha256}" if sha256 else f"{name}/{file}"


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: {_first_line(error)}") from None
    except BaseError as error:
        raise StoreUnreachableError(f"{url}: {type(error).__name__}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """obstore prints an error's whole insides below its first line, and the server's answer at its end."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(": <?xml")[0][:300]
