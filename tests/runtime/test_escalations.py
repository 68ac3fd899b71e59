"""People answer in the place of agents, in an orchestra that goes on working."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent_orchestra import Agent, InputPolicy
from agent_orchestra.core.request import Answer, Failure, RequestStatus
from agent_orchestra.core.resilience import Action, Recovery
from agent_orchestra.core.stream import StreamEvent
from agent_orchestra.errors import (
    ConversationBusy,
    Escalated,
    EscalationRejected,
    InvalidInput,
    NotEscalated,
    RequestNotFound,
)
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT
from tests.runtime.parts import Gate, Parts, conversation_of, held, opened, text_of, types_of
from tests.services.waiting import wait_for, wait_until

TENANT = DEFAULT_TENANT


async def _helpless(parts: Parts) -> None:
    """Registers an agent that cannot answer, and has people asked."""

    def fails(_: str) -> str:
        raise ValueError("no")

    recovery = Recovery(actions={"agent_failed": Action.ESCALATE})
    agent = Agent(id="helpless", kind="function", recovery=recovery)
    await parts.orchestra.register_agent(agent, run=fails)


async def _escalated(parts: Parts, content: str, conversation_id: str | None = None) -> str:
    """The id of a request that waits for a person."""
    with pytest.raises(Escalated):
        await parts.orchestra.process_request(content, agent_id="helpless", conversation_id=conversation_id)
    return next(e.request_id for e in await parts.orchestra.escalations.find(tenant=TENANT) if e.content == content)


def _answers(parts: Parts, request_id: str, output: str) -> asyncio.Task[Answer]:
    return asyncio.create_task(parts.orchestra.escalations.answer(request_id, output, author="ada", tenant=TENANT))


async def test_who_asked_is_told_that_a_person_will_answer_and_then_has_the_answer(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await _helpless(parts)
        for _ in range(2):
            with pytest.raises(Escalated) as raised:
                await parts.orchestra.process_request("help", agent_id="helpless", idempotency_key="k1")
            assert raised.value.data == {"cause": "agent_failed", "agent": "helpless"}
        (waiting,) = await parts.orchestra.escalations.find(tenant=TENANT)
        assert (waiting.content, waiting.agent_id, waiting.cause) == ("help", "helpless", "agent_failed")
        assert [attempt.decision for attempt in waiting.failure.attempts] == ["escalate"]
        assert await parts.orchestra.escalations.get(waiting.request_id, tenant=TENANT) == waiting
        assert (await parts.orchestra.get_request(waiting.request_id)).status is RequestStatus.ESCALATED

        given = await parts.orchestra.escalations.answer(waiting.request_id, "Done.", author="ada", tenant=TENANT)

        again = await parts.orchestra.process_request("help", agent_id="helpless", idempotency_key="k1")
        assert again == given == (await parts.orchestra.get_request(waiting.request_id)).end
        assert (given.agent, given.instance, given.output) == ("helpless", "person", "Done.")
        assert [a.instance_id for a in given.attempts] == ["in-process", "person:ada"]
        assert await conversation_of(parts, waiting.conversation_id) == [(1, "user", "help"), (2, "assistant", "Done.")]
        assert await parts.orchestra.escalations.find(tenant=TENANT) == []


async def test_a_stream_ends_with_the_escalation_and_is_told_anew_with_the_answer(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await _helpless(parts)
        told: list[StreamEvent] = []
        with pytest.raises(Escalated):
            await parts.orchestra.process_request("help", agent_id="helpless", emit=told.append)
        assert types_of(told) == ["routed", "started", "failed"]
        assert told[-1].data["code"] == "escalated"
        request_id = str(told[0].data["request_id"])

        await parts.orchestra.escalations.answer(request_id, "Done.", tenant=TENANT)

        retold = [event async for event in await parts.orchestra.follow(request_id)]
        assert types_of(retold) == ["routed", "started", "completed"]
        assert text_of(retold) == "Done."
        assert retold[1].data["instance"] == "person"


async def test_a_rejection_is_told_to_who_asked(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await _helpless(parts)
        with pytest.raises(Escalated):
            await parts.orchestra.process_request("help", agent_id="helpless", idempotency_key="k1")
        (waiting,) = await parts.orchestra.escalations.find(tenant=TENANT)

        failure = await parts.orchestra.escalations.reject(waiting.request_id, "Not for us.", tenant=TENANT)

        with pytest.raises(EscalationRejected, match=r"^Not for us\.$"):
            await parts.orchestra.process_request("help", agent_id="helpless", idempotency_key="k1")
        record = await parts.orchestra.get_request(waiting.request_id)
        assert (record.status, record.end) == (RequestStatus.FAILED, failure)
        assert await conversation_of(parts, waiting.conversation_id) == [(1, "user", "help")]


async def test_of_two_people_one_has_decided(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await _helpless(parts)
        request_id = await _escalated(parts, "help")
        deciding = (
            parts.orchestra.escalations.answer(request_id, "Yes.", author="ada", tenant=TENANT),
            parts.orchestra.escalations.answer(request_id, "No.", author="bob", tenant=TENANT),
            parts.orchestra.escalations.reject(request_id, "Never.", author="eve", tenant=TENANT),
        )

        decided = await asyncio.gather(*deciding, return_exceptions=True)

        record = await parts.orchestra.get_request(request_id)
        assert [end for end in decided if isinstance(end, Answer | Failure)] == [record.end]
        assert sum(isinstance(end, NotEscalated) for end in decided) == 2
        assert held(parts.turns) == 0


@pytest.mark.parametrize("policy", list(InputPolicy))
async def test_an_answer_waits_for_the_request_that_is_being_answered(tmp_path: Path, policy: InputPolicy) -> None:
    """Whatever the policy for what users send: it neither ends that request, nor is it turned away."""
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        await _helpless(parts)
        conversation_id = (await parts.orchestra.create_conversation(input_policy=policy)).id
        request_id = await _escalated(parts, "help", conversation_id)
        asking = asyncio.create_task(parts.orchestra.process_message(conversation_id, "gate q"))
        await wait_until(lambda: gate.asked("gate q"), "the agent was not asked")

        answering = _answers(parts, request_id, "Done.")
        await asyncio.wait((answering,), timeout=0.05)
        assert not answering.done()
        gate.let("gate q")

        assert (await asking).output == "gate q!"
        assert (await answering).output == "Done."
        assert await conversation_of(parts, conversation_id) == [
            (1, "user", "help"),
            (2, "user", "gate q"),
            (3, "assistant", "gate q!"),
            (4, "assistant", "Done."),
        ]
        assert gate.cancelled == []
        assert held(parts.turns) == 0


async def test_an_answer_waits_for_another_process_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts, opened(tmp_path) as elsewhere:
        gate = Gate()
        await elsewhere.agent("gate", gate)
        await _helpless(parts)
        request_id = await _escalated(parts, "help")
        conversation_id = (await parts.orchestra.get_request(request_id)).conversation_id
        asking = asyncio.create_task(elsewhere.orchestra.process_message(conversation_id, "gate q"))
        await wait_until(lambda: gate.asked("gate q"), "the agent was not asked")

        answering = _answers(parts, request_id, "Done.")
        await asyncio.wait((answering,), timeout=0.2)
        assert not answering.done()
        gate.let("gate q")

        assert (await asking).output == "gate q!"
        assert (await answering).output == "Done."
        messages = await conversation_of(parts, conversation_id)
        assert [content for _, _, content in messages] == ["help", "gate q", "gate q!", "Done."]


async def test_input_that_interrupts_does_not_end_the_wait_of_a_person(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=InputPolicy.INTERRUPT) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        await _helpless(parts)
        request_id = await _escalated(parts, "help")
        conversation_id = (await parts.orchestra.get_request(request_id)).conversation_id
        first = asyncio.create_task(parts.orchestra.process_message(conversation_id, "gate 1"))
        await wait_until(lambda: gate.asked("gate 1"), "the agent was not asked")
        answering = _answers(parts, request_id, "Done.")
        await asyncio.wait((answering,), timeout=0.05)

        gate.let("gate 2")
        second = asyncio.create_task(parts.orchestra.process_message(conversation_id, "gate 2"))

        assert (await answering).output == "Done."
        assert (await second).output == "gate 2!"
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], Exception)
        assert held(parts.turns) == 0


async def test_a_person_who_gives_up_waiting_leaves_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        await _helpless(parts)
        request_id = await _escalated(parts, "help")
        conversation_id = (await parts.orchestra.get_request(request_id)).conversation_id
        asking = asyncio.create_task(parts.orchestra.process_message(conversation_id, "gate q"))
        await wait_until(lambda: gate.asked("gate q"), "the agent was not asked")
        answering = _answers(parts, request_id, "Done.")
        await asyncio.wait((answering,), timeout=0.05)

        answering.cancel()
        gate.let("gate q")

        assert (await asking).output == "gate q!"
        with pytest.raises(asyncio.CancelledError):
            await answering
        assert (await parts.orchestra.escalations.get(request_id, tenant=TENANT)).content == "help"
        assert (await _answers(parts, request_id, "Now.")).output == "Now."
        assert held(parts.turns) == 0


async def test_too_many_who_wait_for_a_conversation_are_told_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        await _helpless(parts)
        request_id = await _escalated(parts, "help")
        conversation_id = (await parts.orchestra.get_request(request_id)).conversation_id
        asking = asyncio.create_task(parts.orchestra.process_message(conversation_id, "gate q"))
        await wait_until(lambda: gate.asked("gate q"), "the agent was not asked")
        answering = [_answers(parts, request_id, f"Done {number}.") for number in range(60)]
        await wait_until(lambda: any(task.done() for task in answering), "nobody was turned away")
        gate.let("gate q")
        await asking

        ends = await asyncio.gather(*answering, return_exceptions=True)

        assert {type(end) for end in ends} == {Answer, NotEscalated, ConversationBusy}
        assert sum(isinstance(end, Answer) for end in ends) == 1


async def test_what_is_wrong_is_told_before_anything_is_waited_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await _helpless(parts)
        await parts.agent("echo", str)
        request_id = await _escalated(parts, "help")
        answered = await parts.orchestra.process_request("echo", agent_id="echo")
        escalations = parts.orchestra.escalations
        with pytest.raises(InvalidInput, match="output: must not be blank; author: must have 1 to 256 characters"):
            await escalations.answer(request_id, " ", author="", tenant=TENANT)
        with pytest.raises(InvalidInput, match="reason: has a NUL"):
            await escalations.reject(request_id, "\0", tenant=TENANT)
        for wrong, error in (("nothing", RequestNotFound), (answered.request_id, NotEscalated)):
            with pytest.raises(error, match=wrong):
                await escalations.answer(wrong, "Done.", tenant=TENANT)
            with pytest.raises(error, match=wrong):
                await escalations.reject(wrong, "No.", tenant=TENANT)
            with pytest.raises(error, match=wrong):
                await escalations.get(wrong, tenant=TENANT)
        with pytest.raises(RequestNotFound):
            await escalations.answer(request_id, "Done.", tenant="umbrella")
        assert [e.request_id for e in await escalations.find(tenant=TENANT)] == [request_id]


async def test_what_waits_outlives_the_process(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await _helpless(parts)
        request_id = await _escalated(parts, "help")

    async with opened(tmp_path) as parts:
        found = await wait_for(
            lambda: parts.orchestra.escalations.find(tenant=TENANT), lambda found: len(found) == 1, "it is lost"
        )
        assert found[0].request_id == request_id
        assert (await _answers(parts, request_id, "Done.")).output == "Done."
