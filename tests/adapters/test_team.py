"""Teams: agents whose definition is a plan, with the same checks wherever they are defined."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import jsonschema_rs
import pytest

from agent_orchestra.adapters.function import wrapped
from agent_orchestra.adapters.team import TeamKind
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.coordination import Coordination
from agent_orchestra.core.request import Answer
from agent_orchestra.core.values import Json, JsonObject
from agent_orchestra.errors import CoordinationFailed, Forbidden, InvalidAgent
from agent_orchestra.runtime.coordinator import TEAM, Coordinator
from agent_orchestra.runtime.executor import Call, Executor
from agent_orchestra.runtime.instances import Dispatching, Unobserved
from agent_orchestra.runtime.registry import Roster
from agent_orchestra.runtime.telemetry import Telemetry
from tests.runtime.parts import Lines, Parts, opened

HERE = __name__


def route_to_last(content: str) -> str:
    """A router of this module's own."""
    return content.rpartition(" ")[2]


def takes_nothing() -> str:
    return ""


def kind(*allowed: str) -> TeamKind:
    coordinator = Coordinator(
        roster=lambda _: Roster({}),
        executor=Executor(policy=Dispatching(), max_output_chars=1_000, observer=Unobserved()),
        wrap=wrapped,
        telemetry=Telemetry(Lines(), detailed=False),
    )
    return TeamKind(coordinator, allowed=allowed)


def team(agent_id: str = "team", /, **settings: Json) -> Agent:
    return Agent(id=agent_id, kind=TEAM, keywords=("together",), settings=settings)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncGenerator[Parts]:
    async with opened(tmp_path) as parts:
        await parts.agent("search", found)
        await parts.agent("write", written)
        yield parts


def found(content: str) -> Mapping[str, object]:
    return {"about": content, "hits": 2}


def written(content: str, call: Call) -> str:
    results = call.context["results"]
    assert isinstance(results, Mapping)
    return f"about {content}: {', '.join(results)}"


def of(answer: Answer) -> Coordination:
    assert answer.reply.coordination is not None
    return answer.reply.coordination


async def test_a_team_answers_like_any_agent_and_its_record_tells_of_each(parts: Parts) -> None:
    await parts.orchestra.register_agent(
        team(
            strategy="sequential",
            agents=[
                "search",
                {"agent": "write", "depends_on": ["search"], "when": "results.search.value.hits > 1", "timeout": 5},
                {"agent": "write", "id": "again", "when": "results.search.value.hits > 2"},
            ],
        )
    )
    answer = await parts.orchestra.process_request("work together", idempotency_key="once")
    assert answer.agent == "team"
    assert answer.output == '{"about": "work together", "hits": 2}\n\nabout work together: search'
    told = of(answer)
    assert {r.id: r.reason for r in told.results if r.reason} == {"again": "its condition is not true"}
    record = await parts.orchestra.get_request(answer.request_id)
    assert record.end == answer
    assert await parts.orchestra.process_request("work together", idempotency_key="once") == answer


async def test_a_team_of_which_nobody_answers_is_a_recorded_failure(parts: Parts) -> None:
    await parts.orchestra.register_agent(team(agents=[{"agent": "search", "when": "input == 'other'"}]))
    with pytest.raises(CoordinationFailed, match="search: its condition is not true"):
        await parts.orchestra.process_request("work together")


async def test_a_team_of_an_agent_that_is_not_there_is_refused_with_the_nearest(parts: Parts) -> None:
    with pytest.raises(InvalidAgent) as caught:
        await parts.orchestra.register_agent(
            team(agents=["search", "writer"], aggregate="synthesis", synthesizer="serch")
        )
    faults = {fault.path: fault.message for fault in caught.value.faults}
    assert {*faults} == {"settings.agents.1", "settings.synthesizer"}
    assert "'write'" in faults["settings.agents.1"]
    assert "'search'" in faults["settings.synthesizer"]


async def test_a_team_may_be_configured_before_its_members(tmp_path: Path) -> None:
    notes = Agent(id="notes", kind="offline", settings={"knowledge": ["Tea is at five."]})
    async with opened(tmp_path, configured=[team("a-team", agents=["notes"]), notes]) as parts:
        answer = await parts.orchestra.process_request("when is tea", agent_id="a-team")
        assert "Tea is at five." in answer.output
        assert of(answer).by == ("notes",)


