"""Waiting for what must come, with a sentence for when it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["wait_for", "wait_until"]

T = TypeVar("T")


async def wait_until(condition: Callable[[], bool], otherwise: str, *, seconds: float = 10.0) -> None:
    """Returns as soon as the condition holds. Raises :class:`AssertionError` with the sentence when it never does."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, otherwise
        await asyncio.sleep(0.01)


async def wait_for(
    ask: Callable[[], Awaitable[T]], holds: Callable[[T], bool], otherwise: str, *, seconds: float = 60
) -> T:
    """Asks again until what comes is as wanted. Raises :class:`AssertionError` with the sentence and what came last."""
    came: list[T] = []
    try:
        async with asyncio.timeout(seconds):
            while not (came and holds(came[-1])):
                came[:] = [await ask()]
                # To ask is work for the one that is waited for.
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{otherwise}: {came}") from None
    return came[-1]
