"""The composition root: the only place that knows settings, adapters and the runtime at once."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from agent_orchestra.adapters.discovery import found_in_modules, found_in_packages
from agent_orchestra.adapters.fitting import ProcessFitter
from agent_orchestra.adapters.function import FunctionKind, wrapped
from agent_orchestra.adapters.memory import resident_bytes
from agent_orchestra.adapters.models.kind import PromptKind, VendorModels
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.models.vendors import VENDORS, ProviderConfig, parse
from agent_orchestra.adapters.offline import OfflineKind
from agent_orchestra.adapters.own_router import own_router
from agent_orchestra.adapters.sql.agents import SqlAgentStore
from agent_orchestra.adapters.sql.conversations import SqlConversationStore
from agent_orchestra.adapters.sql.database import Database, open_database, schema_differences
from agent_orchestra.adapters.sql.decisions import SqlDecisionLog
from agent_orchestra.adapters.sql.escalations import SqlEscalationLog
from agent_orchestra.adapters.sql.events import SqlJournal
from agent_orchestra.adapters.sql.keys import SqlKeyStore
from agent_orchestra.adapters.sql.learning import SqlFeedbackLog, SqlVectorStore, SqlVersions
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.adapters.team import TeamKind
from agent_orchestra.core import plan
from agent_orchestra.core.breaker import BreakerPolicy
from agent_orchestra.core.resilience import BudgetPolicy
from agent_orchestra.core.routing import Policy, Rule, Strategy
from agent_orchestra.errors import ConfigurationError, EncoderFailed
from agent_orchestra.runtime.alarms import Alarms, Measures, Requests, Vendors
from agent_orchestra.runtime.bulkhead import Bulkhead
from agent_orchestra.runtime.classifying import Classifiers
from agent_orchestra.runtime.conversations import Conversations, Turns
from agent_orchestra.runtime.coordinator import Coordinator
from agent_orchestra.runtime.dispatcher import Dispatcher
from agent_orchestra.runtime.embeddings import Embeddings
from agent_orchestra.runtime.encoding import Encoder
from agent_orchestra.runtime.escalations import Escalations
from agent_orchestra.runtime.executor import Executor
from agent_orchestra.runtime.instances import Dispatching
from agent_orchestra.runtime.journal import Notices
from agent_orchestra.runtime.judging import Judge
from agent_orchestra.runtime.keys import Keys
from agent_orchestra.runtime.learning import Learner, LearningPolicy
from agent_orchestra.runtime.models import Models
from agent_orchestra.runtime.monitor import Monitor, Witness
from agent_orchestra.runtime.monitoring import Monitoring
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT, Orchestra
from agent_orchestra.runtime.process import Process
from agent_orchestra.runtime.registry import Kind, Registry, Roster
from agent_orchestra.runtime.router import Router
from agent_orchestra.runtime.routing import Routing
from agent_orchestra.runtime.telemetry import Log, Telemetry
from agent_orchestra.settings import (
    DatabaseSettings,
    Orchestrator,
    Secondary,
    Settings,
    config_file,
    database_url,
    load_settings,
    without_effect,
)

__all__ = [
    "check_schema",
    "install_encoder",
    "monitoring_parts",
    "open_from_settings",
    "open_models",
    "open_storage",
    "opened",
    "opened_encoder",
    "routing_parts",
]

_FOR_EVER_MS = 1 << 62
_SECONDARY = {
    Secondary.PARALLEL: plan.Strategy.PARALLEL,
    Secondary.SEQUENTIAL: plan.Strategy.SEQUENTIAL,
    Secondary.IGNORE: None,
}


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
    found = [*await found_in_modules(settings.registry.modules)]
    if settings.registry.entry_points:
        found += await found_in_packages(telemetry)
    async with open_storage(settings.database) as database:
        run_log = SqlRunLog(database.scripts, database.prepare)
        if database.alone:
            await run_log.reap(_FOR_EVER_MS)
        await database.share()
        providers = _providers(settings)
        encoder, encoder_fault = await _encoder(settings, providers, telemetry)
        orchestra = _assembled(settings, database, run_log, telemetry, providers, encoder, encoder_fault)
        configured = None if settings.agents is None else [d.to_agent(d.id) for d in settings.agents]
        try:
            await orchestra.start(configured, found)
            fallback = settings.orchestrator.fallback_agent
            known = {entry.agent.id for entry in orchestra.get_agents()}
            if fallback is not None and fallback not in known:
                telemetry.warn("fallback_agent_missing", agent=fallback)
            for rule in settings.alerts:
                if rule.agent is not None and rule.agent not in known:
                    telemetry.warn("alert_agent_missing", alert=rule.name, agent=rule.agent)
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
    settings: Settings,
    database: Database,
    run_log: SqlRunLog,
    telemetry: Telemetry,
    providers: Providers,
    encoder: Encoder | None,
    encoder_fault: str | None,
) -> Orchestra:
    allowed = settings.functions.allowed_modules
    orchestrator, conversing = settings.orchestrator, settings.conversations
    witness = Witness(Notices(SqlJournal(database), telemetry), telemetry)
    executor = Executor(
        policy=_dispatching(orchestrator), max_output_chars=orchestrator.max_output_chars, observer=witness
    )

    def roster(tenant: str) -> Roster:
        return registry.roster(tenant)

    coordinator = Coordinator(roster=roster, executor=executor, wrap=wrapped, telemetry=telemetry)
    offline = OfflineKind()
    kinds: Mapping[str, Kind] = {
        "function": FunctionKind(allowed=allowed),
        "offline": offline,
        "prompt": PromptKind(providers, offline=offline, allowed=allowed),
        "team": TeamKind(coordinator, allowed=allowed),
    }
    registry = Registry(store=SqlAgentStore(database), kinds=kinds, shared_tenant=DEFAULT_TENANT, telemetry=telemetry)
    turns = Turns()
    conversations = Conversations(
        store=SqlConversationStore(database), turns=turns, default_policy=conversing.input_policy
    )
    models = VendorModels(providers)
    router, routing = routing_parts(
        settings,
        database,
        registry=registry,
        conversations=conversations,
        models=models,
        telemetry=telemetry,
        encoder=encoder,
        encoder_fault=encoder_fault,
    )
    dispatcher = Dispatcher(
        registry=registry,
        router=router,
        executor=executor,
        coordinator=coordinator,
        log=run_log,
        leases=run_log,
        turns=turns,
        telemetry=telemetry,
        bulkhead=Bulkhead(
            places=orchestrator.max_concurrent_requests,
            waiting=orchestrator.max_waiting_requests,
            seconds=orchestrator.max_wait,
        ),
        default_policy=conversing.input_policy,
        history_messages=conversing.history_messages,
        timeout_seconds=orchestrator.request_timeout,
        hand_over_from=orchestrator.hand_over_from,
        secondary=_SECONDARY[orchestrator.secondary_agents],
    )
    return Orchestra(
        registry=registry,
        dispatcher=dispatcher,
        conversations=conversations,
        keys=Keys(SqlKeyStore(database)),
        routing=routing,
        monitoring=monitoring_parts(
            settings,
            database,
            registry=registry,
            requests=dispatcher,
            vendors=models,
            witness=witness,
            telemetry=telemetry,
        ),
        escalations=Escalations(log=SqlEscalationLog(database), turns=turns),
        log=run_log,
        models=models,
        wrap=wrapped,
        storage=database,
        watch_seconds=settings.registry.refresh_seconds,
    )


def _dispatching(orchestrator: Orchestrator) -> Dispatching:
    breaker, budget = orchestrator.circuit_breaker, orchestrator.retry_budget
    return Dispatching(
        balanced=orchestrator.load_balancing.enabled,
        algorithm=orchestrator.load_balancing.algorithm,
        breaker=BreakerPolicy(
            enabled=breaker.enabled,
            failures=breaker.failure_threshold,
            rest=breaker.recovery_timeout,
            failure_share=breaker.failure_share,
            window=breaker.window,
            least_calls=breaker.least_calls,
            slow=breaker.slow_call,
        ),
        budget=BudgetPolicy(share=budget.share, floor=budget.floor, window=budget.window),
    )


def monitoring_parts(
    settings: Settings,
    database: Database,
    *,
    registry: Registry,
    requests: Requests,
    vendors: Vendors,
    witness: Witness,
    telemetry: Telemetry,
) -> Monitoring:
    """What watches over agents and process. ``witness``: what the executor tells of its instances."""
    process = Process(resident_bytes)
    measures = Measures(
        registry=registry,
        tenant=DEFAULT_TENANT,
        requests=requests,
        process=process,
        storage=database,
        vendors=vendors,
    )
    return Monitoring(
        monitor=Monitor(registry=registry, observer=witness, interval=settings.orchestrator.health_check_interval),
        alarms=Alarms(
            [rule.to_rule() for rule in settings.alerts],
            measures=measures,
            notices=witness.notices,
            tenant=DEFAULT_TENANT,
            telemetry=telemetry,
        ),
        process=process,
        notices=witness.notices,
        storage=database,
        vendors=vendors,
        tenant=DEFAULT_TENANT,
    )


def routing_parts(
    settings: Settings,
    database: Database,
    *,
    registry: Registry,
    conversations: Conversations,
    models: Models,
    telemetry: Telemetry,
    encoder: Encoder | None = None,
    encoder_fault: str | None = None,
) -> tuple[Router, Routing]:
    """What decides, and what people do with decisions. ``encoder_fault``: why there is no encoder, if one is set."""
    routing, strategy = settings.routing, settings.orchestrator.routing_strategy
    decisions, feedback, versions = SqlDecisionLog(database), SqlFeedbackLog(database), SqlVersions(database)
    embeddings = None
    if encoder is not None:
        embeddings = Embeddings(encoder, SqlVectorStore(database), timeout=routing.encoder_timeout, telemetry=telemetry)
    classifiers = Classifiers(
        strategy=strategy,
        embeddings=embeddings,
        versions=versions,
        feedback=feedback,
        shared_tenant=DEFAULT_TENANT,
        telemetry=telemetry,
    )
    learner = Learner(
        classifiers=classifiers,
        registry=registry,
        feedback=feedback,
        versions=versions,
        fitter=ProcessFitter(),
        policy=LearningPolicy(
            enabled=routing.learning.enabled, feedback=routing.learning.feedback, seconds=routing.learning.seconds
        ),
        telemetry=telemetry,
    )
    router = Router(
        policy=_policy(settings),
        classifier=classifiers,
        log=decisions,
        listener=learner,
        telemetry=telemetry,
        rules=[Rule(agent_id=rule.agent, phrases=rule.phrases) for rule in routing.rules],
        own=own_router(routing.custom, timeout=routing.custom_timeout) if routing.custom is not None else None,
        judge=_judge(settings, models),
    )
    return router, Routing(
        router=router,
        registry=registry,
        conversations=conversations,
        decisions=decisions,
        classifiers=classifiers,
        learner=learner,
        versions=versions,
        models=models,
        model=routing.llm.model,
        encoder_fault=encoder_fault,
        history_messages=settings.conversations.history_messages,
    )


def _policy(settings: Settings) -> Policy:
    routing = settings.routing
    return Policy(
        strategy=settings.orchestrator.routing_strategy,
        fallback=settings.orchestrator.fallback_agent,
        doubt_from=routing.llm.doubt_from,
        doubt_to=routing.llm.doubt_to,
        exploration=routing.exploration,
    )


def _judge(settings: Settings, models: Models) -> Judge | None:
    llm = settings.routing.llm
    if llm.model is None or settings.orchestrator.routing_strategy not in (Strategy.HYBRID, Strategy.LLM):
        return None
    parse(llm.model, path="routing.llm.model")
    return Judge(
        models,
        model=llm.model,
        timeout=llm.timeout,
        calls_per_minute=llm.calls_per_minute,
        usd_per_day=llm.usd_per_day,
    )


async def _encoder(settings: Settings, providers: Providers, telemetry: Telemetry) -> tuple[Encoder | None, str | None]:
    """The encoder of the settings, or why there is none: routing goes on without it."""
    if settings.routing.encoder is None or settings.orchestrator.routing_strategy is Strategy.SIMPLE:
        return None, None
    try:
        return await _opened_encoder(settings, settings.routing.encoder, providers), None
    except (ConfigurationError, EncoderFailed) as error:
        telemetry.warn("encoder_unavailable", code=error.code, reason=error.detail)
        return None, error.detail


def install_encoder(settings: Settings, name: str, file: str | None) -> Path:
    """Fetches an encoder from the hub; its folder. Raises :class:`ConfigurationError` and :class:`Unavailable`."""
    from agent_orchestra.adapters.encoders.hub import install

    return install(name, settings.routing.encoder_folder, file=file)


async def _opened_encoder(settings: Settings, setting: str, providers: Providers) -> Encoder:
    from agent_orchestra.adapters.encoders.opening import open_encoder
    from agent_orchestra.adapters.models.embeddings import open_vendor_encoder

    vendor = partial(open_vendor_encoder, providers)
    return await open_encoder(setting, vendor=vendor, into=settings.routing.encoder_folder)


@asynccontextmanager
async def opened_encoder(settings: Settings) -> AsyncGenerator[Encoder | None]:
    """The encoder of the settings alone; none where they name none. Raises :class:`ConfigurationError`."""
    if settings.routing.encoder is None:
        yield None
        return
    providers = _providers(settings)
    try:
        encoder = await _opened_encoder(settings, settings.routing.encoder, providers)
        try:
            yield encoder
        finally:
            await encoder.close()
    finally:
        await providers.close()


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