REFUSED: list[tuple[JsonObject, str, str]] = [
    ({}, "settings.agents", "must be a list of 1 to 64 agents"),
    ({"agents": ["a"], "strtegy": "parallel"}, "settings.strtegy", "did you mean 'strategy'?"),
    ({"agents": ["a"], "strategy": "sequentially"}, "settings.strategy", "did you mean 'sequential'?"),
    (
        {"agents": ["a", {"agent": "b", "depends_on": ["c"]}, {"agent": "c", "depends_on": ["b"]}]},
        "settings.agents.1.depends_on.0",
        "b -> c -> b",
    ),
    ({"agents": [{"agent": "a", "when": "input =="}]}, "settings.agents.0.when", "is not an expression in CEL"),
    ({"agents": ["a", "team"]}, "settings.agents.1", "is the team itself"),
    ({"agents": ["a"], "strategy": "conditional"}, "settings.route", "needs one router"),
    ({"agents": ["a"], "strategy": "conditional", "router": "nothing"}, "settings.router", "'module:function'"),
    ({"agents": ["a"], "strategy": "conditional", "router": 3}, "settings.router", "'module:function'"),
    ({"agents": ["a"], "strategy": "conditional", "router": f"{HERE}:nobody"}, "settings.router", "has no 'nobody'"),
    (
        {"agents": ["a"], "strategy": "conditional", "router": f"{HERE}:takes_nothing"},
        "settings.router",
        "must take the content",
    ),
    ({"agents": ["a"], "router": f"{HERE}:route_to_last"}, "settings.route", "is for 'conditional' only"),
    (
        {"agents": ["a"], "strategy": "conditional", "route": "'a'", "router": f"{HERE}:route_to_last"},
        "settings.route",
        "needs one router",
    ),
]


@pytest.mark.parametrize(("settings", "path", "says"), REFUSED, ids=[f"{p} {s[:24]}" for _, p, s in REFUSED])
async def test_what_is_wrong_is_refused_with_its_place(settings: JsonObject, path: str, says: str) -> None:
    with pytest.raises(InvalidAgent) as caught:
        await kind(HERE).connect(team(**settings), trusted=False)
    (fault,) = caught.value.faults
    assert fault.path == path
    assert says in fault.message


async def test_a_function_routes_where_the_operator_allows_it() -> None:
    settings: JsonObject = {"agents": ["a", "b"], "strategy": "conditional", "router": f"{HERE}:route_to_last"}
    (instance,) = await kind().connect(team(**settings), trusted=True)
    assert instance.mentions == {"settings.agents.0": "a", "settings.agents.1": "b"}
    await kind(HERE).connect(team(**settings), trusted=False)
    with pytest.raises(Forbidden, match="may not be named by callers"):
        await kind().connect(team(**settings), trusted=False)
    with pytest.raises(Forbidden, match="not a function of that module's own"):
        await kind("os").connect(team(**{**settings, "router": "os:listdir"}), trusted=False)


async def test_a_routed_team_asks_whom_its_function_names(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("search", found)
        await parts.agent("write", written)
        settings: JsonObject = {
            "agents": ["search", "write"],
            "strategy": "conditional",
            "router": f"{HERE}:route_to_last",
        }
        await parts.orchestra.register_agent(team(**settings), trusted=True)
        answer = await parts.orchestra.process_request("together with write", agent_id="team")
        assert of(answer).by == ("write",)


def test_the_schema_admits_what_is_valid() -> None:
    schema = jsonschema_rs.validator_for(dict(kind().schema))
    assert schema.is_valid({"agents": ["a", {"agent": "b", "depends_on": ["a"], "on_failure": "stop", "timeout": 1.5}]})
    assert schema.is_valid({"agents": ["a"], "strategy": "conditional", "router": "module:function"})
    refused: list[JsonObject] = [{}, {"agents": []}, {"agents": ["a"], "strategy": "x"}, {"agents": [{"id": "a"}]}]
    for wrong in refused:
        assert not schema.is_valid(wrong)
