"""What vendors, and the network before them, do that looks like an answer and is none."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import socket
import traceback
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from agent_orchestra import Agent
from agent_orchestra.adapters.models.kind import VendorModels
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.bootstrap import open_from_settings
from agent_orchestra.core.prompt import Prompt, Wrote
from agent_orchestra.core.request import Reply, StopReason, reply_json
from agent_orchestra.core.values import faults_in
from agent_orchestra.errors import (
    ContentRefused,
    ContextTooLong,
    ModelAuthenticationFailed,
    ModelFailed,
    ModelNotFound,
    ModelOverloaded,
    ModelPermissionDenied,
    ModelQuotaExhausted,
    ModelRateLimited,
    ModelRequestInvalid,
    ModelServerError,
    ModelTimeout,
    ModelUnreachable,
    StreamBroken,
)
from agent_orchestra.settings import load_settings
from tests.adapters.models.recorded import APIS, KEY, configs, name_of, open_models, prompt_in
from tests.services.replay import Answer, Broken, Case, Ended, Fault, HungUp, Late, ReplayServer, Stalled, cases
from tests.services.replay import read_case as recorded
from tests.services.waiting import wait_until

#: The first test of a process imports the SDKs of the vendors, which takes seconds.
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("model_requests")]

#: How long a vendor may be silent, where a test waits for it to be.
TIMEOUT: Final = 0.6
EVENTS: Final = {"content-type": "text/event-stream"}
HTML: Final = {"content-type": "text/html; charset=utf-8"}
JSON: Final = {"content-type": "application/json"}
HI: Final = Prompt(turns=[Wrote(content="hi")])

#: What tells that a stream has come to its end, and why: after it nothing of the answer is missing.
LAST_WORD: Final[Mapping[str, bytes]] = {
    "anthropic": b'"stop_reason":"',
    "google": b'"finishReason"',
    "openai-chat": b'"finish_reason":"',
    "openai-responses": b'"type":"response.completed"',
}
#: The long ones take seconds when they are broken off after each of their events.
STREAMS: Final = [
    pytest.param(case, id=case.id, marks=[pytest.mark.slow] if len(case.events) > 12 else [])
    for case in cases()
    if case.events and case.expect.get("stop")
]


@pytest.fixture
async def server() -> AsyncGenerator[ReplayServer]:
    async with ReplayServer() as opened:
        yield opened


@pytest.fixture
async def models(server: ReplayServer) -> AsyncGenerator[VendorModels]:
    # No call waits for what an earlier one was refused for.
    async with open_models(server.url, max_wait=0.0) as opened:
        yield opened


@pytest.fixture
async def hasty(server: ReplayServer, models: VendorModels) -> AsyncGenerator[VendorModels]:
    """Models that are given up soon. The SDKs are awake already: what they do once takes longer than that."""
    for api in APIS:
        case = recorded(f"{api}/stream_text")
        server.play(case)
        assert isinstance(await ended(models, case, Told()), Reply)
    server.requests.clear()
    async with open_models(server.url, timeout=TIMEOUT) as opened:
        yield opened


class Told(list[str]):
    """What was told of an answer, piece by piece."""

    @property
    def text(self) -> str:
        return "".join(self)


async def ended(models: VendorModels, case: Case, told: Told | None = None) -> Reply | ModelFailed:
    """The end of one call: an answer, or the error that stands for it. Anything else is raised."""
    prompt = prompt_in(case.provider, case.request["body"])
    try:
        return await models.ask(name_of(case), prompt, None if told is None else told.append)
    except ModelFailed as error:
        return error


def asked(api: str) -> str:
    """A model to be asked by this API."""
    return name_of(recorded(f"{api}/stream_text"))


def events(*data: object, names: Sequence[str] = ()) -> bytes:
    """Server-sent events, one for each; bytes are sent as they are."""
    told = b""
    for number, one in enumerate(data):
        if number < len(names):
            told += b"event: " + names[number].encode() + b"\n"
        told += b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n"
    return told


def whole_after(case: Case) -> int:
    """How many events of a stream make up its answer."""
    return next(number for number, event in enumerate(case.events, 1) if LAST_WORD[case.provider] in event)


# --- streams that come to an end before their answer does


@pytest.mark.parametrize("case", STREAMS)
async def test_a_stream_that_ends_early_in_good_order_is_no_answer(
    case: Case, server: ReplayServer, models: VendorModels
) -> None:
    whole = whole_after(case)
    for after in range(len(case.events) + 1):
        server.play(case, Ended(after=after))
        told = Told()
        end = await ended(models, case, told)
        if after >= whole and isinstance(end, Reply):
            assert end.output == told.text == case.expect["text"]
            assert [call.name for call in end.tool_calls] == [call["name"] for call in case.expect["tool_calls"]]
            continue
        assert type(end) is (StreamBroken if after else ModelServerError), f"after {after} of {whole} events"
        assert case.expect["text"].startswith(told.text)
    assert len(server.requests) == len(case.events) + 1


@pytest.mark.parametrize("case", STREAMS)
async def test_a_connection_that_breaks_in_the_middle_breaks_the_answer(
    case: Case, server: ReplayServer, models: VendorModels
) -> None:
    whole = whole_after(case)
    places = sorted({min(1, whole - 1), whole // 2, whole - 1})
    for after, inside, reset in itertools.product(places, (False, True), (False, True)):
        fault = Broken(after=after, inside=inside, reset=reset)
        server.play(case, fault)
        told = Told()
        end = await ended(models, case, told)
        # A reset may cost what has come already, as if the answer had never begun.
        lost = not after or (reset and not told)
        assert type(end) in ((StreamBroken, ModelUnreachable) if lost else (StreamBroken,)), f"{fault} of {whole}"
        assert case.expect["text"].startswith(told.text)
    assert len(server.requests) == 4 * len(places)


@pytest.mark.parametrize("api", APIS)
async def test_an_event_that_is_cut_off_is_no_event(api: str, server: ReplayServer, models: VendorModels) -> None:
    case = recorded(f"{api}/stream_text")
    whole = whole_after(case)
    for number in range(whole):
        event = case.events[number]
        # In the middle, and before its very last characters.
        for cut in (len(event) // 2, len(event.rstrip()) - 1):
            body = b"".join(case.events[:number]) + event[:cut]
            server.answer(200, body, EVENTS)
            told = Told()
            end = await ended(models, case, told)
            assert type(end) in (StreamBroken, ModelServerError), f"event {number}, {cut} bytes"
            assert case.expect["text"].startswith(told.text)
    assert len(server.requests) == 2 * whole


@pytest.mark.slow
async def test_a_vendor_that_stops_is_given_up(server: ReplayServer, hasty: VendorModels) -> None:
    async def silent(api: str, name: str, fault: Fault, kind: type[ModelFailed]) -> None:
        # Each at a place of its own, so that all can be silent at once.
        case = recorded(f"{api}/{name}")
        async with ReplayServer() as alone, open_models(alone.url, timeout=TIMEOUT) as models:
            alone.play(case, fault)
            told = Told()
            end = await ended(models, case, told if case.streams else None)
            assert isinstance(end, ModelFailed), f"{api} {fault}"
            assert type(end) is kind, f"{api} {fault}"
            assert end.retryable
            assert case.expect["text"].startswith(told.text)
            assert told.text != case.expect["text"]
            assert len(alone.requests) == 1

    faults: Sequence[tuple[str, Fault, type[ModelFailed]]] = (
        ("stream_text", Late(), ModelTimeout),
        ("stream_text", Stalled(after=0), ModelTimeout),
        ("stream_text", Stalled(after=2), StreamBroken),
        ("text", Late(), ModelTimeout),
        ("text", Stalled(after=0), ModelTimeout),
    )
    for api in APIS:
        async with asyncio.TaskGroup() as group:
            for name, fault, kind in faults:
                group.create_task(silent(api, name, fault, kind))


@pytest.mark.slow
async def test_a_vendor_that_is_slow_and_not_silent_is_waited_for(server: ReplayServer, hasty: VendorModels) -> None:
    for api in APIS:
        # Together they take longer than a vendor may be silent.
        case = recorded(f"{api}/stream_text")
        server.answer(200, b"".join(case.events), EVENTS, Late(seconds=0.6 * TIMEOUT))
        server.play(case, Stalled(after=2, seconds=0.6 * TIMEOUT))
        for _ in range(2):
            end = await ended(hasty, case, Told())
            assert isinstance(end, Reply), api
            assert end.output == case.expect["text"]


@pytest.mark.parametrize("api", APIS)
async def test_a_connection_that_ends_before_an_answer_is_told_from_an_empty_answer(
    api: str, server: ReplayServer, models: VendorModels
) -> None:
    faults: Sequence[tuple[Fault, type[ModelFailed]]] = (
        (HungUp(), ModelUnreachable),
        (Broken(), ModelUnreachable),
        # For JSON: a length that promises more than comes.
        (Broken(inside=True), ModelUnreachable),
        (Broken(reset=True), ModelUnreachable),
        (Ended(), ModelServerError),
    )
    for name in ("text", "stream_text"):
        case = recorded(f"{api}/{name}")
        for fault, kind in faults:
            server.play(case, fault)
            told = Told()
            end = await ended(models, case, told if case.streams else None)
            assert isinstance(end, ModelFailed), f"{name} {fault}"
            assert type(end) is kind, f"{name} {fault}"
            assert end.retryable
            assert not told
    assert len(server.requests) == 2 * len(faults)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("api", APIS)
async def test_nobody_is_there(api: str, streamed: bool) -> None:
    with socket.socket() as taken:
        # Bound, and not listened to: nothing else can come there meanwhile.
        taken.bind(("127.0.0.1", 0))
        async with open_models(f"http://127.0.0.1:{taken.getsockname()[1]}") as models:
            with pytest.raises(ModelUnreachable) as caught:
                await models.ask(asked(api), HI, Told().append if streamed else None)
    assert caught.value.retryable


@pytest.mark.parametrize("api", APIS)
async def test_a_call_that_is_given_up_leaves_the_vendor_at_once(
    api: str, server: ReplayServer, models: VendorModels
) -> None:
    case = recorded(f"{api}/stream_text")
    for fault in (Late(), Stalled(after=whole_after(case) - 1)):
        server.play(case, fault)
        call = asyncio.create_task(ended(models, case, Told()))
        count = len(server.requests)
        await wait_until(lambda count=count: len(server.requests) > count, "no request has come")
        await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await wait_until(lambda: server.connections == 0, "the connection is still open")
    # Nothing of it is left in the way of the next one.
    server.play(case)
    assert isinstance(await ended(models, case, Told()), Reply)


# --- answers that are none


#: Answers by what is wrong with them; who gives them says that all is well, or that it is the one that is broken.
NO_ANSWERS: Final[Mapping[str, Answer]] = {
    "html": Answer.made(200, b"<html>Welcome to our proxy</html>", HTML),
    "html as events": Answer.made(200, b"<html>Welcome to our proxy</html>", EVENTS),
    "html as json": Answer.made(200, b"<html>Welcome to our proxy</html>", JSON),
    "empty": Answer.made(200, b"", JSON),
    "no event": Answer.made(200, b"", EVENTS),
    "without a type": Answer.made(200, b"", {}),
    "null": Answer.made(200, None),
    "empty object": Answer.made(200, {}),
    "empty list": Answer.made(200, []),
    "list": Answer.made(200, [1, "two"]),
    "text": Answer.made(200, "text"),
    "no error": Answer.made(200, {"error": None}),
    "sentence": Answer.made(200, {"error": "sentence"}),
    "no text": Answer.made(200, b"\xff\xfe\x00", JSON),
    "events without json": Answer.made(200, events(b"{", b"nothing"), EVENTS),
    "empty events": Answer.made(200, events({}, [], None, 1), EVENTS),
    "two lengths": Answer.made(200, b"{}", {**JSON, "content-length": "1"}),
    "no gzip": Answer.made(200, b"{}", {**JSON, "content-encoding": "gzip"}),
    "204": Answer.made(204, b"", {}),
    "302": Answer.made(302, b"", {"location": "/elsewhere"}),
    "500": Answer.made(500, b"", {}),
    "502": Answer.made(502, b"<html>Bad Gateway</html>", HTML),
    "599": Answer.made(599, {"error": {"message": "?", "type": "?"}}),
}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("api", APIS)
async def test_what_is_no_answer_is_a_failure_of_the_server(
    api: str, streamed: bool, server: ReplayServer, models: VendorModels
) -> None:
    for count, (name, answer) in enumerate(NO_ANSWERS.items(), 1):
        server.always(answer)
        told = Told()
        with pytest.raises(ModelFailed) as caught:
            await models.ask(asked(api), HI, told.append if streamed else None)
        kinds = (ModelServerError, StreamBroken, ModelUnreachable) if answer.status == 200 else (ModelServerError,)
        assert type(caught.value) in kinds, name
        assert caught.value.retryable
        assert not told.text
        # Nobody follows where a server points, and nobody asks again.
        assert len(server.requests) == count, name


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("api", APIS)
async def test_nesting_without_end_is_no_answer(
    api: str, streamed: bool, server: ReplayServer, models: VendorModels
) -> None:
    deep = b"[" * 100_000
    server.answer(200, deep, EVENTS if streamed else JSON)
    server.answer(200, b"data: " + deep + b"\n\n", EVENTS)
    server.answer(400, deep, JSON)
    # What an SDK cannot read of an error may be lost with it.
    for kinds in [(ModelServerError, StreamBroken)] * 2 + [(ModelRequestInvalid, ModelServerError)]:
        with pytest.raises(ModelFailed) as caught:
            await models.ask(asked(api), HI, Told().append if streamed else None)
        assert type(caught.value) in kinds
    assert len(server.requests) == 3


@pytest.mark.parametrize("api", APIS)
async def test_json_that_is_cut_off_is_no_answer(api: str, server: ReplayServer, models: VendorModels) -> None:
    case = recorded(f"{api}/text")
    for cut in (1, len(case.content) // 2, len(case.content) - 1):
        # With the length that it has, and with the one that it should have.
        server.answer(200, case.content[:cut], JSON)
        assert type(await ended(models, case)) is ModelServerError
        server.answer(200, case.content[:cut] + b" " * cut, JSON, fault=Broken(inside=True))
        assert type(await ended(models, case)) is ModelUnreachable
    assert len(server.requests) == 6


BY_STATUS: Final[Mapping[int, type[ModelFailed]]] = {
    400: ModelRequestInvalid,
    401: ModelAuthenticationFailed,
    402: ModelQuotaExhausted,
    403: ModelPermissionDenied,
    404: ModelNotFound,
    408: ModelTimeout,
    413: ContextTooLong,
    422: ModelRequestInvalid,
    429: ModelRateLimited,
    500: ModelServerError,
    502: ModelServerError,
    503: ModelOverloaded,
    504: ModelTimeout,
    529: ModelOverloaded,
}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("api", APIS)
async def test_where_there_are_no_codes_the_status_decides(
    api: str, streamed: bool, server: ReplayServer, models: VendorModels
) -> None:
    bodies: tuple[object, ...] = (b"<html>nginx</html>", b"", ["?"], {"detail": "no such thing"}, None)
    for status, kind in BY_STATUS.items():
        for body in bodies:
            # The refusals of a rate are of one model each: none stands in the way of the next.
            model = f"{asked(api)}-{len(server.requests)}"
            server.answer(status, body, {"content-type": "text/plain", "retry-after": "7"} if body == b"" else None)
            with pytest.raises(ModelFailed) as caught:
                await models.ask(model, HI, Told().append if streamed else None)
            assert type(caught.value) is kind, f"{status} {body!r}"
            assert caught.value.data["status"] == status
            assert caught.value.retry_after == (7.0 if body == b"" else None)
    assert len(server.requests) == len(bodies) * len(BY_STATUS)


# --- errors of each vendor, where nobody expects them


def gemini(text: str, **others: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, **others}]}


def rpc_error(code: int, status: str, *details: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": "A sentence.", "status": status, "details": list(details)}}


RETRY_IN_7: Final = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
BAD_KEY: Final = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
LIMITED: Final = rpc_error(429, "RESOURCE_EXHAUSTED", RETRY_IN_7)
BUSY: Final = rpc_error(503, "UNAVAILABLE")


@pytest.mark.parametrize(
    ("error", "kind", "delay"),
    [
        (LIMITED, ModelRateLimited, 7.0),
        (BUSY, ModelOverloaded, None),
        (rpc_error(500, "INTERNAL"), ModelServerError, None),
        (rpc_error(400, "INVALID_ARGUMENT", BAD_KEY), ModelAuthenticationFailed, None),
        (rpc_error(404, "NOT_FOUND"), ModelNotFound, None),
    ],
    ids=["429", "503", "500", "400", "404"],
)
async def test_gemini_gives_an_error_in_plain_json_for_a_stream(
    error: Mapping[str, Any], kind: type[ModelFailed], delay: float | None, server: ReplayServer, models: VendorModels
) -> None:
    code = int(error["error"]["code"])
    forms = itertools.product((200, code), (EVENTS, JSON, {}), (error, [error]), (None, 2))
    for number, (status, headers, form, indent) in enumerate(forms, 1):
        server.answer(status, json.dumps(form, indent=indent).encode(), headers)
        told = Told()
        with pytest.raises(ModelFailed) as caught:
            await models.ask(f"google:gemini-{number}", HI, told.append)
        assert type(caught.value) is kind, f"{status} {headers} {form}"
        assert caught.value.retry_after == delay
        assert caught.value.data["status"] == code
        assert not told
        assert len(server.requests) == number


@pytest.mark.parametrize(
    ("error", "kind", "delay"),
    [
        (LIMITED, ModelRateLimited, 7.0),
        (BUSY, ModelOverloaded, None),
        (rpc_error(500, "INTERNAL"), ModelServerError, None),
        (rpc_error(504, "DEADLINE_EXCEEDED"), ModelTimeout, None),
    ],
    ids=["429", "503", "500", "504"],
)
async def test_gemini_gives_an_error_in_the_middle_of_a_stream(
    error: Mapping[str, Any], kind: type[ModelFailed], delay: float | None, server: ReplayServer, models: VendorModels
) -> None:
    bodies = (
        events(gemini("Hel"), error),
        events(gemini("Hel")) + json.dumps(error).encode(),
        events(gemini("Hel")) + json.dumps(error, indent=2).encode(),
        events(gemini("Hel"), error, gemini("lo", finishReason="STOP")),
    )
    for number, body in enumerate(bodies):
        server.answer(200, body, EVENTS)
        told = Told()
        with pytest.raises(ModelFailed) as caught:
            await models.ask(f"google:gemini-{number}", HI, told.append)
        assert type(caught.value) is kind
        assert caught.value.retry_after == delay
        assert told == ["Hel"]
    assert len(server.requests) == len(bodies)


async def test_gemini_gives_an_array_for_a_stream(server: ReplayServer, models: VendorModels) -> None:
    chunks = [gemini("Hel"), gemini("lo", finishReason="STOP")]
    for headers in (EVENTS, JSON, {}):
        for indent in (None, 2):
            server.answer(200, b"\n " + json.dumps(chunks, indent=indent).encode() + b"\n", headers)
            told = Told()
            reply = await models.ask("google:gemini", HI, told.append)
            assert reply.output == told.text == "Hello"

    for body, kind in (
        (json.dumps(chunks[:1]).encode(), StreamBroken),
        (json.dumps(chunks).encode()[:-9], ModelServerError),
        (json.dumps([chunks[0], BUSY]).encode(), ModelOverloaded),
        (json.dumps([gemini("Hel"), gemini("lo", finishReason="SAFETY")]).encode(), ContentRefused),
        (b"[]", ModelServerError),
        (b"[null]", StreamBroken),
    ):
        server.answer(200, body, EVENTS)
        with pytest.raises(ModelFailed) as caught:
            await models.ask("google:gemini", HI, Told().append)
        assert type(caught.value) in (kind, ModelServerError)
    assert server.unused == 0
    assert len(server.requests) == 12


@pytest.mark.filterwarnings("ignore:A_NEW_ONE is not a valid FinishReason:UserWarning")
@pytest.mark.parametrize(
    "finish",
    [
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "MALFORMED_FUNCTION_CALL",
        "OTHER",
        "A_NEW_ONE",
    ],
)
async def test_gemini_stops_for_a_reason_that_makes_no_answer(
    finish: str, server: ReplayServer, models: VendorModels
) -> None:
    server.answer(200, gemini("Hel", finishReason=finish))
    server.answer(200, events(gemini("Hel", finishReason=finish)), EVENTS)
    for told in (None, Told()):
        with pytest.raises((ContentRefused, ModelServerError, StreamBroken)) as caught:
            await models.ask("google:gemini", HI, None if told is None else told.append)
        refused = finish not in ("MALFORMED_FUNCTION_CALL", "OTHER", "A_NEW_ONE")
        assert not refused or type(caught.value) is ContentRefused


async def test_an_error_of_gemini_in_a_stream_leaves_no_connection_open(
    server: ReplayServer, models: VendorModels
) -> None:
    complaints: list[Mapping[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    gc.collect()
    gc.disable()
    try:
        server.answer(200, events(gemini("Hel"), BUSY, gemini("lo")), EVENTS, fault=Stalled(after=2))
        with pytest.raises(ModelOverloaded):
            await models.ask("google:gemini", HI, Told().append)
        await wait_until(lambda: server.connections == 0, "the connection is still open")
    finally:
        gc.enable()
    for number in range(3):
        server.answer(200, events(gemini("Hel"), BUSY), EVENTS)
        with pytest.raises(ModelOverloaded):
            await models.ask(f"google:gemini-{number}", HI, Told().append)
        gc.collect()
        await asyncio.sleep(0.01)
    assert complaints == []


#: What OpenAI's Responses say in a stream, of which these are the first: ``Four plus``.
BEGUN: Final = b"".join(recorded("openai-responses/stream_text").events[:6])


def response(type_: str, **others: Any) -> bytes:
    """The last event of a stream of Responses."""
    last = json.loads(recorded("openai-responses/stream_text").events[-1].partition(b"data: ")[2])
    return events({**last, "type": type_, "response": {**last["response"], **others}}, names=[type_])


@pytest.mark.parametrize("begun", [b"", BEGUN], ids=["at once", "in the middle"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("rate_limit_exceeded", ModelRateLimited),
        ("insufficient_quota", ModelQuotaExhausted),
        ("server_error", ModelServerError),
        ("server_is_overloaded", ModelOverloaded),
        ("context_length_exceeded", ContextTooLong),
        ("invalid_prompt", ContentRefused),
        ("model_not_found", ModelNotFound),
        ("a_new_one", ModelServerError),
    ],
)
async def test_responses_give_an_error_in_a_stream(
    begun: bytes, code: str, kind: type[ModelFailed], server: ReplayServer, models: VendorModels
) -> None:
    error = {"code": code, "message": "A sentence."}
    bodies = (
        begun + events({"type": "error", "sequence_number": 9, **error, "param": None}, names=["error"]),
        begun + events({"type": "error", "error": {"type": code, **error}}, names=["error"]),
        begun + events({"type": "error", "error": error}),
        begun + response("response.failed", status="failed", error=error, output=[]),
        begun + events({"type": "error", **error}, names=["error"]) + response("response.completed"),
    )
    for number, body in enumerate(bodies):
        server.answer(200, body, EVENTS)
        told = Told()
        with pytest.raises(ModelFailed) as caught:
            await models.ask(f"openai-responses:gpt-{number}", HI, told.append)
        assert type(caught.value) is kind
        assert caught.value.data["vendor_code"] == code
        assert "status" not in caught.value.data
        assert told.text == ("Four plus" if begun else "")
    assert len(server.requests) == len(bodies)


async def test_responses_are_incomplete(server: ReplayServer, models: VendorModels) -> None:
    async def incomplete(reason: str | None, type_: str = "response.incomplete", **others: Any) -> Reply:
        details = None if reason is None else {"reason": reason}
        told = Told()
        server.answer(200, BEGUN + response(type_, status="incomplete", incomplete_details=details, **others), EVENTS)
        reply = await models.ask("openai-responses:gpt", HI, told.append)
        assert reply.output == told.text
        return reply

    # It says that it is cut off: that is the answer that was asked for.
    reply = await incomplete("max_output_tokens")
    assert reply.output == "Four plus"
    assert reply.generation is not None
    assert reply.generation.stop_reason is StopReason.LENGTH

    with pytest.raises(ContentRefused):
        await incomplete("content_filter")
    for reason in ("a_new_one", None):
        with pytest.raises((StreamBroken, ModelServerError)):
            await incomplete(reason)
    for status in ("cancelled", "queued", "in_progress"):
        server.answer(200, BEGUN + response("response.completed", status=status), EVENTS)
        with pytest.raises((StreamBroken, ModelServerError)):
            await models.ask("openai-responses:gpt", HI, Told().append)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "?"}}, ModelRateLimited),
        ({"status": "failed", "error": {"code": "server_error", "message": "?"}}, ModelServerError),
        ({"status": "failed", "error": None}, ModelServerError),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, ContentRefused),
        ({"status": "incomplete", "incomplete_details": None}, ModelServerError),
        ({"status": "cancelled"}, ModelServerError),
        ({"status": "in_progress"}, ModelServerError),
        ({"status": "a_new_one"}, ModelServerError),
        ({"status": None}, ModelServerError),
        ({"output": None}, ModelServerError),
    ],
)
async def test_a_response_that_is_not_complete_is_no_answer(
    changed: Mapping[str, Any], kind: type[ModelFailed], server: ReplayServer, models: VendorModels
) -> None:
    case = recorded("openai-responses/text")
    server.answer(200, {**case.response["body"], **changed})
    assert type(await ended(models, case)) is kind
    assert len(server.requests) == 1


def claude(*more: Mapping[str, Any]) -> bytes:
    """A stream of Anthropic's that has said ``Hel``, and goes on."""
    message: dict[str, Any] = {"id": "msg", "type": "message", "role": "assistant", "model": "claude", "content": []}
    usage = {"input_tokens": 10, "output_tokens": 2}
    said = (
        {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
        *more,
    )
    return events(*said, names=[str(one["type"]) for one in said])


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        ("overloaded_error", ModelOverloaded),
        ("rate_limit_error", ModelRateLimited),
        ("api_error", ModelServerError),
        ("timeout_error", ModelTimeout),
        ("authentication_error", ModelAuthenticationFailed),
        ("billing_error", ModelQuotaExhausted),
        ("invalid_request_error", ModelRequestInvalid),
        ("a_new_error", ModelServerError),
    ],
)
async def test_anthropic_gives_an_error_in_a_stream(
    type_: str, kind: type[ModelFailed], server: ReplayServer, models: VendorModels
) -> None:
    error = {"type": "error", "error": {"type": type_, "message": "A sentence."}}
    server.answer(200, claude(error), EVENTS)
    server.answer(200, events(error, names=["error"]), EVENTS)
    server.answer(200, claude(error, {"type": "message_stop"}), EVENTS)
    for number, text in enumerate(("Hel", "", "Hel")):
        told = Told()
        with pytest.raises(ModelFailed) as caught:
            await models.ask(f"anthropic:claude-{number}", HI, told.append)
        assert type(caught.value) is kind
        assert caught.value.data["vendor_code"] == type_
        assert told.text == text
    assert len(server.requests) == 3


