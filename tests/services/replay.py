"""A server on loopback that answers with what model vendors were recorded to answer, or badly, as a test asks for.

It speaks HTTP/1.1 by hand, because what it is for lies below a framework: which bytes are sent, in which pieces, and
how the connection ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import pytest

from tests.services.service import PROJECT

__all__ = [
    "WIRE",
    "Answer",
    "Broken",
    "Case",
    "Ended",
    "Fault",
    "HungUp",
    "Late",
    "ReplayServer",
    "Request",
    "Stalled",
    "cases",
    "read_case",
    "require_wire",
]

#: The recorded exchanges, which are data beside the project: ``<provider>/<case>.json``.
WIRE: Final = PROJECT.parent / "shared" / "wire"

#: What a request is answered with that no test foresaw. No vendor has this status.
_UNFORESEEN: Final = 599
_EVENT_STREAM: Final = "text/event-stream"
#: Between the blank line that ends an event and what follows, whichever way lines end.
_BETWEEN_EVENTS: Final = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One recorded exchange with a vendor.

    ``request`` has ``method``, ``url`` and ``body``; ``response`` has ``status``, ``headers``, and ``body`` (JSON) or
    ``sse`` (the text of the stream); ``expect`` is what the vendor's own SDK made of it.
    """

    provider: str
    name: str
    class_: str
    source: Mapping[str, Any]
    request: Mapping[str, Any]
    response: Mapping[str, Any]
    expect: Mapping[str, Any]

    @property
    def id(self) -> str:
        """``<provider>/<name>``, as :func:`read_case` takes it."""
        return f"{self.provider}/{self.name}"

    @property
    def path(self) -> str:
        """Path and query of the recorded request."""
        parts = urlsplit(str(self.request["url"]))
        return f"{parts.path}?{parts.query}" if parts.query else parts.path

    @property
    def streams(self) -> bool:
        """Whether a stream was asked for; an error may have come instead."""
        return ":streamGenerateContent" in self.path or bool(self.request["body"].get("stream"))

    @property
    def events(self) -> tuple[bytes, ...]:
        """The events of the stream, each with the blank line that ends it; none where the answer is not a stream."""
        return _events(self.response["sse"].encode()) if "sse" in self.response else ()

    @property
    def content(self) -> bytes:
        """The whole body of the answer, without the framing of HTTP."""
        return b"".join(self.events) if "sse" in self.response else _json(self.response["body"])


def require_wire(folder: Path = WIRE, environment: Mapping[str, str] = os.environ) -> None:
    """Returns where recorded exchanges are there. Else tests are skipped on a developer's machine, and fail in CI.

    Where a module calls this, or :func:`cases`, while it is imported, that goes for all tests of the module.
    """
    if folder.is_dir():
        return
    missing = f"there are no recorded exchanges in {folder}"
    if environment.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing, allow_module_level=True)


def cases(provider: str | None = None) -> tuple[Case, ...]:
    """All recorded exchanges, or those of one vendor's API, by provider and name. Needs :func:`require_wire`."""
    require_wire()
    return tuple(_read(path) for path in sorted(WIRE.glob(f"{provider or '*'}/*.json")))


def read_case(id_: str) -> Case:
    """The exchange ``<provider>/<name>``. Needs :func:`require_wire`; raises :class:`FileNotFoundError`."""
    require_wire()
    return _read(WIRE / f"{id_}.json")


