"""Runs the HTTP service in this process, from a free port to a clean end."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from agent_orchestra.api.app import create_app
from agent_orchestra.api.auth import is_loopback
from agent_orchestra.bootstrap import open_from_settings
from agent_orchestra.errors import AddressInUse, ConfigurationError, KeysRequired
from agent_orchestra.runtime.orchestra import Orchestra
from agent_orchestra.runtime.telemetry import Log
from agent_orchestra.settings import Logs, Server, Settings

__all__ = ["configure_logs", "run"]


def run(settings: Settings, config: Path | None, announce: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. ``announce`` is called with the address once the service answers there.

    Raises :class:`AddressInUse`, :class:`KeysRequired`, and what opening the orchestra raises.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, config, announce))


async def _serve(settings: Settings, config: Path | None, announce: Callable[[str], None]) -> None:
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
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=max(1, round(settings.server.shutdown_grace)),
            )
            # What is there now stays: looking through it again at every collection would only make requests wait.
            gc.collect()
            gc.freeze()
            server = _Server(options, lambda: announce(_address(listening)))
            await server.serve([listening])
            left = settings.server.shutdown_grace - (time.monotonic() - server.told_to_stop)
            await orchestra.close(max(left, 0.0))


class _Server(uvicorn.Server):
    """Tells when it answers, and takes a signal as a wish to end well rather than as a way to die."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce
        self.told_to_stop = time.monotonic()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        before = {number: signal.signal(number, self._told) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self, number: int, frame: Any) -> None:
        self.told_to_stop = time.monotonic()
        self.handle_exit(number, frame)


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
