"""An orchestra taken apart: the real parts on a real file, with a record of requests that can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent_orchestra.adapters.function import FunctionKind, wrapped
from agent_orchestra.adapters.models.kind import VendorModels
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.offline import OfflineKind
from agent_orchestra.adapters.sql.agents import SqlAgentStore
from agent_orchestra.adapters.sql.conversations import SqlConversationStore
from agent_orchestra.adapters.sql.database import open_database
from agent_orchestra.adapters.sql.escalations import SqlEscalationLog
from agent_orchestra.adapters.sql.events import SqlJournal
from agent_orchestra.adapters.sql.keys import SqlKeyStore
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.adapters.team import TeamKind
from agent_orchestra.bootstrap import monitoring_parts, routing_parts
from agent_orchestra.core.agent import Agent, Limits
from agent_orchestra.core.conversation import InputPolicy
from agent_orchestra.core.plan import Strategy
from agent_orchestra.core.request import Answer, Failure, Record, Request, RequestStatus
from agent_orchestra.core.stream import StreamEvent, StreamEventType
from agent_orchestra.runtime.bulkhead import Bulkhead
from agent_orchestra.runtime.conversations import Conversations, Turns
from agent_orchestra.runtime.coordinator import Coordinator
from agent_orchestra.runtime.dispatcher import Accepted, Dispatcher, Loaded
from agent_orchestra.runtime.encoding import Encoder
from agent_orchestra.runtime.escalations import Escalations
from agent_orchestra.runtime.executor import Call, Executor
from agent_orchestra.runtime.instances import Dispatching
from agent_orchestra.runtime.journal import Notices
from agent_orchestra.runtime.keys import Keys
from agent_orchestra.runtime.monitor import Witness
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT, Function, Orchestra
from agent_orchestra.runtime.registry import Kind, Registered, Registry, Roster
from agent_orchestra.runtime.telemetry import Telemetry
from agent_orchestra.settings import Orchestrator, Settings

KINDS: Mapping[str, Kind] = {"function": FunctionKind(allowed=()), "offline": OfflineKind()}

DISPATCHING = Dispatching()


class FaultyLog:
    """A record of requests, and signs of life, that can be made slow or unavailable. Conforms to both ports."""

    def __init__(self, inner: SqlRunLog) -> None:
        self.inner = inner
        #: Raised by the next calls, one each.
        self.accept_raises: list[Exception] = []
        self.record_raises: list[Exception] = []
        self.renew_raises: list[Exception] = []
        #: Calls wait here.
        self.may_record = asyncio.Event()
        self.may_record.set()
        self.record_calls = 0
        self.recorded: list[str] = []
        self.renewed: list[Sequence[str]] = []

    async def load(self, request: Request, *, limit: int) -> Loaded:
        return await self.inner.load(request, limit=limit)

    async def accept(self, entry: Accepted) -> Record | None:
        if self.accept_raises:
            raise self.accept_raises.pop(0)
        return await self.inner.accept(entry)

    async def record(
        self, tenant: str, request_id: str, conversation_id: str, end: Answer | Failure, status: RequestStatus
    ) -> None:
        self.record_calls += 1
        await self.may_record.wait()
        if self.record_raises:
            raise self.record_raises.pop(0)
        await self.inner.record(tenant, request_id, conversation_id, end, status)
        self.recorded.append(request_id)

    async def find(self, tenant: str, request_id: str) -> Record:
        return await self.inner.find(tenant, request_id)

    async def renew(self, request_ids: Sequence[str], until_ms: int) -> None:
        self.renewed.append(request_ids)
        if self.renew_raises:
            raise self.renew_raises.pop(0)
        await self.inner.renew(request_ids, until_ms)

    async def reap(self, now_ms: int) -> int:
        return await self.inner.reap(now_ms)


@dataclass(frozen=True, slots=True)
class Line:
    level: str
    event: str
    fields: Mapping[str, object]


class Lines:
    """What was logged. Conforms to :class:`Log`."""

    def __init__(self) -> None:
        self.all: list[Line] = []

    def info(self, event: str, **fields: object) -> None:
        self.all.append(Line("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.all.append(Line("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.all.append(Line("error", event, fields))

    def of(self, event: str) -> list[Mapping[str, object]]:
        return [line.fields for line in self.all if line.event == event]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    orchestra: Orchestra
    registry: Registry
    dispatcher: Dispatcher
    turns: Turns
    log: FaultyLog
    lines: Lines

    async def agent(
        self, agent_id: str, run: Function, *, concurrency: int = 100, tenant: str = DEFAULT_TENANT
    ) -> Agent:
        """Registers a function as the agent for everything that names it."""
        agent = Agent(id=agent_id, kind="function", keywords=(agent_id,), limits=Limits(concurrency=concurrency))
        await self.orchestra.register_agent(agent, run, tenant=tenant)
        return agent

    def registered(self, agent_id: str) -> Registered:
        return self.orchestra.get_agent(agent_id)


@asynccontextmanager
async def opened(
    folder: Path,
    *,
    configured: Sequence[Agent] | None = None,
    kinds: Mapping[str, Kind] = KINDS,
    fallback: str | None = None,
    settings: Settings | None = None,
    encoder: Encoder | None = None,
    policy: InputPolicy = InputPolicy.ENQUEUE,
    history_messages: int = 50,
    max_concurrent: int = 100,
    max_waiting: int = 0,
    max_wait: float = 10.0,
    dispatching: Dispatching = DISPATCHING,
    max_output_chars: int = 1_000_000,
    timeout_seconds: float = 30.0,
    watch_seconds: float = 60.0,
    grace_seconds: float = 0.1,
    detailed: bool = False,
) -> AsyncGenerator[Parts]:
    """An orchestra of real parts on ``orchestra.db`` in the folder. ``settings``: of its routing."""
    database = await open_database(f"sqlite:///{folder / 'orchestra.db'}")
    try:
        await database.share()
        lines = Lines()
        telemetry = Telemetry(lines, detailed=detailed)
        log = FaultyLog(SqlRunLog(database.scripts, database.prepare))
        witness = Witness(Notices(SqlJournal(database), telemetry), telemetry)
        executor = Executor(policy=dispatching, max_output_chars=max_output_chars, observer=witness)

        def roster(tenant: str) -> Roster:
            return registry.roster(tenant)

        coordinator = Coordinator(roster=roster, executor=executor, wrap=wrapped, telemetry=telemetry)
        registry = Registry(
            store=SqlAgentStore(database),
            kinds={"team": TeamKind(coordinator, allowed=()), **kinds},
            shared_tenant=DEFAULT_TENANT,
            telemetry=telemetry,
        )
        turns = Turns()
        conversations = Conversations(store=SqlConversationStore(database), turns=turns, default_policy=policy)
        models = VendorModels(Providers({}))
        router, routing = routing_parts(
            settings or Settings(orchestrator=Orchestrator(fallback_agent=fallback)),
            database,
            registry=registry,
            conversations=conversations,
            models=models,
            telemetry=telemetry,
            encoder=encoder,
        )
        dispatcher = Dispatcher(
            registry=registry,
            router=router,
            executor=executor,
            coordinator=coordinator,
            log=log,
            leases=log,
            turns=turns,
            telemetry=telemetry,
            bulkhead=Bulkhead(places=max_concurrent, waiting=max_waiting, seconds=max_wait),
            default_policy=policy,
            history_messages=history_messages,
            timeout_seconds=timeout_seconds,
            hand_over_from=0.1,
            secondary=Strategy.PARALLEL,
        )
        orchestra = Orchestra(
            registry=registry,
            dispatcher=dispatcher,
            conversations=conversations,
            keys=Keys(SqlKeyStore(database)),
            routing=routing,
            monitoring=monitoring_parts(
                settings or Settings(),
                database,
                registry=registry,
                requests=dispatcher,
                vendors=models,
                witness=witness,
                telemetry=telemetry,
            ),
            escalations=Escalations(log=SqlEscalationLog(database), turns=turns),
            log=log,
            models=models,
            wrap=wrapped,
            storage=database,
            watch_seconds=watch_seconds,
        )
        try:
            await orchestra.start(configured)
            yield Parts(
                orchestra=orchestra, registry=registry, dispatcher=dispatcher, turns=turns, log=log, lines=lines
            )
        finally:
            log.may_record.set()
            await orchestra.close(grace_seconds)
    finally:
        await database.close()


class Gate:
    """An agent that answers each content when it is let, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[str] = []
        self._let: dict[str, asyncio.Event] = {}

    async def __call__(self, content: str, call: Call) -> str:
        self.calls.append(call)
        try:
            await self._gate(content).wait()
        except asyncio.CancelledError:
            self.cancelled.append(content)
            raise
        return f"{content}!"

    def let(self, *contents: str) -> None:
        for content in contents:
            self._gate(content).set()

    def asked(self, content: str) -> bool:
        return any(call.content == content for call in self.calls)

    def _gate(self, content: str) -> asyncio.Event:
        return self._let.setdefault(content, asyncio.Event())


def text_of(events: Sequence[StreamEvent]) -> str:
    return "".join(str(event.data["text"]) for event in events if event.type is StreamEventType.DELTA)


def types_of(events: Sequence[StreamEvent]) -> list[str]:
    return [event.type.value for event in events if event.type is not StreamEventType.DELTA]


async def conversation_of(parts: Parts, conversation_id: str) -> list[tuple[int, str, str]]:
    """The messages of a conversation: number, author, content."""
    messages = await parts.orchestra.get_messages(conversation_id, limit=1_000)
    return [(message.seq, message.author.value, message.content) for message in messages]


def held(turns: Turns) -> int:
    """How many conversations are held; nothing else tells of a leak."""
    return len(turns._held)  # pyright: ignore[reportPrivateUsage]
