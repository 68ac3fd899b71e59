"""What goes over the wire: the bodies that are read, and the documents that are written."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Generic, TypeVar

from fastapi import Header
from pydantic import BaseModel, ConfigDict, Field

from agent_orchestra.core.agent import Role, Status, SystemHealth
from agent_orchestra.core.alerts import AlertState, Severity
from agent_orchestra.core.breaker import BreakerState
from agent_orchestra.core.conversation import Conversation, InputPolicy
from agent_orchestra.core.coordination import ResultStatus
from agent_orchestra.core.message import Attachment, Author, Message
from agent_orchestra.core.plan import SCHEMAS, Aggregation, Plan, Strategy, read
from agent_orchestra.core.request import (
    MAX_ATTACHMENTS,
    MAX_CONTENT_CHARS,
    MEDIA_TYPE_PATTERN,
    Answer,
    Attempt,
    Failure,
    Record,
    RequestStatus,
    StopReason,
    answer_json,
    attempt_json,
)
from agent_orchestra.definitions import NOT_BLANK, NUMBER, Id, Text
from agent_orchestra.runtime.alarms import Standing
from agent_orchestra.runtime.models import ProviderStatus
from agent_orchestra.runtime.monitoring import AgentHealth, AgentStats, InstanceHealth
from agent_orchestra.runtime.process import ProcessHealth
from agent_orchestra.runtime.registry import Registered, Source

__all__ = [
    "AgentHealthOut",
    "AgentOut",
    "AgentsHealthOut",
    "AlertsOut",
    "AnswerOut",
    "AttemptOut",
    "Capability",
    "ChecksOut",
    "Content",
    "Context",
    "ConversationBody",
    "ConversationOut",
    "EscalatedOut",
    "HealthReportOut",
    "IdempotencyKey",
    "LastEventId",
    "MatchOut",
    "MessageBody",
    "MessageOut",
    "OrchestrateBody",
    "Page",
    "ProcessBody",
    "ProcessOut",
    "ProvidersOut",
    "ReadyOut",
    "RegistryOut",
    "RequestOut",
    "UserId",
    "agent_health_out",
    "agent_out",
    "alert_out",
    "attempts_out",
    "conversation_out",
    "message_out",
    "process_out",
    "providers_out",
    "registry_out",
    "request_out",
    "time_of",
]

T = TypeVar("T")

#: Its length is checked in the core. The document says it in words: a bound of that size would have every tool that
#: makes requests from the document make the longest ones.
Content = Annotated[
    str,
    Field(
        json_schema_extra={**NOT_BLANK, "examples": ["I was charged twice, can I have a refund?"]},
        description=f"At most {MAX_CONTENT_CHARS:,} characters, not all of them blank.",
    ),
]
_BASE64: Final = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)$"
UserId = Annotated[Text, Field(min_length=1, max_length=256)]
#: The document describes such an object as any JSON that can be stored, see :mod:`agent_orchestra.api.openapi`.
Context = Annotated[dict[str, Any], Field(json_schema_extra={"x-any-json": True})]
Capability = Annotated[Text, Field(min_length=1, max_length=500)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7E]{1,255}$",
        description="The same key gives the same answer, and runs nothing twice.",
    ),
]
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        max_length=256,
        description="The last event that was seen; the stream goes on after it.",
        openapi_examples={"after 40 characters": {"value": "01a1f906-b943-7710-b511-93a84319b162:42"}},
    ),
]


def _of_plan(name: str) -> Any:
    """A field of a plan. The core checks it, which knows the nearest choice; the document describes it."""

    def describe(schema: dict[str, Any]) -> None:
        schema.pop("default", None)
        schema.update(SCHEMAS[name])

    return Field(json_schema_extra=describe)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Out(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class AttachmentBody(_Body):
    media_type: Annotated[str, Field(pattern=MEDIA_TYPE_PATTERN, examples=["image/png"])]
    data: Annotated[str, Field(min_length=4, pattern=_BASE64)]
    """In base64 (RFC 4648, section 4)."""

    def to_attachment(self) -> Attachment:
        return Attachment(media_type=self.media_type, data=base64.b64decode(self.data))


class ProcessBody(_Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"content": "And how long may I stay?"}]})

    content: Content
    user_id: UserId | None = None
    context: Context = Field(default_factory=dict)
    """Given to the agent as it is."""
    attachments: Annotated[list[AttachmentBody], Field(max_length=MAX_ATTACHMENTS)] = Field(
        default_factory=list[AttachmentBody]
    )
    """Images and other parts that are not text, for agents that can take them. They are not kept."""
    capability: Capability | None = None
    """Only agents that have it are asked."""
    agent_id: Id | None = None
    """This agent is asked, and no other."""


class OrchestrateBody(ProcessBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"content": "Do I need a visa for Japan?"}]})

    conversation_id: Id | None = None
    """Without it a new conversation begins."""
    strategy: Annotated[Any, _of_plan("strategy")] = None
    agents: Annotated[Any, _of_plan("agents")] = None
    aggregate: Annotated[Any, _of_plan("aggregate")] = None
    synthesizer: Annotated[Any, _of_plan("synthesizer")] = None
    score: Annotated[Any, _of_plan("score")] = None
    route: Annotated[Any, _of_plan("route")] = None

    @property
    def together(self) -> bool:
        """Whether several agents are to work on it."""
        return not self.model_fields_set.isdisjoint(SCHEMAS)

    def plan(self) -> Plan:
        """How they are to work. Raises :class:`InvalidInput`, with the nearest choice."""
        given = {name: getattr(self, name) for name in SCHEMAS if name in self.model_fields_set}
        return read(given, routed=True)


class ConversationBody(_Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "ada", "input_policy": "enqueue"}]})

    id: Id | None = None
    user_id: UserId | None = None
    context: Context = Field(default_factory=dict)
    """Given to every agent that answers in the conversation."""
    input_policy: InputPolicy | None = None
    """What becomes of input that comes while the conversation is busy."""


class MessageBody(_Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"content": "The customer is in Lisbon.", "author": "system"}]}
    )

    content: Content
    author: Author = Author.USER
    expected_seq: Annotated[int, Field(ge=1, le=2_147_483_647), NUMBER] | None = None
    """The number that the message is expected to get; if it would get another, it is refused."""


class CandidateOut(_Out):
    agent: str
    confidence: float


class MatchOut(_Out):
    kind: str
    """A ``capability``, ``example``, ``keywords``, ``description`` or ``name`` of the agent, or a ``rule``."""
    text: str


class UsageOut(_Out):
    input_tokens: int
    """The whole prompt, cached parts included."""
    output_tokens: int
    """All that was generated, reasoning included."""
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    """None where it is not known."""
    price_date: str | None
    """Of the price list."""


class ToolCallOut(_Out):
    id: str
    name: str
    arguments: dict[str, Any]


class GenerationOut(_Out):
    provider: str
    model: str
    stop_reason: StopReason
    """With ``length`` the text is cut off."""
    request_id: str | None
    """The vendor's own."""
    first_token_ms: float | None
    """None where nothing was streamed."""


