"""A model's vendor on loopback, as a process of its own: every question gets the same answer at once.

It speaks the chat completions of OpenAI and costs little beside a client. A stream's first token comes at once, with
the headers; each of the others some milliseconds later, so that whoever holds a token back is seen.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, cast

from benchmarks.service import REPLY

__all__ = ["serving_model"]

_PAUSE_SECONDS: Final = 0.004
_COMMON: Final[dict[str, object]] = {
    "id": "chatcmpl-CbXq2Yw0hVfT3m8sRk1uJd5nGp7eL",
    "created": 1_760_000_000,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "default",
    "system_fingerprint": "fp_560af6e559",
}
_USAGE: Final[dict[str, object]] = {
    "prompt_tokens": 46,
    "completion_tokens": 21,
    "total_tokens": 67,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
_MESSAGE: Final[dict[str, object]] = {"role": "assistant", "content": REPLY, "refusal": None, "annotations": []}
#: As the vendor lays it out: indented.
_BODY: Final = json.dumps(
    {
        **_COMMON,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
        "usage": _USAGE,
    },
    indent=2,
).encode()
_HEADERS: Final = b"""\
Date: Fri, 20 Nov 2026 12:00:00 GMT
Connection: keep-alive
access-control-expose-headers: X-Request-ID
openai-organization: user-benchmarks
openai-processing-ms: 412
openai-version: 2020-10-01
x-envoy-upstream-service-time: 431
x-ratelimit-limit-requests: 10000
x-ratelimit-limit-tokens: 30000000
x-ratelimit-remaining-requests: 9999
x-ratelimit-remaining-tokens: 29999957
x-ratelimit-reset-requests: 6ms
x-ratelimit-reset-tokens: 0s
x-request-id: req_5f0c2f7a9b614c3f8d1e6a7b90c4d2e1
strict-transport-security: max-age=31536000; includeSubDomains; preload
X-Content-Type-Options: nosniff
""".replace(b"\n", b"\r\n")
_WHOLE: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s" % (
    _HEADERS,
    len(_BODY),
    _BODY,
)
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n%sTransfer-Encoding: chunked\r\n\r\n"
) % _HEADERS
_STREAM_END: Final = b"0\r\n\r\n"


@contextmanager
def serving_model() -> Generator[str]:
    """Runs the vendor on a free port, and gives the base URL that a client of OpenAI takes."""
    process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


def _event(payload: object) -> bytes:
    """One event of a stream as a chunk of the transfer."""
    said = b"data: %s\n\n" % (
        payload if isinstance(payload, bytes) else json.dumps(payload, separators=(",", ":")).encode()
    )
    return b"%x\r\n%s\r\n" % (len(said), said)


def _chunk(delta: object, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event({**_COMMON, "object": "chat.completion.chunk", "choices": [choice], "usage": None})


def _stream() -> tuple[bytes, list[bytes]]:
    """What is sent at once, and what follows piece by piece."""
    first, *others = (f" {word}" if number else word for number, word in enumerate(REPLY.split(" ")))
    opening = _chunk({"role": "assistant", "content": "", "refusal": None}) + _chunk({"content": first})
    # Some words a chunk, lest the pauses be most of what is measured.
    pieces = ["".join(others[start : start + 5]) for start in range(0, len(others), 5)]
    return _STREAM_HEAD + opening, [_chunk({"content": piece}) for piece in pieces]


_OPENING, _FOLLOWING = _stream()
_LAST: Final = _chunk({}, "stop")
_USED: Final = _event({**_COMMON, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE})
_DONE: Final = _event(b"[DONE]")


class _Vendor(asyncio.Protocol):
    """One connection: one request after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) < length:
            return
        self._read = body[length:]
        assert head.startswith(b"POST /v1/chat/completions ")
        self._answer(json.loads(body[:length]))

    def _answer(self, asked: dict[str, Any]) -> None:
        assert self._transport is not None
        if not asked.get("stream"):
            self._transport.write(_WHOLE)
            return
        self._transport.write(_OPENING)
        options: dict[str, Any] = asked.get("stream_options") or {}
        used = _USED if options.get("include_usage") else b""
        loop = asyncio.get_running_loop()
        for number, piece in enumerate((*_FOLLOWING, _LAST + used + _DONE + _STREAM_END), start=1):
            loop.call_later(number * _PAUSE_SECONDS, self._transport.write, piece)


async def _serve() -> None:
    """Until standard input ends, which is when whoever started it has ended."""
    server = await asyncio.get_running_loop().create_server(_Vendor, "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(_serve())
