"""Keeps what waits for a person: these are the rows of requests, looked at from another side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Select, and_, insert, literal_column, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.events import tell
from agent_orchestra.adapters.sql.runlog import failure_of, holding, outcome_of
from agent_orchestra.core.escalation import PERSON, Escalation
from agent_orchestra.core.message import Author
from agent_orchestra.core.request import Answer, Failure, RequestStatus
from agent_orchestra.core.routing import route_of
from agent_orchestra.errors import ConversationBusy, NotEscalated, RequestNotFound
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.conversations import busy

__all__ = ["SqlEscalationLog"]

_Query: TypeAlias = "Select[*tuple[Any, ...]]"

_r, _c, _m = tables.requests.c, tables.conversations.c, tables.messages.c
_requests: _Query = select(
    _r.tenant, _r.id, _r.conversation_id, _r.user_id, _r.status, _r.route, _r.outcome, _r.created_ms, _r.ended_ms
)
#: Written out: SQLite takes a partial index only for what it reads in the statement.
_escalated = _r.status == literal_column(f"'{RequestStatus.ESCALATED}'")


class SqlEscalationLog:
    """Conforms to :class:`EscalationLog`. Ids are sorted by time, so that their order is that of the requests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting(self, tenant: str, *, after: str | None, limit: int) -> Sequence[Escalation]:
        page = _requests.where(_r.tenant == tenant, _escalated)
        if after is not None:
            page = page.where(_r.id > after)
        query = _with_texts(page.order_by(_r.id).limit(limit))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return sorted(map(_escalation_of, rows), key=lambda escalation: escalation.request_id)

    async def find(self, tenant: str, request_id: str) -> Escalation:
        async with self._database.read() as connection:
            return await _find(connection, tenant, request_id)

    async def settle(self, escalation: Escalation, end: Answer | Failure, *, author: str) -> None:
        tenant, request_id, now = escalation.tenant, escalation.request_id, now_ms()
        status = RequestStatus.SUCCEEDED if isinstance(end, Answer) else RequestStatus.FAILED
        async with self._database.write() as connection:
            await _find(connection, tenant, request_id)
            # The conversation comes before the request, as for whoever else ends one: so no two wait for each other.
            seq = await _next_seq(connection, escalation, end, now) if isinstance(end, Answer) else None
            settled = await connection.execute(
                update(tables.requests)
                .where(_r.tenant == tenant, _r.id == request_id, _escalated)
                .values(status=status.value, outcome=outcome_of(end), answer_seq=seq, ended_ms=now)
            )
            if not settled.rowcount:
                # Somebody was faster since the look at the top.
                raise _not_escalated(await _row(connection, tenant, request_id))
            told: dict[str, object] = {"conversation_id": escalation.conversation_id, "status": status.value}
            if isinstance(end, Failure):
                told |= {"code": end.code, "author": author}
                await tell(connection, tenant, "request.failed", request_id, told)
                return
            await connection.execute(
                insert(tables.messages).values(
                    tenant=tenant,
                    conversation_id=escalation.conversation_id,
                    seq=seq,
                    id=new_id(),
                    author=Author.ASSISTANT.value,
                    content=end.output,
                    agent_id=end.agent,
                    request_id=request_id,
                    created_ms=now,
                )
            )
            await tell(connection, tenant, "request.answered", request_id, {**told, "seq": seq, "author": author})


async def _next_seq(connection: AsyncConnection, escalation: Escalation, end: Answer, now: int) -> int:
    """The number of the answer's message; the row is locked from here on."""
    mine = and_(_c.tenant == escalation.tenant, _c.id == escalation.conversation_id)
    free = or_(_c.turn.is_(None), ~holding(now))
    seq = (
        await connection.execute(
            update(tables.conversations)
            .where(mine, free)
            .values(last_seq=_c.last_seq + 1, turn=None, active_agent=end.agent, updated_ms=now)
            .returning(_c.last_seq)
        )
    ).scalar_one_or_none()
    if seq is None:
        raise ConversationBusy(busy(escalation.conversation_id))
    return seq


async def _find(connection: AsyncConnection, tenant: str, request_id: str) -> Escalation:
    """Raises :class:`RequestNotFound` and :class:`NotEscalated`."""
    row = await _row(connection, tenant, request_id)
    if row.status != RequestStatus.ESCALATED.value:
        raise _not_escalated(row)
    return _escalation_of(row)


async def _row(connection: AsyncConnection, tenant: str, request_id: str) -> Any:
    query = _with_texts(_requests.where(_r.tenant == tenant, _r.id == request_id))
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise RequestNotFound(f"there is no request '{request_id}'")
    return row


def _not_escalated(row: Any) -> NotEscalated:
    outcome: Mapping[str, Any] = row.outcome or {}
    attempts: Sequence[Mapping[str, Any]] = outcome.get("attempts", ())
    kind, _, who = str(attempts[-1]["instance"] if attempts else "").partition(":")
    settled = f", settled by {who}" if kind == PERSON else ""
    return NotEscalated(f"request '{row.id}' does not wait for a person: it is {row.status}{settled}")


def _with_texts(requests: _Query) -> _Query:
    """Adds the users' messages. The page is cut before: a join of the tables would be sorted as a whole."""
    page = requests.subquery()
    said = and_(
        _m.tenant == page.c.tenant,
        _m.conversation_id == page.c.conversation_id,
        _m.request_id == page.c.id,
        _m.author == Author.USER.value,
    )
    return select(page, _m.content).join(tables.messages, said)


def _escalation_of(row: Any) -> Escalation:
    return Escalation(
        tenant=row.tenant,
        request_id=row.id,
        conversation_id=row.conversation_id,
        user_id=row.user_id,
        content=row.content,
        route=route_of(row.route),
        failure=failure_of(row.outcome),
        asked_ms=row.created_ms,
        escalated_ms=row.ended_ms,
    )
