"""Looks at the figures of the service by the rules of its operator, and tells when one is broken and when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

from agent_orchestra.core import alerts, health
from agent_orchestra.core.agent import Status
from agent_orchestra.core.alerts import Alert, AlertState, Metric, Rule
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import code_of
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.journal import Notice, Notices
from agent_orchestra.runtime.models import ProviderStatus
from agent_orchestra.runtime.process import Process
from agent_orchestra.runtime.registry import Registered, Registry
from agent_orchestra.runtime.telemetry import Telemetry

__all__ = [
    "FIRED",
    "RESOLVED",
    "Alarms",
    "Measures",
    "Requests",
    "Standing",
    "StorageHealth",
    "Vendors",
    "places",
    "unhealthy",
]

FIRED: Final = "alert.fired"
RESOLVED: Final = "alert.resolved"

_EVERY_SECONDS = 5.0


class Requests(Protocol):
    """How many requests there are."""

    @property
    def in_flight(self) -> int: ...

    @property
    def waiting(self) -> int: ...


class StorageHealth(Protocol):
    """Tells whether the database can be used."""

    async def ready(self) -> Mapping[str, bool]:
        """Whether the database is ``reachable``, and its ``migrations`` are current. Never raises."""
        ...


class Vendors(Protocol):
    """How the providers of models are."""

    async def check(self, *, fresh: bool = False) -> Sequence[ProviderStatus]:
        """By one cheap call each; what is younger than a minute is not asked again. Never raises."""
        ...

    def known(self) -> Sequence[ProviderStatus]:
        """What the last check of each has found, without asking; those that were never checked are left out."""
        ...


class Measures:
    """The metrics that rules look at, as they are now in this process."""

    def __init__(
        self,
        *,
        registry: Registry,
        tenant: str,
        requests: Requests,
        process: Process,
        storage: StorageHealth,
        vendors: Vendors,
    ) -> None:
        self._registry = registry
        self._tenant = tenant
        self._requests = requests
        self._process = process
        self._storage = storage
        self._vendors = vendors

    async def read(self, wanted: Collection[tuple[Metric, str | None]]) -> Mapping[tuple[Metric, str | None], float]:
        """The values of metrics, each with its agent, of the operator's own; those that have none now are left out."""
        found: dict[tuple[Metric, str | None], float] = {}
        for metric, agent_id in wanted:
            value = self._of_agent(metric, agent_id) if agent_id is not None else await self._value(metric)
            if value is not None:
                found[metric, agent_id] = value
        return found

    def _of_agent(self, metric: Metric, agent_id: str) -> float | None:
        entry = self._registry.roster(self._tenant).entries.get(agent_id)
        if entry is None:
            return None
        if metric is Metric.AGENT_IN_FLIGHT:
            return entry.pool.in_flight
        figures = health.together([i.window for i in entry.pool.instances], time.perf_counter())
        if not figures.calls:
            return None
        return figures.success_rate if metric is Metric.AGENT_SUCCESS_RATE else figures.p95_ms

    async def _value(self, metric: Metric) -> float | None:
        value: float | None = None
        match metric:
            case Metric.REQUESTS_IN_FLIGHT:
                value = self._requests.in_flight
            case Metric.REQUESTS_WAITING:
                value = self._requests.waiting
            case Metric.AGENTS_UNHEALTHY:
                value = unhealthy(self._registry.all())[0]
            case Metric.AGENTS_UNHEALTHY_SHARE:
                ill, total = unhealthy(self._registry.all())
                value = ill / total if total else None
            case Metric.PROCESS_MEMORY_BYTES:
                value = self._process.health().memory_bytes
            case Metric.PROCESS_LOOP_LAG_MS:
                value = self._process.health().loop_lag_ms
            case Metric.DATABASE_READY:
                value = float(all((await self._storage.ready()).values()))
            case Metric.PROVIDERS_UNREACHABLE:
                value = sum(status.reachable is False for status in await self._vendors.check())
            case Metric.AGENT_SUCCESS_RATE | Metric.AGENT_P95_MS | Metric.AGENT_IN_FLIGHT:
                # Of no agent.
                value = None
            case _:
                assert_never(metric)
        return value


