"""What an agent is, what makes a definition valid, and which status its facts amount to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.resilience import MOST_ATTEMPTS, Action, Recovery
from agent_orchestra.core.values import JsonObject, faults_in, is_number, nearest
from agent_orchestra.errors import AgentFailed, Fault, RunFailed, by_code

__all__ = [
    "ID_PATTERN",
    "ID_RULE",
    "MAX_LINES",
    "MAX_LINE_CHARS",
    "MAX_TEXT_CHARS",
    "MAX_WEIGHT",
    "RESERVED_IDS",
    "Agent",
    "Balancing",
    "Filter",
    "Limits",
    "Role",
    "Status",
    "SystemHealth",
    "check",
    "is_id",
    "matches",
    "status",
    "system_health",
]

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
ID_RULE = "must be 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit"
MAX_LINES = 256
MAX_LINE_CHARS = 500
MAX_TEXT_CHARS = 4_000
MAX_WEIGHT = 1_000_000

#: What stands where an id would, in the paths of the API.
RESERVED_IDS = frozenset({"health", "resolve"})

#: A last line may be followed by a newline in Python's ``$``; ids must not be.
_ID = re.compile(ID_PATTERN[1:-1])


class Role(StrEnum):
    WORKER = "worker"
    SPECIALIST = "specialist"
    SUPERVISOR = "supervisor"
    ORCHESTRATOR = "orchestrator"


class Status(StrEnum):
    """IDLE and BUSY can take work; DEGRADED can too, but an instance is not healthy, or the last calls failed.

    OFFLINE has no healthy instance: it takes no more than the call that tries whether one has recovered. DISABLED is
    not to take any.
    """

    IDLE = "IDLE"
    BUSY = "BUSY"
    DEGRADED = "DEGRADED"
    OFFLINE = "OFFLINE"
    DISABLED = "DISABLED"


class SystemHealth(StrEnum):
    HEALTHY = "healthy"
    WARNING = "warning"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``concurrency``: calls at once on each instance. ``timeout``: seconds a call; none means the request's own.

    ``queue``: calls that wait while every instance is full; one more is refused.
    """

    concurrency: int = 100
    timeout: float | None = None
    queue: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancing:
    """How calls are spread over the instances. ``algorithm``: none means the service's.

    ``weights``: by the id of the instance, 1 where nothing is said; one with 0 gets no calls. ``sticky``: a
    conversation stays with its instance as long as that one can take it.
    """

    algorithm: Algorithm | None = None
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    sticky: bool = False

    def __post_init__(self) -> None:
        # Its name will do; one that is none is told by :func:`check`.
        if self.algorithm in set(Algorithm):
            object.__setattr__(self, "algorithm", Algorithm(self.algorithm))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The definition of an agent. What runs it follows from ``kind``, which also gives ``settings`` their shape.

    ``read_only``: its calls change nothing outside, so that one may be made twice.
    """

    id: str
    kind: str
    name: str = ""
    version: str = "1"
    provider: str | None = None
    role: Role = Role.WORKER
    capabilities: tuple[str, ...] = ()
    domain: str | None = None
    description: str = ""
    examples: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    priority: int = 0
    enabled: bool = True
    read_only: bool = False
    limits: Limits = Limits()
    balancing: Balancing = field(default_factory=Balancing)
    recovery: Recovery = field(default_factory=Recovery)
    settings: JsonObject = field(default_factory=dict[str, None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which agents are wanted; a field that is none admits all."""

    role: Role | None = None
    capability: str | None = None
    domain: str | None = None
    provider: str | None = None
    status: Status | None = None


def matches(wanted: Filter, agent: Agent, now: Status) -> bool:
    """Whether an agent, with its present status, is one of those wanted. Capabilities are compared without case."""
    return (
        wanted.role in (None, agent.role)
        and wanted.domain in (None, agent.domain)
        and wanted.provider in (None, agent.provider)
        and wanted.status in (None, now)
        and (wanted.capability is None or wanted.capability.casefold() in {c.casefold() for c in agent.capabilities})
    )


def is_id(text: str) -> bool:
    """Whether a text may name an agent, a conversation or a tenant; :data:`ID_RULE` says it in words."""
    return _ID.fullmatch(text) is not None


def check(agent: Agent) -> tuple[Fault, ...]:
    """All that is wrong with a definition, whatever its kind; empty when it is valid."""
    return tuple(_faults(agent))


