"""The schema: made, brought up to date, checked, and never forced upon what is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from agent_orchestra.adapters.sql.database import Database, open_database, parse_url, schema_differences
from agent_orchestra.adapters.sql.decisions import SqlDecisionLog
from agent_orchestra.adapters.sql.keys import SqlKeyStore
from agent_orchestra.adapters.sql.tables import HEAD, VERSION_TABLE, metadata
from agent_orchestra.core.access import Key, Scope
from agent_orchestra.core.routing import Candidate, Route, Stage
from agent_orchestra.errors import ConfigurationError, DatabaseTooNew, ForeignDatabase
from agent_orchestra.runtime.decisions import Decision
from tests.services.postgres import PostgresServer

_OPEN = """
import asyncio, sys
from agent_orchestra.adapters.sql.database import open_database

async def main():
    sys.stdin.readline()
    database = await open_database(sys.argv[1])
    print(await database.ready())
    await database.close()

print("ready", flush=True)
asyncio.run(main())
"""


#: A request, as the first release wrote it.
_USED = """
INSERT INTO conversations (tenant, id, input_policy, context, last_seq, created_ms, updated_ms)
    VALUES ('acme', 'c1', 'reject', '{}', 1, 1000, 1000);
INSERT INTO messages (tenant, conversation_id, seq, id, author, content, request_id, created_ms)
    VALUES ('acme', 'c1', 1, 'm1', 'user', 'where is my parcel?', 'r1', 1000);
INSERT INTO requests
    (tenant, id, conversation_id, fingerprint, status, context, route, instance_id, lease_until_ms, created_ms)
    VALUES ('acme', 'r1', 'c1', 'f', 'RUNNING', '{}',
        '{"stage": "keywords", "reason": "matched a word", "candidates": [["orders", 0.75], ["billing", 0.125]]}',
        'in-process', 2000, 1000)