def unhealthy(entries: Collection[Registered]) -> tuple[int, int]:
    """How many agents cannot answer as they should, and of how many; disabled ones are left out."""
    statuses = [entry.status for entry in entries]
    return (
        sum(status in (Status.DEGRADED, Status.OFFLINE) for status in statuses),
        sum(status is not Status.DISABLED for status in statuses),
    )


def places(entries: Collection[Registered]) -> tuple[int, int]:
    """How many instances are not healthy, and of how many; those of disabled agents are left out.

    An agent without any counts as one that is not, and one whose last requests all failed as a whole.
    """
    ill = total = 0
    for entry in entries:
        status, instances = entry.status, entry.pool.instances
        if status is Status.DISABLED:
            continue
        failing = sum(not instance.healthy for instance in instances)
        total += max(len(instances), 1)
        # Where every instance looks well and the agent is not, its last requests say so.
        as_a_whole = not failing and status in (Status.DEGRADED, Status.OFFLINE)
        ill += max(len(instances), 1) if as_a_whole else failing
    return ill, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a rule stands, since when (milliseconds since 1970)."""

    rule: Rule
    state: AlertState
    value: float | None
    since_ms: int


class Alarms:
    """Looks every five seconds. Each time a rule begins or ceases to fire there is one event, and one line in the log.

    What fires when the process ends is not told to have ended; the next process begins anew. Each process looks at
    itself.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        measures: Measures,
        notices: Notices,
        tenant: str,
        telemetry: Telemetry,
        every: float = _EVERY_SECONDS,
    ) -> None:
        self._rules = rules
        self._measures = measures
        self._notices = notices
        self._tenant = tenant
        self._telemetry = telemetry
        self._every = every
        #: What turns the clock of the rules into that of people.
        self._zero_ms = now_ms() - time.monotonic() * 1_000
        self._alerts = {rule.name: Alert(since=time.monotonic()) for rule in rules}

    @property
    def rules(self) -> Sequence[Rule]:
        return self._rules

    def standing(self) -> Sequence[Standing]:
        """How each rule stands, in the order of the settings."""
        return [
            Standing(
                rule=rule, state=alert.state, value=alert.value, since_ms=round(self._zero_ms + alert.since * 1_000)
            )
            for rule in self._rules
            for alert in (self._alerts[rule.name],)
        ]

    async def watch(self) -> None:
        """Looks for ever; at nothing where there are no rules."""
        while self._rules:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001  the watch goes on, whatever one look has met
                self._telemetry.warn("alerts_not_evaluated", code=code_of(error))
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """One look at every rule."""
        values = await self._measures.read({(Metric(rule.metric), rule.agent) for rule in self._rules})
        now = time.monotonic()
        for rule in self._rules:
            before = self._alerts[rule.name]
            after = alerts.advance(rule, before, values.get((Metric(rule.metric), rule.agent)), now)
            self._alerts[rule.name] = after
            fires, fired = after.state is AlertState.FIRING, before.state is AlertState.FIRING
            if fires != fired:
                self._tell(rule, after, FIRED if fires else RESOLVED)

    def _tell(self, rule: Rule, alert: Alert, kind: str) -> None:
        data: JsonObject = {
            "metric": rule.metric,
            "value": alert.value,
            "severity": str(rule.severity),
            **({"above": rule.above} if rule.above is not None else {"below": rule.below}),
            **({"agent": rule.agent} if rule.agent is not None else {}),
        }
        say = self._telemetry.warn if kind == FIRED else self._telemetry.tell
        say(kind.replace(".", "_"), alert=rule.name, **data)
        self._notices.put(Notice(tenant=self._tenant, type=kind, subject=rule.name, data=data))
