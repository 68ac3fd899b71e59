"""The real application over a real socket, in the loop of the test; and how its answers are read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import uvicorn

from agent_orchestra import Agent, Orchestra
from agent_orchestra.api.app import create_app
from agent_orchestra.testing import temporary_orchestra
from tests.services.waiting import wait_until

__all__ = ["PROBLEM", "Lines", "Served", "Told", "problem_of", "serving", "stream_of", "told_in"]

PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Lines:
    """A log that keeps what it is told."""

    entries: list[tuple[str, str, Mapping[str, object]]] = field(
        default_factory=list[tuple[str, str, Mapping[str, object]]]
    )

    def info(self, event: str, **fields: object) -> None:
        self.entries.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.entries.append(("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.entries.append(("error", event, fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An application that serves at ``url``. Over ``client``, or by ``orchestra``, it is the same one."""

    url: str
    orchestra: Orchestra
    client: httpx.AsyncClient
    log: Lines

    async def has(self, agent_id: str, run: Callable[..., object], **fields: Any) -> None:
        """Registers an agent in code."""
        await self.orchestra.register_agent(Agent(id=agent_id, kind="function", **fields), run=run)

    async def ask(self, content: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/orchestrate", json={"content": content, **body}, headers=headers)

    async def answer(self, content: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """The answer of a request that must succeed."""
        response = await self.ask(content, headers=headers, **body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event of a stream."""

    id: str
    type: str
    data: dict[str, Any]

    @property
    def position(self) -> str:
        return self.id.rpartition(":")[2]


class _Server(uvicorn.Server):
    """Leaves the signals to the test runner."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@asynccontextmanager
async def serving(
    *,
    keys_required: bool = False,
    max_body_bytes: int = 1_048_576,
    allowed_hosts: Sequence[str] = (),
    **settings: Mapping[str, object],
) -> AsyncGenerator[Served]:
    """An application on a free port over the block. ``settings``: sections by name."""
    log = Lines()
    async with temporary_orchestra(**settings) as orchestra:
        app = create_app(
            orchestra,
            log=log,
            keys_required=keys_required,
            max_body_bytes=max_body_bytes,
            allowed_hosts=allowed_hosts,
        )
        options = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, ws="none")
        server = _Server(options)
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
            running = asyncio.create_task(server.serve([listening]))
            try:
                await wait_until(lambda: server.started, "the server has not started")
                url = f"http://127.0.0.1:{listening.getsockname()[1]}"
                limits = httpx.Limits(max_connections=200)
                async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
                    yield Served(url=url, orchestra=orchestra, client=client, log=log)
            finally:
                server.should_exit = True
                server.force_exit = True
                await running


def problem_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of a response, which must be one (RFC 9457)."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"].partition(";")[0] == PROBLEM
    document: dict[str, Any] = response.json()
    assert document["code"] == code, document
    assert document["status"] == status
    assert document["type"] == f"urn:agent-orchestra:problem:{code}"
    assert document["title"]
    assert document["detail"]
    assert isinstance(document["retryable"], bool)
    assert "Traceback" not in response.text
    return document


async def stream_of(response: httpx.Response) -> AsyncGenerator[Told]:
    """The events of a response as they come (WHATWG HTML, section 9.2)."""
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream", response.headers
    rest = b""
    async for piece in response.aiter_bytes():
        # Not by lines of text: U+2028 and its like end a line of text, but none of a stream.
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            lines = (line.partition(": ") for line in block.decode().split("\n") if not line.startswith(":"))
            fields = {name: value for name, _, value in lines if name}
            if fields:
                yield Told(id=fields["id"], type=fields["event"], data=json.loads(fields["data"]))
    assert not rest.strip(), f"the stream ended in mid-event: {rest!r}"


async def told_in(
    client: httpx.AsyncClient, method: str, path: str, *, last: str | None = None, body: Mapping[str, Any] | None = None
) -> list[Told]:
    """The events of a stream to its end."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last is not None else {})
    async with client.stream(method, path, headers=headers, json=body) as response:
        assert response.status_code == 200, await response.aread()
        return [told async for told in stream_of(response)]
