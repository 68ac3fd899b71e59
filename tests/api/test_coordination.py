"""Several agents on one request, over HTTP, and the same from Python."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from agent_orchestra import Call, InputPolicy
from agent_orchestra.core.plan import Member
from agent_orchestra.errors import AgentFailed, CoordinationFailed, IdempotencyMismatch, InvalidAgent, InvalidInput
from tests.api.functions import echo, giving
from tests.api.serving import Served, problem_of, serving, told_in


def fails(_: str) -> str:
    raise AgentFailed("no")


def sees(content: str, call: Call) -> str:
    results = call.context["results"]
    assert isinstance(results, Mapping)
    return f"{call.agent.id} saw {sorted(results)}"


async def crew(served: Served) -> None:
    await served.has("search", sees, keywords=("search", "find"))
    await served.has("write", sees, keywords=("write", "text"))
    await served.has("broken", fails)


async def test_several_agents_work_on_a_request_and_the_answer_tells_of_each(served: Served) -> None:
    await crew(served)
    answer = await served.answer(
        "go",
        strategy="sequential",
        agents=["search", "broken", {"agent": "write", "depends_on": ["search"], "timeout": 5, "on_failure": "stop"}],
    )
    assert answer["output"] == "search saw []\n\nwrite saw ['broken', 'search']"
    told = answer["coordination"]
    assert (told["strategy"], told["aggregate"], told["by"]) == ("sequential", "concatenate", ["search", "write"])
    assert (told["success_rate"], told["failed_agents"]) == (0.6667, ["broken"])
    assert [(r["id"], r["status"], r["error"]) for r in told["results"]] == [
        ("search", "SUCCEEDED", None),
        ("broken", "FAILED", "agent_failed"),
        ("write", "SUCCEEDED", None),
    ]
    assert [link["id"] for link in told["chain"]] == ["search", "broken", "write"]
    assert (answer["stage"], answer["secondary"]) == ("explicit", ["broken", "write"])
    record = (await served.client.get(f"/v1/requests/{answer['request_id']}")).json()
    assert record["answer"] == answer


async def test_agents_alone_work_in_parallel(served: Served) -> None:
    await crew(served)
    told = (await served.answer("go", agents=["search", "write"]))["coordination"]
    assert told["strategy"] == "parallel"
    assert [r["output"] for r in told["results"]] == ["search saw []", "write saw []"]


async def test_a_strategy_alone_leaves_it_to_the_router_who_works(served: Served) -> None:
    await crew(served)
    answer = await served.answer("find and write a text", strategy="sequential")
    named = [answer["agent"], *answer["secondary"]]
    assert [r["agent"] for r in answer["coordination"]["results"]] == list(dict.fromkeys(named))
    assert answer["stage"] == "lexical"


async def test_one_agent_alone_tells_of_no_coordination(served: Served) -> None:
    await served.has("echo", echo)
    assert (await served.answer("go", agent_id="echo"))["coordination"] is None


async def test_a_route_chooses_over_http_too(served: Served) -> None:
    await crew(served)
    route = "context.vip ? 'write' : 'search'"
    answer = await served.answer(
        "go", strategy="conditional", agents=["search", "write"], route=route, context={"vip": True}
    )
    assert answer["coordination"]["by"] == ["write"]
    assert answer["agent"] == "write"


async def test_the_stream_tells_the_answer_whole_at_its_end(served: Served) -> None:
    await crew(served)
    events = await told_in(
        served.client, "POST", "/v1/orchestrate", body={"content": "go", "agents": ["search", "write"]}
    )
    assert [event.type for event in events][-1] == "completed"
    text = "".join(event.data["text"] for event in events if event.type == "delta")
    assert text == events[-1].data["output"] == "search saw []\n\nwrite saw []"
    assert events[-1].data["coordination"]["by"] == ["search", "write"]


async def test_where_nobody_succeeds_the_problem_names_each(served: Served) -> None:
    await crew(served)
    document = problem_of(await served.ask("go", agents=["broken", "broken"]), 502, "coordination_failed")
    assert document["failed"] == "broken: agent_failed, broken: agent_failed"
    assert "'broken' (agent_failed): no" in document["detail"]


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        ({"agents": ["search", "wirte"]}, "agents.1", "did you mean 'write'?"),
        ({"agents": []}, "agents", "must be a list of 1 to 64 agents"),
        ({"agents": None}, "agents", "must be a list of 1 to 64 agents"),
        ({"strategy": "paralell"}, "strategy", "did you mean 'parallel'?"),
        ({"strategy": "conditional"}, "agents", "must be a list"),
        ({"agents": ["search"], "aggregate": "first"}, "aggregate", "first_good"),
        ({"agents": ["search"], "aggregate": "synthesis", "synthesizer": "wirte"}, "synthesizer", "'write'"),
        ({"agents": [{"agent": "search", "when": "1 +"}]}, "agents.0.when", "is not an expression in CEL"),
        (
            {"agents": [{"agent": "search", "depends_on": ["write"]}, {"agent": "write", "depends_on": ["search"]}]},
            "agents.0.depends_on.0",
            "search -> write -> search",
        ),
        ({"agents": ["search"], "agent_id": "search"}, "agent_id", "is for one agent"),
        ({"agents": ["search"], "capability": "x"}, "capability", "is for one agent"),
    ],
)
async def test_what_is_wrong_is_refused_with_its_place(
    served: Served, body: dict[str, Any], path: str, says: str
) -> None:
    await crew(served)
    document = problem_of(await served.ask("go", **body), 422, "invalid_input")
    faults = {fault["path"]: fault["message"] for fault in document["errors"]}
    assert says in faults[path]


async def test_a_team_is_registered_over_http_with_the_same_checks(served: Served) -> None:
    await crew(served)
    agents: list[Any] = ["search", {"agent": "write", "id": "w"}, {"agent": "write", "depends_on": ["ww"]}]
    team: dict[str, Any] = {"id": "crew", "kind": "team", "keywords": ["crew"], "settings": {"agents": agents}}
    document = problem_of(await served.client.post("/v1/agents", json=team), 422, "invalid_agent")
    assert document["errors"] == [
        {"path": "settings.agents.2.depends_on.0", "message": "there is no 'ww' here; did you mean 'w'?"}
    ]
    agents[2]["depends_on"] = ["w"]
    agents[0] = "serch"
    document = problem_of(await served.client.post("/v1/agents", json=team), 422, "invalid_agent")
    assert [fault["path"] for fault in document["errors"]] == ["settings.agents.0"]
    assert "'search'" in document["errors"][0]["message"]
    agents[0] = "search"
    assert (await served.client.post("/v1/agents", json=team)).status_code == 201
    answer = await served.answer("ask the crew")
    assert (answer["agent"], answer["coordination"]["by"]) == ("crew", ["search", "w", "write"])


async def test_the_same_key_with_another_plan_is_refused(served: Served) -> None:
    await crew(served)
    headers = {"Idempotency-Key": "k"}
    first = await served.answer("go", agents=["search", "write"], headers=headers)
    assert await served.answer("go", agents=["search", "write"], headers=headers) == first
    for other in (
        {"agents": ["write", "search"]},
        {"agents": ["search", "write"], "aggregate": "first_good"},
        {"strategy": "parallel"},
        {},
    ):
        problem_of(await served.ask("go", headers=headers, **other), 409, "idempotency_mismatch")


async def test_from_python_it_is_the_same() -> None:
    async with serving() as served:
        await crew(served)
        orchestra = served.orchestra
        conversation = await orchestra.create_conversation(input_policy=InputPolicy.ENQUEUE)
        answer = await orchestra.coordinate(
            ["search", Member(id="w", agent="write", when="results.search.status == 'SUCCEEDED'")],
            "go",
            strategy="sequential",
            conversation_id=conversation.id,
            idempotency_key="k",
        )
        assert answer.output == "search saw []\n\nwrite saw ['search']"
        messages = await orchestra.get_messages(conversation.id)
        assert [message.content for message in messages] == ["go", answer.output]
        assert (await orchestra.get_request(answer.request_id)).end == answer
        with pytest.raises(IdempotencyMismatch):
            await orchestra.coordinate(["search"], "go", conversation_id=conversation.id, idempotency_key="k")
        with pytest.raises(InvalidInput, match="did you mean 'sequential'"):
            await orchestra.coordinate(["search"], "go", strategy="sequentiel")
        with pytest.raises(InvalidInput, match="there is no agent 'serch'; did you mean 'search'"):
            await orchestra.coordinate(["serch"], "go")
        with pytest.raises(InvalidAgent, match="must take the content"):
            await orchestra.coordinate(["search"], "go", strategy="conditional", router=lambda: "search")
        with pytest.raises(CoordinationFailed):
            await orchestra.coordinate(["broken"], "go")
        routed = await orchestra.coordinate(
            ["search", "write"], "go", strategy="conditional", router=giving(["write", "search"])
        )
        assert routed.reply.coordination is not None
        assert routed.reply.coordination.by == ("write", "search")


async def test_a_member_may_coordinate_others_itself() -> None:
    async with serving() as served:
        await crew(served)

        async def divide(content: str) -> str:
            if len(content) < 2:
                return content
            middle = len(content) // 2
            halves = [content[:middle], content[middle:]]
            answers = await asyncio.gather(*(served.orchestra.coordinate(["divide"], half) for half in halves))
            return "".join(answer.output for answer in reversed(answers))

        await served.has("divide", divide)
        assert (await served.orchestra.coordinate(["divide"], "abcd")).output == "dcba"
