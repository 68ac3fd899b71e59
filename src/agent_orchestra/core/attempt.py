"""One call of one instance, as answers and records tell of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent_orchestra.core.values import Json

__all__ = ["Attempt", "attempt_json", "attempt_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call of one instance. ``error`` is the stable code of what went wrong, none when it succeeded.

    ``delay_ms``: the pause before it. ``decision``: what was done then: ``answered``, ``retry``, ``reassign``,
    ``hand_over`` (to the next agent), ``escalate``, ``abort``, or ``cancelled``, because another was faster or nobody
    wanted the answer any more; ``reason`` says why. ``hedge``: it was made beside one that took long.
    """

    agent_id: str
    instance_id: str
    duration_ms: float
    error: str | None = None
    delay_ms: float = 0.0
    decision: str = ""
    reason: str = ""
    hedge: bool = False


def attempt_json(attempt: Attempt) -> dict[str, Json]:
    """An attempt as plain JSON."""
    return {
        "agent": attempt.agent_id,
        "instance": attempt.instance_id,
        "duration_ms": attempt.duration_ms,
        "error": attempt.error,
        "delay_ms": attempt.delay_ms,
        "decision": attempt.decision,
        "reason": attempt.reason,
        "hedge": attempt.hedge,
    }


def attempt_of(stored: Mapping[str, Any]) -> Attempt:
    """The attempt that :func:`attempt_json` wrote; the first releases wrote the first four fields only."""
    return Attempt(
        agent_id=stored["agent"],
        instance_id=stored["instance"],
        duration_ms=stored["duration_ms"],
        error=stored["error"],
        delay_ms=stored.get("delay_ms", 0.0),
        decision=stored.get("decision", ""),
        reason=stored.get("reason", ""),
        hedge=stored.get("hedge", False),
    )
