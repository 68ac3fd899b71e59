"""Appends to the events table, in the transaction of the change that the event tells of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.tables import events
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.journal import Notice

__all__ = ["SqlJournal", "tell"]


async def tell(
    connection: AsyncConnection, tenant: str, kind: str, subject: str, data: Mapping[str, object] | None = None
) -> None:
    """One event: what happened (``kind``), to whom (``subject``), and the little that a reader needs besides."""
    await connection.execute(
        insert(events).values(tenant=tenant, type=kind, subject=subject, data=dict(data or {}), created_ms=now_ms())
    )


class SqlJournal:
    """Conforms to :class:`Journal`: what happens without a change of any other table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tell(self, notices: Sequence[Notice]) -> None:
        rows = [
            {"tenant": n.tenant, "type": n.type, "subject": n.subject, "data": dict(n.data), "created_ms": n.at_ms}
            for n in notices
        ]
        if rows:
            async with self._database.write() as connection:
                await connection.execute(insert(events), rows)

    async def last(self, tenant: str, types: Collection[str], subjects: Collection[str]) -> Mapping[str, Notice]:
        c = events.c
        newest = (
            select(func.max(c.sequence))
            .where(c.tenant == tenant, c.subject.in_(subjects), c.type.in_(types))
            .group_by(c.subject)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(select(events).where(c.sequence.in_(newest)))).all()
        return {
            row.subject: Notice(
                tenant=row.tenant, type=row.type, subject=row.subject, data=row.data, at_ms=row.created_ms
            )
            for row in rows
        }
