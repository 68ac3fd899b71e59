"""Conversations over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, status

from agent_orchestra.api.auth import Reader, Runner
from agent_orchestra.api.orchestrate import ANSWERED, answered
from agent_orchestra.api.problems import described
from agent_orchestra.api.wire import (
    ConversationBody,
    ConversationOut,
    IdempotencyKey,
    LastEventId,
    MessageBody,
    MessageOut,
    Page,
    ProcessBody,
    conversation_out,
    message_out,
)
from agent_orchestra.definitions import Id

__all__ = ["router"]

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

_CHANGES = described(400, 404, 409, 413, 415, 422, 503, 507)
_Limit = Annotated[int, Query(ge=1, le=500)]


@router.post("", status_code=status.HTTP_201_CREATED, responses=_CHANGES)
async def create_conversation(body: ConversationBody, response: Response, caller: Runner) -> ConversationOut:
    """Begins a conversation, empty."""
    conversation = await caller.orchestra.create_conversation(
        conversation_id=body.id,
        user_id=body.user_id,
        context=body.context,
        input_policy=body.input_policy,
        tenant=caller.tenant,
    )
    response.headers["Location"] = f"/v1/conversations/{conversation.id}"
    return conversation_out(conversation)


@router.get("", responses=described(404, 422, 503))
async def list_conversations(
    caller: Reader,
    user_id: Annotated[str | None, Query(min_length=1, max_length=256, pattern="^[^\\x00]*$")] = None,
    cursor: Id | None = None,
    limit: _Limit = 50,
) -> Page[ConversationOut]:
    """The conversations, newest first."""
    found = await caller.orchestra.get_conversations(
        user_id=user_id, before=cursor, limit=limit + 1, tenant=caller.tenant
    )
    items = [conversation_out(conversation) for conversation in found[:limit]]
    return Page[ConversationOut](items=items, next=items[-1].id if len(found) > limit else None)


@router.get("/{conversation_id}", responses=described(404, 422, 503))
async def get_conversation(conversation_id: Id, caller: Reader) -> ConversationOut:
    """One conversation."""
    return conversation_out(await caller.orchestra.get_conversation(conversation_id, tenant=caller.tenant))


@router.get("/{conversation_id}/messages", responses=described(404, 422, 503))
async def list_messages(
    conversation_id: Id,
    caller: Reader,
    cursor: Annotated[int, Query(ge=0, le=2_147_483_647)] = 0,
    limit: _Limit = 100,
) -> Page[MessageOut]:
    """The messages in order; ``cursor`` is the number of the last one that was seen."""
    found = await caller.orchestra.get_messages(conversation_id, after=cursor, limit=limit + 1, tenant=caller.tenant)
    items = [message_out(message) for message in found[:limit]]
    return Page[MessageOut](items=items, next=str(items[-1].seq) if len(found) > limit else None)


@router.post("/{conversation_id}/messages", status_code=status.HTTP_201_CREATED, responses=_CHANGES)
async def add_message(conversation_id: Id, body: MessageBody, caller: Runner) -> MessageOut:
    """Adds a message that no agent answers."""
    message = await caller.orchestra.add_message(
        conversation_id,
        body.content,
        author=body.author,
        expected_seq=body.expected_seq,
        tenant=caller.tenant,
    )
    return message_out(message)


@router.post("/{conversation_id}/process", responses=ANSWERED, response_model=None)
async def process_message(
    conversation_id: Id,
    body: ProcessBody,
    request: Request,
    caller: Runner,
    idempotency_key: IdempotencyKey = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Has a message of the user answered: the same as ``/v1/orchestrate`` with this conversation."""
    return await answered(caller, request, body, conversation_id, idempotency_key, last_event_id)
