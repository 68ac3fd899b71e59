"""Agents come, change and go over HTTP while requests run; what runs ends with the agent that it began with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.api.serving import Served, problem_of, serving
from tests.services.waiting import wait_for

FUNCTIONS = {"allowed_modules": ["tests.api.functions"]}


def function(name: str) -> dict[str, Any]:
    return {"kind": "function", "settings": {"function": f"tests.api.functions:{name}"}}


async def begun(served: Served, gate: Path, **body: Any) -> asyncio.Task[httpx.Response]:
    """A request that the agent ``changing`` has begun to answer, and ends when the file is there."""
    before = await in_flight(served)
    asking = asyncio.create_task(served.ask("hello", agent_id="changing", context={"gate": str(gate)}, **body))
    await wait_for(lambda: in_flight(served), lambda found: found == before + 1, "the agent was not asked")
    return asking


async def in_flight(served: Served) -> int:
    return int((await served.client.get("/v1/status")).json()["in_flight"])


async def test_what_runs_ends_as_it_began_while_its_agent_changes_and_goes(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with serving(functions=FUNCTIONS) as served:
        client = served.client
        made = await client.post("/v1/agents", json={"id": "changing", **function("gated")})
        assert made.status_code == 201, made.text
        on_first = await begun(served, gate)

        added = await client.post("/v1/agents", json={"id": "added", **function("echo")})
        assert added.status_code == 201, added.text
        assert (await served.answer("hi", agent_id="added"))["output"] == "hi"

        changed = await client.put("/v1/agents/changing", json=function("raising"))
        assert changed.status_code == 200, changed.text
        problem_of(await served.ask("hello", agent_id="changing"), 502, "agent_failed")
        assert (await client.put("/v1/agents/changing", json=function("gated"))).status_code == 200
        on_second = await begun(served, gate)
        assert (await client.patch("/v1/agents/changing", json={"enabled": False})).status_code == 200
        problem_of(await served.ask("hello", agent_id="changing"), 409, "agent_disabled")

        assert (await client.delete("/v1/agents/changing")).status_code == 204
        problem_of(await served.ask("hello", agent_id="changing"), 404, "agent_not_found")
        again = await client.post("/v1/agents", json={"id": "changing", **function("echo")})
        assert again.status_code == 201, again.text
        assert (await served.answer("anew", agent_id="changing"))["output"] == "anew"

        assert not on_first.done()
        assert not on_second.done()
        gate.touch()
        for response in await asyncio.gather(on_first, on_second):
            assert (response.status_code, response.json()["output"]) == (200, "hello")
            assert response.json()["instance"] == "tests.api.functions:gated"
            record = (await client.get(f"/v1/requests/{response.json()['request_id']}")).json()
            assert record["status"] == "SUCCEEDED"
        assert (await client.get("/v1/agents/changing")).json()["status"] == "IDLE"


async def test_agents_change_under_load_and_no_request_is_lost() -> None:
    async with serving(functions=FUNCTIONS) as served:
        client = served.client
        made = await client.post("/v1/agents", json={"id": "changing", **function("echo")})
        assert made.status_code == 201, made.text

        async def change(number: int) -> None:
            one = "tests.api.functions:echo"
            # Other settings, so other instances.
            body = {"kind": "function", "settings": {"function": [one] if number % 2 else one}}
            assert (await client.put("/v1/agents/changing", json=body)).status_code == 200
            other = f"other-{number}"
            assert (await client.post("/v1/agents", json={"id": other, **function("echo")})).status_code == 201
            assert (await client.delete(f"/v1/agents/{other}")).status_code == 204

        async def changes() -> None:
            for number in range(15):
                await change(number)

        asked = [f"hello {number}" for number in range(60)]
        answers, _ = await asyncio.gather(
            asyncio.gather(*(served.answer(text, agent_id="changing") for text in asked)), changes()
        )
        assert [answer["output"] for answer in answers] == asked
