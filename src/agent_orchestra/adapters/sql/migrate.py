"""Brings a database's schema up to date, under a lock, and tells whether it is."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy import Connection, String, column, inspect, select, table, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_orchestra.adapters.sql.tables import HEAD, VERSION_TABLE, metadata
from agent_orchestra.errors import DatabaseTooNew, ForeignDatabase

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["differences", "upgrade", "version"]

#: Any number that others are unlikely to use for an advisory lock of Postgres: "orchestra" in ASCII, cut to 8 bytes.
_LOCK = int.from_bytes(b"orchestr", "big")


async def upgrade(engine: AsyncEngine) -> None:
    """Runs the migrations that are missing; processes that start at once wait for the first of them.

    Raises :class:`ForeignDatabase` or :class:`DatabaseTooNew`, and then changes nothing.
    """
    try:
        async with engine.connect() as connection:
            if await connection.run_sync(version) == HEAD:
                return
        async with engine.execution_options(orchestra_writes=True).begin() as connection:
            await connection.run_sync(_upgrade)
    except DatabaseError as error:
        if isinstance(_root(error), sqlite3.DatabaseError) and "not a database" in str(_root(error)):
            raise ForeignDatabase(f"'{engine.url.database}' is not an SQLite database; choose another file") from None
        raise


def version(connection: Connection) -> str | None:
    """The newest migration that a database has had, none when it is empty."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(column("version_num", String)).select_from(table(VERSION_TABLE))).scalar()


def differences(connection: Connection) -> list[str]:
    """What is not as it should be: the version, or where the tables differ from what the code expects."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    found = version(connection)
    if found != HEAD:
        return [f"the schema is at version {found or 'none'}, and {HEAD} is current"]
    options = {"version_table": VERSION_TABLE, "compare_type": True, "include_name": _is_ours}
    context = MigrationContext.configure(connection, opts=options)
    return [str(difference) for difference in compare_metadata(context, metadata)]


def _is_ours(name: str | None, kind: str, _: object) -> bool:
    """On a Postgres that is shared, other programs' tables are no difference."""
    return kind != "table" or name in metadata.tables


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    found = version(connection)
    config = _config(connection)
    if found is None:
        _refuse_foreign(connection)
    elif found not in {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}:
        raise DatabaseTooNew(
            f"the database is at schema version {found}, which this release does not know; use a newer release"
        )
    command.upgrade(config, "head")


def _refuse_foreign(connection: Connection) -> None:
    tables = set(inspect(connection).get_table_names())
    # An SQLite file belongs to one program. A Postgres database may have many, so only our own names are in the way.
    in_the_way = tables if connection.dialect.name == "sqlite" else tables & set(metadata.tables)
    if in_the_way:
        names = ", ".join(sorted(in_the_way)[:3])
        raise ForeignDatabase(f"the database belongs to another program (it has {names}); choose another one")


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "agent_orchestra.adapters.sql:migrations")
    config.attributes["connection"] = connection
    return config


def _root(error: DatabaseError) -> BaseException | None:
    cause: BaseException | None = error.orig
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    return cause
