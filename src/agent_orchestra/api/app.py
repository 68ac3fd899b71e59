"""The HTTP application, and what stands guard before it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextvars import Token
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI, HTTPException, Response
from fastapi.routing import APIRoute
from opentelemetry import context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_orchestra.api import (
    agents,
    conversations,
    escalations,
    monitoring,
    openapi,
    orchestrate,
    problems,
    routing,
    status,
)
from agent_orchestra.api.auth import is_loopback
from agent_orchestra.runtime.orchestra import Orchestra
from agent_orchestra.runtime.telemetry import Log

__all__ = ["create_app"]

_DRAIN_SECONDS: Final = 5.0
#: Each of at most 64 KiB, as the server reads them.
_DRAIN_MESSAGES: Final = 1_024


def create_app(
    orchestra: Orchestra,
    *,
    log: Log,
    keys_required: bool,
    max_body_bytes: int,
    allowed_hosts: Sequence[str] = (),
) -> FastAPI:
    """The application over an open orchestra.

    ``keys_required``: whether callers need a key; where they do not, only this machine's own names are answered to, so
    that no page in a browser can reach the service by a name of its own. ``allowed_hosts`` are further such names.
    """
    app = FastAPI(
        title="Agent Orchestra",
        version=version("agent-orchestra"),
        summary="Routes each request to the right agent, and keeps what was said.",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    app.state.orchestra = orchestra
    app.state.keys_required = keys_required
    for part in (orchestrate, escalations, agents, conversations, routing, status, monitoring):
        app.include_router(part.router)
    problems.install(app)
    hosts = None if keys_required else frozenset(host.lower() for host in allowed_hosts)
    app.add_middleware(_Guard, log=log, max_body_bytes=max_body_bytes, hosts=hosts)
    openapi.complete(app, orchestra.kinds, keys_required=keys_required)
    return app


class _Guard:
    """Lets in only requests that can be read, and lets out only documents.

    Checks the host, the type and the length of the body; a defect of ours becomes a problem document and a line in the
    log, never a traceback on the wire.
    """

    def __init__(self, app: ASGIApp, *, log: Log, max_body_bytes: int, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._log = log
        self._max_body_bytes = max_body_bytes
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if refusal := self._refusal(scope):
            await _drained(receive)
            await refusal(scope, receive, send)
            return
        started = False
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                if message.get("more_body"):
                    await _drained(receive)
                raise HTTPException(413, self._too_long(), {"Connection": "close"})
            return message

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        trace = _caller_trace(scope)
        try:
            await self._app(scope, limited, noting)
        except Exception as error:  # noqa: BLE001  the request ends here, and says so
            self._log.error("request_broke", path=scope["path"], error=type(error).__name__, exc_info=True)
            if not started:
                broken = problems.plain_response(500, "something went wrong inside the service; its log has more")
                await broken(scope, receive, send)
        finally:
            if trace is not None:
                context.detach(trace)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if self._hosts is not None:
            host = _host(headers.get(b"host", b"").decode("latin-1"))
            if not is_loopback(host) and host not in self._hosts:
                detail = f"'{host}' is no name of this machine; add it to server.allowed_hosts, or require keys"
                return problems.plain_response(421, detail)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return problems.plain_response(413, self._too_long(), {"Connection": "close"})
        has_body = length != b"0" or b"transfer-encoding" in headers
        if has_body and not _is_json(headers.get(b"content-type", b"").decode("latin-1")):
            return problems.plain_response(415, "the body must be JSON: send 'Content-Type: application/json'")
        return None

    def _too_long(self) -> str:
        return f"the body is longer than {self._max_body_bytes} bytes, the limit of server.max_body_bytes"


async def _drained(receive: Receive) -> None:
    """Takes in what a client goes on sending, for a while: one that is cut off in its sentence hears no answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            for _ in range(_DRAIN_MESSAGES):
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


def _caller_trace(scope: Scope) -> Token[context.Context] | None:
    """Goes on with the trace that the caller is in (W3C Trace Context), when it says so."""
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if b"trace" in name}
    if "traceparent" not in carrier:
        return None
    return context.attach(TraceContextTextMapPropagator().extract(carrier))


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _operation_id(route: APIRoute) -> str:
    return route.name