class AttemptOut(_Out):
    agent: str
    instance: str
    """With ``person:`` and a name, what a person did in the agent's place."""
    duration_ms: float
    error: str | None
    delay_ms: float
    """The pause before it."""
    decision: str
    """What was done then: ``answered``, ``retry``, ``reassign``, ``hand_over``, ``escalate``, ``abort``, ``cancelled``;
    empty where it is not known."""
    reason: str
    """Why."""
    hedge: bool
    """Whether it was made beside one that took long."""


class ResultOut(_Out):
    id: str
    agent: str
    status: ResultStatus
    output: str
    value: Any
    error: str | None
    """The code of what it failed with."""
    detail: str | None
    reason: str | None
    """Why it was skipped or cancelled."""
    offset_ms: float | None
    """When it began, after the start of the whole; none where it never did."""
    duration_ms: float
    attempts: list[AttemptOut]
    score: float | None
    usage: UsageOut


class LinkOut(_Out):
    id: str
    agent: str
    status: ResultStatus
    offset_ms: float
    duration_ms: float


class CoordinationOut(_Out):
    strategy: Strategy
    aggregate: Aggregation
    by: list[str]
    """The results whose word the answer is."""
    agreed: int | None
    """With a vote, how many gave this answer."""
    note: str | None
    """Why the answer was made otherwise than asked, where it was."""
    success_rate: float
    """Of those that were not skipped or cancelled."""
    failed_agents: list[str]
    results: list[ResultOut]
    """One for each member, in order."""
    synthesis: ResultOut | None
    chain: list[LinkOut]
    """Those that ran, in the order in which they began."""


