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

from agent_orchestra.errors import ModelRateLimited

__all__ = ["Limiter", "delay_of"]

#: After a refusal that does not say how long.
_PAUSE_SECONDS: Final = 1.0
#: No header makes us wait longer: a clock that is wrong must not shut a vendor out for good.
_LONGEST_PAUSE: Final = 3_600.0
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
#: What is left, and when there is more, in OpenAI's and in Anthropic's headers.
_QUOTAS: Final = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset"),
)


class _Lane:
    """One model behind the key: vendors count by model. After a pause one call goes first, to see if it is over."""

    def __init__(self) -> None:
        self.paused_until = 0.0
        self.doubtful = False
        self.trying = False
        self.changed = asyncio.Event()

    def settle(self, *, doubtful: bool) -> None:
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
        """Holds a place for one call. Raises :class:`ModelRateLimited` for a pause longer than a call may wait."""
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = _Lane()
        while True:
            # Not in a place: those who wait for one model must not be in the way of another.
            first = await self._admitted(lane, model)
            try:
                async with self._places:
                    if lane.paused_until > self._clock():
                        # The vendor has refused others meanwhile.
                        continue
                    yield
                    return
            finally:
                if first and lane.trying:
                    # Whatever it ended with, it was not the limit.
                    lane.settle(doubtful=False)

    def refused(self, model: str, seconds: float | None) -> None:
        """The vendor has refused a call for its rate, and asks for a pause of so long."""
        self._pause(model, _PAUSE_SECONDS if seconds is None else seconds)

    def heard(self, model: str, headers: Mapping[str, str]) -> None:
        """Looks at what is left of the quota. Nothing left is a pause until there is more."""
        for remaining, reset in _QUOTAS:
            if headers.get(remaining) == "0":
                seconds = _until(headers.get(reset, ""))
                if seconds is not None:
                    self._pause(model, seconds)

    def _pause(self, model: str, seconds: float) -> None:
        lane = self._lanes.setdefault(model, _Lane())
        until = self._clock() + min(seconds, _LONGEST_PAUSE)
        lane.paused_until = max(lane.paused_until, until)
        lane.settle(doubtful=True)

    async def _admitted(self, lane: _Lane, model: str) -> bool:
        """Waits until a call may be made; tells whether it is the one that goes first after a pause."""
        give_up = self._clock() + self._max_wait
        while True:
            now = self._clock()
            pause = lane.paused_until - now
            if pause > 0:
                if now + pause > give_up:
                    raise self._limited(model, pause)
                await asyncio.sleep(pause)
            elif not lane.doubtful:
                return False
            elif not lane.trying:
                lane.trying = True
                return True
            else:
                try:
                    async with asyncio.timeout(give_up - now):
                        await lane.changed.wait()
                except TimeoutError:
                    raise self._limited(model, _PAUSE_SECONDS) from None

    def _limited(self, model: str, seconds: float) -> ModelRateLimited:
        return ModelRateLimited(
            f"{self._provider} has limited the rate of '{model}', and will take no call for {seconds:.1f} s",
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
    except ValueError:
        return None
    return max(0.0, (_aware(when) - datetime.now(UTC)).total_seconds())


def _until(text: str) -> float | None:
    """Seconds, from a duration such as ``6m0s``, or from a time of RFC 3339."""
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
