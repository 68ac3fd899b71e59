"""What waits for a person, over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from agent_orchestra.api.auth import Administrator, Caller, Reader
from agent_orchestra.api.problems import described
from agent_orchestra.api.wire import (
    AnswerOut,
    AttemptOut,
    Content,
    Page,
    RequestOut,
    UserId,
    attempts_out,
    request_out,
    time_of,
)
from agent_orchestra.core.escalation import Escalation
from agent_orchestra.core.request import answer_json
from agent_orchestra.definitions import Id
from agent_orchestra.runtime.clock import now_ms

__all__ = ["router"]

router = APIRouter(prefix="/v1/escalations", tags=["escalations"])

_DECIDES = described(400, 404, 409, 413, 415, 422, 503, 507)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    author: UserId | None = None
    """Whose word it is, where it is not that of the key's owner."""


class PersonsAnswerBody(_Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"output": "Your refund is on its way.", "author": "ada"}]}
    )

    output: Content
    """It becomes the agent's message in the conversation, and the answer of the request."""


class RejectionBody(_Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "This is not for us.", "author": "ada"}]})

    reason: Content
    """It is told to who asked."""


class EscalationOut(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    request_id: str
    conversation_id: str
    user_id: str | None
    agent: str
    """In whose place a person answers."""
    content: str
    cause: str
    """The code of the error that led here."""
    detail: str
    attempts: list[AttemptOut]
    asked_at: datetime
    escalated_at: datetime
    age: float
    """Seconds that it has waited for a person."""


@router.get("", responses=described(422, 503))
async def list_escalations(
    caller: Reader, cursor: Id | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> Page[EscalationOut]:
    """The requests that wait for a person, oldest first."""
    found = await caller.orchestra.escalations.find(after=cursor, limit=limit + 1, tenant=caller.tenant)
    now = now_ms()
    items = [_escalation_out(escalation, now) for escalation in found[:limit]]
    return Page[EscalationOut](items=items, next=items[-1].request_id if len(found) > limit else None)


@router.post("/{request_id}/answer", responses=_DECIDES)
async def answer_escalation(request_id: Id, body: PersonsAnswerBody, caller: Administrator) -> AnswerOut:
    """Answers in the agent's place. Who asked is given it by the request's id, and for the same ``Idempotency-Key``."""
    answer = await caller.orchestra.escalations.answer(
        request_id, body.output, author=_author(caller, body), tenant=caller.tenant
    )
    return AnswerOut.model_validate(answer_json(answer))


@router.post("/{request_id}/reject", responses=_DECIDES)
async def reject_escalation(request_id: Id, body: RejectionBody, caller: Administrator) -> RequestOut:
    """Decides that the request is not to be answered: it has failed for good."""
    await caller.orchestra.escalations.reject(
        request_id, body.reason, author=_author(caller, body), tenant=caller.tenant
    )
    return request_out(await caller.orchestra.get_request(request_id, tenant=caller.tenant))


def _author(caller: Caller, body: _Body) -> str:
    return body.author or caller.principal.key_id or "local"


def _escalation_out(escalation: Escalation, now: int) -> EscalationOut:
    return EscalationOut(
        request_id=escalation.request_id,
        conversation_id=escalation.conversation_id,
        user_id=escalation.user_id,
        agent=escalation.agent_id,
        content=escalation.content,
        cause=escalation.cause,
        detail=escalation.failure.detail,
        attempts=attempts_out(escalation.failure.attempts),
        asked_at=time_of(escalation.asked_ms),
        escalated_at=time_of(escalation.escalated_ms),
        age=max(now - escalation.escalated_ms, 0) / 1_000,
    )
