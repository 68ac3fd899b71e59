"""Agents whose instances answer over HTTP, and a ledger of every call that was made of them."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import httpx

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.request import Reply
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import AgentFailed, AgentUnavailable, RunFailed
from agent_orchestra.runtime.executor import Call, Emit, Instance

__all__ = ["FLEET_URL", "HttpBackend", "HttpKind", "Made", "called", "http_kind"]

#: Where :func:`called` finds its instance.
FLEET_URL: Final = "CHAOS_FLEET_URL"


@dataclass(slots=True, kw_only=True)
class Made:
    """A call as its client saw it. ``code``: of its error, ``answered``, ``cancelled``, or nothing while it runs."""

    content: str
    began: float
    ended: float = 0.0
    code: str = ""
    retry_after: float | None = None


class HttpBackend:
    """Conforms to :class:`Backend`. Asks one instance, over connections that are kept."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self._url = url
        self._client = client
        self.made: list[Made] = []

    async def run(self, call: Call, emit: Emit) -> Reply:
        made = Made(content=call.content, began=time.perf_counter())
        self.made.append(made)
        made.code = "cancelled"
        try:
            reply = await _asked(self._client, self._url, call)
            made.code = "answered"
        except RunFailed as error:
            made.code, made.retry_after = error.code, error.retry_after
            raise
        finally:
            made.ended = time.perf_counter()
        return reply

    async def check(self) -> None:
        """Returns when the instance says that it is well."""
        response = await self._client.get(self._url)
        if response.status_code != 200:
            raise AgentUnavailable(f"its check answered {response.status_code}")


async def _asked(client: httpx.AsyncClient, url: str, call: Call) -> Reply:
    try:
        async with client.stream("POST", url, json={"content": call.content}) as response:
            try:
                await response.aread()
            except httpx.TransportError as error:
                raise _half_done(call, f"its answer broke off ({type(error).__name__})") from error
    except httpx.TransportError as error:
        # Nothing came back: an instance that begins to answer only when it has done its work has done nothing.
        raise AgentUnavailable(f"it cannot be reached ({type(error).__name__})", cause=type(error).__name__) from error
    if response.status_code != 200:
        asked = response.headers.get("Retry-After")
        rest = {"retry_after": float(asked)} if asked else {}
        raise AgentUnavailable(f"it answered {response.status_code}", status=response.status_code, **rest)
    try:
        said: object = response.json()
    except ValueError as error:
        raise _half_done(call, "it answered with what is no JSON") from error
    output = cast("dict[str, object]", said).get("output") if isinstance(said, dict) else None
    if not isinstance(output, str):
        raise _half_done(call, "it answered with JSON that is no answer")
    return Reply(output=output)


def _half_done(call: Call, detail: str) -> AgentFailed:
    """What it did before it went wrong nobody knows: only a call that changes nothing may be made again."""
    return AgentUnavailable(detail) if call.agent.read_only else AgentFailed(detail, cause="half_done")


class HttpKind:
    """Conforms to :class:`Kind`: ``settings.instances`` has the URL of each instance by its id.

    ``checked``: its instances can be asked whether they are well.
    """

    def __init__(self, *, checked: bool) -> None:
        self._checked = checked
        self.schema: JsonObject = {"type": "object"}
        self._clients: list[httpx.AsyncClient] = []
        self._backends: dict[str, HttpBackend] = {}

    async def connect(self, agent: Agent, *, trusted: bool) -> Sequence[Instance]:
        urls = cast("Mapping[str, str]", agent.settings["instances"])
        backends = {instance_id: self._backend(instance_id, url) for instance_id, url in urls.items()}
        return [
            Instance(id=instance_id, backend=backend, check=backend.check if self._checked else None)
            for instance_id, backend in backends.items()
        ]

    def _backend(self, instance_id: str, url: str) -> HttpBackend:
        # The executor decides how long a call may take and how many there are: the client bounds neither.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)
        client = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False, verify=False)
        self._clients.append(client)
        self._backends[instance_id] = HttpBackend(url, client)
        return self._backends[instance_id]

    def made(self, *ids: str) -> list[Made]:
        """The calls of these instances, or of all, in the order in which they began."""
        backends = [self._backends[instance_id] for instance_id in ids] or self._backends.values()
        return sorted((made for backend in backends for made in backend.made), key=lambda made: made.began)

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


@asynccontextmanager
async def http_kind(*, checked: bool) -> AsyncGenerator[HttpKind]:
    """A kind whose connections are closed after the block."""
    kind = HttpKind(checked=checked)
    try:
        yield kind
    finally:
        await kind.close()


async def called(content: str) -> str:
    """A function that asks an instance: the agent of a service in another process."""
    async with httpx.AsyncClient(timeout=None, trust_env=False, verify=False) as client:
        response = await client.post(os.environ[FLEET_URL], json={"content": content})
    said: dict[str, Any] = response.json()
    return said["output"]
