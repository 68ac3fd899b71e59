"""What a journal promises: notices become events, in their order, all or none."""

from __future__ import annotations

from typing import cast

import pytest

from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.events import SqlJournal
from agent_orchestra.errors import OrchestraError
from agent_orchestra.runtime.journal import Journal, Notice
from tests.ports.samples import events


@pytest.fixture
def journal(database: Database) -> Journal:
    return SqlJournal(database)


def notice(kind: str, subject: str, at_ms: int = 1, *, tenant: str = "default", **data: str) -> Notice:
    return Notice(tenant=tenant, type=kind, subject=subject, data=data, at_ms=at_ms)


async def test_notices_are_events_in_their_order(journal: Journal, database: Database) -> None:
    await journal.tell([])
    await journal.tell([notice("instance.unwell", "a", reason="x"), notice("instance.well", "a", tenant="acme")])
    await journal.tell([notice("alert.fired", "busy")])
    assert [(e.tenant, e.type, e.subject, e.data) for e in await events(database)] == [
        ("default", "instance.unwell", "a", {"reason": "x"}),
        ("acme", "instance.well", "a", {}),
        ("default", "alert.fired", "busy", {}),
    ]


async def test_all_are_kept_or_none(journal: Journal, database: Database) -> None:
    wrong = notice("instance.well", "b", tenant=cast("str", None))
    with pytest.raises(OrchestraError):
        await journal.tell([notice("instance.well", "a"), wrong])
    assert await events(database) == []


async def test_the_last_of_each_subject_is_found(journal: Journal) -> None:
    fired, resolved = "alert.fired", "alert.resolved"
    await journal.tell(
        [
            notice(fired, "busy", 1),
            notice(resolved, "busy", 2, value="3"),
            notice(fired, "full", 3),
            notice("agent.registered", "full", 4),
            notice(resolved, "full", 5, tenant="acme"),
            notice(fired, "other", 6),
        ]
    )
    found = await journal.last("default", (fired, resolved), ["busy", "full", "never"])
    assert found == {"busy": notice(resolved, "busy", 2, value="3"), "full": notice(fired, "full", 3)}
    assert await journal.last("default", (fired, resolved), []) == {}
