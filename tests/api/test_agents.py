from __future__ import annotations

import asyncio
from typing import Any

from tests.api.serving import Served, problem_of, serving

KNOWING = {"knowledge": ["Refunds take five days.", "Invoices come on the first."]}


def offline(agent_id: str, **more: object) -> dict[str, Any]:
    return {"id": agent_id, "kind": "offline", "settings": KNOWING, **more}


async def register(served: Served, agent_id: str, **more: object) -> dict[str, Any]:
    response = await served.client.post("/v1/agents", json=offline(agent_id, **more))
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    return document


async def ids(served: Served, **wanted: str | int) -> list[str]:
    response = await served.client.get("/v1/agents", params=wanted)
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["items"]]


async def test_an_agent_is_registered_and_read_with_all_its_fields(served: Served) -> None:
    given: dict[str, Any] = {
        "name": "Billing",
        "version": "2.1",
        "provider": "local",
        "role": "specialist",
        "capabilities": ["refunds", "invoices"],
        "domain": "finance",
        "description": "Knows what was paid.",
        "examples": ["Where is my money?"],
        "keywords": ["refund"],
        "priority": 7,
        "enabled": True,
        "limits": {"concurrency": 3, "timeout": 2.5},
    }
    response = await served.client.post("/v1/agents", json=offline("billing", **given))
    assert response.status_code == 201
    assert response.headers["location"] == "/v1/agents/billing"
    document = response.json()
    expected = {**given, "id": "billing", "kind": "offline", "settings": KNOWING, "status": "IDLE", "source": "api"}
    assert {key: document[key] for key in expected} == expected
    assert [(instance["id"], instance["healthy"]) for instance in document["instances"]] == [("offline", True)]
    assert (document["stats"]["calls"], document["stats"]["in_flight"]) == (0, 0)
    assert document["fault"] is None
    assert (await served.client.get("/v1/agents/billing")).json() == document


async def test_a_second_agent_of_the_same_id_is_refused(served: Served) -> None:
    await register(served, "one")
    problem_of(await served.client.post("/v1/agents", json=offline("one")), 409, "agent_exists")


async def test_put_replaces_and_patch_changes(served: Served) -> None:
    await register(served, "one", description="before", keywords=["kept"], priority=3)
    changed = await served.client.patch("/v1/agents/one", json={"description": "after"})
    assert changed.status_code == 200
    assert (changed.json()["description"], changed.json()["keywords"]) == ("after", ["kept"])

    replaced = await served.client.put("/v1/agents/one", json={"kind": "offline", "settings": KNOWING})
    assert replaced.status_code == 200
    document = replaced.json()
    assert (document["description"], document["keywords"], document["priority"]) == ("", [], 0)
    assert document["updated_at"] > changed.json()["updated_at"]
    assert (await served.client.get("/v1/agents/one")).json() == document


async def test_a_disabled_agent_is_kept_and_does_not_answer(served: Served) -> None:
    await register(served, "one", keywords=["refund"])
    assert (await served.client.patch("/v1/agents/one", json={"enabled": False})).json()["status"] == "DISABLED"
    problem_of(await served.ask("a refund"), 404, "no_agent_matches")
    assert (await served.client.patch("/v1/agents/one", json={"enabled": True})).json()["status"] == "IDLE"
    assert (await served.answer("a refund"))["agent"] == "one"


async def test_an_agent_is_unregistered(served: Served) -> None:
    await register(served, "one")
    response = await served.client.delete("/v1/agents/one")
    assert (response.status_code, response.content) == (204, b"")
    problem_of(await served.client.get("/v1/agents/one"), 404, "agent_not_found")
    problem_of(await served.client.delete("/v1/agents/one"), 404, "agent_not_found")
    await register(served, "one")


async def test_unknown_agents_are_404_with_the_nearest_name(served: Served) -> None:
    await register(served, "billing")
    replacement = {"kind": "offline", "settings": KNOWING}
    for method, body in (("GET", None), ("DELETE", None), ("PATCH", {"priority": 1}), ("PUT", replacement)):
        problem = problem_of(
            await served.client.request(method, "/v1/agents/biling", json=body), 404, "agent_not_found"
        )
        assert "did you mean 'billing'?" in problem["detail"]


