"""The laboratory itself: instances do what their script says, and a figure that is missed is told as missed."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest

from agent_orchestra.core.resilience import Recovery
from tests.chaos.agents import Made
from tests.chaos.fleet import Script, running_fleet
from tests.chaos.laboratory import Figure, Laboratory, agent, most_at_once, quantile
from tests.services.waiting import wait_until


@pytest.mark.parametrize(
    ("script", "code", "how"),
    [
        (Script(), "answered", "200"),
        (Script(seconds=0.01, body_seconds=0.01), "answered", "200"),
        (Script(status=503), "agent_unavailable", "503"),
        (Script(failing_share=1.0), "agent_unavailable", "500"),
        (Script(status=429, retry_after=0.5), "agent_unavailable", "429"),
        (Script(garbage=True), "agent_failed", "garbage"),
        (Script(reset="before"), "agent_unavailable", "reset"),
        (Script(reset="middle"), "agent_failed", "reset"),
        (Script(stall=True), "cancelled", "stalled"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_instance_does_what_its_script_says(script: Script, code: str, how: str, tmp_path: Path) -> None:
    async with running_fleet("a") as fleet:
        await fleet.follow(script)
        once = Recovery(attempts=1)
        front = agent(fleet.urls, read_only=False, recovery=once, timeout=0.5 if script.stall else None)
        async with Laboratory(folder=tmp_path, full=False).stage(fleet, front) as stage:
            asked = await stage.ask()
            assert [asked.right, asked.code is None] == [code == "answered"] * 2
            assert stage.made()[0].code == code
            called = (await fleet.calls("a"))[0]
            assert (called.content, called.how) == (asked.content, how)
            assert stage.made()[0].retry_after == script.retry_after


async def test_an_instance_that_listens_no_more_refuses_and_is_found_again_at_the_same_place(tmp_path: Path) -> None:
    async with running_fleet("a") as fleet, Laboratory(folder=tmp_path, full=False).stage(fleet) as stage:
        assert (await stage.ask()).right
        assert await fleet.connections("a") == 1
        await fleet.follow(Script(listening=False))
        assert (await stage.ask()).code == "agent_unavailable"
        assert len(await fleet.calls("a")) == 1
        await fleet.follow(Script())
        assert (await stage.ask()).right


async def test_a_process_that_is_killed_takes_its_instances_with_it_and_no_others(tmp_path: Path) -> None:
    async with running_fleet("a", "b") as fleet, Laboratory(folder=tmp_path, full=False).stage(fleet) as stage:
        assert {one.instance for one in await stage.ask_in_turn(2)} == {"a", "b"}
        fleet.signal("b", signal.SIGKILL)
        await wait_until(lambda: fleet.ended("b"), "the process is still there")
        assert {(one.right, one.instance) for one in await stage.ask_in_turn(4)} == {(True, "a")}


def test_a_figure_is_met_within_its_bounds_and_missed_outside_of_them() -> None:
    assert Figure(name="lost", value=0, at_most=0, at_least=0).met
    assert not Figure(name="lost", value=1, at_most=0, at_least=0).met
    assert not Figure(name="back", value=math.inf, at_most=2).met
    assert not Figure(name="answered", value=99, at_least=100).met
    assert not Figure(name="memory", value=math.nan, at_most=10).met
    assert Figure(name="told", value=7).met
    assert Figure(name="lost", value=0, at_most=0, at_least=0).bound == "0"
    assert Figure(name="back", value=math.inf, unit="s").shown == "never"
    assert Figure(name="p95", value=12.345, unit="ms", at_most=100).shown == "12.3 ms"


def test_what_is_measured_is_counted_right() -> None:
    made = [Made(content="", began=begin, ended=end) for begin, end in ((0, 2), (1, 3), (2, 4), (5, 0))]
    assert most_at_once(made) == 2
    assert most_at_once(made, 0.5) == 3
    assert most_at_once([]) == 0
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(1, 101)), 0.99) == 99
    assert quantile([], 0.99) == 0
