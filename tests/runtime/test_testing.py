"""The tools for the tests of others keep their promises too."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from agent_orchestra import Agent
from agent_orchestra.errors import AgentFailed, ConfigurationError, DeadlineExceeded
from agent_orchestra.runtime.executor import Call
from agent_orchestra.testing import After, ScriptedAgent, temporary_orchestra

AGENT = Agent(id="scripted", kind="function", keywords=("go",))


def call(content: str) -> Call:
    return Call(request_id="r", conversation_id="c", tenant="t", agent=AGENT, content=content)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_scripted_agent_follows_its_script_and_keeps_what_it_was_asked() -> None:
    agent = ScriptedAgent(
        ["one", {"n": 2}, None, ValueError("three"), After(0.0, "four"), After(0.0, KeyError("five"))]
    )
    given: list[object] = []
    for content in "abcdef":
        try:
            given.append(await agent(content, call(content)))
        except (ValueError, KeyError) as error:
            given.append(type(error))
    assert given == ["one", {"n": 2}, None, ValueError, "four", KeyError]
    assert [asked.content for asked in agent.calls] == list("abcdef")


async def test_a_call_beyond_the_script_was_not_expected() -> None:
    agent = ScriptedAgent(["one"])
    await agent("a", call("a"))
    with pytest.raises(AssertionError, match=r"call 2 \('b'\) is not in the script"):
        await agent("b", call("b"))
    assert len(agent.calls) == 2


async def test_a_script_may_be_written_as_it_goes_on() -> None:
    script = (f"answer {number}" for number in range(10**9))
    agent = ScriptedAgent(script)
    assert [await agent("x", call("x")) for _ in range(2)] == ["answer 0", "answer 1"]


async def test_after_waits_so_long() -> None:
    agent = ScriptedAgent([After(0.05, "late"), After(30.0)])
    began = time.monotonic()
    assert await agent("x", call("x")) == "late"
    assert time.monotonic() - began >= 0.045
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agent("x", call("x")), timeout=0.02)


async def test_a_scripted_agent_answers_in_an_orchestra() -> None:
    async with temporary_orchestra(orchestrator={"request_timeout": 0.2}) as orchestra:
        agent = ScriptedAgent(["first", ValueError("no"), After(0.01, "late"), After(30.0)])
        await orchestra.register_agent(AGENT, run=agent)
        assert (await orchestra.process_request("go")).output == "first"
        with pytest.raises(AgentFailed) as caught:
            await orchestra.process_request("go")
        assert caught.value.data == {"cause": "ValueError"}
        assert (await orchestra.process_request("go")).output == "late"
        with pytest.raises(DeadlineExceeded):
            await orchestra.process_request("go")
        with pytest.raises(AgentFailed) as caught:
            await orchestra.process_request("go")
        assert caught.value.data == {"cause": "AssertionError"}


async def test_a_temporary_orchestra_reads_no_file_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orchestra.yaml").write_text("agents: [{id: a, kind: offline, settings: {knowledge: [x]}}]")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    async with temporary_orchestra() as orchestra:
        assert orchestra.get_agents() == []
        assert (await orchestra.health()).storage == {"reachable": True, "migrations": True}
        assert len(names_in(temporary)) == 1
    assert names_in(temporary) == []
    assert names_in(tmp_path) == ["orchestra.yaml", "temporary"]


async def test_temporary_orchestras_know_nothing_of_each_other() -> None:
    async with temporary_orchestra() as one, temporary_orchestra() as two:
        await one.register_agent(AGENT, run=ScriptedAgent(["x"]))
        await one.process_request("go")
        assert two.get_agents() == []
        assert await two.get_conversations() == []


async def test_a_temporary_orchestra_takes_settings_and_refuses_unknown_ones() -> None:
    database = {"synchronous": "FULL"}
    async with temporary_orchestra(orchestrator={"max_output_chars": 3}, database=database) as orchestra:
        await orchestra.register_agent(AGENT, run=ScriptedAgent(["1234"]))
        with pytest.raises(AgentFailed) as caught:
            await orchestra.process_request("go")
        assert caught.value.data == {"cause": "output_too_long"}
    with pytest.raises(ConfigurationError, match=r"'orchestrator\.request_timeuot'; did you mean 'request_timeout'"):
        async with temporary_orchestra(orchestrator={"request_timeuot": 3}):
            pytest.fail("an unknown key was taken")
