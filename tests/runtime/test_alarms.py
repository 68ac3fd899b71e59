"""Rules are looked at, and what they find is told once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from agent_orchestra.adapters.memory import resident_bytes
from agent_orchestra.adapters.sql.database import open_database
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.alerts import AlertState, Metric, Rule, Severity
from agent_orchestra.errors import AgentFailed
from agent_orchestra.runtime.alarms import Alarms, Measures
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.journal import Notices
from agent_orchestra.runtime.models import ProviderStatus
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT
from agent_orchestra.runtime.process import Process
from agent_orchestra.runtime.telemetry import Telemetry
from agent_orchestra.settings import AlertRule, Settings
from tests.ports.samples import events
from tests.runtime.parts import Gate, Parts, opened
from tests.runtime.test_journal import Book
from tests.services.waiting import wait_until


class Around:
    """What rules look at besides the agents: as many requests as it is told, a database, and vendors."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.waiting = 0
        self.is_ready = True
        self.reachable: tuple[bool | None, ...] = ()
        self.raises: list[Exception] = []

    async def ready(self) -> Mapping[str, bool]:
        if self.raises:
            raise self.raises.pop(0)
        return {"reachable": self.is_ready, "migrations": self.is_ready}

    async def check(self, *, fresh: bool = False) -> Sequence[ProviderStatus]:
        assert not fresh, "no vendor is asked more than once a minute"
        return self.known()

    def known(self) -> Sequence[ProviderStatus]:
        return [
            ProviderStatus(
                name=str(number),
                configured=reachable is not None,
                installed=True,
                reachable=reachable,
                last_error=None,
                detail="",
                checked_ms=1,
            )
            for number, reachable in enumerate(self.reachable)
        ]


def measures(parts: Parts, around: Around) -> Measures:
    return Measures(
        registry=parts.registry,
        tenant=DEFAULT_TENANT,
        requests=around,
        process=Process(resident_bytes),
        storage=around,
        vendors=around,
    )


def alarms(parts: Parts, around: Around, *rules: Rule, book: Book | None = None) -> tuple[Alarms, Notices]:
    telemetry = Telemetry(parts.lines, detailed=False)
    notices = Notices(book or Book(), telemetry)
    made = Alarms(
        rules,
        measures=measures(parts, around),
        notices=notices,
        tenant=DEFAULT_TENANT,
        telemetry=telemetry,
        every=0.02,
    )
    return made, notices


def rule(name: str, metric: Metric, *, above: float | None = None, below: float | None = None) -> Rule:
    return Rule(name=name, metric=metric, above=above, below=below)


async def value(parts: Parts, around: Around, metric: Metric, agent: str | None = None) -> float | None:
    return (await measures(parts, around).read([(metric, agent)])).get((metric, agent))


