"""The registry: what is configured, what is stored, what is given in code, and what other processes change."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from agent_orchestra.adapters.function import FunctionKind
from agent_orchestra.adapters.offline import OfflineKind
from agent_orchestra.core.agent import Agent, Balancing, Filter, Limits, Role, Status
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.breaker import Breaker, BreakerState
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import (
    AgentDisabled,
    AgentExists,
    AgentNotFound,
    Forbidden,
    InvalidAgent,
    NoAgentMatches,
    NoInstanceAvailable,
    StorageUnavailable,
)
from agent_orchestra.runtime.executor import Instance
from agent_orchestra.runtime.registry import Kind, Registry, Source, StoredAgent
from agent_orchestra.runtime.telemetry import Telemetry
from tests.runtime.parts import KINDS, Gate, Lines, Parts, opened
from tests.services.waiting import wait_until

KNOWLEDGE: JsonObject = {"knowledge": ["Snow is white."]}


def offline(agent_id: str, **fields: object) -> Agent:
    return dataclasses.replace(Agent(id=agent_id, kind="offline", settings=KNOWLEDGE), **fields)


def exclaim(content: str) -> str:
    return f"{content}!"


def ids(parts: Parts, tenant: str = "default") -> list[str]:
    return [entry.agent.id for entry in parts.orchestra.get_agents(tenant=tenant)]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with a function, as an operator has one beside the configuration."""
    found = types.ModuleType("agents_of_a_test")
    own = types.FunctionType(exclaim.__code__, found.__dict__, "echo")
    own.__module__ = found.__name__
    found.__dict__["echo"] = own
    monkeypatch.setitem(sys.modules, found.__name__, found)
    return found


def function(name: str = "echo", **fields: object) -> Agent:
    agent = Agent(id="fun", kind="function", keywords=("fun",), settings={"function": f"agents_of_a_test:{name}"})
    return dataclasses.replace(agent, **fields)


# --- configured agents


async def test_configured_agents_are_there_and_stay(tmp_path: Path) -> None:
    configured = [offline("b", keywords=("snow",)), offline("a")]
    for _ in range(2):
        async with opened(tmp_path, configured=configured) as parts:
            assert ids(parts) == ["a", "b"]
            assert {entry.source for entry in parts.orchestra.get_agents()} == {Source.CONFIG}
            assert parts.registered("b").agent == configured[0]
            assert parts.registered("b").status is Status.IDLE
            assert (await parts.orchestra.process_request("snow")).agent == "b"


async def test_an_agent_that_left_the_file_is_unregistered(tmp_path: Path) -> None:
    async with opened(tmp_path, configured=[offline("a"), offline("b")]) as parts:
        await parts.orchestra.register_agent(offline("mine"))
    async with opened(tmp_path, configured=[offline("b")]) as parts:
        assert ids(parts) == ["b", "mine"]
    async with opened(tmp_path, configured=[]) as parts:
        assert ids(parts) == ["mine"]


async def test_a_file_that_says_nothing_about_agents_changes_none(tmp_path: Path) -> None:
    async with opened(tmp_path, configured=[offline("a")]):
        pass
    async with opened(tmp_path, configured=None) as parts:
        assert ids(parts) == ["a"]
        assert parts.registered("a").source is Source.CONFIG


async def test_what_was_changed_at_run_time_outlives_a_restart_until_the_file_changes(tmp_path: Path) -> None:
    configured = [offline("a", description="from the file")]
    async with opened(tmp_path, configured=configured) as parts:
        await parts.orchestra.enable_agent("a", enabled=False)
        changed = dataclasses.replace(parts.registered("a").agent, description="at run time")
        await parts.orchestra.update_agent(changed)
    async with opened(tmp_path, configured=configured) as parts:
        assert parts.registered("a").agent == changed
        assert parts.registered("a").status is Status.DISABLED
        assert parts.registered("a").source is Source.CONFIG
    edited = [offline("a", description="edited")]
    for _ in range(2):
        async with opened(tmp_path, configured=edited) as parts:
            assert parts.registered("a").agent == edited[0]
            assert parts.registered("a").status is Status.IDLE
            await parts.orchestra.update_agent(edited[0])


