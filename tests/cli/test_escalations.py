from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agent_orchestra import Agent, open_orchestra
from agent_orchestra.core.resilience import Action, Recovery
from agent_orchestra.errors import Escalated
from tests.cli.running import run

# Each command opens an orchestra of its own.
pytestmark = pytest.mark.slow


@pytest.fixture
def waiting(tmp_path: Path) -> str:
    """The id of a request that waits for a person, in the working folder's database."""

    def fails(_: str) -> str:
        raise ValueError("no")

    async def ask() -> str:
        (tmp_path / "nothing.yaml").touch()
        async with open_orchestra(tmp_path / "orchestra.db", config=tmp_path / "nothing.yaml") as orchestra:
            recovery = Recovery(actions={"agent_failed": Action.ESCALATE})
            await orchestra.register_agent(Agent(id="helpless", kind="function", recovery=recovery), run=fails)
            with pytest.raises(Escalated):
                await orchestra.process_request("is [this/that] \n [/b] mine?", agent_id="helpless")
            (found,) = await orchestra.escalations.find(tenant="default")
            return found.request_id

    return asyncio.run(ask())


def test_a_person_sees_what_waits_and_answers(waiting: str, tmp_path: Path) -> None:
    listed = run("escalations", "list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert waiting in listed.stdout
    assert "helpless" in listed.stdout
    assert "is [this/that] [/b] mine?" in listed.stdout
    (told,) = json.loads(run("escalations", "list", "--json", cwd=tmp_path).stdout)
    assert (told["request_id"], told["agent"], told["cause"]) == (waiting, "helpless", "agent_failed")

    answered = run("escalations", "answer", waiting, "-", "--author", "ada", cwd=tmp_path, given="It is yours.")
    assert (answered.returncode, answered.stdout) == (0, f"answered {waiting} for helpless\n"), answered.stderr

    conversation = run("conversations", "show", told["conversation_id"], cwd=tmp_path)
    assert "It is yours." in conversation.stdout
    assert json.loads(run("escalations", "list", "--json", cwd=tmp_path).stdout) == []
    again = run("escalations", "answer", waiting, "No.", cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr == (
        f"error: request '{waiting}' does not wait for a person: it is SUCCEEDED, settled by ada [not_escalated]\n"
    )


def test_a_person_rejects(waiting: str, tmp_path: Path) -> None:
    wrong = run("escalations", "reject", waiting, " ", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "error: reason: must not be blank [invalid_input]\n")
    rejected = run("escalations", "reject", waiting, "Not for us.", cwd=tmp_path)
    assert (rejected.returncode, rejected.stdout) == (0, f"rejected {waiting}\n"), rejected.stderr
    assert "request_not_found" in run("escalations", "reject", "nothing", "No.", cwd=tmp_path).stderr
