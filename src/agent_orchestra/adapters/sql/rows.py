"""Rows to values, for the statements on the driver and those through SQLAlchemy alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.scripts import decode
from agent_orchestra.core.conversation import Conversation, InputPolicy
from agent_orchestra.core.message import Author, Message

__all__ = ["conversation_columns", "conversation_of", "message_columns", "message_of"]

_c, _m = tables.conversations.c, tables.messages.c

conversation_columns = (
    _c.id,
    _c.tenant,
    _c.user_id,
    _c.input_policy,
    _c.context,
    _c.active_agent,
    _c.last_seq,
    _c.created_ms,
    _c.updated_ms,
)
message_columns = (_m.id, _m.seq, _m.author, _m.content, _m.agent_id, _m.request_id, _m.created_ms)


def conversation_of(row: Sequence[object]) -> Conversation:
    """From a row of :data:`conversation_columns`."""
    id_, tenant, user_id, input_policy, context, active_agent, last_seq, created_ms, updated_ms = cast("Any", row)
    return Conversation(
        id=id_,
        tenant=tenant,
        user_id=user_id,
        input_policy=InputPolicy(input_policy),
        context=cast("Any", decode(context)),
        active_agent=active_agent,
        last_seq=last_seq,
        created_ms=created_ms,
        updated_ms=updated_ms,
    )


def message_of(row: Sequence[object]) -> Message:
    """From a row of :data:`message_columns`."""
    id_, seq, author, content, agent_id, request_id, created_ms = cast("Any", row)
    return Message(
        id=id_,
        seq=seq,
        author=Author(author),
        content=content,
        agent_id=agent_id,
        request_id=request_id,
        created_ms=created_ms,
    )
