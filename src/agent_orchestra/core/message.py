"""What is said in a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Attachment", "Author", "Message"]


class Author(StrEnum):
    """Who wrote a message (the field's ``role``; that word is the agent's here)."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A part of a request that is not text. ``media_type`` is one of IANA's, such as ``image/png``."""

    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One entry of a conversation. ``seq`` counts from 1, without a gap, in the conversation's one order."""

    id: str
    seq: int
    author: Author
    content: str
    agent_id: str | None = None
    request_id: str | None = None
    created_ms: int
