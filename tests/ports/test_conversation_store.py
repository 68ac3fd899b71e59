"""What ConversationStore promises, over every adapter."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from agent_orchestra.adapters.sql.conversations import SqlConversationStore
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.core.message import Author, Message
from agent_orchestra.core.request import RequestStatus
from agent_orchestra.errors import (
    ConversationBusy,
    ConversationExists,
    ConversationNotFound,
    Interrupted,
    SequenceConflict,
)
from agent_orchestra.runtime.clock import new_id, now_ms
from tests.ports.samples import TENANT, accepted, answer, conversation, count, events, request


@pytest.fixture
def store(database: Database) -> SqlConversationStore:
    return SqlConversationStore(database)


@pytest.fixture
def log(database: Database) -> SqlRunLog:
    return SqlRunLog(database.scripts, database.prepare)


def _message(seq: int, content: str = "hello", author: Author = Author.USER) -> Message:
    return Message(id=new_id(), seq=seq, author=author, content=content, created_ms=now_ms())


class TestCreate:
    @pytest.mark.parametrize("policy", list(InputPolicy))
    async def test_a_conversation_comes_back_as_it_was(self, store: SqlConversationStore, policy: InputPolicy) -> None:
        made = dataclasses.replace(conversation(), input_policy=policy)

        await store.create(made)

        assert await store.get(TENANT, made.id) == made

    async def test_one_of_nobody_without_context(self, store: SqlConversationStore) -> None:
        made = dataclasses.replace(conversation(user_id=None), context={})

        await store.create(made)

        assert await store.get(TENANT, made.id) == made

    async def test_a_taken_id_is_refused_and_nothing_changes(
        self, store: SqlConversationStore, database: Database
    ) -> None:
        made = conversation()
        await store.create(made)
        before = await count(database)

        with pytest.raises(ConversationExists, match=made.id):
            await store.create(dataclasses.replace(made, user_id="eve"))

        assert await store.get(TENANT, made.id) == made
        assert await count(database) == before

    async def test_the_same_id_is_free_for_another_tenant(self, store: SqlConversationStore) -> None:
        ours, theirs = (conversation(tenant=tenant, id_="same") for tenant in ("acme", "umbrella"))

        await store.create(ours)
        await store.create(theirs)

        assert await store.get("acme", "same") == ours
        assert await store.get("umbrella", "same") == theirs

    async def test_the_event_tells_of_it(self, store: SqlConversationStore, database: Database) -> None:
        made = conversation()

        await store.create(made)

        (told,) = await events(database)
        assert (told.tenant, told.type, told.subject, told.data) == (TENANT, "conversation.created", made.id, {})


class TestGet:
    async def test_what_is_not_there(self, store: SqlConversationStore) -> None:
        with pytest.raises(ConversationNotFound):
            await store.get(TENANT, "nowhere")

    async def test_what_is_another_tenants(self, store: SqlConversationStore) -> None:
        made = conversation()
        await store.create(made)

        with pytest.raises(ConversationNotFound):
            await store.get("umbrella", made.id)


class TestFind:
    async def test_newest_first_page_by_page_without_gap_or_repeat(self, store: SqlConversationStore) -> None:
        # Three share each millisecond, so that a page can end between equals.
        made = [conversation(created_ms=1_000 + number // 3) for number in range(10)]
        for one in made:
            await store.create(one)

        pages: list[list[str]] = []
        before = None
        while page := await store.find(TENANT, user_id=None, before=before, limit=4):
            pages.append([found.id for found in page])
            before = pages[-1][-1]

        assert [len(page) for page in pages] == [4, 4, 2]
        expected = sorted(made, key=lambda one: (one.created_ms, one.id), reverse=True)
        assert [id_ for page in pages for id_ in page] == [one.id for one in expected]

    async def test_one_users_only(self, store: SqlConversationStore) -> None:
        mine, others, nobodys = (conversation(user_id=user) for user in ("ada", "eve", None))
        for one in (mine, others, nobodys):
            await store.create(one)

        assert [one.id for one in await store.find(TENANT, user_id="ada", before=None, limit=10)] == [mine.id]

    async def test_one_tenants_only(self, store: SqlConversationStore) -> None:
        await store.create(conversation(tenant="umbrella"))

        assert list(await store.find(TENANT, user_id=None, before=None, limit=10)) == []

    async def test_a_page_before_what_is_not_there(self, store: SqlConversationStore) -> None:
        with pytest.raises(ConversationNotFound):
            await store.find(TENANT, user_id=None, before="nowhere", limit=10)


class TestMessages:
    async def test_pages_are_in_order(self, store: SqlConversationStore) -> None:
        made = conversation()
        await store.create(made)
        said = [_message(seq, f"m{seq} ß🙂", list(Author)[seq % 3]) for seq in range(1, 8)]
        for message in said:
            await store.append(TENANT, made.id, message)

        assert list(await store.messages(TENANT, made.id, after=0, limit=3)) == said[:3]
        assert list(await store.messages(TENANT, made.id, after=3, limit=3)) == said[3:6]
        assert list(await store.messages(TENANT, made.id, after=6, limit=3)) == said[6:]
        assert list(await store.messages(TENANT, made.id, after=7, limit=3)) == []

    async def test_of_a_conversation_without_any(self, store: SqlConversationStore) -> None:
        made = conversation()
        await store.create(made)

        assert list(await store.messages(TENANT, made.id, after=0, limit=10)) == []

    async def test_of_a_conversation_that_is_not_there(self, store: SqlConversationStore) -> None:
        with pytest.raises(ConversationNotFound):
            await store.messages(TENANT, "nowhere", after=0, limit=10)

    async def test_of_another_tenants_conversation(self, store: SqlConversationStore) -> None:
        made = conversation()
        await store.create(made)
        await store.append(TENANT, made.id, _message(1))

        with pytest.raises(ConversationNotFound):
            await store.messages("umbrella", made.id, after=0, limit=10)


class TestAppend:
    async def test_it_counts_up_and_is_told(self, store: SqlConversationStore, database: Database) -> None:
        made = conversation(created_ms=1_000)
        await store.create(made)
        message = dataclasses.replace(_message(1), created_ms=5_000)

        await store.append(TENANT, made.id, message)

        now = await store.get(TENANT, made.id)
        assert (now.last_seq, now.created_ms, now.updated_ms) == (1, 1_000, 5_000)
        told = (await events(database, made.id))[-1]
        assert (told.type, told.data) == ("message.added", {"seq": 1})

    @pytest.mark.parametrize("seq", [1, 3])
    async def test_a_number_that_is_not_the_next_writes_nothing(
        self, store: SqlConversationStore, database: Database, seq: int
    ) -> None:
        made = conversation()
        await store.create(made)
        await store.append(TENANT, made.id, _message(1))
        before = await count(database)

        with pytest.raises(SequenceConflict, match="number 2"):
            await store.append(TENANT, made.id, _message(seq))

        assert await count(database) == before

    async def test_to_what_is_not_there(self, store: SqlConversationStore, database: Database) -> None:
        made = conversation()
        await store.create(made)

        with pytest.raises(ConversationNotFound):
            await store.append("umbrella", made.id, _message(1))

        assert (await count(database))["messages"] == 0

    async def test_while_a_request_holds_it(
        self, store: SqlConversationStore, log: SqlRunLog, database: Database
    ) -> None:
        entry = accepted(request())
        await log.accept(entry)
        before = await count(database)

        with pytest.raises(ConversationBusy):
            await store.append(TENANT, entry.conversation.id, _message(2))

        assert await count(database) == before

    async def test_after_the_holders_lease_ran_out_and_the_holder_is_then_refused(
        self, store: SqlConversationStore, log: SqlRunLog
    ) -> None:
        dead = accepted(request("asked"), lease_ms=-1)
        await log.accept(dead)

        await store.append(TENANT, dead.conversation.id, _message(2, "added"))

        with pytest.raises(Interrupted):
            await log.record(TENANT, dead.request.id, dead.conversation.id, answer(dead), RequestStatus.SUCCEEDED)
        said = await store.messages(TENANT, dead.conversation.id, after=0, limit=10)
        assert [message.content for message in said] == ["asked", "added"]

    async def test_twenty_at_once_leave_no_gap(self, store: SqlConversationStore, database: Database) -> None:
        made = conversation()
        await store.create(made)

        async def adds(number: int) -> None:
            while True:
                now = await store.get(TENANT, made.id)
                try:
                    await store.append(TENANT, made.id, _message(now.last_seq + 1, f"from {number}"))
                except SequenceConflict:
                    continue
                return

        async with asyncio.timeout(30):
            await asyncio.gather(*(adds(number) for number in range(20)))

        said = await store.messages(TENANT, made.id, after=0, limit=100)
        assert [message.seq for message in said] == list(range(1, 21))
        assert {message.content for message in said} == {f"from {number}" for number in range(20)}
        assert [event.data["seq"] for event in (await events(database, made.id))[1:]] == list(range(1, 21))
