"""What Versions promises, over every adapter."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator

import pytest
from sqlalchemy import select

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import Database, open_database
from agent_orchestra.adapters.sql.learning import SqlVersions
from agent_orchestra.errors import NothingToRollBack
from agent_orchestra.runtime.versions import Version, VersionState
from tests.ports.samples import TENANT, events

ACTIVE, RETIRED, REJECTED, ROLLED_BACK = VersionState


@pytest.fixture
def versions(database: Database) -> SqlVersions:
    return SqlVersions(database)


@pytest.fixture
async def elsewhere(database: Database, database_url: str) -> AsyncGenerator[SqlVersions]:
    """The same versions, as another process has them open."""
    other = await open_database(database_url)
    yield SqlVersions(other)
    await other.close()


def _fit(state: VersionState = ACTIVE, *, tenant: str = TENANT, loss: float | None = 1.25) -> Version:
    return Version(
        tenant=tenant,
        number=0,
        state=state,
        encoder="folder:0123456789ab",
        feedback_seq=1 << 40,
        definitions="d" * 64,
        examples=3_000,
        loss=loss,
        champion_loss=1 / 3,
        created_ms=1_700_000_000_123,
    )


async def _promoted(versions: SqlVersions, times: int, *, tenant: str = TENANT) -> None:
    for _ in range(times):
        number = (await versions.active()).get(tenant)
        assert await versions.add(_fit(tenant=tenant), _learned(number), expected=number) is not None


def _learned(before: int | None) -> bytes:
    return f"what came after {before}".encode() + bytes(range(256))


async def _states(versions: SqlVersions, tenant: str = TENANT) -> list[tuple[int, VersionState]]:
    return [(version.number, version.state) for version in await versions.history(tenant, limit=100)]


async def _with_bytes(database: Database) -> list[int]:
    c = tables.routing_versions.c
    async with database.read() as connection:
        rows = (await connection.execute(select(c.number).where(c.learned.is_not(None)).order_by(c.number))).all()
    return [row.number for row in rows]


class TestAdd:
    async def test_nothing_was_learned_at_first(self, versions: SqlVersions) -> None:
        assert await versions.active() == {}
        assert await versions.load(TENANT) is None
        assert list(await versions.history(TENANT)) == []

    @pytest.mark.parametrize("loss", [None, 0.1, 1e-300])
    async def test_the_first_version_is_active_and_comes_back_as_it_was(
        self, versions: SqlVersions, loss: float | None
    ) -> None:
        learned = bytes(range(256)) * 1_000

        kept = await versions.add(_fit(loss=loss), learned, expected=None)

        assert kept == dataclasses.replace(_fit(loss=loss), number=1)
        assert await versions.load(TENANT) == (kept, learned)
        assert await versions.active() == {TENANT: 1}
        assert list(await versions.history(TENANT)) == [kept]

    async def test_the_next_retires_the_one_before(self, versions: SqlVersions) -> None:
        await _promoted(versions, 2)

        kept = await versions.add(_fit(), b"third", expected=2)

        assert await versions.load(TENANT) == (kept, b"third")
        assert await _states(versions) == [(3, ACTIVE), (2, RETIRED), (1, RETIRED)]

    @pytest.mark.parametrize("expected", [None, 1, 3])
    async def test_one_that_expected_another_is_not_kept(
        self, versions: SqlVersions, database: Database, expected: int | None
    ) -> None:
        await _promoted(versions, 2)
        before, told = await versions.load(TENANT), await events(database)

        assert await versions.add(_fit(), b"late", expected=expected) is None

        assert await versions.load(TENANT) == before
        assert await _states(versions) == [(2, ACTIVE), (1, RETIRED)]
        assert await events(database) == told

    async def test_one_that_expected_some_where_there_is_none(self, versions: SqlVersions) -> None:
        assert await versions.add(_fit(), b"late", expected=1) is None

        assert await _states(versions) == []

    async def test_a_rejected_one_has_a_number_and_changes_nothing_else(
        self, versions: SqlVersions, database: Database
    ) -> None:
        await _promoted(versions, 1)
        before = await versions.load(TENANT)

        kept = await versions.add(_fit(REJECTED), b"worse", expected=7)

        assert kept == dataclasses.replace(_fit(REJECTED), number=2)
        assert await versions.load(TENANT) == before
        assert await _states(versions) == [(2, REJECTED), (1, ACTIVE)]
        assert await _with_bytes(database) == [1]

    async def test_the_history_is_cut_at_its_limit(self, versions: SqlVersions) -> None:
        await _promoted(versions, 4)

        assert [version.number for version in await versions.history(TENANT, limit=2)] == [4, 3]

    async def test_tenants_count_and_decide_for_themselves(self, versions: SqlVersions) -> None:
        await _promoted(versions, 2)
        await _promoted(versions, 1, tenant="umbrella")

        assert await versions.active() == {TENANT: 2, "umbrella": 1}
        await versions.roll_back("umbrella")
        assert await versions.active() == {TENANT: 2}
        assert await _states(versions, "umbrella") == [(1, ROLLED_BACK)]

    async def test_events_tell_of_what_came_of_each(self, versions: SqlVersions, database: Database) -> None:
        await versions.add(_fit(loss=None), b"first", expected=None)
        await versions.add(_fit(REJECTED), b"worse", expected=1)

        promoted, rejected = await events(database)
        assert (promoted.tenant, promoted.type, promoted.subject) == (TENANT, "routing.promoted", "1")
        assert promoted.data == {"examples": 3_000, "loss": None, "champion_loss": 1 / 3}
        assert (rejected.tenant, rejected.type, rejected.subject) == (TENANT, "routing.rejected", "2")
        assert rejected.data == {"examples": 3_000, "loss": 1.25, "champion_loss": 1 / 3}


class TestRollBack:
    async def test_the_one_before_is_active_again(self, versions: SqlVersions) -> None:
        await versions.add(_fit(), b"first", expected=None)
        await versions.add(_fit(), b"second", expected=1)

        now = await versions.roll_back(TENANT)

        assert now == dataclasses.replace(_fit(), number=1)
        assert await versions.load(TENANT) == (now, b"first")
        assert await _states(versions) == [(2, ROLLED_BACK), (1, ACTIVE)]

    async def test_with_nothing_before_none_is_active(self, versions: SqlVersions) -> None:
        await _promoted(versions, 1)

        assert await versions.roll_back(TENANT) is None

        assert await versions.active() == {}
        assert await versions.load(TENANT) is None
        with pytest.raises(NothingToRollBack):
            await versions.roll_back(TENANT)

    async def test_where_nothing_was_learned(self, versions: SqlVersions, database: Database) -> None:
        await versions.add(_fit(REJECTED), b"worse", expected=None)
        told = await events(database)

        with pytest.raises(NothingToRollBack):
            await versions.roll_back(TENANT)

        assert await _states(versions) == [(1, REJECTED)]
        assert await events(database) == told

    async def test_neither_rejected_nor_withdrawn_versions_come_back(self, versions: SqlVersions) -> None:
        await _promoted(versions, 2)
        await versions.add(_fit(REJECTED), b"worse", expected=2)
        await versions.roll_back(TENANT)

        assert await versions.add(_fit(), b"fourth", expected=1) is not None
        assert (await versions.active())[TENANT] == 4
        back = await versions.roll_back(TENANT)

        assert back is not None
        assert back.number == 1
        assert await _states(versions) == [(4, ROLLED_BACK), (3, REJECTED), (2, ROLLED_BACK), (1, ACTIVE)]

    async def test_an_event_tells_of_what_was_withdrawn(self, versions: SqlVersions, database: Database) -> None:
        await _promoted(versions, 2)
        await versions.roll_back(TENANT)
        await versions.roll_back(TENANT)

        told = (await events(database))[-2:]
        assert [(event.type, event.subject, event.data) for event in told] == [
            ("routing.rolled_back", "2", {"active": 1}),
            ("routing.rolled_back", "1", {"active": None}),
        ]


class TestBytes:
    async def test_the_active_and_the_last_ten_retired_keep_theirs(
        self, versions: SqlVersions, database: Database
    ) -> None:
        await _promoted(versions, 13)

        assert await _with_bytes(database) == list(range(3, 14))
        assert len(await _states(versions)) == 13

    async def test_rejected_ones_push_none_out(self, versions: SqlVersions, database: Database) -> None:
        await _promoted(versions, 2)
        for _ in range(12):
            await versions.add(_fit(REJECTED), b"worse", expected=2)

        assert await _with_bytes(database) == [1, 2]

    async def test_one_can_roll_back_as_long_as_there_are_bytes(
        self, versions: SqlVersions, database: Database
    ) -> None:
        await _promoted(versions, 13)

        back: list[int] = []
        while (version := await versions.roll_back(TENANT)) is not None:
            back.append(version.number)
            assert await versions.load(TENANT) == (version, _learned(version.number - 1))

        assert back == list(range(12, 2, -1))
        assert await _with_bytes(database) == []


class TestAtOnce:
    async def test_of_many_first_versions_one_is_kept(self, versions: SqlVersions, elsewhere: SqlVersions) -> None:
        adds = (at.add(_fit(), b"first", expected=None) for at in (versions, elsewhere) for _ in range(5))

        kept = [version for version in await asyncio.gather(*adds) if version is not None]

        assert [version.number for version in kept] == [1]
        assert await _states(versions) == [(1, ACTIVE)]

    async def test_of_many_successors_one_is_kept(self, versions: SqlVersions, elsewhere: SqlVersions) -> None:
        await _promoted(versions, 1)
        adds = (at.add(_fit(), b"second", expected=1) for at in (versions, elsewhere) for _ in range(5))

        kept = [version for version in await asyncio.gather(*adds) if version is not None]

        assert [version.number for version in kept] == [2]
        assert await _states(versions) == [(2, ACTIVE), (1, RETIRED)]

    async def test_rejected_ones_and_a_promoted_one_have_a_number_each(
        self, versions: SqlVersions, elsewhere: SqlVersions
    ) -> None:
        await _promoted(versions, 1)
        rejects = (at.add(_fit(REJECTED), b"", expected=1) for at in (versions, elsewhere) for _ in range(4))

        kept = await asyncio.gather(*rejects, elsewhere.add(_fit(), b"second", expected=1))

        assert sorted(version.number for version in kept if version is not None) == list(range(2, 11))
        assert [state for _, state in await _states(versions)].count(ACTIVE) == 1

    async def test_each_roll_back_withdraws_one(self, versions: SqlVersions, elsewhere: SqlVersions) -> None:
        await _promoted(versions, 6)

        back = await asyncio.gather(*(at.roll_back(TENANT) for at in (versions, elsewhere) for _ in range(2)))

        assert sorted(version.number for version in back if version is not None) == [2, 3, 4, 5]
        assert await versions.active() == {TENANT: 2}

    async def test_a_version_that_was_fitted_against_a_withdrawn_one_is_not_kept(
        self, versions: SqlVersions, elsewhere: SqlVersions
    ) -> None:
        await _promoted(versions, 2)

        await elsewhere.roll_back(TENANT)

        assert await versions.add(_fit(), b"third", expected=2) is None
        assert await versions.active() == {TENANT: 1}
