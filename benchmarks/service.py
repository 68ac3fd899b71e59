"""The real service as a process of its own, and a client that costs little beside it."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

__all__ = ["QUESTION", "REPLY", "Client", "Service", "program", "serving"]

QUESTION: Final = "please take a note: the meeting about the budget of the third quarter was moved to next Tuesday"
REPLY: Final = "noted: the meeting about the budget of the third quarter takes place next Tuesday at the same time"

_AGENTS: Final = f"async def answer(content):\n    return {REPLY!r}\n"
_CONFIG: Final = """
agents:
  - {id: notes, kind: function, keywords: [note, meeting], settings: {function: "noop_agents:answer"}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that is ready. ``seconds``: from the start of its process until ``/readyz`` answered 200."""

    process: subprocess.Popen[str]
    host: str
    port: int
    seconds: float


def program() -> str:
    """The installed command ``orchestra`` of this environment."""
    return str(Path(sys.executable).with_name("orchestra"))


@contextmanager
def serving(folder: Path) -> Generator[Service]:
    """Runs ``orchestra serve`` with one agent that does nothing, on a free port and a database in this folder."""
    (folder / "noop_agents.py").write_text(_AGENTS, encoding="utf-8")
    (folder / "orchestra.yaml").write_text(_CONFIG, encoding="utf-8")
    began = time.perf_counter()
    process = subprocess.Popen(
        [program(), "serve", "--port", "0", "--database", "orchestra.db"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said.startswith("listening on "):
            raise RuntimeError(f"the service did not start: it said {said!r}")
        host, _, digits = said.strip().removeprefix("listening on http://").rpartition(":")
        port = int(digits)
        _wait_until_ready(host, port)
        yield Service(process=process, host=host, port=port, seconds=time.perf_counter() - began)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(host: str, port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise RuntimeError("the service did not become ready within 30 s")


class Client(asyncio.Protocol):
    """One kept connection, one request at a time. Written on the socket: a common client costs more than we do."""

    def __init__(self, host: str) -> None:
        self._head = f"POST /v1/orchestrate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n".encode()
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: asyncio.Future[bytes] | None = None
        self._read = b""

    async def ask(self, conversation_id: str | None) -> str:
        """The id of the conversation that was answered in. Raises :class:`RuntimeError` for a wrong answer."""
        assert self._transport is not None
        given = (
            {"content": QUESTION}
            if conversation_id is None
            else {"content": QUESTION, "conversation_id": conversation_id}
        )
        body = json.dumps(given).encode()
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(body), body))
        answer: dict[str, Any] = json.loads(await self._waiting)
        if answer.get("output") != REPLY or answer.get("agent") != "notes":
            raise RuntimeError(f"another answer than was expected: {answer}")
        if conversation_id not in (None, answer["conversation_id"]):
            raise RuntimeError("answered in another conversation")
        return str(answer["conversation_id"])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found or self._waiting is None or self._waiting.done():
            return
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not head.startswith(b"HTTP/1.1 200 ") or not lengths:
            self._waiting.set_exception(RuntimeError(f"not answered: {self._read[:500]!r}"))
        elif len(body) >= int(lengths[0]):
            self._read = b""
            self._waiting.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(RuntimeError(f"the connection was closed: {exc}"))