class AnswerOut(_Out):
    request_id: str
    conversation_id: str
    agent: str
    instance: str
    confidence: float
    """From 0 to 1."""
    stage: str
    """What decided; ``GET /v1/decisions/{request_id}`` tells all about it."""
    reason: str
    matched: MatchOut | None
    """What spoke for the agent: a line of its definition, or a rule."""
    margin: float
    """By how much the agent leads the next one."""
    alternatives: list[CandidateOut]
    secondary: list[str]
    """Agents that may be needed besides."""
    output: str
    value: Any
    """The structured value, when the agent gave one."""
    tool_calls: list[ToolCallOut]
    """Calls of tools that are left to the caller."""
    usage: UsageOut
    generation: GenerationOut | None
    """Which model wrote it; none where no model did."""
    coordination: CoordinationOut | None
    """What became of each agent, where several worked on it."""
    timings: dict[str, float]
    """Milliseconds a stage, up to where the answer was put on record."""
    attempts: list[AttemptOut]


class EscalatedOut(_Out):
    request_id: str
    conversation_id: str
    status: RequestStatus
    code: str
    detail: str


class FailureOut(_Out):
    code: str
    detail: str
    timings: dict[str, float]
    attempts: list[AttemptOut]


class RequestOut(_Out):
    request_id: str
    conversation_id: str
    status: RequestStatus
    agent: str
    instance: str
    answer: AnswerOut | None
    failure: FailureOut | None


class LimitsOut(_Out):
    concurrency: int
    timeout: float | None
    """Seconds."""


class InstanceOut(_Out):
    """One instance, as the process that answers knows it. Figures of calls are of the last five minutes."""

    id: str
    healthy: bool
    reason: str | None
    """Why it takes no call, or only one to try it; none where it takes calls."""
    breaker: BreakerState
    weight: float
    """What its share of the calls follows from, where weights count."""
    drift: str | None
    """Why it gets fewer calls than others, where it does."""
    in_flight: int
    calls: int
    """Since the process began."""
    success_rate: float | None
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    availability: float | None
    """The share of its last checks that it passed, or of its calls where it has no check; from 0 to 1."""
    checked_at: datetime | None
    """Its last check; none where it has none."""


class StatsOut(_Out):
    """All instances together."""

    calls: int
    """Since the process began."""
    in_flight: int
    waiting: int
    """Calls that wait for an instance."""
    success_rate: float | None
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    availability: float | None
    checked_at: datetime | None


class AgentHealthOut(_Out):
    id: str
    status: Status
    fault: str | None
    """Why it has no instances, when it has none."""
    stats: StatsOut
    instances: list[InstanceOut]


class AgentOut(_Out):
    id: str
    kind: str
    name: str
    version: str
    provider: str | None
    role: Role
    capabilities: list[str]
    domain: str | None
    description: str
    examples: list[str]
    keywords: list[str]
    priority: int
    enabled: bool
    limits: LimitsOut
    settings: dict[str, Any]
    status: Status
    source: Source
    """Whether it came over the API, from the configuration, or from code."""
    instances: list[InstanceOut]
    stats: StatsOut
    fault: str | None
    """Why it is offline, when it is."""
    warnings: list[str]
    """What makes it hard to route to; not told in lists."""
    updated_at: datetime


class ConversationOut(_Out):
    id: str
    user_id: str | None
    input_policy: InputPolicy
    context: dict[str, Any]
    active_agent: str | None
    """Who answered last."""
    last_seq: int
    created_at: datetime
    updated_at: datetime


