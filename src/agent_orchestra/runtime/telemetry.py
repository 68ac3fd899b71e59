"""What the service tells about itself: log lines, spans and the time that each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import Protocol

from opentelemetry import trace

__all__ = ["Log", "Stopwatch", "Telemetry"]


class Log(Protocol):
    """Takes an event's name and its fields. The fields hold ids, codes and numbers, never content or secrets."""

    def info(self, event: str, **fields: object) -> None: ...

    def warning(self, event: str, **fields: object) -> None: ...

    def error(self, event: str, **fields: object) -> None: ...


class Stopwatch:
    """Milliseconds by stage. One reading ends a stage and begins the next."""

    def __init__(self) -> None:
        self._began = self._mark = time.perf_counter()
        self.timings: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.timings[stage] = round(self.timings.get(stage, 0.0) + (now - self._mark) * 1_000, 3)
        self._mark = now

    def total(self) -> float:
        """Milliseconds since the start."""
        return round((time.perf_counter() - self._began) * 1_000, 3)


class Telemetry:
    """Spans go through the OpenTelemetry API: nothing is sent unless the user's process has set up its SDK."""

    def __init__(self, log: Log, *, detailed: bool) -> None:
        self._log = log
        self._detailed = detailed
        self._tracer = trace.get_tracer("agent_orchestra")

    @contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Generator[trace.Span]:
        """A span over the block. An error marks it by class name only: messages may hold what must not be sent."""
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            # Nobody has set up an SDK: the caller's trace, if there is one, goes on as it is.
            yield trace.get_current_span()
            return
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            if span.is_recording():
                span.set_attributes(attributes)
            try:
                yield span
            except BaseException as error:
                self.mark(span, type(error).__name__)
                raise

    def mark(self, span: trace.Span, code: str) -> None:
        """Says of a span that what it covers has failed."""
        span.set_attribute("error.type", code)
        span.set_status(trace.StatusCode.ERROR)

    def trace_id(self, request_id: str) -> str:
        """The trace of the current span, or, where nobody traces, the request's own id: 16 bytes as well."""
        context = trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else request_id.replace("-", "")

    def raised(self, error: BaseException, *, request_id: str, agent: str) -> None:
        """Tells what an agent's own code raised, and where; its message, which may hold anything, only if wanted."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        at = f"{PurePath(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else None
        more = {"exc_info": error} if self._detailed else {}
        self.fail("agent_raised", request_id=request_id, agent=agent, error=type(error).__name__, at=at, **more)

    def tell(self, event: str, **fields: object) -> None:
        _say(self._log.info, event, fields)

    def warn(self, event: str, **fields: object) -> None:
        _say(self._log.warning, event, fields)

    def fail(self, event: str, **fields: object) -> None:
        _say(self._log.error, event, fields)


def _say(say: Callable[..., None], event: str, fields: Mapping[str, object]) -> None:
    """To tell of a thing must never break it: a log that is full or closed costs its line, and nothing else."""
    with suppress(Exception):
        say(event, **fields)
