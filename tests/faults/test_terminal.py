"""Whatever is wrong with what is given, read or written, the terminal shows one line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.services.service import environment, orchestra, running_service

pytestmark = pytest.mark.slow

STUBBORN = """
import asyncio

async def stays(content):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
"""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["agents", "list", "--database", "postgresql://u:secret@h:nope/db"], "[configuration]"),
        (["agents", "list", "--database", "sqlite:///x.db?timeout=abc"], "[configuration]"),
        (["agents", "list", "--config", "date.yaml"], "[configuration]"),
        (["agents", "list", "--config", "private.yaml"], "[configuration]"),
        (["conversations", "show", "\udcff"], "not text"),
        (["serve", "--port", "70000"], "server.port"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    (tmp_path / "date.yaml").write_text("x: 2024-13-45\n", encoding="utf-8")
    (tmp_path / "private.yaml").write_text("_env_file: x\n", encoding="utf-8")
    done = orchestra(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert told in done.stderr
    assert "secret" not in done.stderr


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "agent_orchestra", "agents", "list", "--json"],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_looking_into_another_database_changes_nothing_there(tmp_path: Path) -> None:
    agent = "agents: [{id: NAME, kind: offline, settings: {knowledge: [x]}}]\n"
    (tmp_path / "one.yaml").write_text(agent.replace("NAME", "one"), encoding="utf-8")
    (tmp_path / "orchestra.yaml").write_text(agent.replace("NAME", "two"), encoding="utf-8")
    asked = orchestra("ask", "x", "--agent", "one", "-c", "one.yaml", "-d", "shared.db", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    for command in (["keys", "list"], ["conversations", "list"], ["agents", "list"]):
        assert orchestra(*command, "-d", "shared.db", cwd=tmp_path).returncode == 0
    listed = orchestra("agents", "list", "-d", "shared.db", cwd=tmp_path).stdout
    assert "one" in listed
    assert "two" not in listed


async def test_an_agent_that_will_not_end_does_not_hold_up_the_end(tmp_path: Path) -> None:
    (tmp_path / "stubborn_agents.py").write_text(STUBBORN, encoding="utf-8")
    settings = {
        "server": {"shutdown_grace": 1},
        "agents": [
            {
                "id": "stays",
                "kind": "function",
                "limits": {"timeout": 0.5},
                "settings": {"function": "stubborn_agents:stays"},
            }
        ],
    }
    with running_service(tmp_path, settings) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            response = await client.post("/v1/orchestrate", json={"content": "hello", "agent_id": "stays"})
        assert response.json()["code"] == "deadline_exceeded"
        assert response.json()["request_id"] == response.headers["x-request-id"]
        service.terminate()
        assert await asyncio.to_thread(service.wait) == 0
