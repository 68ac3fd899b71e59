"""What EscalationLog promises, over every adapter."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from sqlalchemy import text

from agent_orchestra.adapters.sql.conversations import SqlConversationStore
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.escalations import SqlEscalationLog
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.core.conversation import Conversation
from agent_orchestra.core.escalation import Escalation, answered, rejected
from agent_orchestra.core.message import Author
from agent_orchestra.core.request import Failure, RequestStatus
from agent_orchestra.errors import ConversationBusy, NotEscalated, OrchestraError, RequestNotFound, SequenceConflict
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.dispatcher import Accepted
from tests.ports.samples import ROUTE, TENANT, accepted, answer, count, escalated, events, failure, request


@pytest.fixture
def log(database: Database) -> SqlRunLog:
    return SqlRunLog(database.scripts, database.prepare)


@pytest.fixture
def escalations(database: Database) -> SqlEscalationLog:
    return SqlEscalationLog(database)


@pytest.fixture
def store(database: Database) -> SqlConversationStore:
    return SqlConversationStore(database)


async def _escalated(
    log: SqlRunLog, content: str = "where is my parcel?", *, tenant: str = TENANT, before: Conversation | None = None
) -> Accepted:
    """A request on record that waits for a person."""
    entry = accepted(request(content, tenant=tenant), before)
    assert await log.accept(entry) is None
    await log.record(tenant, entry.request.id, entry.conversation.id, escalated(), RequestStatus.ESCALATED)
    return entry


async def _answer(
    escalations: SqlEscalationLog, escalation: Escalation, output: str = "Here it is.", author: str = "ada"
) -> None:
    end = answered(escalation, output, author=author, now_ms=now_ms())
    await escalations.settle(escalation, end, author=author)


class TestFinding:
    async def test_what_waits_is_told_with_all_that_led_to_it(
        self, log: SqlRunLog, escalations: SqlEscalationLog
    ) -> None:
        began = now_ms()
        entry = await _escalated(log, "wo ist mein Päckchen? 🚚")

        (found,) = await escalations.waiting(TENANT, after=None, limit=10)

        assert found == Escalation(
            tenant=TENANT,
            request_id=entry.request.id,
            conversation_id=entry.conversation.id,
            user_id="ada",
            content="wo ist mein Päckchen? 🚚",
            route=ROUTE,
            failure=escalated(),
            asked_ms=entry.request.received_ms,
            escalated_ms=found.escalated_ms,
        )
        assert (found.agent_id, found.cause) == ("billing", "model_overloaded")
        assert began <= found.asked_ms <= found.escalated_ms <= now_ms()
        assert await escalations.find(TENANT, entry.request.id) == found

    async def test_only_what_waits_is_listed(self, log: SqlRunLog, escalations: SqlEscalationLog) -> None:
        running, ended, failed = accepted(request()), accepted(request()), accepted(request())
        for entry in (running, ended, failed):
            await log.accept(entry)
        await log.record(TENANT, ended.request.id, ended.conversation.id, answer(ended), RequestStatus.SUCCEEDED)
        await log.record(TENANT, failed.request.id, failed.conversation.id, failure(), RequestStatus.FAILED)
        entry = await _escalated(log)

        found = await escalations.waiting(TENANT, after=None, limit=10)

        assert [escalation.request_id for escalation in found] == [entry.request.id]
        for other in (running, ended, failed):
            with pytest.raises(NotEscalated, match=other.request.id):
                await escalations.find(TENANT, other.request.id)

    async def test_pages_are_in_order_oldest_first(self, log: SqlRunLog, escalations: SqlEscalationLog) -> None:
        entries = [await _escalated(log, f"question {number}") for number in range(5)]

        pages: list[list[str]] = []
        after = None
        while page := await escalations.waiting(TENANT, after=after, limit=2):
            pages.append([escalation.content for escalation in page])
            after = page[-1].request_id

        assert pages == [["question 0", "question 1"], ["question 2", "question 3"], ["question 4"]]
        assert after == entries[-1].request.id

    async def test_the_text_is_that_of_the_request_also_in_a_long_conversation(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore
    ) -> None:
        first = await _escalated(log, "first")
        await _escalated(log, "second", before=await store.get(TENANT, first.conversation.id))

        found = await escalations.waiting(TENANT, after=None, limit=10)

        assert [escalation.content for escalation in found] == ["first", "second"]

    async def test_tenants_see_nothing_of_each_other(self, log: SqlRunLog, escalations: SqlEscalationLog) -> None:
        entry = await _escalated(log)

        assert await escalations.waiting("umbrella", after=None, limit=10) == []
        with pytest.raises(RequestNotFound):
            await escalations.find("umbrella", entry.request.id)

    async def test_what_was_never_asked(self, escalations: SqlEscalationLog) -> None:
        with pytest.raises(RequestNotFound):
            await escalations.find(TENANT, new_id())


class TestAnswering:
    async def test_the_answer_is_the_requests_and_the_conversations_next_message(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore, database: Database
    ) -> None:
        entry = await _escalated(log)
        escalation = await escalations.find(TENANT, entry.request.id)
        end = answered(escalation, "Es ist in Zürich. 🚚", author="ada", now_ms=now_ms())

        await escalations.settle(escalation, end, author="ada")

        record = await log.find(TENANT, entry.request.id)
        assert (record.status, record.end, record.instance_id) == (RequestStatus.SUCCEEDED, end, "person")
        _, said = await store.messages(TENANT, entry.conversation.id, after=0, limit=10)
        assert (said.seq, said.author, said.content) == (2, Author.ASSISTANT, "Es ist in Zürich. 🚚")
        assert (said.agent_id, said.request_id) == ("billing", entry.request.id)
        now = await store.get(TENANT, entry.conversation.id)
        assert (now.last_seq, now.active_agent) == (2, "billing")
        told = (await events(database, entry.request.id))[-1]
        assert (told.type, told.tenant) == ("request.answered", TENANT)
        assert told.data == {
            "conversation_id": entry.conversation.id,
            "status": "SUCCEEDED",
            "seq": 2,
            "author": "ada",
        }
        assert await escalations.waiting(TENANT, after=None, limit=10) == []

    async def test_a_conversation_that_has_gone_on_gets_it_at_its_end(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore
    ) -> None:
        entry = await _escalated(log, "first")
        later = accepted(request("second"), await store.get(TENANT, entry.conversation.id))
        await log.accept(later)
        await log.record(
            TENANT, later.request.id, later.conversation.id, answer(later, "done"), RequestStatus.SUCCEEDED
        )

        await _answer(escalations, await escalations.find(TENANT, entry.request.id), "late")

        messages = await store.messages(TENANT, entry.conversation.id, after=0, limit=10)
        assert [(m.seq, m.content) for m in messages] == [(1, "first"), (2, "second"), (3, "done"), (4, "late")]
        assert await log.accept(accepted(request(), await store.get(TENANT, entry.conversation.id))) is None

    async def test_a_request_that_holds_the_conversation_is_not_disturbed(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore, database: Database
    ) -> None:
        entry = await _escalated(log, "first")
        escalation = await escalations.find(TENANT, entry.request.id)
        holder = accepted(request("second"), await store.get(TENANT, entry.conversation.id))
        await log.accept(holder)
        before = await count(database)

        with pytest.raises(ConversationBusy):
            await _answer(escalations, escalation)

        assert await count(database) == before
        assert await escalations.find(TENANT, entry.request.id) == escalation
        await log.record(TENANT, holder.request.id, holder.conversation.id, answer(holder), RequestStatus.SUCCEEDED)
        await _answer(escalations, escalation)
        assert (await store.get(TENANT, entry.conversation.id)).last_seq == 4

    async def test_one_that_died_with_the_conversation_is_not_waited_for(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore
    ) -> None:
        entry = await _escalated(log)
        await log.accept(accepted(request(), await store.get(TENANT, entry.conversation.id), lease_ms=-1))

        await _answer(escalations, await escalations.find(TENANT, entry.request.id))

        assert (await log.find(TENANT, entry.request.id)).status is RequestStatus.SUCCEEDED

    async def test_a_second_answer_is_refused_and_says_whose_the_first_was(
        self, log: SqlRunLog, escalations: SqlEscalationLog, database: Database
    ) -> None:
        entry = await _escalated(log)
        escalation = await escalations.find(TENANT, entry.request.id)
        await _answer(escalations, escalation, "mine", "ada")
        before, record = await count(database), await log.find(TENANT, entry.request.id)

        with pytest.raises(NotEscalated, match="is SUCCEEDED, settled by ada"):
            await _answer(escalations, escalation, "theirs", "bob")

        assert await count(database) == before
        assert await log.find(TENANT, entry.request.id) == record

    async def test_of_many_at_once_one_wins(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore, database: Database
    ) -> None:
        entry = await _escalated(log)
        escalation = await escalations.find(TENANT, entry.request.id)

        async def wins(number: int) -> bool:
            try:
                if number % 2:
                    await _answer(escalations, escalation, f"answer {number}", f"person {number}")
                else:
                    end = rejected(escalation, "no", author=f"person {number}", now_ms=now_ms())
                    await escalations.settle(escalation, end, author=f"person {number}")
            except NotEscalated:
                return False
            return True

        won = await asyncio.gather(*(wins(number) for number in range(12)))

        assert won.count(True) == 1
        winner = won.index(True)
        record = await log.find(TENANT, entry.request.id)
        assert record.end is not None
        assert record.end.attempts[-1].instance_id == f"person:person {winner}"
        ends = [event.type for event in (await events(database, entry.request.id))[2:]]
        assert ends == ["request.answered" if winner % 2 else "request.failed"]
        assert (await store.get(TENANT, entry.conversation.id)).last_seq == (2 if winner % 2 else 1)

    async def test_people_and_requests_at_once_leave_no_gap(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore
    ) -> None:
        """Answers to several requests of one conversation, while others are asked and answered in it."""
        first = await _escalated(log, "waits 0")
        shared = first.conversation.id
        for number in range(1, 4):
            await _escalated(log, f"waits {number}", before=await store.get(TENANT, shared))
        waiting = await escalations.waiting(TENANT, after=None, limit=10)

        async def answers(escalation: Escalation) -> None:
            while True:
                try:
                    return await _answer(escalations, escalation, f"{escalation.content}: answered")
                except ConversationBusy:
                    await asyncio.sleep(0.005)

        async def asks(number: int) -> None:
            while True:
                entry = accepted(request(f"asks {number}"), await store.get(TENANT, shared))
                try:
                    await log.accept(entry)
                except (ConversationBusy, SequenceConflict):
                    await asyncio.sleep(0.005)
                    continue
                await log.record(TENANT, entry.request.id, shared, answer(entry, "said"), RequestStatus.SUCCEEDED)
                return

        async with asyncio.timeout(40):
            await asyncio.gather(*map(answers, waiting), *map(asks, range(4)))

        messages = await store.messages(TENANT, shared, after=0, limit=100)
        assert [message.seq for message in messages] == list(range(1, 17))
        for question, reply in itertools.pairwise(messages):
            if question.content.startswith("asks"):
                assert reply.request_id == question.request_id, "a person spoke between a question and its answer"

    async def test_what_breaks_in_the_middle_leaves_nothing(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore, database: Database
    ) -> None:
        """A damaged conversation: the place of its next message is taken."""
        entry = await _escalated(log)
        escalation = await escalations.find(TENANT, entry.request.id)
        taken = (
            "INSERT INTO messages (tenant, conversation_id, seq, id, author, content, created_ms)"
            " VALUES (:tenant, :conversation, 2, 'm', 'user', 'out of line', 1)"
        )
        async with database.write() as connection:
            await connection.execute(text(taken), {"tenant": TENANT, "conversation": entry.conversation.id})
        before, now = await count(database), await store.get(TENANT, entry.conversation.id)

        with pytest.raises(OrchestraError):
            await _answer(escalations, escalation)

        assert await count(database) == before
        assert await store.get(TENANT, entry.conversation.id) == now
        assert await escalations.find(TENANT, entry.request.id) == escalation


class TestRejecting:
    async def test_the_request_has_failed_and_the_conversation_is_as_it_was(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore, database: Database
    ) -> None:
        entry = await _escalated(log)
        before = await store.get(TENANT, entry.conversation.id)
        escalation = await escalations.find(TENANT, entry.request.id)
        end = rejected(escalation, "Not for us.", author="ada", now_ms=now_ms())

        await escalations.settle(escalation, end, author="ada")

        record = await log.find(TENANT, entry.request.id)
        assert (record.status, record.end) == (RequestStatus.FAILED, end)
        assert await store.get(TENANT, entry.conversation.id) == before
        told = (await events(database, entry.request.id))[-1]
        assert told.type == "request.failed"
        assert told.data == {
            "conversation_id": entry.conversation.id,
            "status": "FAILED",
            "code": "escalation_rejected",
            "author": "ada",
        }
        with pytest.raises(NotEscalated, match="is FAILED, settled by ada"):
            await escalations.find(TENANT, entry.request.id)

    async def test_it_waits_for_no_request_in_the_conversation(
        self, log: SqlRunLog, escalations: SqlEscalationLog, store: SqlConversationStore
    ) -> None:
        entry = await _escalated(log)
        holder = accepted(request(), await store.get(TENANT, entry.conversation.id))
        await log.accept(holder)
        escalation = await escalations.find(TENANT, entry.request.id)

        await escalations.settle(escalation, rejected(escalation, "no", author="ada", now_ms=0), author="ada")

        end = answer(holder)
        await log.record(TENANT, holder.request.id, holder.conversation.id, end, RequestStatus.SUCCEEDED)
        assert (await log.find(TENANT, holder.request.id)).end == end


async def test_an_escalation_of_the_first_shape_is_read(
    log: SqlRunLog, escalations: SqlEscalationLog, database: Database
) -> None:
    """A row whose failure says neither the agent nor the cause, and whose attempts are of the first releases."""
    entry = await _escalated(log)
    old = (
        '{"code":"escalated","detail":"no","data":{},"output":"","timings":{},'
        '"attempts":[{"agent":"orders","instance":"eu-1","duration_ms":3.5,"error":"agent_failed"}]}'
    )
    async with database.write() as connection:
        await connection.execute(text("UPDATE requests SET outcome = :old"), {"old": old})

    found = await escalations.find(TENANT, entry.request.id)
    await _answer(escalations, found)

    assert (found.agent_id, found.cause, found.failure.attempts[0].decision) == ("orders", "escalated", "")
    end = (await log.find(TENANT, entry.request.id)).end
    assert end is not None
    assert not isinstance(end, Failure)
    assert end.agent == "orders"
