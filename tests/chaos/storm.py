"""Clients of a service that all come at once, each with a connection of its own."""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

__all__ = ["Answered", "resident_mb", "storm"]

_HUNG_SECONDS: Final = 45.0
_BODY: Final = json.dumps({"content": "what is the weather like?", "agent_id": "front"}).encode()
_REQUEST: Final = (
    b"POST /v1/orchestrate HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a client got. ``status`` is 0 where no answer came, or one that is not whole."""

    status: int
    retry_after: str
    seconds: float


async def storm(url: str, number: int) -> list[Answered]:
    """Sends so many requests at once, and waits for what each gets."""
    return await asyncio.gather(*(_asked(url) for _ in range(number)))


async def _asked(url: str) -> Answered:
    began = time.perf_counter()
    place = urlsplit(url)
    try:
        async with asyncio.timeout(_HUNG_SECONDS):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            try:
                writer.write(_REQUEST)
                got = await reader.read(-1)
            finally:
                writer.close()
    except OSError:
        # A timeout is one too.
        got = b""
    return _read(got, time.perf_counter() - began)


def _read(got: bytes, seconds: float) -> Answered:
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    whole = bool(body) and len(body) == int(fields.get("content-length", -1))
    status = int(first.split(" ")[1]) if whole else 0
    return Answered(status=status, retry_after=fields.get("retry-after", ""), seconds=seconds)


def resident_mb(pid: int) -> float:
    """The memory that a process holds now; not a number where the system does not tell."""
    told = Path(f"/proc/{pid}/status")
    if not told.exists():
        return math.nan
    line = next(line for line in told.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1_024
