"""Agents that are prompts: what is wrong with a definition, what a vendor is sent, what becomes of its answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from agent_orchestra import Agent, Answer, Orchestra, Recovery, StreamEvent
from agent_orchestra.adapters.models.kind import PromptKind
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.models.vendors import ProviderConfig
from agent_orchestra.adapters.offline import OfflineKind
from agent_orchestra.core.agent import Limits
from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.core.message import Attachment, Author
from agent_orchestra.core.prompt import Noted, Prompt, Said, ToolResult, ToolSpec, Wrote
from agent_orchestra.core.request import ToolCall
from agent_orchestra.core.stream import StreamEventType
from agent_orchestra.errors import (
    AgentFailed,
    AttachmentNotSupported,
    ContentRefused,
    ContextTooLong,
    DeadlineExceeded,
    Forbidden,
    InvalidAgent,
    InvalidInput,
    ModelAuthenticationFailed,
    ModelFailed,
    ModelServerError,
    OutputInvalid,
    ProviderKeyMissing,
    StreamBroken,
    Superseded,
    TurnsExhausted,
)
from agent_orchestra.testing import temporary_orchestra
from tests.services.replay import Answer as Sent
from tests.services.replay import Ended, ReplayServer, Stalled, read_case
from tests.services.waiting import wait_until

pytestmark = pytest.mark.usefixtures("model_requests")

HERE: Final = __name__
MODEL: Final = "openai:gpt-4o"
KEY: Final = "quoted-0123456789abcdef"
PNG: Final = Attachment(media_type="image/png", data=b"\x89PNG")
NUMBER: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1}},
    "required": ["n"],
}


# --- tools: functions that definitions name


def shout(text: str) -> str:
    """Says it loudly."""
    return text.upper()


async def add(a: int, b: int = 10) -> dict[str, int]:
    """Adds two numbers."""
    await asyncio.sleep(0)
    return {"sum": a + b}


def anything(**given: object) -> object:
    return given


class Fitted:
    """A tool that is an object."""

    async def __call__(self, text: str) -> str:
        await asyncio.sleep(0)
        return f"fitted {text}"


fitted: Final = Fitted()


def lost() -> str:
    raise LookupError("hunter2 is the password")


async def lost_later() -> str:
    await asyncio.sleep(0)
    raise LookupError("hunter2 is the password")


def leave() -> str:
    raise SystemExit(3)


async def leave_later() -> str:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


def strange() -> object:
    return object()


def broken_text() -> Mapping[str, Sequence[str]]:
    return {"half": ["\ud800"]}


def unreadable(given: Fitted) -> str:
    return str(given)


# --- what a vendor answers, in the words of Chat Completions


def said(text: str | None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **more}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [choice],
        "usage": usage,
    }


def calls(*asked: tuple[str, Any], text: str | None = None) -> dict[str, Any]:
    """A turn that asks for tools, each by name and arguments; a text is sent as it is."""
    tool_calls = [
        {
            "id": f"call-{number}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for number, (name, given) in enumerate(asked)
    ]
    return said(text, "tool_calls", tool_calls=tool_calls)


def streamed(completion: Mapping[str, Any]) -> bytes:
    """A completion as a stream: its text word by word, its calls, and its end."""
    choice = completion["choices"][0]
    message = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f"{word} "} for word in (message["content"] or "").split()]
    deltas += [{"tool_calls": [{"index": n, **call}]} for n, call in enumerate(message.get("tool_calls", ()))]
    head = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    chunks.append({**head, "choices": [], "usage": completion["usage"]})
    return b"".join(f"data: {part}\n\n".encode() for part in (*map(json.dumps, chunks), "[DONE]"))


@dataclass(frozen=True, slots=True)
class Vendor:
    """A server that stands for all vendors, with what it was told to answer."""

    server: ReplayServer

    def says(self, *completions: Mapping[str, Any]) -> None:
        for completion in completions:
            self.server.answer(200, completion)

    def streams(self, *completions: Mapping[str, Any]) -> None:
        for completion in completions:
            self.server.answer(200, streamed(completion), {"content-type": "text/event-stream"})

    @property
    def asked(self) -> Sequence[Any]:
        """The bodies of all requests so far."""
        return [request.body for request in self.server.requests]

    @property
    def results(self) -> Sequence[str]:
        """What tools have given back, as the last request tells it."""
        return [message["content"] for message in self.asked[-1]["messages"] if message["role"] == "tool"]


@pytest.fixture
async def vendor() -> AsyncGenerator[Vendor]:
    async with ReplayServer() as server:
        yield Vendor(server)


@asynccontextmanager
async def opened(vendor: Vendor, **sections: Mapping[str, object]) -> AsyncGenerator[Orchestra]:
    """An orchestra that finds every provider at the vendor."""
    own = {"base_url": vendor.server.url, "api_key": KEY, "max_wait": 0.0}
    providers: dict[str, object] = dict.fromkeys(("anthropic", "openai", "google", "local"), own)
    async with temporary_orchestra(providers=providers, **sections) as orchestra:
        yield orchestra


@pytest.fixture
async def orchestra(vendor: Vendor) -> AsyncGenerator[Orchestra]:
    async with opened(vendor) as found:
        yield found


#: Each model is asked once: what becomes of it then is dispatch's, and tested there.
ONCE: Final = Recovery(attempts=1)


async def has(orchestra: Orchestra, agent_id: str = "agent", *, trusted: bool = True, **settings: Any) -> None:
    """Registers an agent; of a model that answers chats unless the settings name one."""
    if not {"model", "models"} & set(settings):
        settings["model"] = MODEL
    agent = Agent(id=agent_id, kind="prompt", settings=settings, recovery=ONCE)
    await orchestra.register_agent(agent, trusted=trusted)


async def ask(orchestra: Orchestra, content: str = "hello", **more: Any) -> Answer:
    return await orchestra.process_request(content, agent_id="agent", **more)


# --- definitions


FAULTS: Final[Sequence[tuple[Mapping[str, Any], str, str]]] = (
    ({}, "settings.models", "give 'model', or a list of 'models'"),
    ({"model": MODEL, "models": [MODEL]}, "settings.models", "not both"),
    ({"models": []}, "settings.models", "a list of 1 to 16"),
    ({"models": MODEL}, "settings.models", "a list of 1 to 16"),
    ({"models": [f"openai:m{number}" for number in range(17)]}, "settings.models", "a list of 1 to 16"),
    ({"models": [MODEL, "openai:gpt-5", MODEL]}, "settings.models", "twice"),
    ({"model": "opnai:gpt-5"}, "settings.model", "did you mean 'openai'?"),
    ({"models": [MODEL, "antropic:claude"]}, "settings.models.1", "did you mean 'anthropic'?"),
    ({"model": "xyz:gpt-5"}, "settings.model", "known: anthropic, openai, openai-responses, google, local"),
    ({"model": "gpt-5"}, "settings.model", "write it as in 'openai:gpt-5'"),
    ({"model": "openai:"}, "settings.model", "1 to 200 letters, digits, or any of"),
    ({"model": "openai:a b"}, "settings.model", "1 to 200 letters, digits, or any of"),
    ({"model": f"openai:{'x' * 201}"}, "settings.model", "1 to 200 letters, digits, or any of"),
    ({"model": "google:a?b"}, "settings.model", "1 to 200 letters, digits, or any of"),
    ({"model": "google:../b"}, "settings.model", "1 to 200 letters, digits, or any of"),
    ({"model": 5}, "settings.model", "must be a text"),
    ({"models": [MODEL, None]}, "settings.models.1", "must be a text"),
    ({"model": MODEL, "instructions": 5}, "settings.instructions", "must be a text"),
    ({"model": MODEL, "temprature": 1}, "settings.temprature", "did you mean 'temperature'?"),
    ({"model": MODEL, "zzz": 1}, "settings.zzz", "is not known for prompts; known: instructions, model"),
    ({"model": MODEL, "temperature": -0.1}, "settings.temperature", "a number from 0 to 2"),
    ({"model": MODEL, "temperature": 2.1}, "settings.temperature", "a number from 0 to 2"),
    ({"model": MODEL, "temperature": True}, "settings.temperature", "a number from 0 to 2"),
    ({"model": MODEL, "temperature": "1"}, "settings.temperature", "a number from 0 to 2"),
    ({"model": MODEL, "temperature": None}, "settings.temperature", "a number from 0 to 2"),
    ({"model": MODEL, "max_tokens": 0}, "settings.max_tokens", "a whole number from 1 to 1000000"),
    ({"model": MODEL, "max_tokens": 1.5}, "settings.max_tokens", "a whole number from 1 to 1000000"),
    ({"model": MODEL, "output_retries": 11}, "settings.output_retries", "a whole number from 0 to 10"),
    ({"model": MODEL, "max_turns": 0}, "settings.max_turns", "a whole number from 1 to 100"),
    ({"model": MODEL, "output_schema": []}, "settings.output_schema", "must be a JSON Schema of type object"),
    ({"model": MODEL, "output_schema": {"type": "array"}}, "settings.output_schema.type", "must be 'object'"),
    ({"model": MODEL, "output_schema": {}}, "settings.output_schema.type", "must be 'object'"),
    (
        {"model": MODEL, "output_schema": {"type": "object", "properties": {"a": {"type": "text"}}}},
        "settings.output_schema.properties.a.type",
        "is no JSON Schema",
    ),
    (
        {"model": MODEL, "output_schema": {"type": "object", "properties": {"a": {"pattern": "("}}}},
        "settings.output_schema.properties.a.pattern",
        "is no JSON Schema",
    ),
    (
        {"model": MODEL, "output_schema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}},
        "settings.output_schema",
        "'/$defs/b' does not exist",
    ),
    (
        {"model": MODEL, "output_schema": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1/b"}}}},
        "settings.output_schema",
        "http://127.0.0.1/b",
    ),
    (
        {"model": MODEL, "output_schema": {"type": "object", "properties": {"a": {"$dynamicRef": "http://b"}}}},
        "settings.output_schema",
        "http://b",
    ),
    (
        {"model": MODEL, "output_schema": {"type": "object", "properties": {"a": {"items": {"$ref": "#"}}}}},
        "settings.output_schema",
        "as when it refers to itself",
    ),
    (
        {
            "model": MODEL,
            "output_schema": {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/a"}},
                "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}},
            },
        },
        "settings.output_schema",
        "as when it refers to itself",
    ),
    ({"model": MODEL, "offline": ["x"]}, "settings.offline", "must be an object"),
    ({"model": MODEL, "offline": {}}, "settings.offline.knowledge", ""),
    ({"model": MODEL, "offline": {"knowledge": ["x"], "passages": 99}}, "settings.offline.passages", "from 1 to 10"),
    ({"model": MODEL, "tools": "os:getcwd"}, "settings.tools", "must be a list"),
    (
        {"model": MODEL, "tools": [{"function": "os:getcwd", "name": f"t{number}"} for number in range(65)]},
        "settings.tools",
        "at most 64",
    ),
    ({"model": MODEL, "tools": [5]}, "settings.tools.0", "with 'function' or with 'mcp'"),
    ({"model": MODEL, "tools": ["getcwd"]}, "settings.tools.0", "'module:function'"),
    ({"model": MODEL, "tools": [{"function": "os.getcwd"}]}, "settings.tools.0.function", "'module:function'"),
    ({"model": MODEL, "tools": [{}]}, "settings.tools.0.function", "'module:function'"),
    ({"model": MODEL, "tools": ["no.such.module:f"]}, "settings.tools.0", "cannot be imported"),
    ({"model": MODEL, "tools": [f"{HERE}:shout", f"{HERE}:shuot"]}, "settings.tools.1", "has no 'shuot'"),
    ({"model": MODEL, "tools": [f"{HERE}:KEY"]}, "settings.tools.0", "cannot be called"),
    ({"model": MODEL, "tools": [f"{HERE}:unreadable"]}, "settings.tools.0", "give 'parameters'"),
    ({"model": MODEL, "tools": [f"{HERE}:shout", f"{HERE}:shout"]}, "settings.tools.1", "already a tool 'shout'"),
    (
        {"model": MODEL, "tools": [{"function": f"{HERE}:shout", "argumets": {}}]},
        "settings.tools.0.argumets",
        "is not known here",
    ),
    (
        {"model": MODEL, "tools": [{"function": f"{HERE}:shout", "name": "a b"}]},
        "settings.tools.0.name",
        "1 to 64 letters",
    ),
    (
        {"model": MODEL, "tools": [{"function": f"{HERE}:shout", "description": 5}]},
        "settings.tools.0.description",
        "must be a text",
    ),
    (
        {"model": MODEL, "tools": [{"function": f"{HERE}:anything", "parameters": {"type": "object", "required": 1}}]},
        "settings.tools.0.parameters.required",
        "is no JSON Schema",
    ),
    (
        {"model": MODEL, "tools": [{"function": f"{HERE}:anything", "parameters": {"type": "string"}}]},
        "settings.tools.0.parameters.type",
        "must be 'object'",
    ),
    ({"model": MODEL, "tools": [{"mcp": "ftp://x"}]}, "settings.tools.0.mcp", "http:// or https://"),
    ({"model": MODEL, "tools": [{"mcp": []}]}, "settings.tools.0.mcp", "1 to 64 words"),
    ({"model": MODEL, "tools": [{"mcp": ["a", 1]}]}, "settings.tools.0.mcp", "a list of words"),
    ({"model": MODEL, "tools": [{"mcp": ["a"], "prefix": "1"}]}, "settings.tools.0.prefix", "a letter first"),
    ({"model": MODEL, "tools": [{"mcp": ["a"], "name": "x"}]}, "settings.tools.0.name", "is not known here"),
)


@pytest.mark.parametrize(("settings", "path", "message"), FAULTS, ids=lambda given: "")
async def test_what_is_wrong_with_a_definition_is_said_with_its_place(
    settings: Mapping[str, Any], path: str, message: str
) -> None:
    kind = PromptKind(Providers({"openai": ProviderConfig(api_key=KEY)}), offline=OfflineKind(), allowed=())
    with pytest.raises(InvalidAgent) as caught:
        await kind.connect(Agent(id="agent", kind="prompt", settings=settings), trusted=True)
    ((found, said_),) = [(fault.path, fault.message) for fault in caught.value.faults]
    assert (found, message in said_) == (path, True), said_


async def test_all_that_is_wrong_is_said_at_once(orchestra: Orchestra) -> None:
    settings: dict[str, Any] = {
        "models": ["opnai:x", "google:"],
        "temperature": 3,
        "tools": ["x", {"mcp": 1}],
        "output_schema": 1,
        "other": 1,
    }
    with pytest.raises(InvalidAgent) as caught:
        await has(orchestra, **settings)
    assert orchestra.get_agents() == []
    assert {fault.path for fault in caught.value.faults} == {
        "settings.other",
        "settings.temperature",
        "settings.models.0",
        "settings.models.1",
        "settings.tools.0",
        "settings.tools.1.mcp",
        "settings.output_schema",
    }


async def test_what_is_right_is_taken_as_json_has_it(orchestra: Orchestra, vendor: Vendor) -> None:
    """JSON has one kind of number, and a list of models may have one."""
    vendor.says(said("fine"))
    await has(
        orchestra, models=[MODEL], temperature=2, max_tokens=5.0, max_turns=1.0, output_retries=0, instructions=""
    )
    assert (await ask(orchestra)).output == "fine"
    assert (vendor.asked[0]["max_completion_tokens"], vendor.asked[0]["temperature"]) == (5, 2)


async def test_callers_name_only_the_functions_of_modules_that_are_allowed(vendor: Vendor) -> None:
    async with opened(vendor, functions={"allowed_modules": [HERE]}) as orchestra:
        forbidden: Sequence[Any] = (
            "os:system",
            "tests.api.functions:echo",
            f"{HERE}:Fitted.__call__",
            {"function": "subprocess:run", "parameters": {"type": "object"}},
            {"mcp": "http://127.0.0.1:1/mcp"},
            {"mcp": [sys.executable]},
        )
        for tool in forbidden:
            with pytest.raises(Forbidden, match="may not be named by callers"):
                await has(orchestra, trusted=False, tools=[tool])
        # What a module has imported is not its own.
        imported = {"function": f"{HERE}:dataclass", "parameters": {"type": "object"}}
        for tool in (f"{HERE}:read_case", imported):
            with pytest.raises(Forbidden, match="is not a function of that module's own"):
                await has(orchestra, trusted=False, tools=[tool])
        assert orchestra.get_agents() == []
        vendor.says(calls(("shout", {"text": "hi"})), said("done"))
        await has(orchestra, trusted=False, tools=[f"{HERE}:shout"])
        assert (await ask(orchestra)).output == "done"


async def test_with_nothing_allowed_callers_name_no_function(orchestra: Orchestra) -> None:
    with pytest.raises(Forbidden, match=r"functions\.allowed_modules"):
        await has(orchestra, trusted=False, tools=[f"{HERE}:shout"])
    await has(orchestra, trusted=False)


# --- what a vendor is sent


CONTEXT: Final = 'Be brief.\n\nThe context of this request, as JSON: {"city": "Łódź", "user": "ann"}'
SENT: Final[Mapping[str, Mapping[str, Any]]] = {
    MODEL: {
        "messages": [
            {"role": "system", "content": "The user is new."},
            {"role": "system", "content": CONTEXT},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "<>"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "second"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
                ],
            },
        ],
        "model": "gpt-4o",
        "max_completion_tokens": 77,
        "temperature": 0.5,
        "stream": False,
    },
    "local:llama3": {
        "messages": [
            {"role": "system", "content": "The user is new."},
            {"role": "system", "content": CONTEXT},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "<>"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "second"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
                ],
            },
        ],
        "model": "llama3",
        # The older name, which every server knows.
        "max_tokens": 77,
        "temperature": 0.5,
        "stream": False,
    },
    "openai-responses:gpt-4o": {
        "input": [
            {"role": "system", "content": "The user is new."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "<>"},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "second"},
                    {"type": "input_image", "image_url": "data:image/png;base64,iVBORw==", "detail": "auto"},
                ],
            },
        ],
        "instructions": CONTEXT,
        "model": "gpt-4o",
        "max_output_tokens": 77,
        "temperature": 0.5,
        "stream": False,
    },
    "anthropic:claude-sonnet-4-5": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "first"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "<>"}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "second"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}},
                ],
            },
        ],
        "system": [{"type": "text", "text": "The user is new."}, {"type": "text", "text": CONTEXT}],
        "model": "claude-sonnet-4-5",
        "max_tokens": 77,
        "temperature": 0.5,
        "stream": False,
    },
    "google:gemini-2.5-flash": {
        "contents": [
            {"role": "user", "parts": [{"text": "first"}]},
            {"role": "model", "parts": [{"text": "<>"}]},
            {
                "role": "user",
                "parts": [{"text": "second"}, {"inlineData": {"data": "iVBORw==", "mime_type": "image/png"}}],
            },
        ],
        "systemInstruction": {"role": "user", "parts": [{"text": "The user is new."}, {"text": CONTEXT}]},
        "generationConfig": {"maxOutputTokens": 77, "temperature": 0.5, "responseModalities": ["TEXT"]},
    },
}
WIRE: Final = {
    "openai": "openai-chat",
    "local": "openai-chat",
    "openai-responses": "openai-responses",
    "anthropic": "anthropic",
    "google": "google",
}


@pytest.mark.parametrize("model", SENT)
async def test_instructions_context_history_and_images_are_sent_as_the_vendor_takes_them(
    orchestra: Orchestra, vendor: Vendor, model: str
) -> None:
    case = read_case(f"{WIRE[model.partition(':')[0]]}/text")
    vendor.server.always(case)
    await has(orchestra, model=model, instructions="Be brief.", temperature=0.5, max_tokens=77)
    conversation = await orchestra.create_conversation(context={"user": "ann", "city": "Rome"})
    await orchestra.add_message(conversation.id, "The user is new.", author=Author.SYSTEM)
    told = {"conversation_id": conversation.id, "context": {"city": "Łódź"}}
    first = await ask(orchestra, "first", **told)
    await ask(orchestra, "second", attachments=[PNG], **told)
    expected = json.loads(json.dumps(SENT[model]).replace('"<>"', json.dumps(first.output)))
    assert vendor.asked[1] == expected
    assert first.output == case.expect["text"]


async def test_without_anything_to_say_beside_the_question_only_that_is_sent(
    orchestra: Orchestra, vendor: Vendor
) -> None:
    vendor.says(said("hi"))
    await has(orchestra)
    await ask(orchestra)
    assert vendor.asked == [
        {"model": "gpt-4o", "stream": False, "messages": [{"role": "user", "content": "hello"}]},
    ]


async def test_context_alone_makes_the_instructions(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(said("hi"))
    await has(orchestra)
    await ask(orchestra, context={"a": 1})
    system_message = {"role": "system", "content": 'The context of this request, as JSON: {"a": 1}'}
    assert vendor.asked[0]["messages"][0] == system_message


async def test_with_tools_the_same_is_sent_in_every_turn(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(said("earlier"), calls(("shout", {"text": "hi"})), said("done"))
    await has(orchestra, tools=[f"{HERE}:shout"], instructions="Be brief.", temperature=0.5, max_tokens=77)
    before = await ask(orchestra, "first")
    await ask(orchestra, "second", conversation_id=before.conversation_id, attachments=[PNG])
    for body in vendor.asked[1:]:
        assert (body["max_completion_tokens"], body["temperature"]) == (77, 0.5)
        assert [message["role"] for message in body["messages"][:4]] == ["system", "user", "assistant", "user"]
        assert body["messages"][0]["content"] == "Be brief."
        assert [message["content"] for message in body["messages"][1:3]] == ["first", "earlier"]
        assert body["messages"][3]["content"][0]["text"] == "second"
        assert body["messages"][3]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


async def test_a_history_never_begins_with_an_answer(vendor: Vendor) -> None:
    """Anthropic does not take one."""
    async with opened(vendor, conversations={"history_messages": 3}) as orchestra:
        await has(orchestra)
        conversation = await orchestra.create_conversation()
        for author, content in (
            (Author.USER, "long ago"),
            (Author.SYSTEM, "The user is new."),
            (Author.ASSISTANT, "Hello."),
            (Author.ASSISTANT, "How are you?"),
        ):
            await orchestra.add_message(conversation.id, content, author=author)
        vendor.says(said("hi"))
        await ask(orchestra, "fine", conversation_id=conversation.id)
    assert vendor.asked[0]["messages"] == [
        {"role": "system", "content": "The user is new."},
        {"role": "user", "content": "fine"},
    ]


async def test_a_question_that_was_never_answered_stays_in_the_history(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.server.answer(500)
    vendor.says(said("both"))
    await has(orchestra)
    conversation = await orchestra.create_conversation()
    with pytest.raises(ModelServerError):
        await ask(orchestra, "first", conversation_id=conversation.id)
    await ask(orchestra, "second", conversation_id=conversation.id)
    assert [message["role"] for message in vendor.asked[1]["messages"]] == ["user", "user"]


@pytest.mark.parametrize("content", ["", " \n", "\ud800"])
async def test_a_model_itself_is_asked_only_what_can_be_asked(
    orchestra: Orchestra, vendor: Vendor, content: str
) -> None:
    with pytest.raises(InvalidInput, match="content"):
        await orchestra.ask_model(MODEL, content)
    assert vendor.asked == []


async def test_a_model_itself_is_asked_without_an_agent(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(said("hi"))
    pieces: list[str] = []
    assert (await orchestra.ask_model(MODEL, "hello")).output == "hi"
    vendor.streams(calls(("shout", {"text": "x"}), text="one two"))
    told = Prompt(
        turns=[
            Wrote(content="first"),
            Said(content="", tool_calls=[ToolCall(id="c", name="shout", arguments={"text": "a"})]),
            ToolResult(id="c", name="shout", content="A"),
            Noted(content="Go on."),
            Wrote(content="second", attachments=[PNG]),
        ],
        instructions="Be brief.",
        tools=[ToolSpec(name="shout", description="Says it.", parameters={"type": "object"})],
        max_tokens=9,
    )
    reply = await orchestra.ask_model(MODEL, told, emit=pieces.append)
    assert (reply.output, pieces) == ("one two ", ["one ", "two "])
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("shout", {"text": "x"})]
    assert reply.generation is not None
    assert reply.generation.stop_reason == "tool_call"
    body = vendor.asked[1]
    assert [message["role"] for message in body["messages"] if message["role"] != "system"] == [
        "user",
        "assistant",
        "tool",
        "user",
    ]
    assert {message["content"] for message in body["messages"] if message["role"] == "system"} == {
        "Be brief.",
        "Go on.",
    }
    assert body["messages"][-1]["content"][1]["type"] == "image_url"
    assert body["tools"][0]["function"]["name"] == "shout"
    assert body["max_completion_tokens"] == 9
    assert await orchestra.get_conversations() == [], "nothing of it is recorded"
    vendor.says(said('{"n": 0}'))
    with pytest.raises(OutputInvalid):
        await orchestra.ask_model(MODEL, Prompt(turns=[Wrote(content="x")], output_schema=NUMBER))
    with pytest.raises(InvalidInput, match="did you mean 'openai'"):
        await orchestra.ask_model("opnai:gpt-4o", "hello")


# --- tools


async def test_tools_are_called_and_the_model_is_told_what_they_gave(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(
        calls(("shout", {"text": "hi"}), ("add", {"a": 2, "b": 3}), ("fitted", {"text": "x"})),
        calls(("plus", {"a": 1}), ("made", {"x": [1, None]})),
        said("done"),
    )
    any_object = {"type": "object", "properties": {"x": {"type": "array"}}, "required": ["x"]}
    tools = [
        f"{HERE}:shout",
        f"{HERE}:add",
        {"function": f"{HERE}:fitted", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}},
        {"function": f"{HERE}:add", "name": "plus", "description": "Adds."},
        {"function": f"{HERE}:anything", "name": "made", "parameters": any_object},
    ]
    await has(orchestra, tools=tools)
    answer = await ask(orchestra)
    assert (answer.output, answer.value, answer.reply.tool_calls) == ("done", None, ())
    assert vendor.results[:3] == ["HI", '{"sum":5}', "fitted x"]
    assert vendor.results[3:] == ['{"sum":11}', '{"x":[1,null]}']
    offered = {tool["function"]["name"]: tool["function"] for tool in vendor.asked[0]["tools"]}
    assert list(offered) == ["shout", "add", "fitted", "plus", "made"]
    assert offered["shout"]["description"] == "Says it loudly."
    assert offered["plus"]["description"] == "Adds."
    assert offered["add"]["parameters"]["required"] == ["a"]
    assert offered["made"]["parameters"]["properties"] == {"x": {"type": "array"}}
    # Three turns were paid for.
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (30, 15)
    assert answer.usage.cost_usd == pytest.approx(3 * (10 * 2.5 + 5 * 10) / 1_000_000)
    assert [error.error for error in answer.attempts] == [None]


async def test_a_stream_with_tools_joins_what_is_said_before_and_after(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.streams(
        calls(("shout", {"text": "hi"}), text="Let me see."), calls(("shout", {"text": "ho"})), said("Here it is.")
    )
    await has(orchestra, tools=[f"{HERE}:shout"])
    events: list[StreamEvent] = []
    answer = await ask(orchestra, emit=events.append)
    pieces = [str(event.data["text"]) for event in events if event.type is StreamEventType.DELTA]
    assert pieces == ["Let ", "me ", "see. ", "\n\n", "Here ", "it ", "is. "]
    assert answer.output == "".join(pieces)
    assert vendor.results == ["HI", "HO"]
    assert answer.reply.generation is not None
    assert answer.reply.generation.first_token_ms is not None
    assert all(body["stream"] for body in vendor.asked)


async def test_without_a_listener_nothing_is_streamed(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(calls(("shout", {"text": "hi"}), text="Let me see."), said("Here it is."))
    await has(orchestra, tools=[f"{HERE}:shout"])
    assert (await ask(orchestra)).output == "Let me see.\n\nHere it is."
    assert not any(body["stream"] for body in vendor.asked)


@pytest.mark.parametrize(
    ("tool", "cause"),
    [
        ("lost", "LookupError"),
        ("lost_later", "LookupError"),
        ("leave", "SystemExit"),
        ("leave_later", "KeyboardInterrupt"),
        ("strange", "tool_result_not_json"),
    ],
)
async def test_a_tool_that_fails_ends_the_request_and_nothing_else(
    orchestra: Orchestra, vendor: Vendor, tool: str, cause: str
) -> None:
    vendor.says(calls((tool, {})))
    await has(orchestra, models=[MODEL, "anthropic:claude-sonnet-4-5"], tools=[f"{HERE}:{tool}"])
    with pytest.raises(AgentFailed) as caught:
        await ask(orchestra)
    assert caught.value.data == {"cause": cause}
    assert "hunter2" not in caught.value.detail
    assert len(vendor.asked) == 1, "no other model begins anew"
    vendor.says(said("still here"))
    assert (await ask(orchestra)).output == "still here"


async def test_text_that_is_none_is_mended_before_the_model_is_told(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(calls(("broken_text", {})), said("done"))
    await has(orchestra, tools=[f"{HERE}:broken_text"])
    assert (await ask(orchestra)).output == "done"
    assert vendor.results[0].startswith('{"half":["')
    assert "\ud800" not in vendor.results[0]


@pytest.mark.parametrize("failing", [429, 500, "stream"])
async def test_after_a_tool_was_used_no_other_model_is_asked(
    orchestra: Orchestra, vendor: Vendor, failing: int | str
) -> None:
    """It would begin anew, and use the tool a second time."""
    vendor.says(calls(("shout", {"text": "hi"})))
    if isinstance(failing, int):
        vendor.server.answer(failing)
    else:
        vendor.server.answer(200, said("x"), fault=Ended())
    await has(orchestra, models=[MODEL, "local:llama3"], tools=[f"{HERE}:shout"])
    with pytest.raises(Exception, match="openai"):
        await ask(orchestra)
    assert [body["model"] for body in vendor.asked] == ["gpt-4o", "gpt-4o"]


async def test_before_a_tool_was_used_another_model_is_asked(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.server.answer(500)
    vendor.says(calls(("shout", {"text": "hi"})), said("done"))
    await has(orchestra, models=[MODEL, "local:llama3"], tools=[f"{HERE}:shout"])
    answer = await ask(orchestra)
    assert [(one.instance_id, one.error) for one in answer.attempts] == [
        (MODEL, "model_server_error"),
        ("local:llama3", None),
    ]
    assert [body["model"] for body in vendor.asked] == ["gpt-4o", "llama3", "llama3"]


async def test_a_model_that_never_stops_calling_is_stopped(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.server.always(Sent.made(200, calls(("shout", {"text": "again"}))))
    await has(orchestra, tools=[f"{HERE}:shout"], max_turns=3, models=[MODEL, "local:llama3"])
    with pytest.raises(TurnsExhausted, match="3 turns"):
        await ask(orchestra)
    assert len(vendor.asked) == 3


@pytest.mark.parametrize("asked", [("add", {"a": "x"}), ("add", {}), ("add", '{"a": '), ("sub", {"a": 1})])
async def test_a_model_is_told_how_a_tool_is_used_and_asked_again(
    orchestra: Orchestra, vendor: Vendor, asked: tuple[str, Any]
) -> None:
    vendor.says(calls(asked), calls(("add", {"a": 1})), said("done"))
    await has(orchestra, tools=[f"{HERE}:add"])
    assert (await ask(orchestra)).output == "done"
    assert len(vendor.asked) == 3
    vendor.server.always(Sent.made(200, calls(asked)))
    with pytest.raises(TurnsExhausted):
        await ask(orchestra)
    # Once, and as often again as output_retries says.
    assert len(vendor.asked) == 3 + 3


async def test_a_model_that_calls_what_nobody_offered_has_not_answered(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(calls(("shout", {"text": "hi"})))
    await has(orchestra)
    with pytest.raises(ModelServerError) as caught:
        await ask(orchestra)
    assert caught.value.data["vendor_code"] == "tool_not_offered"


async def test_arguments_are_checked_against_parameters_before_the_tool_runs(
    orchestra: Orchestra, vendor: Vendor
) -> None:
    vendor.says(calls(("lost", {"n": 0})), said("done"))
    await has(orchestra, tools=[{"function": f"{HERE}:lost", "parameters": NUMBER}])
    assert (await ask(orchestra)).output == "done"
    assert "0 is less than the minimum of 1" in vendor.asked[1]["messages"][-1]["content"]


async def test_a_model_may_refuse_in_the_middle_of_its_tools(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(calls(("shout", {"text": "hi"})), said(None, refusal="I cannot"))
    await has(orchestra, tools=[f"{HERE}:shout"])
    with pytest.raises(ContentRefused):
        await ask(orchestra)


async def test_a_stream_that_breaks_while_tools_are_used_keeps_what_it_told(
    orchestra: Orchestra, vendor: Vendor
) -> None:
    vendor.streams(calls(("shout", {"text": "hi"}), text="Let me see."))
    half = Sent.made(200, streamed(said("Here it is.")), {"content-type": "text/event-stream"})
    vendor.server.answer(200, b"".join(half.pieces[:3]), {"content-type": "text/event-stream"})
    await has(orchestra, models=[MODEL, "local:llama3"], tools=[f"{HERE}:shout"])
    events: list[StreamEvent] = []
    with pytest.raises(StreamBroken):
        await ask(orchestra, emit=events.append)
    told = "".join(str(event.data["text"]) for event in events if event.type is StreamEventType.DELTA)
    assert told == "Let me see. \n\nHere it "
    assert len(vendor.asked) == 2


@pytest.mark.parametrize("tools", [[], [f"{HERE}:shout"]], ids=["plain", "tools"])
async def test_an_output_that_is_too_long_is_stopped(vendor: Vendor, tools: list[str]) -> None:
    head = {"content-type": "text/event-stream"}
    vendor.server.answer(200, streamed(said("one two three four")), head, fault=Stalled(after=5))
    vendor.says(said("one two three four"))
    async with opened(vendor, orchestrator={"max_output_chars": 10}) as orchestra:
        await has(orchestra, models=[MODEL, "local:llama3"], tools=tools)
        for emit, left in ((unheard, 0), (None, 1)):
            with pytest.raises(AgentFailed, match="longer than 10 characters"):
                await ask(orchestra, emit=emit)
            await wait_until(lambda: vendor.server.connections == left, "the rest of it is still read")  # noqa: B023
    assert len(vendor.asked) == 2


def unheard(_: StreamEvent) -> None:
    return None


# --- servers of tools


SERVER: Final = '''
import os
import sys

from mcp.server import MCPServer

server = MCPServer("numbers", log_level="CRITICAL")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def process() -> int:
    """The number of this process."""
    return os.getpid()


@server.tool()
def variables() -> list[str]:
    """What this process knows of ours."""
    return sorted(name for name in os.environ if name.startswith("NUMBERS_"))


@server.tool()
def dies() -> None:
    """Takes the server down."""
    os._exit(3)


if sys.argv[1] == "stdio":
    server.run("stdio")
else:
    server.run("streamable-http", port=int(sys.argv[1]))
'''


@pytest.fixture(scope="module")
def server_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mcp") / "numbers_server.py"
    file.write_text(SERVER, encoding="utf-8")
    return file


def processes(of: Path) -> list[str]:
    """The processes that run a file."""
    commands = [file for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    return [command.parent.name for command in commands if str(of).encode() in _content(command)]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
async def test_tools_of_a_server_over_stdio(
    orchestra: Orchestra, vendor: Vendor, server_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBERS_TOKEN", "t0ken")
    monkeypatch.setenv("NUMBERS_OTHER", "other")
    command = {"mcp": [sys.executable, str(server_file), "stdio"], "prefix": "n", "env": ["NUMBERS_TOKEN"]}
    settings = {"models": [MODEL, "local:llama3"], "tools": [command, f"{HERE}:add"]}
    agent = Agent(id="agent", kind="prompt", settings=settings)
    await orchestra.register_agent(agent, trusted=True)
    asked = calls(("n_add", {"a": 1, "b": 2}), ("add", {"a": 1, "b": 2}), ("n_variables", {}))
    vendor.says(asked, calls(("n_process", {})), calls(("n_process", {})), said("done"))
    assert (await ask(orchestra)).output == "done"
    assert vendor.results[:3] == ["3", '{"sum":3}', '["NUMBERS_TOKEN"]'], "it knows what it was given"
    assert vendor.results[3] == vendor.results[4], "one process serves an answer"
    offered = [tool["function"]["name"] for tool in vendor.asked[0]["tools"]]
    assert sorted(offered) == ["add", "n_add", "n_dies", "n_process", "n_variables"]
    await wait_until(lambda: not processes(server_file), "the server of the tools is left behind")

    # After a tool was used nobody else is asked; and one that dies is there again.
    vendor.says(calls(("n_dies", {})), calls(("n_add", {"a": 1, "b": 2})))
    vendor.server.answer(500)
    with pytest.raises(ModelServerError):
        await ask(orchestra)
    assert {body["model"] for body in vendor.asked} == {"gpt-4o"}

    vendor.server.silence()
    await orchestra.update_agent(dataclasses.replace(agent, limits=Limits(timeout=3)), trusted=True)
    with pytest.raises(DeadlineExceeded):
        await ask(orchestra)
    await wait_until(lambda: not processes(server_file), "the server of the tools is left behind")


def _takes_connections(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def mcp_url(server_file: Path) -> Generator[tuple[str, Callable[[], None]]]:
    """Where a server of tools listens, and how it is ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, str(server_file), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        def end() -> None:
            process.kill()
            process.wait()

        try:
            give_up = time.monotonic() + 30
            while not _takes_connections(port):
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/mcp", end
        finally:
            end()


