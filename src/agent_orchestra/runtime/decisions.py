"""What was decided, and where it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent_orchestra.core.routing import Route

__all__ = ["Decision", "DecisionLog"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision. That of a request has the request's id; ``executed`` says that it was one.

    A decision that was not executed was asked for as such, or refused the request (stage NONE).
    """

    id: str
    tenant: str
    text: str
    conversation_id: str | None
    route: Route
    executed: bool
    created_ms: int


class DecisionLog(Protocol):
    """Keeps decisions. Those of requests are on record with the request itself, and are found here too."""

    async def record(self, decision: Decision) -> None:
        """Keeps a decision that no request carries."""
        ...

    async def find(self, tenant: str, decision_id: str) -> Decision:
        """Raises :class:`DecisionNotFound`."""
        ...

    async def recent(self, tenant: str, *, before: str | None, limit: int) -> Sequence[Decision]:
        """A page of decisions, newest first; ``before`` is the id of the last one of the page before."""
        ...
