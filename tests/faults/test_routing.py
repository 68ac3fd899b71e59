"""The service is killed while it learns and while it is told what was right. What was taken is kept, nobody lingers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest

from tests.services.service import Service, running_service
from tests.services.waiting import wait_for, wait_until

pytestmark = pytest.mark.slow

T = TypeVar("T")

KILLS: Final = 6
#: What a process that fits is started with.
FITS: Final = b"agent_orchestra.adapters.fitting"

VERBS: Final = "order cancel trace return pay check change find book send"
THINGS: Final = "parcel invoice ticket lamp table carpet bicycle phone garden coffee"
#: Enough of them, and enough examples, that a fit takes a while.
AGENTS: Final = tuple(
    {
        "id": thing,
        "kind": "function",
        "description": f"All about {thing}s.",
        "examples": [f"{verb} the {thing} number {number}" for verb in VERBS.split() for number in range(12)],
        "settings": {"function": "tests.api.functions:echo"},
    }
    for thing in THINGS.split()
)


def settings(*, feedback: int, enabled: bool = True) -> Mapping[str, object]:
    return {
        "agents": list(AGENTS),
        "registry": {"refresh_seconds": 0.05},
        "routing": {"learning": {"enabled": enabled, "feedback": feedback, "seconds": 3_600}},
    }


def fitting(service: Service) -> Sequence[int]:
    """The children of a service that fit, by proc(5)."""
    children: list[int] = []
    for task in Path(f"/proc/{service.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            children += map(int, (task / "children").read_text().split())
    return [pid for pid in children if _fits(pid)]


def _fits(pid: int) -> bool:
    try:
        return FITS in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def fit_of(service: Service) -> int:
    """The process that fits, once there is one."""
    await wait_until(lambda: bool(fitting(service)), "nothing is learned", seconds=60)
    return fitting(service)[0]


async def teach(client: httpx.AsyncClient, count: int) -> None:
    """So many corrections, each of a sentence and by a user of its own."""
    for number in range(count):
        thing = AGENTS[number % len(AGENTS)]["id"]
        asked = await client.post("/v1/route", json={"content": f"my {thing} {number}", "agent_id": "parcel"})
        said = {"decision_id": asked.json()["id"], "agent_id": thing, "user_id": f"user-{number}"}
        assert (await client.post("/v1/feedback", json=said)).status_code == 201


async def report_of(client: httpx.AsyncClient) -> Any:
    return (await client.get("/v1/routing/report")).json()


async def decide(client: httpx.AsyncClient, content: str) -> dict[str, Any]:
    response = await client.post("/v1/route", json={"content": content})
    assert response.status_code == 200, response.text
    decision: dict[str, Any] = response.json()
    return decision


@pytest.mark.timeout(240)
async def test_a_service_that_is_killed_while_it_learns_leaves_nobody_behind_and_learns_again(tmp_path: Path) -> None:
    with running_service(tmp_path, settings(feedback=20)) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            await teach(client, 20)
            pid = await fit_of(service)
            service.kill()
            await wait_until(lambda: not _fits(pid), "the process that learns goes on without its service", seconds=60)

            await asyncio.to_thread(service.start)
            assert (await client.get("/readyz")).json()["ready"] is True
            assert (await decide(client, "cancel the lamp"))["agent"] == "lamp"
            report = await wait_for(
                lambda: report_of(client),
                lambda found: bool(found["versions"]),
                "nothing is learned after the restart",
                seconds=90,
            )
            assert report["feedback"] == 20
            assert [version["version"] for version in report["versions"]] == [1]
        assert "Traceback" not in service.read_log()


@pytest.mark.timeout(240)
async def test_a_service_that_is_stopped_while_it_learns_takes_the_work_with_it(tmp_path: Path) -> None:
    with running_service(tmp_path, settings(feedback=20)) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            await teach(client, 20)
            pid = await fit_of(service)
        assert service.stop() == 0, service.read_log()
        assert not _fits(pid)
        assert "Traceback" not in service.read_log()


@pytest.mark.timeout(240)
async def test_a_fit_that_is_killed_leaves_the_service_as_it_was(tmp_path: Path) -> None:
    with running_service(tmp_path, settings(feedback=20)) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            await teach(client, 20)
            os.kill(await fit_of(service), signal.SIGKILL)

            async def status() -> dict[str, Any]:
                return (await client.get("/v1/status")).json()["routing"]

            told = await wait_for(status, lambda found: bool(found["learning_fault"]), "no fault is told", seconds=20)
            assert (told["version"], told["fault"]) == (0, None)
            decision = await decide(client, "cancel the lamp")
            assert (decision["agent"], decision["policy"]) == ("lamp", "hybrid/0")
            assert (await report_of(client))["versions"] == []
        assert "routing_not_learned" in service.read_log()
        assert "Traceback" not in service.read_log()


@pytest.mark.timeout(240)
async def test_feedback_that_was_taken_outlives_kills(tmp_path: Path) -> None:
    chance = random.Random(6)
    taken: list[str] = []
    with running_service(tmp_path, settings(feedback=20, enabled=False)) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            for kill in range(KILLS):
                telling = [asyncio.create_task(_tell(client, f"{kill}-{number}", taken)) for number in range(4)]
                before = len(taken)
                await wait_until(lambda before=before: len(taken) >= before + 5, "nothing is taken", seconds=30)
                # Some moment: in the middle of whatever is going on.
                await asyncio.sleep(chance.uniform(0, 0.03))
                service.kill()
                await asyncio.gather(*telling)
                await asyncio.to_thread(service.start)
            report = await report_of(client)
            # What was kept just before a kill may not have been answered any more.
            assert len(taken) <= report["feedback"] <= len(taken) + 4 * KILLS
            for content in taken:
                decision = await decide(client, content)
                assert (decision["agent"], decision["stage"]) == ("lamp", "memory"), content
        assert len(taken) >= 5 * KILLS
        assert "Traceback" not in service.read_log()


async def _tell(client: httpx.AsyncClient, name: str, taken: list[str]) -> None:
    """Confirms decision after decision until the service is gone; notes the requests whose confirmation was taken."""
    number = 0
    with contextlib.suppress(httpx.TransportError):
        while True:
            number += 1
            content = f"{name} says {number}"
            asked = await client.post("/v1/route", json={"content": content, "agent_id": "lamp"})
            said = {"decision_id": asked.json()["id"], "opinion": "right"}
            if (await client.post("/v1/feedback", json=said)).status_code == 201:
                taken.append(content)


@pytest.mark.timeout(240)
async def test_services_on_one_database_learn_from_each_other(tmp_path: Path) -> None:
    """What one is told, both know; one of them learns it, and both decide by it."""
    (tmp_path / "other").mkdir()
    shared = ("--database", str(tmp_path / "shared.db"))
    with (
        running_service(tmp_path, settings(feedback=20), arguments=shared) as one,
        running_service(tmp_path / "other", settings(feedback=20, enabled=False), arguments=shared) as two,
    ):
        async with (
            httpx.AsyncClient(base_url=one.url, timeout=20) as first,
            httpx.AsyncClient(base_url=two.url, timeout=20) as second,
        ):
            await teach(second, 20)
            for client in (first, second):
                remembered = await wait_for(
                    lambda client=client: decide(client, "my lamp 3"),
                    lambda found: found["stage"] == "memory",
                    "it is not remembered",
                )
                assert remembered["agent"] == "lamp"
                report = await wait_for(
                    lambda client=client: report_of(client),
                    lambda found: found["status"]["version"] == 1,
                    "it does not decide by what was learned",
                )
                assert [version["state"] for version in report["versions"]] == ["active"]
                decision = await decide(client, "cancel the lamp number 3")
                assert (decision["agent"], decision["stage"], decision["policy"]) == ("lamp", "learned", "hybrid/1")
            assert (await second.post("/v1/routing/rollback")).json() == {"active": None}
            await wait_for(
                lambda: decide(first, "cancel the lamp number 3"),
                lambda found: found["policy"] == "hybrid/0",
                "the other goes on with what was rolled back",
            )
        for service in (one, two):
            assert "Traceback" not in service.read_log()
