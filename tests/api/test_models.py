"""Models over HTTP: what an answer tells of them, how their errors look, and what goes along with a question."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from agent_orchestra import Agent, Call, Reply
from agent_orchestra.core.request import Generation, StopReason, ToolCall
from agent_orchestra.core.resilience import Recovery
from tests.api.serving import Served, problem_of, serving, told_in
from tests.services.replay import Answer, Ended, Late, ReplayServer, read_case

pytestmark = pytest.mark.usefixtures("model_requests")

KEY: Final = "quoted-0123456789abcdef"
MODEL: Final = "openai:gpt-4o"
SCHEMA: Final = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
IMAGE: Final = {"media_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}
SOUND: Final = {"media_type": "audio/wav", "data": base64.b64encode(b"RIFF").decode()}


@pytest.fixture
async def vendor() -> AsyncGenerator[ReplayServer]:
    async with ReplayServer() as server:
        yield server


@asynccontextmanager
async def asking(vendor: ReplayServer, **more: object) -> AsyncGenerator[Served]:
    """An application that finds OpenAI at the vendor, and no other provider."""
    openai = {"base_url": vendor.url, "api_key": KEY, "max_wait": 0, **more}
    # How each error looks is the question here, not what becomes of an instance that gives many.
    unbroken = {"circuit_breaker": {"enabled": False}}
    async with serving(providers={"openai": openai}, orchestrator=unbroken) as served:
        yield served


@pytest.fixture
async def served(vendor: ReplayServer) -> AsyncGenerator[Served]:
    async with asking(vendor) as found:
        yield found


async def has(served: Served, **settings: Any) -> None:
    if "models" not in settings:
        settings.setdefault("model", MODEL)
    once = Recovery(attempts=1)
    await served.orchestra.register_agent(Agent(id="agent", kind="prompt", settings=settings, recovery=once))


async def ask(served: Served, **more: Any) -> Any:
    return await served.ask("hello", agent_id="agent", **more)


def said(text: str) -> Mapping[str, Any]:
    """An answer of OpenAI's, with half of the prompt from its cache."""
    details = {"prompt_tokens_details": {"cached_tokens": 400}, "completion_tokens_details": {"reasoning_tokens": 20}}
    usage = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100, **details}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "chat-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-2024-08-06"}
    return {**head, "choices": [choice], "usage": usage}


# --- what an answer tells