def _read(path: Path) -> Case:
    data = json.loads(path.read_text(encoding="utf-8"))
    return Case(
        provider=path.parent.name,
        name=data["case"],
        class_=data["class"],
        source=data["source"],
        request=data["request"],
        response=data["response"],
        expect=data["expect"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The connection is closed after so many events, and HTTP's own end of the answer never comes.

    With ``inside``, half of the next event's chunk still comes. With ``reset``, the connection is reset instead of
    closed, which may cost the client what it has not read yet. An answer that is no stream counts as one event.
    """

    after: int = 0
    inside: bool = False
    reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The answer ends after so many events: too early for its protocol, in good order for HTTP."""

    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """After the head and so many events nothing comes for some seconds, then the rest; with none it never comes."""

    after: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """Nothing at all comes for some seconds, then the whole answer; with none it never comes."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HungUp:
    """The request is taken, and the connection is closed without a byte in answer."""


Fault = Broken | Ended | Stalled | Late | HungUp


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent for one request: each piece by itself, in a chunk of its own where the answer is ``chunked``."""

    status: int
    headers: Mapping[str, str]
    pieces: tuple[bytes, ...]
    chunked: bool = False
    fault: Fault | None = None

    def __post_init__(self) -> None:
        match self.fault:
            case Broken(after=after, inside=True):
                last = len(self.pieces) - 1
            case Broken(after=after) | Ended(after=after) | Stalled(after=after):
                last = len(self.pieces)
            case Late() | HungUp() | None:
                return
        if not 0 <= after <= last:
            raise ValueError(f"{self.fault} is beyond an answer of {len(self.pieces)} events")

    @classmethod
    def of(cls, case: Case, fault: Fault | None = None) -> Self:
        """The recorded answer, with its status and exactly its headers."""
        status, headers = int(case.response["status"]), dict(case.response["headers"])
        if "sse" in case.response:
            return cls(status=status, headers=headers, pieces=case.events, chunked=True, fault=fault)
        return cls(status=status, headers=headers, pieces=(case.content,), fault=fault)

    @classmethod
    def made(
        cls, status: int, body: object = None, headers: Mapping[str, str] | None = None, fault: Fault | None = None
    ) -> Self:
        """An answer of the test's own. Bytes are sent as they are, as a stream if ``content-type`` (in lower case)
        says so; anything else as JSON.
        """
        if not isinstance(body, bytes):
            headers = {"content-type": "application/json", **(headers or {})}
            return cls(status=status, headers=headers, pieces=(_json(body),), fault=fault)
        headers = headers or {}
        chunked = headers.get("content-type", "").startswith(_EVENT_STREAM)
        pieces = _events(body) if chunked else (body,)
        return cls(status=status, headers=headers, pieces=pieces, chunked=chunked, fault=fault)

    @property
    def head(self) -> bytes:
        """Status line and headers: those of the answer, and how long it is."""
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = ""
        length = sum(map(len, self._sent))
        framing = "transfer-encoding: chunked" if self.chunked else f"content-length: {length}"
        headers = [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join((f"HTTP/1.1 {self.status} {phrase}", *headers, framing, "", "")).encode("latin-1")

    @property
    def frames(self) -> tuple[bytes, ...]:
        """The pieces that are sent, as HTTP frames them."""
        if not self.chunked:
            return self._sent
        return tuple(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in self._sent)

    @property
    def _sent(self) -> tuple[bytes, ...]:
        return self.pieces[: self.fault.after] if isinstance(self.fault, Ended) else self.pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client sent. Names of headers are in lower case; ``path`` has the query too.

    ``body`` is parsed JSON; text where it is not JSON, and none where there is none.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Any


class ReplayServer:
    """Answers each request with the next answer that it was given, over connections that are kept open.

    Once they are used up it gives the one for every request, and without such a one status 599, which says so. What
    goes wrong in the server itself is raised when the block ends.
    """

    def __init__(self) -> None:
        #: Every request so far, in the order in which they came in whole.
        self.requests: list[Request] = []
        self._answers: deque[Answer] = deque()
        self._always: Answer | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    @property
    def url(self) -> str:
        assert self._listener is not None, "the server does not run"
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many connections are open. A client that leaves while it waits for an answer is noticed."""
        return len(self._connections)

    @property
    def unused(self) -> int:
        """How many answers no request has come for."""
        return len(self._answers)

    def play(self, case: Case, fault: Fault | None = None) -> None:
        """Gives the recorded answer to the request that is next in line."""
        self._answers.append(Answer.of(case, fault))

    def answer(
        self, status: int, body: object = None, headers: Mapping[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        """Gives an answer of the test's own, as :meth:`Answer.made` makes it, to the request that is next in line."""
        self._answers.append(Answer.made(status, body, headers, fault))

    def silence(self) -> None:
        """Takes the request that is next in line, and never answers it."""
        self.answer(200, fault=Late())

    def hang_up(self) -> None:
        """Takes the request that is next in line, and closes the connection."""
        self.answer(200, fault=HungUp())

    def always(self, answer: Answer | Case) -> None:
        """Gives this to every request that no other answer is left for."""
        self._always = Answer.of(answer) if isinstance(answer, Case) else answer

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._listener.wait_closed()
        if self._failures:
            raise self._failures[0]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._left)

    def _left(self, connection: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        if not connection.cancelled() and (failure := connection.exception()) is not None:
            self._failures.append(failure)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # So that to drain is to have everything sent, and nothing is left to be lost when the connection is broken.
        writer.transport.set_write_buffer_limits(0)
        try:
            goes_on = True
            while goes_on:
                request = await _receive(reader)
                self.requests.append(request)
                goes_on = await _send(self._answer_to(request), reader, writer)
                goes_on = goes_on and request.headers.get("connection", "").lower() != "close"
        except (ConnectionError, asyncio.IncompleteReadError):
            # The client has left, as it may.
            return
        finally:
            writer.transport.abort()

    def _answer_to(self, request: Request) -> Answer:
        if self._answers:
            return self._answers.popleft()
        if self._always is not None:
            return self._always
        problem = {"type": "unforeseen", "message": f"no answer is left for {request.method} {request.path}"}
        # The SDKs of OpenAI and Anthropic take the header's word that there is nothing to be tried again.
        return Answer.made(_UNFORESEEN, {"error": problem}, {"x-should-retry": "false"})


async def _receive(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    assert "transfer-encoding" not in headers, f"{method} {path} comes in chunks, which are not read here"
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method=method, path=path, headers=headers, body=_parsed(content))


async def _send(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the connection goes on after this answer."""
    fault = answer.fault
    if isinstance(fault, HungUp):
        return False
    if isinstance(fault, Late):
        await _wait(reader, fault.seconds)
    await _write(writer, answer.head)
    # One more than there are: what may happen after the last.
    for position, frame in enumerate((*answer.frames, b"0\r\n\r\n" if answer.chunked else b"")):
        if isinstance(fault, Stalled) and position == fault.after:
            await _wait(reader, fault.seconds)
        if isinstance(fault, Broken) and position == fault.after:
            if fault.inside:
                await _write(writer, frame[: len(frame) // 2])
            if fault.reset:
                _reset_at_close(writer)
            return False
        await _write(writer, frame)
    return True


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    # A client in the same loop reads this before there is more: pieces arrive as pieces.
    await asyncio.sleep(0)


async def _wait(reader: asyncio.StreamReader, seconds: float | None) -> None:
    """Returns after so long. Raises :class:`ConnectionResetError` as soon as the client has left."""
    try:
        async with asyncio.timeout(seconds):
            more = await reader.read(1)
    except TimeoutError:
        return
    assert not more, "a client sends on before it has its answer"
    raise ConnectionResetError("the client has left")


def _reset_at_close(writer: asyncio.StreamWriter) -> None:
    # See socket(7): to linger for no time is to reset.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _events(content: bytes) -> tuple[bytes, ...]:
    return tuple(event for event in _BETWEEN_EVENTS.split(content) if event)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _parsed(content: bytes) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")