async def test_each_filter_and_all_together(served: Served) -> None:
    await register(served, "a", role="specialist", capabilities=["Refunds"], domain="finance", provider="local")
    await register(served, "b", role="specialist", domain="travel")
    await register(served, "c", role="worker", capabilities=["refunds"], domain="finance", enabled=False)
    assert await ids(served) == ["a", "b", "c"]
    assert await ids(served, role="specialist") == ["a", "b"]
    assert await ids(served, capability="refunds") == ["a", "c"]
    assert await ids(served, domain="finance") == ["a", "c"]
    assert await ids(served, provider="local") == ["a"]
    assert await ids(served, status="DISABLED") == ["c"]
    assert await ids(served, status="IDLE", role="specialist", domain="travel") == ["b"]
    assert await ids(served, domain="nowhere") == []
    problem = problem_of(await served.client.get("/v1/agents", params={"role": "boss"}), 422, "invalid_input")
    assert problem["errors"][0]["path"] == "query.role"


async def test_the_list_comes_in_pages(served: Served) -> None:
    expected = [f"agent-{number:02}" for number in range(7)]
    for agent_id in reversed(expected):
        await register(served, agent_id)
    found: list[str] = []
    cursor: str | None = None
    sizes: list[int] = []
    while True:
        params: dict[str, str | int] = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = (await served.client.get("/v1/agents", params=params)).json()
        sizes.append(len(page["items"]))
        found += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == expected
    assert sizes == [3, 3, 1]


async def test_a_page_that_ends_the_list_names_no_next(served: Served) -> None:
    await register(served, "a")
    await register(served, "b")
    page = (await served.client.get("/v1/agents", params={"limit": 2})).json()
    assert page["next"] is None
    for limit in (0, 501, "many"):
        problem_of(await served.client.get("/v1/agents", params={"limit": limit}), 422, "invalid_input")


async def test_an_action_resolves_to_an_id_a_capability_or_a_prefix(served: Served) -> None:
    await register(served, "billing", capabilities=["refunds"])
    await register(served, "better", capabilities=["refunds"], priority=5)
    for action, expected in (("billing", "billing"), ("refunds", "better"), ("billing.anything", "billing")):
        response = await served.client.get("/v1/agents/resolve", params={"action": action})
        assert response.json()["id"] == expected
    missing = await served.client.get("/v1/agents/resolve", params={"action": "nothing"})
    problem_of(missing, 404, "no_agent_matches")
    problem_of(await served.client.get("/v1/agents/resolve"), 422, "invalid_input")


async def test_health_counts_enabled_agents(served: Served) -> None:
    async def health() -> dict[str, Any]:
        document: dict[str, Any] = (await served.client.get("/v1/agents/health")).json()
        return {name: document[name] for name in document if name.endswith(("_agents", "_health"))}

    assert await health() == {
        "healthy_agents": 0,
        "unhealthy_agents": 0,
        "total_agents": 0,
        "system_health": "healthy",
    }

    def fails(_: str) -> str:
        raise ValueError

    await served.has("failing", fails)
    await register(served, "fine")
    await register(served, "off", enabled=False)
    for _ in range(3):
        problem_of(await served.ask("hello", agent_id="failing"), 502, "agent_failed")
    assert await health() == {
        "healthy_agents": 1,
        "unhealthy_agents": 1,
        "total_agents": 2,
        "system_health": "warning",
    }
    assert await ids(served, status="DEGRADED") == ["failing"]


WRONG: tuple[tuple[dict[str, Any], str, list[str]], ...] = (
    ({"id": "has space"}, "invalid_input", ["id"]),
    ({"id": "new\n"}, "invalid_input", ["id"]),
    ({"id": "health"}, "invalid_agent", ["id"]),
    ({"id": "resolve"}, "invalid_agent", ["id"]),
    ({"kind": "ofline"}, "invalid_agent", ["kind"]),
    ({"role": "boss"}, "invalid_input", ["role"]),
    ({"capabilities": ["fine", "  "]}, "invalid_agent", ["capabilities.1"]),
    ({"examples": "one"}, "invalid_input", ["examples"]),
    ({"keywords": ["x" * 501]}, "invalid_input", ["keywords.0"]),
    ({"priority": 1001}, "invalid_input", ["priority"]),
    ({"enabled": "yes"}, "invalid_input", ["enabled"]),
    ({"enabled": 0}, "invalid_input", ["enabled"]),
    ({"priority": "3"}, "invalid_input", ["priority"]),
    ({"priority": True}, "invalid_input", ["priority"]),
    ({"limits": {"concurrency": 0}}, "invalid_input", ["limits.concurrency"]),
    ({"limits": {"timeout": 0}}, "invalid_input", ["limits.timeout"]),
    ({"limits": {"tiemout": 1}}, "invalid_input", ["limits.tiemout"]),
    ({"colour": "red"}, "invalid_input", ["colour"]),
    ({"name": "nul \0"}, "invalid_agent", ["name"]),
    ({"settings": {}}, "invalid_agent", ["settings.knowledge"]),
    ({"settings": {"knowledge": ["a", ""]}}, "invalid_agent", ["settings.knowledge.1"]),
    ({"settings": {"knowledge": ["a"], "passages": 11}}, "invalid_agent", ["settings.passages"]),
    ({"settings": {"knowledge": ["a"], "model": "x"}}, "invalid_agent", ["settings.model"]),
    ({"priority": 5_000, "role": "boss"}, "invalid_input", ["priority", "role"]),
)


