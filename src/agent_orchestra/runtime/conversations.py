"""Keeps conversations, and lets one writer at a time into each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from agent_orchestra.core.agent import ID_RULE, is_id
from agent_orchestra.core.conversation import Conversation, InputPolicy
from agent_orchestra.core.message import Author, Message
from agent_orchestra.core.request import MAX_USER_CHARS, check
from agent_orchestra.core.values import JsonObject, faults_in
from agent_orchestra.errors import ConversationBusy, Fault, InvalidInput, SequenceConflict
from agent_orchestra.runtime.clock import new_id, now_ms

__all__ = ["ConversationStore", "Conversations", "Turns"]


class ConversationStore(Protocol):
    """Keeps conversations and their messages. Each change is kept together with the event that tells of it."""

    async def create(self, conversation: Conversation) -> None:
        """Raises :class:`ConversationExists`."""
        ...

    async def get(self, tenant: str, conversation_id: str) -> Conversation:
        """Raises :class:`ConversationNotFound`."""
        ...

    async def find(self, tenant: str, *, user_id: str | None, before: str | None, limit: int) -> Sequence[Conversation]:
        """Newest first; those made before the conversation with the id ``before``, when it is given."""
        ...

    async def messages(self, tenant: str, conversation_id: str, *, after: int, limit: int) -> Sequence[Message]:
        """Those after a sequence number, in order. Raises :class:`ConversationNotFound`."""
        ...

    async def append(self, tenant: str, conversation_id: str, message: Message) -> None:
        """Adds the message, whose ``seq`` must be the next.

        Raises :class:`ConversationNotFound`, :class:`SequenceConflict` when another writer was faster, and
        :class:`ConversationBusy` while a request holds the conversation.
        """
        ...


Cancel = Callable[[], None]

#: How many may wait for one conversation; without a bound, one could take all the room of a service.
_MOST_WAITING = 50


@dataclass(slots=True, eq=False)
class _Turn:
    key: tuple[str, str]
    cancel: Cancel | None
    waiting: deque[tuple[asyncio.Future[None], Cancel | None]] = field(
        default_factory=deque[tuple[asyncio.Future[None], Cancel | None]]
    )


class Turns:
    """Who holds which conversation in this process. First come, first served.

    The rows hold between processes; this saves the ones that share a process from asking the database in turns.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], _Turn] = {}

    @asynccontextmanager
    async def hold(
        self, tenant: str, conversation_id: str, policy: InputPolicy, *, cancel: Cancel | None = None
    ) -> AsyncGenerator[bool]:
        """Holds the conversation over the block; the value says whether it had to wait.

        ``cancel`` ends the holder, or who waits, when other input is to take its turn. Raises
        :class:`ConversationBusy` where the policy is to reject, or too many wait already.
        """
        key = (tenant, conversation_id)
        turn = self._held.get(key)
        waited = turn is not None
        if turn is None:
            turn = self._held[key] = _Turn(key, cancel)
        else:
            if policy is InputPolicy.REJECT or len(turn.waiting) >= _MOST_WAITING:
                raise ConversationBusy(busy(conversation_id))
            if policy is InputPolicy.INTERRUPT:
                # The newest input counts: it ends the one that runs, and those that wait before it.
                for before in (turn.cancel, *(other for _, other in turn.waiting)):
                    if before is not None:
                        before()
            await self._wait(turn, cancel)
        try:
            yield waited
        finally:
            self._hand_on(turn)

    async def _wait(self, turn: _Turn, cancel: Cancel | None) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turn.waiting.append((place, cancel))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                # The turn was handed to us in the moment in which we gave up: it goes to the next.
                self._hand_on(turn)
            raise

    def _hand_on(self, turn: _Turn) -> None:
        while turn.waiting:
            place, cancel = turn.waiting.popleft()
            if not place.done():
                turn.cancel = cancel
                place.set_result(None)
                return
        del self._held[turn.key]


