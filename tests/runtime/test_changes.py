"""Agents change while others change them, other processes start, and what is known of them stays known."""

from __future__ import annotations

import asyncio
import types
from pathlib import Path

import pytest
from sqlalchemy import select, update

from agent_orchestra import open_orchestra
from agent_orchestra.adapters.function import FunctionKind
from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.database import open_database
from agent_orchestra.core.agent import Agent, Limits, Status
from agent_orchestra.errors import AgentFailed, ConversationBusy, Forbidden, InvalidInput, NoInstanceAvailable
from agent_orchestra.runtime.orchestra import Orchestra
from tests.runtime.parts import Gate, Lines, opened
from tests.services.waiting import wait_until

OFFLINE = Agent(id="notes", kind="offline", keywords=("snow",), settings={"knowledge": ["Snow is white."]})


def _echo(content: str) -> str:
    return content


async def test_two_changes_at_once_are_both_made(tmp_path: Path) -> None:
    async with opened(tmp_path, configured=[OFFLINE]) as parts:
        orchestra = parts.orchestra
        await asyncio.gather(
            orchestra.enable_agent("notes", enabled=False), orchestra.change_agent("notes", priority=5)
        )
        agent = orchestra.get_agent("notes").agent
        assert (agent.enabled, agent.priority) == (False, 5)


async def test_a_change_of_words_keeps_what_is_known_of_the_instances(tmp_path: Path) -> None:
    def fails(_: str) -> str:
        raise LookupError

    async with opened(tmp_path) as parts:
        await parts.agent("moody", fails)
        for _ in range(3):
            with pytest.raises(AgentFailed):
                await parts.orchestra.process_request("moody")
        assert parts.registered("moody").status is Status.DEGRADED
        await parts.orchestra.change_agent("moody", description="as bad as before")
        assert parts.registered("moody").status is Status.DEGRADED


async def test_a_limit_holds_over_a_change(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate, concurrency=1)
        first = asyncio.create_task(parts.orchestra.process_request("gate one"))
        await wait_until(lambda: gate.asked("gate one"), "the agent was not asked")
        await parts.orchestra.change_agent("gate", priority=1)
        with pytest.raises(NoInstanceAvailable):
            await parts.orchestra.process_request("gate two")
        gate.let("gate one")
        assert (await first).output == "gate one!"


async def test_processes_that_start_at_once_with_one_configuration_all_start(tmp_path: Path) -> None:
    configured = [
        Agent(id=f"a{number}", kind="offline", settings={"knowledge": [f"Fact {number}."]}) for number in range(10)
    ]
    async with open_orchestra(tmp_path / "orchestra.db", config=_nothing(tmp_path)):
        pass

    async def start() -> int:
        async with opened(tmp_path, configured=configured) as parts:
            return len(parts.orchestra.get_agents())

    assert await asyncio.gather(*(start() for _ in range(4))) == [10] * 4


def _nothing(folder: Path) -> Path:
    path = folder / "nothing.yaml"
    path.touch()
    return path


async def test_a_definition_of_a_newer_release_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    async with opened(tmp_path, configured=[OFFLINE]):
        pass
    database = await open_database(f"sqlite:///{tmp_path / 'orchestra.db'}")
    try:
        async with database.write() as connection:
            row = (await connection.execute(select(tables.agents.c.definition))).scalar_one()
            newer = {**row, "role": "conductor", "mood": "good", "limits": {"concurrency": 7, "rate": 3}}
            await connection.execute(update(tables.agents).values(definition=newer))
    finally:
        await database.close()
    async with opened(tmp_path) as parts:
        agent = parts.orchestra.get_agent("notes").agent
        assert agent.limits == Limits(concurrency=7)
        assert (await parts.orchestra.process_request("snow")).agent == "notes"


_SOURCE = """
import os
from os import getlogin as given
class C:
    own = print
def own(content): ...
"""


async def test_callers_may_name_only_functions_that_are_a_modules_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("module_of_a_test")
    exec(
        "import os\nfrom os import getlogin as given\nclass C:\n    own = print\ndef own(content): ...", module.__dict__
    )
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    kind = FunctionKind(allowed=[module.__name__])

    def agent(attribute: str) -> Agent:
        return Agent(id="f", kind="function", settings={"function": f"module_of_a_test:{attribute}"})

    assert len(await kind.connect(agent("own"), trusted=False)) == 1
    for attribute in ("os.system", "given", "C.own"):
        with pytest.raises(Forbidden):
            await kind.connect(agent(attribute), trusted=False)


class _FullLog(Lines):
    """A log whose disk is full."""

    def info(self, event: str, **fields: object) -> None:
        raise OSError(28, "No space left on device")

    warning = error = info


async def test_a_log_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    def fails(_: str) -> str:
        raise LookupError

    async with open_orchestra(tmp_path / "o.db", config=_nothing(tmp_path), log=_FullLog()) as orchestra:
        await orchestra.register_agent(Agent(id="fails", kind="function"), run=fails)
        await orchestra.register_agent(Agent(id="fine", kind="function"), run=_echo)
        with pytest.raises(AgentFailed):
            await orchestra.process_request("x", agent_id="fails")
        assert (await orchestra.process_request("x", agent_id="fine")).output == "x"


async def test_a_file_by_another_name_is_the_same_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        running = asyncio.create_task(parts.orchestra.process_request("gate"))
        await wait_until(lambda: gate.asked("gate"), "the agent was not asked")
        (tmp_path / "link.db").symlink_to(tmp_path / "orchestra.db")
        async with open_orchestra(tmp_path / "link.db", config=_nothing(tmp_path)):
            pass
        gate.let("gate")
        assert (await running).output == "gate!"


async def test_one_conversation_cannot_take_all_the_room(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        gate = Gate()
        await parts.agent("gate", gate)
        await parts.agent("echo", _echo)
        conversation = await parts.orchestra.create_conversation()
        contents = [f"gate {number}" for number in range(80)]
        asking = [asyncio.create_task(parts.orchestra.process_message(conversation.id, text)) for text in contents]
        await wait_until(lambda: any(task.done() for task in asking), "nobody was refused")
        assert (await parts.orchestra.process_request("echo")).output == "echo"
        gate.let(*contents)
        ends = await asyncio.gather(*asking, return_exceptions=True)
        refused = [end for end in ends if isinstance(end, ConversationBusy)]
        assert len(refused) == 80 - 51
        assert not [end for end in ends if isinstance(end, BaseException) and end not in refused]


@pytest.mark.parametrize("given", [{"user_id": "x" * 257}, {"user_id": ""}, {"tenant": "t" * 65}])
async def test_what_is_too_long_to_be_stored_is_refused(orchestra: Orchestra, given: dict[str, str]) -> None:
    await orchestra.register_agent(Agent(id="echo", kind="function"), run=_echo)
    with pytest.raises(InvalidInput):
        await orchestra.process_request("hello", **given)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput):
        await orchestra.create_conversation(**given)  # pyright: ignore[reportArgumentType]
