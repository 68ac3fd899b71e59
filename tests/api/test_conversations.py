from __future__ import annotations

import asyncio
import threading
from typing import Any

from agent_orchestra import Call
from tests.api.functions import echo
from tests.api.serving import Served, problem_of


class Held:
    """Answers a content that begins with "slow" only when it is let go; keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, content: str, call: Call) -> str:
        self.calls.append(call)
        if content.startswith("slow"):
            self.begun.set()
            await self.may_end.wait()
        return f"answered {content}"


async def new(served: Served, **body: Any) -> str:
    response = await served.client.post("/v1/conversations", json=body)
    assert response.status_code == 201, response.text
    conversation_id: str = response.json()["id"]
    return conversation_id


async def messages(served: Served, conversation_id: str) -> list[tuple[int, str, str]]:
    items = (await served.client.get(f"/v1/conversations/{conversation_id}/messages")).json()["items"]
    return [(item["seq"], item["author"], item["content"]) for item in items]


async def test_a_conversation_is_created_and_read(served: Served) -> None:
    given = {"id": "talk-1", "user_id": "ann", "context": {"a": {"b": [1]}}, "input_policy": "reject"}
    response = await served.client.post("/v1/conversations", json=given)
    assert response.status_code == 201
    assert response.headers["location"] == "/v1/conversations/talk-1"
    document = response.json()
    assert {key: document[key] for key in given} == given
    assert (document["active_agent"], document["last_seq"]) == (None, 0)
    assert (await served.client.get("/v1/conversations/talk-1")).json() == document
    problem_of(await served.client.post("/v1/conversations", json=given), 409, "conversation_exists")
    problem_of(await served.client.get("/v1/conversations/talk-2"), 404, "conversation_not_found")


async def test_conversations_come_newest_first_in_pages(served: Served) -> None:
    made = [await new(served, user_id="ann" if number % 2 else "bob") for number in range(7)]

    async def listed(**wanted: str | int) -> list[str]:
        found: list[str] = []
        cursor: str | None = None
        while True:
            more = {"cursor": cursor} if cursor else {}
            page = (await served.client.get("/v1/conversations", params={**wanted, **more})).json()
            assert len(page["items"]) <= int(wanted.get("limit", 50))
            found += [item["id"] for item in page["items"]]
            cursor = page["next"]
            if cursor is None:
                return found

    newest_first = made[::-1]
    for limit in (1, 2, 7, 8):
        assert await listed(limit=limit) == newest_first
    assert await listed(limit=2, user_id="ann") == [i for i in newest_first if made.index(i) % 2]
    assert await listed(user_id="nobody") == []
    unknown = await served.client.get("/v1/conversations", params={"cursor": "gone"})
    problem_of(unknown, 404, "conversation_not_found")


async def test_messages_are_numbered_and_come_in_pages(served: Served) -> None:
    conversation_id = await new(served)
    path = f"/v1/conversations/{conversation_id}/messages"
    for number in range(1, 6):
        author = ("user", "assistant", "system")[number % 3]
        response = await served.client.post(path, json={"content": f"message {number}", "author": author})
        assert response.status_code == 201
        assert (response.json()["seq"], response.json()["author"]) == (number, author)
    found: list[int] = []
    cursor = "0"
    while True:
        page = (await served.client.get(path, params={"limit": 2, "cursor": cursor})).json()
        found += [item["seq"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = page["next"]
    assert found == [1, 2, 3, 4, 5]
    assert (await served.client.get(path, params={"cursor": 5})).json() == {"items": [], "next": None}
    problem_of(await served.client.get("/v1/conversations/gone/messages"), 404, "conversation_not_found")


async def test_an_expected_number_is_kept_or_refused(served: Served) -> None:
    conversation_id = await new(served)
    path = f"/v1/conversations/{conversation_id}/messages"
    assert (await served.client.post(path, json={"content": "one", "expected_seq": 1})).status_code == 201
    for expected in (1, 3):
        refused = await served.client.post(path, json={"content": "no", "expected_seq": expected})
        assert problem_of(refused, 409, "sequence_conflict")["next_seq"] == 2
    racing = [served.client.post(path, json={"content": f"racer {n}", "expected_seq": 2}) for n in range(5)]
    statuses = sorted(response.status_code for response in await asyncio.gather(*racing))
    assert statuses == [201, 409, 409, 409, 409]
    assert len(await messages(served, conversation_id)) == 2


async def test_messages_at_once_get_numbers_without_gaps(served: Served) -> None:
    conversation_id = await new(served)
    path = f"/v1/conversations/{conversation_id}/messages"
    responses = await asyncio.gather(*(served.client.post(path, json={"content": f"m{n}"}) for n in range(20)))
    assert sorted(response.json()["seq"] for response in responses) == list(range(1, 21))
    assert [seq for seq, _, _ in await messages(served, conversation_id)] == list(range(1, 21))


async def test_a_message_of_a_user_is_answered(served: Served) -> None:
    await served.has("echo", echo)
    conversation_id = await new(served)
    body = {"content": "question", "agent_id": "echo"}
    response = await served.client.post(f"/v1/conversations/{conversation_id}/process", json=body)
    assert response.status_code == 200
    assert (response.json()["conversation_id"], response.json()["agent"]) == (conversation_id, "echo")
    assert await messages(served, conversation_id) == [(1, "user", "question"), (2, "assistant", "question")]
    items = (await served.client.get(f"/v1/conversations/{conversation_id}/messages")).json()["items"]
    assert [item["agent_id"] for item in items] == [None, "echo"]
    assert {item["request_id"] for item in items} == {response.json()["request_id"]}
    gone = await served.client.post("/v1/conversations/gone/process", json=body)
    problem_of(gone, 404, "conversation_not_found")
    named_twice = {**body, "conversation_id": conversation_id}
    refused = await served.client.post(f"/v1/conversations/{conversation_id}/process", json=named_twice)
    problem_of(refused, 422, "invalid_input")


async def test_reject_refuses_what_comes_while_it_is_busy(served: Served) -> None:
    agent = Held()
    await served.has("held", agent)
    conversation_id = await new(served, input_policy="reject")
    first = asyncio.create_task(served.ask("slow", agent_id="held", conversation_id=conversation_id))
    await agent.begun.wait()
    refused = [served.ask(f"quick {n}", agent_id="held", conversation_id=conversation_id) for n in range(5)]
    for response in await asyncio.gather(*refused):
        assert problem_of(response, 409, "conversation_busy")["retryable"] is True
    path = f"/v1/conversations/{conversation_id}/messages"
    problem_of(await served.client.post(path, json={"content": "note"}), 409, "conversation_busy")
    agent.may_end.set()
    assert (await first).status_code == 200
    assert len(agent.calls) == 1
    await served.answer("quick", agent_id="held", conversation_id=conversation_id)
    contents = [content for _, _, content in await messages(served, conversation_id)]
    assert contents == ["slow", "answered slow", "quick", "answered quick"]


async def test_enqueue_answers_one_after_the_other_in_their_order(served: Served) -> None:
    agent = Held()
    await served.has("held", agent)
    conversation_id = await new(served, input_policy="enqueue")
    first = asyncio.create_task(served.ask("slow", agent_id="held", conversation_id=conversation_id))
    await agent.begun.wait()
    others = [
        asyncio.create_task(served.ask(f"quick {n}", agent_id="held", conversation_id=conversation_id))
        for n in range(10)
    ]
    note = asyncio.create_task(
        served.client.post(f"/v1/conversations/{conversation_id}/messages", json={"content": "note"})
    )
    agent.may_end.set()
    assert [response.status_code for response in await asyncio.gather(first, *others)] == [200] * 11
    assert (await note).status_code == 201
    said = await messages(served, conversation_id)
    assert [seq for seq, _, _ in said] == list(range(1, 24))
    contents = [content for _, _, content in said if content != "note"]
    assert contents[:2] == ["slow", "answered slow"]
    # Each question is followed by its own answer: nobody spoke in between.
    assert all(answer == f"answered {asked}" for asked, answer in zip(contents[::2], contents[1::2], strict=True))
    # Each saw all that was said before.
    assert all(len(call.history) == sum(1 for s, _, _ in said if s < _seq_of(said, call)) for call in agent.calls)


def _seq_of(said: list[tuple[int, str, str]], call: Call) -> int:
    return next(seq for seq, author, content in said if author == "user" and content == call.content)


async def test_interrupt_lets_the_newest_take_the_turn(served: Served) -> None:
    agent = Held()
    await served.has("held", agent)
    conversation_id = await new(served, input_policy="interrupt")
    first = asyncio.create_task(served.ask("slow", agent_id="held", conversation_id=conversation_id))
    await agent.begun.wait()
    second = await served.answer("quick", agent_id="held", conversation_id=conversation_id)
    assert second["output"] == "answered quick"
    problem_of(await first, 409, "superseded")
    record = (await served.client.get(f"/v1/requests/{agent.calls[0].request_id}")).json()
    assert (record["status"], record["failure"]["code"]) == ("CANCELLED", "superseded")
    contents = [content for _, _, content in await messages(served, conversation_id)]
    assert contents == ["slow", "quick", "answered quick"]


async def test_interrupt_takes_the_turn_of_a_function_that_cannot_be_ended(served: Served) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def stuck(content: str) -> str:
        if content == "slow":
            begun.set()
            may_end.wait(30)
        return f"answered {content}"

    await served.has("stuck", stuck)
    conversation_id = await new(served, input_policy="interrupt")
    first = asyncio.create_task(served.ask("slow", agent_id="stuck", conversation_id=conversation_id))
    try:
        assert await asyncio.to_thread(begun.wait, 10)
        answer = await served.answer("quick", agent_id="stuck", conversation_id=conversation_id)
        assert answer["output"] == "answered quick"
        problem_of(await first, 409, "superseded")
    finally:
        may_end.set()
    contents = [content for _, _, content in await messages(served, conversation_id)]
    assert contents == ["slow", "quick", "answered quick"], "what came too late was not recorded"


async def test_interrupts_at_once_leave_one_winner_and_a_free_conversation(served: Served) -> None:
    agent = Held()
    await served.has("held", agent)
    conversation_id = await new(served, input_policy="interrupt")
    asking = [
        asyncio.create_task(served.ask(f"slow {n}", agent_id="held", conversation_id=conversation_id)) for n in range(8)
    ]
    await agent.begun.wait()
    try:
        async with asyncio.timeout(10):
            last = await served.answer("quick", agent_id="held", conversation_id=conversation_id)
    finally:
        agent.may_end.set()
    for response in await asyncio.gather(*asking):
        problem_of(response, 409, "superseded")
    said = await messages(served, conversation_id)
    assert [seq for seq, _, _ in said] == list(range(1, len(said) + 1))
    assert said[-1] == (len(said), "assistant", last["output"])
    await served.answer("quick again", agent_id="held", conversation_id=conversation_id)


async def test_a_message_interrupts_too(served: Served) -> None:
    agent = Held()
    await served.has("held", agent)
    conversation_id = await new(served, input_policy="interrupt")
    first = asyncio.create_task(served.ask("slow", agent_id="held", conversation_id=conversation_id))
    await agent.begun.wait()
    path = f"/v1/conversations/{conversation_id}/messages"
    added = await served.client.post(path, json={"content": "stop"})
    assert (added.status_code, added.json()["seq"]) == (201, 2)
    problem_of(await first, 409, "superseded")


async def test_conversations_do_not_wait_for_each_other(served: Served) -> None:
    agent = Held()
    await served.has("held", agent)
    one, two = await new(served), await new(served)
    first = asyncio.create_task(served.ask("slow", agent_id="held", conversation_id=one))
    await agent.begun.wait()
    assert (await served.answer("quick", agent_id="held", conversation_id=two))["output"] == "answered quick"
    assert not first.done()
    agent.may_end.set()
    assert (await first).status_code == 200


async def test_a_failure_frees_the_conversation(served: Served) -> None:
    def fails(_: str) -> str:
        raise ValueError

    await served.has("fails", fails)
    await served.has("echo", echo)
    conversation_id = await new(served, input_policy="reject")
    problem_of(await served.ask("one", agent_id="fails", conversation_id=conversation_id), 502, "agent_failed")
    await served.answer("two", agent_id="echo", conversation_id=conversation_id)
    assert [content for _, _, content in await messages(served, conversation_id)] == ["one", "two", "two"]
