"""What the vendors were recorded to say comes through our adapter as it was said, over real HTTP."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import pytest

from agent_orchestra import Agent, Orchestra, Recovery
from agent_orchestra.bootstrap import open_from_settings
from agent_orchestra.core.prompt import Prompt, Said, ToolResult
from agent_orchestra.core.request import Reply, StopReason, Usage
from agent_orchestra.core.stream import StreamEvent, StreamEventType
from agent_orchestra.core.values import Json
from agent_orchestra.errors import (
    ContentRefused,
    ModelAuthenticationFailed,
    ModelFailed,
    ModelNotFound,
    ModelOverloaded,
    ModelQuotaExhausted,
    ModelRateLimited,
    ModelRequestInvalid,
    ModelServerError,
)
from agent_orchestra.settings import load_settings
from tests.adapters.models.recorded import APIS, KEY, model_of, name_of, open_models, prompt_in
from tests.services.replay import WIRE, Case, ReplayServer, Request, cases, read_case

#: The first test of a process imports the SDKs of the vendors, which takes seconds.
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("model_requests")]

#: Every case that has no answer: what it is with us, whether the same call may succeed later, and why.
ERRORS: Final[Mapping[str, tuple[type[ModelFailed], bool, str]]] = {
    "anthropic/err_400_invalid": (ModelRequestInvalid, False, "400 invalid_request_error"),
    "anthropic/err_401": (ModelAuthenticationFailed, False, "401 authentication_error"),
    "anthropic/err_404_model": (ModelNotFound, False, "404 not_found_error"),
    "anthropic/err_429": (ModelRateLimited, True, "429 rate_limit_error, without a time to wait"),
    "anthropic/err_500": (ModelServerError, True, "500 api_error"),
    "anthropic/err_529": (ModelOverloaded, True, "529 overloaded_error"),
    "anthropic/refusal": (ContentRefused, False, "200, and the stop reason is refusal"),
    "google/err_400_invalid": (ModelRequestInvalid, False, "400 INVALID_ARGUMENT, without a reason"),
    "google/err_404_model": (ModelNotFound, False, "404 NOT_FOUND"),
    "google/err_429": (ModelRateLimited, True, "429 RESOURCE_EXHAUSTED, without details"),
    "google/err_500": (ModelServerError, True, "500 INTERNAL"),
    "google/err_503_overloaded": (ModelOverloaded, True, "503 UNAVAILABLE"),
    "google/err_auth_is_400": (ModelAuthenticationFailed, False, "400, with the reason API_KEY_INVALID"),
    "google/safety": (ContentRefused, False, "200, and the finish reason is SAFETY"),
    "google/stream_prompt_blocked": (ContentRefused, False, "200 without candidates, with a block reason"),
    "openai-chat/err_400_invalid": (ModelRequestInvalid, False, "400 invalid_request_error"),
    "openai-chat/err_401": (ModelAuthenticationFailed, False, "401 invalid_api_key"),
    "openai-chat/err_404_model": (ModelNotFound, False, "404 model_not_found"),
    "openai-chat/err_429_too_large": (ModelQuotaExhausted, False, "429 of type tokens: larger than the limit itself"),
    "openai-chat/err_500": (ModelServerError, True, "500 server_error"),
    "openai-chat/refusal": (ContentRefused, False, "200, and the message is a refusal"),
    "openai-responses/background_queued": (ModelServerError, True, "200, and the status is queued: no answer is there"),
    "openai-responses/err_400_invalid": (ModelRequestInvalid, False, "400 decimal_below_min_value"),
    "openai-responses/err_401": (ModelAuthenticationFailed, False, "401 invalid_api_key"),
    "openai-responses/err_model_is_400": (ModelNotFound, False, "400, with the code model_not_found"),
    "openai-responses/stream_error_insufficient_quota": (ModelQuotaExhausted, False, "200, then insufficient_quota"),
}
#: The vendors' reasons to stop. Gemini, and OpenAI's Responses, have none of their own for a call of a tool.
STOPS: Final[Mapping[str, StopReason]] = {
    "end_turn": StopReason.STOP,
    "max_tokens": StopReason.LENGTH,
    "tool_use": StopReason.TOOL_CALL,
    "stop": StopReason.STOP,
    "length": StopReason.LENGTH,
    "tool_calls": StopReason.TOOL_CALL,
    "function_call": StopReason.TOOL_CALL,
    "completed": StopReason.STOP,
    "STOP": StopReason.STOP,
    "MAX_TOKENS": StopReason.LENGTH,
}

ALL: Final = cases()
ANSWERED: Final = [case for case in ALL if case.id not in ERRORS]
FAILED: Final = [case for case in ALL if case.id in ERRORS]


def ids(case: Case) -> str:
    return case.id


def test_every_file_is_tested() -> None:
    found = {f"{path.parent.name}/{path.stem}" for path in WIRE.glob("*/*.json")}
    assert {case.id for case in ANSWERED} | {case.id for case in FAILED} == found
    assert ERRORS.keys() <= found
    assert len(ANSWERED) + len(FAILED) == len(found) >= 81
    assert {case.id for case in ALL if "error_class" in case.expect} <= ERRORS.keys()


@pytest.mark.parametrize("case", ANSWERED, ids=ids)
async def test_an_answer_is_what_was_recorded(case: Case) -> None:
    prompt = prompt_in(case.provider, case.request["body"])
    told: list[str] = []
    async with ReplayServer() as server, open_models(server.url) as models:
        server.play(case)
        reply = await models.ask(name_of(case), prompt, told.append if case.streams else None)

    assert reply.output == case.expect["text"]
    assert "".join(told) == (reply.output if case.streams else "")
    assert_calls(reply, case)
    assert reply.generation is not None
    assert reply.generation.provider == APIS[case.provider].provider
    assert reply.generation.model == vendors_model(case)
    assert reply.generation.stop_reason is stop_of(case)
    assert reply.generation.request_id == answer_id(case)
    assert (reply.generation.first_token_ms is not None) == case.streams
    assert tokens(reply.usage) == tokens(usage_of(case))
    # No price is made up for what nobody counted.
    assert (reply.usage.cost_usd is None) == (not case.expect["usage"])
    assert_asked(case, prompt, server)


@pytest.mark.parametrize("case", FAILED, ids=ids)
async def test_what_is_no_answer_is_an_error_of_ours(case: Case) -> None:
    kind, retryable, _ = ERRORS[case.id]
    prompt = prompt_in(case.provider, case.request["body"])
    told: list[str] = []
    async with ReplayServer() as server, open_models(server.url) as models:
        server.play(case)
        with pytest.raises(ModelFailed) as caught:
            await models.ask(name_of(case), prompt, told.append if case.streams else None)

    error = caught.value
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.retry_after == case.expect.get("retry_after")
    assert error.data["provider"] == APIS[case.provider].provider
    assert error.data["model"] == model_of(case)
    # Inside a stream, and of an answer that is none, the status says nothing.
    assert error.data.get("status") == case.expect.get("status")
    assert told == []
    assert_keeps_to_itself(error, case)
    assert_asked(case, prompt, server)


@pytest.mark.parametrize(
    "id_",
    [
        "anthropic/text",
        "anthropic/stream_text",
        "anthropic/structured",
        "anthropic/thinking",
        "google/text",
        "google/stream_text",
        "google/structured",
        "google/stream_code_exec",
        "openai-chat/text",
        "openai-chat/stream_text",
        "openai-chat/structured",
        "openai-chat/length",
        "openai-responses/text",
        "openai-responses/stream_text",
        "openai-responses/structured",
        "openai-responses/reasoning",
    ],
)
async def test_a_whole_orchestra_answers_what_was_recorded(id_: str, tmp_path: Path) -> None:
    case = read_case(id_)
    prompt = prompt_in(case.provider, case.request["body"])
    settings: dict[str, Json] = {"model": name_of(case), "instructions": prompt.instructions}
    if prompt.output_schema is not None:
        settings["output_schema"] = prompt.output_schema
    events: list[StreamEvent] = []
    async with ReplayServer() as server, orchestra_at(server, tmp_path) as orchestra:
        await orchestra.register_agent(Agent(id="recorded", kind="prompt", settings=settings))
        server.play(case)
        answer = await orchestra.process_request(
            prompt.turns[0].content, agent_id="recorded", emit=events.append if case.streams else None
        )
        kept = await orchestra.get_request(answer.request_id)

    told = "".join(str(event.data["text"]) for event in events if event.type is StreamEventType.DELTA)
    assert told == (answer.output if case.streams else "")
    if prompt.output_schema is None:
        assert answer.output == case.expect["text"]
        assert answer.value is None
    else:
        assert answer.value == json.loads(case.expect["text"])
        assert json.loads(answer.output) == answer.value
    assert tokens(answer.usage) == tokens(usage_of(case))
    assert answer.instance == name_of(case)
    assert [(attempt.instance_id, attempt.error) for attempt in answer.attempts] == [(name_of(case), None)]
    generation = answer.reply.generation
    assert generation is not None
    assert (generation.model, generation.stop_reason) == (vendors_model(case), stop_of(case))
    assert kept.end == answer
    assert_asked(case, dataclasses.replace(prompt, tools=(), temperature=None, max_tokens=None), server)


@pytest.mark.parametrize("id_", ["anthropic/err_529", "google/err_auth_is_400", "openai-chat/refusal"])
async def test_a_whole_orchestra_records_what_was_no_answer(id_: str, tmp_path: Path) -> None:
    case = read_case(id_)
    kind, _, _ = ERRORS[id_]
    async with ReplayServer() as server, orchestra_at(server, tmp_path) as orchestra:
        once = Recovery(attempts=1)
        agent = Agent(id="recorded", kind="prompt", settings={"model": name_of(case)}, recovery=once)
        await orchestra.register_agent(agent)
        server.play(case)
        with pytest.raises(ModelFailed) as caught:
            await orchestra.process_request("hi", agent_id="recorded", idempotency_key="once")
        with pytest.raises(ModelFailed) as again:
            await orchestra.process_request("hi", agent_id="recorded", idempotency_key="once")

    assert type(caught.value) is type(again.value) is kind
    assert again.value.detail == caught.value.detail
    assert again.value.data == caught.value.data
    assert_keeps_to_itself(caught.value, case)
    assert len(server.requests) == 1


@pytest.mark.parametrize("provider", APIS)
async def test_a_whole_orchestra_uses_a_tool_as_it_was_recorded(provider: str, tmp_path: Path) -> None:
    asks, answers = read_case(f"{provider}/tool_call"), read_case(f"{provider}/tool_result")
    recorded = prompt_in(provider, answers.request["body"])
    [call] = [turn for turn in recorded.turns if isinstance(turn, Said)]
    [result] = [turn for turn in recorded.turns if isinstance(turn, ToolResult)]
    specs = prompt_in(provider, asks.request["body"]).tools
    tools: list[Json] = [
        {
            "function": f"{__name__}:recorded_tool",
            "name": tool.name,
            "description": tool.description or "none",
            "parameters": tool.parameters,
        }
        for tool in specs
    ]
    settings: dict[str, Json] = {"model": name_of(asks), "tools": tools}
    token = RESULTS.set({json.dumps(dict(call.tool_calls[0].arguments)): result.content})
    try:
        async with ReplayServer() as server, orchestra_at(server, tmp_path) as orchestra:
            await orchestra.register_agent(Agent(id="recorded", kind="prompt", settings=settings))
            server.play(asks)
            server.play(answers)
            answer = await orchestra.process_request(recorded.turns[0].content, agent_id="recorded")
    finally:
        RESULTS.reset(token)

    assert answer.output == "\n\n".join(filter(None, (asks.expect["text"], answers.expect["text"])))
    first, second = usage_of(asks), usage_of(answers)
    assert tokens(answer.usage) == tuple(map(sum, zip(tokens(first), tokens(second), strict=True)))
    assert answer.reply.generation is not None
    assert answer.reply.generation.stop_reason is StopReason.STOP
    assert len(server.requests) == 2
    sent = prompt_in(provider, server.requests[1].body)
    assert sent.turns == recorded.turns
    assert [tool.name for tool in sent.tools] == [tool.name for tool in specs]


#: What the tool of a recording gave back, by its arguments as JSON.
RESULTS: ContextVar[Mapping[str, str]] = ContextVar("results")


def recorded_tool(**arguments: object) -> str:
    return RESULTS.get()[json.dumps(arguments)]


@asynccontextmanager
async def orchestra_at(server: ReplayServer, folder: Path) -> AsyncGenerator[Orchestra]:
    """An orchestra whose vendors are this server; no settings file is read."""
    nothing = folder / "nothing.yaml"
    nothing.touch()
    providers = {
        api.provider: {"api_key": KEY, "base_url": server.url + api.base, "timeout": 10} for api in APIS.values()
    }
    settings = load_settings(
        nothing,
        database={"url": f"sqlite:///{folder / 'orchestra.db'}"},
        providers=providers,
        functions={"allowed_modules": [__name__]},
    )
    async with open_from_settings(settings) as orchestra:
        yield orchestra


def assert_calls(reply: Reply, case: Case) -> None:
    expected = case.expect["tool_calls"]
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [(c["name"], c["arguments"]) for c in expected]
    for call, given in zip(reply.tool_calls, expected, strict=True):
        assert call.id == given["id"] if given["id"] else call.id
    # By its id a result finds its call, also where the vendor gives none. The old form has one call at most.
    assert len({call.id for call in reply.tool_calls}) == len(expected)


def stop_of(case: Case) -> StopReason:
    stop = STOPS[case.expect["stop"]]
    return StopReason.TOOL_CALL if case.expect["tool_calls"] and stop is StopReason.STOP else stop


def usage_of(case: Case) -> Usage:
    """What the vendor counted, counted our way."""
    counted: Mapping[str, int] = case.expect["usage"]
    read, written = counted.get("cache_read", 0), counted.get("cache_write", 0)
    reasoning = counted.get("reasoning", 0)
    given, made = counted.get("input", 0), counted.get("output", 0)
    if case.provider == "anthropic":
        # What is read from the cache, or written to it, comes beside the rest.
        given += read + written
    if case.provider == "google":
        # Thoughts are generated too; what tools of the vendor's own put into the prompt is in the total alone.
        made += reasoning
        given = counted["total"] - made
    return Usage(
        input_tokens=given,
        output_tokens=made,
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
    )


def tokens(usage: Usage) -> tuple[int, ...]:
    return (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
    )


def heads(case: Case) -> Iterator[Mapping[str, Any]]:
    """What of an answer tells who gave it: the whole one, or each event of a stream."""
    if "sse" not in case.response:
        body = case.response["body"]
        yield from body if isinstance(body, list) else [body]
        return
    for line in case.response["sse"].splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            # Anthropic and Responses wrap what others say in every event.
            yield event.get("message") or event.get("response") or event


def vendors_model(case: Case) -> str:
    """The model that answered, by the vendor's word."""
    return next(
        (str(found) for head in heads(case) if (found := head.get("model") or head.get("modelVersion"))),
        model_of(case),
    )


