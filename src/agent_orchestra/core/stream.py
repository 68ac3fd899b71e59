"""The events of one request's stream, and how a stream is told again from any position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agent_orchestra.core.routing import Route, decided_json
from agent_orchestra.core.values import JsonObject

__all__ = ["END", "StreamEvent", "StreamEventType", "completed", "delta", "failed", "retell", "routed", "started"]


class StreamEventType(StrEnum):
    ROUTED = "routed"
    STARTED = "started"
    DELTA = "delta"
    COMPLETED = "completed"
    FAILED = "failed"


#: The position of a stream's last event.
END: Final = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One event of a request's stream.

    ``position`` grows and says all that a resume needs: 1 is ``routed``, 2 is ``started``, a ``delta`` that ends after
    n characters of the output has 2 + n, the last event has :data:`END`. So a stream can be told again from any
    position with nothing but the recorded answer, and no part of it is stored twice.
    """

    position: int
    type: StreamEventType
    data: JsonObject


def routed(route: Route, *, request_id: str, conversation_id: str) -> StreamEvent:
    """The event that tells where a request goes, and why."""
    return StreamEvent(
        position=1,
        type=StreamEventType.ROUTED,
        data={
            "request_id": request_id,
            "conversation_id": conversation_id,
            "agent": route.primary.agent_id,
            **decided_json(route),
        },
    )


def started(*, agent_id: str, instance_id: str) -> StreamEvent:
    """The event that tells which instance has begun."""
    return StreamEvent(position=2, type=StreamEventType.STARTED, data={"agent": agent_id, "instance": instance_id})


def delta(text: str, *, said: int) -> StreamEvent:
    """The event that carries the next piece of the output, after ``said`` characters."""
    return StreamEvent(position=2 + said + len(text), type=StreamEventType.DELTA, data={"text": text})


def completed(answer: JsonObject) -> StreamEvent:
    """The last event of a request that has its answer."""
    return StreamEvent(position=END, type=StreamEventType.COMPLETED, data=answer)


def failed(problem: JsonObject) -> StreamEvent:
    """The last event of a request that ended without an answer."""
    return StreamEvent(position=END, type=StreamEventType.FAILED, data=problem)


def retell(head: Sequence[StreamEvent], output: str, last: StreamEvent, *, after: int) -> list[StreamEvent]:
    """What is left of an ended stream after a position: the rest of the text comes as one delta."""
    said = max(after - 2, 0)
    events = [event for event in head if event.position > after]
    if rest := output[said:]:
        events.append(delta(rest, said=said))
    return events if after >= last.position else [*events, last]
