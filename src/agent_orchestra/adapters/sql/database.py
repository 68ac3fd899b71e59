"""Opens the database: an engine for what is rare, scripts for what is hot, one translation of errors for both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from agent_orchestra.adapters.sql import scripts, sqlite
from agent_orchestra.adapters.sql.migrate import differences, upgrade, version
from agent_orchestra.adapters.sql.runlog import Scripts
from agent_orchestra.adapters.sql.tables import HEAD, VERSION_TABLE
from agent_orchestra.errors import ConfigurationError, ForeignDatabase, MissingExtra, OrchestraError, StorageUnavailable

if sys.platform != "win32":
    import fcntl

__all__ = ["Database", "open_database", "parse_url", "schema_differences"]


class Database:
    """An open database, whose schema is current."""

    def __init__(self, engine: AsyncEngine, hot: Scripts, prepare: scripts.Prepare, presence: Presence) -> None:
        self.engine = engine
        self.scripts = hot
        self.prepare = prepare
        self.alone = presence.alone
        self._presence = presence
        self._writer = engine.execution_options(orchestra_writes=True)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        """A connection to read on. Raises :class:`StorageUnavailable`."""
        with _translated():
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection]:
        """A transaction, committed at the end of the block. Raises :class:`StorageUnavailable`."""
        with _translated():
            async with self._writer.begin() as connection:
                yield connection

    async def ready(self) -> Mapping[str, bool]:
        """Whether the database is ``reachable``, and its ``migrations`` are current. Never raises."""
        try:
            async with asyncio.timeout(sqlite.BUSY_SECONDS), self.read() as connection:
                found = await connection.run_sync(version)
        except (StorageUnavailable, TimeoutError):
            return {"reachable": False, "migrations": False}
        return {"reachable": True, "migrations": found == HEAD}

    async def share(self) -> None:
        """Lets other processes in, once what a crash left behind has been seen to."""
        await asyncio.to_thread(self._presence.share)

    async def close(self) -> None:
        """Ends what is open. Transactions that were begun are committed first."""
        await self.scripts.close()
        await self.engine.dispose()
        self._presence.close()


class Presence:
    """Says that a process uses an SQLite file, for as long as it lives, and whether it was the only one when it came.

    A lock of the operating system on a file beside the database goes with its process, however that ends. So the first
    process after a crash knows at once that whatever is on record as running is not. On Postgres leases tell, later.
    """

    def __init__(self, path: str | None) -> None:
        self.alone = False
        self._descriptor: int | None = None
        if path is None or sys.platform == "win32":
            return
        # By whatever name the file is opened, the lock is one.
        beside = f"{os.path.realpath(path)}-presence"
        try:
            self._descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot write '{beside}': {error.strerror}") from None
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True

    def share(self) -> None:
        """Becomes one of many. Waits for one that is still seeing to what a crash left behind."""
        if self._descriptor is not None and sys.platform != "win32":
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def parse_url(text_: str) -> URL:
    """The database that a setting means: ``sqlite:///file.db`` or ``postgresql://…``; the driver is ours to choose.

    Raises :class:`ConfigurationError`, never with the password that the text may hold.
    """
    try:
        url = make_url(text_)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "database.url is no database address; write sqlite:///orchestra.db or postgresql://user@host/name"
        ) from None
    backend = url.get_backend_name()
    if backend in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigurationError(f"database.url names '{backend}'; known are sqlite and postgresql")
    if url.query:
        raise ConfigurationError("database.url takes no options after '?' for SQLite; see database.synchronous")
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("database.url needs a file: several connections share it, so :memory: will not do")
    return url.set(drivername="sqlite+aiosqlite")


async def open_database(url_text: str, *, synchronous: str = "NORMAL", pool_size: int = 10) -> Database:
    """Opens a database and brings its schema up to date.

    ``synchronous``: see :func:`agent_orchestra.adapters.sql.sqlite.pragmas`. Raises :class:`ConfigurationError` for an
    address that is none, a file of another program or of a newer release, and :class:`StorageUnavailable`.
    """
    url = parse_url(url_text)
    if url.get_backend_name() == "sqlite":
        path = str(url.database)
        _require_folder(path)
        _refuse_foreign_file(path)
        engine = _engine(url, {"connect_args": {"timeout": sqlite.BUSY_SECONDS}})
        _prepare_sqlite(engine, synchronous)
        presence = Presence(path)
    else:
        engine = _engine(url, {"pool_size": pool_size, "max_overflow": pool_size})
        presence = Presence(None)
    try:
        with _translated():
            await _upgraded(engine)
    except BaseException:
        await engine.dispose()
        presence.close()
        raise
    if url.get_backend_name() == "sqlite":
        hot: Scripts = sqlite.SqliteScripts(str(url.database), synchronous=synchronous)
        return Database(engine, hot, scripts.sqlite, presence)
    from agent_orchestra.adapters.sql.postgres import PostgresScripts

    return Database(engine, PostgresScripts(engine), scripts.postgres, presence)


async def schema_differences(url_text: str) -> Sequence[str]:
    """What is not as it should be in a database's schema; empty when it is current. Changes and makes nothing.

    Raises :class:`ConfigurationError` and :class:`StorageUnavailable`.
    """
    url = parse_url(url_text)
    if url.get_backend_name() == "sqlite" and not _is_file(url):
        return [f"there is no database file '{url.database}'"]
    if url.get_backend_name() == "sqlite":
        _refuse_foreign_file(str(url.database))
    engine = _engine(url, {})
    try:
        with _translated():
            async with engine.connect() as connection:
                return await connection.run_sync(differences)
    finally:
        await engine.dispose()


def _is_file(url: URL) -> bool:
    return Path(str(url.database)).is_file()


def _engine(url: URL, options: Mapping[str, Any]) -> AsyncEngine:
    try:
        return create_async_engine(url, **options)
    except ModuleNotFoundError:
        raise MissingExtra("Postgres needs its extra: pip install 'agent-orchestra[postgres]'") from None


async def _upgraded(engine: AsyncEngine) -> None:
    """Brings the schema up to date, with patience.

    Processes that make a new SQLite file at once turn it to a write-ahead log at once, and for that SQLite does not
    wait: it is busy at once, whatever the busy timeout is.
    """
    until = time.monotonic() + sqlite.BUSY_SECONDS
    while True:
        try:
            return await upgrade(engine)
        except DBAPIError as error:
            if not _is_busy(error) or time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)


def _is_busy(error: DBAPIError) -> bool:
    cause = _sqlite_error(error)
    return cause is not None and cause.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _sqlite_error(error: DBAPIError) -> sqlite3.Error | None:
    cause: BaseException | None = error.orig
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = cause.__cause__
    return cause


def _require_folder(path: str) -> None:
    if Path(path).is_dir():
        raise ConfigurationError(f"'{path}' is a folder; the database needs a file")
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise ConfigurationError(f"there is no folder '{folder}' for the database")


def _refuse_foreign_file(path: str) -> None:
    """Looks without a trace: to switch a file to a write-ahead log, or to put a lock beside it, is to change it."""
    file = Path(path)
    if not file.is_file() or not file.stat().st_size:
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise ForeignDatabase(f"'{path}' is not an SQLite database; choose another file") from None
        raise sqlite.translated(error) from error
    if tables and VERSION_TABLE not in tables:
        names = ", ".join(sorted(tables)[:3])
        raise ForeignDatabase(f"the database belongs to another program (it has {names}); choose another one")


def _prepare_sqlite(engine: AsyncEngine, synchronous: str) -> None:
    """Has SQLAlchemy begin transactions itself, and those that write with the lock that they need anyway.

    A read that turns into a write while another process writes fails at once, however long the busy timeout is.
    """

    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in sqlite.pragmas(synchronous):
            cursor.execute(pragma)
        cursor.close()

    def begins(connection: Any) -> None:
        writes = connection.get_execution_options().get("orchestra_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "begin", begins)


@contextlib.contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except DBAPIError as error:
        raise translated(error) from error
    except SQLAlchemyError as error:
        # A pool that has no connection left in time is the one that is no fault of the code.
        raise StorageUnavailable(f"the database cannot be used now ({type(error).__name__}); try again") from error


def translated(error: DBAPIError) -> OrchestraError:
    """The error of ours that an error of either driver means."""
    if (cause := _sqlite_error(error)) is not None:
        return sqlite.translated(cause)
    if type(error.orig).__module__.startswith("psycopg"):
        from agent_orchestra.adapters.sql import postgres

        return postgres.translated(error.orig)
    return StorageUnavailable("the database cannot be used now; try again")
