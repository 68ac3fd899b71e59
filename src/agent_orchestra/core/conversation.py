"""A conversation, and what happens to input that comes while it is busy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agent_orchestra.core.values import JsonObject

__all__ = ["Conversation", "InputPolicy"]


class InputPolicy(StrEnum):
    """Input that comes while another request holds the conversation is refused, waits its turn, or takes the turn."""

    REJECT = "reject"
    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """``last_seq``: the number of its last message, 0 when it has none. Times are milliseconds since 1970, UTC.

    ``context`` is given to every agent that answers in it, under what a request itself brings.
    """

    id: str
    tenant: str
    user_id: str | None = None
    input_policy: InputPolicy = InputPolicy.ENQUEUE
    context: JsonObject = field(default_factory=dict[str, None])
    active_agent: str | None = None
    last_seq: int = 0
    created_ms: int
    updated_ms: int