def answer_id(case: Case) -> str | None:
    """What the vendor calls its answer; the headers that name a request were not recorded."""
    return next((str(found) for head in heads(case) if (found := head.get("id") or head.get("responseId"))), None)


def assert_asked(case: Case, prompt: Prompt, server: ReplayServer) -> None:
    """One request was made, as the recorded one was, and the key went where it belongs."""
    assert server.unused == 0
    [request] = server.requests
    recorded, sent = urlsplit(case.path), urlsplit(request.path)
    assert request.method == case.request["method"] == "POST"
    assert sent.path == recorded.path
    # Gemini gives an array of events to who does not ask for events. The others say it in the body.
    assert sent.query == ("alt=sse" if ":streamGenerateContent" in sent.path else "")
    if case.provider != "google":
        assert request.body["model"] == model_of(case)
        assert bool(request.body.get("stream")) == case.streams
    assert_key(case, request)
    assert sense(prompt_in(case.provider, request.body)) == sense(
        # Anthropic wants to be told how much, always.
        prompt if prompt.max_tokens else dataclasses.replace(prompt, max_tokens=most_of(case.provider, request.body))
    )
    if prompt.turns == prompt_in(case.provider, case.request["body"]).turns:
        assert texts(case.request["body"]) <= texts(request.body)


