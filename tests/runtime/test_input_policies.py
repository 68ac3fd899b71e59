"""What becomes of input that comes while a conversation is busy, in one process and between two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.core.message import Author
from agent_orchestra.core.request import Answer, Failure, RequestStatus
from agent_orchestra.core.stream import StreamEvent
from agent_orchestra.errors import ConversationBusy, ConversationExists, SequenceConflict, Superseded
from tests.runtime.parts import Gate, Parts, conversation_of, held, opened, text_of, types_of
from tests.services.waiting import wait_until


def ask(parts: Parts, conversation_id: str, content: str) -> asyncio.Task[Answer]:
    return asyncio.create_task(parts.orchestra.process_message(conversation_id, content))


async def begun(gate: Gate, content: str) -> None:
    await wait_until(lambda: gate.asked(content), f"the agent was not asked {content!r}")


async def status_of(parts: Parts, gate: Gate, content: str) -> tuple[RequestStatus, str | None]:
    (request_id,) = [call.request_id for call in gate.calls if call.content == content]
    record = await parts.orchestra.get_request(request_id)
    return record.status, record.end.code if isinstance(record.end, Failure) else None


async def test_enqueue_keeps_the_order_without_a_gap(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation(input_policy=InputPolicy.ENQUEUE)
        contents = [f"gate {number}" for number in range(10)]
        asking = [ask(parts, conversation.id, content) for content in contents]
        await begun(gate, contents[0])
        assert len(gate.calls) == 1
        gate.let(*reversed(contents))
        answers = await asyncio.gather(*asking)
        assert [answer.output for answer in answers] == [f"{content}!" for content in contents]
        expected: list[tuple[int, str, str]] = []
        for content in contents:
            expected.append((len(expected) + 1, "user", content))
            expected.append((len(expected) + 1, "assistant", f"{content}!"))
        assert await conversation_of(parts, conversation.id) == expected
        for number, call in enumerate(gate.calls):
            assert [message.content for message in call.history] == [line[2] for line in expected[: 2 * number]]
        assert held(parts.turns) == 0


async def test_reject_refuses_at_once_and_leaves_the_first_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation(input_policy=InputPolicy.REJECT)
        first = ask(parts, conversation.id, "gate first")
        await begun(gate, "gate first")
        with pytest.raises(ConversationBusy) as caught:
            await parts.orchestra.process_message(conversation.id, "gate second", idempotency_key="k")
        assert caught.value.retryable
        with pytest.raises(ConversationBusy):
            await parts.orchestra.add_message(conversation.id, "a note")
        gate.let("gate first", "gate second")
        await first
        await parts.orchestra.process_message(conversation.id, "gate second", idempotency_key="k")
        assert [content for _, _, content in await conversation_of(parts, conversation.id)] == [
            "gate first",
            "gate first!",
            "gate second",
            "gate second!",
        ]


async def test_interrupt_ends_the_first_and_records_it_as_superseded(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation(input_policy=InputPolicy.INTERRUPT)
        first = ask(parts, conversation.id, "gate first")
        await begun(gate, "gate first")
        second = ask(parts, conversation.id, "gate second")
        with pytest.raises(Superseded):
            await first
        await begun(gate, "gate second")
        gate.let("gate second")
        assert (await second).output == "gate second!"
        assert gate.cancelled == ["gate first"]
        assert await status_of(parts, gate, "gate first") == (RequestStatus.CANCELLED, "superseded")
        assert await status_of(parts, gate, "gate second") == (RequestStatus.SUCCEEDED, None)
        assert await conversation_of(parts, conversation.id) == [
            (1, "user", "gate first"),
            (2, "user", "gate second"),
            (3, "assistant", "gate second!"),
        ]
        assert [message.content for message in gate.calls[1].history] == ["gate first"]
        assert parts.registered("gate").pool.in_flight == 0


async def test_what_an_interrupted_request_had_told_is_on_record(tmp_path: Path) -> None:
    halfway = asyncio.Event()

    async def speaks(content: str) -> AsyncIterator[str]:
        yield "the first half"
        if content == "speaks one":
            halfway.set()
            await asyncio.Event().wait()
        yield " and the second"

    async with opened(tmp_path, policy=InputPolicy.INTERRUPT) as parts:
        await parts.agent("speaks", speaks)
        conversation = await parts.orchestra.create_conversation()
        told: list[StreamEvent] = []
        first = asyncio.create_task(parts.orchestra.process_message(conversation.id, "speaks one", emit=told.append))
        await halfway.wait()
        answer = await parts.orchestra.process_message(conversation.id, "speaks two")
        with pytest.raises(Superseded):
            await first
        assert types_of(told) == ["routed", "started", "failed"]
        assert told[-1].data["code"] == "superseded"
        record = await parts.orchestra.get_request(str(told[0].data["request_id"]))
        assert isinstance(record.end, Failure)
        assert record.end.output == text_of(told) == "the first half"
        assert answer.output == "the first half and the second"


async def test_one_interruption_after_the_other_leaves_the_last_one_answered(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=InputPolicy.INTERRUPT) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation()
        tasks: list[asyncio.Task[Answer]] = []
        for number in range(5):
            tasks.append(ask(parts, conversation.id, f"gate {number}"))
            await begun(gate, f"gate {number}")
        gate.let("gate 4")
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [Superseded] * 4 + [Answer]
        assert await conversation_of(parts, conversation.id) == [
            *((number + 1, "user", f"gate {number}") for number in range(5)),
            (6, "assistant", "gate 4!"),
        ]
        assert held(parts.turns) == 0


async def test_of_many_interruptions_at_once_the_newest_is_answered_and_no_gap_is_left(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=InputPolicy.INTERRUPT) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation()
        contents = [f"gate {number}" for number in range(6)]
        gate.let(*contents[1:])
        first = ask(parts, conversation.id, contents[0])
        await begun(gate, contents[0])
        rest = [ask(parts, conversation.id, content) for content in contents[1:]]
        ends = await asyncio.gather(first, *rest, return_exceptions=True)
        assert isinstance(ends[0], Superseded)
        assert isinstance(ends[-1], Answer)
        assert all(isinstance(end, Answer | Superseded) for end in ends)
        messages = await conversation_of(parts, conversation.id)
        assert [number for number, _, _ in messages] == list(range(1, len(messages) + 1))
        assert [content for _, author, content in messages if author == "user"] == [contents[0], contents[-1]]


async def test_the_conversations_own_policy_wins_over_the_default(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=InputPolicy.REJECT) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        own = await parts.orchestra.create_conversation(input_policy=InputPolicy.ENQUEUE)
        default = await parts.orchestra.create_conversation()
        assert (own.input_policy, default.input_policy) == (InputPolicy.ENQUEUE, InputPolicy.REJECT)
        tasks = [ask(parts, own.id, "gate a"), ask(parts, own.id, "gate b"), ask(parts, default.id, "gate c")]
        await begun(gate, "gate a")
        await begun(gate, "gate c")
        with pytest.raises(ConversationBusy):
            await parts.orchestra.process_message(default.id, "gate d")
        gate.let("gate a", "gate b", "gate c")
        assert [answer.output for answer in await asyncio.gather(*tasks)] == ["gate a!", "gate b!", "gate c!"]


async def test_conversations_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        held_up, free = [await parts.orchestra.create_conversation() for _ in range(2)]
        task = ask(parts, held_up.id, "gate held")
        await begun(gate, "gate held")
        gate.let("gate free")
        assert (await parts.orchestra.process_message(free.id, "gate free")).output == "gate free!"
        assert not task.done()
        gate.let("gate held")
        await task


# --- messages that no agent answers


async def test_a_message_waits_for_its_turn_behind_a_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        conversation = await parts.orchestra.create_conversation()
        task = ask(parts, conversation.id, "gate")
        await begun(gate, "gate")
        adding = asyncio.create_task(parts.orchestra.add_message(conversation.id, "a note", author=Author.SYSTEM))
        await asyncio.sleep(0.02)
        assert not adding.done()
        gate.let("gate")
        assert (await adding).seq == 3
        await task
        assert await conversation_of(parts, conversation.id) == [
            (1, "user", "gate"),
            (2, "assistant", "gate!"),
            (3, "system", "a note"),
        ]


async def test_messages_added_at_once_have_every_number_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        conversation = await parts.orchestra.create_conversation()
        added = await asyncio.gather(
            *(parts.orchestra.add_message(conversation.id, f"note {number}") for number in range(12))
        )
        assert sorted(message.seq for message in added) == list(range(1, 13))
        kept = await parts.orchestra.get_messages(conversation.id)
        assert [message.seq for message in kept] == list(range(1, 13))
        assert held(parts.turns) == 0


async def test_an_expected_number_is_held_to(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        conversation = await parts.orchestra.create_conversation(conversation_id="mine")
        assert (await parts.orchestra.add_message("mine", "one", expected_seq=1)).seq == 1
        with pytest.raises(SequenceConflict) as caught:
            await parts.orchestra.add_message("mine", "one again", expected_seq=1)
        assert caught.value.data == {"next_seq": 2}
        assert held(parts.turns) == 0
        with pytest.raises(ConversationExists):
            await parts.orchestra.create_conversation(conversation_id=conversation.id)


async def test_of_two_that_expect_the_same_number_one_gets_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        conversation = await parts.orchestra.create_conversation()
        ends = await asyncio.gather(
            *(parts.orchestra.add_message(conversation.id, f"n{number}", expected_seq=1) for number in range(5)),
            return_exceptions=True,
        )
        assert sum(isinstance(end, SequenceConflict) for end in ends) == 4
        assert len(await conversation_of(parts, conversation.id)) == 1


# --- between two processes on one database


async def test_enqueue_between_processes_waits_and_leaves_no_gap(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        gates = [Gate(), Gate()]
        for parts, gate in zip((one, two), gates, strict=True):
            await parts.agent("gate", gate)
        conversation = await one.orchestra.create_conversation()
        first = ask(one, conversation.id, "gate first")
        await begun(gates[0], "gate first")
        second = ask(two, conversation.id, "gate second")
        note = asyncio.create_task(two.orchestra.add_message(conversation.id, "a note"))
        await asyncio.sleep(0.12)
        assert gates[1].calls == []
        gates[0].let("gate first")
        gates[1].let("gate second")
        await asyncio.gather(first, second, note)
        messages = await conversation_of(one, conversation.id)
        assert [number for number, _, _ in messages] == [1, 2, 3, 4, 5]
        first_two, last = ["gate first", "gate first!"], ["gate second", "gate second!"]
        # Which of the two came first to the second process is chance; neither stands inside the other.
        contents = [content for _, _, content in messages]
        assert contents in ([*first_two, *last, "a note"], [*first_two, "a note", *last])
        heard = [message.content for message in gates[1].calls[0].history]
        assert heard == contents[: contents.index("gate second")]


async def test_reject_between_processes(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=InputPolicy.REJECT) as one, opened(tmp_path) as two:
        gate = Gate()
        for parts in (one, two):
            await parts.agent("gate", gate)
        conversation = await one.orchestra.create_conversation()
        first = ask(one, conversation.id, "gate first")
        await begun(gate, "gate first")
        with pytest.raises(ConversationBusy):
            await two.orchestra.process_message(conversation.id, "gate second")
        with pytest.raises(ConversationBusy):
            await two.orchestra.add_message(conversation.id, "a note")
        assert two.registered("gate").pool.in_flight == 0
        gate.let("gate first")
        assert (await first).output == "gate first!"


async def test_interrupt_between_processes_takes_the_turn(tmp_path: Path) -> None:
    async with opened(tmp_path, policy=InputPolicy.INTERRUPT) as one, opened(tmp_path) as two:
        gate = Gate()
        for parts in (one, two):
            await parts.agent("gate", gate)
        conversation = await one.orchestra.create_conversation()
        first = ask(one, conversation.id, "gate first")
        await begun(gate, "gate first")
        gate.let("gate second")
        assert (await two.orchestra.process_message(conversation.id, "gate second")).output == "gate second!"
        # The first process learns of it when it wants to record what its agent said.
        gate.let("gate first")
        with pytest.raises(Superseded):
            await first
        assert await status_of(one, gate, "gate first") == (RequestStatus.CANCELLED, "superseded")
        assert await conversation_of(one, conversation.id) == [
            (1, "user", "gate first"),
            (2, "user", "gate second"),
            (3, "assistant", "gate second!"),
        ]


async def test_requests_of_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    async def echo(content: str) -> str:
        return f"{content}!"

    async with opened(tmp_path) as one, opened(tmp_path) as two:
        for parts in (one, two):
            await parts.agent("echo", echo)
        conversation = await one.orchestra.create_conversation()
        contents = [f"echo {number}" for number in range(12)]
        tasks = [ask((one, two)[number % 2], conversation.id, content) for number, content in enumerate(contents)]
        answers = await asyncio.gather(*tasks)
        assert [answer.output for answer in answers] == [f"{content}!" for content in contents]
        messages = await conversation_of(two, conversation.id)
        assert [number for number, _, _ in messages] == list(range(1, 25))
        assert sorted(content for _, author, content in messages if author == "user") == sorted(contents)
        for (_, _, question), (_, _, answer) in zip(messages[::2], messages[1::2], strict=True):
            assert answer == f"{question}!"
        assert held(one.turns) == held(two.turns) == 0
