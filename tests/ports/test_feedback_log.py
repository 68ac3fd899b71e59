"""What FeedbackLog promises, over every adapter."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest

from agent_orchestra.adapters.sql.database import Database, open_database
from agent_orchestra.adapters.sql.learning import SqlFeedbackLog
from agent_orchestra.core.feedback import Feedback, Source
from tests.ports.samples import TENANT, events


@pytest.fixture
def log(database: Database) -> SqlFeedbackLog:
    return SqlFeedbackLog(database)


@pytest.fixture
async def elsewhere(database: Database, database_url: str) -> AsyncGenerator[SqlFeedbackLog]:
    """The same log, as another process has it open."""
    other = await open_database(database_url)
    yield SqlFeedbackLog(other)
    await other.close()


def _given(
    text: str = "where is my parcel?",
    *,
    tenant: str = TENANT,
    agent_id: str | None = "orders",
    rejected: str | None = None,
    source: Source = Source.HUMAN,
) -> Feedback:
    return Feedback(
        tenant=tenant,
        decision_id="d1",
        text=text,
        agent_id=agent_id,
        rejected=rejected,
        source=source,
        author="key-1",
        created_ms=1_700_000_000_123,
    )


@pytest.mark.parametrize("source", Source)
@pytest.mark.parametrize(("agent_id", "rejected"), [("orders", "billing"), (None, "billing"), (None, None)])
async def test_an_entry_comes_back_with_its_number(
    log: SqlFeedbackLog, source: Source, agent_id: str | None, rejected: str | None
) -> None:
    given = _given("größe «注文» 🚚\n", agent_id=agent_id, rejected=rejected, source=source)

    kept = await log.append(given)

    assert kept.sequence > 0
    assert list(await log.read(TENANT)) == [kept]
    assert kept == Feedback(
        sequence=kept.sequence,
        tenant=TENANT,
        decision_id="d1",
        text="größe «注文» 🚚\n",
        agent_id=agent_id,
        rejected=rejected,
        source=source,
        author="key-1",
        created_ms=1_700_000_000_123,
    )


async def test_the_same_twice_is_two_entries(log: SqlFeedbackLog) -> None:
    first, second = await log.append(_given()), await log.append(_given())

    assert first.sequence < second.sequence
    assert list(await log.read(TENANT)) == [first, second]


async def test_what_is_read_begins_after_a_number_and_is_the_newest(log: SqlFeedbackLog) -> None:
    kept = [await log.append(_given(f"number {number}")) for number in range(6)]

    assert list(await log.read(TENANT, after=kept[3].sequence)) == kept[4:]
    assert list(await log.read(TENANT, after=kept[-1].sequence)) == []
    assert list(await log.read(TENANT, limit=2)) == kept[4:]
    assert list(await log.read(TENANT, after=kept[0].sequence, limit=100)) == kept[1:]


async def test_the_head_is_the_last_number_of_all(log: SqlFeedbackLog) -> None:
    before = await log.head()
    await log.append(_given())
    theirs = await log.append(_given(tenant="umbrella"))

    assert before == 0
    assert await log.head() == theirs.sequence


async def test_tenants_do_not_see_each_others_feedback(log: SqlFeedbackLog) -> None:
    ours, theirs = await log.append(_given("ours")), await log.append(_given("theirs", tenant="umbrella"))

    assert list(await log.read(TENANT)) == [ours]
    assert list(await log.read("umbrella")) == [theirs]
    assert list(await log.read("nobody")) == []


async def test_an_event_tells_of_each_entry_without_the_text(log: SqlFeedbackLog, database: Database) -> None:
    kept = await log.append(_given("my card is 4711", rejected="billing"))

    (told,) = await events(database)
    assert (told.tenant, told.type, told.subject) == (TENANT, "feedback.given", "d1")
    assert told.data == {
        "sequence": kept.sequence,
        "source": "human",
        "agent": "orders",
        "rejected": "billing",
        "author": "key-1",
    }


async def test_whoever_reads_on_misses_nothing(log: SqlFeedbackLog, elsewhere: SqlFeedbackLog) -> None:
    """An entry that takes long to write is not overtaken by those of another process that are numbered after it."""
    long = random.Random(0).randbytes(2_000_000).hex()
    seen: list[Feedback] = []

    async def others() -> None:
        for number in range(40):
            await log.append(_given(f"number {number}"))

    async with asyncio.timeout(30), asyncio.TaskGroup() as writing:
        writing.create_task(elsewhere.append(_given(long)))
        writing.create_task(others())
        while len(seen) < 41:
            seen.extend(await log.read(TENANT, after=seen[-1].sequence if seen else 0))

    assert list(await log.read(TENANT)) == seen
    assert {entry.text for entry in seen} == {long, *(f"number {number}" for number in range(40))}