async def test_an_answer_tells_which_model_wrote_it_and_what_it_used(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(200, said("four"), {"x-request-id": "req_123"})
    await has(served)
    answer = (await ask(served)).json()
    assert (answer["output"], answer["value"], answer["tool_calls"]) == ("four", None, [])
    assert (answer["agent"], answer["instance"]) == ("agent", MODEL)
    assert answer["generation"] == {
        "provider": "openai",
        "model": "gpt-4o-2024-08-06",
        "stop_reason": "stop",
        "request_id": "req_123",
        "first_token_ms": None,
    }
    usage = answer["usage"]
    # 600 tokens at 2.50 dollars a million, 400 from the cache at 1.25, 100 written at 10.
    assert usage.pop("cost_usd") == pytest.approx(0.003)
    assert usage.pop("price_date").count("-") == 2
    assert usage == {
        "input_tokens": 1_000,
        "output_tokens": 100,
        "cache_read_tokens": 400,
        "cache_write_tokens": 0,
        "reasoning_tokens": 20,
    }
    record = (await served.client.get(f"/v1/requests/{answer['request_id']}")).json()
    assert (record["status"], record["instance"]) == ("SUCCEEDED", MODEL)
    assert record["answer"]["generation"] == answer["generation"]
    assert record["answer"] == (await served.client.get(f"/v1/requests/{answer['request_id']}")).json()["answer"]
    assert record["answer"]["usage"]["cost_usd"] == pytest.approx(0.003)


async def test_a_model_without_a_price_has_no_cost(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(200, {**said("four"), "model": "nobody-knows-it"})
    await has(served, model="openai:nobody-knows-it")
    usage = (await ask(served)).json()["usage"]
    assert (usage["cost_usd"], usage["price_date"], usage["input_tokens"]) == (None, None, 1_000)


async def test_a_stream_ends_with_the_same_and_the_time_of_its_first_token(
    served: Served, vendor: ReplayServer
) -> None:
    case = read_case("openai-chat/stream_text")
    vendor.play(case)
    await has(served)
    events = await told_in(served.client, "POST", "/v1/orchestrate", body={"content": "hello", "agent_id": "agent"})
    answer = events[-1].data
    assert events[-1].type == "completed"
    assert "".join(told.data["text"] for told in events if told.type == "delta") == answer["output"]
    assert answer["output"] == case.expect["text"]
    assert answer["generation"]["provider"] == "openai"
    assert answer["generation"]["first_token_ms"] > 0
    record = (await served.client.get(f"/v1/requests/{answer['request_id']}")).json()
    assert record["answer"] == answer
    # Told again, it is the same to the letter.
    again = await told_in(served.client, "GET", f"/v1/requests/{answer['request_id']}/events")
    assert again[-1].data == answer


async def test_calls_of_tools_are_told_and_kept(served: Served) -> None:
    """No agent of a model leaves any to its caller; an agent in code may."""
    call = ToolCall(id="call-1", name="look_up", arguments={"city": "Łódź", "days": [1, None]})
    generation = Generation(provider="own", model="m", stop_reason=StopReason.TOOL_CALL)

    def calls(_: str) -> Reply:
        return Reply(output="", tool_calls=(call,), generation=generation)

    await served.has("calls", calls)
    answer = await served.answer("hello", agent_id="calls")
    assert answer["tool_calls"] == [
        {"id": "call-1", "name": "look_up", "arguments": {"city": "Łódź", "days": [1, None]}},
    ]
    assert answer["generation"]["stop_reason"] == "tool_call"
    record = (await served.client.get(f"/v1/requests/{answer['request_id']}")).json()
    assert record["answer"] == answer
    events = await told_in(served.client, "GET", f"/v1/requests/{answer['request_id']}/events")
    assert events[-1].data == answer


async def test_a_structured_value_is_a_value(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(200, said('{"n": 4}'))
    await has(served, output_schema=SCHEMA)
    answer = (await ask(served)).json()
    assert (answer["value"], json.loads(answer["output"])) == ({"n": 4}, {"n": 4})


async def test_attempts_tell_who_could_not_answer(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(500)
    vendor.answer(200, said("four"))
    await has(served, models=[MODEL, "openai:gpt-5"])
    answer = (await ask(served)).json()
    assert [(one["instance"], one["error"]) for one in answer["attempts"]] == [
        (MODEL, "model_server_error"),
        ("openai:gpt-5", None),
    ]
    assert answer["instance"] == "openai:gpt-5"
    record = (await served.client.get(f"/v1/requests/{answer['request_id']}")).json()
    assert (record["instance"], record["answer"]) == ("openai:gpt-5", answer)


# --- how errors look


PROBLEMS: Final[Sequence[tuple[Answer, int, str, bool]]] = (
    (Answer.made(400, {"error": {"message": "no", "code": "x"}}), 502, "model_request_invalid", False),
    (
        Answer.made(401, {"error": {"message": "no", "code": "invalid_api_key"}}),
        502,
        "model_authentication_failed",
        False,
    ),
    (Answer.made(403), 502, "model_permission_denied", False),
    (Answer.made(404), 502, "model_not_found", False),
    (Answer.made(400, {"error": {"code": "context_length_exceeded"}}), 422, "context_too_long", False),
    (Answer.made(400, {"error": {"code": "content_filter"}}), 422, "content_refused", False),
    (Answer.made(429, {"error": {"code": "insufficient_quota"}}), 502, "model_quota_exhausted", False),
    (Answer.made(500), 502, "model_server_error", True),
    (Answer.made(200, b"{"), 502, "model_server_error", True),
    (Answer.made(200, said("x"), fault=Ended()), 502, "model_server_error", True),
    (Answer.made(503), 503, "model_overloaded", True),
    (Answer.made(529), 503, "model_overloaded", True),
    (Answer.made(504), 504, "model_timeout", True),
)


async def test_an_error_of_a_vendor_has_a_status_and_a_code(vendor: ReplayServer) -> None:
    async with asking(vendor) as served:
        await has(served)
        for answer, status, code, retryable in PROBLEMS:
            vendor.always(answer)
            response = await ask(served)
            problem = problem_of(response, status, code)
            assert (problem["retryable"], problem["provider"], problem["model"]) == (retryable, "openai", "gpt-4o")
            assert "retry-after" not in response.headers
            events = await told_in(
                served.client, "POST", "/v1/orchestrate", body={"content": "hello", "agent_id": "agent"}
            )
            told = events[-1].data
            assert (events[-1].type, told["code"], told["status"]) == ("failed", code, status)
            request_id = events[0].data["request_id"]
            record = (await served.client.get(f"/v1/requests/{request_id}")).json()
            assert (record["status"], record["failure"]["code"]) == ("FAILED", code)
            assert [one["error"] for one in record["failure"]["attempts"]] == [code]


@pytest.mark.parametrize(("asked", "told"), [("7", "7"), ("0.2", "1"), ("0", "0"), (None, None)])
async def test_a_rate_limit_says_how_long_to_wait(
    served: Served, vendor: ReplayServer, asked: str | None, told: str | None
) -> None:
    headers = {} if asked is None else {"retry-after": asked}
    vendor.answer(429, {"error": {"code": "rate_limit_exceeded"}}, headers)
    await has(served)
    response = await ask(served)
    problem = problem_of(response, 503, "model_rate_limited")
    assert problem["retryable"] is True
    assert response.headers.get("retry-after") == told
    assert problem.get("retry_after") == (None if asked is None else float(asked))
    assert problem["vendor_code"] == "rate_limit_exceeded"


async def test_while_the_limit_lasts_the_vendor_is_left_alone(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(429, None, {"retry-after": "30"})
    await has(served)
    for _ in range(3):
        response = await ask(served)
        problem_of(response, 503, "model_rate_limited")
        assert 25 <= int(response.headers["retry-after"]) <= 30
    assert len(vendor.requests) == 1


async def test_a_vendor_that_does_not_answer_in_time(vendor: ReplayServer) -> None:
    async with asking(vendor, timeout=0.5) as served:
        await has(served)
        vendor.answer(200, said("warm"))
        assert (await ask(served)).status_code == 200
        vendor.silence()
        problem_of(await ask(served), 504, "model_timeout")


async def test_a_vendor_that_is_not_there(vendor: ReplayServer) -> None:
    vendor.hang_up()
    async with asking(vendor) as served:
        await has(served)
        problem = problem_of(await ask(served), 502, "model_unreachable")
        assert problem["retryable"] is True


async def test_a_key_that_is_missing(vendor: ReplayServer) -> None:
    async with asking(vendor) as served:
        await has(served, model="anthropic:claude-sonnet-4-5")
        problem = problem_of(await ask(served), 503, "provider_key_missing")
        assert "ANTHROPIC_API_KEY" in problem["detail"]
        assert problem["provider"] == "anthropic"


async def test_an_output_that_never_matches_is_in_the_problem(served: Served, vendor: ReplayServer) -> None:
    vendor.always(Answer.made(200, said("four")))
    await has(served, output_schema=SCHEMA, output_retries=1)
    problem = problem_of(await ask(served), 502, "output_invalid")
    assert (problem["output"], problem["retryable"]) == ("four", False)
    assert len(vendor.requests) == 2


async def test_definitions_over_http_are_checked_as_any_others(served: Served) -> None:
    definition: dict[str, Any] = {"id": "agent", "kind": "prompt", "settings": {"model": "opnai:x", "tools": [5]}}
    problem = problem_of(await served.client.post("/v1/agents", json=definition), 422, "invalid_agent")
    assert [fault["path"] for fault in problem["errors"]] == ["settings.model", "settings.tools.0"]
    for tool in ("os:getcwd", {"mcp": "http://127.0.0.1:1/mcp"}):
        definition["settings"] = {"model": MODEL, "tools": [tool]}
        problem_of(await served.client.post("/v1/agents", json=definition), 403, "forbidden")
    definition["settings"] = {"model": MODEL, "instructions": "Be brief."}
    response = await served.client.post("/v1/agents", json=definition)
    assert (response.status_code, response.json()["settings"]) == (201, definition["settings"])


# --- providers


async def test_providers_tell_what_is_set_and_what_answers(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(200, {"data": []})
    document = (await served.client.get("/v1/providers")).json()
    found = {provider.pop("name"): provider for provider in document["providers"]}
    assert list(found) == ["anthropic", "openai", "google", "local"]
    openai = found.pop("openai")
    assert openai.pop("checked_at").endswith("Z")
    assert openai == {
        "configured": True,
        "installed": True,
        "reachable": True,
        "last_error": None,
        "detail": "answers",
    }
    for name, provider in found.items():
        assert (provider["configured"], provider["installed"], provider["reachable"]) == (False, True, None), name
    assert "ANTHROPIC_API_KEY" in found["anthropic"]["detail"]
    assert "providers.local.base_url" in found["local"]["detail"]
    (request,) = vendor.requests
    assert (request.method, request.path) == ("GET", "/models")
    assert request.headers["authorization"] == f"Bearer {KEY}"


async def test_each_provider_is_asked_as_it_wants_to_be() -> None:
    expected = {
        "anthropic": ("/v1/models?limit=1", "x-api-key", KEY),
        "openai": ("/models", "authorization", f"Bearer {KEY}"),
        "google": ("/v1beta/models?pageSize=1", "x-goog-api-key", KEY),
        "local": ("/models", "authorization", None),
    }
    for name, (path, header, value) in expected.items():
        async with ReplayServer() as vendor:
            own = {"base_url": vendor.url, **({"api_key": KEY} if value else {})}
            async with serving(providers={name: own}) as served:
                vendor.answer(200, {})
                document = (await served.client.get("/v1/providers")).json()
                assert [p["name"] for p in document["providers"] if p["reachable"]] == [name]
            (request,) = vendor.requests
            assert (request.path, request.headers.get(header)) == (path, value)


async def test_a_provider_is_asked_once_a_minute_and_anew_for_who_wants_to_know(
    served: Served, vendor: ReplayServer
) -> None:
    vendor.answer(200, {})
    documents = await asyncio.gather(*(served.client.get("/v1/providers") for _ in range(5)))
    assert len({document.text for document in documents}) == 1
    assert len(vendor.requests) == 1
    vendor.answer(401, {"error": {"code": "invalid_api_key"}})
    fresh = (await served.client.get("/v1/providers", params={"fresh": "true"})).json()["providers"][1]
    assert (fresh["reachable"], fresh["last_error"]) == (False, "model_authentication_failed")
    assert "OPENAI_API_KEY" in fresh["detail"]
    again = (await served.client.get("/v1/providers")).json()["providers"][1]
    assert again == fresh
    assert len(vendor.requests) == 2
    # Many who want to know at once are one.
    vendor.always(Answer.made(200, {}, fault=Late(seconds=0.3)))
    asking = [served.client.get("/v1/providers", params={"fresh": "true"}) for _ in range(5)]
    assert {one.json()["providers"][1]["reachable"] for one in await asyncio.gather(*asking)} == {True}
    assert len(vendor.requests) <= 4
    problem_of(await served.client.get("/v1/providers", params={"fresh": "perhaps"}), 422, "invalid_input")


@pytest.mark.parametrize(
    ("status", "reachable", "error"),
    [
        (404, True, None),
        (405, True, None),
        (401, False, "model_authentication_failed"),
        (403, False, "model_permission_denied"),
        (429, False, "model_rate_limited"),
        (500, False, "model_server_error"),
        (503, False, "model_overloaded"),
    ],
)
async def test_what_a_check_finds(
    served: Served, vendor: ReplayServer, status: int, reachable: bool, error: str | None
) -> None:
    vendor.answer(status)
    found = (await served.client.get("/v1/providers")).json()["providers"][1]
    assert (found["reachable"], found["last_error"]) == (reachable, error)


async def test_the_last_error_is_that_of_the_last_call(served: Served, vendor: ReplayServer) -> None:
    async def last_error() -> str | None:
        document = (await served.client.get("/v1/providers")).json()
        return document["providers"][1]["last_error"]

    vendor.answer(200, {})
    await has(served)
    assert await last_error() is None
    vendor.answer(503)
    problem_of(await ask(served), 503, "model_overloaded")
    assert await last_error() == "model_overloaded", "what is known here needs nobody to be asked"
    vendor.answer(200, said("four"))
    assert (await ask(served)).status_code == 200
    assert await last_error() is None
    assert [request.method for request in vendor.requests] == ["GET", "POST", "POST"]


# --- attachments


async def test_attachments_reach_the_agent_and_are_not_kept(served: Served) -> None:
    given: list[Call] = []

    def looks(content: str, call: Call) -> str:
        given.append(call)
        return content

    await served.has("looks", looks)
    answer = await served.answer("look", agent_id="looks", attachments=[IMAGE, SOUND])
    assert [(a.media_type, a.data) for a in given[0].attachments] == [("image/png", b"\x89PNG"), ("audio/wav", b"RIFF")]
    path = f"/v1/conversations/{answer['conversation_id']}"
    response = await served.client.post(f"{path}/process", json={"content": "and this", "attachments": [IMAGE]})
    assert response.status_code == 200, response.text
    assert [len(call.attachments) for call in given] == [2, 1]
    assert IMAGE["data"] not in (await served.client.get(f"{path}/messages")).text


async def test_an_image_reaches_the_vendor_and_a_sound_does_not(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(200, said("a picture"))
    await has(served)
    assert (await ask(served, attachments=[IMAGE])).json()["output"] == "a picture"
    assert IMAGE["data"] in json.dumps(vendor.requests[0].body)
    problem = problem_of(await ask(served, attachments=[SOUND]), 409, "attachment_not_supported")
    assert (problem["media_type"], problem["model"]) == ("audio/wav", "gpt-4o")
    assert len(vendor.requests) == 1


@pytest.mark.parametrize(
    ("attachments", "path"),
    [
        ([{**IMAGE, "data": "%%%%"}], "attachments.0.data"),
        ([{**IMAGE, "data": "abc"}], "attachments.0.data"),
        ([{**IMAGE, "data": "ab=="}, {**IMAGE, "data": "abcd=="}], "attachments.1.data"),
        ([{**IMAGE, "data": "ab\ncd"}], "attachments.0.data"),
        ([{**IMAGE, "data": "ab-_"}], "attachments.0.data"),
        ([{**IMAGE, "data": ""}], "attachments.0.data"),
        ([{**IMAGE, "data": 5}], "attachments.0.data"),
        ([{"media_type": "image/png"}], "attachments.0.data"),
        ([{"data": IMAGE["data"]}], "attachments.0.media_type"),
        ([{**IMAGE, "media_type": "png"}], "attachments.0.media_type"),
        ([{**IMAGE, "media_type": "image/"}], "attachments.0.media_type"),
        ([{**IMAGE, "media_type": "IMAGE/PNG"}], "attachments.0.media_type"),
        ([{**IMAGE, "media_type": "image/png; q=1"}], "attachments.0.media_type"),
        ([{**IMAGE, "media_type": "image/png\n"}], "attachments.0.media_type"),
        ([{**IMAGE, "name": "x.png"}], "attachments.0.name"),
        ([IMAGE] * 33, "attachments"),
        (IMAGE, "attachments"),
        ([IMAGE["data"]], "attachments.0"),
    ],
)
async def test_attachments_that_are_none_are_refused(
    served: Served, vendor: ReplayServer, attachments: object, path: str
) -> None:
    await has(served)
    problem = problem_of(await ask(served, attachments=attachments), 422, "invalid_input")
    assert [fault["path"] for fault in problem["errors"]] == [path]
    assert vendor.requests == []
    assert (await served.client.get("/v1/conversations")).json()["items"] == []


async def test_as_many_attachments_as_may_be(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(200, said("many"))
    await has(served)
    assert (await ask(served, attachments=[IMAGE] * 32)).status_code == 200


async def test_attachments_count_for_the_length_of_a_body(vendor: ReplayServer) -> None:
    async with serving(max_body_bytes=2_048) as served:
        await served.has("agent", str)
        large = {**IMAGE, "data": base64.b64encode(b"x" * 2_048).decode()}
        problem_of(await ask(served, attachments=[large]), 413, "body_too_large")


async def test_a_key_stands_for_a_question_with_what_goes_along(served: Served, vendor: ReplayServer) -> None:
    vendor.answer(200, said("first"))
    await has(served)
    headers = {"Idempotency-Key": "k"}
    first = await ask(served, attachments=[IMAGE], headers=headers)
    again = await ask(served, attachments=[IMAGE], headers=headers)
    assert (first.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    other = {**IMAGE, "data": base64.b64encode(b"\x89PNh").decode()}
    renamed = {**IMAGE, "media_type": "image/webp"}
    for attachments in ([other], [renamed], [IMAGE, IMAGE], [IMAGE, SOUND], []):
        problem_of(await ask(served, attachments=attachments, headers=headers), 409, "idempotency_mismatch")
    assert len(vendor.requests) == 1
