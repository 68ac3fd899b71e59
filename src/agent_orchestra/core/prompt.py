"""What a model is asked: one turn, with all that it needs to know. What it gives back is a :class:`Reply`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agent_orchestra.core.message import Attachment, Author, Message
from agent_orchestra.core.request import ToolCall, check
from agent_orchestra.core.values import JsonObject

__all__ = ["Noted", "Prompt", "Said", "ToolResult", "ToolSpec", "Turn", "Wrote", "check_prompt", "turns_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrote:
    """The user's turn."""

    content: str
    attachments: Sequence[Attachment] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The model's own turn, an earlier one."""

    content: str
    tool_calls: Sequence[ToolCall] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool gave back, for the call of that ``id``."""

    id: str
    name: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What the system adds in the course of a conversation."""

    content: str


Turn: TypeAlias = Wrote | Said | ToolResult | Noted


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool that a model may call. ``parameters``: a JSON Schema (2020-12) of type object."""

    name: str
    description: str
    parameters: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The turns so far, oldest first, and how the next one is to be.

    ``output_schema``: a JSON Schema of type object that the output is to match. ``max_tokens``: of the output.
    """

    turns: Sequence[Turn]
    instructions: str = ""
    tools: Sequence[ToolSpec] = ()
    output_schema: JsonObject | None = None
    temperature: float | None = None
    max_tokens: int | None = None


def check_prompt(prompt: Prompt) -> None:
    """Raises :class:`InvalidInput` unless the last turn asks something, as that of a request must."""
    last = prompt.turns[-1] if prompt.turns else Wrote(content="")
    if isinstance(last, Wrote):
        check(last.content, attachments=last.attachments)


def turns_of(history: Iterable[Message]) -> list[Turn]:
    """The turns that the messages of a conversation are.

    Left out is what no vendor takes: a message without text, and answers before the first question, as a window on a
    long conversation may begin with.
    """
    turns = [_turn(message) for message in history if message.content.strip()]
    first = next((number for number, turn in enumerate(turns) if isinstance(turn, Wrote)), len(turns))
    return [turn for number, turn in enumerate(turns) if number > first or not isinstance(turn, Said)]


def _turn(message: Message) -> Turn:
    match message.author:
        case Author.USER:
            return Wrote(content=message.content)
        case Author.ASSISTANT:
            return Said(content=message.content)
        case Author.SYSTEM:
            return Noted(content=message.content)