class MessageOut(_Out):
    id: str
    seq: int
    """Counts from 1, without a gap."""
    author: Author
    content: str
    agent_id: str | None
    request_id: str | None
    created_at: datetime


class Page(_Out, Generic[T]):
    items: list[T]
    next: str | None
    """The cursor of the next page; none on the last one."""


class ProviderOut(_Out):
    name: str
    configured: bool
    """Whether there is a key for it, or, for a server of one's own, an address."""
    installed: bool
    """Whether the extra that it needs is installed."""
    reachable: bool | None
    """Whether it answered the last check; none where it was not asked, for want of a key."""
    last_error: str | None
    """The code of what its last call failed with; none after one that succeeded."""
    detail: str
    checked_at: datetime


class ProvidersOut(_Out):
    providers: list[ProviderOut]


class AgentsHealthOut(_Out):
    healthy_agents: int
    unhealthy_agents: int
    total_agents: int
    """Those that are enabled."""
    system_health: SystemHealth


class ChecksOut(_Out):
    database: bool
    """Whether it can be reached, and its schema is current."""
    providers: dict[str, bool | None]
    """Whether each answered when it was last asked; none where it was not, for want of a key. Those that were never
    asked are left out: ``GET /v1/providers`` asks."""


class ProcessOut(_Out):
    memory_bytes: int | None
    """The resident set; none where the system does not tell."""
    loop_lag_ms: float | None
    """How late the process came to what was due, in 95 % of the seconds of the last minute at most."""
    uptime: float
    """Seconds."""


class HealthReportOut(AgentsHealthOut):
    agents: list[AgentHealthOut]
    """A page of them, by id."""
    next: str | None
    """The cursor of the next page; none on the last one."""
    checks: ChecksOut
    process: ProcessOut | None
    """For the tenant of the operator only."""


class AlertOut(_Out):
    name: str
    metric: str
    agent: str | None
    """Whose metric."""
    above: float | None
    below: float | None
    seconds: Annotated[float, Field(alias="for")]
    """For how long the metric must lie beyond."""
    severity: Severity
    state: AlertState
    value: float | None
    """Of the last look; none where there was none."""
    since: datetime
    """When this state began."""


class AlertsOut(_Out):
    alerts: list[AlertOut]
    """One for each rule, in the order of the settings."""


class RegistryOut(_Out):
    by_status: dict[str, int]
    by_kind: dict[str, int]
    by_source: dict[str, int]


class ReadyOut(_Out):
    ready: bool
    checks: dict[str, bool]


def agent_out(health: AgentHealth, warnings: Iterable[str] = ()) -> AgentOut:
    agent, entry = health.entry.agent, health.entry
    return AgentOut(
        id=agent.id,
        kind=agent.kind,
        name=agent.name or agent.id,
        version=agent.version,
        provider=agent.provider,
        role=agent.role,
        capabilities=list(agent.capabilities),
        domain=agent.domain,
        description=agent.description,
        examples=list(agent.examples),
        keywords=list(agent.keywords),
        priority=agent.priority,
        enabled=agent.enabled,
        limits=LimitsOut(concurrency=agent.limits.concurrency, timeout=agent.limits.timeout),
        settings=dict(agent.settings),
        status=entry.status,
        source=entry.source,
        instances=[_instance_out(instance) for instance in health.instances],
        stats=_stats_out(health.stats),
        fault=entry.fault,
        warnings=list(warnings),
        updated_at=time_of(entry.updated_ms),
    )


def agent_health_out(health: AgentHealth) -> AgentHealthOut:
    return AgentHealthOut(
        id=health.entry.agent.id,
        status=health.entry.status,
        fault=health.entry.fault,
        stats=_stats_out(health.stats),
        instances=[_instance_out(instance) for instance in health.instances],
    )


