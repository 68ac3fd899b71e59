"""How often one key may be used now: calls at once, and the pauses that its vendor has asked for."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from agent_orchestra.errors import (
    ModelFailed,
    ModelOverloaded,
    ModelRateLimited,
    ModelTimeout,
    ModelUnreachable,
    StreamBroken,
)

__all__ = ["Limiter", "delay_of", "until"]

#: After a refusal that does not say how long.
_PAUSE_SECONDS: Final = 1.0
#: No header makes us wait longer: a clock that is wrong must not shut a vendor out for good.
_LONGEST_PAUSE: Final = 3_600.0
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_OPENAI_COUNTS: Final = ("requests", "tokens")
_ANTHROPIC_COUNTS: Final = ("requests", "tokens", "input-tokens", "output-tokens")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
#: How many there are, how many are left, and when all are there again, in OpenAI's and in Anthropic's headers.
_QUOTAS: Final = (
    *((f"x-ratelimit-limit-{of}", f"x-ratelimit-remaining-{of}", f"x-ratelimit-reset-{of}") for of in _OPENAI_COUNTS),
    *(
        (f"anthropic-ratelimit-{of}-limit", f"anthropic-ratelimit-{of}-remaining", f"anthropic-ratelimit-{of}-reset")
        for of in _ANTHROPIC_COUNTS
    ),
)


class _Lane:
    """One model behind the key: vendors count by model. After a pause one call goes first, to see if it is over.

    ``turn`` counts pauses and first calls, so that one of an earlier turn settles nothing.
    """

    def __init__(self) -> None:
        self.paused_until = 0.0
        self.doubtful = False
        self.trying = False
        self.turn = 0
        self.kind: type[ModelRateLimited | ModelOverloaded] = ModelRateLimited
        self.changed = asyncio.Event()

    def settle(self, *, doubtful: bool) -> None:
        self.turn += 1
        self.doubtful = doubtful
        self.trying = False
        self.changed.set()
        self.changed = asyncio.Event()


class Limiter:
    """One for each key. A call that the vendor would refuse waits here, or fails here, and is not made."""

    def __init__(
        self, provider: str, *, concurrency: int, max_wait: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._provider = provider
        self._places = asyncio.Semaphore(concurrency)
        self._max_wait = max_wait
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}

    def paused(self, model: str) -> bool:
        """Whether a call would have to wait for the vendor now."""
        lane = self._lanes.get(model)
        return lane is not None and (lane.paused_until > self._clock() or lane.trying)

    @asynccontextmanager
    async def place(self, model: str) -> AsyncGenerator[None]:
        """Holds a place for one call.

        Raises :class:`ModelRateLimited` or :class:`ModelOverloaded`, whichever the vendor said, for a pause longer than
        a call may wait.
        """
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = _Lane()
        give_up = self._clock() + self._max_wait
        while True:
            # Not in a place: those who wait for one model must not be in the way of another.
            first = await self._admitted(lane, model, give_up)
            turn = lane.turn
            # Until it is known to be over, it may not be; a call that was broken off says nothing of it.
            doubtful = True
            try:
                async with self._places:
                    if lane.turn != turn:
                        # Others were refused while this one waited for its place.
                        continue
                    yield
                    doubtful = False
                    return
            except ModelFailed as error:
                doubtful = isinstance(error, ModelTimeout | ModelUnreachable | StreamBroken)
                raise
            finally:
                if first and lane.turn == turn:
                    lane.settle(doubtful=doubtful)

    def refused(self, model: str, error: ModelRateLimited | ModelOverloaded) -> None:
        """The vendor has refused a call for its rate, or for its load and asks for a pause."""
        seconds = error.retry_after
        if seconds is None and isinstance(error, ModelRateLimited):
            seconds = _PAUSE_SECONDS
        if seconds is not None:
            self._pause(model, seconds, type(error))

    def heard(self, model: str, headers: Mapping[str, str]) -> None:
        """Looks at what is left of the quota. Nothing left is a pause until there is one more.

        Where the vendor says itself how long to wait, that counts: a reset is when all is there again.
        """
        if delay_of(headers) is not None:
            return
        for limit, remaining, reset in _QUOTAS:
            if headers.get(remaining) == "0" and (seconds := until(headers.get(reset, ""))) is not None:
                given = headers.get(limit, "")
                self._pause(model, seconds / max(int(given) if given.isdecimal() else 1, 1))

    def _pause(
        self, model: str, seconds: float, kind: type[ModelRateLimited | ModelOverloaded] = ModelRateLimited
    ) -> None:
        lane = self._lanes.setdefault(model, _Lane())
        lane.kind = kind
        until = self._clock() + min(seconds, _LONGEST_PAUSE)
        lane.paused_until = max(lane.paused_until, until)
        lane.settle(doubtful=True)

    async def _admitted(self, lane: _Lane, model: str, give_up: float) -> bool:
        """Waits until a call may be made; tells whether it is the one that goes first after a pause."""
        while True:
            now = self._clock()
            pause = lane.paused_until - now
            if pause > 0:
                if now + pause > give_up:
                    raise self._limited(lane, model, pause)
                await asyncio.sleep(pause)
            elif not lane.doubtful:
                return False
            elif not lane.trying:
                lane.trying = True
                lane.turn += 1
                return True
            else:
                try:
                    async with asyncio.timeout(give_up - now):
                        await lane.changed.wait()
                except TimeoutError:
                    raise self._limited(lane, model, _PAUSE_SECONDS) from None

    def _limited(self, lane: _Lane, model: str, seconds: float) -> ModelRateLimited | ModelOverloaded:
        return lane.kind(
            f"{self._provider} has asked to be left alone with '{model}' for {seconds:.1f} s more",
            provider=self._provider,
            model=model,
            retry_after=round(seconds, 3),
        )


def delay_of(headers: Mapping[str, str]) -> float | None:
    """The seconds of ``retry-after-ms`` or ``Retry-After`` (RFC 9110, section 10.2.3); none where neither says any."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        given = headers.get(name)
        if given is None:
            continue
        try:
            seconds = float(given) * unit
        except ValueError:
            seconds = _until_date(given)
        if seconds is not None and 0 <= seconds < float("inf"):
            return seconds
    return None


def _until_date(text: str) -> float | None:
    try:
        when = parsedate_to_datetime(text)
        return max(0.0, (_aware(when) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def until(text: str) -> float | None:
    """Seconds, from a number of them, a duration such as ``6m0s``, or a time of RFC 3339; none from what is neither."""
    if text.isdecimal():
        return float(text)
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return max(0.0, (_aware(when) - datetime.now(UTC)).total_seconds())


def _aware(when: datetime) -> datetime:
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
