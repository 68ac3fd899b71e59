"""The settings of an agent that is a prompt: their shape, and what is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from agent_orchestra.adapters.models.schemas import OBJECT_SCHEMA, faults_in_schema
from agent_orchestra.adapters.models.tools import TOOLS_SCHEMA, ToolDefinition, read
from agent_orchestra.adapters.models.vendors import MODEL_NAME_PATTERN, ModelName, parse
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.values import Json, JsonObject
from agent_orchestra.errors import Fault, InvalidAgent, InvalidInput

__all__ = ["PromptSettings", "checked", "schema"]

_MOST_MODELS: Final = 16
_OUTPUT_RETRIES: Final = 2
_MAX_TURNS: Final = 10
_MODEL: Final[JsonObject] = {"type": "string", "pattern": MODEL_NAME_PATTERN}
#: The least and the most of each number, and whether it is a whole one.
_NUMBERS: Final[Mapping[str, tuple[int, int, bool]]] = {
    "temperature": (0, 2, False),
    "max_tokens": (1, 1_000_000, True),
    "output_retries": (0, 10, True),
    "max_turns": (1, 100, True),
}


def schema(offline: JsonObject) -> JsonObject:
    """The JSON Schema of the settings; ``offline`` is that of the section which answers where there is no key."""
    return {
        "type": "object",
        "properties": {
            "instructions": {
                "description": "What the model is told before anything else.",
                "type": "string",
                "pattern": "^[^\\u0000]*$",
            },
            "model": {**_MODEL, "description": "The model that answers, such as 'anthropic:claude-sonnet-5'."},
            "models": {
                "description": "The models that answer: the first one, and the next where that one cannot.",
                "type": "array",
                "items": _MODEL,
                "minItems": 1,
                "maxItems": _MOST_MODELS,
                "uniqueItems": True,
            },
            "temperature": {"type": "number", **_bounds("temperature")},
            "max_tokens": {"description": "Of the output.", "type": "integer", **_bounds("max_tokens")},
            "tools": TOOLS_SCHEMA,
            "output_schema": {**OBJECT_SCHEMA, "description": "A JSON Schema that the output must match."},
            "output_retries": {
                "description": "How often the model is asked again for an output that matches.",
                "type": "integer",
                **_bounds("output_retries"),
                "default": _OUTPUT_RETRIES,
            },
            "max_turns": {
                "description": "Calls of the model for one answer, where it uses tools.",
                "type": "integer",
                **_bounds("max_turns"),
                "default": _MAX_TURNS,
            },
            "offline": {**offline, "description": "Answers from these notes where no model has a key."},
        },
        "oneOf": [{"required": ["model"]}, {"required": ["models"]}],
        "additionalProperties": False,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """Settings that are valid. ``models``: best first, at least one."""

    models: Sequence[ModelName]
    instructions: str
    temperature: float | None
    max_tokens: int | None
    tools: Sequence[ToolDefinition]
    output_schema: JsonObject | None
    output_retries: int
    max_turns: int
    offline: JsonObject | None


def _bounds(name: str) -> JsonObject:
    least, most, _ = _NUMBERS[name]
    return {"minimum": least, "maximum": most}


def checked(agent: Agent) -> PromptSettings:
    """The settings of an agent. Raises :class:`InvalidAgent` with all that is wrong."""
    given = agent.settings
    faults = list(_faults(given))
    models = _models(given, faults)
    tools = read(given.get("tools", ()), faults)
    if "output_schema" in given:
        faults.extend(faults_in_schema(given["output_schema"], "settings.output_schema"))
    offline = given.get("offline")
    if "offline" in given and not isinstance(offline, Mapping):
        faults.append(Fault(path="settings.offline", message="must be an object with 'knowledge'"))
    if faults:
        raise InvalidAgent(agent.id, tuple(faults))
    return PromptSettings(
        models=models,
        instructions=str(given.get("instructions", "")),
        temperature=cast("float | None", given.get("temperature")),
        max_tokens=_whole(given.get("max_tokens")),
        tools=tools,
        output_schema=cast("JsonObject | None", given.get("output_schema")),
        output_retries=_whole(given.get("output_retries", _OUTPUT_RETRIES)) or 0,
        max_turns=_whole(given.get("max_turns", _MAX_TURNS)) or _MAX_TURNS,
        offline=cast("JsonObject | None", offline),
    )


def _whole(value: Json) -> int | None:
    # JSON has one kind of number: 5.0 is whole.
    return int(value) if isinstance(value, int | float) else None


def _faults(given: JsonObject) -> Iterator[Fault]:
    known = ("instructions", "model", "models", "tools", "output_schema", "offline", *_NUMBERS)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            yield Fault(path=f"settings.{name}", message=f"is not known for prompts; {hint}")
    if not isinstance(given.get("instructions", ""), str):
        yield Fault(path="settings.instructions", message="must be a text")
    for name, (least, most, whole) in _NUMBERS.items():
        value = given.get(name, least)
        right = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        if not right or (whole and isinstance(value, float) and not value.is_integer()):
            kind = "a whole number" if whole else "a number"
            yield Fault(path=f"settings.{name}", message=f"must be {kind} from {least} to {most}")


def _models(given: JsonObject, faults: list[Fault]) -> list[ModelName]:
    if ("model" in given) == ("models" in given):
        faults.append(Fault(path="settings.models", message="give 'model', or a list of 'models', and not both"))
        return []
    texts = given["models"] if "models" in given else [given["model"]]
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not 1 <= len(texts) <= _MOST_MODELS:
        faults.append(Fault(path="settings.models", message=f"must be a list of 1 to {_MOST_MODELS} models"))
        return []
    found: list[ModelName] = []
    for number, text in enumerate(texts):
        path = f"settings.models.{number}" if "models" in given else "settings.model"
        if not isinstance(text, str):
            faults.append(Fault(path=path, message="must be a text such as 'openai:gpt-5'"))
            continue
        try:
            found.append(parse(text, path=path))
        except InvalidInput as error:
            faults.extend(error.faults)
    if len(set(map(str, found))) < len(found):
        faults.append(Fault(path="settings.models", message="names a model twice"))
    return found