def _instance_out(health: InstanceHealth) -> InstanceOut:
    return InstanceOut(
        id=health.id,
        healthy=health.healthy,
        reason=health.reason,
        breaker=health.breaker,
        weight=health.weight,
        drift=health.drift,
        in_flight=health.in_flight,
        calls=health.calls,
        success_rate=health.success_rate,
        mean_ms=health.mean_ms,
        p50_ms=health.p50_ms,
        p95_ms=health.p95_ms,
        availability=health.availability,
        checked_at=None if health.checked_ms is None else time_of(health.checked_ms),
    )


def _stats_out(stats: AgentStats) -> StatsOut:
    return StatsOut(
        calls=stats.calls,
        in_flight=stats.in_flight,
        waiting=stats.waiting,
        success_rate=stats.success_rate,
        mean_ms=stats.mean_ms,
        p50_ms=stats.p50_ms,
        p95_ms=stats.p95_ms,
        availability=stats.availability,
        checked_at=None if stats.checked_ms is None else time_of(stats.checked_ms),
    )


def process_out(health: ProcessHealth) -> ProcessOut:
    return ProcessOut(memory_bytes=health.memory_bytes, loop_lag_ms=health.loop_lag_ms, uptime=health.uptime)


def registry_out(entries: Collection[Registered]) -> RegistryOut:
    """How many agents there are, disabled ones included."""
    return RegistryOut(
        by_status=dict(Counter(str(entry.status) for entry in entries)),
        by_kind=dict(Counter(entry.agent.kind for entry in entries)),
        by_source=dict(Counter(str(entry.source) for entry in entries)),
    )


def alert_out(standing: Standing) -> AlertOut:
    rule = standing.rule
    fields = {
        "name": rule.name,
        "metric": rule.metric,
        "agent": rule.agent,
        "above": rule.above,
        "below": rule.below,
        "for": rule.seconds,
        "severity": rule.severity,
        "state": standing.state,
        "value": standing.value,
        "since": time_of(standing.since_ms),
    }
    return AlertOut.model_validate(fields)


def providers_out(statuses: Iterable[ProviderStatus]) -> ProvidersOut:
    return ProvidersOut(
        providers=[
            ProviderOut(
                name=status.name,
                configured=status.configured,
                installed=status.installed,
                reachable=status.reachable,
                last_error=status.last_error,
                detail=status.detail,
                checked_at=time_of(status.checked_ms),
            )
            for status in statuses
        ]
    )


def conversation_out(conversation: Conversation) -> ConversationOut:
    return ConversationOut(
        id=conversation.id,
        user_id=conversation.user_id,
        input_policy=conversation.input_policy,
        context=dict(conversation.context),
        active_agent=conversation.active_agent,
        last_seq=conversation.last_seq,
        created_at=time_of(conversation.created_ms),
        updated_at=time_of(conversation.updated_ms),
    )


def message_out(message: Message) -> MessageOut:
    return MessageOut(
        id=message.id,
        seq=message.seq,
        author=message.author,
        content=message.content,
        agent_id=message.agent_id,
        request_id=message.request_id,
        created_at=time_of(message.created_ms),
    )


def request_out(record: Record) -> RequestOut:
    end = record.end
    return RequestOut(
        request_id=record.request_id,
        conversation_id=record.conversation_id,
        status=record.status,
        agent=end.agent if isinstance(end, Answer) else record.route.primary.agent_id,
        instance=record.instance_id,
        answer=AnswerOut.model_validate(answer_json(end)) if isinstance(end, Answer) else None,
        failure=_failure_out(end) if isinstance(end, Failure) else None,
    )


def _failure_out(failure: Failure) -> FailureOut:
    return FailureOut(
        code=failure.code,
        detail=failure.detail,
        timings=dict(failure.timings),
        attempts=attempts_out(failure.attempts),
    )


def attempts_out(attempts: Iterable[Attempt]) -> list[AttemptOut]:
    return [AttemptOut.model_validate(attempt_json(attempt)) for attempt in attempts]


def time_of(milliseconds: int) -> datetime:
    """Milliseconds since 1970, UTC, as the documents tell a time."""
    return datetime.fromtimestamp(milliseconds / 1_000, UTC)
