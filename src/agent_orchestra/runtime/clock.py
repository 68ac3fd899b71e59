"""Time and ids, read at the edge of a decision and handed on as values."""

from __future__ import annotations

import time

import uuid_utils

__all__ = ["new_id", "now_ms"]


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A UUIDv7 (RFC 9562): unique without asking anyone, and sorted by time."""
    return str(uuid_utils.uuid7())
