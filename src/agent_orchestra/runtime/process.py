"""What this process tells of itself: its memory, and how late its event loop is."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from agent_orchestra.core.health import quantile

__all__ = ["Process", "ProcessHealth"]

_EVERY_SECONDS = 1.0
_SAMPLES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessHealth:
    """``memory_bytes``: none where the system does not tell. ``loop_lag_ms``: how late the loop came to what was due,
    in 95 % of the seconds of the last minute at most; none before the first one. ``uptime``: seconds.
    """

    memory_bytes: int | None
    loop_lag_ms: float | None
    uptime: float


class Process:
    """Looks once a second how late it is: all that runs in the loop is late by as much."""

    def __init__(self, memory: Callable[[], int | None], *, every: float = _EVERY_SECONDS) -> None:
        self._memory = memory
        self._every = every
        self._began = time.monotonic()
        self._lags: deque[float] = deque(maxlen=_SAMPLES)

    @property
    def uptime(self) -> float:
        return round(time.monotonic() - self._began, 3)

    async def watch(self) -> None:
        """Samples for ever."""
        while True:
            due = time.perf_counter() + self._every
            await asyncio.sleep(self._every)
            self._lags.append(max(time.perf_counter() - due, 0.0))

    def health(self) -> ProcessHealth:
        """The figures of now."""
        lag = quantile(list(self._lags), 0.95)
        return ProcessHealth(
            memory_bytes=self._memory(),
            loop_lag_ms=None if lag is None else round(lag * 1_000, 3),
            uptime=self.uptime,
        )
