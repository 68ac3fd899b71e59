"""The example agents get the requests that a person would send them to."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Model, Turn, untaught
from agent_orchestra.core.routing import Policy, Query, Route, Signals, Stage, route
from agent_orchestra.settings import load_settings

EXAMPLES = Path(__file__).parents[2] / "examples" / "orchestra.yaml"

#: None of these stands in the definitions as it is written here.
EXPECTED = [
    ("My card was debited two times for the same subscription", "billing"),
    ("please send the receipts of last quarter", "billing"),
    ("what does the team plan cost?", "billing"),
    ("I'd like a refund for my last payment", "billing"),
    ("can't log in any more, it says wrong password", "support"),
    ("The app shows error 403", "support"),
    ("reset the passwords of my team", "support"),
    ("find me a train from Berlin to Vienna on Friday", "travel"),
    ("which hotels may I book in Paris?", "travel"),
    ("do citizens of Brazil need visas for Japan?", "travel"),
    ("how many pieces of luggage are included on flights", "travel"),
    ("Can I carry over vacation into next year?", "handbook"),
    ("I'm sick; until when must I tell my lead?", "handbook"),
    ("is remote work from Spain allowed?", "handbook"),
    ("when do I get a new laptop", "handbook"),
    ("compute 17 * 23", "calculator"),
    ("what is 120 divided by 8, plus 3?", "calculator"),
    ("what's the time in UTC?", "clock"),
    ("tell me today's date", "clock"),
    ("give me a recap of what we said", "summary"),
    ("Sing a sea shanty", "reception"),
    ("hi there", "reception"),
]

#: What words alone get wrong: each one that is got right moves up.
MISSED = [
    pytest.param(
        "since the update it crashes all the time",
        "support",
        marks=pytest.mark.xfail(strict=True, reason="'time' is a word of the clock's"),
    ),
]


@pytest.fixture(scope="module")
def team() -> dict[str, Agent]:
    definitions = load_settings(EXAMPLES).agents or ()
    return {definition.id: definition.to_agent(definition.id) for definition in definitions}


@pytest.fixture(scope="module")
def model(team: dict[str, Agent]) -> Model:
    return untaught(list(team.values()), {})


def decided(model: Model, team: dict[str, Agent], text: str, turn: Turn | None = None) -> Route:
    query = Query(text=text, active_agent=turn.previous if turn is not None else None)
    return route(query, team, Signals(judgement=model.judge(text, turn=turn)), Policy(fallback="reception"))


@pytest.mark.parametrize(("text", "expected"), [*EXPECTED, *MISSED])
def test_the_right_agent_answers(team: dict[str, Agent], model: Model, text: str, expected: str) -> None:
    found = decided(model, team, text)
    assert found.primary.agent_id == expected, found
    assert (found.stage is Stage.FALLBACK) is (expected == "reception")


def test_the_examples_of_the_definitions_are_routed_to_their_owners(team: dict[str, Agent], model: Model) -> None:
    for agent in team.values():
        for example in agent.examples:
            found = decided(model, team, example)
            assert found.primary.agent_id == agent.id, (example, found)


def test_a_follow_up_stays_with_the_agent_of_the_conversation(team: dict[str, Agent], model: Model) -> None:
    turn = Turn(previous="travel", last="Hotels are paid up to 160 euros a night.")
    found = decided(model, team, "and what about the other one?", turn)
    assert (found.primary.agent_id, found.stage) == ("travel", Stage.CONVERSATION)
