"""Requests, answers and agents to store, and a look at what was stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.core.conversation import Conversation, InputPolicy
from agent_orchestra.core.request import (
    Answer,
    Attempt,
    Failure,
    Generation,
    Reply,
    Request,
    StopReason,
    ToolCall,
    Usage,
)
from agent_orchestra.core.routing import Candidate, Route, Stage
from agent_orchestra.core.values import Json
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.dispatcher import Accepted

__all__ = [
    "ROUTE",
    "StoredEvent",
    "accepted",
    "answer",
    "conversation",
    "count",
    "escalated",
    "events",
    "failure",
    "request",
]

TENANT = "acme"
#: Long enough for any test.
LEASE_MS = 60_000

ROUTE = Route(
    candidates=(
        Candidate(agent_id="orders", confidence=0.8125),
        Candidate(agent_id="billing", confidence=0.125),
    ),
    stage=Stage.LEXICAL,
    reason="matched the words 'größe', '注文'",
)


def request(
    content: str = "where is my parcel?",
    *,
    tenant: str = TENANT,
    conversation_id: str | None = None,
    key: str | None = None,
    context: dict[str, Json] | None = None,
) -> Request:
    return Request(
        id=new_id(),
        tenant=tenant,
        content=content,
        conversation_id=conversation_id,
        user_id="ada",
        context=context or {},
        idempotency_key=key,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        received_ms=now_ms(),
    )


def conversation(
    *, tenant: str = TENANT, user_id: str | None = "ada", created_ms: int | None = None, id_: str | None = None
) -> Conversation:
    now = now_ms() if created_ms is None else created_ms
    return Conversation(
        id=id_ or new_id(),
        tenant=tenant,
        user_id=user_id,
        input_policy=InputPolicy.REJECT,
        context={"language": "日本語", "limits": {"eur": 12.5}},
        created_ms=now,
        updated_ms=now,
    )


def accepted(
    asked: Request, before: Conversation | None = None, *, lease_ms: int = LEASE_MS, take_over: bool = False
) -> Accepted:
    """The entry of a request, in a new conversation where ``before`` names none. A negative lease has run out."""
    return Accepted(
        request=asked,
        conversation=before or conversation(tenant=asked.tenant),
        new=before is None,
        route=ROUTE,
        instance_id="in-process",
        lease_until_ms=now_ms() + lease_ms,
        take_over=take_over,
    )


def answer(entry: Accepted, output: str = "It left Zürich on Tuesday. 🚚", value: Json = None) -> Answer:
    return Answer(
        request_id=entry.request.id,
        conversation_id=entry.conversation.id,
        agent=ROUTE.primary.agent_id,
        instance=entry.instance_id,
        route=ROUTE,
        reply=Reply(
            output=output,
            value=value,
            tool_calls=(ToolCall(id="call_1", name="track", arguments={"parcel": "Ä-1", "days": [1, 2.5]}),),
            usage=Usage(
                input_tokens=1_234,
                output_tokens=56,
                cache_read_tokens=1_024,
                cache_write_tokens=7,
                reasoning_tokens=12,
                cost_usd=0.00789,
                price_date="2026-10-07",
            ),
            generation=Generation(
                provider="openai",
                model="gpt-5",
                stop_reason=StopReason.LENGTH,
                request_id="req_1",
                first_token_ms=3.25,
            ),
        ),
        timings={"load": 0.25, "run": 12.5, "total": 13.062},
        attempts=(
            Attempt(agent_id="orders", instance_id="eu-1", duration_ms=3.5, error="agent_failed"),
            Attempt(agent_id="orders", instance_id="in-process", duration_ms=9.0),
        ),
    )


def failure(code: str = "agent_failed") -> Failure:
    return Failure(
        code=code,
        detail="agent 'orders' raised ValueError — «boom»",
        data={"cause": "ValueError", "try": 1},
        output="It left Zü",
        timings={"total": 4.5},
        attempts=(Attempt(agent_id="orders", instance_id="in-process", duration_ms=4.0, error=code),),
    )


def escalated() -> Failure:
    """How a request ends for now that waits for a person."""
    return Failure(
        code="escalated",
        detail="agent 'billing' could not answer (model_overloaded); a person will answer in its place",
        data={"cause": "model_overloaded", "agent": "billing"},
        timings={"total": 4.5},
        attempts=(
            Attempt(
                agent_id="orders",
                instance_id="",
                duration_ms=0.0,
                error="no_instance_available",
                decision="hand_over",
                reason="all are ejected",
            ),
            Attempt(
                agent_id="billing",
                instance_id="eu-1",
                duration_ms=4.0,
                error="model_overloaded",
                delay_ms=12.5,
                decision="escalate",
                reason="4 calls are enough",
                hedge=True,
            ),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    sequence: int
    tenant: str
    type: str
    subject: str
    data: dict[str, Any]


async def events(database: Database, subject: str | None = None) -> Sequence[StoredEvent]:
    """What the events table tells, in order: of one subject, or all."""
    c = tables.events.c
    query = select(c.sequence, c.tenant, c.type, c.subject, c.data).order_by(c.sequence)
    if subject is not None:
        query = query.where(c.subject == subject)
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    return [
        StoredEvent(sequence=row.sequence, tenant=row.tenant, type=row.type, subject=row.subject, data=row.data)
        for row in rows
    ]


async def count(database: Database) -> dict[str, int]:
    """The number of rows of each table that a request writes to."""
    found: dict[str, int] = {}
    async with database.read() as connection:
        for table in (tables.conversations, tables.messages, tables.requests, tables.events):
            found[table.name] = int((await connection.execute(select(func.count()).select_from(table))).scalar_one())
    return found
