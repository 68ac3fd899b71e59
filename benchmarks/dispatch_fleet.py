"""A fleet of models on loopback, one process: each has a port of its own and takes its own time for an answer.

They speak as much of the chat completions of OpenAI as an answer needs, take any number of questions at once, and can
be killed one by one.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Final, cast

from benchmarks.service import REPLY

__all__ = ["Fleet", "serving_fleet"]

_BODY: Final = json.dumps(
    {
        "id": "chatcmpl-CbXq2Yw0hVfT3m8sRk1uJd5nGp7eL",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-4o-2024-08-06",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": REPLY, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 46, "completion_tokens": 21, "total_tokens": 67},
    }
).encode()
_ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_BODY),
    _BODY,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """``urls``: what a client of OpenAI takes as its base URL, one for each."""

    urls: Sequence[str]
    orders: IO[bytes]

    def kill(self, number: int) -> None:
        """Has one refuse connections from now on; those that it has are cut, whatever is asked on them."""
        self.orders.write(b"%d\n" % number)
        self.orders.flush()


@contextmanager
def serving_fleet(seconds: Sequence[float]) -> Generator[Fleet]:
    """Runs one for each of these times, which is what it takes for an answer."""
    command = [sys.executable, "-m", __name__, *map(str, seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        ports = process.stdout.readline().split()
        yield Fleet(urls=[f"http://127.0.0.1:{int(port)}/v1" for port in ports], orders=process.stdin)
    finally:
        process.kill()
        process.communicate()


class _Model(asyncio.Protocol):
    """One connection: one request after the other."""

    def __init__(self, seconds: float, connections: set[asyncio.WriteTransport]) -> None:
        self._seconds = seconds
        self._connections = connections
        self._transport: asyncio.WriteTransport | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._connections.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the protocol's own
        if self._transport is not None:
            self._connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) < length:
            return
        self._read = body[length:]
        asyncio.get_running_loop().call_later(self._seconds, self._answer)

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_ANSWER)


async def _serve(seconds: Sequence[float]) -> None:
    """Until standard input ends, which is when whoever started it has ended; a number there is the one to kill."""
    loop = asyncio.get_running_loop()
    connections: list[set[asyncio.WriteTransport]] = [set() for _ in seconds]
    servers = [
        await loop.create_server(partial(_Model, taken, own), "127.0.0.1", 0)
        for taken, own in zip(seconds, connections, strict=True)
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        servers[int(line)].close()
        for connection in list(connections[int(line)]):
            connection.abort()


if __name__ == "__main__":
    asyncio.run(_serve([float(given) for given in sys.argv[1:]]))
