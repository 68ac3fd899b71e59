"""What happens by itself is put on record in the background: nobody waits, and a database may be gone for a while."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import Unavailable, code_of
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.telemetry import Telemetry

__all__ = ["Journal", "Notice", "Notices"]

#: More than that is lost, while the journal cannot be written.
_MOST = 2_000
_BATCH = 100
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
#: How long a write that is under way may take after the end was told.
_END_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that happened (``type``), to whom (``subject``), and the little that a reader needs besides."""

    tenant: str
    type: str
    subject: str
    data: JsonObject = field(default_factory=dict[str, None])
    at_ms: int = field(default_factory=now_ms)


class Journal(Protocol):
    """Keeps notices as events."""

    async def tell(self, notices: Sequence[Notice]) -> None:
        """Keeps all of them in their order, or none. Raises :class:`Unavailable`."""
        ...

    async def last(self, tenant: str, types: Collection[str], subjects: Collection[str]) -> Mapping[str, Notice]:
        """The last notice of one of the types for each subject that has one. Raises :class:`Unavailable`."""
        ...


class Notices:
    """A line of notices before a journal. What cannot be written now is tried again later, in its order."""

    def __init__(self, journal: Journal, telemetry: Telemetry) -> None:
        self._journal = journal
        self._telemetry = telemetry
        self._line: deque[Notice] = deque()
        self._come = asyncio.Event()
        self._full = False

    def put(self, notice: Notice) -> None:
        """Takes a notice. Never raises, never waits; the newest is lost where too many wait, and the log says so."""
        if len(self._line) < _MOST:
            self._full = False
            self._line.append(notice)
            self._come.set()
            return
        if not self._full:
            self._full = True
            self._telemetry.warn("events_lost", type=notice.type, subject=notice.subject, reason="too many wait")

    async def write(self) -> None:
        """Writes what comes, for ever."""
        pause = 0.0
        while True:
            await self._come.wait()
            self._come.clear()
            while self._line:
                try:
                    await self._write_some()
                    pause = 0.0
                except Unavailable as error:
                    pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)
                    self._telemetry.warn("events_not_written", code=error.code, waiting=len(self._line))
                    await asyncio.sleep(pause)

    async def last(self, tenant: str, types: Collection[str], subjects: Collection[str]) -> Mapping[str, Notice]:
        """As :meth:`Journal.last`, of what is written by now."""
        return await self._journal.last(tenant, types, subjects)

    async def close(self, seconds: float) -> None:
        """Writes what is left, for so many seconds at most; :meth:`write` must have ended."""
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(seconds):
                while self._line:
                    await self._write_some()
        if left := len(self._line):
            self._telemetry.warn("events_lost", count=left, reason="the journal could not be written before the end")

    async def _write_some(self) -> None:
        """Writes the first of the line. Raises :class:`Unavailable` where that is worth another try."""
        batch = [self._line[number] for number in range(min(len(self._line), _BATCH))]
        writing = asyncio.ensure_future(self._journal.tell(batch))
        try:
            # Whether a transaction that is broken off was one is only known at its end.
            await asyncio.wait((writing,))
        except asyncio.CancelledError:
            await asyncio.wait((writing,), timeout=_END_SECONDS)
            if writing.done():
                self._settle(writing, batch)
            else:
                writing.cancel()
                writing.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        if (error := self._settle(writing, batch)) is not None:
            raise error

    def _settle(self, writing: asyncio.Future[None], batch: Sequence[Notice]) -> Unavailable | None:
        """What was written leaves the line, and so does what never can be."""
        error = asyncio.CancelledError() if writing.cancelled() else writing.exception()
        if isinstance(error, Unavailable):
            return error
        if error is not None:
            self._telemetry.fail("events_lost", count=len(batch), code=code_of(error))
        for _ in batch:
            self._line.popleft()
        return None
