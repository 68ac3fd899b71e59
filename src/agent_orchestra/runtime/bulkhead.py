"""How many requests run at once, how many wait for that, and who is sent away."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from agent_orchestra.errors import Overloaded

__all__ = ["Bulkhead"]

#: What a request is taken to need until some have ended, and how fast that follows what they do.
_USUAL_SECONDS = 1.0
_FOLLOW = 0.1
_LONGEST_ADVICE = 60.0


class Bulkhead:
    """At most ``places`` at once, and ``waiting`` more in a line, each of them for at most ``seconds``.

    First come, first served. One that finds the line full is refused at once, and told when it is worth another try.
    """

    def __init__(self, *, places: int, waiting: int, seconds: float) -> None:
        self._places = places
        self._most_waiting = waiting
        self._seconds = seconds
        self._held = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._usual = _USUAL_SECONDS

    @property
    def running(self) -> int:
        return self._held

    @property
    def waiting(self) -> int:
        return len(self._line)

    def check(self, coming: int) -> None:
        """Raises :class:`Overloaded` unless there is room for one more beside ``coming`` that have not come in yet."""
        here = self._held + len(self._line) + coming
        if here >= self._places + self._most_waiting:
            waiting = f" and {here - self._places} wait" if self._most_waiting else ""
            raise self._refusal(f"{self._places} requests are running{waiting}, which is the limit; try again")

    @asynccontextmanager
    async def place(self, seconds: float) -> AsyncGenerator[bool]:
        """Holds a place over the block; the value says whether it had to be waited for.

        Raises :class:`Overloaded` where that takes longer than ``seconds``, or than any may wait.
        """
        waited = self._held >= self._places
        if waited:
            await self._wait(min(seconds, self._seconds))
        else:
            self._held += 1
        began = time.perf_counter()
        try:
            yield waited
        finally:
            self._usual += _FOLLOW * (time.perf_counter() - began - self._usual)
            self._hand_on()

    async def _wait(self, seconds: float) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            async with asyncio.timeout(seconds):
                await place
        except TimeoutError:
            if not place.cancelled() and place.done():
                # It was handed on in the moment in which the time was over.
                return
            self._forget(place)
            raise self._refusal(f"no place became free within {seconds:g} s; try again") from None
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._hand_on()
            else:
                self._forget(place)
            raise

    def _forget(self, place: asyncio.Future[None]) -> None:
        # In the moment in which it was given up it may have been passed over already.
        with suppress(ValueError):
            self._line.remove(place)

    def _hand_on(self) -> None:
        """Gives a place to the first in the line, so that nobody who comes later is faster."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._held -= 1

    def _refusal(self, detail: str) -> Overloaded:
        ahead = 1 + len(self._line)
        return Overloaded(detail, retry_after=min(max(self._usual * ahead / self._places, 1.0), _LONGEST_ADVICE))
