"""What KeyStore promises, over every adapter; and that a key's secret is kept nowhere."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.keys import SqlKeyStore
from agent_orchestra.core.access import Key, Principal, Scope
from agent_orchestra.errors import KeyNotFound, Unauthenticated
from agent_orchestra.runtime.keys import Keys
from tests.ports.samples import events


@pytest.fixture
def store(database: Database) -> SqlKeyStore:
    return SqlKeyStore(database)


def _key(id_: str, *, tenant: str = "acme", created_ms: int = 1_000) -> Key:
    return Key(id=id_, tenant=tenant, scopes=(Scope.READ, Scope.RUN), digest="d" * 64, created_ms=created_ms)


async def test_a_key_comes_back_as_it_was(store: SqlKeyStore) -> None:
    key = _key("a1")

    await store.add(key)

    assert await store.get("a1") == key
    assert await store.get("a2") is None


async def test_keys_are_listed_newest_first(store: SqlKeyStore) -> None:
    older, newer, theirs = _key("a", created_ms=1), _key("b", created_ms=2), _key("c", tenant="umbrella", created_ms=3)
    for key in (newer, theirs, older):
        await store.add(key)

    assert list(await store.find("acme")) == [newer, older]
    assert list(await store.find(None)) == [theirs, newer, older]
    assert list(await store.find("nobody")) == []


async def test_a_second_revocation_changes_nothing(store: SqlKeyStore, database: Database) -> None:
    await store.add(_key("a1"))

    first = await store.revoke("a1", 5_000)
    second = await store.revoke("a1", 6_000)

    assert first.revoked_ms == second.revoked_ms == 5_000
    assert await store.get("a1") == first
    assert [event.type for event in await events(database, "a1")] == ["key.created", "key.revoked"]


async def test_many_revocations_at_once_are_one(store: SqlKeyStore, database: Database) -> None:
    await store.add(_key("a1"))

    ended = await asyncio.gather(*(store.revoke("a1", 5_000 + number) for number in range(8)))

    assert len({key.revoked_ms for key in ended}) == 1
    assert [event.type for event in await events(database, "a1")] == ["key.created", "key.revoked"]


async def test_revoking_what_is_not_there(store: SqlKeyStore, database: Database) -> None:
    with pytest.raises(KeyNotFound, match="'a1'"):
        await store.revoke("a1", 5_000)

    assert await events(database) == []


async def test_a_created_key_opens_and_a_revoked_one_does_not(store: SqlKeyStore) -> None:
    keys = Keys(store)
    key, text = await keys.create("acme", [Scope.RUN, Scope.RUN])

    assert await Keys(store).authenticate(text) == Principal(
        tenant="acme", scopes=frozenset([Scope.RUN]), key_id=key.id
    )

    await keys.revoke(key.id)
    for checker in (keys, Keys(store)):
        with pytest.raises(Unauthenticated):
            await checker.authenticate(text)


async def test_a_key_that_is_nearly_right_is_not(store: SqlKeyStore) -> None:
    key, text = await Keys(store).create("acme", [Scope.READ])
    _, other = await Keys(store).create("acme", [Scope.READ])
    secret = other.split("_", 2)[2]

    for wrong in (
        text.upper(),
        text[:-1],
        f"{text}x",
        f"x{text}",
        f"orc_{key.id}_{secret}",
        f"orc_{key.id}_",
        "orc__",
        "",
    ):
        with pytest.raises(Unauthenticated):
            await Keys(store).authenticate(wrong)


async def test_the_secret_is_in_no_row(store: SqlKeyStore, database: Database) -> None:
    _, text = await Keys(store).create("acme", list(Scope))
    secret = text.split("_", 2)[2]

    for table in (tables.keys, tables.events):
        async with database.read() as connection:
            rows = (await connection.execute(select(table))).all()
        assert rows
        assert all(secret not in str(value) for row in rows for value in row)