@pytest.mark.parametrize("reason", ["refusal", "pause_turn", "a_new_one", None])
async def test_anthropic_stops_for_a_reason_that_makes_no_answer(
    reason: str | None, server: ReplayServer, models: VendorModels
) -> None:
    stop = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 3}}
    server.answer(200, claude({"type": "content_block_stop", "index": 0}, stop, {"type": "message_stop"}), EVENTS)
    body = {**recorded("anthropic/text").response["body"], "stop_reason": reason}
    server.answer(200, body)
    for told in (Told(), None):
        with pytest.raises((ContentRefused, StreamBroken, ModelServerError)) as caught:
            await models.ask("anthropic:claude", HI, None if told is None else told.append)
        assert reason != "refusal" or type(caught.value) is ContentRefused


def completion(delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt", "choices": [choice]}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "?", "type": "server_error", "code": None}, ModelServerError),
        ({"message": "?", "type": "requests", "code": "rate_limit_exceeded"}, ModelRateLimited),
        ({"message": "?", "type": "insufficient_quota", "code": "insufficient_quota"}, ModelQuotaExhausted),
        ({"message": "?", "type": "invalid_request_error", "code": "context_length_exceeded"}, ContextTooLong),
        ({"message": "?", "code": 429}, ModelRateLimited),
        ({"message": "?", "code": 503}, ModelOverloaded),
        ({"message": "?", "type": "BadRequestError", "code": 400}, ModelRequestInvalid),
        ({"message": "?"}, ModelServerError),
        ("A sentence.", ModelServerError),
    ],
    ids=str,
)
async def test_a_chat_gives_an_error_in_a_stream(
    error: object, kind: type[ModelFailed], server: ReplayServer, models: VendorModels
) -> None:
    said = completion({"role": "assistant", "content": "Hel"})
    bodies = (
        events(said, {"error": error}),
        events(said, {"error": error}, b"[DONE]"),
        events({"error": error}, b"[DONE]"),
        events(said, {"error": error}, names=["", "error"]),
        events(said, {"error": error}, completion({}, "stop"), b"[DONE]"),
    )
    for number, body in enumerate(bodies):
        server.answer(200, body, EVENTS)
        told = Told()
        with pytest.raises(ModelFailed) as caught:
            await models.ask(f"openai:gpt-{number}", HI, told.append)
        assert type(caught.value) is kind
        assert told.text in ("Hel", "")
    assert len(server.requests) == len(bodies)


