"""A request while it runs: what its stream has told, how it can be broken off, and how it ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from agent_orchestra.core import stream
from agent_orchestra.core.request import Answer, Record, Request, answer_json
from agent_orchestra.core.stream import StreamEvent, StreamEventType
from agent_orchestra.core.values import Json, cleaned
from agent_orchestra.errors import OrchestraError

__all__ = ["Running", "failed", "plain"]

#: Beyond so many pieces those shorter than this are kept together, so that a stream of characters stays small.
_MANY_PIECES: Final = 1_000
_SMALL_PIECE: Final = 256


class Running:
    """A request that runs in this process: what its stream has told so far, and how it ends."""

    def __init__(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.on_record: asyncio.Future[Record | None] = loop.create_future()
        self.ended: asyncio.Future[Answer] = loop.create_future()
        self.record_ms = 0.0
        self.task: asyncio.Task[None] | None = None
        self.cause: OrchestraError | None = None
        self._interruptible = False
        self._events: list[StreamEvent] = []
        self._more = asyncio.Event()

    def tell(self, event: StreamEvent) -> None:
        if len(self._events) > _MANY_PIECES and event.type is StreamEventType.DELTA:
            before = str(self._events[-1].data["text"])
            if len(before) < _SMALL_PIECE:
                # Kept as one: who has heard the first part is given the rest of it.
                said = self._events.pop().position - 2 - len(before)
                event = stream.delta(before + str(event.data["text"]), said=said)
        self._events.append(event)
        self._more.set()

    def told(self, after: int) -> list[StreamEvent]:
        """What was told after a position, a piece that it lies in cut to the rest."""
        fresh: list[StreamEvent] = []
        for event in reversed(self._events):
            if event.position <= after:
                break
            fresh.append(event)
        fresh.reverse()
        if fresh and fresh[0].type is StreamEventType.DELTA:
            text = str(fresh[0].data["text"])
            begins = fresh[0].position - len(text)
            if begins < after:
                fresh[0] = stream.delta(text[after - begins :], said=after - 2)
        return fresh

    async def more(self) -> None:
        """Waits for something to be told after the last look at :meth:`told`."""
        self._more.clear()
        await self._more.wait()

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """Only within the block does :meth:`cancel` break in; what is being written is never left half done."""
        if self.cause is not None:
            raise self.cause
        self._interruptible = True
        try:
            yield
        except asyncio.CancelledError:
            if self.cause is None or self.task is None:
                raise
            self.task.uncancel()
            raise self.cause from None
        finally:
            self._interruptible = False

    def cancel(self, cause: OrchestraError) -> None:
        """Ends the request for this reason, at the next place where it can be ended."""
        if self.cause is None:
            self.cause = cause
            if self._interruptible and self.task is not None:
                self.task.cancel()

    def finish(self, answer: Answer) -> None:
        if not self.ended.done():
            self.tell(stream.completed(answer_json(answer)))
            self.ended.set_result(answer)

    def fail(self, error: OrchestraError) -> None:
        if not self.ended.done():
            self.tell(failed(error))
            self.ended.set_exception(error)
            # Whoever waits is given it; that nobody waits (a stream, a client that hung up) is no fault.
            self.ended.exception()

    def refuse(self, error: OrchestraError) -> None:
        """Ends a request that never came on record."""
        if not self.on_record.done():
            self.on_record.set_exception(error)
            self.on_record.exception()
        self.fail(error)


def failed(error: OrchestraError) -> StreamEvent:
    """The last event of a request that ended with this error."""
    return stream.failed({**plain(error), "code": error.code, "detail": cleaned(error.detail)})


def plain(error: OrchestraError) -> dict[str, Json]:
    """Its data as far as it can be stored."""
    texts = {cleaned(key): value for key, value in error.data.items()}
    plain = {k: cleaned(v) if isinstance(v, str) else v for k, v in texts.items() if isinstance(v, str | int | float)}
    return {key: value for key, value in plain.items() if not isinstance(value, float) or math.isfinite(value)}
