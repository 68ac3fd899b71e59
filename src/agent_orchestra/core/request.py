"""What is asked, what comes back, and what is on record about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agent_orchestra.core.routing import Candidate, Route
from agent_orchestra.core.values import Json, JsonObject, faults_in
from agent_orchestra.errors import Fault, InvalidInput

__all__ = [
    "MAX_CONTENT_CHARS",
    "MAX_USER_CHARS",
    "Answer",
    "Attempt",
    "Failure",
    "Record",
    "Reply",
    "Request",
    "RequestStatus",
    "Usage",
    "answer_json",
    "attempt_json",
    "check",
]

MAX_CONTENT_CHARS: Final = 200_000
MAX_USER_CHARS: Final = 256

_KEY: Final = re.compile(r"[\x21-\x7E]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing that is asked. Times are milliseconds since 1970, UTC."""

    id: str
    tenant: str
    content: str
    conversation_id: str | None = None
    user_id: str | None = None
    context: JsonObject = field(default_factory=dict[str, None])
    capability: str | None = None
    agent_id: str | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""
    received_ms: int


def check(content: str, *, idempotency_key: str | None = None, **others: Json) -> None:
    """Raises :class:`InvalidInput` unless the content has something to answer, and all can be stored."""
    faults: list[Fault] = []
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a call used. Tokens as the vendor counts them; ``cost_usd`` is none where it is not known."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a backend gives back: the text, the structured value when there is one, and what it used."""

    output: str
    value: Json = None
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call of one instance. ``error`` is the stable code of what went wrong, none when it succeeded."""

    agent_id: str
    instance_id: str
    duration_ms: float
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The recorded end of a request that succeeded. ``timings`` are milliseconds a stage."""

    request_id: str
    conversation_id: str
    agent: str
    instance: str
    confidence: float
    stage: str
    reason: str
    alternatives: tuple[Candidate, ...]
    output: str
    value: Json
    usage: Usage
    timings: Mapping[str, float]
    attempts: tuple[Attempt, ...]


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
    RUNNING = "RUNNING"
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
        "confidence": answer.confidence,
        "stage": answer.stage,
        "reason": answer.reason,
        "alternatives": [{"agent": c.agent_id, "confidence": c.confidence} for c in answer.alternatives],
        "output": answer.output,
        "value": answer.value,
        "usage": {
            "input_tokens": answer.usage.input_tokens,
            "output_tokens": answer.usage.output_tokens,
            "cost_usd": answer.usage.cost_usd,
        },
        "timings": dict(answer.timings),
        "attempts": [attempt_json(attempt) for attempt in answer.attempts],
    }


def attempt_json(attempt: Attempt) -> dict[str, Json]:
    """An attempt as plain JSON."""
    return {
        "agent": attempt.agent_id,
        "instance": attempt.instance_id,
        "duration_ms": attempt.duration_ms,
        "error": attempt.error,
    }
