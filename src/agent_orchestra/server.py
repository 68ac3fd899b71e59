"""Runs the HTTP service in this process, from a free port to a clean end."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_orchestra.api import problems
from agent_orchestra.api.app import create_app
from agent_orchestra.api.auth import is_loopback
from agent_orchestra.bootstrap import open_from_settings
from agent_orchestra.errors import AddressInUse, ConfigurationError, KeysRequired, ShuttingDown
from agent_orchestra.runtime.orchestra import Orchestra
from agent_orchestra.runtime.telemetry import Log
from agent_orchestra.settings import Logs, Server, Settings

__all__ = ["configure_logs", "run"]


#: How long answers and ends of streams have to reach their clients, once nothing runs any more.
_DELIVERY_SECONDS: Final = 5


def run(settings: Settings, config: Path | None, announce: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. ``announce`` is called with the address once the service answers there.

    Told to stop, it says so in ``/readyz`` and goes on for ``server.shutdown_delay``. Then it takes no new request,
    lets those that run end within ``server.shutdown_grace``, records the rest as interrupted, and tells all of them
    how they ended, before it closes its door. A second signal ends both waits at once.

    Raises :class:`AddressInUse`, :class:`KeysRequired`, and what opening the orchestra raises.
    """
    with ExitStack() as until_end, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, config, announce, until_end))
        if runner.run(_left_behind()):
            # Agents that do not end though they were told to; everything of ours is closed, so they hold up nobody.
            sys.stdout.flush()
            os._exit(0)


async def _left_behind() -> bool:
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in left:
        task.cancel()
    if not left:
        return False
    _, pending = await asyncio.wait(left, timeout=1.0)
    return bool(pending)


async def _serve(
    settings: Settings, config: Path | None, announce: Callable[[str], None], until_end: ExitStack
) -> None:
    log = configure_logs(settings.logs)
    with _bound(settings.server) as listening:
        async with open_from_settings(settings, log=log, config=config) as orchestra:
            keys_required = await _keys_required(settings.server, orchestra)
            app = create_app(
                orchestra,
                log=log,
                keys_required=keys_required,
                max_body_bytes=settings.server.max_body_bytes,
                allowed_hosts=settings.server.allowed_hosts,
            )
            options = uvicorn.Config(
                _leaving(app, orchestra),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_DELIVERY_SECONDS,
            )
            # What is there now stays: looking through it again at every collection would only make requests wait.
            gc.collect()
            gc.freeze()
            server = _Server(options, lambda: announce(_address(listening)))
            told = until_end.enter_context(_signals())
            stopping = asyncio.create_task(_stop_when_told(told, server, orchestra, settings.server))
            try:
                await server.serve([listening])
            finally:
                told.hurry()
                await stopping


class _Told:
    """How often the service was told to stop."""

    def __init__(self) -> None:
        self.once = asyncio.Event()
        self.twice = asyncio.Event()

    def count(self) -> None:
        (self.twice if self.once.is_set() else self.once).set()

    def hurry(self) -> None:
        self.once.set()
        self.twice.set()


@contextmanager
def _signals() -> Generator[_Told]:
    """Counts the signals to stop. While the block lasts, none of them ends the process in any other way."""
    told, loop = _Told(), asyncio.get_running_loop()

    def count(_: int, __: Any) -> None:
        # Nobody listens any more in the last moments of the process.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(told.count)

    before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _stop_when_told(told: _Told, server: _Server, orchestra: Orchestra, times: Server) -> None:
    """Ends the service in the order that :func:`run` promises."""
    await told.once.wait()
    try:
        orchestra.accepting = False
        with suppress(TimeoutError):
            await asyncio.wait_for(told.twice.wait(), times.shutdown_delay)
        hurrying = asyncio.create_task(_close_at_once(told, orchestra))
        await orchestra.close(0 if told.twice.is_set() else times.shutdown_grace)
        hurrying.cancel()
        await asyncio.gather(hurrying, return_exceptions=True)
    finally:
        server.should_exit = True


async def _close_at_once(told: _Told, orchestra: Orchestra) -> None:
    await told.twice.wait()
    await orchestra.close(0)


def _leaving(app: ASGIApp, orchestra: Orchestra) -> ASGIApp:
    """Has each answer of a service that is to end be the last one on its connection: a client that goes on using one
    is then not cut off in a new request.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def last(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start" and not orchestra.accepting:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await app(scope, receive, last)
        except asyncio.CancelledError:
            # The server waits no longer: this client has not sent all of its request, or does not read its answer.
            if not started:
                refusal = ShuttingDown("the service stopped before it had all of this request; send it to another one")
                await problems.response(refusal)(scope, receive, last)

    return answer


class _Server(uvicorn.Server):
    """Tells when it answers, and leaves the signals to :func:`_signals`."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


async def _keys_required(server: Server, orchestra: Orchestra) -> bool:
    if is_loopback(server.host):
        return False
    if not any(key.revoked_ms is None for key in await orchestra.keys.find()):
        raise KeysRequired(
            f"server.host is '{server.host}', which other machines can reach, and there is no key yet; "
            "make one with 'orchestra keys create --tenant default --scope admin', or listen on 127.0.0.1"
        )
    return True


@contextmanager
def _bound(server: Server) -> Generator[socket.socket]:
    """The socket, before anything else is opened: a port in use is the likeliest mistake, and is told at once."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        listening = socket.create_server((server.host, server.port), family=family, backlog=2_048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"port {server.port} on {server.host} is in use; choose another with --port, or 0 for any free one"
            ) from None
        raise ConfigurationError(f"cannot listen on {server.host}:{server.port}: {error.strerror or error}") from None
    with listening:
        yield listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def configure_logs(logs: Logs) -> Log:
    """Has all that is logged in this process written to standard error, as JSON or for people."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    for_people = logs.format == "console" or (logs.format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    level = getattr(logging, logs.level.upper())
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
