"""The recorded questions as prompts of ours, and ours on the wire read back, so that the two can be compared."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from agent_orchestra.adapters.models.kind import VendorModels
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.models.vendors import ProviderConfig
from agent_orchestra.core.message import Attachment
from agent_orchestra.core.prompt import Noted, Prompt, Said, ToolResult, ToolSpec, Turn, Wrote
from agent_orchestra.core.request import ToolCall
from tests.services.replay import Case

__all__ = ["APIS", "KEY", "Api", "configs", "model_of", "name_of", "open_models", "prompt_in"]

#: To be found wherever it should not be.
KEY: Final = "sk-recognisable-0123456789"
#: What stands for a picture that was recorded as an address, or that was cut when it was recorded.
_PICTURE: Final = b"a picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One of the recorded APIs: the ``prefix`` of its models and its provider with us, and where its key may stand."""

    prefix: str
    provider: str
    base: str = ""
    keys: Mapping[str, str]


_BEARER: Final = {"authorization": f"Bearer {KEY}"}
APIS: Final[Mapping[str, Api]] = {
    # It takes either, and its SDK has used both.
    "anthropic": Api(prefix="anthropic", provider="anthropic", keys={"x-api-key": KEY, **_BEARER}),
    "google": Api(prefix="google", provider="google", keys={"x-goog-api-key": KEY}),
    "openai-chat": Api(prefix="openai", provider="openai", base="/v1", keys=_BEARER),
    "openai-responses": Api(prefix="openai-responses", provider="openai", base="/v1", keys=_BEARER),
}


def configs(url: str, **limits: Any) -> dict[str, ProviderConfig]:
    """Every provider at this address, with :data:`KEY`. ``limits`` are those of :class:`ProviderConfig`."""
    given: dict[str, Any] = {"timeout": 10.0, **limits}
    bases = {"local": "/v1", **{api.provider: api.base for api in APIS.values()}}
    return {name: ProviderConfig(api_key=KEY, base_url=url + base, **given) for name, base in bases.items()}


@asynccontextmanager
async def open_models(url: str, **limits: Any) -> AsyncGenerator[VendorModels]:
    """The models of every vendor at this address."""
    providers = Providers(configs(url, **limits))
    try:
        yield VendorModels(providers)
    finally:
        await providers.close()


def model_of(case: Case) -> str:
    """The model that was asked, by its vendor's name."""
    return case.request["body"].get("model") or case.path.partition("/models/")[2].partition(":")[0]


def name_of(case: Case) -> str:
    """The model that was asked, by its name with us."""
    return f"{APIS[case.provider].prefix}:{model_of(case)}"


def prompt_in(provider: str, body: Mapping[str, Any]) -> Prompt:
    """What a request to a vendor asks, as far as a :class:`Prompt` can say it.

    Calls of tools that have no id are numbered. What only one vendor knows (its own tools, its settings) is left out.
    """
    return _READERS[provider](body)