def busy(conversation_id: str) -> str:
    """The sentence for a conversation that another request holds."""
    return f"conversation '{conversation_id}' is answering another request; try again when that has ended"


class Conversations:
    """Creates, reads and lists conversations, and adds messages to them."""

    def __init__(self, *, store: ConversationStore, turns: Turns, default_policy: InputPolicy) -> None:
        self._store = store
        self._turns = turns
        self._default_policy = default_policy

    async def create(
        self,
        tenant: str,
        *,
        conversation_id: str | None = None,
        user_id: str | None = None,
        context: JsonObject | None = None,
        input_policy: InputPolicy | None = None,
    ) -> Conversation:
        """A new, empty conversation. Raises :class:`ConversationExists` for an id that is taken."""
        faults = [*faults_in("user_id", user_id), *faults_in("context", context)]
        if user_id is not None and not 1 <= len(user_id) <= MAX_USER_CHARS:
            faults.append(Fault(path="user_id", message=f"must have 1 to {MAX_USER_CHARS} characters"))
        names = {"id": conversation_id, "tenant": tenant}
        faults += [Fault(path=path, message=ID_RULE) for path, name in names.items() if name and not is_id(name)]
        if faults:
            raise InvalidInput("; ".join(map(str, faults)), faults=tuple(faults))
        now = now_ms()
        conversation = Conversation(
            id=conversation_id or new_id(),
            tenant=tenant,
            user_id=user_id,
            input_policy=input_policy or self._default_policy,
            context=context or {},
            created_ms=now,
            updated_ms=now,
        )
        await self._store.create(conversation)
        return conversation

    async def get(self, tenant: str, conversation_id: str) -> Conversation:
        """Raises :class:`ConversationNotFound`."""
        return await self._store.get(tenant, conversation_id)

    async def find(
        self, tenant: str, *, user_id: str | None = None, before: str | None = None, limit: int = 50
    ) -> Sequence[Conversation]:
        """A page of conversations, newest first; ``before`` is the id of the last one of the page before."""
        return await self._store.find(tenant, user_id=user_id, before=before, limit=limit)

    async def messages(
        self, tenant: str, conversation_id: str, *, after: int = 0, limit: int = 100
    ) -> Sequence[Message]:
        """A page of messages in order, after a sequence number. Raises :class:`ConversationNotFound`."""
        return await self._store.messages(tenant, conversation_id, after=after, limit=limit)

    async def add_message(
        self,
        tenant: str,
        conversation_id: str,
        content: str,
        *,
        author: Author = Author.USER,
        expected_seq: int | None = None,
    ) -> Message:
        """Adds a message that no agent answers.

        ``expected_seq``: the sequence number that the caller expects it to get; another one raises
        :class:`SequenceConflict`. Raises :class:`ConversationNotFound`, :class:`InvalidInput`, and
        :class:`ConversationBusy` by the conversation's input policy.
        """
        check(content)
        conversation = await self._store.get(tenant, conversation_id)
        async with self._turns.hold(tenant, conversation_id, conversation.input_policy) as waited:
            stale = waited
            while True:
                if stale:
                    conversation = await self._store.get(tenant, conversation_id)
                stale = True
                message = Message(
                    id=new_id(), seq=conversation.last_seq + 1, author=author, content=content, created_ms=now_ms()
                )
                if expected_seq is not None and expected_seq != message.seq:
                    raise SequenceConflict(
                        f"the next message of '{conversation_id}' is number {message.seq}, not {expected_seq}",
                        next_seq=message.seq,
                    )
                try:
                    await self._store.append(tenant, conversation_id, message)
                except SequenceConflict:
                    continue
                except ConversationBusy:
                    if conversation.input_policy is InputPolicy.REJECT:
                        raise
                    await asyncio.sleep(ELSEWHERE_SECONDS)
                    continue
                return message


#: How long to wait before a conversation that another process holds is tried again.
ELSEWHERE_SECONDS = 0.05
