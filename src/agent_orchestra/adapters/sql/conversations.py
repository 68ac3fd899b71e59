"""Keeps conversations and their messages."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, exists, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.events import tell
from agent_orchestra.adapters.sql.rows import conversation_columns, conversation_of, message_columns, message_of
from agent_orchestra.adapters.sql.runlog import conversation_missing
from agent_orchestra.core.conversation import Conversation
from agent_orchestra.core.message import Message
from agent_orchestra.core.request import RequestStatus
from agent_orchestra.errors import ConversationBusy, ConversationExists, SequenceConflict
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.conversations import busy

__all__ = ["SqlConversationStore"]

_conversations, _messages, _requests = tables.conversations, tables.messages, tables.requests


class SqlConversationStore:
    """Conforms to :class:`ConversationStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, conversation: Conversation) -> None:
        async with self._database.write() as connection:
            try:
                await connection.execute(
                    insert(_conversations).values(
                        tenant=conversation.tenant,
                        id=conversation.id,
                        user_id=conversation.user_id,
                        input_policy=conversation.input_policy.value,
                        context=conversation.context,
                        last_seq=0,
                        created_ms=conversation.created_ms,
                        updated_ms=conversation.updated_ms,
                    )
                )
            except IntegrityError as error:
                raise ConversationExists(f"there is already a conversation '{conversation.id}'") from error
            await tell(connection, conversation.tenant, "conversation.created", conversation.id)

    async def get(self, tenant: str, conversation_id: str) -> Conversation:
        async with self._database.read() as connection:
            return await _get(connection, tenant, conversation_id)

    async def find(self, tenant: str, *, user_id: str | None, before: str | None, limit: int) -> Sequence[Conversation]:
        c = _conversations.c
        query = select(*conversation_columns).where(c.tenant == tenant)
        if user_id is not None:
            query = query.where(c.user_id == user_id)
        async with self._database.read() as connection:
            if before is not None:
                last = await _get(connection, tenant, before)
                older = or_(c.created_ms < last.created_ms, and_(c.created_ms == last.created_ms, c.id < last.id))
                query = query.where(older)
            query = query.order_by(c.created_ms.desc(), c.id.desc()).limit(limit)
            rows = (await connection.execute(query)).all()
        return [conversation_of(row) for row in rows]

    async def messages(self, tenant: str, conversation_id: str, *, after: int, limit: int) -> Sequence[Message]:
        c = _messages.c
        query = (
            select(*message_columns)
            .where(c.tenant == tenant, c.conversation_id == conversation_id, c.seq > after)
            .order_by(c.seq)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            if not rows:
                await _get(connection, tenant, conversation_id)
        return [message_of(row) for row in rows]

    async def append(self, tenant: str, conversation_id: str, message: Message) -> None:
        c = _conversations.c
        held = exists().where(
            _requests.c.tenant == c.tenant,
            _requests.c.id == c.turn,
            _requests.c.status == RequestStatus.RUNNING.value,
            _requests.c.lease_until_ms > now_ms(),
        )
        free = (c.tenant == tenant, c.id == conversation_id, c.last_seq == message.seq - 1, ~held)
        async with self._database.write() as connection:
            claimed = await connection.execute(
                update(_conversations)
                .where(*free)
                .values(last_seq=message.seq, turn=None, updated_ms=message.created_ms)
            )
            if not claimed.rowcount:
                now = await _get(connection, tenant, conversation_id)
                if now.last_seq != message.seq - 1:
                    raise SequenceConflict(
                        f"the next message of conversation '{conversation_id}' is number {now.last_seq + 1}"
                    )
                raise ConversationBusy(busy(conversation_id))
            await connection.execute(
                insert(_messages).values(
                    tenant=tenant,
                    conversation_id=conversation_id,
                    seq=message.seq,
                    id=message.id,
                    author=message.author.value,
                    content=message.content,
                    agent_id=message.agent_id,
                    request_id=message.request_id,
                    created_ms=message.created_ms,
                )
            )
            await tell(connection, tenant, "message.added", conversation_id, {"seq": message.seq})


async def _get(connection: AsyncConnection, tenant: str, conversation_id: str) -> Conversation:
    c = _conversations.c
    query = select(*conversation_columns).where(c.tenant == tenant, c.id == conversation_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise conversation_missing(conversation_id)
    return conversation_of(row)
