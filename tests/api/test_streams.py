from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agent_orchestra import Call
from tests.api.functions import echo, giving, raising_in_stream
from tests.api.serving import Served, Told, problem_of, stream_of, told_in

STREAM = {"Accept": "text/event-stream"}
#: Pieces whose characters take one to four bytes, some with what ends a line elsewhere.
PIECES = ("Grüße ", "\U0001f600\U0001f44d", " line\u2028sep\u0085next\r\n", "data: no\n\n", "한", "", "end")
OUTPUT = "".join(PIECES)


class Gated:
    """Tells all pieces but the last, waits, and tells the last."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.told_most = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, content: str, call: Call) -> AsyncIterator[str]:
        self.calls.append(call)
        for piece in PIECES[:-1]:
            yield piece
        self.told_most.set()
        await self.may_end.wait()
        yield PIECES[-1]


def text_of(events: Sequence[Told]) -> str:
    return "".join(told.data["text"] for told in events if told.type == "delta")


def check_rest(events: Sequence[Told], after: int) -> None:
    """That these are the events after a position: each once, in order, with the exact rest of the output."""
    kinds = [told.type for told in events]
    assert kinds[-1] == "completed"
    head = [kind for kind in kinds if kind in ("routed", "started")]
    assert head == ["routed", "started"][min(after, 2) :]
    assert text_of(events) == OUTPUT[max(after - 2, 0) :]
    positions = [int(told.position) for told in events[:-1]]
    assert positions == sorted(set(positions))
    assert all(position > after for position in positions)
    assert events[-1].position == "end"
    assert events[-1].data["output"] == OUTPUT


async def test_a_stream_tells_the_events_of_the_one_call(served: Served) -> None:
    agent = Gated()
    agent.may_end.set()
    await served.has("tells", agent, keywords=("greet",))
    events = await told_in(served.client, "POST", "/v1/orchestrate", body={"content": "greet me"})
    check_rest(events, 0)
    routed, started, completed = events[0], events[1], events[-1]
    request_id = agent.calls[0].request_id
    assert {told.id.rpartition(":")[0] for told in events} == {request_id}
    assert (routed.position, started.position) == ("1", "2")
    assert (routed.data["agent"], routed.data["stage"]) == ("tells", "lexical")
    assert routed.data["request_id"] == request_id
    assert started.data == {"agent": "tells", "instance": "in-process"}
    assert [told.data["text"] for told in events if told.type == "delta"] == [piece for piece in PIECES if piece]
    record = (await served.client.get(f"/v1/requests/{request_id}")).json()
    assert record["answer"] == completed.data


async def test_an_answer_in_one_piece_is_streamed_too(served: Served) -> None:
    await served.has("echo", echo)
    events = await told_in(served.client, "POST", "/v1/orchestrate", body={"content": "hello", "agent_id": "echo"})
    assert [told.type for told in events] == ["routed", "started", "delta", "completed"]
    assert text_of(events) == "hello"


async def test_an_empty_answer_is_streamed_too(served: Served) -> None:
    await served.has("silent", giving(""))
    events = await told_in(served.client, "POST", "/v1/orchestrate", body={"content": "hi", "agent_id": "silent"})
    assert [told.type for told in events] == ["routed", "started", "completed"]
    assert events[-1].data["output"] == ""


async def test_the_response_is_one_that_no_proxy_holds_back(served: Served) -> None:
    await served.has("echo", echo)
    body = {"content": "hello", "agent_id": "echo"}
    async with served.client.stream("POST", "/v1/orchestrate", json=body, headers=STREAM) as response:
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        events = [told async for told in stream_of(response)]
        assert response.headers["x-request-id"] == events[0].data["request_id"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_ended_stream_resumes_at_every_position(served: Served, method: str) -> None:
    agent = Gated()
    agent.may_end.set()
    await served.has("tells", agent)
    body = {"content": "hello", "agent_id": "tells"}
    request_id = (await served.answer("hello", agent_id="tells"))["request_id"]
    path = f"/v1/requests/{request_id}/events" if method == "GET" else "/v1/orchestrate"
    sent = body if method == "POST" else None
    for after in range(len(OUTPUT) + 3):
        events = await told_in(served.client, method, path, last=f"{request_id}:{after}", body=sent)
        check_rest(events, after)
    beyond = await told_in(served.client, method, path, last=f"{request_id}:{10**12 - 1}", body=sent)
    assert [told.type for told in beyond] == ["completed"]
    end = await served.client.request(method, path, headers={**STREAM, "Last-Event-ID": f"{request_id}:end"}, json=sent)
    assert (end.status_code, end.content) == (204, b"")
    assert len(agent.calls) == 1, "resuming asks nobody"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_running_stream_resumes_at_every_position(served: Served, method: str) -> None:
    agent = Gated()
    await served.has("tells", agent)
    body = {"content": "hello", "agent_id": "tells"}
    first = asyncio.create_task(told_in(served.client, "POST", "/v1/orchestrate", body=body))
    await agent.told_most.wait()
    request_id = agent.calls[0].request_id
    path = f"/v1/requests/{request_id}/events" if method == "GET" else "/v1/orchestrate"
    said = len(OUTPUT) - len(PIECES[-1])
    caught_up: list[int] = []

    async def follow(after: int) -> list[Told]:
        headers = {**STREAM, "Last-Event-ID": f"{request_id}:{after}"}
        sent = body if method == "POST" else None
        events: list[Told] = []
        async with served.client.stream(method, path, headers=headers, json=sent) as response:
            assert response.status_code == 200, await response.aread()
            async for told in stream_of(response):
                events.append(told)
                if len(text_of(events)) == said - max(after - 2, 0) and not agent.may_end.is_set():
                    caught_up.append(after)
                    if len(caught_up) == said + 2:
                        agent.may_end.set()
        return events

    following = [asyncio.create_task(follow(after)) for after in range(said + 3)]
    for after, events in enumerate(await asyncio.gather(*following)):
        check_rest(events, after)
    check_rest(await first, 0)
    assert len(agent.calls) == 1


async def test_a_failure_ends_a_stream_with_its_problem(served: Served) -> None:
    await served.has("breaks", raising_in_stream)
    body = {"content": "hello", "agent_id": "breaks"}
    events = await told_in(served.client, "POST", "/v1/orchestrate", body=body)
    assert [told.type for told in events] == ["routed", "started", "delta", "delta", "failed"]
    failed = events[-1]
    assert (failed.position, failed.data["code"], failed.data["status"]) == ("end", "agent_failed", 502)
    assert failed.data["cause"] == "ValueError"
    request_id = events[0].data["request_id"]
    record = (await served.client.get(f"/v1/requests/{request_id}")).json()
    assert (record["status"], record["failure"]["code"]) == ("FAILED", "agent_failed")
    told_again = "half of the answer"
    for after in range(len(told_again) + 3):
        rest = await told_in(served.client, "GET", f"/v1/requests/{request_id}/events", last=f"{request_id}:{after}")
        assert text_of(rest) == told_again[max(after - 2, 0) :]
        assert rest[-1] == failed


async def test_what_is_refused_before_it_runs_is_no_stream(served: Served) -> None:
    await served.has("echo", echo)
    refused = await served.ask("hello", agent_id="nobody", headers=STREAM)
    problem_of(refused, 404, "agent_not_found")
    problem_of(await served.ask("  ", agent_id="echo", headers=STREAM), 422, "invalid_input")


async def test_a_position_of_another_stream_is_refused(served: Served) -> None:
    await served.has("echo", echo)
    one = await served.answer("one", agent_id="echo")
    two = await served.answer("two", agent_id="echo")
    last = {"Last-Event-ID": f"{one['request_id']}:2"}
    path = f"/v1/requests/{two['request_id']}/events"
    problem_of(await served.client.get(path, headers=last), 409, "stream_mismatch")
    other = await served.ask("two", agent_id="echo", headers={**STREAM, **last})
    problem_of(other, 409, "stream_mismatch")
    unknown = "01890000-0000-7000-8000-000000000000"
    gone = await served.ask("two", agent_id="echo", headers={**STREAM, "Last-Event-ID": f"{unknown}:2"})
    problem_of(gone, 404, "request_not_found")
    problem_of(await served.client.get(f"/v1/requests/{unknown}/events"), 404, "request_not_found")


async def test_a_position_that_is_none_is_refused(served: Served) -> None:
    await served.has("echo", echo)
    answer = await served.answer("hello", agent_id="echo")
    request_id = answer["request_id"]
    for last in ("", "x", "1", f"{request_id}", f"{request_id}:", f"{request_id}:-1", f"{request_id}:1e3"):
        headers = {**STREAM, "Last-Event-ID": last}
        got = await served.client.get(f"/v1/requests/{request_id}/events", headers=headers)
        problem_of(got, 404, "request_not_found")
        posted = await served.ask("hello", agent_id="echo", headers=headers)
        problem_of(posted, 404, "request_not_found")


async def test_a_client_that_hangs_up_ends_its_stream_and_not_the_request(served: Served) -> None:
    agent = Gated()
    await served.has("tells", agent)
    body = {"content": "hello", "agent_id": "tells"}
    seen: list[Told] = []
    async with (
        served.client.stream("POST", "/v1/orchestrate", json=body, headers=STREAM) as response,
        contextlib.aclosing(stream_of(response)) as events,
    ):
        async for told in events:
            seen.append(told)
            if told.type == "delta":
                break
    await agent.told_most.wait()
    agent.may_end.set()
    request_id = seen[0].data["request_id"]
    rest = await told_in(served.client, "GET", f"/v1/requests/{request_id}/events", last=seen[-1].id)
    assert text_of([*seen, *rest]) == OUTPUT
    assert rest[-1].type == "completed"
    record: dict[str, Any] = (await served.client.get(f"/v1/requests/{request_id}")).json()
    assert (record["status"], record["answer"]["output"]) == ("SUCCEEDED", OUTPUT)
    messages = await served.client.get(f"/v1/conversations/{record['conversation_id']}/messages")
    assert [message["content"] for message in messages.json()["items"]] == ["hello", OUTPUT]


async def test_a_message_of_a_conversation_is_streamed_too(served: Served) -> None:
    await served.has("echo", echo)
    conversation_id = (await served.client.post("/v1/conversations", json={})).json()["id"]
    path = f"/v1/conversations/{conversation_id}/process"
    events = await told_in(served.client, "POST", path, body={"content": "hello", "agent_id": "echo"})
    assert events[-1].data["conversation_id"] == conversation_id
    again = await told_in(served.client, "POST", path, body={"content": "hello", "agent_id": "echo"}, last=events[2].id)
    assert again == events[3:]
