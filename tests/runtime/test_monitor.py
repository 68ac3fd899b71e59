"""Instances that can be asked are asked, and what changes about them is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent_orchestra.adapters.function import wrapped
from agent_orchestra.adapters.sql.database import open_database
from agent_orchestra.core.agent import Agent, Status
from agent_orchestra.errors import AgentFailed, AgentUnavailable, NoInstanceAvailable
from agent_orchestra.runtime.instances import Instance
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT
from agent_orchestra.settings import Orchestrator, Settings
from tests.ports.samples import StoredEvent, events
from tests.runtime.parts import Parts, opened
from tests.services.waiting import wait_until

SECRET = "hunter2"


class Check:
    """A check that fails as long as it is told to, and counts how often it was asked."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1
        if self.failure is not None:
            raise self.failure

    async def asked_again(self, times: int = 2) -> None:
        before = self.asked
        await wait_until(lambda: self.asked >= before + times, "it was not checked any more")


def echo(content: str) -> str:
    return content


def instance(check: Callable[[], Awaitable[None]] | None, name: str = "one") -> Instance:
    made = wrapped("a", echo, instance_id=name)
    made.check = check
    return made


def agent(agent_id: str = "a", *, enabled: bool = True) -> Agent:
    return Agent(id=agent_id, kind="function", keywords=(agent_id,), enabled=enabled)


@asynccontextmanager
async def monitored(folder: Path, *, interval: float = 0.06) -> AsyncGenerator[Parts]:
    settings = Settings(orchestrator=Orchestrator(health_check_interval=interval))
    async with opened(folder, settings=settings) as parts:
        yield parts


async def has(parts: Parts, *instances: Instance, agent_id: str = "a", tenant: str = DEFAULT_TENANT) -> None:
    await parts.registry.register_in_code(tenant, agent(agent_id), instances)


async def told(folder: Path, subject: str = "a") -> Sequence[StoredEvent]:
    database = await open_database(f"sqlite:///{folder / 'orchestra.db'}")
    try:
        return [event for event in await events(database, subject) if event.type.startswith("instance.")]
    finally:
        await database.close()


async def test_two_failures_make_an_instance_unwell_and_one_success_well_again(tmp_path: Path) -> None:
    check = Check()
    async with monitored(tmp_path) as parts:
        one, other = instance(check), instance(None, "other")
        await has(parts, one, other, tenant="acme")
        await check.asked_again()
        assert one.checked_ms is not None
        assert (one.healthy, one.unwell) == (True, None)
        check.failure = ConnectionError(SECRET)
        await wait_until(lambda: one.unwell is not None, "it is still well")
        assert one.unwell == "its check raised ConnectionError"
        entry = parts.orchestra.get_agent("a", tenant="acme")
        assert entry.status is Status.DEGRADED, "the other one can answer"
        await check.asked_again()
        check.failure = None
        await wait_until(lambda: one.unwell is None, "it is still unwell")
        assert entry.status is Status.IDLE
    reason = {"instance": "one", "reason": "its check raised ConnectionError"}
    passes = {"instance": "one", "reason": "its check passes again"}
    assert [(e.tenant, e.type, e.data) for e in await told(tmp_path)] == [
        ("acme", "instance.unwell", reason),
        ("acme", "instance.well", passes),
    ]
    assert parts.lines.of("instance_unwell") == [{"tenant": "acme", "agent": "a", **reason}]
    assert parts.lines.of("instance_well") == [{"tenant": "acme", "agent": "a", **passes}]
    assert SECRET not in str([line.fields for line in parts.lines.all])


async def test_one_failure_is_an_accident(tmp_path: Path) -> None:
    check = Check(AgentFailed("its check gave False"))
    async with monitored(tmp_path) as parts:
        one = instance(check)
        await has(parts, one)
        await wait_until(lambda: check.asked == 1, "it was not checked")
        check.failure = None
        await check.asked_again()
        assert one.unwell is None
    assert not await told(tmp_path)


async def test_one_that_has_failed_once_is_asked_again_soon(tmp_path: Path) -> None:
    check = Check(AgentFailed("its check gave False"))
    async with monitored(tmp_path, interval=3_600) as parts:
        one = instance(check)
        await has(parts, one)
        await parts.orchestra.monitoring.check(parts.registered("a"))
        assert check.asked == 2, "twice at once where somebody asks"
        assert one.unwell == "its check gave False"


async def test_an_agent_without_a_healthy_instance_is_offline_and_says_why(tmp_path: Path) -> None:
    check = Check(AgentUnavailable("the index is being rebuilt"))
    async with monitored(tmp_path) as parts:
        one = instance(check)
        await has(parts, one)
        await wait_until(lambda: one.unwell is not None, "it is still well")
        assert parts.registered("a").status is Status.OFFLINE
        with pytest.raises(NoInstanceAvailable, match="'one' is not well: the index is being rebuilt"):
            await parts.orchestra.process_request("a", agent_id="a")
        check.failure = None
        await wait_until(lambda: one.unwell is None, "it is still unwell")
        assert (await parts.orchestra.process_request("a", agent_id="a")).output == "a"


