"""Scripted instances of an agent, over HTTP on loopback: ``python -m tests.chaos.instances a b c``.

They run in a process of their own, so that what is measured shares no loop with them, and so that they can be killed.
Standard library only: it starts in a moment. The process ends when nobody holds the other end of its standard input.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

__all__ = ["Called", "Script", "main"]

#: Closed with this, a connection is reset: whatever is on its way is lost.
_RESET: Final = struct.pack("ii", 1, 0)
_BACKLOG: Final = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How an instance behaves to each call from now on; calls that it has already end as they began.

    ``seconds``: until the head of the answer; ``slow_seconds`` for ``slow_share`` of the calls. ``body_seconds``: from
    there until the first byte of the body. ``status``: of each answer; ``failing_share`` of them have 500 instead.
    ``retry_after``: a header of each answer that is not 200. ``garbage``: 200, and a body that is no answer.
    ``reset``: the connection is reset, ``before`` the first byte or in the ``middle`` of the answer. ``stall``: nothing
    ever comes. ``sick``: whoever checks it is told that it is not well. Not ``listening``: connections are refused, and
    those that were open are reset.
    """

    seconds: float = 0.0
    slow_share: float = 0.0
    slow_seconds: float = 0.0
    body_seconds: float = 0.0
    status: int = 200
    failing_share: float = 0.0
    retry_after: float | None = None
    garbage: bool = False
    reset: str = ""
    stall: bool = False
    sick: bool = False
    listening: bool = True


@dataclass(slots=True)
class Called:
    """One call that an instance got. Times are of the machine's monotonic clock; ``ended`` is 0 until it has.

    ``how``: its status, ``garbage``, ``reset``, ``stalled`` or, while it has no end, nothing.
    """

    content: str
    began: float
    ended: float = 0.0
    how: str = ""


class _Instance:
    def __init__(self, instance_id: str) -> None:
        self.id = instance_id
        self.script = Script()
        self.calls: list[Called] = []
        self.port = 0
        self._chance = random.Random(instance_id)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def follow(self, script: Script) -> None:
        self.script = script
        if script.listening and self._server is None:
            # The same port again: clients find it back.
            self._server = await asyncio.start_server(
                self._connected, "127.0.0.1", self.port, backlog=_BACKLOG, reuse_address=True
            )
            self.port = self._server.sockets[0].getsockname()[1]
        elif not script.listening and self._server is not None:
            self._server.close()
            self._server = None
            for connection in list(self._connections):
                _reset(connection)

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while await self._answered(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            # The client has hung up, as clients may.
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One call; whether the connection is good for another one."""
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET "):
            writer.write(_head(503 if self.script.sick else 200, 0, None))
            await writer.drain()
            return True
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        content = json.loads(await reader.readexactly(length))["content"]
        called = Called(content, time.monotonic())
        self.calls.append(called)
        try:
            return await self._acted(called, reader, writer)
        finally:
            called.ended = time.monotonic()

    async def _acted(self, called: Called, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        script = self.script
        if script.stall:
            called.how = "stalled"
            await reader.read(1)
            return False
        slow = self._chance.random() < script.slow_share
        if seconds := script.slow_seconds if slow else script.seconds:
            await asyncio.sleep(seconds)
        if script.reset == "before":
            called.how = "reset"
            _reset(writer)
            return False
        status = 500 if self._chance.random() < script.failing_share else script.status
        body = b"<html>all is well</html>" if script.garbage else _said(self.id, called.content)
        first = _head(status, len(body), script.retry_after)
        if script.body_seconds:
            writer.write(first)
            await asyncio.sleep(script.body_seconds)
            first = b""
        if script.reset == "middle":
            called.how = "reset"
            writer.write(first + body[: len(body) // 2])
            await writer.drain()
            # Long enough for the half to arrive: a reset takes what was not yet read with it.
            await asyncio.sleep(0.02)
            _reset(writer)
            return False
        writer.write(first + body)
        called.how = "garbage" if script.garbage else str(status)
        await writer.drain()
        return True


def _said(instance_id: str, content: str) -> bytes:
    return json.dumps({"output": f"{instance_id}: {content}"}).encode()


def _head(status: int, length: int, retry_after: float | None) -> bytes:
    asked = f"Retry-After: {retry_after:g}\r\n" if retry_after is not None and status != 200 else ""
    return f"HTTP/1.1 {status} As Scripted\r\nContent-Length: {length}\r\n{asked}\r\n".encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class _Control:
    """Takes a line of JSON, does what it says, and tells in a line of JSON."""

    def __init__(self, instances: dict[str, _Instance]) -> None:
        self._instances = instances

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._done(json.loads(line))).encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()

    async def _done(self, asked: dict[str, Any]) -> object:
        instance = self._instances[asked["id"]]
        if "script" in asked:
            await instance.follow(Script(**asked["script"]))
            return {}
        return {"calls": [asdict(called) for called in instance.calls], "connections": instance.connections}


async def _serve(ids: list[str]) -> None:
    instances = {instance_id: _Instance(instance_id) for instance_id in ids}
    for instance in instances.values():
        await instance.follow(instance.script)
    control = await asyncio.start_server(_Control(instances).connected, "127.0.0.1", 0, limit=1 << 20)
    async with control:
        ports = {instance.id: instance.port for instance in instances.values()}
        print(json.dumps({"control": control.sockets[0].getsockname()[1], "ports": ports}), flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.buffer.read)


def main() -> None:
    asyncio.run(_serve(sys.argv[1:]))


if __name__ == "__main__":
    main()
