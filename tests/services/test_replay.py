"""The replay server sends what was recorded, as the vendors' own SDKs read it, and fails in the ways it promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import anthropic
import httpx
import httpx2
import openai
import pytest
from anthropic.types import MessageParam
from google import genai
from google.genai import errors as google_errors
from google.genai import types as google_types
from openai.types.chat import ChatCompletionUserMessageParam

from tests.services.replay import (
    Answer,
    Broken,
    Case,
    Ended,
    Fault,
    Late,
    ReplayServer,
    Stalled,
    cases,
    read_case,
    require_wire,
)
from tests.services.waiting import wait_until

#: Puts a question as the case put it, streaming or not, and tells the text of the answer.
Ask = Callable[[Case], Awaitable[str]]

_QUESTION: Final = "What is four plus five?"
_POST: Final = b"POST /v1/messages?beta=true HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: a b\r\nContent-Length: 8\r\n\r\n"
_STREAM: Final = "anthropic/stream_text"


@pytest.fixture
async def server() -> AsyncGenerator[ReplayServer]:
    async with ReplayServer() as opened:
        yield opened


@pytest.fixture
async def client(server: ReplayServer) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=10) as opened:
        yield opened


@asynccontextmanager
async def anthropic_messages(url: str) -> AsyncGenerator[Ask]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="test", max_retries=0) as sdk:

        async def ask(case: Case) -> str:
            question: MessageParam = {"role": "user", "content": _QUESTION}
            if not case.streams:
                message = await sdk.messages.create(model=case.id, max_tokens=10, messages=[question])
                return "".join(block.text for block in message.content if block.type == "text")
            text = ""
            async with sdk.messages.stream(model=case.id, max_tokens=10, messages=[question]) as stream:
                async for piece in stream.text_stream:
                    text += piece
            return text

        yield ask


@asynccontextmanager
async def openai_chat(url: str) -> AsyncGenerator[Ask]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="test", max_retries=0) as sdk:

        async def ask(case: Case) -> str:
            question: ChatCompletionUserMessageParam = {"role": "user", "content": _QUESTION}
            if not case.streams:
                completion = await sdk.chat.completions.create(model=case.id, messages=[question])
                return completion.choices[0].message.content or ""
            text = ""
            async for chunk in await sdk.chat.completions.create(model=case.id, messages=[question], stream=True):
                # The last chunk may be about usage alone.
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
            return text

        yield ask


@asynccontextmanager
async def openai_responses(url: str) -> AsyncGenerator[Ask]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="test", max_retries=0) as sdk:

        async def ask(case: Case) -> str:
            if not case.streams:
                return (await sdk.responses.create(model=case.id, input=_QUESTION)).output_text
            text = ""
            async for event in await sdk.responses.create(model=case.id, input=_QUESTION, stream=True):
                if event.type == "response.output_text.delta":
                    text += event.delta
            return text

        yield ask


@asynccontextmanager
async def google(url: str) -> AsyncGenerator[Ask]:
    async with httpx2.AsyncClient() as http:
        # A client is given, because the SDK's own is another library's wherever that happens to be installed (aiohttp).
        once = google_types.HttpRetryOptions(attempts=1)
        options = google_types.HttpOptions(
            base_url=url, api_version="v1beta", retry_options=once, httpx_async_client=http
        )
        with genai.Client(api_key="test", http_options=options) as sdk:
            # The types of its arguments are known only where a library for images is installed.
            models = cast("Any", sdk.aio.models)

            async def ask(case: Case) -> str:
                model = case.path.rpartition("/")[2].partition(":")[0]
                if not case.streams:
                    return _google_text(await models.generate_content(model=model, contents=_QUESTION))
                text = ""
                async for chunk in await models.generate_content_stream(model=model, contents=_QUESTION):
                    text += _google_text(chunk)
                return text

            yield ask


def _google_text(response: google_types.GenerateContentResponse) -> str:
    # `response.text` complains of parts that are not text.
    return "".join(part.text or "" for part in response.parts or () if not part.thought)


@pytest.mark.parametrize(
    ("provider", "opened"),
    [
        ("anthropic", anthropic_messages),
        ("openai-chat", openai_chat),
        ("openai-responses", openai_responses),
        ("google", google),
    ],
)
async def test_the_sdks_of_the_vendors_read_what_was_recorded(
    server: ReplayServer, provider: str, opened: Callable[[str], AbstractAsyncContextManager[Ask]]
) -> None:
    # The SDK of Google always asks for events, never for an array.
    played = [case for case in cases(provider) if case.class_ != "stream_array"]
    assert played
    async with opened(server.url) as ask:
        for case in played:
            server.play(case)
            assert await _told(ask, case) == _expected(case), case.id

    assert [request.method for request in server.requests] == ["POST"] * len(played)
    assert all(_QUESTION in str(request.body) for request in server.requests)
    assert [request.path for request in server.requests] == [case.path.removesuffix("?beta=true") for case in played]


async def _told(ask: Ask, case: Case) -> tuple[object, ...]:
    try:
        return ("text", await ask(case))
    except (anthropic.APIStatusError, openai.APIStatusError) as error:
        return (type(error).__name__, error.status_code)
    except openai.APIError as error:
        return (type(error).__name__, error.code)
    except google_errors.APIError as error:
        return (type(error).__name__, error.code, error.status)


def _expected(case: Case) -> tuple[object, ...]:
    names = ("error_class", "status", "code", "google_status") if "error_class" in case.expect else ("text",)
    told = tuple(case.expect[name] for name in names if name in case.expect)
    return told if "error_class" in case.expect else ("text", *told)


async def test_an_answer_is_sent_to_the_byte_and_the_connection_is_kept(server: ReplayServer) -> None:
    server.answer(429, {"error": "zu früh"}, {"retry-after": "3"})
    server.answer(529, b"<html>", {"content-type": "text/html"})
    reader, writer = await asyncio.open_connection(*_place(server))
    try:
        # In two pieces, as a network may deliver it.
        writer.write(_POST[:20])
        await asyncio.sleep(0.01)
        writer.write(_POST[20:] + b'{"a": 1}')
        first = (
            b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 3\r\n"
            b'content-length: 20\r\n\r\n{"error":"zu fr\xc3\xbch"}'
        )
        assert await reader.readexactly(len(first)) == first

        writer.write(_POST + b"not JSON")
        second = b"HTTP/1.1 529 \r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>"
        assert await reader.readexactly(len(second)) == second
        assert server.connections == 1
    finally:
        writer.close()
    received, other = server.requests
    assert (received.method, received.path) == ("POST", "/v1/messages?beta=true")
    assert received.headers == {"host": "localhost", "x-api-key": "a b", "content-length": "8"}
    assert (received.body, other.body) == ({"a": 1}, "not JSON")
    await wait_until(lambda: server.connections == 0, "the client's leaving is not noticed")


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"data: 1\n\n: c\ndata: [DONE]\n\n", b"9\r\ndata: 1\n\n\r\n12\r\n: c\ndata: [DONE]\n\n\r\n0\r\n\r\n"),
        (b"data: 1\r\n\r\ndata: 2", b"b\r\ndata: 1\r\n\r\n\r\n7\r\ndata: 2\r\n0\r\n\r\n"),
    ],
)
async def test_a_stream_is_sent_event_by_event(server: ReplayServer, content: bytes, sent: bytes) -> None:
    server.answer(200, content, {"content-type": "text/event-stream"})
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    reader, writer = await asyncio.open_connection(*_place(server))
    try:
        writer.write(_POST.replace(b"X-Api-Key: a b", b"Connection: close") + b'{"a": 1}')
        assert await reader.read() == head + sent
    finally:
        writer.close()


async def test_recorded_answers_have_their_status_their_headers_and_every_byte(
    server: ReplayServer, client: httpx.AsyncClient
) -> None:
    for case in cases():
        server.play(case)
        response = await client.post(case.path, json=case.request["body"])
        assert response.status_code == case.response["status"], case.id
        headers = {**case.response["headers"], **_framing(response)}
        assert response.headers == httpx.Headers(headers), case.id
        if "sse" in case.response:
            assert response.content == case.response["sse"].encode(), case.id
        else:
            assert response.json() == case.response["body"], case.id
    assert server.requests[0].body == cases()[0].request["body"]
    assert [request.path for request in server.requests] == [case.path for case in cases()]


async def test_the_first_event_arrives_before_the_others_are_sent(server: ReplayServer) -> None:
    case = read_case(_STREAM)
    server.play(case, Stalled(after=1))
    got = b""
    async with httpx.AsyncClient(base_url=server.url) as client, client.stream("POST", "/") as response:
        async for piece in response.aiter_raw():
            got += piece
            if got == case.events[0]:
                break
    # Whoever leaves in the middle of an answer is noticed too.
    await wait_until(lambda: server.connections == 0, "the client's leaving is not noticed")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Broken(), httpx.RemoteProtocolError),
        (Broken(after=2), httpx.RemoteProtocolError),
        (Broken(after=7), httpx.RemoteProtocolError),
        (Broken(after=2, inside=True), httpx.RemoteProtocolError),
        (Broken(after=2, reset=True), httpx.ReadError),
        (Stalled(after=2), httpx.ReadTimeout),
        (Stalled(after=2, seconds=0.01), None),
        (Stalled(after=7, seconds=0.01), None),
        (Late(seconds=0.01), None),
        (Ended(after=2), None),
        (Ended(), None),
    ],
    ids=str,
)
async def test_a_stream_fails_where_it_is_told_to(
    server: ReplayServer, fault: Fault, error: type[Exception] | None
) -> None:
    case = read_case(_STREAM)
    assert len(case.events) == 7
    server.play(case, fault)
    got, ended = await _stream(server, 0.2 if error is httpx.ReadTimeout else 10)
    assert ended is error

    match fault:
        case Broken(after=after, inside=True):
            assert len(b"".join(case.events[:after])) < len(got) < len(b"".join(case.events[: after + 1]))
            assert case.content.startswith(got)
        case Broken(reset=True):
            assert case.content.startswith(got)
        case Broken(after=after) | Ended(after=after) | Stalled(after=after, seconds=None):
            assert got == b"".join(case.events[:after])
        case _:
            assert got == case.content


async def _stream(server: ReplayServer, seconds: float) -> tuple[bytes, type[Exception] | None]:
    """The bytes that came, and what the stream ended with."""
    got = b""
    async with httpx.AsyncClient(base_url=server.url, timeout=httpx.Timeout(10, read=seconds)) as client:
        try:
            async with client.stream("POST", "/") as response:
                async for piece in response.aiter_raw():
                    got += piece
        except httpx.TransportError as error:
            return got, type(error)
    return got, None


async def test_the_body_of_an_answer_that_is_no_stream_can_break_too(
    server: ReplayServer, client: httpx.AsyncClient
) -> None:
    server.play(read_case("anthropic/text"), Broken(inside=True))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        await client.post("/")
    server.answer(200, {"a": 1}, fault=Ended())
    assert (await client.post("/")).content == b""


async def test_a_request_may_get_no_answer_at_all(server: ReplayServer, client: httpx.AsyncClient) -> None:
    server.silence()
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/silent", timeout=httpx.Timeout(10, read=0.1))
    await wait_until(lambda: server.connections == 0, "the client's leaving is not noticed")
    server.hang_up()
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await client.post("/hung-up")
    assert [request.path for request in server.requests] == ["/silent", "/hung-up"]


def test_a_fault_beyond_the_answer_is_a_mistake() -> None:
    events = (b"data: 1\n\n", b"data: 2\n\n")
    mistakes: tuple[Fault, ...] = (Broken(after=3), Broken(after=2, inside=True), Ended(after=3), Stalled(after=-1))
    for fault in mistakes:
        with pytest.raises(ValueError, match="is beyond an answer of 2 events"):
            Answer(status=200, headers={}, pieces=events, chunked=True, fault=fault)


async def test_a_request_that_no_test_foresaw_is_told_so(server: ReplayServer, client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models")
    assert response.status_code == 599
    assert response.json() == {"error": {"type": "unforeseen", "message": "no answer is left for GET /v1/models"}}
    assert server.requests[0].body is None


async def test_the_answer_for_every_request_comes_after_the_others(
    server: ReplayServer, client: httpx.AsyncClient
) -> None:
    server.always(read_case("anthropic/err_529"))
    server.answer(200, {"a": 1})
    assert server.unused == 1
    assert [(await client.post("/")).status_code for _ in range(3)] == [200, 529, 529]
    server.always(Answer.made(503))
    assert (await client.post("/")).status_code == 503
    assert server.unused == 0


async def test_a_request_that_the_server_cannot_read_is_told_at_the_end() -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        yield b"{}"

    async def ask() -> None:
        async with ReplayServer() as server, httpx.AsyncClient(base_url=server.url) as client:
            with pytest.raises(httpx.TransportError):
                await client.post("/", content=chunks())

    with pytest.raises(AssertionError, match="POST / comes in chunks"):
        await ask()


def test_without_recorded_exchanges_tests_are_skipped_and_fail_in_ci(tmp_path: Path) -> None:
    require_wire(tmp_path, {})
    for environment in ({}, {"CI": "false"}):
        with pytest.raises(pytest.skip.Exception, match="there are no recorded exchanges in"):
            require_wire(tmp_path / "wire", environment)
    with pytest.raises(pytest.fail.Exception, match="there are no recorded exchanges in"):
        require_wire(tmp_path / "wire", {"CI": "true"})


def test_recorded_exchanges_are_told_apart() -> None:
    ids = [case.id for case in cases()]
    assert ids == sorted(set(ids))
    assert {case.provider for case in cases()} == {"anthropic", "google", "openai-chat", "openai-responses"}
    assert read_case("google/text") in cases("google")


def _place(server: ReplayServer) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)


def _framing(response: httpx.Response) -> Mapping[str, Any]:
    names = ("content-length", "transfer-encoding")
    return {name: response.headers[name] for name in names if name in response.headers}