@pytest.mark.parametrize("api", ["openai", "local"])
async def test_a_chat_stops_for_a_reason_that_makes_no_answer(
    api: str, server: ReplayServer, models: VendorModels
) -> None:
    said = completion({"role": "assistant", "content": "Hel"})
    whole = recorded("openai-chat/text").response["body"]
    for finish, kind in (("content_filter", ContentRefused), ("a_new_one", None), ("error", None)):
        server.answer(200, events(said, completion({}, finish), b"[DONE]"), EVENTS)
        server.answer(200, {**whole, "choices": [{**whole["choices"][0], "finish_reason": finish}]})
        for told in (Told(), None):
            with pytest.raises((ContentRefused, StreamBroken, ModelServerError)) as caught:
                await models.ask(f"{api}:gpt", HI, None if told is None else told.append)
            assert kind in (type(caught.value), None)
    # It says that it is done, and not why.
    server.answer(200, events(said, b"[DONE]"), EVENTS)
    with pytest.raises(StreamBroken):
        await models.ask(f"{api}:gpt", HI, Told().append)
    server.answer(200, events(completion({"refusal": "I will not."}), completion({}, "stop"), b"[DONE]"), EVENTS)
    with pytest.raises(ContentRefused):
        await models.ask(f"{api}:gpt", HI, Told().append)
    for choices in (list[object](), None):
        server.answer(200, {**whole, "choices": choices})
        with pytest.raises(ModelServerError):
            await models.ask(f"{api}:gpt", HI)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("arguments", ['{"path": ', "path", "[1]", "null", '"text"', ""])
