"""What Gemini sends where server-sent events were asked for: a JSON array of them, or an error as plain JSON.

Both come labelled as anything. The SDK reads events only, and takes what is none for an answer without words.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import httpx2

__all__ = ["mend"]


async def mend(response: httpx2.Response) -> None:
    """Makes events of an array, and an error's status of an error, before anybody reads the response."""
    if ":streamGenerateContent" not in response.request.url.path or response.status_code >= 400:
        return
    source = response.stream
    assert isinstance(source, httpx2.AsyncByteStream)
    pieces = aiter(source)
    head = b""
    async for piece in pieces:
        head += piece
        if head.strip():
            break
    if head.lstrip()[:1] not in (b"[", b"{"):
        response.stream = _Stream([head], pieces, source)
        return
    body = head + b"".join([piece async for piece in pieces])
    try:
        found: object = json.loads(body)
    except ValueError:
        response.stream = _Stream([body], pieces, source)
        return
    chunks = cast("Sequence[object]", found) if isinstance(found, list) else [found]
    if error := next((error for chunk in chunks if (error := _error(chunk)) is not None), None):
        code = error.get("code")
        response.status_code = code if isinstance(code, int) and 400 <= code < 600 else 500
        response.headers["content-type"] = "application/json"
        response.stream = _Stream([json.dumps({"error": error}).encode()], pieces, source)
        return
    response.stream = _Stream(
        [b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks], pieces, source
    )


def _error(chunk: object) -> dict[str, Any] | None:
    error = cast("dict[str, Any]", chunk).get("error") if isinstance(chunk, dict) else None
    return cast("dict[str, Any]", error) if isinstance(error, dict) else None


class _Stream(httpx2.AsyncByteStream):
    """What was read already, and the rest."""

    def __init__(self, read: Sequence[bytes], rest: AsyncIterator[bytes], source: httpx2.AsyncByteStream) -> None:
        self._read = read
        self._rest = rest
        self._source = source

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._read:
            yield piece
        async for piece in self._rest:
            yield piece

    async def aclose(self) -> None:
        await self._source.aclose()
