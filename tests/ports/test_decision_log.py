"""What DecisionLog promises, over every adapter."""

from __future__ import annotations

import dataclasses

import pytest

from agent_orchestra.adapters.sql.conversations import SqlConversationStore
from agent_orchestra.adapters.sql.database import Database
from agent_orchestra.adapters.sql.decisions import SqlDecisionLog
from agent_orchestra.adapters.sql.runlog import SqlRunLog
from agent_orchestra.core.conversation import Conversation
from agent_orchestra.core.request import RequestStatus
from agent_orchestra.core.routing import Candidate, Match, Route, Stage
from agent_orchestra.errors import DecisionNotFound, StorageUnavailable
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.decisions import Decision
from agent_orchestra.runtime.dispatcher import Accepted
from tests.ports.samples import TENANT, accepted, answer, events, request

FULL = Route(
    candidates=(
        Candidate(agent_id="orders", confidence=0.8125, matched=Match(kind="capability", text="finds «Päckchen» 🚚")),
        Candidate(agent_id="billing", confidence=0.125),
    ),
    stage=Stage.LEARNED,
    reason="nearest to its capability 'finds «Päckchen» 🚚'",
    margin=0.6875,
    secondary=("billing",),
    in_scope=0.96,
    explored=True,
    propensity=0.05,
    policy="hybrid/7",
    degraded=("model_timeout",),
    ms=0.731,
)
NOBODY = Route(candidates=(), stage=Stage.NONE, reason="no agent fits the request", margin=0.0, in_scope=0.01)


@pytest.fixture
def decisions(database: Database) -> SqlDecisionLog:
    return SqlDecisionLog(database)


@pytest.fixture
def log(database: Database) -> SqlRunLog:
    return SqlRunLog(database.scripts, database.prepare)


def _decision(
    *, tenant: str = TENANT, text: str = "where is my parcel?", conversation_id: str | None = None, route: Route = FULL
) -> Decision:
    return Decision(
        id=new_id(),
        tenant=tenant,
        text=text,
        conversation_id=conversation_id,
        route=route,
        executed=False,
        created_ms=now_ms(),
    )


def _of_request(entry: Accepted) -> Decision:
    return Decision(
        id=entry.request.id,
        tenant=entry.request.tenant,
        text=entry.request.content,
        conversation_id=entry.conversation.id,
        route=entry.route,
        executed=True,
        created_ms=entry.request.received_ms,
    )


def _entry(content: str = "where is my parcel?", before: Conversation | None = None) -> Accepted:
    return dataclasses.replace(accepted(request(content), before), route=FULL)


@pytest.mark.parametrize("conversation_id", [None, "c1"])
@pytest.mark.parametrize("route", [FULL, NOBODY], ids=["full", "nobody"])
async def test_a_decision_comes_back_as_it_was(
    decisions: SqlDecisionLog, conversation_id: str | None, route: Route
) -> None:
    decision = _decision(text="wo ist «mein» 注文?\n🚚", conversation_id=conversation_id, route=route)

    await decisions.record(decision)

    assert await decisions.find(TENANT, decision.id) == decision


async def test_the_decision_of_a_request_is_found_by_the_requests_id(decisions: SqlDecisionLog, log: SqlRunLog) -> None:
    entry = _entry("größe?\n注文")
    await log.accept(entry)
    running = await decisions.find(TENANT, entry.request.id)
    await log.record(TENANT, entry.request.id, entry.conversation.id, answer(entry), RequestStatus.SUCCEEDED)

    assert running == _of_request(entry)
    assert await decisions.find(TENANT, entry.request.id) == running


async def test_each_request_of_a_conversation_has_its_own_text(
    decisions: SqlDecisionLog, log: SqlRunLog, database: Database
) -> None:
    first = _entry("first")
    await log.accept(first)
    await log.record(TENANT, first.request.id, first.conversation.id, answer(first), RequestStatus.SUCCEEDED)
    grown = await SqlConversationStore(database).get(TENANT, first.conversation.id)
    second = _entry("second", grown)
    await log.accept(second)

    assert list(await decisions.recent(TENANT, before=None, limit=10)) == [_of_request(second), _of_request(first)]


async def test_a_decision_that_is_not_there(decisions: SqlDecisionLog) -> None:
    with pytest.raises(DecisionNotFound, match="'nothing'"):
        await decisions.find(TENANT, "nothing")


async def test_tenants_do_not_see_each_others_decisions(decisions: SqlDecisionLog, log: SqlRunLog) -> None:
    alone, entry = _decision(), _entry()
    await decisions.record(alone)
    await log.accept(entry)

    for mine in (alone.id, entry.request.id):
        with pytest.raises(DecisionNotFound):
            await decisions.find("umbrella", mine)
    assert list(await decisions.recent("umbrella", before=None, limit=10)) == []


async def test_the_pages_have_every_decision_once_newest_first(decisions: SqlDecisionLog, log: SqlRunLog) -> None:
    made: list[Decision] = []
    for number in range(11):
        if number % 3:
            made.append(_decision(text=f"number {number}"))
            await decisions.record(made[-1])
        else:
            entry = _entry(f"number {number}")
            made.append(_of_request(entry))
            await log.accept(entry)

    seen: list[Decision] = []
    while page := await decisions.recent(TENANT, before=seen[-1].id if seen else None, limit=3):
        assert len(page) <= 3
        seen.extend(page)

    assert seen == made[::-1]


async def test_a_place_between_decisions_is_a_place_to_go_on_from(decisions: SqlDecisionLog) -> None:
    """A decision that is gone by the time of the next page ends no listing."""
    older = _decision()
    between = new_id()
    newer = _decision()
    for decision in (older, newer):
        await decisions.record(decision)

    assert list(await decisions.recent(TENANT, before=between, limit=10)) == [older]


async def test_a_decision_is_kept_once(decisions: SqlDecisionLog) -> None:
    decision = _decision(text="first")
    await decisions.record(decision)

    with pytest.raises(StorageUnavailable):
        await decisions.record(dataclasses.replace(decision, text="second"))

    assert list(await decisions.recent(TENANT, before=None, limit=10)) == [decision]


async def test_a_decision_without_a_request_is_no_event(decisions: SqlDecisionLog, database: Database) -> None:
    await decisions.record(_decision())

    assert await events(database) == []
