from __future__ import annotations

from importlib.metadata import version

from tests.api.functions import echo
from tests.api.serving import Served


async def test_alive_and_ready(served: Served) -> None:
    alive = await served.client.get("/healthz")
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    ready = await served.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "checks": {"reachable": True, "migrations": True, "accepting": True}}


async def test_the_status_tells_version_load_and_agents(served: Served) -> None:
    await served.has("echo", echo)
    document = (await served.client.get("/v1/status")).json()
    assert document["version"] == version("agent-orchestra")
    assert document["uptime"] >= 0
    assert document["in_flight"] == 0
    assert document["ready"] is True
    assert document["checks"] == {"reachable": True, "migrations": True}
    assert document["agents"] == {
        "healthy_agents": 1,
        "unhealthy_agents": 0,
        "total_agents": 1,
        "system_health": "healthy",
    }
