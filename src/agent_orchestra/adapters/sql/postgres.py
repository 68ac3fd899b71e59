"""Performs scripts on Postgres, on the driver's own connection."""

from __future__ import annotations

from typing import TypeVar, cast

import psycopg
from psycopg.abc import QueryNoTemplate
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from agent_orchestra.adapters.sql.scripts import Rows, Script
from agent_orchestra.errors import InvalidInput, OrchestraError, StorageFull, StorageUnavailable

__all__ = ["PostgresScripts", "translated"]

T = TypeVar("T")


def translated(error: BaseException | None) -> OrchestraError:
    """The error of ours that a Postgres error means, by its SQLSTATE (PostgreSQL documentation, appendix A)."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state is not None and state.startswith("22"):
        return InvalidInput("a value is not one that the database can hold")
    if state == "53100":
        return StorageFull("the disk with the database is full; free some space and try again", retry_after=5.0)
    if state is None and isinstance(error, psycopg.OperationalError):
        return StorageUnavailable("the database server cannot be reached; is it running, and is database.url right?")
    return StorageUnavailable(f"the database cannot be used now ({state or type(error).__name__}); try again")


class PostgresScripts:
    """Runs each script in a transaction of its own, on a connection of the engine's pool."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def run(self, script: Script[T], *, writes: bool) -> T:  # noqa: ARG002  only SQLite asks before it locks
        """The script's result, once it is committed. Raises what the script raises, or a driver's error."""
        try:
            pooled = await self._engine.raw_connection()
        except (psycopg.Error, SQLAlchemyError) as error:
            raise translated(error) from error
        connection = cast("psycopg.AsyncConnection[tuple[object, ...]]", pooled.driver_connection)
        try:
            async with connection.transaction():
                return await _performed(connection, script)
        except psycopg.Error as error:
            if connection.closed:
                await greenlet_spawn(pooled.invalidate, error)
                # Its neighbours have most likely broken with it.
                await self._engine.dispose()
            raise translated(error) from error
        finally:
            await greenlet_spawn(pooled.close)

    async def close(self) -> None:
        """Nothing: the engine owns the connections."""


async def _performed(connection: psycopg.AsyncConnection[tuple[object, ...]], script: Script[T]) -> T:
    try:
        statement, params = next(script)
        while True:
            cursor = await connection.execute(cast("QueryNoTemplate", statement.sql), statement.bound(params))
            rows = cast("Rows", await cursor.fetchall()) if statement.returns else ()
            statement, params = script.send(rows)
    except StopIteration as end:
        return cast("T", end.value)