async def test_what_is_wrong_with_a_definition_is_told_with_its_place(served: Served) -> None:
    mistaken: list[object] = []
    for change, code, paths in WRONG:
        response = await served.client.post("/v1/agents", json=offline("new") | change)
        document = response.json()
        found = (response.status_code, document.get("code"), sorted(e["path"] for e in document.get("errors", ())))
        if found != (422, code, sorted(paths)):
            mistaken.append((change, found))
        await served.client.delete("/v1/agents/new")
    assert mistaken == []


async def test_a_whole_number_may_be_written_as_json_writes_it(served: Served) -> None:
    settings = {**KNOWING, "passages": 2.0}
    response = await served.client.post("/v1/agents", json=offline("one", priority=3.0, settings=settings))
    assert response.status_code == 201, response.text
    assert response.json()["priority"] == 3


async def test_functions_may_not_be_named_over_the_api_unless_allowed(served: Served) -> None:
    asked = {"id": "runs", "kind": "function", "settings": {"function": "tests.api.functions:echo"}}
    problem = problem_of(await served.client.post("/v1/agents", json=asked), 403, "forbidden")
    assert "functions.allowed_modules" in problem["detail"]
    for target in ("os:system", "subprocess:call", "builtins:eval"):
        named = asked | {"settings": {"function": target}}
        problem_of(await served.client.post("/v1/agents", json=named), 403, "forbidden")
    # A way around through an agent that may be registered.
    await register(served, "changed")
    replacement = {"kind": "function", "settings": {"function": "os:system"}}
    problem_of(await served.client.put("/v1/agents/changed", json=replacement), 403, "forbidden")
    assert (await served.client.get("/v1/agents/changed")).json()["kind"] == "offline"


async def test_functions_of_allowed_modules_can_be_registered_and_asked() -> None:
    async with serving(functions={"allowed_modules": ["tests.api.functions"]}) as served:
        asked = {"id": "runs", "kind": "function", "settings": {"function": "tests.api.functions:echo"}}
        assert (await served.client.post("/v1/agents", json=asked)).status_code == 201
        assert (await served.answer("hello", agent_id="runs"))["output"] == "hello"
        for target, path in (
            ("tests.api.functions:missing", "settings.function"),
            ("tests.api.functions:SECRET", "settings.function"),
            ("tests.api.functions", "settings.function"),
        ):
            named = {"id": "wrong", "kind": "function", "settings": {"function": target}}
            problem = problem_of(await served.client.post("/v1/agents", json=named), 422, "invalid_agent")
            assert [fault["path"] for fault in problem["errors"]] == [path]
        several = ["tests.api.functions:echo", "os:system"]
        named = {"id": "wrong", "kind": "function", "settings": {"function": several}}
        problem_of(await served.client.post("/v1/agents", json=named), 403, "forbidden")


async def test_an_agent_with_several_functions_is_balanced_over_them() -> None:
    async with serving(functions={"allowed_modules": ["tests.api.functions"]}) as served:
        functions = ["tests.api.functions:echo", "tests.api.functions:raising_async"]
        asked = {"id": "both", "kind": "function", "settings": {"function": functions}}
        created = await served.client.post("/v1/agents", json=asked)
        assert [instance["id"] for instance in created.json()["instances"]] == functions
        statuses = [(await served.ask("hello", agent_id="both")).status_code for _ in range(4)]
        assert statuses == [200, 502, 200, 502]


async def test_a_change_of_an_agent_does_not_disturb_what_it_is_answering(served: Served) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(content: str) -> str:
        begun.set()
        await may_end.wait()
        return content

    await served.has("slow", slow)
    asking = asyncio.create_task(served.ask("hello", agent_id="slow"))
    await begun.wait()
    assert (await served.client.get("/v1/agents/slow")).json()["status"] == "BUSY"
    assert (await served.client.delete("/v1/agents/slow")).status_code == 204
    may_end.set()
    response = await asking
    assert (response.status_code, response.json()["output"]) == (200, "hello")