"""


async def _opened(url: str) -> None:
    database = await open_database(url)
    await database.close()


async def _perform(url: str, *statements: str) -> None:
    database = await open_database(url)
    async with database.write() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await database.close()


async def _of_first_release(url: str) -> None:
    """Makes a database as the first release did, with a request on record."""
    engine = create_async_engine(parse_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(_at_first_version)
        for statement in _USED.split(";"):
            await connection.exec_driver_sql(statement)
    await engine.dispose()


def _at_first_version(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "agent_orchestra.adapters.sql:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _letter(folder: Path) -> Path:
    path = folder / "letter.txt"
    path.write_text("Dear Sir or Madam,\n" * 500)
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _foreign_file(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.execute("INSERT INTO songs VALUES ('Für Elise')")
    connection.commit()
    connection.close()


def test_the_constant_names_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", "agent_orchestra.adapters.sql:migrations")

    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


async def test_a_new_database_has_what_the_code_expects(database_url: str) -> None:
    before = await schema_differences(database_url)
    await _opened(database_url)

    assert before
    assert await schema_differences(database_url) == []


async def test_an_open_database_is_ready(database: Database) -> None:
    assert await database.ready() == {"reachable": True, "migrations": True}


async def test_checking_makes_nothing(sqlite_url: str, tmp_path: Path) -> None:
    assert await schema_differences(sqlite_url)

    assert _names(tmp_path) == []


async def test_opening_again_keeps_what_is_there(database_url: str) -> None:
    key = Key(id="a1", tenant="acme", scopes=(Scope.READ,), digest="d" * 64, created_ms=1)
    first = await open_database(database_url)
    await SqlKeyStore(first).add(key)
    await first.close()

    second = await open_database(database_url)

    assert await SqlKeyStore(second).get("a1") == key
    await second.close()


class TestFirstRelease:
    """A database as the first release made it, in use since."""

    async def test_opening_brings_it_up_to_date_and_keeps_what_is_there(self, database_url: str) -> None:
        await _of_first_release(database_url)
        before = await schema_differences(database_url)

        database = await open_database(database_url)
        decision = await SqlDecisionLog(database).find("acme", "r1")
        await database.close()

        assert before == [f"the schema is at version 0001, and {HEAD} is current"]
        assert await schema_differences(database_url) == []
        assert decision == Decision(
            id="r1",
            tenant="acme",
            text="where is my parcel?",
            conversation_id="c1",
            route=Route(
                candidates=(
                    Candidate(agent_id="orders", confidence=0.75),
                    Candidate(agent_id="billing", confidence=0.125),
                ),
                stage=Stage.LEXICAL,
                reason="matched a word",
            ),
            executed=True,
            created_ms=1_000,
        )

    async def test_an_open_database_that_is_behind_is_told(self, database: Database) -> None:
        async with database.write() as connection:
            await connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0001'"))

        assert await database.ready() == {"reachable": True, "migrations": False}

    async def test_many_that_open_it_at_once_bring_it_up_to_date_once(self, database_url: str) -> None:
        await _of_first_release(database_url)

        await asyncio.gather(*(_opened(database_url) for _ in range(8)))

        assert await schema_differences(database_url) == []


async def test_many_that_open_a_new_database_at_once_make_it_once(database_url: str) -> None:
    await asyncio.gather(*(_opened(database_url) for _ in range(8)))

    assert await schema_differences(database_url) == []


@pytest.mark.slow
async def test_processes_that_open_a_new_database_at_once_make_it_once(database_url: str) -> None:
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", _OPEN, database_url, stdin=pipe, stdout=pipe, stderr=pipe
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"

    ends = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))

    for process, (output, errors) in zip(processes, ends, strict=True):
        assert (process.returncode, errors) == (0, b"")
        assert output.decode().strip() == "{'reachable': True, 'migrations': True}"
    assert await schema_differences(database_url) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE keys DROP COLUMN revoked_ms",
        "ALTER TABLE keys ADD COLUMN colour VARCHAR(5)",
        "DROP INDEX ix_events_tenant_subject_sequence",
        "DROP TABLE messages",
    ],
)
async def test_a_schema_that_somebody_changed_is_told(database_url: str, change: str) -> None:
    await _perform(database_url, change)

    differences = await schema_differences(database_url)

    assert differences
    table = next(name for name in ("keys", "events", "messages") if name in change)
    assert any(table in difference for difference in differences)


async def test_a_newer_schema_is_refused_and_left_alone(database_url: str) -> None:
    await _perform(database_url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")

    with pytest.raises(DatabaseTooNew, match="9999"):
        await open_database(database_url)

    (difference,) = await schema_differences(database_url)
    assert "9999" in difference
    assert HEAD in difference


async def test_a_version_that_changes_under_an_open_database_is_told(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))

    assert await database.ready() == {"reachable": True, "migrations": False}


class TestForeign:
    async def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        path = _letter(tmp_path)
        before = _digest(path)

        with pytest.raises(ForeignDatabase, match=r"letter\.txt"):
            await open_database(f"sqlite:///{path}")

        assert _digest(path) == before

    async def test_a_file_that_is_no_database_is_told_by_the_check_too(self, tmp_path: Path) -> None:
        path = _letter(tmp_path)

        with pytest.raises(ForeignDatabase, match=r"letter\.txt"):
            await schema_differences(f"sqlite:///{path}")

    async def test_another_programs_file_stays_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "songs.db"
        _foreign_file(path)
        before = _digest(path)

        with pytest.raises(ForeignDatabase, match="songs"):
            await open_database(f"sqlite:///{path}")

        assert _digest(path) == before

    async def test_another_programs_file_has_nothing_new_beside_it(self, tmp_path: Path) -> None:
        path = tmp_path / "songs.db"
        _foreign_file(path)

        with pytest.raises(ForeignDatabase):
            await open_database(f"sqlite:///{path}")

        assert _names(tmp_path) == ["songs.db"]

    async def test_checking_another_programs_file_leaves_it_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "songs.db"
        _foreign_file(path)
        before = _digest(path)

        with contextlib.suppress(ForeignDatabase):
            assert await schema_differences(f"sqlite:///{path}")

        assert _digest(path) == before
        assert _names(tmp_path) == ["songs.db"]

    async def test_an_empty_file_is_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "new.db"
        await asyncio.to_thread(path.touch)

        await _opened(f"sqlite:///{path}")

        assert await schema_differences(f"sqlite:///{path}") == []

    async def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="nowhere"):
            await open_database(f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}")

        assert _names(tmp_path) == []

    async def test_on_postgres_an_unrelated_table_is_no_matter(
        self, postgres: PostgresServer, postgres_url: str
    ) -> None:
        name = postgres_url.rpartition("/")[2]
        postgres.execute(sql.SQL("CREATE TABLE songs (title text)"), database=name)

        await _opened(postgres_url)

        assert await schema_differences(postgres_url) == []

    @pytest.mark.parametrize("table", sorted(metadata.tables))
    async def test_on_postgres_a_table_of_our_name_that_is_not_ours(
        self, postgres: PostgresServer, postgres_url: str, table: str
    ) -> None:
        name = postgres_url.rpartition("/")[2]
        postgres.execute(sql.SQL("CREATE TABLE {} (title text)").format(sql.Identifier(table)), database=name)

        with pytest.raises(ForeignDatabase, match=table):
            await open_database(postgres_url)

        (difference,) = await schema_differences(postgres_url)
        assert "none" in difference
