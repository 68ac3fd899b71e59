"""How the agents and this process are: what people look at, and what watches while nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent_orchestra.core import health
from agent_orchestra.core.alerts import Rule
from agent_orchestra.core.breaker import BreakerState
from agent_orchestra.runtime.alarms import FIRED, RESOLVED, Alarms, Standing, StorageHealth, Vendors
from agent_orchestra.runtime.executor import Instance
from agent_orchestra.runtime.journal import Notice, Notices
from agent_orchestra.runtime.monitor import Monitor
from agent_orchestra.runtime.process import Process, ProcessHealth
from agent_orchestra.runtime.registry import Registered

__all__ = ["AgentHealth", "AgentStats", "InstanceHealth", "Monitoring", "ServiceHealth"]

#: How long the last notices may take to be written.
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHealth:
    """One instance, as this process knows it.

    ``reason``: why it takes no call, or only one to try it; none where it takes calls. ``drift``: why it gets fewer
    calls than its weight says. ``calls``: since the process began; the other figures are of the last five minutes, and
    of 512 calls at most; none where there were none. ``checked_ms``: its last check; ``availability``: the share of its
    last 64 checks that it passed, or of its calls where it has no check.
    """

    id: str
    healthy: bool
    reason: str | None
    breaker: BreakerState
    weight: float
    drift: str | None
    in_flight: int
    calls: int
    success_rate: float | None
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    availability: float | None
    checked_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStats:
    """All instances of an agent together; ``waiting``: calls that wait for one. Else as :class:`InstanceHealth`."""

    calls: int
    in_flight: int
    waiting: int
    success_rate: float | None
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    availability: float | None
    checked_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHealth:
    entry: Registered
    instances: Sequence[InstanceHealth]
    stats: AgentStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHealth:
    """``providers``: whether each answered its last check, by name; none where that is not known."""

    database: bool
    providers: Mapping[str, bool | None]
    process: ProcessHealth


class Monitoring:
    """What watches over the agents and the process, and what it has seen."""

    def __init__(
        self,
        *,
        monitor: Monitor,
        alarms: Alarms,
        process: Process,
        notices: Notices,
        storage: StorageHealth,
        vendors: Vendors,
        tenant: str,
    ) -> None:
        self._monitor = monitor
        self._alarms = alarms
        self._process = process
        self._notices = notices
        self._storage = storage
        self._vendors = vendors
        self._tenant = tenant
        self._tasks: Sequence[asyncio.Task[None]] = ()
        self._closing = asyncio.Lock()

    async def start(self) -> None:
        """Begins to watch."""
        watches = (self._monitor.watch(), self._alarms.watch(), self._process.watch(), self._notices.write())
        self._tasks = [asyncio.create_task(watch) for watch in watches]

    async def close(self) -> None:
        """Ends the watch, and puts on record what is not yet. May be called twice, also at once."""
        async with self._closing:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks = ()
            await self._notices.close(_CLOSE_SECONDS)

    def agent(self, entry: Registered) -> AgentHealth:
        """An agent and its instances, as they are now."""
        now, pool = time.perf_counter(), entry.pool
        instances = [self._instance(instance, now) for instance in pool.instances]
        figures = health.together([instance.window for instance in pool.instances], now)
        known = [i.availability for i in instances if i.availability is not None]
        checked = [i.checked_ms for i in instances if i.checked_ms is not None]
        stats = AgentStats(
            calls=sum(instance.calls for instance in instances),
            in_flight=pool.in_flight,
            waiting=pool.waiting,
            success_rate=figures.success_rate if figures.calls else None,
            mean_ms=figures.mean_ms,
            p50_ms=figures.p50_ms,
            p95_ms=figures.p95_ms,
            availability=round(sum(known) / len(known), 4) if known else None,
            checked_ms=max(checked, default=None),
        )
        return AgentHealth(entry=entry, instances=instances, stats=stats)

    def _instance(self, instance: Instance, now: float) -> InstanceHealth:
        figures = instance.window.figures(now)
        success_rate = figures.success_rate if figures.calls else None
        availability = success_rate if instance.check is None else self._monitor.availability(instance)
        why_not = instance.why_not(now)
        if why_not is not None:
            reason = why_not[0]
        else:
            reason = None if instance.healthy else f"is to be tried after {instance.breaker.reason}"
        return InstanceHealth(
            id=instance.id,
            healthy=instance.healthy,
            reason=reason,
            breaker=instance.breaker.state,
            weight=round(instance.weight, 6),
            drift=instance.drift.reason,
            in_flight=instance.in_flight,
            calls=instance.window.total,
            success_rate=success_rate,
            mean_ms=figures.mean_ms,
            p50_ms=figures.p50_ms,
            p95_ms=figures.p95_ms,
            availability=None if availability is None else round(availability, 4),
            checked_ms=instance.checked_ms,
        )

    async def check(self, entry: Registered) -> AgentHealth:
        """Checks the instances of an agent now, those that can be asked, and tells how they are."""
        await self._monitor.look_at(entry)
        return self.agent(entry)

    async def service(self) -> ServiceHealth:
        """What the agents need, and the process. No vendor is asked."""
        return ServiceHealth(
            database=all((await self._storage.ready()).values()),
            providers={status.name: status.reachable for status in self._vendors.known()},
            process=self.process(),
        )

    def process(self) -> ProcessHealth:
        """The figures of this process."""
        return self._process.health()

    def alerts(self) -> Sequence[Standing]:
        """How the rules stand in this process."""
        return self._alarms.standing()

    async def recorded(self) -> Sequence[tuple[Rule, Notice | None]]:
        """The rules, each with the last that is on record of it, from whichever process; none where nothing is."""
        rules = self._alarms.rules
        found = await self._notices.last(self._tenant, (FIRED, RESOLVED), [rule.name for rule in rules])
        return [(rule, found.get(rule.name)) for rule in rules]
