"""Keeps decisions that no request carries, and finds them beside those that one does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import Select, and_, false, insert, select, true

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.core.message import Author
from agent_orchestra.core.routing import route_json, route_of
from agent_orchestra.errors import DecisionNotFound
from agent_orchestra.runtime.decisions import Decision

__all__ = ["SqlDecisionLog"]

_Query: TypeAlias = "Select[*tuple[Any, ...]]"

_r, _d, _m = tables.requests.c, tables.decisions.c, tables.messages.c

_of_requests: _Query = select(_r.tenant, _r.id, _r.conversation_id, _r.route, _r.created_ms)
_others: _Query = select(
    _d.tenant, _d.id, _d.conversation_id, _d.route, _d.created_ms, _d.content, false().label("executed")
)


class SqlDecisionLog:
    """Conforms to :class:`DecisionLog`. Ids are sorted by time, so that their order is that of the decisions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, decision: Decision) -> None:
        async with self._database.write() as connection:
            await connection.execute(
                insert(tables.decisions).values(
                    tenant=decision.tenant,
                    id=decision.id,
                    conversation_id=decision.conversation_id,
                    content=decision.text,
                    route=route_json(decision.route),
                    created_ms=decision.created_ms,
                )
            )

    async def find(self, tenant: str, decision_id: str) -> Decision:
        found = await self._read(
            _of_requests.where(_r.tenant == tenant, _r.id == decision_id),
            _others.where(_d.tenant == tenant, _d.id == decision_id),
        )
        if not found:
            raise DecisionNotFound(f"there is no decision '{decision_id}'")
        return found[0]

    async def recent(self, tenant: str, *, before: str | None, limit: int) -> Sequence[Decision]:
        of_requests, others = _of_requests.where(_r.tenant == tenant), _others.where(_d.tenant == tenant)
        if before is not None:
            of_requests, others = of_requests.where(_r.id < before), others.where(_d.id < before)
        found = await self._read(
            of_requests.order_by(_r.id.desc()).limit(limit), others.order_by(_d.id.desc()).limit(limit)
        )
        return sorted(found, key=lambda decision: decision.id, reverse=True)[:limit]

    async def _read(self, of_requests: _Query, others: _Query) -> list[Decision]:
        async with self._database.read() as connection:
            rows = [*(await connection.execute(_with_texts(of_requests))), *(await connection.execute(others))]
        return [_decision_of(row) for row in rows]


def _with_texts(of_requests: _Query) -> _Query:
    """Adds the users' messages. The page is cut before: a join of the tables would be sorted as a whole."""
    page = of_requests.subquery()
    said = and_(
        _m.tenant == page.c.tenant,
        _m.conversation_id == page.c.conversation_id,
        _m.request_id == page.c.id,
        _m.author == Author.USER.value,
    )
    return select(page, _m.content, true().label("executed")).join(tables.messages, said)


def _decision_of(row: Any) -> Decision:
    return Decision(
        id=row.id,
        tenant=row.tenant,
        text=row.content,
        conversation_id=row.conversation_id,
        route=route_of(row.route),
        executed=bool(row.executed),
        created_ms=row.created_ms,
    )