async def test_a_call_of_a_tool_without_arguments_that_are_an_object(
    arguments: str, streamed: bool, server: ReplayServer, models: VendorModels
) -> None:
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "open", "arguments": arguments}}
    server.always(
        Answer.made(200, events(completion({"tool_calls": [call]}), completion({}, "tool_calls"), b"[DONE]"), EVENTS)
        if streamed
        else Answer.made(200, whole_completion({"role": "assistant", "content": None, "tool_calls": [call]}))
    )
    if not arguments:
        # Some say nothing where there is nothing to be said.
        reply = await models.ask("openai:gpt", HI, Told().append if streamed else None)
        assert [dict(call.arguments) for call in reply.tool_calls] == [{}]
        return
    with pytest.raises(ModelServerError) as caught:
        await models.ask("openai:gpt", HI, Told().append if streamed else None)
    assert caught.value.data["vendor_code"] == "tool_call_not_json"
    assert len(server.requests) == 1


def whole_completion(message: Mapping[str, Any], finish: str = "tool_calls") -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt", "choices": [choice]}


async def test_what_a_vendor_calls_itself_can_be_stored(server: ReplayServer, models: VendorModels) -> None:
    strange = json.dumps(
        {**whole_completion({"role": "assistant", "content": "Hi"}, "stop"), "model": "a\0b", "id": "\ud800"}
    )
    server.answer(200, strange.encode(), JSON)
    reply = await models.ask("openai:gpt", HI)
    assert reply.output == "Hi"
    assert not list(faults_in("generation", reply_json(reply)["generation"]))


