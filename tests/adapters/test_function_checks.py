"""Functions that say whether an instance is well."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import cast

import pytest

from agent_orchestra.adapters.function import FunctionKind
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import AgentFailed, AgentUnavailable, Forbidden, InvalidAgent
from agent_orchestra.runtime.instances import Instance

HERE = "tests.adapters.test_function_checks"
SECRET = "hunter2"
seen: list[threading.Thread] = []


def works(content: str) -> str:
    return content


def works_too(content: str) -> str:
    return content


def well() -> None:
    seen.append(threading.current_thread())


def says_so() -> bool:
    return True


def ill() -> bool:
    return False


async def ill_async() -> bool:
    await asyncio.sleep(0)
    return False


def raises() -> None:
    raise ConnectionError(SECRET)


def quits() -> None:
    raise SystemExit(SECRET)


async def quits_async() -> None:
    raise KeyboardInterrupt(SECRET)


def explains() -> None:
    raise AgentUnavailable("the index is being rebuilt")


def asks(_: str) -> bool:
    return True


async def connected(*, trusted: bool = True, allowed: Sequence[str] = (), **settings: object) -> Sequence[Instance]:
    agent = Agent(id="a", kind="function", settings=cast("JsonObject", settings))
    return await FunctionKind(allowed=allowed).connect(agent, trusted=trusted)


async def checked(name: str) -> None:
    (instance,) = await connected(function=f"{HERE}:works", health=f"{HERE}:{name}")
    assert instance.check is not None
    await instance.check()


async def test_without_a_check_there_is_nothing_to_ask() -> None:
    (instance,) = await connected(function=f"{HERE}:works")
    assert instance.check is None


@pytest.mark.parametrize("name", ["well", "says_so"])
async def test_an_instance_is_well_where_its_check_says_nothing_else(name: str) -> None:
    await checked(name)


async def test_a_check_that_is_not_async_runs_in_a_thread() -> None:
    seen.clear()
    await checked("well")
    assert [thread is not threading.main_thread() for thread in seen] == [True]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ill", "its check gave False"),
        ("ill_async", "its check gave False"),
        ("raises", "its check raised ConnectionError"),
        ("quits_async", "its check raised KeyboardInterrupt"),
        ("explains", "the index is being rebuilt"),
    ],
)
async def test_one_that_is_ill_is_told_without_a_foreign_message(name: str, said: str) -> None:
    with pytest.raises(AgentFailed) as caught:
        await checked(name)
    assert caught.value.detail == said


async def test_a_check_that_would_end_the_program_fails() -> None:
    with pytest.raises(AgentFailed) as caught:
        await checked("quits")
    assert "SystemExit" in caught.value.detail
    assert SECRET not in caught.value.detail


async def test_one_check_is_for_all_and_several_are_one_each() -> None:
    functions = [f"{HERE}:works", f"{HERE}:works_too"]
    first, second = await connected(function=functions, health=f"{HERE}:ill")
    for instance in (first, second):
        assert instance.check is not None
        with pytest.raises(AgentFailed):
            await instance.check()
    first, second = await connected(function=functions, health=[f"{HERE}:says_so", f"{HERE}:ill"])
    assert first.check is not None
    assert second.check is not None
    await first.check()
    with pytest.raises(AgentFailed):
        await second.check()


@pytest.mark.parametrize(
    ("health", "said"),
    [
        ([f"{HERE}:well"] * 3, "settings.health: has 3 entries for 2 functions; give one for all, or one for each"),
        ([], "settings.health: must be 'module:function', or a list of 1 to 64 of them"),
        (None, "settings.health: must be 'module:function'"),
        ("well", "settings.health: 'well' is not of the form 'module:function'"),
        (f"{HERE}:wel", f"settings.health: module '{HERE}' has no 'wel'"),
        (f"{HERE}:asks", f"settings.health: '{HERE}:asks' must be callable without an argument"),
    ],
)
async def test_a_wrong_check_is_refused_with_its_place(health: object, said: str) -> None:
    with pytest.raises(InvalidAgent) as caught:
        await connected(function=[f"{HERE}:works", f"{HERE}:works_too"], health=health)
    assert said in caught.value.detail
    assert [fault.path for fault in caught.value.faults] == ["settings.health"]


async def test_a_caller_may_name_only_what_the_operator_has_allowed() -> None:
    with pytest.raises(Forbidden):
        await connected(trusted=False, allowed=[HERE], function=f"{HERE}:works", health="os:getpid")
    with pytest.raises(Forbidden):
        await connected(trusted=False, allowed=[HERE], function=f"{HERE}:works", health=f"{HERE}:seen.clear")
    (instance,) = await connected(trusted=False, allowed=[HERE], function=f"{HERE}:works", health=f"{HERE}:well")
    assert instance.check is not None