async def test_the_registry_is_followed_while_it_changes(tmp_path: Path) -> None:
    first, second = Check(), Check()
    async with monitored(tmp_path) as parts:
        await has(parts, instance(first), agent_id="first")
        await first.asked_again()
        await has(parts, instance(second), agent_id="second", tenant="acme")
        await second.asked_again()
        await parts.orchestra.unregister_agent("first")
        await parts.orchestra.enable_agent("second", enabled=False, tenant="acme")
        # Once one that came later is checked, the changes before it have been seen too.
        third = Check()
        await has(parts, instance(third), agent_id="third")
        await third.asked_again(1)
        before = first.asked, second.asked
        await third.asked_again(5)
        assert (first.asked, second.asked) == before, "neither one that is gone is asked, nor one that is disabled"
        await parts.orchestra.enable_agent("second", enabled=True, tenant="acme")
        await second.asked_again()


async def test_a_check_that_does_not_end_has_failed_and_is_not_made_twice(tmp_path: Path) -> None:
    asked, may_end = 0, asyncio.Event()

    async def hangs() -> None:
        nonlocal asked
        asked += 1
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    other = Check()
    async with monitored(tmp_path) as parts:
        one = instance(hangs)
        await has(parts, one, instance(other, "other"))
        await wait_until(lambda: one.unwell is not None, "it is still well")
        await wait_until(lambda: one.unwell == "its last check has not ended yet", "it was asked anew")
        await other.asked_again(3)
        assert asked == 1
        may_end.set()
        await wait_until(lambda: one.unwell is None, "it is still unwell")
    assert [(e.type, e.data["reason"]) for e in await told(tmp_path)] == [
        ("instance.unwell", "its last check has not ended yet"),
        ("instance.well", "its check passes again"),
    ]


async def test_a_check_that_gives_up_itself_has_failed(tmp_path: Path) -> None:
    check = Check(asyncio.CancelledError())
    async with monitored(tmp_path) as parts:
        one = instance(check)
        await has(parts, one)
        await wait_until(lambda: one.unwell == "its check gave up", "it is still well")


async def test_few_checks_run_at_once(tmp_path: Path) -> None:
    running, most, seen, may_end = 0, 0, set[int](), asyncio.Event()

    def check(number: int) -> Callable[[], Awaitable[None]]:
        async def slow() -> None:
            nonlocal running, most
            running, most = running + 1, max(most, running + 1)
            seen.add(number)
            try:
                await may_end.wait()
            finally:
                running -= 1

        return slow

    async with monitored(tmp_path, interval=1.5) as parts:
        await has(parts, *(instance(check(number), str(number)) for number in range(100)))
        await wait_until(lambda: running == 32, "the checks have not begun")
        may_end.set()
        await wait_until(lambda: len(seen) == 100, "not all were checked")
        assert most == 32


async def test_what_the_executor_tells_is_on_record(tmp_path: Path) -> None:
    async with monitored(tmp_path) as parts:

        def fails(_: str) -> str:
            raise ValueError(SECRET)

        await parts.agent("a", fails)
        for _ in range(5):
            with pytest.raises(AgentFailed):
                await parts.orchestra.process_request("a", agent_id="a")
        assert parts.registered("a").status is Status.OFFLINE
    found = await told(tmp_path)
    ejected = [event for event in found if event.type == "instance.ejected"]
    assert [(e.tenant, e.data["instance"]) for e in ejected] == [(DEFAULT_TENANT, "in-process")]
    assert "5 failures in a row" in ejected[0].data["reason"]
    assert SECRET not in str(found)


async def test_what_is_known_of_an_instance_is_told_with_its_agent(tmp_path: Path) -> None:
    check = Check()
    async with monitored(tmp_path) as parts:
        one, other = instance(check), instance(None, "other")
        await has(parts, one, other)
        for _ in range(4):
            await parts.orchestra.process_request("a", agent_id="a")
        await check.asked_again(1)
        check.failure = AgentFailed("its check gave False")
        await wait_until(lambda: one.unwell is not None, "it is still well")
        health = parts.orchestra.monitoring.agent(parts.registered("a"))
        assert [(i.id, i.healthy, i.calls, i.success_rate) for i in health.instances] == [
            ("one", False, 2, 1.0),
            ("other", True, 2, 1.0),
        ]
        first, second = health.instances
        assert first.reason == "is not well: its check gave False"
        assert first.availability is not None
        assert 0 < first.availability < 1
        assert (second.reason, second.availability, second.checked_ms) == (None, 1.0, None)
        assert (health.stats.calls, health.stats.in_flight, health.stats.waiting) == (4, 0, 0)
        assert health.stats.checked_ms == first.checked_ms
        assert health.stats.p95_ms is not None
        assert health.stats.p50_ms is not None
        assert health.stats.p95_ms >= health.stats.p50_ms
