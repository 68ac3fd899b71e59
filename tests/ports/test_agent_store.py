"""What AgentStore promises, over every adapter."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import pytest

from agent_orchestra.adapters.sql.agents import SqlAgentStore
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.core.agent import Agent, Limits, Role
from agent_orchestra.errors import AgentExists, AgentNotFound
from agent_orchestra.runtime.registry import Source, StoredAgent
from tests.ports.samples import events


@pytest.fixture
def store(database: Database) -> SqlAgentStore:
    return SqlAgentStore(database)


def _stored(id_: str = "orders", *, tenant: str = "acme", updated_ms: int = 1_000, name: str = "") -> StoredAgent:
    agent = Agent(id=id_, kind="offline", name=name, settings={"knowledge": ["x"]})
    return StoredAgent(tenant=tenant, agent=agent, source=Source.API, updated_ms=updated_ms)


async def test_an_empty_store(store: SqlAgentStore) -> None:
    revision, stored = await store.load()

    assert list(stored) == []
    assert revision == await store.revision()


async def test_a_definition_comes_back_as_it_was(store: SqlAgentStore) -> None:
    full = StoredAgent(
        tenant="acme",
        agent=Agent(
            id="Orders_1.x-2",
            kind="function",
            name="Bestellungen «größer» 🚚",
            version="2.1",
            provider="in-house",
            role=Role.SUPERVISOR,
            capabilities=("track", "注文"),
            domain="shop",
            description="Knows\nwhere parcels are.",
            examples=("where is it?",),
            keywords=("parcel", "Paket"),
            priority=-7,
            enabled=False,
            limits=Limits(concurrency=3, timeout=1.5),
            settings={"function": ["a:b", "c:d"], "tiefe": {"x": [1, 2.5, None, True, "ß"]}},
        ),
        source=Source.CONFIG,
        origin="d" * 64,
        updated_ms=1_700_000_000_123,
    )
    plain = _stored("plain")

    await store.save(full, new=True)
    await store.save(plain, new=True)

    revision, stored = await store.load()
    assert sorted(stored, key=lambda row: row.agent.id) == [full, plain]
    assert revision == await store.revision()


async def test_a_taken_id_is_refused_and_nothing_changes(store: SqlAgentStore, database: Database) -> None:
    await store.save(_stored(name="first"), new=True)
    told, before = await events(database), await store.load()

    with pytest.raises(AgentExists, match="'orders'"):
        await store.save(_stored(name="second", updated_ms=2_000), new=True)

    assert await store.load() == before
    assert await events(database) == told


async def test_of_many_that_register_one_id_at_once_one_succeeds(store: SqlAgentStore, database: Database) -> None:
    saves = (store.save(_stored(name=f"number {n}"), new=True) for n in range(10))

    ends = await asyncio.gather(*saves, return_exceptions=True)

    assert ends.count(None) == 1
    assert sum(isinstance(end, AgentExists) for end in ends) == 9
    assert [event.type for event in await events(database)] == ["agent.registered"]


async def test_an_update_replaces_the_definition(store: SqlAgentStore) -> None:
    await store.save(_stored(name="first"), new=True)
    changed = dataclasses.replace(_stored(name="second", updated_ms=2_000), source=Source.CONFIG, origin="abc")

    await store.save(changed, new=False)

    assert list((await store.load())[1]) == [changed]


async def test_an_update_of_what_is_not_there(store: SqlAgentStore, database: Database) -> None:
    with pytest.raises(AgentNotFound, match="'orders'"):
        await store.save(_stored(), new=False)

    assert list((await store.load())[1]) == []
    assert await events(database) == []


async def test_removing(store: SqlAgentStore) -> None:
    await store.save(_stored("a"), new=True)
    await store.save(_stored("b"), new=True)

    await store.remove("acme", "a")

    assert [row.agent.id for row in (await store.load())[1]] == ["b"]
    with pytest.raises(AgentNotFound):
        await store.remove("acme", "a")


async def test_tenants_do_not_reach_each_other(store: SqlAgentStore) -> None:
    await store.save(_stored(tenant="acme", name="ours"), new=True)
    await store.save(_stored(tenant="umbrella", name="theirs"), new=True)

    await store.remove("umbrella", "orders")
    with pytest.raises(AgentNotFound):
        await store.save(_stored(tenant="umbrella"), new=False)

    assert [(row.tenant, row.agent.name) for row in (await store.load())[1]] == [("acme", "ours")]


async def test_every_change_makes_another_revision(store: SqlAgentStore) -> None:
    seen = [await store.revision()]
    for change in (
        store.save(_stored("a"), new=True),
        store.save(_stored("b"), new=True),
        store.save(_stored("a", updated_ms=1_001), new=False),
        store.remove("acme", "b"),
        store.remove("acme", "a"),
    ):
        await change
        seen.append(await store.revision())

    assert all(before != after for before, after in itertools.pairwise(seen))


async def test_an_agent_that_takes_the_place_of_another_is_another_revision(store: SqlAgentStore) -> None:
    """Two changes between two looks, in one millisecond: who looks must still see that something has changed."""
    await store.save(_stored("a"), new=True)
    before = await store.revision()

    await store.remove("acme", "a")
    await store.save(_stored("b"), new=True)

    assert await store.revision() != before


async def test_reading_does_not_change_the_revision(store: SqlAgentStore) -> None:
    await store.save(_stored(), new=True)
    revision = await store.revision()

    await store.load()

    assert await store.revision() == revision


async def test_the_events_tell_of_each_change(store: SqlAgentStore, database: Database) -> None:
    await store.save(_stored(), new=True)
    await store.save(_stored(updated_ms=2_000), new=False)
    await store.remove("acme", "orders")

    told = await events(database)

    assert [(event.tenant, event.type, event.subject) for event in told] == [
        ("acme", "agent.registered", "orders"),
        ("acme", "agent.updated", "orders"),
        ("acme", "agent.unregistered", "orders"),
    ]
    assert told[0].data == {"version": "1", "enabled": True, "source": "api"}
