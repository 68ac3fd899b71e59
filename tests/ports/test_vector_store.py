"""What VectorStore promises, over every adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.learning import SqlVectorStore
from tests.ports.samples import TENANT, events

Vectors = Mapping[str, NDArray[np.float32]]


@pytest.fixture
def store(database: Database) -> SqlVectorStore:
    return SqlVectorStore(database)


def _vectors(*texts: str, dimension: int = 8, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    drawn = np.random.default_rng(seed).normal(size=(len(texts), dimension)).astype(np.float32)
    return dict(zip(texts, drawn, strict=True))


def _assert_same(found: Vectors, expected: Vectors) -> None:
    assert found.keys() == expected.keys()
    for text, vector in expected.items():
        assert found[text].dtype == np.float32
        np.testing.assert_array_equal(found[text], vector)


async def test_vectors_come_back_bit_by_bit(store: SqlVectorStore) -> None:
    odd = np.array([0.1, -0.0, 1e-45, 3.4e38, np.inf, np.nan], dtype=np.float32)
    kept = {"größe «注文» 🚚": odd, "": -odd, "a\0b": odd[:1], "half a character \ud800": odd[:0]}

    await store.save(TENANT, "e1", kept)

    _assert_same(await store.load([TENANT], "e1", list(kept)), kept)


async def test_only_what_is_asked_for_and_kept_is_given(store: SqlVectorStore) -> None:
    kept = _vectors("a", "b", "c")
    await store.save(TENANT, "e1", kept)

    found = await store.load([TENANT], "e1", ["b", "x", "b", "a"])

    _assert_same(found, {"a": kept["a"], "b": kept["b"]})


async def test_nothing_is_asked_for_or_of_nobody(store: SqlVectorStore) -> None:
    await store.save(TENANT, "e1", _vectors("a"))
    await store.save(TENANT, "e1", {})

    assert await store.load([TENANT], "e1", []) == {}
    assert await store.load([], "e1", ["a"]) == {}


async def test_encoders_and_tenants_have_their_own(store: SqlVectorStore) -> None:
    ours, theirs, other = (_vectors("a", seed=seed) for seed in range(3))
    await store.save(TENANT, "e1", ours)
    await store.save("umbrella", "e1", theirs)
    await store.save(TENANT, "e2", other)

    _assert_same(await store.load([TENANT], "e1", ["a"]), ours)
    _assert_same(await store.load(["umbrella"], "e1", ["a"]), theirs)
    _assert_same(await store.load([TENANT], "e2", ["a"]), other)
    assert await store.load(["nobody"], "e1", ["a"]) == {}


async def test_those_of_several_tenants_are_given_together(store: SqlVectorStore) -> None:
    ours, shared = _vectors("a", "b"), _vectors("c", seed=1)
    await store.save(TENANT, "e1", ours)
    await store.save("default", "e1", shared)
    await store.save("umbrella", "e1", _vectors("d"))

    found = await store.load({TENANT, "default"}, "e1", ["a", "b", "c", "d"])

    _assert_same(found, ours | shared)


async def test_one_that_is_kept_already_stays_as_it_is(store: SqlVectorStore) -> None:
    first, again = _vectors("a"), _vectors("a", "b", seed=1)
    await store.save(TENANT, "e1", first)

    await store.save(TENANT, "e1", again)

    _assert_same(await store.load([TENANT], "e1", ["a", "b"]), again | first)


async def test_many_that_keep_the_same_at_once(store: SqlVectorStore) -> None:
    texts = [f"text {number}" for number in range(50)]
    forth = _vectors(*texts)
    back = dict(reversed(forth.items()))

    await asyncio.gather(*(store.save(TENANT, "e1", vectors) for vectors in (forth, back) * 4))

    _assert_same(await store.load([TENANT], "e1", texts), forth)


async def test_more_than_a_statement_holds(store: SqlVectorStore) -> None:
    kept = _vectors(*(f"text {number}" for number in range(2_500)))
    await store.save(TENANT, "e1", kept)

    _assert_same(await store.load([TENANT, "default"], "e1", list(kept)), kept)


async def test_what_is_given_cannot_be_changed(store: SqlVectorStore) -> None:
    await store.save(TENANT, "e1", _vectors("a"))

    found = await store.load([TENANT], "e1", ["a"])

    assert not found["a"].flags.writeable


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8"])
async def test_whatever_the_machine_writes_the_rows_are_little_endian_floats(
    store: SqlVectorStore, database: Database, kind: str
) -> None:
    await store.save(TENANT, "e1", {"a": np.array([1.0, -2.0], dtype=kind)})

    async with database.read() as connection:
        row = (await connection.execute(select(tables.vectors))).one()
    assert row.vector == bytes.fromhex("0000803f000000c0")


async def test_neither_the_texts_nor_events_are_kept(store: SqlVectorStore, database: Database) -> None:
    await store.save(TENANT, "e1", _vectors("my card is 4711"))

    async with database.read() as connection:
        (row,) = (await connection.execute(select(tables.vectors))).all()
    assert (row.tenant, row.encoder, len(row.digest)) == (TENANT, "e1", 64)
    assert not any("4711" in str(value) for value in row)
    assert await events(database) == []