async def test_a_check_of_providers_never_raises(server: ReplayServer, models: VendorModels) -> None:
    deep = Answer.made(400, b"[" * 100_000, JSON)
    faulty = [
        Answer.made(200, {}, fault=fault) for fault in (HungUp(), Broken(), Broken(inside=True), Broken(reset=True))
    ]
    for answer in (*NO_ANSWERS.values(), *faulty, deep):
        server.always(answer)
        for status in await models.check(fresh=True):
            # Any answer at all shows that somebody is there, who knows this key.
            assert status.configured
            assert (status.last_error is None) == status.reachable, f"{answer}"
            if answer.fault is not None or answer.status >= 500:
                assert not status.reachable, f"{answer}"


# --- what must not get out


#: The key, and sentences about it, wherever a vendor could put them.
TELLTALES: Final[Sequence[object]] = (
    {"error": {"message": f"Incorrect API key provided: {KEY}. See your account.", "type": "t", "code": "c"}},
    {"error": {"message": "?", "type": f"the key {KEY} is wrong", "code": f"the key {KEY} is wrong"}},
    {"error": {"message": "?", "status": f"the key {KEY} is wrong", "code": 400}},
    {"error": {"message": "?", "status": KEY, "type": KEY, "code": KEY}},
    {"type": "error", "error": {"type": "invalid_request_error", "message": f"x-api-key {KEY}"}, "request_id": "r"},
    [
        {
            "error": {
                "code": 400,
                "message": KEY,
                "status": "INVALID_ARGUMENT",
                "details": [{"@type": KEY, "reason": KEY}],
            }
        }
    ],
    {
        "error": {
            "code": 400,
            "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": f"{KEY} IS WRONG"}],
        }
    },
    {"error": f"the key {KEY} is wrong"},
    {"message": f"the key {KEY} is wrong"},
    f"the key {KEY} is wrong",
    f"<html>the key {KEY} is wrong</html>".encode(),
)


