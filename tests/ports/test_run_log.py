"""What RunLog and Leases promise, over every adapter."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest
from sqlalchemy import text

from agent_orchestra.adapters.sql.conversations import SqlConversationStore
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.core.conversation import Conversation
from agent_orchestra.core.message import Author, Message
from agent_orchestra.core.request import Answer, Attempt, Failure, Record, Reply, RequestStatus, Usage
from agent_orchestra.core.values import Json
from agent_orchestra.errors import (
    AgentFailed,
    ConversationBusy,
    ConversationNotFound,
    Escalated,
    Interrupted,
    RequestNotFound,
    SequenceConflict,
    Superseded,
)
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.dispatcher import Accepted
from tests.ports.samples import (
    ROUTE,
    TENANT,
    accepted,
    answer,
    conversation,
    count,
    escalated,
    events,
    failure,
    request,
)

SUCCEEDED, FAILED, CANCELLED = RequestStatus.SUCCEEDED, RequestStatus.FAILED, RequestStatus.CANCELLED


@pytest.fixture
def log(database: Database) -> SqlRunLog:
    return SqlRunLog(database.scripts, database.prepare)


@pytest.fixture
def store(database: Database) -> SqlConversationStore:
    return SqlConversationStore(database)


async def _answered(log: SqlRunLog, entry: Accepted, output: str = "Answered.") -> Answer:
    assert await log.accept(entry) is None
    end = answer(entry, output)
    await log.record(entry.request.tenant, entry.request.id, entry.conversation.id, end, SUCCEEDED)
    return end


async def _now(log: SqlRunLog, conversation_id: str, tenant: str = TENANT) -> Conversation:
    found = (await log.load(request(tenant=tenant, conversation_id=conversation_id), limit=0)).conversation
    assert found is not None
    return found


class TestAccept:
    async def test_a_request_in_a_new_conversation_is_found_running(self, log: SqlRunLog) -> None:
        entry = accepted(request())

        assert await log.accept(entry) is None

        assert await log.find(TENANT, entry.request.id) == Record(
            request_id=entry.request.id,
            conversation_id=entry.conversation.id,
            fingerprint=entry.request.fingerprint,
            status=RequestStatus.RUNNING,
            route=ROUTE,
            instance_id="in-process",
            end=None,
        )

    async def test_the_new_conversation_is_as_it_was_given(self, log: SqlRunLog, store: SqlConversationStore) -> None:
        entry = accepted(request())

        await log.accept(entry)

        begun = entry.request.received_ms
        expected = dataclasses.replace(entry.conversation, last_seq=1, created_ms=begun, updated_ms=begun)
        assert await store.get(TENANT, entry.conversation.id) == expected

    async def test_the_users_message_is_the_conversations_next(self, log: SqlRunLog) -> None:
        first = accepted(request("eins 🙂\nzwei"))
        await _answered(log, first, "drei")
        second = accepted(request("vier"), await _now(log, first.conversation.id))
        await log.accept(second)

        loaded = await log.load(request(conversation_id=first.conversation.id), limit=10)

        assert [(m.seq, m.author, m.content, m.agent_id, m.request_id) for m in loaded.history] == [
            (1, Author.USER, "eins 🙂\nzwei", None, first.request.id),
            (2, Author.ASSISTANT, "drei", "orders", first.request.id),
            (3, Author.USER, "vier", None, second.request.id),
        ]

    async def test_the_events_tell_of_it(self, log: SqlRunLog, database: Database) -> None:
        entry = accepted(request())

        await log.accept(entry)

        created, told = await events(database)
        assert (created.type, created.subject, created.tenant) == (
            "conversation.created",
            entry.conversation.id,
            TENANT,
        )
        assert (told.type, told.subject, told.tenant) == ("request.accepted", entry.request.id, TENANT)
        assert told.data == {"conversation_id": entry.conversation.id, "seq": 1, "agent": "orders"}

    async def test_a_conversation_that_has_grown_is_a_conflict_and_writes_nothing(
        self, log: SqlRunLog, database: Database
    ) -> None:
        first = accepted(request())
        await _answered(log, first)
        stale = await _now(log, first.conversation.id)
        await _answered(log, accepted(request(), stale))
        before = await count(database)

        with pytest.raises(SequenceConflict):
            await log.accept(accepted(request(), stale))

        assert await count(database) == before

    async def test_a_held_conversation_is_busy_and_nothing_is_written(self, log: SqlRunLog, database: Database) -> None:
        holder = accepted(request())
        await log.accept(holder)
        before = await count(database)
        late = accepted(request(), await _now(log, holder.conversation.id))

        with pytest.raises(ConversationBusy):
            await log.accept(late)

        assert await count(database) == before
        with pytest.raises(RequestNotFound):
            await log.find(TENANT, late.request.id)

    async def test_a_conversation_that_is_gone_is_not_found(self, log: SqlRunLog, database: Database) -> None:
        before = await count(database)

        with pytest.raises(ConversationNotFound):
            await log.accept(accepted(request(), conversation()))

        assert await count(database) == before


class TestIdempotencyKeys:
    async def test_a_used_key_gives_the_record_and_writes_nothing(self, log: SqlRunLog, database: Database) -> None:
        first = accepted(request(key="k1"))
        end = await _answered(log, first)
        before = await count(database)

        record = await log.accept(accepted(request(key="k1")))

        assert record is not None
        assert (record.request_id, record.status, record.end) == (first.request.id, SUCCEEDED, end)
        assert await count(database) == before

    async def test_a_used_key_does_not_claim_the_conversation_of_the_repeat(self, log: SqlRunLog) -> None:
        other = accepted(request())
        await _answered(log, other)
        await _answered(log, accepted(request(key="k1")))
        free = await _now(log, other.conversation.id)

        assert await log.accept(accepted(request(key="k1"), free)) is not None

        assert await _now(log, other.conversation.id) == free
        assert await log.accept(accepted(request(), free)) is None

    async def test_a_key_whose_request_still_runs_gives_it(self, log: SqlRunLog) -> None:
        first = accepted(request(key="k1"))
        await log.accept(first)

        record = await log.accept(accepted(request(key="k1")))

        assert record is not None
        assert (record.request_id, record.status, record.end) == (first.request.id, RequestStatus.RUNNING, None)

    async def test_load_gives_the_record_of_the_key_before_anything_is_claimed(self, log: SqlRunLog) -> None:
        first = accepted(request(key="k1"))
        await log.accept(first)

        loaded = await log.load(request(key="k1", conversation_id=first.conversation.id), limit=5)

        assert loaded.record is not None
        assert loaded.record.request_id == first.request.id

    async def test_load_gives_the_record_also_where_the_named_conversation_is_missing(self, log: SqlRunLog) -> None:
        first = accepted(request(key="k1"))
        await log.accept(first)

        loaded = await log.load(request(key="k1", conversation_id="elsewhere"), limit=5)

        assert loaded.conversation is None
        assert loaded.record is not None
        assert loaded.record.request_id == first.request.id

    async def test_a_refused_request_leaves_its_key_free(self, log: SqlRunLog) -> None:
        holder = accepted(request())
        await log.accept(holder)
        held = await _now(log, holder.conversation.id)
        with pytest.raises(ConversationBusy):
            await log.accept(accepted(request(key="k1"), held))

        assert await log.accept(accepted(request(key="k1"))) is None

    async def test_requests_without_a_key_never_meet(self, log: SqlRunLog) -> None:
        assert await log.accept(accepted(request())) is None
        assert await log.accept(accepted(request())) is None

    async def test_the_same_key_of_another_tenant_is_another_key(self, log: SqlRunLog) -> None:
        assert await log.accept(accepted(request(key="k1", tenant="acme"))) is None
        assert await log.accept(accepted(request(key="k1", tenant="umbrella"))) is None

    async def test_fifty_at_once_with_one_key_are_one_request(self, log: SqlRunLog, database: Database) -> None:
        entries = [accepted(request(key="k1")) for _ in range(50)]

        given = await asyncio.gather(*(log.accept(entry) for entry in entries))

        records = [record for record in given if record is not None]
        assert len(records) == 49
        winner = entries[given.index(None)].request.id
        assert {record.request_id for record in records} == {winner}
        assert await count(database) == {"conversations": 1, "messages": 1, "requests": 1, "events": 2}


class TestLoad:
    async def test_history_is_the_last_messages_in_order(self, log: SqlRunLog) -> None:
        first = accepted(request("m1"))
        await _answered(log, first, "m2")
        await _answered(log, accepted(request("m3"), await _now(log, first.conversation.id)), "m4")

        loaded = await log.load(request(conversation_id=first.conversation.id), limit=3)

        assert [message.content for message in loaded.history] == ["m2", "m3", "m4"]
        assert loaded.record is None
        assert loaded.conversation is not None
        assert (loaded.conversation.last_seq, loaded.conversation.active_agent) == (4, "orders")

    async def test_a_limit_of_none_gives_no_history(self, log: SqlRunLog) -> None:
        first = accepted(request())
        await _answered(log, first)

        assert (await log.load(request(conversation_id=first.conversation.id), limit=0)).history == ()

    async def test_a_conversation_that_is_not_there(self, log: SqlRunLog) -> None:
        with pytest.raises(ConversationNotFound):
            await log.load(request(conversation_id="nowhere"), limit=5)

    async def test_the_conversation_of_another_tenant_is_not_there(self, log: SqlRunLog) -> None:
        entry = accepted(request())
        await log.accept(entry)

        with pytest.raises(ConversationNotFound):
            await log.load(request(tenant="umbrella", conversation_id=entry.conversation.id), limit=5)


class TestRecord:
    @pytest.mark.parametrize(
        "value",
        [None, True, 0, -1.5, "text", [], {}, {"größe": [1, 2.5, None, {"tief": "🚚 \"'\\\n"}], "leer": {}}],
    )
    async def test_an_answer_comes_back_as_it_was(self, log: SqlRunLog, value: Json) -> None:
        entry = accepted(request(context={"Ä": [1, {"b": None}]}))
        await log.accept(entry)
        end = answer(entry, "It left Zürich\r\n\ton Tuesday. 🚚 \u202e%s :name $1 ' \\", value)

        await log.record(TENANT, entry.request.id, entry.conversation.id, end, SUCCEEDED)

        record = await log.find(TENANT, entry.request.id)
        assert record.status is SUCCEEDED
        assert record.end == end

    async def test_an_answer_of_a_megabyte_and_one_of_nothing(self, log: SqlRunLog) -> None:
        for output in ("ß" * 1_000_000, ""):
            entry = accepted(request())
            end = await _answered(log, entry, output)
            assert (await log.find(TENANT, entry.request.id)).end == end

    async def test_an_unknown_cost_is_not_a_cost_of_nothing(self, log: SqlRunLog) -> None:
        entry = accepted(request())
        await log.accept(entry)
        end = dataclasses.replace(answer(entry), reply=Reply(output="much", usage=Usage(input_tokens=2**40)))

        await log.record(TENANT, entry.request.id, entry.conversation.id, end, SUCCEEDED)

        assert (await log.find(TENANT, entry.request.id)).end == end

    async def test_it_frees_the_conversation_and_names_its_agent(self, log: SqlRunLog) -> None:
        entry = accepted(request())
        await _answered(log, entry)

        now = await _now(log, entry.conversation.id)

        assert (now.last_seq, now.active_agent) == (2, "orders")
        assert await log.accept(accepted(request(), now)) is None

    async def test_the_event_tells_where_the_answer_is(self, log: SqlRunLog, database: Database) -> None:
        entry = accepted(request())
        await _answered(log, entry)

        told = (await events(database, entry.request.id))[-1]

        assert told.type == "request.completed"
        assert told.data == {"conversation_id": entry.conversation.id, "status": "SUCCEEDED", "seq": 2}

    async def test_a_second_time_writes_nothing(self, log: SqlRunLog, database: Database) -> None:
        entry = accepted(request())
        end = await _answered(log, entry)
        before = await count(database)

        await log.record(TENANT, entry.request.id, entry.conversation.id, end, SUCCEEDED)

        assert await count(database) == before
        assert (await log.find(TENANT, entry.request.id)).end == end

    async def test_two_at_once_write_one_answer(self, log: SqlRunLog, database: Database) -> None:
        entry = accepted(request())
        await log.accept(entry)
        end = answer(entry)

        ends = [log.record(TENANT, entry.request.id, entry.conversation.id, end, SUCCEEDED) for _ in range(5)]
        await asyncio.gather(*ends)

        assert await count(database) == {"conversations": 1, "messages": 2, "requests": 1, "events": 3}

    async def test_a_failure_comes_back_as_it_was_and_frees_the_conversation(
        self, log: SqlRunLog, database: Database
    ) -> None:
        entry = accepted(request())
        await log.accept(entry)

        await log.record(TENANT, entry.request.id, entry.conversation.id, failure(), FAILED)

        record = await log.find(TENANT, entry.request.id)
        assert (record.status, record.end) == (FAILED, failure())
        told = (await events(database, entry.request.id))[-1]
        assert told.type == "request.failed"
        assert told.data == {"conversation_id": entry.conversation.id, "status": "FAILED", "code": "agent_failed"}
        now = await _now(log, entry.conversation.id)
        assert (now.last_seq, now.active_agent) == (1, None)
        assert await log.accept(accepted(request(), now)) is None

    async def test_a_cancelled_request_is_told_as_cancelled(self, log: SqlRunLog, database: Database) -> None:
        entry = accepted(request())
        await log.accept(entry)

        await log.record(TENANT, entry.request.id, entry.conversation.id, failure("superseded"), CANCELLED)

        assert (await log.find(TENANT, entry.request.id)).status is CANCELLED
        told = (await events(database, entry.request.id))[-1]
        assert (told.type, told.data["status"]) == ("request.cancelled", "CANCELLED")

    async def test_an_escalated_request_waits_for_a_person_and_frees_its_conversation(
        self, log: SqlRunLog, database: Database
    ) -> None:
        entry = accepted(request(key="k1"))
        await log.accept(entry)

        await log.record(TENANT, entry.request.id, entry.conversation.id, escalated(), RequestStatus.ESCALATED)

        record = await log.find(TENANT, entry.request.id)
        assert (record.status, record.end, record.instance_id) == (RequestStatus.ESCALATED, escalated(), "eu-1")
        told = (await events(database, entry.request.id))[-1]
        assert told.type == "request.escalated"
        assert told.data == {
            "conversation_id": entry.conversation.id,
            "status": "ESCALATED",
            "code": "escalated",
            "cause": "model_overloaded",
            "agent": "billing",
        }
        assert await log.reap(now_ms() + 1_000_000) == 0
        assert await log.accept(accepted(request(key="k1"))) == record
        assert await log.accept(accepted(request(), await _now(log, entry.conversation.id))) is None

    async def test_escalating_a_second_time_writes_nothing(self, log: SqlRunLog, database: Database) -> None:
        entry = accepted(request())
        await log.accept(entry)
        await log.record(TENANT, entry.request.id, entry.conversation.id, escalated(), RequestStatus.ESCALATED)
        before = await count(database)

        with pytest.raises(Escalated):
            await log.record(TENANT, entry.request.id, entry.conversation.id, escalated(), RequestStatus.ESCALATED)

        assert await count(database) == before

    async def test_the_agent_that_answered_need_not_be_the_first_of_the_route(self, log: SqlRunLog) -> None:
        entry = accepted(request())
        await log.accept(entry)
        tried = escalated().attempts
        end = dataclasses.replace(answer(entry), agent="billing", instance="eu-1", attempts=tried)

        await log.record(TENANT, entry.request.id, entry.conversation.id, end, SUCCEEDED)

        record = await log.find(TENANT, entry.request.id)
        assert (record.end, record.instance_id) == (end, "eu-1")
        assert (await _now(log, entry.conversation.id)).active_agent == "billing"

    async def test_the_answer_of_an_earlier_release_is_read(self, log: SqlRunLog, database: Database) -> None:
        entry = accepted(request())
        end = await _answered(log, entry)
        old = (
            '{"reply": {"value": null, "tool_calls": [], "usage": {}, "generation": null}, "timings": {"total": 1.5},'
            ' "attempts": [{"agent": "orders", "instance": "eu-1", "duration_ms": 3.5, "error": null}]}'
        )
        async with database.write() as connection:
            await connection.execute(text("UPDATE requests SET outcome = :old"), {"old": old})

        read = (await log.find(TENANT, entry.request.id)).end

        assert isinstance(read, Answer)
        assert (read.agent, read.instance, read.output) == ("orders", "in-process", end.output)
        assert read.attempts == (Attempt(agent_id="orders", instance_id="eu-1", duration_ms=3.5),)

    async def test_an_answer_after_a_recorded_failure_raises_the_failure(
        self, log: SqlRunLog, database: Database
    ) -> None:
        entry = accepted(request())
        await log.accept(entry)
        await log.record(TENANT, entry.request.id, entry.conversation.id, failure(), FAILED)
        before = await count(database)

        with pytest.raises(AgentFailed, match="«boom»") as raised:
            await log.record(TENANT, entry.request.id, entry.conversation.id, answer(entry), SUCCEEDED)

        assert raised.value.data == {"cause": "ValueError", "try": 1}
        assert await count(database) == before
        assert (await log.find(TENANT, entry.request.id)).end == failure()

    async def test_a_failure_after_a_recorded_answer_changes_nothing(self, log: SqlRunLog, database: Database) -> None:
        entry = accepted(request())
        end = await _answered(log, entry)
        before = await count(database)

        await log.record(TENANT, entry.request.id, entry.conversation.id, failure(), FAILED)

        assert await count(database) == before
        assert (await log.find(TENANT, entry.request.id)).end == end


class TestTakeOver:
    async def test_it_ends_the_holder_as_cancelled_and_goes_on(self, log: SqlRunLog, database: Database) -> None:
        holder = accepted(request("first"))
        await log.accept(holder)
        taker = accepted(request("second"), await _now(log, holder.conversation.id), take_over=True)

        assert await log.accept(taker) is None

        record = await log.find(TENANT, holder.request.id)
        assert record.status is CANCELLED
        assert isinstance(record.end, Failure)
        assert record.end.code == "superseded"
        told = (await events(database, holder.request.id))[-1]
        assert told.type == "request.cancelled"
        assert told.data == {"conversation_id": holder.conversation.id, "status": "CANCELLED", "code": "superseded"}

        end = answer(taker)
        await log.record(TENANT, taker.request.id, taker.conversation.id, end, SUCCEEDED)
        loaded = await log.load(request(conversation_id=holder.conversation.id), limit=10)
        assert [(m.seq, m.content) for m in loaded.history] == [(1, "first"), (2, "second"), (3, end.output)]

    async def test_the_holders_late_answer_is_refused_and_not_written(self, log: SqlRunLog, database: Database) -> None:
        holder = accepted(request())
        await log.accept(holder)
        taker = accepted(request(), await _now(log, holder.conversation.id), take_over=True)
        await log.accept(taker)
        before = await count(database)

        with pytest.raises(Superseded):
            await log.record(TENANT, holder.request.id, holder.conversation.id, answer(holder), SUCCEEDED)
        with pytest.raises(Superseded):
            await log.record(TENANT, holder.request.id, holder.conversation.id, failure(), FAILED)

        assert await count(database) == before
        with pytest.raises(ConversationBusy):
            await log.accept(accepted(request(), await _now(log, holder.conversation.id)))

    async def test_taking_over_what_is_free_is_a_plain_acceptance(self, log: SqlRunLog) -> None:
        first = accepted(request())
        end = await _answered(log, first)

        taker = accepted(request(), await _now(log, first.conversation.id), take_over=True)

        assert await log.accept(taker) is None
        assert (await log.find(TENANT, first.request.id)).end == end

    async def test_a_take_over_that_meets_a_used_key_leaves_the_holder_alone(self, log: SqlRunLog) -> None:
        await log.accept(accepted(request(key="k1")))
        holder = accepted(request())
        await log.accept(holder)
        taker = accepted(request(key="k1"), await _now(log, holder.conversation.id), take_over=True)

        assert await log.accept(taker) is not None

        assert (await log.find(TENANT, holder.request.id)).status is RequestStatus.RUNNING
        await log.record(TENANT, holder.request.id, holder.conversation.id, answer(holder), SUCCEEDED)

    async def test_answers_and_take_overs_at_once_end_every_request_once(
        self, log: SqlRunLog, database: Database
    ) -> None:
        """Whoever is first wins; the other is told so, and never that the database has a problem."""
        holders = [accepted(request()) for _ in range(12)]
        await asyncio.gather(*(log.accept(holder) for holder in holders))
        seen = [await _now(log, holder.conversation.id) for holder in holders]

        async def answers(holder: Accepted) -> bool:
            try:
                await log.record(TENANT, holder.request.id, holder.conversation.id, answer(holder), SUCCEEDED)
            except Superseded:
                return False
            return True

        async def takes(before: Conversation) -> bool:
            try:
                await log.accept(accepted(request(), before, take_over=True))
            except SequenceConflict:
                return False
            return True

        pairs = zip(holders, seen, strict=True)
        ends = await asyncio.gather(*(asyncio.gather(takes(now), answers(holder)) for holder, now in pairs))

        assert all(taken != answered for taken, answered in ends)
        told = [event.type for holder in holders for event in (await events(database, holder.request.id))[1:]]
        assert len(told) == len(holders)


class TestLeases:
    async def test_an_expired_lease_lets_another_in_and_refuses_the_late_answer(
        self, log: SqlRunLog, database: Database
    ) -> None:
        dead = accepted(request("first"), lease_ms=-1)
        await log.accept(dead)
        heir = accepted(request("second"), await _now(log, dead.conversation.id))
        assert await log.accept(heir) is None
        before = await count(database)

        with pytest.raises(Interrupted):
            await log.record(TENANT, dead.request.id, dead.conversation.id, answer(dead), SUCCEEDED)

        now = await count(database)
        assert now == {**before, "events": before["events"] + 1}
        assert [event.type for event in await events(database, dead.request.id)] == [
            "request.accepted",
            "request.failed",
        ]
        record = await log.find(TENANT, dead.request.id)
        assert record.status is FAILED
        assert isinstance(record.end, Failure)
        assert (record.end.code, record.end.output) == ("interrupted", "")
        with pytest.raises(ConversationBusy):
            await log.accept(accepted(request(), await _now(log, dead.conversation.id)))

    async def test_the_heir_is_not_disturbed_by_the_late_failure(self, log: SqlRunLog) -> None:
        dead = accepted(request(), lease_ms=-1)
        await log.accept(dead)
        heir = accepted(request(), await _now(log, dead.conversation.id))
        await log.accept(heir)

        await log.record(TENANT, dead.request.id, dead.conversation.id, failure(), FAILED)

        end = answer(heir)
        await log.record(TENANT, heir.request.id, heir.conversation.id, end, SUCCEEDED)
        assert (await log.find(TENANT, heir.request.id)).end == end

    async def test_a_late_answer_that_nobody_was_waiting_to_replace_is_taken(self, log: SqlRunLog) -> None:
        slow = accepted(request(), lease_ms=-1)
        await log.accept(slow)
        end = answer(slow)

        await log.record(TENANT, slow.request.id, slow.conversation.id, end, SUCCEEDED)

        assert (await log.find(TENANT, slow.request.id)).end == end

    async def test_a_renewed_lease_keeps_the_conversation(self, log: SqlRunLog) -> None:
        first, second = accepted(request(), lease_ms=-1), accepted(request(), lease_ms=-1)
        await log.accept(first)
        await log.accept(second)

        await log.renew([first.request.id, second.request.id], now_ms() + 60_000)

        assert await log.reap(now_ms()) == 0
        for entry in (first, second):
            with pytest.raises(ConversationBusy):
                await log.accept(accepted(request(), await _now(log, entry.conversation.id)))

    async def test_renewing_what_has_ended_does_not_wake_it(self, log: SqlRunLog) -> None:
        entry = accepted(request())
        end = await _answered(log, entry)

        await log.renew([entry.request.id, new_id()], now_ms() + 60_000)
        await log.renew([], now_ms() + 60_000)

        assert (await log.find(TENANT, entry.request.id)).end == end

    async def test_reap_ends_the_dead_only(self, log: SqlRunLog, database: Database) -> None:
        dead = [accepted(request(tenant=tenant), lease_ms=-1) for tenant in ("acme", "umbrella")]
        alive, ended = accepted(request()), accepted(request(), lease_ms=-1)
        for entry in (*dead, alive):
            await log.accept(entry)
        end = await _answered(log, ended)

        assert await log.reap(now_ms()) == 2

        for entry in dead:
            record = await log.find(entry.request.tenant, entry.request.id)
            assert record.status is FAILED
            assert isinstance(record.end, Failure)
            assert record.end.code == "interrupted"
            told = (await events(database, entry.request.id))[-1]
            assert (told.type, told.tenant) == ("request.failed", entry.request.tenant)
            assert told.data == {
                "conversation_id": entry.conversation.id,
                "status": "FAILED",
                "code": "interrupted",
            }
            now = await _now(log, entry.conversation.id, entry.request.tenant)
            assert await log.accept(accepted(request(tenant=entry.request.tenant), now)) is None
        assert (await log.find(TENANT, alive.request.id)).status is RequestStatus.RUNNING
        assert (await log.find(TENANT, ended.request.id)).end == end

    async def test_a_second_reap_finds_nothing(self, log: SqlRunLog, database: Database) -> None:
        await log.accept(accepted(request(), lease_ms=-1))
        assert await log.reap(now_ms()) == 1
        before = await count(database)

        assert await log.reap(now_ms()) == 0

        assert await count(database) == before

    async def test_two_that_reap_at_once_end_each_request_once(self, log: SqlRunLog, database: Database) -> None:
        await asyncio.gather(*(log.accept(accepted(request(), lease_ms=-1)) for _ in range(10)))

        numbers = await asyncio.gather(*(log.reap(now_ms()) for _ in range(4)))

        assert sum(numbers) == 10
        assert [event.type for event in await events(database)].count("request.failed") == 10

    async def test_a_reaped_requests_late_answer_is_refused(self, log: SqlRunLog, database: Database) -> None:
        dead = accepted(request(), lease_ms=-1)
        await log.accept(dead)
        await log.reap(now_ms())
        before = await count(database)

        with pytest.raises(Interrupted):
            await log.record(TENANT, dead.request.id, dead.conversation.id, answer(dead), SUCCEEDED)

        assert await count(database) == before

    async def test_answers_and_reaps_at_once_end_every_request_once(self, log: SqlRunLog, database: Database) -> None:
        """A lease that runs out in the moment of the answer: whoever is first wins, and nothing waits for ever."""
        slow = [accepted(request(), lease_ms=-1) for _ in range(12)]
        await asyncio.gather(*(log.accept(entry) for entry in slow))

        async def answers(entry: Accepted) -> bool:
            try:
                await log.record(TENANT, entry.request.id, entry.conversation.id, answer(entry), SUCCEEDED)
            except Interrupted:
                return False
            return True

        *answered, first, second = await asyncio.gather(
            *(answers(entry) for entry in slow), log.reap(now_ms()), log.reap(now_ms())
        )

        assert answered.count(True) + first + second == len(slow)
        ends = [event.type for event in await events(database) if event.type in ("request.completed", "request.failed")]
        assert len(ends) == len(slow)


class TestFind:
    async def test_what_was_never_asked(self, log: SqlRunLog) -> None:
        with pytest.raises(RequestNotFound):
            await log.find(TENANT, new_id())

    async def test_what_another_tenant_asked(self, log: SqlRunLog) -> None:
        entry = accepted(request())
        await log.accept(entry)

        with pytest.raises(RequestNotFound):
            await log.find("umbrella", entry.request.id)


async def test_two_tenants_may_have_a_conversation_of_the_same_id(log: SqlRunLog, store: SqlConversationStore) -> None:
    for tenant in ("acme", "umbrella"):
        await store.create(conversation(tenant=tenant, id_="same"))
    for tenant in ("acme", "umbrella"):
        before = await _now(log, "same", tenant)
        entry = accepted(request(f"from {tenant}", tenant=tenant), before)
        assert await log.accept(entry) is None
        await log.record(tenant, entry.request.id, "same", answer(entry, f"to {tenant}"), SUCCEEDED)

    for tenant in ("acme", "umbrella"):
        messages = await store.messages(tenant, "same", after=0, limit=10)
        assert [message.content for message in messages] == [f"from {tenant}", f"to {tenant}"]


async def test_a_record_of_another_tenant_cannot_be_ended(log: SqlRunLog, database: Database) -> None:
    entry = accepted(request())
    await log.accept(entry)
    before = await count(database)

    with pytest.raises(RequestNotFound):
        await log.record("umbrella", entry.request.id, entry.conversation.id, answer(entry), SUCCEEDED)

    assert await count(database) == before
    assert (await log.find(TENANT, entry.request.id)).status is RequestStatus.RUNNING


async def test_twenty_at_once_on_one_conversation_leave_no_gap(
    log: SqlRunLog, store: SqlConversationStore, database: Database
) -> None:
    first = accepted(request())
    await _answered(log, first)
    shared = first.conversation.id

    async def asks(number: int) -> None:
        while True:
            now = await _now(log, shared)
            entry = accepted(request(f"question {number}"), now)
            try:
                assert await log.accept(entry) is None
            except (SequenceConflict, ConversationBusy):
                await asyncio.sleep(0)
                continue
            await log.record(TENANT, entry.request.id, shared, answer(entry, f"answer {number}"), SUCCEEDED)
            return

    async with asyncio.timeout(30):
        await asyncio.gather(*(asks(number) for number in range(20)))

    messages = await store.messages(TENANT, shared, after=2, limit=100)
    assert [message.seq for message in messages] == list(range(3, 43))
    asked, answered = messages[::2], messages[1::2]
    assert {message.content for message in asked} == {f"question {number}" for number in range(20)}
    _each_answer_follows_its_question(asked, answered)
    assert len(await events(database)) == 2 + 1 + 20 * 2


def _each_answer_follows_its_question(asked: Sequence[Message], answered: Sequence[Message]) -> None:
    for question, reply in zip(asked, answered, strict=True):
        assert question.request_id == reply.request_id
        assert reply.content == question.content.replace("question", "answer")
