"""Performs scripts on SQLite: one thread, one connection, and one commit for all that waits."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agent_orchestra.adapters.sql.scripts import Script
from agent_orchestra.errors import StorageFull, StorageUnavailable

__all__ = ["BUSY_SECONDS", "SqliteScripts", "pragmas", "translated"]

T = TypeVar("T")

#: How long to wait for another process that writes.
BUSY_SECONDS = 5.0
#: The most transactions that share a commit, so that the first of them does not wait for ever.
_MOST_TOGETHER = 64


def pragmas(synchronous: str) -> tuple[str, ...]:
    """What every connection is told first.

    With a write-ahead log, ``synchronous=NORMAL`` loses nothing when the process dies; when the machine does, the last
    commits may be gone, though the file stays whole. ``FULL`` waits for the disk at every commit.
    """
    return (
        "PRAGMA journal_mode=WAL",
        f"PRAGMA synchronous={synchronous}",
        f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1_000)}",
        "PRAGMA foreign_keys=ON",
        # A checkpoint makes the commit that meets it wait for the disk: one every 16 MB instead of every 4.
        "PRAGMA wal_autocheckpoint=4000",
    )


def translated(error: sqlite3.Error) -> StorageUnavailable:
    """The error of ours that an SQLite error means, by its result code."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return StorageFull("the disk with the database is full; free some space and try again", retry_after=5.0)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StorageUnavailable(f"the database cannot be used now ({name}); try again")


@dataclass(slots=True)
class _Job:
    script: Script[Any]
    writes: bool
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: BaseException | None = None

    def deliver(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class SqliteScripts:
    """Runs scripts one after the other. Those that come while another commits share the next commit.

    Each is still atomic by itself (a savepoint), and is answered only after the commit that it shares.
    """

    def __init__(self, path: str, *, synchronous: str) -> None:
        self._path = path
        self._synchronous = synchronous
        self._closed = False
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="orchestra-sqlite", daemon=True)
        self._thread.start()

    async def run(self, script: Script[T], *, writes: bool) -> T:
        """The script's result, once it is committed. Raises what the script raises, or :class:`StorageUnavailable`."""
        if self._closed:
            raise StorageUnavailable("the database is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(script, writes, future, loop))
        return await future

    async def close(self) -> None:
        """Performs what was given, and ends the thread."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        going = True
        while going:
            batch: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                batch.append(job)
                if len(batch) == _MOST_TOGETHER or self._jobs.empty():
                    break
                job = self._jobs.get()
            going = job is not None
            if not batch:
                continue
            try:
                if connection is None:
                    connection = self._connect()
                _transact(connection, batch)
            except sqlite3.Error as error:
                # The commit, or the file itself, failed: none of the batch has happened.
                for job in batch:
                    job.error = translated(error)
                if connection is not None:
                    _abandon(connection)
                    connection = None
            _deliver(batch)
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=BUSY_SECONDS)
        try:
            for pragma in pragmas(self._synchronous):
                connection.execute(pragma)
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _transact(connection: sqlite3.Connection, batch: Sequence[_Job]) -> None:
    connection.execute("BEGIN IMMEDIATE" if any(job.writes for job in batch) else "BEGIN")
    for job in batch:
        connection.execute("SAVEPOINT script")
        try:
            job.result = _performed(connection, job.script)
        except sqlite3.Error as error:
            # Disk full and the like undo the whole transaction, not only the savepoint.
            if not isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            job.error = error
            connection.execute("ROLLBACK TO script")
        except Exception as error:  # noqa: BLE001  handed to whoever awaits the script
            job.error = error
            connection.execute("ROLLBACK TO script")
        connection.execute("RELEASE script")
    connection.execute("COMMIT")


def _performed(connection: sqlite3.Connection, script: Script[T]) -> T:
    try:
        statement, params = next(script)
        while True:
            cursor = connection.execute(statement.sql, statement.bound(params))
            statement, params = script.send(cursor.fetchall() if statement.returns else ())
    except StopIteration as end:
        return end.value


def _abandon(connection: sqlite3.Connection) -> None:
    try:
        connection.close()
    except sqlite3.Error:
        return


def _deliver(batch: Sequence[_Job]) -> None:
    """Wakes each event loop once, however many of its transactions have ended."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in batch:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, jobs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver_here, jobs)
        except RuntimeError:
            # The loop was closed while we wrote: nobody is left to be told.
            continue


def _deliver_here(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.deliver()