@pytest.mark.slow
@pytest.mark.parametrize("api", APIS)
async def test_the_key_is_in_no_error(
    api: str, server: ReplayServer, models: VendorModels, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="agent_orchestra")
    count = 0
    for body in TELLTALES:
        plain = body if isinstance(body, bytes) else json.dumps(body).encode()
        answers = [Answer.made(status, body) for status in (200, 400, 401, 429, 500)]
        answers += [Answer.made(200, events(plain), EVENTS), Answer.made(200, plain, EVENTS)]
        for answer in answers:
            for streamed in (True, False):
                server.always(answer)
                count += 1
                told = Told()
                with pytest.raises(ModelFailed) as caught:
                    await models.ask(f"{asked(api)}-{count}", HI, told.append if streamed else None)
                assert KEY not in everything_of(caught.value), f"{answer.status} {body!r}"
                assert KEY not in told.text
    assert KEY not in caplog.text
    assert len(server.requests) == count


def everything_of(error: ModelFailed) -> str:
    """All that anybody could see of an error: what it says, holds, and what a traceback shows of it and its causes."""
    shown = "".join(traceback.format_exception(error))
    return f"{error} {error!r} {error.args!r} {error.detail} {dict(error.data)} {vars(error)} {shown}"


@pytest.mark.slow
async def test_the_key_is_in_no_failure_of_the_network(server: ReplayServer, hasty: VendorModels) -> None:
    for api in APIS:
        for fault in (Late(), HungUp(), Broken(inside=True), Broken(reset=True)):
            server.play(recorded(f"{api}/text"), fault)
            end = await ended(hasty, recorded(f"{api}/text"))
            assert isinstance(end, ModelFailed)
            assert KEY not in everything_of(end)


