"""The composition root: the only place that knows settings, adapters and the runtime at once."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from agent_orchestra.adapters.function import FunctionKind, wrapped
from agent_orchestra.adapters.models.kind import PromptKind, VendorModels
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.models.vendors import VENDORS, ProviderConfig
from agent_orchestra.adapters.offline import OfflineKind
from agent_orchestra.adapters.sql.agents import SqlAgentStore
from agent_orchestra.adapters.sql.conversations import SqlConversationStore
from agent_orchestra.adapters.sql.database import Database, open_database, schema_differences
from agent_orchestra.adapters.sql.keys import SqlKeyStore
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.errors import ConfigurationError
from agent_orchestra.runtime.conversations import Conversations, Turns
from agent_orchestra.runtime.dispatcher import Dispatcher
from agent_orchestra.runtime.executor import Executor
from agent_orchestra.runtime.keys import Keys
from agent_orchestra.runtime.models import Models
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT, Orchestra
from agent_orchestra.runtime.registry import Kind, Registry
from agent_orchestra.runtime.router import Router
from agent_orchestra.runtime.telemetry import Log, Telemetry
from agent_orchestra.settings import (
    DatabaseSettings,
    Settings,
    config_file,
    database_url,
    load_settings,
    without_effect,
)

__all__ = ["check_schema", "open_from_settings", "open_models", "open_storage", "opened"]

_FOR_EVER_MS = 1 << 62


@asynccontextmanager
async def opened(
    database: str | Path | None = None, *, config: str | Path | None = None, log: Log | None = None
) -> AsyncGenerator[Orchestra]:
    """What :func:`agent_orchestra.open_orchestra` promises."""
    path = Path(config) if config is not None else None
    overrides: dict[str, Mapping[str, object]] = {}
    if database is not None:
        overrides["database"] = {"url": database_url(str(database))}
    settings = load_settings(path, **overrides)
    async with open_from_settings(settings, log=log, config=config_file(path)) as orchestra:
        yield orchestra


@asynccontextmanager
async def open_from_settings(
    settings: Settings, *, log: Log | None = None, config: Path | None = None
) -> AsyncGenerator[Orchestra]:
    """The same, from settings that were read before. ``config``: the file beside which the agents' modules lie."""
    if config is not None:
        _import_from(config)
    telemetry = Telemetry(log or _standard_log(), detailed=settings.metrics.detailed_logging)
    for key in without_effect(settings):
        telemetry.warn("setting_without_effect", key=key)
    async with open_storage(settings.database) as database:
        run_log = SqlRunLog(database.scripts, database.prepare)
        if database.alone:
            await run_log.reap(_FOR_EVER_MS)
        await database.share()
        providers = _providers(settings)
        orchestra = _assembled(settings, database, run_log, telemetry, providers)
        configured = None if settings.agents is None else [d.to_agent(d.id) for d in settings.agents]
        try:
            await orchestra.start(configured)
            fallback = settings.orchestrator.fallback_agent
            if fallback is not None and all(entry.agent.id != fallback for entry in orchestra.get_agents()):
                telemetry.warn("fallback_agent_missing", agent=fallback)
            yield orchestra
        finally:
            await orchestra.close(settings.server.shutdown_grace)
            await providers.close()


@asynccontextmanager
async def open_models(settings: Settings) -> AsyncGenerator[Models]:
    """The vendors of models alone; no database is touched."""
    providers = _providers(settings)
    try:
        yield VendorModels(providers)
    finally:
        await providers.close()


@asynccontextmanager
async def open_storage(settings: DatabaseSettings) -> AsyncGenerator[Database]:
    """The database alone, its schema current."""
    database = await open_database(settings.url, synchronous=settings.synchronous, pool_size=settings.pool_size)
    try:
        yield database
    finally:
        await database.close()


async def check_schema(settings: DatabaseSettings) -> Sequence[str]:
    """What is not as it should be in a database's schema; empty when it is current. Changes nothing."""
    return await schema_differences(settings.url)


def _providers(settings: Settings) -> Providers:
    """The vendors with keys and addresses: those of the settings, or those of the environment by their usual names."""
    configs: dict[str, ProviderConfig] = {}
    for name, vendor in VENDORS.items():
        given = getattr(settings.providers, name)
        secret = given.api_key.get_secret_value() if given.api_key else None
        found = map(os.environ.get, vendor.variables)
        key = next((text for text in map(str.strip, filter(None, (secret, *found))) if text), None)
        if key is not None and not re.fullmatch("[!-~]+", key):
            raise ConfigurationError(f"the key for {name} has characters that no key has; set it anew")
        base_url = given.base_url or os.environ.get(vendor.base_url_variable or "") or None
        if base_url is not None and not _is_url(base_url):
            raise ConfigurationError(f"the address of {name} is none; write it as in 'https://host/v1'")
        configs[name] = ProviderConfig(
            api_key=key,
            base_url=base_url,
            timeout=given.timeout,
            max_concurrency=given.max_concurrency,
            max_wait=given.max_wait,
        )
    return Providers(configs)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _assembled(
    settings: Settings, database: Database, run_log: SqlRunLog, telemetry: Telemetry, providers: Providers
) -> Orchestra:
    allowed = settings.functions.allowed_modules
    offline = OfflineKind()
    kinds: Mapping[str, Kind] = {
        "function": FunctionKind(allowed=allowed),
        "offline": offline,
        "prompt": PromptKind(providers, offline=offline, allowed=allowed),
    }
    orchestrator, conversing = settings.orchestrator, settings.conversations
    registry = Registry(store=SqlAgentStore(database), kinds=kinds, shared_tenant=DEFAULT_TENANT, telemetry=telemetry)
    turns = Turns()
    dispatcher = Dispatcher(
        registry=registry,
        router=Router(fallback=orchestrator.fallback_agent),
        executor=Executor(balanced=orchestrator.load_balancing.enabled, max_output_chars=orchestrator.max_output_chars),
        log=run_log,
        leases=run_log,
        turns=turns,
        telemetry=telemetry,
        default_policy=conversing.input_policy,
        history_messages=conversing.history_messages,
        max_concurrent=orchestrator.max_concurrent_requests,
        timeout_seconds=orchestrator.request_timeout,
    )
    return Orchestra(
        registry=registry,
        dispatcher=dispatcher,
        conversations=Conversations(
            store=SqlConversationStore(database), turns=turns, default_policy=conversing.input_policy
        ),
        keys=Keys(SqlKeyStore(database)),
        log=run_log,
        models=VendorModels(providers),
        wrap=wrapped,
        storage=database,
        watch_seconds=settings.registry.refresh_seconds,
    )


def _import_from(config: Path) -> None:
    """Lets a configuration name the modules that lie beside it, wherever the program is started from."""
    folder = str(config.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)


def _standard_log() -> Log:
    """A library tells through the standard library, and leaves it to the program what becomes of it."""
    logger = logging.getLogger("agent_orchestra")
    logger.addHandler(logging.NullHandler())
    return structlog.wrap_logger(
        logger,
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
