"""Definitions as people write them, in YAML and JSON. The rules for their values stand in the core."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from pydantic.config import JsonDict

from agent_orchestra.core.agent import (
    ID_PATTERN,
    MAX_LINE_CHARS,
    MAX_LINES,
    MAX_TEXT_CHARS,
    RESERVED_IDS,
    Agent,
    Limits,
    Role,
)

__all__ = [
    "NOT_BLANK",
    "NUMBER",
    "AgentChanges",
    "AgentDefinition",
    "AgentReplacement",
    "Id",
    "LimitsDefinition",
    "Text",
]

#: No NUL anywhere; the database cannot hold it.
_PRINTABLE: Final[JsonDict] = {"pattern": "^[^\\u0000]*$"}
#: What Python takes for white space is more than the expressions of JSON Schema do.
NOT_BLANK: Final[JsonDict] = {
    "pattern": "^[^\\u0000]*[^\\s\\u001c-\\u001f\\u0085\\u0000][^\\u0000]*$",
    "minLength": 1,
}


def _number(given: object) -> object:
    """JSON says which values are numbers; pydantic would also take texts and truth values for them."""
    if isinstance(given, bool | str):
        raise ValueError("must be a number")  # noqa: TRY004  pydantic tells only of this one
    return given


NUMBER: Final = BeforeValidator(_number)

Text = Annotated[str, Field(json_schema_extra=_PRINTABLE)]
Name = Annotated[Text, Field(max_length=64)]
Line = Annotated[str, Field(max_length=MAX_LINE_CHARS, json_schema_extra=NOT_BLANK)]
Lines = Annotated[tuple[Line, ...], Field(max_length=MAX_LINES)]
Id = Annotated[str, Field(pattern=ID_PATTERN)]


class _Definition(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LimitsDefinition(_Definition):
    concurrency: Annotated[int, Field(ge=1, le=10_000), NUMBER] = Limits().concurrency
    """Calls at once on each instance."""
    timeout: Annotated[float, Field(ge=0.5, le=86_400), NUMBER] | None = None
    """Seconds for one call, half a second at least; none means the request's own."""

    def to_limits(self) -> Limits:
        return Limits(concurrency=self.concurrency, timeout=self.timeout)


class AgentChanges(_Definition):
    """What can be changed of an agent while it keeps its kind and its settings."""

    name: Annotated[Text, Field(max_length=MAX_LINE_CHARS)] = ""
    version: Name = "1"
    provider: Name | None = None
    role: Role = Role.WORKER
    capabilities: Lines = ()
    """What it can do, by the names that requests ask for."""
    domain: Name | None = None
    description: Annotated[Text, Field(max_length=MAX_TEXT_CHARS)] = ""
    examples: Lines = ()
    """Utterances that it should be given."""
    keywords: Lines = ()
    priority: Annotated[int, Field(ge=-1_000, le=1_000), NUMBER] = 0
    """Among equals the higher one is chosen."""
    enabled: StrictBool = True
    limits: LimitsDefinition = LimitsDefinition()

    def changed(self) -> dict[str, Any]:
        """The fields that were given, as those of an :class:`Agent`."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if "limits" in given:
            given["limits"] = self.limits.to_limits()
        return given


class AgentReplacement(AgentChanges):
    """An agent but for its id."""

    kind: Annotated[str, Field(min_length=1, max_length=64)]
    """What runs it; this gives ``settings`` their shape."""
    settings: dict[str, Any] = Field(default_factory=dict)

    def to_agent(self, agent_id: str) -> Agent:
        return dataclasses.replace(Agent(id=agent_id, kind=self.kind), **self.changed())


class AgentDefinition(AgentReplacement):
    """An agent."""

    id: Annotated[Id, Field(json_schema_extra={"not": {"enum": [*sorted(RESERVED_IDS)]}})]