async def test_the_vendors_sentence_is_told_only_of_what_is_invalid(server: ReplayServer, models: VendorModels) -> None:
    sentence = "A sentence about what you wrote: mellifluous."
    for api in APIS:
        for status in (400, 401, 403, 404, 429, 500, 529):
            server.answer(status, {"error": {"message": sentence, "type": "t", "details": []}})
            with pytest.raises(ModelFailed) as caught:
                await models.ask(f"{asked(api)}-{status}", HI)
            told = "mellifluous" in everything_of(caught.value)
            assert told == (type(caught.value) is ModelRequestInvalid), f"{api} {status}"


@pytest.mark.slow
@pytest.mark.parametrize("api", APIS)
async def test_the_key_is_neither_logged_nor_stored(
    api: str, tmp_path: Path, server: ReplayServer, caplog: pytest.LogCaptureFixture
) -> None:
    # All that our code logs, its own exceptions with messages and places included.
    caplog.set_level(logging.DEBUG, logger="agent_orchestra")
    nothing = tmp_path / "nothing.yaml"
    nothing.touch()
    path = tmp_path / "orchestra.db"
    providers = {name: {"api_key": KEY, "base_url": given.base_url} for name, given in configs(server.url).items()}
    settings = load_settings(
        nothing, database={"url": f"sqlite:///{path}"}, providers=providers, metrics={"detailed_logging": True}
    )
    told: list[str] = []
    async with open_from_settings(settings) as orchestra:
        for number, body in enumerate(TELLTALES):
            model = f"{asked(api)}-{number}"
            await orchestra.register_agent(Agent(id=f"agent-{number}", kind="prompt", settings={"model": model}))
            for status in (200, 400, 500):
                server.answer(status, body)
                with pytest.raises(ModelFailed) as caught:
                    await orchestra.process_request("hi", agent_id=f"agent-{number}")
                told.append(everything_of(caught.value))
        for body in TELLTALES:
            server.always(Answer.made(400, body))
            told.extend(map(repr, await orchestra.get_providers(fresh=True)))
        told.extend(map(repr, orchestra.get_agents()))
    told.append(repr(settings))
    told.append(repr(configs(server.url)))
    assert KEY not in "".join(told)
    assert KEY not in caplog.text
    assert all(KEY not in repr(vars(record)) for record in caplog.records)
    # The one file that is left: SQLite has taken up its log.
    assert KEY.encode() not in path.read_bytes()


async def test_the_key_follows_no_redirection(server: ReplayServer) -> None:
    async with ReplayServer() as elsewhere:
        for status in (301, 302, 307, 308):
            server.answer(status, b"", {"location": f"{elsewhere.url}/v1/messages"})
        providers = Providers(configs(server.url))
        try:
            for api in APIS:
                with pytest.raises(ModelServerError):
                    await VendorModels(providers).ask(asked(api), HI)
            server.always(Answer.made(307, b"", {"location": f"{elsewhere.url}/models"}))
            await VendorModels(providers).check()
        finally:
            await providers.close()
    assert elsewhere.requests == []
