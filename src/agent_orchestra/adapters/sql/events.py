"""Appends to the events table, in the transaction of the change that the event tells of."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_orchestra.adapters.sql.tables import events
from agent_orchestra.runtime.clock import now_ms

__all__ = ["tell"]


async def tell(
    connection: AsyncConnection, tenant: str, kind: str, subject: str, data: Mapping[str, object] | None = None
) -> None:
    """One event: what happened (``kind``), to whom (``subject``), and the little that a reader needs besides."""
    await connection.execute(
        insert(events).values(tenant=tenant, type=kind, subject=subject, data=dict(data or {}), created_ms=now_ms())
    )
