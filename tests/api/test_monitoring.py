"""How agents, instances, process and alerts are told over HTTP."""

from __future__ import annotations

from typing import Any, cast

import pytest

from agent_orchestra.core.access import Scope
from tests.api.functions import echo, raising_async
from tests.api.serving import Served, problem_of, serving
from tests.services.waiting import wait_for

HERE = "tests.api.test_monitoring"
#: Most settings are sections; agents and alerts are lists.
ALERTS: Any = [
    {"name": "memory", "metric": "process.memory_bytes", "above": 1, "severity": "critical"},
    {"name": "slow", "metric": "agent.p95_ms", "agent": "echo", "above": 60_000, "for": 30},
]


def ill() -> bool:
    return False


def well() -> None:
    return


async def get(served: Served, path: str, **params: str | int) -> dict[str, Any]:
    response = await served.client.get(path, params=params)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


async def key_of(served: Served, tenant: str) -> dict[str, str]:
    _, text = await served.orchestra.keys.create(tenant, [Scope.READ])
    return {"Authorization": f"Bearer {text}"}


async def test_the_report_tells_of_every_instance_and_of_what_they_need(served: Served) -> None:
    await served.has("echo", echo)
    await served.has("broken", raising_async)
    await served.answer("hello", agent_id="echo")
    for _ in range(5):
        await served.ask("hello", agent_id="broken")
    report = await get(served, "/v1/agents/health")
    assert {name: report[name] for name in ("healthy_agents", "unhealthy_agents", "total_agents", "system_health")} == {
        "healthy_agents": 1,
        "unhealthy_agents": 1,
        "total_agents": 2,
        "system_health": "warning",
    }
    assert report["checks"] == {"database": True, "providers": {}}
    assert report["process"]["uptime"] > 0
    assert report["next"] is None
    broken, good = report["agents"]
    assert (broken["id"], broken["status"], good["id"], good["status"]) == ("broken", "OFFLINE", "echo", "IDLE")
    (instance,) = broken["instances"]
    assert (instance["healthy"], instance["breaker"], instance["calls"], instance["success_rate"]) == (
        False,
        "open",
        5,
        0.0,
    )
    assert "5 failures in a row" in instance["reason"]
    assert (instance["mean_ms"], instance["p95_ms"], instance["checked_at"]) == (None, None, None)
    (instance,) = good["instances"]
    assert (instance["healthy"], instance["reason"], instance["breaker"]) == (True, None, "closed")
    assert (instance["calls"], instance["success_rate"], instance["availability"]) == (1, 1.0, 1.0)
    assert instance["p95_ms"] == instance["p50_ms"] == instance["mean_ms"] > 0
    stats = {**good["stats"]}
    assert stats.pop("waiting") == 0
    assert all(instance[name] == value for name, value in stats.items())


async def test_an_agent_tells_of_its_instances_too(served: Served) -> None:
    await served.has("echo", echo)
    await served.answer("hello", agent_id="echo")
    report = await get(served, "/v1/agents/health")
    document = await get(served, "/v1/agents/echo")
    assert document["instances"] == report["agents"][0]["instances"]
    assert document["stats"] == report["agents"][0]["stats"]
    assert (await get(served, "/v1/agents"))["items"][0]["instances"] == document["instances"]
    assert (await get(served, "/v1/agents/resolve", action="echo"))["stats"] == document["stats"]


async def test_the_report_comes_in_pages(served: Served) -> None:
    for name in ("a", "b", "c"):
        await served.has(name, echo)
    first = await get(served, "/v1/agents/health", limit=2)
    assert ([agent["id"] for agent in first["agents"]], first["next"], first["total_agents"]) == (["a", "b"], "b", 3)
    second = await get(served, "/v1/agents/health", limit=2, cursor="b")
    assert ([agent["id"] for agent in second["agents"]], second["next"]) == (["c"], None)
    problem_of(await served.client.get("/v1/agents/health", params={"limit": 0}), 422, "invalid_input")


async def test_an_instance_that_does_not_pass_its_check_is_told() -> None:
    agent = {
        "id": "a",
        "kind": "function",
        "settings": {"function": ["tests.api.functions:echo", f"{HERE}:echo"], "health": f"{HERE}:ill"},
    }
    async with serving(orchestrator={"health_check_interval": 0.1}, agents=cast("Any", [agent])) as served:
        found = await wait_for(
            lambda: get(served, "/v1/agents/a"), lambda a: a["status"] == "OFFLINE", "it is still well"
        )
        for instance in found["instances"]:
            assert (instance["healthy"], instance["reason"]) == (False, "is not well: its check gave False")
            assert instance["availability"] == 0
            assert instance["checked_at"]
        problem = problem_of(await served.ask("hello", agent_id="a"), 503, "no_instance_available")
        assert "is not well: its check gave False" in problem["detail"]


async def test_the_status_counts_agents_and_tells_of_the_process(served: Served) -> None:
    await served.has("echo", echo)
    await served.has("off", echo, enabled=False)
    document = await get(served, "/v1/status")
    assert document["registry"] == {
        "by_status": {"IDLE": 1, "DISABLED": 1},
        "by_kind": {"function": 2},
        "by_source": {"code": 2},
    }
    assert set(document["process"]) == {"memory_bytes", "loop_lag_ms", "uptime"}


async def test_alerts_are_told_with_their_rules() -> None:
    async with serving(alerts=ALERTS) as served:
        document = await wait_for(
            lambda: get(served, "/v1/alerts"), lambda d: d["alerts"][0]["state"] == "firing", "it has not fired"
        )
        memory, slow = document["alerts"]
        assert memory["value"] > 1
        assert {name: memory[name] for name in ("metric", "agent", "above", "below", "for", "severity")} == {
            "metric": "process.memory_bytes",
            "agent": None,
            "above": 1,
            "below": None,
            "for": 0,
            "severity": "critical",
        }
        assert (slow["name"], slow["agent"], slow["for"], slow["state"]) == ("slow", "echo", 30, "ok")
        assert slow["value"] is None
        assert slow["since"].endswith("Z")
        assert ("warning", "alert_agent_missing") not in [(level, event) for level, event, _ in served.log.entries]


async def test_without_rules_there_are_no_alerts(served: Served) -> None:
    assert await get(served, "/v1/alerts") == {"alerts": []}


async def test_what_is_of_the_whole_service_is_for_its_operator() -> None:
    async with serving(keys_required=True, alerts=ALERTS) as served:
        ours, theirs = await key_of(served, "default"), await key_of(served, "acme")
        problem_of(await served.client.get("/v1/alerts", headers=theirs), 403, "forbidden")
        assert (await served.client.get("/v1/alerts", headers=ours)).status_code == 200
        for path in ("/v1/agents/health", "/v1/status"):
            assert (await served.client.get(path, headers=theirs)).json()["process"] is None
            assert (await served.client.get(path, headers=ours)).json()["process"]["uptime"] > 0


async def test_the_providers_that_were_checked_are_told_and_none_is_asked(served: Served) -> None:
    await get(served, "/v1/providers")
    checks = (await get(served, "/v1/agents/health"))["checks"]
    assert set(checks["providers"]) == {"anthropic", "openai", "google", "local"}
    assert all(reachable is None for reachable in checks["providers"].values())


@pytest.mark.parametrize("health", ["os:getpid", f"{HERE}:ill"])
async def test_a_caller_may_not_name_any_check(served: Served, health: str) -> None:
    asked = {"id": "a", "kind": "function", "settings": {"function": "tests.api.functions:echo", "health": health}}
    problem_of(await served.client.post("/v1/agents", json=asked), 403, "forbidden")
