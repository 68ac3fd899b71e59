"""What is asked, what comes back, and what is on record about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agent_orchestra.core.attempt import Attempt, attempt_json
from agent_orchestra.core.coordination import Coordination, coordination_json
from agent_orchestra.core.message import Attachment
from agent_orchestra.core.plan import Plan
from agent_orchestra.core.routing import Candidate, Route, Stage, decided_json
from agent_orchestra.core.usage import Usage, usage_json
from agent_orchestra.core.values import Json, JsonObject, faults_in
from agent_orchestra.errors import Fault, InvalidInput

__all__ = [
    "MAX_ATTACHMENTS",
    "MAX_CONTENT_CHARS",
    "MAX_USER_CHARS",
    "MEDIA_TYPE_PATTERN",
    "Answer",
    "Attempt",
    "Failure",
    "Generation",
    "Record",
    "Reply",
    "Request",
    "RequestStatus",
    "StopReason",
    "ToolCall",
    "Usage",
    "answer_json",
    "attempt_json",
    "check",
    "reply_json",
]

MAX_CONTENT_CHARS: Final = 200_000
MAX_USER_CHARS: Final = 256
MAX_ATTACHMENTS: Final = 32
#: Type and subtype as RFC 6838, section 4.2, allows their names; without parameters.
MEDIA_TYPE_PATTERN: Final = r"^[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}$"

_MEDIA_TYPE: Final = re.compile(MEDIA_TYPE_PATTERN[1:-1])
_KEY: Final = re.compile(r"[\x21-\x7E]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing that is asked. Times are milliseconds since 1970, UTC.

    ``attachments`` go with the call and are not kept. ``streamed``: somebody listens while it is answered; where nobody
    does, an agent may do what costs less than telling piece by piece.
    """

    id: str
    tenant: str
    content: str
    attachments: tuple[Attachment, ...] = ()
    conversation_id: str | None = None
    user_id: str | None = None
    context: JsonObject = field(default_factory=dict[str, None])
    capability: str | None = None
    agent_id: str | None = None
    plan: Plan | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""
    streamed: bool = False
    received_ms: int


def check(
    content: str, *, attachments: Sequence[Attachment] = (), idempotency_key: str | None = None, **others: Json
) -> None:
    """Raises :class:`InvalidInput` unless the content has something to answer, and all can be stored."""
    faults: list[Fault] = []
    if len(attachments) > MAX_ATTACHMENTS:
        faults.append(Fault(path="attachments", message=f"has {len(attachments)} entries; at most {MAX_ATTACHMENTS}"))
    for number, attachment in enumerate(attachments):
        if not _MEDIA_TYPE.fullmatch(attachment.media_type):
            message = f"'{attachment.media_type[:80]}' is no media type such as 'image/png'"
            faults.append(Fault(path=f"attachments.{number}.media_type", message=message))
        if not attachment.data:
            faults.append(Fault(path=f"attachments.{number}.data", message="is empty"))
    if not content.strip():
        faults.append(Fault(path="content", message="must not be blank"))
    if len(content) > MAX_CONTENT_CHARS:
        message = f"has {len(content)} characters; at most {MAX_CONTENT_CHARS}"
        faults.append(Fault(path="content", message=message))
    for path, value in {"content": content, **others}.items():
        faults.extend(faults_in(path, value))
    if isinstance(user_id := others.get("user_id"), str) and not 1 <= len(user_id) <= MAX_USER_CHARS:
        faults.append(Fault(path="user_id", message=f"must have 1 to {MAX_USER_CHARS} characters"))
    if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
        faults.append(Fault(path="idempotency_key", message="must be 1 to 255 visible ASCII characters"))
    if faults:
        raise InvalidInput("; ".join(map(str, faults)), faults=tuple(faults))


class StopReason(StrEnum):
    """Why a model stopped, by the names of OpenTelemetry's GenAI conventions. LENGTH: the text is cut off."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALL = "tool_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A model asks for a tool. ``id`` is the vendor's, or made up where the vendor gives none."""

    id: str
    name: str
    arguments: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Which model wrote a reply, and how it stopped. ``first_token_ms``: none where nothing was streamed."""

    provider: str
    model: str
    stop_reason: StopReason
    request_id: str | None = None
    first_token_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a backend gives back.

    ``output``: all text, in order. ``value``: the structured value, when there is one. ``tool_calls``: those that are
    left to the caller. ``generation``: none where no model wrote it. ``coordination``: where several agents worked on
    it, what became of each; ``usage`` is then the sum of theirs.
    """

    output: str
    value: Json = None
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = field(default_factory=Usage)
    generation: Generation | None = None
    coordination: Coordination | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The recorded end of a request that succeeded.

    ``agent`` is who answered; ``route`` is the decision, whose id is the request's. ``timings`` are milliseconds a
    stage.
    """

    request_id: str
    conversation_id: str
    agent: str
    instance: str
    route: Route
    reply: Reply
    timings: Mapping[str, float]
    attempts: tuple[Attempt, ...]

    @property
    def confidence(self) -> float:
        return self.route.primary.confidence

    @property
    def stage(self) -> Stage:
        return self.route.stage

    @property
    def reason(self) -> str:
        return self.route.reason

    @property
    def alternatives(self) -> tuple[Candidate, ...]:
        return self.route.alternatives

    @property
    def output(self) -> str:
        return self.reply.output

    @property
    def value(self) -> Json:
        return self.reply.value

    @property
    def usage(self) -> Usage:
        return self.reply.usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The recorded end of a request that did not succeed. ``output``: what its stream had told by then."""

    code: str
    detail: str
    data: JsonObject = field(default_factory=dict[str, None])
    output: str = ""
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    attempts: tuple[Attempt, ...] = ()


class RequestStatus(StrEnum):
    """ESCALATED: no agent could answer, and a person is to; then it has SUCCEEDED, or FAILED after all."""

    RUNNING = "RUNNING"
    ESCALATED = "ESCALATED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that is kept of an accepted request. ``end`` is none while it runs."""

    request_id: str
    conversation_id: str
    fingerprint: str
    status: RequestStatus
    route: Route
    instance_id: str
    end: Answer | Failure | None


def answer_json(answer: Answer) -> dict[str, Json]:
    """An answer as plain JSON: the one form that REST, streams and the record share."""
    return {
        "request_id": answer.request_id,
        "conversation_id": answer.conversation_id,
        "agent": answer.agent,
        "instance": answer.instance,
        **decided_json(answer.route),
        **reply_json(answer.reply),
        "timings": dict(answer.timings),
        "attempts": [attempt_json(attempt) for attempt in answer.attempts],
    }


def reply_json(reply: Reply) -> dict[str, Json]:
    """A reply as plain JSON."""
    generation = reply.generation
    return {
        "output": reply.output,
        "value": reply.value,
        "tool_calls": [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in reply.tool_calls],
        "usage": usage_json(reply.usage),
        "generation": None
        if generation is None
        else {
            "provider": generation.provider,
            "model": generation.model,
            "stop_reason": generation.stop_reason,
            "request_id": generation.request_id,
            "first_token_ms": generation.first_token_ms,
        },
        "coordination": None if reply.coordination is None else coordination_json(reply.coordination),
    }
