"""A Postgres that goes away and comes back, and connections that are used again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
from psycopg import sql
from sqlalchemy import text

from agent_orchestra.adapters.sql.agents import SqlAgentStore
from agent_orchestra.adapters.sql.database import Database, open_database
from agent_orchestra.adapters.sql.keys import SqlKeyStore
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.adapters.sql.scripts import Script, Statement
from agent_orchestra.core.request import RequestStatus
from agent_orchestra.errors import StorageUnavailable
from tests.ports.samples import TENANT, accepted, answer, request
from tests.services.postgres import PostgresServer, launched


@pytest.fixture(scope="module")
def own_server(postgres_install: Path) -> Generator[PostgresServer]:
    """A server that tests may stop."""
    with launched(postgres_install) as server:
        yield server


@pytest.fixture
async def database(postgres_url: str) -> AsyncGenerator[Database]:
    database = await open_database(postgres_url)
    yield database
    await database.close()


async def _backend(database: Database) -> int:
    """The number of the server's process that a script ran on."""

    def asks() -> Script[int]:
        rows = yield Statement("SELECT pg_backend_pid()", returns=True, constants={}), {}
        return int(rows[0][0] or 0)

    return await database.scripts.run(asks(), writes=False)


async def test_scripts_use_their_connections_again(database: Database) -> None:
    assert len({await _backend(database) for _ in range(10)}) == 1


async def test_a_script_that_is_cancelled_leaves_nothing_behind(database: Database) -> None:
    def sleeps() -> Script[None]:
        yield Statement("CREATE TABLE half_done (x int)", returns=False, constants={}), {}
        yield Statement("SELECT pg_sleep(30)", returns=True, constants={}), {}

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await database.scripts.run(sleeps(), writes=True)

    assert await _backend(database)
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT to_regclass('half_done')"))).scalar_one() is None


async def test_more_at_once_than_there_are_connections_wait_for_one(postgres_url: str) -> None:
    database = await open_database(postgres_url, pool_size=2)
    log = SqlRunLog(database.scripts, database.prepare)

    entries = [accepted(request(f"number {number}")) for number in range(40)]
    assert await asyncio.gather(*(log.accept(entry) for entry in entries)) == [None] * 40

    await database.close()


async def test_a_server_that_is_stopped_is_unavailable_and_works_again_when_it_is_back(
    own_server: PostgresServer,
) -> None:
    database = await open_database(own_server.url(own_server.create_database()))
    log, keys, agents = SqlRunLog(database.scripts, database.prepare), SqlKeyStore(database), SqlAgentStore(database)
    entries = [accepted(request()) for _ in range(8)]
    await asyncio.gather(*(log.accept(entry) for entry in entries))

    own_server.stop()

    first = entries[0]
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await log.accept(accepted(request()))
        with pytest.raises(StorageUnavailable):
            await log.record(TENANT, first.request.id, first.conversation.id, answer(first), RequestStatus.SUCCEEDED)
        with pytest.raises(StorageUnavailable):
            await log.reap(0)
        with pytest.raises(StorageUnavailable):
            await keys.get("a1")
        with pytest.raises(StorageUnavailable):
            await agents.revision()
    assert await database.ready() == {"reachable": False, "migrations": False}

    own_server.start()

    await _until_it_works(log, failures=1)
    assert await database.ready() == {"reachable": True, "migrations": True}
    for entry in entries:
        end = answer(entry)
        await log.record(TENANT, entry.request.id, entry.conversation.id, end, RequestStatus.SUCCEEDED)
        assert (await log.find(TENANT, entry.request.id)).end == end
    await database.close()


async def test_of_connections_that_the_server_broke_off_one_fails_and_none_after_it(
    own_server: PostgresServer,
) -> None:
    name = own_server.create_database()
    database = await open_database(own_server.url(name))
    log = SqlRunLog(database.scripts, database.prepare)
    await asyncio.gather(*(log.accept(accepted(request())) for _ in range(20)))

    own_server.execute(
        sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}").format(sql.Literal(name))
    )

    await _until_it_works(log, failures=1)
    await asyncio.gather(*(log.accept(accepted(request())) for _ in range(20)))
    await database.close()


async def test_opening_what_is_not_running_is_unavailable(own_server: PostgresServer) -> None:
    own_server.stop()
    try:
        with pytest.raises(StorageUnavailable):
            await open_database(own_server.url("nothing"))
    finally:
        own_server.start()


async def _until_it_works(log: SqlRunLog, *, failures: int) -> None:
    for _ in range(failures):
        with contextlib.suppress(StorageUnavailable):
            await log.reap(0)
            return
    await log.reap(0)
