from __future__ import annotations

import dataclasses

import pytest

from agent_orchestra.core.escalation import Escalation, answered, check_decision, rejected
from agent_orchestra.core.request import Attempt, Failure
from agent_orchestra.core.routing import Candidate, Route, Stage
from agent_orchestra.errors import InvalidInput

TRIED = Attempt(
    agent_id="billing",
    instance_id="eu-1",
    duration_ms=12.5,
    error="model_overloaded",
    decision="escalate",
    reason="4 calls are enough",
)
ESCALATION = Escalation(
    tenant="acme",
    request_id="r1",
    conversation_id="c1",
    user_id="ann",
    content="where is my refund?",
    route=Route(
        candidates=(Candidate(agent_id="orders", confidence=0.75), Candidate(agent_id="billing", confidence=0.25)),
        stage=Stage.LEXICAL,
        reason="nearest",
    ),
    failure=Failure(
        code="escalated",
        detail="agent 'billing' could not answer",
        data={"cause": "model_overloaded", "agent": "billing"},
        timings={"run": 12.5, "total": 14.0},
        attempts=(TRIED,),
    ),
    asked_ms=1_000,
    escalated_ms=1_014,
)


def test_a_persons_answer_stands_in_the_agents_place() -> None:
    answer = answered(ESCALATION, "It is on its way.", author="ada", now_ms=3_014)

    assert (answer.request_id, answer.conversation_id, answer.route) == ("r1", "c1", ESCALATION.route)
    assert (answer.agent, answer.instance, answer.output) == ("billing", "person", "It is on its way.")
    assert answer.attempts == (
        TRIED,
        Attempt(agent_id="billing", instance_id="person:ada", duration_ms=2_000.0, decision="answered"),
    )
    assert answer.timings == {"run": 12.5, "person": 2_000.0, "total": 2_014.0}


def test_a_rejection_is_told_in_the_persons_words() -> None:
    failure = rejected(ESCALATION, "Not for us.", author="ada", now_ms=1_514)

    assert (failure.code, failure.detail) == ("escalation_rejected", "Not for us.")
    assert failure.data == ESCALATION.failure.data
    assert failure.attempts == (
        TRIED,
        Attempt(
            agent_id="billing",
            instance_id="person:ada",
            duration_ms=500.0,
            error="escalation_rejected",
            decision="abort",
            reason="Not for us.",
        ),
    )


def test_a_clock_that_is_behind_gives_no_time_below_nothing() -> None:
    answer = answered(ESCALATION, "Yes.", author="ada", now_ms=900)

    assert answer.attempts[-1].duration_ms == 0
    assert answer.timings["person"] == 0


def test_where_it_is_not_said_the_agent_is_the_first_of_the_route() -> None:
    bare = dataclasses.replace(ESCALATION, failure=Failure(code="escalated", detail="no"))

    assert (bare.agent_id, bare.cause) == ("orders", "escalated")
    assert answered(bare, "Yes.", author="ada", now_ms=2_000).agent == "orders"


@pytest.mark.parametrize(
    ("output", "author", "path"),
    [
        ("", "ada", "output"),
        (" \n\t", "ada", "output"),
        ("a\0b", "ada", "output"),
        ("x" * 200_001, "ada", "output"),
        ("fine", "", "author"),
        ("fine", "a" * 257, "author"),
        ("fine", "\ud800", "author"),
    ],
)
def test_what_cannot_be_said_or_stored_is_refused_with_its_place(output: str, author: str, path: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_decision(output=output, author=author)

    assert {fault.path for fault in raised.value.faults} == {path}


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as raised:
        check_decision(reason=" ", author="")

    assert [fault.path for fault in raised.value.faults] == ["reason", "author"]
