from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_orchestra.core.access import Scope
from tests.api.functions import echo
from tests.api.serving import Served, problem_of, serving, told_in
from tests.services.service import running_service


class Counting:
    """Counts its calls, and answers with the count."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, content: str) -> str:
        self.count += 1
        if content == "fail":
            raise ValueError("no")
        await asyncio.sleep(0.01)
        return f"call {self.count}"


def key(text: str) -> Mapping[str, str]:
    return {"Idempotency-Key": text}


async def test_the_same_key_gives_the_same_answer_and_runs_nothing_twice(served: Served) -> None:
    agent = Counting()
    await served.has("counts", agent)
    first = await served.ask("hello", agent_id="counts", headers=key("k"))
    again = await served.ask("hello", agent_id="counts", headers=key("k"))
    assert (first.status_code, again.json()) == (200, first.json())
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert agent.count == 1
    other = await served.answer("hello", agent_id="counts", headers=key("another"))
    assert other["output"] == "call 2"


async def test_twenty_at_once_are_one(served: Served) -> None:
    agent = Counting()
    await served.has("counts", agent)
    asking = [served.ask("hello", agent_id="counts", headers=key("k")) for _ in range(20)]
    responses = await asyncio.gather(*asking)
    assert {response.status_code for response in responses} == {200}
    assert len({response.text for response in responses}) == 1
    assert agent.count == 1
    assert sum("idempotent-replayed" not in response.headers for response in responses) == 1
    conversations = (await served.client.get("/v1/conversations")).json()["items"]
    assert [conversation["last_seq"] for conversation in conversations] == [2]


async def test_twenty_at_once_in_one_conversation_are_one(served: Served) -> None:
    agent = Counting()
    await served.has("counts", agent)
    conversation_id = (await served.client.post("/v1/conversations", json={"input_policy": "reject"})).json()["id"]
    asking = [
        served.ask("hello", agent_id="counts", conversation_id=conversation_id, headers=key("k")) for _ in range(20)
    ]
    assert len({response.text for response in await asyncio.gather(*asking)}) == 1
    assert agent.count == 1


async def test_another_body_is_a_conflict(served: Served) -> None:
    agent = Counting()
    await served.has("counts", agent)
    await served.has("echo", echo)
    body: dict[str, Any] = {"content": "hello", "agent_id": "counts", "context": {"a": 1}}
    first = await served.answer(**body, headers=key("k"))
    changes: tuple[dict[str, Any], ...] = (
        {"content": "hello!"},
        {"agent_id": "echo"},
        {"context": {"a": 2}},
        {"context": {}},
        {"user_id": "ann"},
        {"capability": "x"},
        {"conversation_id": first["conversation_id"]},
    )
    for change in changes:
        response = await served.ask(**{**body, **change}, headers=key("k"))
        problem_of(response, 409, "idempotency_mismatch")
    same = await served.answer(agent_id="counts", content="hello", context={"a": 1}, headers=key("k"))
    assert same == first
    assert agent.count == 1


async def test_another_body_is_a_conflict_while_the_first_one_runs(served: Served) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(content: str) -> str:
        begun.set()
        await may_end.wait()
        return content

    await served.has("slow", slow)
    first = asyncio.create_task(served.ask("one", agent_id="slow", headers=key("k")))
    await begun.wait()
    problem_of(await served.ask("two", agent_id="slow", headers=key("k")), 409, "idempotency_mismatch")
    may_end.set()
    assert (await first).json()["output"] == "one"


async def test_a_failed_run_is_given_again_and_not_run_again(served: Served) -> None:
    agent = Counting()
    await served.has("counts", agent)
    first = await served.ask("fail", agent_id="counts", headers=key("k"))
    again = await served.ask("fail", agent_id="counts", headers=key("k"))
    assert problem_of(again, 502, "agent_failed") == problem_of(first, 502, "agent_failed")
    assert agent.count == 1


async def test_an_answer_is_given_again_though_its_agent_is_gone(served: Served) -> None:
    agent = Counting()
    await served.has("counts", agent, keywords=("greet",))
    first = await served.answer("greet", headers=key("k"))
    named = await served.answer("greet", agent_id="counts", headers=key("named"))
    await served.client.delete("/v1/agents/counts")
    assert await served.answer("greet", headers=key("k")) == first
    assert await served.answer("greet", agent_id="counts", headers=key("named")) == named
    problem_of(await served.ask("other", headers=key("k")), 409, "idempotency_mismatch")
    assert agent.count == 2


async def test_a_key_of_a_refused_request_is_free(served: Served) -> None:
    problem_of(await served.ask("hello", agent_id="late", headers=key("k")), 404, "agent_not_found")
    await served.has("late", echo)
    assert (await served.answer("hello", agent_id="late", headers=key("k")))["output"] == "hello"


async def test_a_key_holds_for_documents_and_streams(served: Served) -> None:
    agent = Counting()
    await served.has("counts", agent)
    answer = await served.answer("hello", agent_id="counts", headers=key("k"))
    streaming = {"Accept": "text/event-stream", **key("k")}
    streamed = await served.ask("hello", agent_id="counts", headers=streaming)
    assert streamed.headers["x-request-id"] == answer["request_id"]
    assert streamed.headers["idempotent-replayed"] == "true"
    events = await told_in(served.client, "GET", f"/v1/requests/{answer['request_id']}/events")
    assert events[-1].data == answer
    assert streamed.text.count("event: completed") == 1
    assert agent.count == 1


async def test_keys_that_are_none_are_refused(served: Served) -> None:
    await served.has("echo", echo)
    for text in ("", "has space", "x" * 256):
        problem = problem_of(await served.ask("hello", agent_id="echo", headers=key(text)), 422, "invalid_input")
        assert problem["errors"][0]["path"] == "header.Idempotency-Key"
    assert (await served.ask("hello", agent_id="echo", headers=key("x" * 255))).status_code == 200


async def test_the_keys_of_tenants_are_their_own() -> None:
    async with serving() as served:
        await served.has("echo", echo)
        _, text = await served.orchestra.keys.create("other", [Scope.RUN])
        mine = await served.answer("hello", agent_id="echo", headers=key("k"))
        theirs = await served.answer("hello!", agent_id="echo", headers={**key("k"), "X-API-Key": text})
        assert theirs["request_id"] != mine["request_id"]


@pytest.mark.slow
async def test_keys_are_kept_over_a_restart(tmp_path: Path) -> None:
    agents = [
        {"id": name, "kind": "function", "settings": {"function": f"tests.api.functions:{function}"}}
        for name, function in (("writes", "ledger"), ("fails", "raising"))
    ]
    ledger = tmp_path / "ledger"
    bodies = [{"content": "line", "agent_id": name, "context": {"ledger": str(ledger)}} for name in ("writes", "fails")]
    with running_service(tmp_path, {"agents": agents}) as service:

        async def asked() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
                return [
                    await client.post("/v1/orchestrate", json=body, headers=key(body["agent_id"]))
                    for body in bodies
                    if isinstance(body["agent_id"], str)
                ]

        before = await asked()
        assert [response.status_code for response in before] == [200, 502]
        service.restart()
        after = await asked()
        assert [response.json() for response in after] == [response.json() for response in before]
        assert ledger.read_text(encoding="utf-8") == "line\nline\n", "each ran once"
        bodies[0]["content"] = "another"
        problem_of((await asked())[0], 409, "idempotency_mismatch")