def most_of(provider: str, body: Mapping[str, Any]) -> int | None:
    return int(body["max_tokens"]) if provider == "anthropic" else None


def assert_key(case: Case, request: Request) -> None:
    carrying = {name: value for name, value in request.headers.items() if KEY in value}
    assert len(carrying) == 1
    assert carrying.items() <= APIS[case.provider].keys.items()
    assert KEY not in f"{request.path} {request.body}"


def assert_keeps_to_itself(error: ModelFailed, case: Case) -> None:
    """The key is not in what an error tells, and the vendor's sentence only where a request is wrong."""
    told = f"{error} {error!r} {error.detail} {dict(error.data)}"
    assert KEY not in told
    if isinstance(error, ModelRequestInvalid):
        return
    for head in heads(case):
        problem: dict[str, Any] = head.get("error") or {}
        # One word is no sentence: it may be a code as well.
        assert " " not in (sentence := str(problem.get("message", ""))) or sentence not in told


def sense(prompt: Prompt) -> Prompt:
    """A prompt as far as its sense goes: what pydantic-ai rewrites without changing it is left out."""
    return dataclasses.replace(
        prompt,
        turns=tuple(map(repr, prompt.turns)),
        instructions=prompt.instructions.strip(),
        tools=[dataclasses.replace(tool, parameters=plain(tool.parameters)) for tool in prompt.tools],
        output_schema=described_beside(plain(prompt.output_schema)),
    )


def described_beside(schema: Any) -> Any:
    """OpenAI takes the description of a schema beside the schema."""
    return schema and {key: value for key, value in schema.items() if key != "description"}


def plain(schema: Any) -> Any:
    """A schema without its titles. OpenAI's strict form adds that there is nothing else in an object."""
    if not isinstance(schema, dict):
        return schema
    given = cast("dict[str, Any]", schema)
    kept = {key: value for key, value in given.items() if key not in ("title", "additionalProperties", "properties")}
    plainer = {key: plain(value) for key, value in kept.items()}
    if "properties" in given:
        plainer["properties"] = {name: plain(inner) for name, inner in given["properties"].items()}
    return plainer


def texts(body: Any) -> set[str]:
    """All that is said in a request, wherever it stands."""
    if isinstance(body, list):
        return {text for one in cast("list[Any]", body) for text in texts(one)}
    if not isinstance(body, dict):
        return set()
    given = cast("dict[str, Any]", body)
    said = {
        value.strip()
        for name in ("text", "content", "output", "input", "instructions", "return_value")
        if isinstance(value := given.get(name), str) and value.strip()
    }
    return said | {text for value in given.values() for text in texts(value)}