@pytest.mark.slow
async def test_tools_of_a_server_over_http(
    orchestra: Orchestra, vendor: Vendor, mcp_url: tuple[str, Callable[[], None]]
) -> None:
    url, end = mcp_url
    await has(orchestra, tools=[{"mcp": url, "prefix": "n"}])
    for _ in range(2):
        vendor.says(calls(("n_add", {"a": 1, "b": 2})), said("done"))
        assert (await ask(orchestra)).output == "done"
        assert vendor.results == ["3"]
    end()
    # Without its tools the model is not even asked.
    before = len(vendor.asked)
    with pytest.raises(AgentFailed, match="tool of agent 'agent' failed"):
        await ask(orchestra)
    assert len(vendor.asked) == before


async def test_a_server_whose_variable_is_not_set_is_a_fault(orchestra: Orchestra) -> None:
    for tool in (
        {"mcp": ["x"], "env": ["NUMBERS_TOKEN"]},
        {"mcp": "http://127.0.0.1:1", "headers": {"Authorization": "Bearer ${NUMBERS_TOKEN}"}},
    ):
        with pytest.raises(InvalidAgent, match="the variable NUMBERS_TOKEN is not set"):
            await has(orchestra, tools=[tool])


# --- structured output


async def test_an_output_that_matches_is_taken_at_once(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(said('{"n": 4}'))
    await has(orchestra, output_schema=NUMBER)
    answer = await ask(orchestra)
    assert (answer.value, json.loads(answer.output)) == ({"n": 4}, {"n": 4})
    (body,) = vendor.asked
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"]["properties"]["n"]["type"] == "integer"
    assert "tools" not in body
    record = (await orchestra.get_request(answer.request_id)).end
    assert isinstance(record, Answer)
    assert record.value == {"n": 4}


@pytest.mark.parametrize("wrong", ['{"n": 0}', '{"n": "x"}', "{}", "[4]", "four", '{"n": 4', ""])
async def test_an_output_that_does_not_match_is_asked_for_again(
    orchestra: Orchestra, vendor: Vendor, wrong: str
) -> None:
    vendor.says(said(wrong), said('{"n": 4}'))
    await has(orchestra, output_schema=NUMBER)
    answer = await ask(orchestra)
    assert answer.value == {"n": 4}
    assert len(vendor.asked) == 2
    assert len(vendor.asked[1]["messages"]) > len(vendor.asked[0]["messages"]), "it is told what was wrong"
    assert answer.usage.input_tokens == 20


@pytest.mark.parametrize(("retries", "requests"), [(None, 3), (0, 1), (1, 2), (10, 11)])
async def test_an_output_that_never_matches_is_kept_in_the_error(
    orchestra: Orchestra, vendor: Vendor, retries: int | None, requests: int
) -> None:
    vendor.server.always(Sent.made(200, said('{"n": 0}')))
    policy: dict[str, Any] = {} if retries is None else {"output_retries": retries}
    await has(orchestra, models=[MODEL, "local:llama3"], output_schema=NUMBER, **policy)
    with pytest.raises(OutputInvalid, match="0 is less than the minimum") as caught:
        await ask(orchestra)
    assert caught.value.data["output"] == '{"n": 0}'
    assert len(vendor.asked) == requests
    assert {body["model"] for body in vendor.asked} == {"gpt-4o"}


def message(*content: Mapping[str, Any], stop: str = "end_turn") -> dict[str, Any]:
    """A whole answer of Anthropic."""
    usage = {"input_tokens": 10, "output_tokens": 5}
    head = {"id": "msg-1", "type": "message", "role": "assistant", "model": "claude-3-haiku-20240307"}
    return {**head, "content": list(content), "stop_reason": stop, "stop_sequence": None, "usage": usage}


async def test_a_model_that_takes_no_schema_is_given_it_as_a_tool(orchestra: Orchestra, vendor: Vendor) -> None:
    def uses(value: object) -> dict[str, Any]:
        return message({"type": "tool_use", "id": "t-1", "name": "final_result", "input": value}, stop="tool_use")

    await has(orchestra, model="anthropic:claude-3-haiku-20240307", output_schema=NUMBER, output_retries=1)
    vendor.says(uses({"n": 0}), uses({"n": 4}))
    answer = await ask(orchestra)
    assert (answer.value, answer.reply.tool_calls) == ({"n": 4}, ())
    (offered,) = vendor.asked[0]["tools"]
    assert offered["name"] == "final_result"
    assert offered["input_schema"]["properties"] == NUMBER["properties"]
    assert vendor.asked[0]["tool_choice"]["type"] in ("any", "tool")
    assert len(vendor.asked) == 2
    vendor.says(uses({"n": 0}), message({"type": "text", "text": "I cannot."}))
    with pytest.raises(OutputInvalid) as caught:
        await ask(orchestra)
    assert caught.value.data["output"] == "I cannot."
    vendor.says(uses({"n": 0}), uses({"n": -1}))
    with pytest.raises(OutputInvalid) as caught:
        await ask(orchestra)
    assert json.loads(str(caught.value.data["output"])) == {"n": -1}
    assert len(vendor.asked) == 6


async def test_a_stream_of_structured_output_is_told_whole_once_it_is_checked(
    orchestra: Orchestra, vendor: Vendor
) -> None:
    vendor.says(said('{"n": 0}'), said('{"n": 4}'))
    await has(orchestra, output_schema=NUMBER)
    events: list[StreamEvent] = []
    answer = await ask(orchestra, emit=events.append)
    pieces = [str(event.data["text"]) for event in events if event.type is StreamEventType.DELTA]
    assert [json.loads(piece) for piece in pieces] == [{"n": 4}]
    assert answer.value == {"n": 4}


async def test_structured_output_after_tools(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(calls(("add", {"a": 1, "b": 2}), text="Let me see."), said('{"n": 3}'))
    await has(orchestra, tools=[f"{HERE}:add"], output_schema=NUMBER)
    answer = await ask(orchestra)
    assert (answer.value, json.loads(answer.output)) == ({"n": 3}, {"n": 3})
    assert vendor.results == ['{"sum":3}']


async def test_a_schema_may_refer_to_what_it_defines(orchestra: Orchestra, vendor: Vendor) -> None:
    schema = {
        "type": "object",
        "properties": {"a/b": {"$ref": "#/$defs/small~1one"}},
        "required": ["a/b"],
        "$defs": {"small/one": {"type": "integer", "maximum": 5}},
    }
    vendor.says(said('{"a/b": 6}'), said('{"a/b": 5}'))
    await has(orchestra, output_schema=schema)
    assert (await ask(orchestra)).value == {"a/b": 5}


# --- what a model cannot take


@pytest.mark.parametrize(
    ("model", "media_type"),
    [
        (MODEL, "video/mp4"),
        (MODEL, "audio/wav"),
        (MODEL, "application/zip"),
        ("openai-responses:gpt-4o", "video/mp4"),
        ("anthropic:claude-sonnet-4-5", "audio/wav"),
        ("google:gemini-2.5-flash", "application/zip"),
    ],
)
@pytest.mark.parametrize("tools", [[], [f"{HERE}:shout"]], ids=["plain", "tools"])
async def test_a_part_that_a_model_cannot_take_is_refused_before_it_is_asked(
    orchestra: Orchestra, vendor: Vendor, model: str, media_type: str, tools: list[str]
) -> None:
    await has(orchestra, model=model, tools=tools)
    with pytest.raises(AttachmentNotSupported, match=media_type) as caught:
        await ask(orchestra, attachments=[PNG, Attachment(media_type=media_type, data=b"x")])
    assert caught.value.data["media_type"] == media_type
    assert vendor.asked == []


async def test_a_part_that_one_model_cannot_take_goes_to_one_that_can(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.server.play(read_case("google/text"))
    await has(orchestra, models=[MODEL, "google:gemini-2.5-flash"])
    answer = await ask(orchestra, attachments=[Attachment(media_type="video/mp4", data=b"film")])
    assert [(one.instance_id, one.error) for one in answer.attempts] == [
        (MODEL, "attachment_not_supported"),
        ("google:gemini-2.5-flash", None),
    ]
    assert len(vendor.asked) == 1


@pytest.mark.parametrize("more", [{}, {"tools": [f"{HERE}:shout"]}, {"output_schema": NUMBER}])
async def test_instructions_over_the_context_are_refused_before_the_model_is_asked(
    orchestra: Orchestra, vendor: Vendor, more: Mapping[str, Any]
) -> None:
    # It reads 8192 tokens, and no tokenizer makes fewer of so many words.
    await has(orchestra, model="openai:gpt-4", instructions="word " * 9_000, **more)
    with pytest.raises(ContextTooLong, match="8192") as caught:
        await ask(orchestra)
    assert caught.value.data == {"provider": "openai", "model": "gpt-4"}
    assert vendor.asked == []


async def test_what_may_yet_fit_is_for_the_vendor_to_say(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(said("it fits"))
    await has(orchestra, model="openai:gpt-4", instructions="word " * 8_000)
    assert (await ask(orchestra)).output == "it fits"


async def test_what_one_model_cannot_read_goes_to_one_that_can(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(said("read"))
    await has(orchestra, models=["openai:gpt-4", MODEL], instructions="word " * 9_000)
    answer = await ask(orchestra)
    assert [one.error for one in answer.attempts] == ["context_too_long", None]


# --- many at once, and those that nobody waits for


@pytest.mark.parametrize("tools", [[], [f"{HERE}:shout"]], ids=["plain", "tools"])
async def test_twenty_at_once_are_not_mixed(tools: list[str]) -> None:
    """Each is answered with its own words, by a server that answers each by what it was asked."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(echoing())
        providers = {"openai": {"base_url": url, "api_key": KEY}}
        orchestra = await stack.enter_async_context(temporary_orchestra(providers=providers))
        await has(orchestra, tools=tools)
        told: dict[int, list[str]] = {number: [] for number in range(20)}

        def listener(number: int) -> Callable[[StreamEvent], None] | None:
            def listen(event: StreamEvent) -> None:
                if event.type is StreamEventType.DELTA:
                    told[number].append(str(event.data["text"]))

            return listen if number % 2 else None

        answers = await asyncio.gather(*(ask(orchestra, f"n{n}", emit=listener(n)) for n in range(20)))
        for number, answer in enumerate(answers):
            expected = f"N{number}" if tools else f"n{number}"
            assert answer.output.strip() == expected
            if number % 2:
                assert "".join(told[number]) == answer.output


@asynccontextmanager
async def echoing() -> AsyncGenerator[str]:
    """A vendor that says what it was asked, or, with tools, what the tool made of it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                last = body["messages"][-1]
                completion = said(last["content"])
                if body.get("tools") and last["role"] == "user":
                    completion = calls(("shout", {"text": last["content"]}))
                content = streamed(completion) if body["stream"] else json.dumps(completion).encode()
                kind = "text/event-stream" if body["stream"] else "application/json"
                await asyncio.sleep(0.01)
                writer.write(
                    f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n".encode()
                )
                writer.write(content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("model", "tools"),
    [
        (MODEL, []),
        (MODEL, [f"{HERE}:shout"]),
        ("openai-responses:gpt-4o", []),
        ("anthropic:claude-sonnet-4-5", []),
        ("google:gemini-2.5-flash", []),
    ],
)
async def test_a_request_whose_time_is_over_leaves_no_connection(
    orchestra: Orchestra, vendor: Vendor, model: str, tools: list[str], streams: bool
) -> None:
    api = WIRE[model.partition(":")[0]]
    vendor.server.play(read_case(f"{api}/text"))
    agent = Agent(id="agent", kind="prompt", settings={"model": model, "tools": tools}, recovery=ONCE)
    await orchestra.register_agent(agent, trusted=True)
    # What comes with the first call, such as an import, takes no part of the time.
    await ask(orchestra)
    assert vendor.server.connections == 1
    await orchestra.update_agent(dataclasses.replace(agent, limits=Limits(timeout=0.5)), trusted=True)
    if streams:
        case = read_case(f"{api}/stream_text")
        vendor.server.play(case, Stalled(after=len(case.events) - 2))
    else:
        vendor.server.silence()
    with pytest.raises(DeadlineExceeded):
        await ask(orchestra, emit=unheard if streams else None)
    assert len(vendor.asked) == 2
    await wait_until(lambda: vendor.server.connections == 0, "the vendor is still being waited for")


@pytest.mark.parametrize(("tools", "elsewhere"), [([], True), ([f"{HERE}:shout"], False)], ids=["plain", "tools"])
async def test_a_model_that_is_late_is_left_for_the_next_unless_tools_may_have_been_used(
    orchestra: Orchestra, vendor: Vendor, tools: list[str], elsewhere: bool
) -> None:
    vendor.says(said("warm"))
    agent = Agent(id="agent", kind="prompt", settings={"models": [MODEL, "local:llama3"], "tools": tools})
    await orchestra.register_agent(agent, trusted=True)
    await ask(orchestra)
    await orchestra.update_agent(dataclasses.replace(agent, limits=Limits(timeout=1)), trusted=True)
    vendor.server.silence()
    vendor.says(said("here"))
    if elsewhere:
        answer = await ask(orchestra)
        assert [(one.instance_id, one.error) for one in answer.attempts] == [
            (MODEL, "deadline_exceeded"),
            ("local:llama3", None),
        ]
    else:
        with pytest.raises(DeadlineExceeded):
            await ask(orchestra)
        assert len(vendor.asked) == 2


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("tools", [[], [f"{HERE}:shout"]], ids=["plain", "tools"])
async def test_a_request_that_is_superseded_leaves_no_connection(
    orchestra: Orchestra, vendor: Vendor, tools: list[str], streams: bool
) -> None:
    await has(orchestra, tools=tools)
    conversation = await orchestra.create_conversation(input_policy=InputPolicy.INTERRUPT)
    if streams:
        head = {"content-type": "text/event-stream"}
        vendor.server.answer(200, streamed(said("one two")), head, fault=Stalled(after=2))
    else:
        vendor.server.silence()
    vendor.says(said("second"))
    events: list[StreamEvent] = []
    first = asyncio.create_task(
        ask(orchestra, "first", conversation_id=conversation.id, emit=events.append if streams else None)
    )
    await wait_until(lambda: len(vendor.asked) == 1, "the vendor was not asked", seconds=30)
    if streams:
        await wait_until(lambda: any(e.type is StreamEventType.DELTA for e in events), "nothing was told")
    second = await ask(orchestra, "second", conversation_id=conversation.id)
    with pytest.raises(Superseded):
        await first
    assert second.output == "second"
    await wait_until(lambda: vendor.server.connections == 1, "the first connection is still open")


# --- keys


@asynccontextmanager
async def keyless(vendor: Vendor, **providers: Mapping[str, object]) -> AsyncGenerator[Orchestra]:
    urls = {name: {"base_url": vendor.server.url} for name in ("anthropic", "openai", "google")}
    own = {name: {**url, **providers.get(name, {})} for name, url in urls.items()}
    async with temporary_orchestra(providers=own) as orchestra:
        yield orchestra


async def test_without_a_key_the_error_names_what_would_do(vendor: Vendor) -> None:
    async with keyless(vendor) as orchestra:
        await has(orchestra, models=[MODEL, "openai-responses:gpt-4o", "google:gemini-2.5-flash"])
        with pytest.raises(ProviderKeyMissing) as caught:
            await ask(orchestra)
        for name in ("OPENAI_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY", "providers.openai.api_key"):
            assert name in caught.value.detail
        assert caught.value.data["provider"] == "openai"
        with pytest.raises(ProviderKeyMissing, match="ANTHROPIC_API_KEY"):
            await orchestra.ask_model("anthropic:claude-sonnet-4-5", "hello")
        assert vendor.asked == []


async def test_without_a_key_an_offline_section_answers(vendor: Vendor) -> None:
    async with keyless(vendor) as orchestra:
        await has(orchestra, offline={"knowledge": ["The bakery opens at seven."]}, tools=[f"{HERE}:shout"])
        answer = await ask(orchestra, "when does the bakery open?")
        assert "The bakery opens at seven." in answer.output
        assert (answer.instance, answer.reply.generation) == ("offline", None)
        assert vendor.asked == []


async def test_with_a_key_the_offline_section_is_silent(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.says(said("from the model"))
    await has(orchestra, offline={"knowledge": ["The bakery opens at seven."]})
    assert (await ask(orchestra, "when does the bakery open?")).output == "from the model"


async def test_notes_stand_by_for_a_server_of_ones_own(vendor: Vendor) -> None:
    vendor.says(said("from the model"))
    vendor.server.hang_up()
    async with temporary_orchestra(providers={"local": {"base_url": vendor.server.url}}) as orchestra:
        await has(orchestra, model="local:llama3", offline={"knowledge": ["The bakery opens at seven."]})
        assert (await ask(orchestra, "when does the bakery open?")).output == "from the model"
        answer = await ask(orchestra, "when does the bakery open?")
        assert "The bakery opens at seven." in answer.output
        assert [(one.instance_id, one.error) for one in answer.attempts] == [
            ("local:llama3", "model_unreachable"),
            ("offline", None),
        ]


async def test_only_a_model_with_a_key_is_an_instance(vendor: Vendor) -> None:
    async with keyless(vendor, openai={"api_key": KEY}) as orchestra:
        await has(orchestra, models=["anthropic:claude-sonnet-4-5", MODEL, "google:gemini-2.5-flash"])
        vendor.server.answer(500)
        with pytest.raises(ModelServerError):
            await ask(orchestra)
        assert [body["model"] for body in vendor.asked] == ["gpt-4o"]
        entry = orchestra.get_agent("agent")
        assert [instance.id for instance in entry.pool.instances] == [MODEL]


@pytest.mark.parametrize(
    ("variable", "provider", "header"),
    [
        ("OPENAI_API_KEY", "openai", "authorization"),
        ("ANTHROPIC_API_KEY", "anthropic", "authorization"),
        ("GOOGLE_API_KEY", "google", "x-goog-api-key"),
        ("GEMINI_API_KEY", "google", "x-goog-api-key"),
        ("ORCHESTRA_PROVIDERS__OPENAI__API_KEY", "openai", "authorization"),
    ],
)
async def test_keys_come_from_the_environment_by_their_usual_names(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch, variable: str, provider: str, header: str
) -> None:
    monkeypatch.setenv(variable, f" {KEY}\n")
    models = {"openai": MODEL, "anthropic": "anthropic:claude-sonnet-4-5", "google": "google:gemini-2.5-flash"}
    vendor.server.play(read_case(f"{WIRE[provider]}/text"))
    async with keyless(vendor) as orchestra:
        await has(orchestra, model=models[provider])
        await ask(orchestra)
    sent = vendor.server.requests[0].headers
    assert sent.get("x-api-key", sent.get(header)) in (KEY, f"Bearer {KEY}")


async def test_a_key_in_the_settings_wins(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    vendor.says(said("hi"))
    async with keyless(vendor, openai={"api_key": KEY}) as orchestra:
        await has(orchestra)
        await ask(orchestra)
    assert vendor.server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_server_of_ones_own_needs_no_key(vendor: Vendor) -> None:
    vendor.says(said("hi"))
    async with temporary_orchestra(providers={"local": {"base_url": vendor.server.url}}) as orchestra:
        await has(orchestra, model="local:llama3")
        assert (await ask(orchestra)).output == "hi"


async def test_a_key_is_told_nobody(vendor: Vendor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where the vendor quotes it: in what is logged, told, listed, or kept."""
    caplog.set_level("DEBUG")
    quoted = {"error": {"message": f"Incorrect API key provided: {KEY}.", "type": "x", "code": KEY, "param": KEY}}
    file = tmp_path / "kept.db"
    metrics = {"detailed_logging": True}
    told: list[str] = []
    async with opened(vendor, database={"url": f"sqlite:///{file}"}, metrics=metrics) as orchestra:
        await has(orchestra, models=[MODEL, "openai-responses:gpt-4o"])
        for status in (400, 401, 403, 429, 500):
            for _ in range(2):
                vendor.server.answer(
                    status, {**quoted, "error": {**quoted["error"], "code": "x"}}, {"x-request-id": "r"}
                )
            with pytest.raises(ModelFailed) as caught:
                await ask(orchestra)
            told += [repr(caught.value), str(caught.value.data), repr(caught.value.__cause__)]
        told.append(repr(orchestra.get_agents()))
        told.append(repr(await orchestra.get_providers()))
        vendor.server.answer(401, quoted)
        told.append(repr(await orchestra.get_providers(fresh=True)))
    assert len(told) >= 4
    for text in (*told, caplog.text):
        assert KEY not in text
    assert not holding(tmp_path, KEY)


def holding(folder: Path, secret: str) -> list[Path]:
    """The files that hold it."""
    files = [file for file in folder.iterdir() if file.is_file()]
    assert files
    return [file for file in files if secret.encode() in file.read_bytes()]


async def test_a_wrong_key_says_where_it_came_from(orchestra: Orchestra, vendor: Vendor) -> None:
    vendor.server.answer(401, {"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_api_key"}})
    await has(orchestra)
    with pytest.raises(ModelAuthenticationFailed, match="OPENAI_API_KEY") as caught:
        await ask(orchestra)
    assert caught.value.data["vendor_code"] == "invalid_api_key"