def _anthropic(body: Mapping[str, Any]) -> Prompt:
    turns: list[Turn] = []
    names: dict[str, str] = {}
    for message in body["messages"]:
        blocks = _blocks(message["content"])
        if message["role"] == "assistant":
            calls = [_call(b["id"], b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"]
            names.update({call.id: call.name for call in calls})
            turns.append(Said(content=_text(blocks), tool_calls=calls))
            continue
        for block in blocks:
            if block["type"] == "tool_result":
                id_ = block["tool_use_id"]
                turns.append(ToolResult(id=id_, name=names[id_], content=_text(_blocks(block["content"]))))
        turns.extend(_wrote(blocks, (_attachment(b["source"]) for b in blocks if b["type"] == "image")))
    return Prompt(
        turns=turns,
        instructions=_text(_blocks(body.get("system", ""))),
        tools=[_tool(tool, "input_schema") for tool in body.get("tools", ()) if "input_schema" in tool],
        output_schema=_at(body, "output_config", "format", "schema"),
        temperature=body.get("temperature"),
        max_tokens=body["max_tokens"],
    )


def _chat(body: Mapping[str, Any]) -> Prompt:
    turns: list[Turn] = []
    instructions = ""
    names: dict[str, str] = {}
    for number, message in enumerate(body["messages"]):
        blocks = _blocks(message.get("content") or "")
        match message["role"]:
            case "system" | "developer" if number == 0:
                instructions = _text(blocks)
            case "system" | "developer":
                turns.append(Noted(content=_text(blocks)))
            case "assistant":
                given = message.get("tool_calls") or ()
                calls = [_call(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in given]
                names.update({call.id: call.name for call in calls})
                turns.append(Said(content=_text(blocks), tool_calls=calls))
            case "tool":
                id_ = message["tool_call_id"]
                turns.append(ToolResult(id=id_, name=names[id_], content=_text(blocks)))
            case _:
                turns.extend(_wrote(blocks, _pictures(blocks)))
    tools = [tool["function"] for tool in body.get("tools", ())] or body.get("functions", ())
    return Prompt(
        turns=turns,
        instructions=instructions,
        tools=[_tool(tool, "parameters") for tool in tools],
        output_schema=_at(body, "response_format", "json_schema", "schema"),
        temperature=body.get("temperature"),
        max_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
    )


def _responses(body: Mapping[str, Any]) -> Prompt:
    turns: list[Turn] = []
    names: dict[str, str] = {}
    given = body["input"]
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        match item.get("type", "message"):
            case "function_call":
                call = _call(item["call_id"], item["name"], item["arguments"])
                names[call.id] = call.name
                turns.append(Said(content="", tool_calls=[call]))
            case "function_call_output":
                id_ = item["call_id"]
                turns.append(ToolResult(id=id_, name=names[id_], content=_text(_blocks(item["output"]))))
            case _:
                blocks = _blocks(item["content"])
                match item["role"]:
                    case "assistant":
                        turns.append(Said(content=_text(blocks)))
                    case "user":
                        turns.extend(_wrote(blocks, _pictures(blocks)))
                    case _:
                        turns.append(Noted(content=_text(blocks)))
    return Prompt(
        turns=turns,
        instructions=body.get("instructions") or "",
        tools=[_tool(tool, "parameters") for tool in body.get("tools", ()) if tool["type"] == "function"],
        output_schema=_at(body, "text", "format", "schema"),
        temperature=body.get("temperature"),
        max_tokens=body.get("max_output_tokens"),
    )


def _google(body: Mapping[str, Any]) -> Prompt:
    turns: list[Turn] = []
    called = answered = 0
    for content in body["contents"]:
        parts: Sequence[Mapping[str, Any]] = content["parts"]
        if content.get("role") == "model":
            calls: list[ToolCall] = []
            for call in _given(parts, "functionCall"):
                called += 1
                calls.append(_call(f"call-{called}", call["name"], call.get("args") or {}))
            turns.append(Said(content=_text(parts), tool_calls=calls))
            continue
        for result in _given(parts, "functionResponse"):
            answered += 1
            value = result["response"]["return_value"]
            turns.append(ToolResult(id=f"call-{answered}", name=result["name"], content=value))
        turns.extend(_wrote(parts, (_attachment(data) for data in _given(parts, "inlineData"))))
    settings = body.get("generationConfig", {})
    tools: Any = body.get("tools", ())
    groups: list[Any] = [tools] if isinstance(tools, dict) else list(tools)
    declared: list[Any] = []
    for group in groups:
        declared.extend(group.get("functionDeclarations", group.get("function_declarations", ())))
    return Prompt(
        turns=turns,
        instructions=_text(body.get("systemInstruction", {}).get("parts", ())),
        tools=[
            _tool(tool, next(k for k in ("parameters", "parametersJsonSchema", "parameters_json_schema") if k in tool))
            for tool in declared
        ],
        output_schema=settings.get("responseJsonSchema", settings.get("responseSchema")),
        temperature=settings.get("temperature"),
        max_tokens=settings.get("maxOutputTokens"),
    )


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Prompt]]] = {
    "anthropic": _anthropic,
    "openai-chat": _chat,
    "openai-responses": _responses,
    "google": _google,
}


def _blocks(content: str | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(blocks: Iterable[Mapping[str, Any]]) -> str:
    return "".join(block["text"] for block in blocks if "text" in block)


def _given(parts: Iterable[Mapping[str, Any]], name: str) -> Iterator[Mapping[str, Any]]:
    return (part[name] for part in parts if name in part)


def _wrote(blocks: Sequence[Mapping[str, Any]], attachments: Iterable[Attachment]) -> Iterator[Wrote]:
    if any("text" in block for block in blocks):
        yield Wrote(content=_text(blocks), attachments=tuple(attachments))


def _call(id_: str, name: str, arguments: str | Mapping[str, Any]) -> ToolCall:
    return ToolCall(
        id=id_, name=name, arguments=json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    )


def _tool(tool: Mapping[str, Any], schema: str) -> ToolSpec:
    return ToolSpec(name=tool["name"], description=tool.get("description") or "", parameters=_lowered(tool[schema]))


def _lowered(schema: Any) -> Any:
    """A schema with the names of its types as JSON Schema writes them; Google's own dialect has capitals."""
    if isinstance(schema, list):
        return [_lowered(one) for one in schema]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value.lower() if key == "type" and isinstance(value, str) else _lowered(value)
        for key, value in schema.items()  # pyright: ignore[reportUnknownVariableType]
    }


def _pictures(blocks: Iterable[Mapping[str, Any]]) -> Iterator[Attachment]:
    for block in blocks:
        if "image_url" in block:
            url = block["image_url"]
            url = url if isinstance(url, str) else url["url"]
            media_type, comma, data = url.removeprefix("data:").partition(";base64,")
            yield _attachment({"mimeType": media_type if comma else "image/jpeg", "data": data})


def _attachment(source: Mapping[str, Any]) -> Attachment:
    media_type = source.get("mimeType", source.get("media_type", source.get("mime_type")))
    assert isinstance(media_type, str)
    try:
        data = base64.b64decode(source["data"], altchars=b"-_", validate=True)
    except binascii.Error:
        data = b""
    return Attachment(media_type=media_type, data=data or _PICTURE)


def _at(body: Mapping[str, Any], *path: str) -> Any:
    found: Any = body
    for name in path:
        found = found.get(name) if found else None
    return found
