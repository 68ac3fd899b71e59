"""Definitions as people write them, in YAML and JSON. The rules for their values stand in the core."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from agent_orchestra.core.agent import (
    ID_PATTERN,
    MAX_LINE_CHARS,
    MAX_LINES,
    MAX_TEXT_CHARS,
    MAX_WEIGHT,
    RESERVED_IDS,
    Agent,
    Balancing,
    Limits,
    Role,
)
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.resilience import MOST_ATTEMPTS, Action, Recovery
from agent_orchestra.core.values import nearest

__all__ = [
    "NOT_BLANK",
    "NUMBER",
    "AgentChanges",
    "AgentDefinition",
    "AgentReplacement",
    "BalancingDefinition",
    "Id",
    "LimitsDefinition",
    "RecoveryDefinition",
    "Text",
    "choice",
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


#: What may be done last.
_LAST: Final[JsonDict] = {"enum": [Action.ABORT.value, Action.ESCALATE.value]}


def _last(action: Action) -> Action:
    if action not in (Action.ABORT, Action.ESCALATE):
        raise PydanticCustomError("choice", "must be 'abort' or 'escalate'")
    return action


NUMBER: Final = BeforeValidator(_number)


def choice(kind: type[StrEnum]) -> BeforeValidator:
    """Says which choice is nearest to one that is none."""

    def known(given: object) -> object:
        if not isinstance(given, str) or given in set(kind):
            return given
        raise PydanticCustomError(
            "choice", "{message}", {"message": f"there is no '{given}'; {nearest(given, list(kind))}"}
        )

    return BeforeValidator(known)


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

    queue: Annotated[int, Field(ge=0, le=10_000), NUMBER] = Limits().queue
    """Calls that wait while every instance is full; one more is refused."""

    def to_limits(self) -> Limits:
        return Limits(**dict(self))


Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT), NUMBER]
Key = Annotated[str, Field(min_length=1, max_length=256), Field(json_schema_extra=_PRINTABLE)]


class BalancingDefinition(_Definition):
    algorithm: Annotated[Algorithm, choice(Algorithm)] | None = None
    """None means the service's, ``orchestrator.load_balancing.algorithm``."""
    weights: Annotated[dict[Key, Weight], Field(max_length=MAX_LINES)] = Field(default_factory=dict)
    """By the id of the instance, 1 where nothing is said; one with 0 gets no calls."""
    sticky: StrictBool = False
    """A conversation stays with its instance as long as that one can take it."""

    def to_balancing(self) -> Balancing:
        return Balancing(**dict(self))


class RecoveryDefinition(_Definition):
    attempts: Annotated[int, Field(ge=1, le=MOST_ATTEMPTS), NUMBER] = Recovery().attempts
    """Calls for one request, at most; stand-by models are each tried once in any case."""
    base: Annotated[float, Field(gt=0, le=3_600), NUMBER] = Recovery().base
    """Seconds of the first pause, at most; the bound doubles with each one."""
    cap: Annotated[float, Field(gt=0, le=3_600), NUMBER] = Recovery().cap
    """Seconds of the longest pause; where the other side asks for a longer one, the request is not held."""
    actions: Annotated[dict[Key, Annotated[Action, choice(Action)]], Field(max_length=MAX_LINES)] = Field(
        default_factory=dict
    )
    """By the code of an error, ``agent_failed.<class>``, or ``*``; what does not stand here follows from the error."""
    exhausted: Annotated[Action, choice(Action), AfterValidator(_last), Field(json_schema_extra=_LAST)] = Action.ABORT
    """What is done when nothing is left to try."""
    hedge: StrictBool = False
    """Ask a second instance when the first takes longer than 95 % of its calls did; only where ``read_only``."""

    def to_recovery(self) -> Recovery:
        return Recovery(**dict(self))


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
    read_only: StrictBool = False
    """Its calls change nothing outside, so that one may be made twice."""
    limits: LimitsDefinition = LimitsDefinition()
    balancing: BalancingDefinition = BalancingDefinition()
    recovery: RecoveryDefinition = RecoveryDefinition()

    def changed(self) -> dict[str, Any]:
        """The fields that were given, as those of an :class:`Agent`."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if "limits" in given:
            given["limits"] = self.limits.to_limits()
        if "balancing" in given:
            given["balancing"] = self.balancing.to_balancing()
        if "recovery" in given:
            given["recovery"] = self.recovery.to_recovery()
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
