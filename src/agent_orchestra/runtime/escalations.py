"""What waits for a person, and what people decide about it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.core.escalation import Escalation, answered, check_decision, rejected
from agent_orchestra.core.request import Answer, Failure
from agent_orchestra.errors import ConversationBusy
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.conversations import ELSEWHERE_SECONDS, Turns

__all__ = ["EscalationLog", "Escalations"]


class EscalationLog(Protocol):
    """The requests that wait for a person. Each decision is kept with its message and its event, or not at all."""

    async def waiting(self, tenant: str, *, after: str | None, limit: int) -> Sequence[Escalation]:
        """Oldest first; those that were asked after the request with the id ``after``, when it is given."""
        ...

    async def find(self, tenant: str, request_id: str) -> Escalation:
        """Raises :class:`RequestNotFound`, and :class:`NotEscalated` for a request that does not wait for a person."""
        ...

    async def settle(self, escalation: Escalation, end: Answer | Failure, *, author: str) -> None:
        """Puts on record how the request ends; an answer becomes the next message of its conversation.

        Of several at once one wins, and the others are told :class:`NotEscalated`. Raises :class:`ConversationBusy`
        while a request holds the conversation that an answer is to be added to.
        """
        ...


class Escalations:
    """Lets people answer in the place of agents."""

    def __init__(self, *, log: EscalationLog, turns: Turns) -> None:
        self._log = log
        self._turns = turns

    async def find(self, *, after: str | None = None, limit: int = 50, tenant: str) -> Sequence[Escalation]:
        """A page of what waits for a person, oldest first; ``after`` is the id of the last one of the page before."""
        return await self._log.waiting(tenant, after=after, limit=limit)

    async def get(self, request_id: str, *, tenant: str) -> Escalation:
        """Raises :class:`RequestNotFound`, and :class:`NotEscalated` for a request that does not wait for a person."""
        return await self._log.find(tenant, request_id)

    async def answer(self, request_id: str, output: str, *, author: str = "operator", tenant: str) -> Answer:
        """Answers in the agent's place: the text becomes the agent's message, and the request has succeeded.

        It is added to the end of the conversation, however that has gone on meanwhile; while a request is being
        answered there, it waits for that one's end, whatever the input policy. Raises :class:`RequestNotFound`,
        :class:`InvalidInput`, :class:`NotEscalated` for a request that does not wait for a person, or for whom somebody
        was faster, and :class:`ConversationBusy` where too many wait for the conversation already.
        """
        check_decision(output=output, author=author)
        escalation = await self._log.find(tenant, request_id)
        # What a user sends is rejected or interrupts by the policy; a person's answer never does either.
        async with self._turns.hold(tenant, escalation.conversation_id, InputPolicy.ENQUEUE):
            while True:
                answer = answered(escalation, output, author=author, now_ms=now_ms())
                try:
                    await self._log.settle(escalation, answer, author=author)
                except ConversationBusy:
                    # Another process holds it.
                    await asyncio.sleep(ELSEWHERE_SECONDS)
                    continue
                return answer

    async def reject(self, request_id: str, reason: str, *, author: str = "operator", tenant: str) -> Failure:
        """Decides that the request is not to be answered: it has failed for good, and its callers are told the reason.

        Raises :class:`RequestNotFound`, :class:`InvalidInput` and :class:`NotEscalated`.
        """
        check_decision(reason=reason, author=author)
        escalation = await self._log.find(tenant, request_id)
        failure = rejected(escalation, reason, author=author, now_ms=now_ms())
        await self._log.settle(escalation, failure, author=author)
        return failure
