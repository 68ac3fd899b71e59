"""The thread that writes to SQLite: transactions that share a commit, and what becomes of them when it fails."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import pytest

from agent_orchestra.adapters.sql.database import Database, open_database
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.adapters.sql.scripts import Rows, Script, Statement, sqlite
from agent_orchestra.adapters.sql.sqlite import SqliteScripts
from agent_orchestra.core.request import RequestStatus
from agent_orchestra.errors import StorageFull, StorageUnavailable
from tests.ports.samples import TENANT, accepted, answer, request
from tests.services.waiting import wait_until


def _sql(text: str, *, returns: bool = False) -> Statement:
    return Statement(text, returns=returns, constants={})


_INSERT = _sql("INSERT INTO notes (text) VALUES (:text)")
_ALL = _sql("SELECT text FROM notes ORDER BY rowid", returns=True)


def _writes(*texts: str) -> Script[str]:
    for text in texts:
        yield _INSERT, {"text": text}
    return " ".join(texts)


def _writes_and_raises(text: str, error: Exception) -> Script[str]:
    yield _INSERT, {"text": text}
    raise error


def _fails_at_commit() -> Script[str]:
    """A reference to nothing that is only looked at when everything is committed."""
    yield _sql("PRAGMA defer_foreign_keys=ON"), {}
    yield _sql("INSERT INTO links (note) VALUES (999)"), {}
    return "written"


def _reads() -> Script[list[str]]:
    rows: Rows = yield _ALL, {}
    return [str(row[0]) for row in rows]


def _holds(begun: threading.Event, go_on: threading.Event) -> Script[str]:
    """Keeps the thread in its transaction, so that what is given meanwhile shares the next one."""
    begun.set()
    assert go_on.wait(10), "nobody told the script to go on"
    yield _INSERT, {"text": "held"}
    return "held"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "notes.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)")
    connection.execute("CREATE TABLE links (note INTEGER REFERENCES notes (id))")
    connection.close()
    return path


@pytest.fixture
async def scripts(path: Path) -> AsyncGenerator[SqliteScripts]:
    scripts = SqliteScripts(str(path), synchronous="NORMAL")
    yield scripts
    await scripts.close()


async def _together(scripts: SqliteScripts, given: Sequence[Script[str]]) -> list[str | BaseException]:
    """Runs scripts so that all of them share one commit."""
    begun, go_on = threading.Event(), threading.Event()
    holder = asyncio.ensure_future(scripts.run(_holds(begun, go_on), writes=True))
    await wait_until(begun.is_set, "the thread did not begin")
    waiting = [asyncio.ensure_future(scripts.run(script, writes=True)) for script in given]
    await asyncio.sleep(0)
    go_on.set()
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert await holder == "held"
    return ends


async def test_a_script_gives_its_result_once_it_is_committed(scripts: SqliteScripts, path: Path) -> None:
    assert await scripts.run(_writes("one", "two"), writes=True) == "one two"

    connection = sqlite3.connect(path)
    assert connection.execute("SELECT text FROM notes ORDER BY id").fetchall() == [("one",), ("two",)]
    connection.close()


async def test_one_that_raises_rolls_back_itself_only(scripts: SqliteScripts) -> None:
    broken = ValueError("mine")

    ends = await _together(scripts, [_writes("a", "b"), _writes_and_raises("c", broken), _writes("d")])

    assert ends == ["a b", broken, "d"]
    assert await scripts.run(_reads(), writes=False) == ["held", "a", "b", "d"]


async def test_one_that_breaks_a_constraint_rolls_back_itself_only(scripts: SqliteScripts) -> None:
    first, broken, last = await _together(scripts, [_writes("a"), _writes("b", "a"), _writes("c")])

    assert (first, last) == ("a", "c")
    assert isinstance(broken, Exception)
    assert await scripts.run(_reads(), writes=False) == ["held", "a", "c"]


async def test_a_commit_that_fails_fails_all_that_share_it(scripts: SqliteScripts) -> None:
    ends = await _together(scripts, [_writes("a"), _fails_at_commit(), _writes("b")])

    assert [type(end) for end in ends] == [StorageUnavailable] * 3
    assert await scripts.run(_reads(), writes=False) == ["held"]
    assert await scripts.run(_writes("a"), writes=True) == "a"
    assert await scripts.run(_reads(), writes=False) == ["held", "a"]


async def test_a_script_whose_caller_gave_up_leaves_the_others_alone(scripts: SqliteScripts) -> None:
    begun, go_on = threading.Event(), threading.Event()
    holder = asyncio.ensure_future(scripts.run(_holds(begun, go_on), writes=True))
    await wait_until(begun.is_set, "the thread did not begin")
    given_up = asyncio.ensure_future(scripts.run(_writes("a"), writes=True))
    kept = asyncio.ensure_future(scripts.run(_writes("b"), writes=True))
    await asyncio.sleep(0)

    given_up.cancel()
    go_on.set()

    assert await kept == "b"
    assert await holder == "held"
    assert given_up.cancelled()


async def test_closing_performs_what_was_given(path: Path) -> None:
    scripts = SqliteScripts(str(path), synchronous="NORMAL")
    given = [asyncio.ensure_future(scripts.run(_writes(f"n{number}"), writes=True)) for number in range(200)]
    await asyncio.sleep(0)

    await scripts.close()

    assert await asyncio.gather(*given) == [f"n{number}" for number in range(200)]


async def test_after_closing_nothing_is_left_waiting(path: Path) -> None:
    scripts = SqliteScripts(str(path), synchronous="NORMAL")
    await scripts.close()

    async with asyncio.timeout(2):
        with pytest.raises(StorageUnavailable):
            await scripts.run(_writes("late"), writes=True)


async def test_a_file_that_cannot_be_opened_is_unavailable_until_it_can(path: Path) -> None:
    put_back = _taken_away(path)
    scripts = SqliteScripts(str(path), synchronous="NORMAL")
    with pytest.raises(StorageUnavailable):
        await scripts.run(_writes("a"), writes=True)

    put_back()

    assert await scripts.run(_writes("a"), writes=True) == "a"
    await scripts.close()


def _taken_away(path: Path) -> Callable[[], None]:
    """Puts a folder in the place of a file, and gives what puts the file back."""
    away = path.with_name("away.db")
    path.rename(away)
    path.mkdir()

    def put_back() -> None:
        path.rmdir()
        away.rename(path)

    return put_back


class TestLocked:
    """Another program writes to the file, here over a connection of its own: SQLite locks those alike."""

    async def test_for_a_moment_is_waited_for(self, scripts: SqliteScripts, path: Path) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.ensure_future(scripts.run(_writes("ours"), writes=True))
        reading = asyncio.ensure_future(asyncio.wait_for(asyncio.shield(waiting), 0.2))
        with pytest.raises(TimeoutError):
            await reading

        other.execute("INSERT INTO notes (text) VALUES ('theirs')")
        other.execute("COMMIT")
        other.close()

        assert await waiting == "ours"
        assert await scripts.run(_reads(), writes=False) == ["theirs", "ours"]

    async def test_for_a_moment_while_a_definition_is_written(self, sqlite_url: str) -> None:
        database = await open_database(sqlite_url)
        other = sqlite3.connect(str(database.engine.url.database), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        async def writes() -> None:
            async with database.write() as connection:
                await connection.exec_driver_sql("CREATE TABLE later (x)")

        waiting = asyncio.ensure_future(writes())
        done, _ = await asyncio.wait((waiting,), timeout=0.2)
        assert not done

        other.execute("COMMIT")
        other.close()

        await waiting
        await database.close()

    @pytest.mark.slow
    async def test_for_too_long_is_unavailable_and_then_works_again(self, scripts: SqliteScripts, path: Path) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StorageUnavailable, match="SQLITE_BUSY"):
            await scripts.run(_writes("ours"), writes=True)

        other.execute("ROLLBACK")
        other.close()
        assert await scripts.run(_writes("ours"), writes=True) == "ours"


class SmallDisk(SqliteScripts):
    """Has room for so many pages: SQLite then says what it says when the disk is full."""

    pages = 1_000_000

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute(f"PRAGMA max_page_count={self.pages}")
        return connection


class TestFullDisk:
    async def test_it_is_told_and_is_over_when_there_is_room(self, sqlite_url: str) -> None:
        database = await open_database(sqlite_url)
        path = str(database.engine.url.database)
        SmallDisk.pages = 1  # SQLite takes the number of pages that there are
        small = SmallDisk(path, synchronous="NORMAL")
        log = SqlRunLog(small, sqlite)
        big = accepted(request("x" * 100_000))

        with pytest.raises(StorageFull) as raised:
            await log.accept(big)

        assert raised.value.retryable
        assert raised.value.retry_after > 0

        SmallDisk.pages = 1_000_000
        assert await log.accept(big) is None
        end = answer(big)
        await log.record(TENANT, big.request.id, big.conversation.id, end, RequestStatus.SUCCEEDED)
        assert (await log.find(TENANT, big.request.id)).end == end
        await small.close()
        await _is_whole(database)
        await database.close()

    async def test_a_file_that_may_not_grow_is_unavailable_until_it_may(self, sqlite_url: str) -> None:
        """The limit holds for a whole process, so it is one of its own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            "-c",
            _LIMITED,
            sqlite_url,
            cwd=_ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

        output, errors = await process.communicate()

        assert (process.returncode, errors.decode()) == (0, "")
        assert output.decode().split() == ["refused", "accepted", "True"]


_ROOT = Path(__file__).parents[2]
_LIMITED = """
import asyncio, resource, sys
from agent_orchestra.adapters.sql.database import open_database
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.errors import StorageUnavailable
from tests.ports.samples import accepted, request

async def main():
    database = await open_database(sys.argv[1])
    log = SqlRunLog(database.scripts, database.prepare)
    entry = accepted(request("x" * 200_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        await log.accept(entry)
    except StorageUnavailable:
        print("refused")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await log.accept(entry) is None
    print("accepted")
    print((await log.find(entry.request.tenant, entry.request.id)).end is None)
    await database.close()

asyncio.run(main())
"""


async def _is_whole(database: Database) -> None:
    async with database.read() as connection:
        assert (await connection.exec_driver_sql("PRAGMA integrity_check")).scalar_one() == "ok"
