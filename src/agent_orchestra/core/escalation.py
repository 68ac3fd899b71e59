"""A request that waits for a person, and what it becomes when one has decided."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from agent_orchestra.core.request import MAX_CONTENT_CHARS, MAX_USER_CHARS, Answer, Attempt, Failure, Reply
from agent_orchestra.core.routing import Route
from agent_orchestra.core.values import faults_in
from agent_orchestra.errors import EscalationRejected, Fault, InvalidInput

__all__ = ["PERSON", "Escalation", "answered", "check_decision", "rejected"]

#: The instance of an answer that a person gave; in the attempts the author's name stands behind it.
PERSON: Final = "person"


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """A request that no agent could answer, and that a person is to answer. Times are milliseconds since 1970, UTC.

    ``content``: what was asked. ``failure``: why it came to this, with every attempt that was made.
    """

    tenant: str
    request_id: str
    conversation_id: str
    user_id: str | None
    content: str
    route: Route
    failure: Failure
    asked_ms: int
    escalated_ms: int

    @property
    def agent_id(self) -> str:
        """In whose place the person answers."""
        return str(self.failure.data.get("agent", self.route.primary.agent_id))

    @property
    def cause(self) -> str:
        """The code of the error that led here."""
        return str(self.failure.data.get("cause", self.failure.code))


def check_decision(*, author: str, **texts: str) -> None:
    """Raises :class:`InvalidInput` unless the texts say something, the author has a name, and all can be stored."""
    faults: list[Fault] = []
    for path, text in texts.items():
        if not text.strip():
            faults.append(Fault(path=path, message="must not be blank"))
        if len(text) > MAX_CONTENT_CHARS:
            message = f"has {len(text)} characters; at most {MAX_CONTENT_CHARS}"
            faults.append(Fault(path=path, message=message))
        faults.extend(faults_in(path, text))
    if not 1 <= len(author) <= MAX_USER_CHARS:
        faults.append(Fault(path="author", message=f"must have 1 to {MAX_USER_CHARS} characters"))
    faults.extend(faults_in("author", author))
    if faults:
        raise InvalidInput("; ".join(map(str, faults)), faults=tuple(faults))


def answered(escalation: Escalation, output: str, *, author: str, now_ms: int) -> Answer:
    """The answer that a person gives in the agent's place; what was tried before stays with it."""
    waited = _waited(escalation, now_ms)
    timings = escalation.failure.timings
    return Answer(
        request_id=escalation.request_id,
        conversation_id=escalation.conversation_id,
        agent=escalation.agent_id,
        instance=PERSON,
        route=escalation.route,
        reply=Reply(output=output),
        timings={**timings, "person": waited, "total": timings.get("total", 0.0) + waited},
        attempts=(*escalation.failure.attempts, _attempt(escalation, author, now_ms, decision="answered")),
    )


def rejected(escalation: Escalation, reason: str, *, author: str, now_ms: int) -> Failure:
    """The end of a request that a person has decided not to answer."""
    attempt = _attempt(escalation, author, now_ms, decision="abort")
    return replace(
        escalation.failure,
        code=EscalationRejected.code,
        detail=reason,
        attempts=(*escalation.failure.attempts, replace(attempt, error=EscalationRejected.code, reason=reason)),
    )


def _attempt(escalation: Escalation, author: str, now_ms: int, *, decision: str) -> Attempt:
    return Attempt(
        agent_id=escalation.agent_id,
        instance_id=f"{PERSON}:{author}",
        duration_ms=_waited(escalation, now_ms),
        decision=decision,
    )


def _waited(escalation: Escalation, now_ms: int) -> float:
    # Another machine's clock may be behind the one that has escalated.
    return float(max(now_ms - escalation.escalated_ms, 0))