async def test_an_agent_of_the_file_replaces_one_of_the_same_id_that_was_registered(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.orchestra.register_agent(offline("a", description="over the API"))
    async with opened(tmp_path, configured=[offline("a", description="file")]) as parts:
        assert parts.registered("a").agent.description == "file"
        assert parts.registered("a").source is Source.CONFIG


async def test_a_wrong_configured_agent_is_told_at_the_start(tmp_path: Path) -> None:
    wrong = offline("a", settings={"knowlege": ["x"]})
    with pytest.raises(InvalidAgent, match=r"settings\.knowlege"):
        async with opened(tmp_path, configured=[wrong]):
            pytest.fail("it was taken")


# --- registering


async def test_register_read_update_unregister(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        orchestra = parts.orchestra
        entry = await orchestra.register_agent(offline("a", version="1"))
        assert (entry.source, entry.tenant, entry.fault) == (Source.API, "default", None)
        assert orchestra.get_agent("a") == entry
        updated = await orchestra.update_agent(offline("a", version="2"))
        assert orchestra.get_agent("a").agent.version == "2"
        assert updated.updated_ms > entry.updated_ms
        await orchestra.unregister_agent("a")
        assert ids(parts) == []
        with pytest.raises(AgentNotFound):
            orchestra.get_agent("a")
    async with opened(tmp_path) as parts:
        assert ids(parts) == []


async def test_what_was_registered_is_there_after_a_restart(tmp_path: Path) -> None:
    agent = offline(
        "full",
        name="Full",
        version="7",
        provider="anthropic",
        role=Role.SUPERVISOR,
        capabilities=("a", "b"),
        domain="d",
        description="ä 🧾",
        examples=("e",),
        keywords=("k",),
        priority=5,
        limits=Limits(concurrency=2, timeout=1.5),
    )
    async with opened(tmp_path) as parts:
        before = await parts.orchestra.register_agent(agent)
    async with opened(tmp_path) as parts:
        entry = parts.registered("full")
        assert entry.agent == agent
        assert (entry.source, entry.updated_ms) == (Source.API, before.updated_ms)


async def test_a_second_agent_of_an_id_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.orchestra.register_agent(offline("a", version="1"))
        with pytest.raises(AgentExists):
            await parts.orchestra.register_agent(offline("a", version="2"))
        assert parts.registered("a").agent.version == "1"


async def test_of_many_that_register_the_same_id_at_once_one_does(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        ends = await asyncio.gather(
            *((one, two)[number % 2].orchestra.register_agent(offline("a")) for number in range(6)),
            return_exceptions=True,
        )
        assert sum(isinstance(end, AgentExists) for end in ends) == 5


async def test_what_is_not_there_cannot_be_changed_and_the_nearest_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        orchestra = parts.orchestra
        await orchestra.register_agent(offline("billing"))
        with pytest.raises(AgentNotFound, match="did you mean 'billing'"):
            await orchestra.update_agent(offline("biling"))
        with pytest.raises(AgentNotFound, match="did you mean 'billing'"):
            await orchestra.unregister_agent("biling")
        with pytest.raises(AgentNotFound):
            await orchestra.enable_agent("quite-another", enabled=False)
        with pytest.raises(AgentNotFound):
            await orchestra.process_request("x", agent_id="biling")


async def test_all_that_is_wrong_with_a_registration_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        with pytest.raises(InvalidAgent) as caught:
            await parts.orchestra.register_agent(Agent(id="health", kind="ofline", priority=10_000))
        assert [fault.path for fault in caught.value.faults] == ["id", "priority", "kind"]
        assert "did you mean 'offline'" in caught.value.detail
        with pytest.raises(InvalidAgent, match="known: function, offline"):
            await parts.orchestra.register_agent(Agent(id="a", kind="zzz"))
        with pytest.raises(InvalidAgent, match=r"settings\.knowledge"):
            await parts.orchestra.register_agent(offline("a", settings={}))
        assert ids(parts) == []


async def test_a_wrong_update_leaves_the_agent_as_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        before = await parts.orchestra.register_agent(offline("a"))
        with pytest.raises(InvalidAgent):
            await parts.orchestra.update_agent(offline("a", settings={"knowledge": []}))
        assert parts.registered("a") is before


async def test_a_call_ends_with_the_agent_that_it_began_with(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        asking = asyncio.create_task(parts.orchestra.process_request("gate"))
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        await parts.orchestra.unregister_agent("gate")
        with pytest.raises(NoAgentMatches):
            await parts.orchestra.process_request("gate")
        gate.let("gate")
        assert (await asking).output == "gate!"


async def test_disabled_agents_take_no_work_and_say_so(tmp_path: Path) -> None:
    async with opened(tmp_path, configured=[offline("a", keywords=("snow",))]) as parts:
        await parts.orchestra.enable_agent("a", enabled=False)
        with pytest.raises(NoAgentMatches):
            await parts.orchestra.process_request("snow")
        with pytest.raises(AgentDisabled):
            await parts.orchestra.process_request("snow", agent_id="a")
        assert parts.orchestra.agents_health().total_agents == 0
        await parts.orchestra.enable_agent("a", enabled=True)
        assert (await parts.orchestra.process_request("snow")).agent == "a"


# --- tenants


async def test_configured_agents_are_shared_and_nobody_elses_to_change(tmp_path: Path) -> None:
    async with opened(tmp_path, configured=[offline("shared", keywords=("snow",))]) as parts:
        orchestra = parts.orchestra
        await orchestra.register_agent(offline("private"))
        await orchestra.register_agent(offline("own"), tenant="acme")
        assert ids(parts) == ["private", "shared"]
        assert ids(parts, "acme") == ["own", "shared"]
        assert ids(parts, "other") == ["shared"]
        assert (await orchestra.process_request("snow", tenant="acme")).agent == "shared"
        with pytest.raises(Forbidden):
            await orchestra.update_agent(offline("shared"), tenant="acme")
        with pytest.raises(Forbidden):
            await orchestra.unregister_agent("shared", tenant="acme")
        with pytest.raises(Forbidden):
            await orchestra.enable_agent("shared", enabled=False, tenant="acme")
        with pytest.raises(AgentNotFound):
            await orchestra.unregister_agent("private", tenant="acme")
        with pytest.raises(AgentExists):
            await orchestra.register_agent(offline("shared"), tenant="acme")
        assert ids(parts) == ["private", "shared"]


async def test_tenants_may_use_the_same_id(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        for tenant in ("a", "b"):
            await parts.orchestra.register_agent(offline("x", description=tenant), tenant=tenant)
        await parts.orchestra.unregister_agent("x", tenant="a")
        assert parts.orchestra.get_agent("x", tenant="b").agent.description == "b"
        assert ids(parts, "a") == []


# --- agents in code


async def test_an_agent_in_code_lives_as_long_as_its_process(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        entry = await parts.orchestra.register_agent(
            Agent(id="code", kind="function", keywords=("say",)), run=str.upper
        )
        assert entry.source is Source.CODE
        assert (await parts.orchestra.process_request("say it")).output == "SAY IT"
        await parts.orchestra.enable_agent("code", enabled=False)
        assert parts.registered("code").status is Status.DISABLED
        await parts.orchestra.enable_agent("code", enabled=True)
        assert (await parts.orchestra.process_request("say it again")).output == "SAY IT AGAIN"
    async with opened(tmp_path) as parts:
        assert ids(parts) == []


async def test_an_agent_in_code_that_is_given_again_is_replaced(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        agent = Agent(id="code", kind="function", keywords=("say",))
        await parts.orchestra.register_agent(agent, run=str.upper)
        await parts.orchestra.register_agent(agent, run=exclaim)
        assert (await parts.orchestra.process_request("say")).output == "say!"


async def test_an_agent_in_code_must_be_valid_and_callable(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        with pytest.raises(InvalidAgent):
            await parts.orchestra.register_agent(Agent(id="no id", kind="function"), run=exclaim)
        with pytest.raises(InvalidAgent):
            await parts.orchestra.register_agent(Agent(id="a", kind="function"), run=lambda: "nothing to take")
        assert ids(parts) == []


async def test_an_agent_in_code_is_kept_when_others_change(tmp_path: Path) -> None:
    async with opened(tmp_path, watch_seconds=0.02) as parts, opened(tmp_path) as other:
        await parts.orchestra.register_agent(Agent(id="code", kind="function"), run=exclaim)
        await other.orchestra.register_agent(offline("later"))
        await wait_until(lambda: ids(parts) == ["code", "later"], "the change was not seen")
        assert parts.registered("code").source is Source.CODE


async def test_whatever_kind_an_agent_in_code_has_it_can_be_disabled(tmp_path: Path) -> None:
    """Its kind is a word of the program's own: what runs it is given."""
    async with opened(tmp_path) as parts:
        await parts.orchestra.register_agent(Agent(id="code", kind="mine"), run=exclaim)
        entry = await parts.orchestra.enable_agent("code", enabled=False)
        assert entry.status is Status.DISABLED


# --- functions that come and go


async def test_an_agent_whose_function_is_gone_is_offline_and_can_be_mended(
    tmp_path: Path, module: types.ModuleType
) -> None:
    async with opened(tmp_path, configured=[function(), offline("a")]) as parts:
        assert (await parts.orchestra.process_request("fun")).output == "fun!"
    echo = module.__dict__.pop("echo")
    async with opened(tmp_path, configured=[function(), offline("a")]) as parts:
        entry = parts.registered("fun")
        assert entry.status is Status.OFFLINE
        assert entry.fault is not None
        assert "has no 'echo'" in entry.fault
        assert parts.lines.of("agent_offline") == [{"agent": "fun", "reason": entry.fault}]
        assert parts.orchestra.agents_health().unhealthy_agents == 1
        with pytest.raises(NoInstanceAvailable, match="has no 'echo'"):
            await parts.orchestra.process_request("fun", agent_id="fun")
        with pytest.raises(NoAgentMatches):
            await parts.orchestra.process_request("fun")
        module.__dict__["echo"] = echo
        mended = await parts.orchestra.update_agent(function())
        assert (mended.status, mended.fault) == (Status.IDLE, None)
        assert (await parts.orchestra.process_request("fun")).output == "fun!"


async def test_an_offline_agent_is_mended_by_a_new_line_in_the_file(tmp_path: Path, module: types.ModuleType) -> None:
    async with opened(tmp_path, configured=[function()]):
        pass
    module.__dict__["other"] = module.__dict__.pop("echo")
    async with opened(tmp_path, configured=[function()]) as parts:
        assert parts.registered("fun").status is Status.OFFLINE
    async with opened(tmp_path, configured=[function("other")]) as parts:
        assert parts.registered("fun").status is Status.IDLE
        assert parts.registered("fun").fault is None


async def test_only_the_operator_names_functions(tmp_path: Path, module: types.ModuleType) -> None:
    async with opened(tmp_path) as parts:
        with pytest.raises(Forbidden, match="allowed_modules"):
            await parts.orchestra.register_agent(function())
        assert ids(parts) == []
    allowed: Mapping[str, Kind] = {**KINDS, "function": FunctionKind(allowed=[module.__name__])}
    async with opened(tmp_path, kinds=allowed) as parts:
        await parts.orchestra.register_agent(function())
        assert (await parts.orchestra.process_request("fun")).output == "fun!"
    # What was allowed when it was stored stays; another function would have to be allowed anew.
    module.__dict__["other"] = module.__dict__["echo"]
    async with opened(tmp_path) as parts:
        assert parts.registered("fun").status is Status.IDLE
        assert (await parts.orchestra.enable_agent("fun", enabled=True)).fault is None
        with pytest.raises(Forbidden):
            await parts.orchestra.update_agent(function("other"))


async def test_an_agent_of_several_functions_has_an_instance_for_each(tmp_path: Path, module: types.ModuleType) -> None:
    module.__dict__["other"] = module.__dict__["echo"]
    names = [f"agents_of_a_test:{name}" for name in ("echo", "other")]
    async with opened(tmp_path, configured=[function(settings={"function": names})]) as parts:
        served = [(await parts.orchestra.process_request("fun")).instance for _ in range(4)]
        assert served == [*names, *names]


# --- other processes


async def test_changes_of_another_process_are_seen(tmp_path: Path) -> None:
    async with opened(tmp_path, watch_seconds=0.02) as here, opened(tmp_path) as there:
        await there.orchestra.register_agent(offline("a", version="1", keywords=("snow",)))
        await wait_until(lambda: ids(here) == ["a"], "the registration was not seen")
        assert (await here.orchestra.process_request("snow")).agent == "a"
        await there.orchestra.update_agent(offline("a", version="2"))
        await wait_until(lambda: here.registered("a").agent.version == "2", "the update was not seen")
        await there.orchestra.enable_agent("a", enabled=False)
        await wait_until(lambda: here.registered("a").status is Status.DISABLED, "the change was not seen")
        await there.orchestra.unregister_agent("a")
        await wait_until(lambda: ids(here) == [], "the removal was not seen")


async def test_a_change_elsewhere_leaves_the_other_agents_counts_alone(tmp_path: Path) -> None:
    async with opened(tmp_path, watch_seconds=0.02, configured=[offline("a")]) as here, opened(tmp_path) as there:
        pool = here.registered("a").pool
        await there.orchestra.register_agent(offline("b"))
        await wait_until(lambda: ids(here) == ["a", "b"], "the registration was not seen")
        assert here.registered("a").pool is pool


async def test_two_processes_that_begin_at_once_agree(tmp_path: Path) -> None:
    configured = [offline(f"a{number}") for number in range(5)]
    async with opened(tmp_path, configured=configured) as one, opened(tmp_path, configured=configured) as two:
        assert ids(one) == ids(two) == [agent.id for agent in configured]


# --- a store that fails


class PassingStore:
    """An empty store whose next look at the revision fails. Conforms to :class:`AgentStore`."""

    def __init__(self) -> None:
        self.stored: list[StoredAgent] = []
        self.raises: list[Exception] = []
        self.looks = 0

    async def load(self) -> tuple[int, Sequence[StoredAgent]]:
        return len(self.stored), list(self.stored)

    async def save(self, stored: StoredAgent, *, new: bool) -> None:
        if self.raises:
            raise self.raises.pop(0)
        self.stored.append(stored)

    async def remove(self, tenant: str, agent_id: str) -> None:
        if self.raises:
            raise self.raises.pop(0)
        self.stored = [one for one in self.stored if one.agent.id != agent_id]

    async def revision(self) -> int:
        self.looks += 1
        if self.raises:
            raise self.raises.pop(0)
        return len(self.stored)


def registry_on(store: PassingStore, lines: Lines) -> Registry:
    telemetry = Telemetry(lines, detailed=False)
    return Registry(store=store, kinds={"offline": OfflineKind()}, shared_tenant="default", telemetry=telemetry)


async def test_a_change_that_cannot_be_stored_did_not_happen() -> None:
    store, lines = PassingStore(), Lines()
    registry = registry_on(store, lines)
    await registry.start(None)
    store.raises = [StorageUnavailable("away")]
    with pytest.raises(StorageUnavailable):
        await registry.register("t", offline("a"))
    assert registry.find("t", Filter()) == []
    await registry.register("t", offline("a"))
    store.raises = [StorageUnavailable("away")]
    with pytest.raises(StorageUnavailable):
        await registry.unregister("t", "a")
    assert [entry.agent.id for entry in registry.find("t", Filter())] == ["a"]


async def test_watching_goes_on_when_storage_was_away() -> None:
    store, lines = PassingStore(), Lines()
    registry = registry_on(store, lines)
    await registry.start(None)
    store.raises = [StorageUnavailable("away"), StorageUnavailable("away")]
    watching = asyncio.create_task(registry.watch(0.01))
    store.stored = [StoredAgent(tenant="t", agent=offline("a"), source=Source.API, updated_ms=1)]
    await wait_until(lambda: bool(registry.find("t", Filter())), "the change was not seen")
    assert lines.of("registry_not_refreshed") == [{"code": "storage_unavailable"}] * 2
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


class MoodyKind:
    """A kind that can break in a way that it does not promise. Conforms to :class:`Kind`."""

    def __init__(self) -> None:
        self.breaks = False

    @property
    def schema(self) -> JsonObject:
        return {}

    async def connect(self, agent: Agent, *, trusted: bool) -> Sequence[Instance]:
        if self.breaks and agent.id == "bad":
            raise ValueError("a fault in the kind")
        return await OfflineKind().connect(agent, trusted=trusted)


async def test_one_agent_that_breaks_does_not_hide_what_changes_later() -> None:
    store, lines, kind = PassingStore(), Lines(), MoodyKind()
    kind.breaks = True
    telemetry = Telemetry(lines, detailed=False)
    registry = Registry(store=store, kinds={"offline": kind}, shared_tenant="default", telemetry=telemetry)
    await registry.start(None)
    watching = asyncio.create_task(registry.watch(0.01))
    store.stored = [
        StoredAgent(tenant="t", agent=offline("bad"), source=Source.API, updated_ms=1),
        StoredAgent(tenant="t", agent=offline("good"), source=Source.API, updated_ms=1),
    ]
    try:
        await wait_until(lambda: store.looks >= 2 or watching.done(), "the change was not looked at")
        assert not watching.done(), "the watch ended, and nobody was told"
        await wait_until(
            lambda: "good" in {entry.agent.id for entry in registry.find("t", Filter())},
            "the good agent was not seen",
            seconds=2,
        )
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


# --- instances and their weights

TWO = ("agents_of_a_test:echo", "agents_of_a_test:other")


@pytest.fixture
def two(module: types.ModuleType) -> Agent:
    """An agent of two functions, each of which is an instance."""
    module.__dict__["other"] = module.__dict__["echo"]
    return function(settings={"function": list(TWO)})


def weighted(agent: Agent, **weights: float) -> Agent:
    """``one`` and ``other`` stand for the ids of the two instances."""
    names = {"one": TWO[0], "other": TWO[1]}
    by_id = {names.get(name, name): weight for name, weight in weights.items()}
    return dataclasses.replace(agent, balancing=Balancing(algorithm=Algorithm.WEIGHTED_ROUND_ROBIN, weights=by_id))


def shares(parts: Parts) -> list[float]:
    return [instance.share for instance in parts.registered("fun").pool.instances]


async def served(parts: Parts, count: int) -> str:
    """Which of the two answered, each time: ``a`` or ``b``."""
    answers = [await parts.orchestra.process_request("fun") for _ in range(count)]
    return "".join("ab"[TWO.index(answer.instance)] for answer in answers)


async def test_calls_follow_the_weights_and_an_update_gives_others_to_the_same_instances(
    tmp_path: Path, two: Agent
) -> None:
    async with opened(tmp_path, configured=[weighted(two, one=2)]) as parts:
        assert await served(parts, 6) == "abaaba"
        pool = parts.registered("fun").pool
        total = [instance.window.total for instance in pool.instances]
        await parts.orchestra.update_agent(weighted(two, one=0))
        assert parts.registered("fun").pool is pool, "what is known of the instances is lost"
        assert [instance.window.total for instance in pool.instances] == total
        assert await served(parts, 3) == "bbb"
        await parts.orchestra.update_agent(two)
        assert shares(parts) == [1, 1]
        assert sorted(await served(parts, 4)) == list("aabb")


@pytest.mark.parametrize(
    ("weights", "path", "said"),
    [
        ({"agents_of_a_test:othr": 1.0}, "balancing.weights.agents_of_a_test:othr", "did you mean 'agents_of_a_test:"),
        ({"zzz": 1.0}, "balancing.weights.zzz", "known: agents_of_a_test:echo, agents_of_a_test:other"),
        ({"one": 0.0, "other": 0.0}, "balancing.weights", "are all 0, so that nobody would answer"),
        ({"one": -1.0}, "balancing.weights.agents_of_a_test:echo", "must"),
    ],
)
async def test_wrong_weights_are_refused_with_their_place_and_change_nothing(
    tmp_path: Path, two: Agent, weights: dict[str, float], path: str, said: str
) -> None:
    async with opened(tmp_path, configured=[weighted(two, one=2)]) as parts:
        for wrong in (weighted(two, **weights), dataclasses.replace(weighted(two, **weights), version="2")):
            with pytest.raises(InvalidAgent) as caught:
                await parts.orchestra.update_agent(wrong)
            (fault,) = caught.value.faults
            assert fault.path == path
            assert said in fault.message
        assert shares(parts) == [2, 1]
        assert parts.registered("fun").agent.version == "1"
    with pytest.raises(InvalidAgent, match=r"balancing\.weights"):
        async with opened(tmp_path, configured=[weighted(two, **weights)]):
            pytest.fail("it was taken")


async def test_a_weight_of_nought_for_some_is_fine(tmp_path: Path, two: Agent) -> None:
    async with opened(tmp_path, configured=[weighted(two, one=0)]) as parts:
        assert await served(parts, 3) == "bbb"
        assert parts.registered("fun").status is Status.IDLE


async def test_weights_are_there_after_a_restart(tmp_path: Path, two: Agent, module: types.ModuleType) -> None:
    kinds: Mapping[str, Kind] = {**KINDS, "function": FunctionKind(allowed=[module.__name__])}
    async with opened(tmp_path, kinds=kinds) as parts:
        agent = weighted(two, one=3, other=0.5)
        await parts.orchestra.register_agent(agent)
    async with opened(tmp_path, kinds=kinds) as parts:
        assert parts.registered("fun").agent == agent
        assert shares(parts) == [3, 0.5]


async def test_weights_of_another_process_are_taken_over(tmp_path: Path, two: Agent, module: types.ModuleType) -> None:
    kinds: Mapping[str, Kind] = {**KINDS, "function": FunctionKind(allowed=[module.__name__])}
    async with opened(tmp_path, kinds=kinds, watch_seconds=0.02) as here, opened(tmp_path, kinds=kinds) as there:
        await there.orchestra.register_agent(two)
        await wait_until(lambda: ids(here) == ["fun"], "the registration was not seen")
        pool = here.registered("fun").pool
        await there.orchestra.update_agent(weighted(two, other=0))
        await wait_until(lambda: shares(here) == [1, 0], "the weights were not seen")
        assert here.registered("fun").pool is pool


async def test_weights_that_cannot_be_stored_did_not_change() -> None:
    store, lines = PassingStore(), Lines()
    registry = registry_on(store, lines)
    await registry.start(None)
    (instance,) = (await registry.register("t", offline("a"))).pool.instances
    heavier = offline("a", balancing=Balancing(weights={instance.id: 7}))
    store.raises = [StorageUnavailable("away")]
    with pytest.raises(StorageUnavailable):
        await registry.update("t", heavier)
    assert instance.share == 1
    await registry.update("t", heavier)
    assert instance.share == 7


async def test_an_agent_in_code_has_weights_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        entry = await parts.orchestra.register_agent(Agent(id="code", kind="function"), run=exclaim)
        (instance,) = entry.pool.instances
        with pytest.raises(InvalidAgent, match=r"balancing\.weights: are all 0"):
            await parts.orchestra.update_agent(
                Agent(id="code", kind="function", balancing=Balancing(weights={instance.id: 0}))
            )
        with pytest.raises(InvalidAgent, match=r"balancing\.weights\.nobody: is no instance of the agent"):
            await parts.orchestra.register_agent(
                Agent(id="more", kind="function", balancing=Balancing(weights={"nobody": 1})), run=exclaim
            )
        assert (ids(parts), instance.share) == (["code"], 1)
        await parts.orchestra.update_agent(
            Agent(id="code", kind="function", balancing=Balancing(weights={instance.id: 2}))
        )
        assert instance.share == 2
        again = Agent(id="code", kind="function", balancing=Balancing(weights={instance.id: 3}))
        entry = await parts.orchestra.register_agent(again, run=exclaim)
        assert [one.share for one in entry.pool.instances] == [3]


async def test_a_breaker_outlives_a_change_of_words_and_not_one_of_what_runs(
    tmp_path: Path, two: Agent, module: types.ModuleType
) -> None:
    kinds: Mapping[str, Kind] = {**KINDS, "function": FunctionKind(allowed=[module.__name__])}
    async with opened(tmp_path, kinds=kinds, configured=[two]) as parts:
        first = parts.registered("fun").pool.instances[0]
        first.breaker = Breaker(state=BreakerState.OPEN, until=1e12, reason="5 failures in a row (x)")
        await parts.orchestra.update_agent(dataclasses.replace(two, description="in other words"))
        assert parts.registered("fun").pool.instances[0] is first
        assert parts.registered("fun").status is Status.DEGRADED
        await parts.orchestra.update_agent(function())
        assert parts.registered("fun").status is Status.IDLE


async def test_a_request_that_waits_gets_its_place_though_its_agent_is_replaced(tmp_path: Path) -> None:
    gate = Gate()
    limited = Agent(id="gate", kind="function", keywords=("gate",), limits=Limits(concurrency=1, queue=5))
    async with opened(tmp_path) as parts:
        await parts.orchestra.register_agent(limited, gate)
        before = parts.registered("gate").pool
        one = asyncio.create_task(parts.orchestra.process_request("gate"))
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        two = asyncio.create_task(parts.orchestra.process_request("gate two"))
        await wait_until(lambda: before.waiting == 1, "it does not wait")
        await parts.orchestra.register_agent(limited, exclaim)
        assert (await parts.orchestra.process_request("gate three")).output == "gate three!"
        await parts.orchestra.unregister_agent("gate")
        gate.let("gate", "gate two")
        assert [(await task).output for task in (one, two)] == ["gate!", "gate two!"]
        assert (before.in_flight, before.waiting) == (0, 0)


async def test_what_a_later_release_has_added_is_no_change_of_an_agent_that_says_nothing_of_it(tmp_path: Path) -> None:
    """Else an upgrade would undo what was changed at run time."""
    configured = [offline("a", description="from the file")]
    async with opened(tmp_path, configured=configured) as parts:
        await parts.orchestra.update_agent(offline("a", description="at run time"))
    async with opened(tmp_path, configured=[offline("a", description="from the file", balancing=Balancing())]) as parts:
        assert parts.registered("a").agent.description == "at run time"
    edited = [offline("a", description="from the file", limits=Limits(queue=1))]
    async with opened(tmp_path, configured=edited) as parts:
        assert parts.registered("a").agent == edited[0]


async def test_a_team_may_mention_what_the_file_has_later_but_not_what_is_gone_again(tmp_path: Path) -> None:
    team = Agent(id="desk", kind="team", settings={"agents": ["later"]})
    later = Agent(id="later", kind="offline", settings={"knowledge": ["It is here."]})
    async with opened(tmp_path, configured=[team, later]) as parts:
        await parts.orchestra.unregister_agent("later")
        with pytest.raises(InvalidAgent, match="there is no agent 'later'"):
            await parts.orchestra.register_agent(dataclasses.replace(team, id="other"))
