"""Waiting for what must come, with a sentence for when it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["wait_until"]


async def wait_until(condition: Callable[[], bool], otherwise: str, *, seconds: float = 10.0) -> None:
    """Returns as soon as the condition holds. Raises :class:`AssertionError` with the sentence when it never does."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, otherwise
        await asyncio.sleep(0.01)
