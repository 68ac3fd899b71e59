"""One turn of one model: a prompt in, a reply out. Imports pydantic-ai."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable
from typing import Final

from pydantic_ai.messages import (
    BinaryContent,
    InstructionPart,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    PartDeltaEvent,
    PartStartEvent,
    SystemPromptPart,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from agent_orchestra.adapters.models.failures import refusal_of
from agent_orchestra.adapters.models.model import ListenerFailed, VendorModel, reply_of
from agent_orchestra.adapters.models.schemas import compiled, matching
from agent_orchestra.core.message import Attachment
from agent_orchestra.core.prompt import Noted, Prompt, Said, ToolResult, Turn, Wrote
from agent_orchestra.core.request import Reply
from agent_orchestra.errors import AttachmentNotSupported, ContextTooLong, OrchestraError
from agent_orchestra.runtime.executor import Emit

__all__ = ["ask", "messages_of", "settings_of", "text_of", "user_content"]

#: No tokenizer in use makes fewer tokens than there are such pieces: none joins words over a space, and tokens that are
#: longer than this are runs of one character. So the count is a floor, not an estimate.
_PIECE: Final = re.compile(r"\S{1,64}")
_WHOLE_TOKENS: Final = 16_384
_NO_PARAMETERS: Final = ModelRequestParameters()


async def ask(model: VendorModel, prompt: Prompt, emit: Emit | None = None) -> Reply:
    """The model's next turn; with ``emit``, its text as it comes.

    Raises :class:`ModelFailed`; :class:`ContextTooLong` and :class:`AttachmentNotSupported` before the vendor is asked,
    where that is certain.
    """
    check(model, prompt)
    messages = messages_of(prompt)
    settings = settings_of(prompt, model.profile)
    parameters = _parameters(prompt, model.profile)
    if emit is None:
        response = await model.request(messages, settings, parameters)
        return _finished(response, model, prompt, None)
    began = time.perf_counter()
    first: float | None = None
    async with model.request_stream(messages, settings, parameters) as streamed:
        async for event in streamed:
            if first is None and isinstance(event, PartStartEvent | PartDeltaEvent):
                first = round((time.perf_counter() - began) * 1_000, 3)
            if text := text_of(event):
                try:
                    emit(text)
                except OrchestraError:
                    raise
                except Exception as error:
                    raise ListenerFailed from error
    return _finished(streamed.get(), model, prompt, first)


def _finished(response: ModelResponse, model: VendorModel, prompt: Prompt, first: float | None) -> Reply:
    reply = reply_of(response, model, first_token_ms=first)
    if prompt.output_schema is None or reply.tool_calls:
        return reply
    schema = compiled(prompt.output_schema)
    value = matching(reply.output, schema, provider=model.vendor.name, model=model.asked)
    return dataclasses.replace(reply, value=value)


def text_of(event: object) -> str:
    """The text that an event of a stream adds."""
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    return ""


def check(model: VendorModel, prompt: Prompt) -> None:
    """Raises for what the model certainly cannot take."""
    profile = model.profile
    for turn in prompt.turns:
        if isinstance(turn, Wrote):
            for attachment in turn.attachments:
                if not _takes(profile, attachment):
                    raise AttachmentNotSupported(
                        f"'{model.asked}' of {model.vendor.name} takes no such part of type '{attachment.media_type}'",
                        provider=model.vendor.name,
                        model=model.asked,
                        media_type=attachment.media_type,
                    )
    window = profile.get("context_window")
    if not window:
        return
    texts = [prompt.instructions, *(turn.content for turn in prompt.turns)]
    if sum(map(len, texts)) <= window:
        # There are no more tokens than characters, but for what nobody writes so much of.
        return
    least = sum(1 for text in texts for _ in _PIECE.finditer(text))
    if least > window:
        error = refusal_of(ContextTooLong, provider=model.vendor.name, model=model.asked)
        raise ContextTooLong(f"{error.detail} (at least {least} tokens; it reads {window})", **error.data)


def _takes(profile: ModelProfile, attachment: Attachment) -> bool:
    media_type = attachment.media_type
    family = media_type.partition("/")[0]
    if family == "text" and not _is_text(attachment.data):
        return False
    if family == "image":
        return bool(profile.get("supports_image_input", True))
    if family == "audio":
        return bool(profile.get("supports_audio_file_input", True))
    if family == "video":
        return bool(profile.get("supports_video_input", True))
    documents = profile.get("supported_document_media_types")
    if not profile.get("supports_document_input", True):
        return False
    return not documents or media_type in documents


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def settings_of(prompt: Prompt, profile: ModelProfile) -> ModelSettings | None:
    settings = ModelSettings()
    most = profile.get("anthropic_max_output_tokens")
    if isinstance(most, int) and most > _WHOLE_TOKENS:
        # The SDK does not ask for more in one piece; it would stream behind our back.
        settings["max_tokens"] = _WHOLE_TOKENS
    if prompt.temperature is not None and _takes_temperature(profile):
        settings["temperature"] = prompt.temperature
    if prompt.max_tokens is not None:
        settings["max_tokens"] = prompt.max_tokens
    return settings or None


def _takes_temperature(profile: ModelProfile) -> bool:
    """Models that reason take none. pydantic-ai leaves it out too, and warns at every call."""
    if profile.get("anthropic_disallows_sampling_settings"):
        return False
    may_stop = profile.get("openai_supports_reasoning_effort_none")
    reasons = profile.get("thinking_enabled_by_default") or not may_stop
    return not (profile.get("openai_supports_reasoning") and reasons)


def _parameters(prompt: Prompt, profile: ModelProfile) -> ModelRequestParameters:
    if not prompt.tools and prompt.output_schema is None:
        return _NO_PARAMETERS
    tools = [
        ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=dict(tool.parameters))
        for tool in prompt.tools
    ]
    if prompt.output_schema is None:
        return ModelRequestParameters(function_tools=tools)
    output = OutputObjectDefinition(json_schema=dict(prompt.output_schema), name="output")
    if profile.get("supports_json_schema_output"):
        return ModelRequestParameters(function_tools=tools, output_mode="native", output_object=output)
    # The schema is put into words after the instructions, which are read from here alone then.
    instructions = [InstructionPart(content=prompt.instructions)] if prompt.instructions else None
    return ModelRequestParameters(
        function_tools=tools, output_mode="prompted", output_object=output, instruction_parts=instructions
    )


def messages_of(prompt: Prompt) -> list[ModelMessage]:
    """The turns as pydantic-ai has them: those of the user's side that follow each other are one message."""
    messages: list[ModelMessage] = []
    for turn in prompt.turns:
        if isinstance(turn, Said):
            parts: list[ModelResponsePart] = [TextPart(turn.content)] if turn.content else []
            parts.extend(ToolCallPart(c.name, dict(c.arguments), tool_call_id=c.id) for c in turn.tool_calls)
            messages.append(ModelResponse(parts=parts))
        else:
            part = _request_part(turn)
            if messages and isinstance(last := messages[-1], ModelRequest):
                last.parts = [*last.parts, part]
            else:
                messages.append(ModelRequest(parts=[part]))
    if prompt.instructions and messages and isinstance(last := messages[-1], ModelRequest):
        last.instructions = prompt.instructions
    return messages


def _request_part(turn: Turn) -> ModelRequestPart:
    match turn:
        case Wrote():
            return UserPromptPart(user_content(turn.content, turn.attachments))
        case ToolResult():
            return ToolReturnPart(turn.name, turn.content, tool_call_id=turn.id)
        case Noted():
            return SystemPromptPart(turn.content)
        case Said():
            raise AssertionError("a turn of the model is no part of a request")


def user_content(content: str, attachments: Iterable[Attachment]) -> str | list[UserContent]:
    """The text alone where there is nothing else, as every server takes it."""
    files: list[UserContent] = [BinaryContent(a.data, media_type=a.media_type) for a in attachments]
    return [content, *files] if files else content