async def test_it_fires_and_resolves_with_one_event_and_one_line_each(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        around, book = Around(), Book()
        busy = Rule(name="busy", metric=Metric.REQUESTS_IN_FLIGHT, above=3, severity=Severity.CRITICAL)
        made, notices = alarms(parts, around, busy, rule("quiet", Metric.REQUESTS_WAITING, above=3), book=book)
        for around.in_flight in (3, 4, 5, 3, 2):
            await made.look()
        await notices.close(5)
        assert book.kept == ["busy", "busy"]
        data = {"metric": "requests.in_flight", "severity": "critical", "above": 3}
        assert parts.lines.of("alert_fired") == [{"alert": "busy", "value": 4, **data}]
        assert parts.lines.of("alert_resolved") == [{"alert": "busy", "value": 3, **data}]
        assert [line.level for line in parts.lines.all if line.event == "alert_fired"] == ["warning"]


async def test_how_the_rules_stand(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        around, began = Around(), now_ms()
        slow = Rule(name="slow", metric=Metric.REQUESTS_IN_FLIGHT, above=0, seconds=3_600)
        made, _ = alarms(parts, around, slow, rule("ready", Metric.DATABASE_READY, below=1))
        assert [(s.rule.name, s.state, s.value) for s in made.standing()] == [
            ("slow", AlertState.OK, None),
            ("ready", AlertState.OK, None),
        ]
        around.in_flight, around.is_ready = 1, False
        await made.look()
        found = made.standing()
        assert [(s.state, s.value) for s in found] == [(AlertState.PENDING, 1), (AlertState.FIRING, 0)]
        assert all(began - 50 <= standing.since_ms <= now_ms() + 50 for standing in found)


async def test_a_look_that_fails_ends_no_watch(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        around = Around()
        made, _ = alarms(parts, around, rule("ready", Metric.DATABASE_READY, below=1))
        around.raises.append(RuntimeError("secret"))
        around.is_ready = False
        watch = asyncio.create_task(made.watch())
        await wait_until(lambda: made.standing()[0].state is AlertState.FIRING, "it looked no more")
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        assert parts.lines.of("alerts_not_evaluated") == [{"code": "RuntimeError"}]


async def test_without_rules_nothing_is_looked_at(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        made, _ = alarms(parts, Around())
        await asyncio.wait_for(made.watch(), 5)
        assert made.standing() == []


async def test_the_figures_of_requests_database_and_vendors(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        around = Around()
        around.in_flight, around.waiting, around.reachable = 7, 5, (True, False, None, False)
        assert await value(parts, around, Metric.REQUESTS_IN_FLIGHT) == 7
        assert await value(parts, around, Metric.REQUESTS_WAITING) == 5
        assert await value(parts, around, Metric.PROVIDERS_UNREACHABLE) == 2
        assert await value(parts, around, Metric.DATABASE_READY) == 1
        around.is_ready = False
        assert await value(parts, around, Metric.DATABASE_READY) == 0


async def test_the_figures_of_agents(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        around, gate = Around(), Gate()
        assert await value(parts, around, Metric.AGENTS_UNHEALTHY) == 0
        assert await value(parts, around, Metric.AGENTS_UNHEALTHY_SHARE) is None, "of no agents"
        await parts.agent("good", gate)

        def fails(_: str) -> str:
            raise ValueError

        await parts.agent("bad", fails, tenant="acme")
        await parts.orchestra.register_agent(Agent(id="off", kind="function", enabled=False), fails)
        for _ in range(5):
            with pytest.raises(AgentFailed):
                await parts.orchestra.process_request("x", agent_id="bad", tenant="acme")
        assert await value(parts, around, Metric.AGENTS_UNHEALTHY) == 1
        assert await value(parts, around, Metric.AGENTS_UNHEALTHY_SHARE) == 0.5
        assert await value(parts, around, Metric.AGENT_SUCCESS_RATE, "good") is None, "it was not called"
        assert await value(parts, around, Metric.AGENT_P95_MS, "good") is None
        assert await value(parts, around, Metric.AGENT_IN_FLIGHT, "good") == 0
        assert await value(parts, around, Metric.AGENT_SUCCESS_RATE, "bad") is None, "it is not the operator's"
        asking = asyncio.create_task(parts.orchestra.process_request("x", agent_id="good"))
        await wait_until(lambda: gate.asked("x"), "it was not asked")
        assert await value(parts, around, Metric.AGENT_IN_FLIGHT, "good") == 1
        gate.let("x")
        await asking
        assert await value(parts, around, Metric.AGENT_SUCCESS_RATE, "good") == 1
        latency = await value(parts, around, Metric.AGENT_P95_MS, "good")
        assert latency is not None
        assert latency > 0


async def test_what_the_process_tells_of_itself(tmp_path: Path) -> None:
    process = Process(resident_bytes, every=0.01)
    assert process.health().loop_lag_ms is None
    watch = asyncio.create_task(process.watch())
    await wait_until(lambda: process.health().loop_lag_ms is not None, "nothing was measured")
    for _ in range(12):
        await asyncio.sleep(0)
        time.sleep(0.05)  # noqa: ASYNC251  the loop is to be late
        await asyncio.sleep(0.02)
    lag = process.health().loop_lag_ms
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert lag is not None
    assert lag >= 30
    assert process.health().uptime > 0
    memory = process.health().memory_bytes
    assert memory is None or 1_000_000 < memory < 100_000_000_000
    assert Process(lambda: None).health().memory_bytes is None


async def test_the_alerts_of_the_settings_are_on_record(tmp_path: Path) -> None:
    rules = (AlertRule.model_validate({"name": "memory", "metric": "process.memory_bytes", "above": 1}),)
    async with opened(tmp_path, settings=Settings(alerts=rules)) as parts:
        await wait_until(lambda: parts.orchestra.monitoring.alerts()[0].state is AlertState.FIRING, "it has not fired")
    database = await open_database(f"sqlite:///{tmp_path / 'orchestra.db'}")
    try:
        found = [(e.tenant, e.type, e.data["metric"]) for e in await events(database, "memory")]
    finally:
        await database.close()
    assert found == [(DEFAULT_TENANT, "alert.fired", "process.memory_bytes")]
    async with opened(tmp_path, settings=Settings(alerts=rules)) as parts:
        recorded = await parts.orchestra.monitoring.recorded()
        assert [(of.name, last and last.type) for of, last in recorded] == [("memory", "alert.fired")]
