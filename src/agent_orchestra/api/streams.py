"""Server-sent events (WHATWG HTML, section 9.2) of one request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse

from agent_orchestra.api.problems import told_problem
from agent_orchestra.core.stream import END, StreamEvent, StreamEventType
from agent_orchestra.errors import RequestNotFound

__all__ = ["DESCRIBED", "MEDIA_TYPE", "event_response", "parse_event_id"]

MEDIA_TYPE: Final = "text/event-stream"
DESCRIBED: Final[dict[str, Any]] = {
    MEDIA_TYPE: {
        "schema": {
            "description": "One event; the last is 'completed' or 'failed'. A comment comes every 15 s of silence.",
            "type": "object",
            "properties": {
                "event": {"enum": [kind.value for kind in StreamEventType]},
                "id": {"type": "string", "description": "Send it as Last-Event-ID to go on after this event."},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
            "required": ["event", "id", "data"],
        }
    }
}

_PING_SECONDS: Final = 15.0
_MOST_DIGITS: Final = 12


def parse_event_id(text: str) -> tuple[str, int]:
    """The request and the position that an id of an event names. Raises :class:`RequestNotFound` for what is none."""
    request_id, _, position = text.rpartition(":")
    if request_id and position == "end":
        return request_id, END
    if not (request_id and position.isascii() and position.isdigit() and len(position) <= _MOST_DIGITS):
        raise RequestNotFound("Last-Event-ID is not the id of an event; leave it out to hear all")
    return request_id, int(position)


def event_response(request_id: str, events: AsyncIterator[StreamEvent], headers: dict[str, str]) -> Response:
    """The stream as a response. That the client hangs up ends the stream, not the request."""
    return StreamingResponse(
        _encoded(request_id, events),
        media_type=MEDIA_TYPE,
        headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _encoded(request_id: str, events: AsyncIterator[StreamEvent]) -> AsyncIterator[bytes]:
    following: asyncio.Future[StreamEvent] | None = None
    try:
        while True:
            if following is None:
                following = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait((following,), timeout=_PING_SECONDS)
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield _bytes(request_id, event)
    finally:
        if following is not None:
            following.cancel()


def _bytes(request_id: str, event: StreamEvent) -> bytes:
    data: Any = event.data
    if event.type is StreamEventType.FAILED:
        more = {key: value for key, value in event.data.items() if key not in ("code", "detail")}
        data = told_problem(str(event.data["code"]), str(event.data["detail"]), more)
    position = "end" if event.position == END else str(event.position)
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return format_sse_event(event=event.type.value, data_str=text, id=f"{request_id}:{position}")