def _faults(agent: Agent) -> Iterator[Fault]:
    if not is_id(agent.id):
        yield Fault(path="id", message=ID_RULE)
    elif agent.id in RESERVED_IDS:
        yield Fault(path="id", message=f"'{agent.id}' is the name of a page of the API; choose another")
    if not agent.kind:
        yield Fault(path="kind", message="is required")
    for path, text, longest in (
        ("name", agent.name, MAX_LINE_CHARS),
        ("version", agent.version, 64),
        ("provider", agent.provider or "", 64),
        ("domain", agent.domain or "", 64),
        ("description", agent.description, MAX_TEXT_CHARS),
    ):
        if len(text) > longest:
            yield Fault(path=path, message=f"has {len(text)} characters; at most {longest}")
    for path, lines in (
        ("capabilities", agent.capabilities),
        ("examples", agent.examples),
        ("keywords", agent.keywords),
    ):
        yield from _faults_in_lines(path, lines)
    for path, value in (
        ("name", agent.name),
        ("version", agent.version),
        ("provider", agent.provider),
        ("domain", agent.domain),
        ("description", agent.description),
        ("capabilities", agent.capabilities),
        ("examples", agent.examples),
        ("keywords", agent.keywords),
        ("settings", agent.settings),
    ):
        yield from faults_in(path, value)
    if not -1_000 <= agent.priority <= 1_000:
        yield Fault(path="priority", message="must lie between -1000 and 1000")
    if not is_number(agent.limits.concurrency) or not 1 <= agent.limits.concurrency <= 10_000:
        yield Fault(path="limits.concurrency", message="must lie between 1 and 10000")
    timeout = agent.limits.timeout
    if timeout is not None and not (is_number(timeout) and 0 < timeout <= 86_400):
        yield Fault(path="limits.timeout", message="must be over 0 and at most 86400 seconds")
    if not is_number(agent.limits.queue) or not 0 <= agent.limits.queue <= 10_000:
        yield Fault(path="limits.queue", message="must lie between 0 and 10000")
    yield from _faults_in_balancing(agent.balancing)
    yield from _faults_in_recovery(agent)


def _faults_in_balancing(balancing: Balancing) -> Iterator[Fault]:
    if balancing.algorithm is not None and balancing.algorithm not in set(Algorithm):
        yield Fault(
            path="balancing.algorithm",
            message=f"there is no '{balancing.algorithm}'; {nearest(str(balancing.algorithm), list(Algorithm))}",
        )
    weights = balancing.weights
    for instance, weight in weights.items():
        if not is_number(weight) or not 0 <= weight <= MAX_WEIGHT:
            yield Fault(path=f"balancing.weights.{instance}", message=f"must lie between 0 and {MAX_WEIGHT}")
    if len(weights) > MAX_LINES:
        yield Fault(path="balancing.weights", message=f"has {len(weights)} entries; at most {MAX_LINES}")


def _faults_in_recovery(agent: Agent) -> Iterator[Fault]:
    recovery = agent.recovery
    if not is_number(recovery.attempts) or not 1 <= recovery.attempts <= MOST_ATTEMPTS:
        message = f"must lie between 1 and {MOST_ATTEMPTS}; without a bound it would retry for ever"
        yield Fault(path="recovery.attempts", message=message)
    for name, seconds in (("base", recovery.base), ("cap", recovery.cap)):
        if not (is_number(seconds) and 0 < seconds <= 3_600):
            yield Fault(path=f"recovery.{name}", message="must be over 0 and at most 3600 seconds")
    if is_number(recovery.base) and is_number(recovery.cap) and recovery.base > recovery.cap:
        yield Fault(path="recovery.base", message=f"must not exceed recovery.cap, which is {recovery.cap:g}")
    if recovery.exhausted not in (Action.ABORT, Action.ESCALATE):
        yield Fault(path="recovery.exhausted", message="must be 'abort' or 'escalate'")
    for code, action in recovery.actions.items():
        if action not in set(Action):
            yield Fault(
                path=f"recovery.actions.{code}", message=f"there is no '{action}'; {nearest(str(action), list(Action))}"
            )
    known = by_code(RunFailed)
    for code in recovery.actions:
        # ``agent_failed.ValueError`` names what the agent's own code raised.
        if code != "*" and (code.partition(".")[0] if code.startswith(f"{AgentFailed.code}.") else code) not in known:
            yield Fault(
                path=f"recovery.actions.{code}", message=f"is no code of an error; {nearest(code, sorted(known))}"
            )
    if recovery.hedge and not agent.read_only:
        message = "asks two instances at once, which only an agent with 'read_only: true' may do"
        yield Fault(path="recovery.hedge", message=message)


def _faults_in_lines(path: str, lines: Sequence[str]) -> Iterator[Fault]:
    if len(lines) > MAX_LINES:
        yield Fault(path=path, message=f"has {len(lines)} entries; at most {MAX_LINES}")
    for number, line in enumerate(lines):
        if not line.strip():
            yield Fault(path=f"{path}.{number}", message="is empty")
        elif len(line) > MAX_LINE_CHARS:
            yield Fault(path=f"{path}.{number}", message=f"has {len(line)} characters; at most {MAX_LINE_CHARS}")


def status(*, enabled: bool, instances: int, healthy: int, in_flight: int, failures_in_row: int) -> Status:
    """The status that these facts amount to; ``healthy``: how many of the instances are.

    Three failures in a row make an agent DEGRADED too, and one success mends that.
    """
    if not enabled:
        return Status.DISABLED
    if not healthy:
        return Status.OFFLINE
    if healthy < instances or failures_in_row >= 3:
        return Status.DEGRADED
    return Status.BUSY if in_flight else Status.IDLE


def system_health(*, unhealthy: int, total: int) -> SystemHealth:
    """``healthy`` with none unhealthy, ``degraded`` with more than half of them, ``warning`` between."""
    if not unhealthy:
        return SystemHealth.HEALTHY
    return SystemHealth.DEGRADED if 2 * unhealthy > total else SystemHealth.WARNING
