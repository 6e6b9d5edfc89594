"""The store of a service: one SQLite file, one connection, one thread.

The file belongs to one process: the kernel's lock keeps a second service away from the same data directory. Every
commit is synced to disk before it returns, so that what was acknowledged survives a crash and a power cut.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from service import limits
from service.errors import NotFound, StartError, Unavailable
from service.jobs import Happening, Job, JobEvent, JobState, StateChanged
from service.records import dump_happening, dump_job, dump_sample, load_happening, load_job, load_sample
from service.runs import StepSample
from service.store import Page, Request, check_same

Result = TypeVar("Result")

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        body TEXT NOT NULL
    );
    CREATE INDEX jobs_by_state ON jobs (state, position);
    CREATE TABLE events (
        job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
        event_id INTEGER NOT NULL,
        time REAL NOT NULL,
        kind TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (job_id, event_id)
    ) WITHOUT ROWID;
    CREATE TABLE requests (
        request_id TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE
    ) WITHOUT ROWID;
    CREATE INDEX requests_by_job ON requests (job_id);
    """,
    """
    CREATE TABLE samples (
        job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (job_id, step)
    ) WITHOUT ROWID;
    """,
)
"""Number n leads from schema n to schema n+1; only ever appended to."""


def connect(path: Path) -> sqlite3.Connection:
    """Opens the database at `path` for this process alone and brings its schema up to date; raises StartError."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    except sqlite3.Error as error:
        raise StartError(f"cannot open the job store {path}: {error}", reason="STORE_UNUSABLE") from None
    try:
        # One process only: the kernel's lock keeps a second service out, and SQLite before 3.51.3 can damage a
        # write-ahead log that has two connections.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
        if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        migrate(connection, path)
    except sqlite3.DatabaseError as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise StartError(
                f"data directory {path.parent} is in use by another backprop service; stop it or use another",
                reason="DATA_DIRECTORY_IN_USE",
            ) from None
        raise StartError(f"the job store {path} cannot be used: {error}", reason="STORE_UNUSABLE") from None
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings the schema up to date, one transaction a step."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StartError(
            f"the job store {path} has schema {version}, expected at most {len(MIGRATIONS)}: a newer backprop wrote it",
            reason="STORE_TOO_NEW",
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; lasting when the block is left."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class SqliteStore:
    """The store of a service: one SQLite file, its write-ahead log synced at every commit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path} {'open' if self._connection else 'closed'}>"

    async def open(self) -> None:
        """Opens the file; raises StartError when it is damaged, too new or in another service's hands."""
        try:
            self._connection = await asyncio.get_running_loop().run_in_executor(self._thread, connect, self._path)
        except BaseException:
            self._thread.shutdown()
            raise

    async def close(self) -> None:
        """See JobStore."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        connection = self._connection
        if connection is None:
            raise Unavailable("the job store is closed: the service stops", reason="STOPPING")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, connection)
        except sqlite3.Error as error:
            raise Unavailable(
                f"the job store {self._path} cannot be used now: {error}", reason="STORE_UNAVAILABLE"
            ) from None

    async def create(self, job: Job, *, request: Request | None = None) -> Job:
        """See JobStore."""

        def work(connection: sqlite3.Connection) -> Job:
            with transaction(connection):
                if request is not None and (earlier := _find(connection, request)) is not None:
                    return earlier
                connection.execute(
                    "INSERT INTO jobs (job_id, state, body) VALUES (?, ?, ?)", (job.job_id, job.state, dump_job(job))
                )
                if request is not None:
                    row = (request.request_id, request.digest, job.job_id)
                    connection.execute("INSERT INTO requests (request_id, digest, job_id) VALUES (?, ?, ?)", row)
                _append(connection, job, [StateChanged(job.state)], now=job.create_time)
            return job

        return await self._run(work)

    async def find(self, request: Request) -> Job | None:
        """See JobStore."""
        return await self._run(lambda connection: _find(connection, request))

    async def save(
        self,
        job: Job,
        happenings: Sequence[Happening] = (),
        *,
        now: float,
        samples: Sequence[StepSample] = (),
        stride: int = 1,
    ) -> tuple[JobEvent, ...]:
        """See JobStore."""

        def work(connection: sqlite3.Connection) -> tuple[JobEvent, ...]:
            with transaction(connection):
                row = (job.state, dump_job(job), job.job_id)
                if connection.execute("UPDATE jobs SET state = ?, body = ? WHERE job_id = ?", row).rowcount == 0:
                    raise NotFound(job.job_id)
                if samples:
                    _save_samples(connection, job, samples, stride=stride)
                return _append(connection, job, happenings, now=now)

        return await self._run(work)

    async def get(self, job_id: str) -> Job:
        """See JobStore."""
        return await self._run(lambda connection: _get(connection, job_id))

    async def page(self, *, states: Collection[JobState] = (), before: int | None = None, size: int) -> Page:
        """See JobStore."""
        wanted = list(states) or list(JobState)
        query = f"""SELECT position, body FROM jobs WHERE state IN ({",".join("?" * len(wanted))})
            AND (? IS NULL OR position < ?) ORDER BY position DESC LIMIT ?"""
        rows = await self._run(
            lambda connection: connection.execute(query, [*wanted, before, before, size + 1]).fetchall()
        )
        return Page(tuple(load_job(body) for _, body in rows[:size]), rows[size - 1][0] if len(rows) > size else None)

    async def unfinished(self) -> tuple[Job, ...]:
        """See JobStore."""
        states = [state for state in JobState if not state.is_terminal]
        query = f"SELECT body FROM jobs WHERE state IN ({','.join('?' * len(states))}) ORDER BY position"
        rows = await self._run(lambda connection: connection.execute(query, states).fetchall())
        return tuple(load_job(body) for (body,) in rows)

    async def counts(self) -> Mapping[JobState, int]:
        """See JobStore."""
        query = "SELECT state, count(*) FROM jobs GROUP BY state"
        rows = await self._run(lambda connection: connection.execute(query).fetchall())
        return {JobState(state): count for state, count in rows}

    async def events(self, job_id: str, after: int) -> tuple[JobEvent, ...]:
        """See JobStore."""
        query = """SELECT event_id, time, kind, body FROM events WHERE job_id = ? AND event_id > ?
            ORDER BY event_id LIMIT ?"""

        def work(connection: sqlite3.Connection) -> tuple[JobEvent, ...]:
            _get(connection, job_id)
            rows = connection.execute(query, (job_id, after, limits.EVENTS_PER_READ)).fetchall()
            return tuple(
                JobEvent(job_id, number, time, load_happening(kind, body)) for number, time, kind, body in rows
            )

        return await self._run(work)

    async def last_event_id(self, job_id: str) -> int:
        """See JobStore."""

        def work(connection: sqlite3.Connection) -> int:
            _get(connection, job_id)
            return _last_event_id(connection, job_id)

        return await self._run(work)

    async def samples(self, job_id: str, after: int, *, limit: int) -> tuple[StepSample, ...]:
        """See JobStore."""
        query = "SELECT step, body FROM samples WHERE job_id = ? AND step > ? ORDER BY step LIMIT ?"

        def work(connection: sqlite3.Connection) -> tuple[StepSample, ...]:
            _get(connection, job_id)
            return tuple(load_sample(*row) for row in connection.execute(query, (job_id, after, limit)))

        return await self._run(work)

    async def delete(self, job_id: str) -> None:
        """See JobStore."""

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                if connection.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,)).rowcount == 0:
                    raise NotFound(job_id)

        await self._run(work)


def _get(connection: sqlite3.Connection, job_id: str) -> Job:
    row = connection.execute("SELECT body FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    if row is None:
        raise NotFound(job_id)
    return load_job(row[0])


def _find(connection: sqlite3.Connection, request: Request) -> Job | None:
    query = "SELECT digest, job_id FROM requests WHERE request_id = ?"
    row = connection.execute(query, (request.request_id,)).fetchone()
    if row is None:
        return None
    check_same(request, *row)
    return _get(connection, row[1])


def _last_event_id(connection: sqlite3.Connection, job_id: str) -> int:
    query = "SELECT coalesce(max(event_id), 0) FROM events WHERE job_id = ?"
    return int(connection.execute(query, (job_id,)).fetchone()[0])


def _append(
    connection: sqlite3.Connection, job: Job, happenings: Sequence[Happening], *, now: float
) -> tuple[JobEvent, ...]:
    """Adds events behind the job's last one; within the caller's transaction."""
    first = _last_event_id(connection, job.job_id) + 1
    events = tuple(JobEvent(job.job_id, number, now, happening) for number, happening in enumerate(happenings, first))
    rows = [(event.job_id, event.event_id, event.time, *dump_happening(event.happening)) for event in events]
    connection.executemany("INSERT INTO events (job_id, event_id, time, kind, body) VALUES (?, ?, ?, ?, ?)", rows)
    return events


def _save_samples(connection: sqlite3.Connection, job: Job, samples: Sequence[StepSample], *, stride: int) -> None:
    """Stores the metrics of steps, removes others that `stride` does not divide; within the caller's transaction."""
    connection.execute("DELETE FROM samples WHERE job_id = ? AND step % ? != 0", (job.job_id, stride))
    rows = [(job.job_id, sample.step, dump_sample(sample)) for sample in samples]
    connection.executemany("INSERT OR REPLACE INTO samples (job_id, step, body) VALUES (?, ?, ?)", rows)
