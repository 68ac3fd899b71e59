"""Asking several agents at once from the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.running import run

# Each command opens an orchestra of its own.
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def notes(agent_id: str, text: str) -> dict[str, object]:
        return {"id": agent_id, "kind": "offline", "keywords": ["tea"], "settings": {"knowledge": [text]}}

    agents = [notes("green", "Green tea is at five."), notes("black", "Black tea is at six.")]
    (tmp_path / "orchestra.yaml").write_text(yaml.safe_dump({"agents": agents}), encoding="utf-8")
    return tmp_path


def test_several_agents_are_asked_and_each_is_told_of(folder: Path) -> None:
    done = run("ask", "when is tea", "--agents", "green, black", "--strategy", "sequential", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("Green tea is at five.") < done.stdout.index("Black tea is at six.")
    assert "-- green: SUCCEEDED" in done.stderr
    assert "-- black: SUCCEEDED" in done.stderr
    told = json.loads(run("ask", "when is tea", "--agents", "black", "--json", cwd=folder).stdout)
    assert told["coordination"]["strategy"] == "parallel"
    told = json.loads(run("ask", "when is tea", "--strategy", "sequential", "--json", cwd=folder).stdout)
    assert told["coordination"]["by"][0] == told["agent"]


def test_what_cannot_be_asked_is_one_line(folder: Path) -> None:
    for arguments, says in (
        (("--agents", "green,blak"), "did you mean 'black'?"),
        (("--agents", "green,,black"), "agents.1"),
        (("--agents", "green", "--strategy", "serial"), "did you mean 'sequential'?"),
        (("--agents", "green", "--agent", "green"), "--agents and --strategy ask several agents"),
    ):
        done = run("ask", "tea", *arguments, cwd=folder)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr
