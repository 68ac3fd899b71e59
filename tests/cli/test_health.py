"""How agents and alerts are shown on the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.cli.running import run
from tests.services.service import running_service
from tests.services.waiting import wait_until

# Each command opens an orchestra of its own.
pytestmark = pytest.mark.slow

AGENT = {
    "id": "a",
    "kind": "function",
    "settings": {
        "function": ["tests.api.functions:echo", "tests.api.functions:raising"],
        "health": ["tests.api.test_monitoring:ill", "tests.api.test_monitoring:well"],
    },
}
ALERTS = [
    {"name": "memory", "metric": "process.memory_bytes", "above": 1, "severity": "critical"},
    {"name": "slow", "metric": "agent.p95_ms", "agent": "a", "above": 60_000, "for": 30},
]


def succeeds(*arguments: str, cwd: Path, settings: Mapping[str, object]) -> str:
    (cwd / "orchestra.yaml").write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_agent_is_shown_with_its_instances_after_a_look_at_each(tmp_path: Path) -> None:
    document = json.loads(succeeds("agents", "show", "a", cwd=tmp_path, settings={"agents": [AGENT]}))
    assert document["status"] == "DEGRADED"
    ill, well = document["instances"]
    assert (ill["id"], ill["healthy"]) == ("tests.api.functions:echo", False)
    assert ill["reason"] == "is not well: its check gave False"
    assert (well["healthy"], well["reason"]) == (True, None)
    assert well["checked_ms"] > 0


def test_alerts_are_listed_with_what_is_on_record(tmp_path: Path) -> None:
    settings = {"alerts": ALERTS}
    assert "fired" not in succeeds("alerts", cwd=tmp_path, settings=settings)
    with running_service(tmp_path, settings) as service:
        asyncio.run(wait_until(lambda: "alert_fired" in service.read_log(), "it has not fired", seconds=20))
        assert service.stop() == 0
    lines = succeeds("alerts", cwd=tmp_path, settings=settings).splitlines()
    memory, slow = [line for line in lines if line.startswith(("memory", "slow"))]
    for part in ("above 1", "critical", "fired 20"):
        assert part in memory
    assert "agent.p95_ms of a" in slow
    assert "fired" not in slow
    told = json.loads(succeeds("alerts", "--json", cwd=tmp_path, settings=settings))
    assert [(rule["name"], rule["recorded"] and rule["recorded"]["type"]) for rule in told] == [
        ("memory", "alert.fired"),
        ("slow", None),
    ]
