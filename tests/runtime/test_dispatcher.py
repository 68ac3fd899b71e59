"""Every request goes the one way: gathered, decided, done, recorded, answered."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent_orchestra.core.agent import Agent, Limits
from agent_orchestra.core.request import Answer, Failure, Reply, RequestStatus, Usage
from agent_orchestra.core.stream import StreamEvent
from agent_orchestra.core.values import Json
from agent_orchestra.errors import (
    AgentFailed,
    ConversationNotFound,
    DeadlineExceeded,
    IdempotencyMismatch,
    Interrupted,
    InvalidInput,
    NoAgentMatches,
    NoInstanceAvailable,
    NotFound,
    OrchestraError,
    Overloaded,
    RequestNotFound,
    RunFailed,
    ShuttingDown,
    StorageFull,
    StorageUnavailable,
)
from agent_orchestra.runtime.executor import Call, Emit, Instance
from agent_orchestra.runtime.orchestra import make_request
from agent_orchestra.testing import ScriptedAgent
from tests.runtime.parts import Gate, Parts, conversation_of, held, opened, text_of, types_of
from tests.services.waiting import wait_until


async def echo(content: str) -> str:
    return f"{content}!"


async def ended(parts: Parts, request_id: str) -> Answer | Failure:
    record = await parts.orchestra.get_request(request_id)
    assert record.end is not None
    return record.end


# --- recorded before it is answered


async def test_an_answer_is_on_record_before_it_is_given(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        told: list[StreamEvent] = []
        parts.log.may_record.clear()
        asking = asyncio.create_task(parts.orchestra.process_request("echo", emit=told.append))
        await wait_until(lambda: parts.log.record_calls == 1, "the end was never recorded")
        await wait_until(lambda: text_of(told) == "echo!", "the stream did not tell the output")
        assert not asking.done()
        assert types_of(told) == ["routed", "started"]
        request_id = str(told[0].data["request_id"])
        assert (await parts.orchestra.get_request(request_id)).status is RequestStatus.RUNNING
        parts.log.may_record.set()
        answer = await asking
        assert answer.request_id == request_id
        assert await ended(parts, request_id) == answer
        assert types_of(told) == ["routed", "started", "completed"]


@pytest.mark.parametrize("error", [StorageUnavailable("away"), StorageFull("full")], ids=lambda e: type(e).__name__)
async def test_an_answer_that_cannot_be_recorded_is_not_given_and_is_recorded_later(
    tmp_path: Path, error: StorageUnavailable
) -> None:
    async with opened(tmp_path) as parts:
        agent = ScriptedAgent(["the answer"])
        await parts.agent("scripted", agent)
        told: list[StreamEvent] = []
        parts.log.record_raises = [error]
        with pytest.raises(type(error)):
            await parts.orchestra.process_request("scripted", idempotency_key="k", emit=told.append)
        assert types_of(told) == ["routed", "started", "failed"]
        assert told[-1].data["code"] == error.code
        request_id = str(told[0].data["request_id"])
        assert (await parts.orchestra.get_request(request_id)).status is RequestStatus.RUNNING
        assert parts.lines.of("answer_not_recorded") == [{"request_id": request_id, "code": error.code}]

        await wait_until(lambda: parts.log.recorded == [request_id], "it was not recorded when storage was back")
        await wait_until(lambda: parts.dispatcher.in_flight == 0, "the request did not end")
        answer = await parts.orchestra.process_request("scripted", idempotency_key="k")
        assert (answer.request_id, answer.output) == (request_id, "the answer")
        assert len(agent.calls) == 1
        assert held(parts.turns) == 0


async def test_a_request_that_cannot_be_put_on_record_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        agent = ScriptedAgent(["once"])
        await parts.agent("scripted", agent)
        parts.log.accept_raises = [StorageUnavailable("away")]
        with pytest.raises(StorageUnavailable):
            await parts.orchestra.process_request("scripted", idempotency_key="k")
        assert agent.calls == []
        assert parts.registered("scripted").pool.in_flight == 0
        assert await parts.orchestra.get_conversations() == []
        assert (await parts.orchestra.process_request("scripted", idempotency_key="k")).output == "once"


async def test_what_breaks_inside_is_one_clear_error_and_frees_everything(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        parts.log.accept_raises = [ValueError("a fault of ours")]
        with pytest.raises(OrchestraError) as caught:
            await parts.orchestra.process_request("echo", idempotency_key="k")
        assert type(caught.value) is OrchestraError
        assert "a fault of ours" not in caught.value.detail
        (line,) = parts.lines.of("request_broke")
        assert line["error"] == "ValueError"
        assert parts.registered("echo").pool.in_flight == 0
        assert parts.dispatcher.in_flight == 0
        assert (await parts.orchestra.process_request("echo", idempotency_key="k")).output == "echo!"


async def test_an_end_that_came_on_record_elsewhere_is_the_one_that_is_given(tmp_path: Path) -> None:
    """Another process took this one for dead: what was recorded then stands."""
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation()
        asking = asyncio.create_task(parts.orchestra.process_message(conversation.id, "gate"))
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        assert await parts.log.reap(1 << 62) == 1
        gate.let("gate")
        with pytest.raises(Interrupted):
            await asking
        assert isinstance(await ended(parts, gate.calls[0].request_id), Failure)
        assert await conversation_of(parts, conversation.id) == [(1, "user", "gate")]


# --- idempotency


async def test_twenty_at_once_with_the_same_key_run_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        agent = ScriptedAgent(["only once"])
        await parts.agent("scripted", agent)
        answers = await asyncio.gather(
            *(parts.orchestra.process_request("scripted", idempotency_key="k") for _ in range(20))
        )
        assert all(answer == answers[0] for answer in answers)
        assert answers[0].output == "only once"
        assert len(agent.calls) == 1
        assert len(await conversation_of(parts, answers[0].conversation_id)) == 2
        assert len(await parts.orchestra.get_conversations()) == 1


async def test_two_processes_with_the_same_key_run_it_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        agent = ScriptedAgent(["only once"])
        await one.agent("scripted", agent)
        await two.agent("scripted", agent)
        answers = await asyncio.gather(
            *(
                parts.orchestra.process_request("scripted", idempotency_key="k")
                for parts in (one, two, one, two, two, one)
            )
        )
        assert len({answer.request_id for answer in answers}) == 1
        assert {answer.output for answer in answers} == {"only once"}
        assert len(agent.calls) == 1


async def test_a_key_gives_its_answer_again_also_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("scripted", ScriptedAgent([{"n": 1}]))
        first = await parts.orchestra.process_request("scripted", idempotency_key="k")
        again = await parts.orchestra.process_request("scripted", idempotency_key="k")
        assert again == first
    async with opened(tmp_path) as parts:
        await parts.agent("scripted", ScriptedAgent([]))
        told: list[StreamEvent] = []
        again = await parts.orchestra.process_request("scripted", idempotency_key="k", emit=told.append)
        assert again == first
        assert again.value == {"n": 1}
        assert types_of(told) == ["routed", "started", "completed"]
        assert text_of(told) == first.output


async def test_a_failure_is_given_again_too_and_not_tried_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        agent = ScriptedAgent([AgentFailed("no", cause="mood")])
        await parts.agent("scripted", agent)
        for _ in range(2):
            with pytest.raises(AgentFailed) as caught:
                await parts.orchestra.process_request("scripted", idempotency_key="k")
            assert caught.value.detail == "no"
            assert caught.value.data == {"cause": "mood"}
        assert len(agent.calls) == 1


async def test_a_key_with_another_request_is_refused_while_it_runs_and_afterwards(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        asking = asyncio.create_task(parts.orchestra.process_request("gate", idempotency_key="k"))
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        with pytest.raises(IdempotencyMismatch):
            await parts.orchestra.process_request("gate please", idempotency_key="k")
        gate.let("gate")
        await asking
        with pytest.raises(IdempotencyMismatch):
            await parts.orchestra.process_request("gate please", idempotency_key="k")
        with pytest.raises(IdempotencyMismatch):
            await parts.orchestra.process_request("gate", idempotency_key="k", context={"more": 1})
        assert len(gate.calls) == 1


async def test_tenants_have_keys_of_their_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        for tenant in ("a", "b"):
            await parts.agent("echo", echo, tenant=tenant)
        one = await parts.orchestra.process_request("echo", idempotency_key="k", tenant="a")
        two = await parts.orchestra.process_request("echo more", idempotency_key="k", tenant="b")
        assert one.request_id != two.request_id
        with pytest.raises(RequestNotFound):
            await parts.orchestra.get_request(one.request_id, tenant="b")


async def test_a_refused_request_leaves_its_key_free(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        orchestra = parts.orchestra
        with pytest.raises(NoAgentMatches):
            await orchestra.process_request("echo", idempotency_key="k")
        with pytest.raises(ConversationNotFound):
            await orchestra.process_request("echo", conversation_id="gone", idempotency_key="k")
        with pytest.raises(InvalidInput):
            await orchestra.process_request(" ", idempotency_key="k")
        await parts.agent("echo", echo)
        assert (await orchestra.process_request("echo once more", idempotency_key="k")).output == "echo once more!"


async def test_a_key_gives_its_answer_again_when_its_agent_is_gone(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        first = await parts.orchestra.process_request("echo", idempotency_key="k")
        await parts.orchestra.unregister_agent("echo")
        assert await parts.orchestra.process_request("echo", idempotency_key="k") == first


async def test_a_key_gives_its_answer_again_when_its_agent_is_full(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        gate.let("gate one")
        await parts.agent("gate", gate, concurrency=1)
        first = await parts.orchestra.process_request("gate one", idempotency_key="k")
        other = asyncio.create_task(parts.orchestra.process_request("gate two"))
        await wait_until(lambda: gate.asked("gate two"), "the agent was not asked")
        assert await parts.orchestra.process_request("gate one", idempotency_key="k") == first
        gate.let("gate two")
        await other


async def test_a_key_works_within_a_conversation(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        agent = ScriptedAgent(["once"])
        await parts.agent("scripted", agent)
        conversation = await parts.orchestra.create_conversation()
        answers = await asyncio.gather(
            *(parts.orchestra.process_message(conversation.id, "scripted", idempotency_key="k") for _ in range(5))
        )
        assert len({answer.request_id for answer in answers}) == 1
        again = await parts.orchestra.process_message(conversation.id, "scripted", idempotency_key="k")
        assert again == answers[0]
        assert len(await conversation_of(parts, conversation.id)) == 2


async def test_an_empty_key_does_not_make_two_requests_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        ends = [
            await asyncio.gather(
                parts.orchestra.process_request(f"echo {number}", idempotency_key=""), return_exceptions=True
            )
            for number in range(2)
        ]
        assert all(isinstance(end, Answer | InvalidInput) for (end,) in ends), ends


async def test_a_conversation_goes_on_after_an_answer_that_cannot_be_stored(tmp_path: Path) -> None:
    async def odd(content: str) -> object:
        return {"text": "\ud800"} if "first" in content else "fine"

    async with opened(tmp_path, timeout_seconds=1.0) as parts:
        await parts.agent("odd", odd)
        conversation = await parts.orchestra.create_conversation()
        await asyncio.gather(parts.orchestra.process_message(conversation.id, "odd first"), return_exceptions=True)
        assert (await parts.orchestra.process_message(conversation.id, "odd second")).output == "fine"


# --- limits


async def test_one_request_too_many_is_refused_at_once_and_the_next_one_after_is_not(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=2) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        asking = [asyncio.create_task(parts.orchestra.process_request(f"gate {n}")) for n in (1, 2)]
        await wait_until(lambda: len(gate.calls) == 2, "the agent was not asked")
        with pytest.raises(Overloaded) as caught:
            await parts.orchestra.process_request("gate 3", idempotency_key="k")
        assert caught.value.retry_after > 0
        assert caught.value.retryable
        gate.let("gate 1", "gate 2", "gate 3")
        await asyncio.gather(*asking)
        assert (await parts.orchestra.process_request("gate 3", idempotency_key="k")).output == "gate 3!"


async def test_the_limit_does_not_stand_in_the_way_of_one_that_joins(tmp_path: Path) -> None:
    async with opened(tmp_path, max_concurrent=1) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        asking = [asyncio.create_task(parts.orchestra.process_request("gate", idempotency_key="k")) for _ in range(3)]
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        gate.let("gate")
        answers = await asyncio.gather(*asking)
        assert len({answer.request_id for answer in answers}) == 1


async def test_an_agent_that_never_answers_ends_at_the_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout_seconds=0.15) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        told: list[StreamEvent] = []
        with pytest.raises(DeadlineExceeded):
            await parts.orchestra.process_request("gate", emit=told.append)
        record = await parts.orchestra.get_request(gate.calls[0].request_id)
        assert record.status is RequestStatus.FAILED
        assert isinstance(record.end, Failure)
        assert record.end.code == "deadline_exceeded"
        assert [attempt.error for attempt in record.end.attempts] == ["deadline_exceeded"]
        assert record.end.timings["total"] >= 150 - 20
        assert types_of(told) == ["routed", "started", "failed"]
        await wait_until(lambda: gate.cancelled == ["gate"], "the agent was not told to stop")
        assert parts.registered("gate").pool.in_flight == 0


async def test_waiting_for_the_turn_counts_towards_the_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout_seconds=0.4) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation()
        first = asyncio.create_task(parts.orchestra.process_message(conversation.id, "gate first"))
        await wait_until(lambda: gate.asked("gate first"), "the agent was not asked")
        parts.log.may_record.clear()
        with pytest.raises(DeadlineExceeded, match="did not become free"):
            await parts.orchestra.process_message(conversation.id, "gate second")
        parts.log.may_record.set()
        with pytest.raises(DeadlineExceeded):
            await first
        assert await conversation_of(parts, conversation.id) == [(1, "user", "gate first")]
        assert held(parts.turns) == 0


async def test_what_was_told_before_a_failure_is_kept(tmp_path: Path) -> None:
    async def stumbles(content: str) -> AsyncIterator[str]:
        yield "so far "
        yield "so good"
        raise ValueError(content)

    async with opened(tmp_path) as parts:
        await parts.agent("stumbles", stumbles)
        told: list[StreamEvent] = []
        with pytest.raises(AgentFailed) as caught:
            await parts.orchestra.process_request("stumbles", emit=told.append)
        assert caught.value.data == {"cause": "ValueError"}
        end = await ended(parts, str(told[0].data["request_id"]))
        assert isinstance(end, Failure)
        assert end.output == text_of(told) == "so far so good"
        assert types_of(told) == ["routed", "started", "failed"]


async def _many(_: str) -> AsyncIterator[str]:
    for _number in range(50):
        yield "1234"


def _many_sync(_: str) -> Iterator[str]:
    for _number in range(50):
        yield "1234"


async def _long(_: str) -> str:
    return "1234" * 50


@pytest.mark.parametrize("agent", [_many, _many_sync, _long], ids=["async generator", "generator", "whole"])
async def test_an_output_that_is_too_long_is_a_failure(tmp_path: Path, agent: object) -> None:
    assert callable(agent)
    async with opened(tmp_path, max_output_chars=10) as parts:
        await parts.agent("long", agent)
        told: list[StreamEvent] = []
        with pytest.raises(AgentFailed) as caught:
            await parts.orchestra.process_request("long", emit=told.append)
        assert caught.value.data == {"cause": "output_too_long"}
        assert len(text_of(told)) <= 10
        assert parts.registered("long").pool.in_flight == 0


async def test_an_output_at_the_limit_is_fine(tmp_path: Path) -> None:
    async with opened(tmp_path, max_output_chars=200) as parts:
        await parts.agent("long", _many)
        assert len((await parts.orchestra.process_request("long")).output) == 200


async def test_an_output_that_is_not_what_was_told_is_a_failure(tmp_path: Path) -> None:
    class TwoFaced:
        async def run(self, call: Call, emit: Emit) -> Reply:
            emit("one thing")
            return Reply(output="another thing")

    async with opened(tmp_path) as parts:
        agent = Agent(id="liar", kind="function", keywords=("liar",))
        await parts.registry.register_in_code("default", agent, [Instance(id="i", backend=TwoFaced())])
        with pytest.raises(AgentFailed) as caught:
            await parts.orchestra.process_request("liar")
        assert caught.value.data == {"cause": "output_mismatch"}


async def test_a_full_agent_refuses_and_nothing_is_on_record(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate, concurrency=1)
        asking = asyncio.create_task(parts.orchestra.process_request("gate one"))
        await wait_until(lambda: gate.asked("gate one"), "the agent was not asked")
        with pytest.raises(NoInstanceAvailable):
            await parts.orchestra.process_request("gate two")
        gate.let("gate one", "gate two")
        await asking
        assert len(await parts.orchestra.get_conversations()) == 1
        assert (await parts.orchestra.process_request("gate two")).output == "gate two!"


# --- what an agent may give back


@pytest.mark.parametrize(
    "given",
    [
        "half a \ud800 character and a \0",
        {"text": "half a \ud800 character"},
        {"text": "a \0"},
        {"a\0": 1},
        Reply(output="fine", value={"n": math.nan}),
        Reply(output="fine", usage=Usage(cost_usd=math.nan)),
        AgentFailed("half a \ud800 character and a \0"),
        AgentFailed("with a number", n=math.inf),
        AgentFailed("with a text", text="\ud800"),
        AgentFailed("with a value", value=["not plain"]),
        RunFailed("a plain one"),
    ],
    ids=lambda given: repr(given)[:60],
)
async def test_whatever_an_agent_gives_back_its_end_is_recorded(tmp_path: Path, given: Json | RunFailed) -> None:
    async def agent(_: str) -> object:
        if isinstance(given, Exception):
            raise given
        return given

    async with opened(tmp_path) as parts:
        await parts.agent("odd", agent)
        told: list[StreamEvent] = []
        outcome: Answer | RunFailed
        try:
            outcome = await parts.orchestra.process_request("odd", emit=told.append)
        except RunFailed as error:
            outcome = error
        assert parts.lines.of("request_broke") == []
        record = await parts.orchestra.get_request(str(told[0].data["request_id"]))
        assert record.end is not None
        if isinstance(outcome, Answer):
            assert record.end == outcome
        else:
            assert isinstance(record.end, Failure)
            assert (record.end.code, record.end.detail) == (outcome.code, outcome.detail)


async def test_an_agent_cannot_give_its_failure_another_code(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("odd", ScriptedAgent([AgentFailed("no", code="not_found", status=404)]))
        told: list[StreamEvent] = []
        with pytest.raises(AgentFailed):
            await parts.orchestra.process_request("odd", emit=told.append)
        assert told[-1].data["code"] == "agent_failed"
        assert told[-1].data["detail"] == "no"


@pytest.mark.parametrize("word", ["a\0", "a\ud800"], ids=["nul", "half"])
@pytest.mark.parametrize("field", ["conversation_id", "agent_id", "capability"])
async def test_names_that_cannot_be_stored_name_nothing(tmp_path: Path, field: str, word: str) -> None:
    async with opened(tmp_path, fallback="echo") as parts:
        await parts.agent("echo", echo)
        request = dataclasses.replace(make_request("echo", tenant="default"), **{field: word})
        with pytest.raises((InvalidInput, NotFound)):
            await parts.orchestra.submit(request)


@pytest.mark.parametrize(
    "context", [{"n": math.nan}, {"t": "\0"}, {"t": "\ud800"}], ids=["not a number", "nul", "half"]
)
async def test_a_context_that_cannot_be_stored_is_refused(tmp_path: Path, context: dict[str, Json]) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        with pytest.raises(InvalidInput):
            await parts.orchestra.process_request("echo", context=context)


async def test_a_context_without_end_is_refused(tmp_path: Path) -> None:
    deep: Json = "deep"
    for _ in range(5_000):
        deep = [deep]
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        with pytest.raises(InvalidInput, match="deep"):
            await parts.orchestra.process_request("echo", context={"a": deep})


# --- what an agent is given


async def test_an_agent_is_given_the_conversation_and_the_context(tmp_path: Path) -> None:
    async with opened(tmp_path, history_messages=3) as parts:
        agent = ScriptedAgent(["one", "two", "three"])
        await parts.agent("scripted", agent)
        conversation = await parts.orchestra.create_conversation(user_id="u", context={"a": 1, "b": 1})
        for number in range(3):
            context: dict[str, Json] = {"b": 2, "n": number}
            await parts.orchestra.process_message(conversation.id, f"scripted {number}", context=context)
        call = agent.calls[-1]
        assert (call.tenant, call.user_id, call.content) == ("default", "u", "scripted 2")
        assert call.context == {"a": 1, "b": 2, "n": 2}
        assert [(message.seq, message.content) for message in call.history] == [
            (2, "one"),
            (3, "scripted 1"),
            (4, "two"),
        ]
        assert agent.calls[0].history == ()
        assert call.agent.id == "scripted"
        assert call.conversation_id == conversation.id


async def test_an_answer_tells_all_about_itself(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("scripted", ScriptedAgent([{"n": 1}]))
        answer = await parts.orchestra.process_request("scripted", user_id="u")
        assert (answer.agent, answer.instance, answer.stage) == ("scripted", "in-process", "lexical")
        assert (answer.output, answer.value, answer.usage) == ('{"n": 1}', {"n": 1}, Usage())
        assert set(answer.timings) == {"load", "route", "accept", "run", "total"}
        assert all(value >= 0 for value in answer.timings.values())
        (attempt,) = answer.attempts
        assert (attempt.agent_id, attempt.instance_id, attempt.error) == ("scripted", "in-process", None)
        conversation = await parts.orchestra.get_conversation(answer.conversation_id)
        assert (conversation.user_id, conversation.active_agent, conversation.last_seq) == ("u", "scripted", 2)
        messages = await parts.orchestra.get_messages(answer.conversation_id)
        assert [(m.author, m.agent_id, m.request_id) for m in messages] == [
            ("user", None, answer.request_id),
            ("assistant", "scripted", answer.request_id),
        ]


# --- callers that go away, and a service that stops


async def test_a_request_runs_to_its_end_though_its_caller_went_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        asking = asyncio.create_task(parts.orchestra.process_request("gate", idempotency_key="k"))
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert parts.dispatcher.in_flight == 1
        gate.let("gate")
        request_id = gate.calls[0].request_id
        await wait_until(lambda: parts.log.recorded == [request_id], "it was not recorded")
        assert gate.cancelled == []
        answer = await parts.orchestra.process_request("gate", idempotency_key="k")
        assert (answer.request_id, answer.output) == (request_id, "gate!")


async def test_one_that_goes_away_takes_nothing_from_the_others_that_wait(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        asking = [asyncio.create_task(parts.orchestra.process_request("gate", idempotency_key="k")) for _ in range(3)]
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        asking[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking[0]
        gate.let("gate")
        assert [answer.output for answer in await asyncio.gather(*asking[1:])] == ["gate!"] * 2


async def test_a_caller_that_goes_away_before_it_is_on_record_does_not_take_it_along(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        asking = asyncio.create_task(parts.orchestra.process_request("echo"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await wait_until(lambda: len(parts.log.recorded) == 1, "it was not recorded")
        (conversation,) = await parts.orchestra.get_conversations()
        assert await conversation_of(parts, conversation.id) == [(1, "user", "echo"), (2, "assistant", "echo!")]


async def test_a_listener_that_breaks_does_not_break_the_request(tmp_path: Path) -> None:
    def broken(_: StreamEvent) -> None:
        raise ConnectionError("gone")

    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        with pytest.raises(ConnectionError):
            await parts.orchestra.process_request("echo", emit=broken)
        await wait_until(lambda: len(parts.log.recorded) == 1, "it was not recorded")


async def test_close_lets_what_runs_end_within_the_grace_and_takes_nothing_new(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        asking = asyncio.create_task(parts.orchestra.process_request("gate", idempotency_key="k"))
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        closing = asyncio.create_task(parts.orchestra.close(10.0))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown) as caught:
            await parts.orchestra.process_request("gate two")
        assert caught.value.retryable
        gate.let("gate")
        await closing
        assert (await asking).output == "gate!"
        assert parts.dispatcher.in_flight == 0


async def test_close_records_what_does_not_end_as_interrupted(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        asking = [asyncio.create_task(parts.orchestra.process_request(f"gate {n}")) for n in (1, 2)]
        await wait_until(lambda: len(gate.calls) == 2, "the agent was not asked")
        await asyncio.wait_for(parts.orchestra.close(0.0), timeout=5)
        for task, call in zip(asking, gate.calls, strict=True):
            with pytest.raises(Interrupted):
                await task
            end = await ended(parts, call.request_id)
            assert isinstance(end, Failure)
            assert end.code == "interrupted"
        assert sorted(gate.cancelled) == ["gate 1", "gate 2"]
        assert parts.dispatcher.in_flight == 0


async def test_close_refuses_what_waits_for_its_turn_so_that_it_can_be_sent_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation()
        first = asyncio.create_task(parts.orchestra.process_message(conversation.id, "gate first"))
        await wait_until(lambda: gate.asked("gate first"), "the agent was not asked")
        second = asyncio.create_task(parts.orchestra.process_message(conversation.id, "gate second"))
        await wait_until(lambda: parts.dispatcher.in_flight == 2, "the second one did not come")
        await asyncio.sleep(0.02)
        await parts.orchestra.close(0.0)
        with pytest.raises(Interrupted):
            await first
        with pytest.raises(ShuttingDown):
            await second
        assert await conversation_of(parts, conversation.id) == [(1, "user", "gate first")]


async def test_close_does_not_wait_for_ever_for_an_agent_that_will_not_end(tmp_path: Path) -> None:
    leave = asyncio.Event()

    async def stubborn(_: str) -> str:
        while not leave.is_set():
            try:
                await leave.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    async with opened(tmp_path) as parts:
        await parts.agent("stubborn", stubborn)
        asking = asyncio.create_task(parts.orchestra.process_request("stubborn"))
        await wait_until(lambda: parts.registered("stubborn").pool.in_flight == 1, "the agent was not asked")
        await asyncio.wait_for(parts.orchestra.close(0.0), timeout=8)
        with pytest.raises(Interrupted):
            await asking
        leave.set()
        await wait_until(lambda: parts.registered("stubborn").pool.in_flight == 0, "its place was not given back")


@pytest.mark.slow
async def test_close_ends_though_storage_is_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        parts.log.record_raises = [StorageUnavailable("away") for _ in range(100)]
        with pytest.raises(StorageUnavailable):
            await parts.orchestra.process_request("echo")
        await asyncio.wait_for(parts.orchestra.close(0.0), timeout=8)
        assert parts.dispatcher.in_flight == 0


# --- signs of life


@pytest.mark.slow
async def test_running_requests_give_signs_of_life_also_after_storage_was_away(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate, concurrency=1)
        parts.log.renew_raises = [StorageUnavailable("away")]
        asking = asyncio.create_task(parts.orchestra.process_request("gate"))
        await wait_until(lambda: len(parts.log.renewed) == 2, "no sign of life was given", seconds=20)
        assert parts.log.renewed == [[gate.calls[0].request_id]] * 2
        assert parts.lines.of("leases_not_renewed") == [{"code": "storage_unavailable"}]
        gate.let("gate")
        assert (await asking).output == "gate!"


async def test_limits_of_an_agent_end_its_call_before_the_request_does(tmp_path: Path) -> None:
    async with opened(tmp_path, timeout_seconds=30) as parts:
        gate = Gate()
        agent = Agent(id="gate", kind="function", keywords=("gate",), limits=Limits(timeout=0.05))
        await parts.orchestra.register_agent(agent, gate)
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await parts.orchestra.process_request("gate")
