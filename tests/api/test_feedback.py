"""What is said of decisions over HTTP, what is remembered of it at once, and what is learned from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import numpy as np
import pytest

from agent_orchestra.core.access import Scope
from tests.adapters.encoders.graphs import ROWS, graph, made
from tests.api.functions import echo
from tests.api.serving import Served, problem_of, serving
from tests.services.replay import Answer, ReplayServer
from tests.services.waiting import wait_for

T = TypeVar("T")

#: The learner looks so often.
QUICKLY: Final = {"refresh_seconds": 0.05}

#: Who knows nothing but these sends none of the sentences below to the right agent.
AGENTS: Final = {
    "kitchen": "Cooks.",
    "garden": "Plants.",
    "garage": "Drives.",
}
WORDS: Final = {
    "kitchen": ("boil fry peel salt", "eggs beans fish soup"),
    "garden": ("water mow trim rake", "lawn hedge roses leaves"),
    "garage": ("fix tow park wash", "car truck tyres engine"),
}
SENTENCES: Final = {
    agent_id: [f"{verb} the {thing}" for verb in verbs.split() for thing in things.split()]
    for agent_id, (verbs, things) in WORDS.items()
}
#: Made of the same words, and said by nobody before.
UNHEARD: Final = {"kitchen": "boil beans and fish", "garden": "mow roses and lawn", "garage": "tow truck and car"}


@asynccontextmanager
async def looking(*, keys_required: bool = False, **sections: Any) -> AsyncGenerator[Served]:
    """An application with three agents whose learner looks often, and that learns nothing unless a section says so."""
    sections.setdefault("routing", {"learning": {"enabled": False}})
    async with serving(keys_required=keys_required, registry=QUICKLY, **sections) as served:
        for agent_id, description in AGENTS.items():
            await served.has(agent_id, echo, description=description)
        await served.orchestra.routing.report(tenant="default")
        yield served


async def decide(served: Served, content: str, **body: Any) -> dict[str, Any]:
    response = await served.client.post("/v1/route", json={"content": content, **body})
    assert response.status_code == 200, response.text
    decision: dict[str, Any] = response.json()
    return decision


async def says(served: Served, decision_id: str, **said: Any) -> httpx.Response:
    return await served.client.post("/v1/feedback", json={"decision_id": decision_id, **said})


async def kept(served: Served, decision_id: str, **said: Any) -> dict[str, Any]:
    """The entry of feedback that must be taken."""
    response = await says(served, decision_id, **said)
    assert response.status_code == 201, response.text
    entry: dict[str, Any] = response.json()
    return entry


async def report_of(served: Served) -> dict[str, Any]:
    report: dict[str, Any] = (await served.client.get("/v1/routing/report")).json()
    return report


async def wait_for_stage(served: Served, content: str, stage: str) -> dict[str, Any]:
    return await wait_for(
        lambda: decide(served, content), lambda decision: decision["stage"] == stage, f"{content!r} is not of {stage}"
    )


# --- what can be said


async def test_an_opinion_is_kept(served: Served) -> None:
    await served.has("kitchen", echo, description="Cooks.", keywords=("soup",))
    await served.has("garden", echo, description="Plants.", keywords=("hedge",))
    decision = await decide(served, "a soup", agent_id="kitchen")
    expected: Sequence[tuple[str, str | None, str | None, str]] = (
        ("right", "kitchen", None, "thumbs"),
        ("wrong", None, "kitchen", "thumbs"),
        ("nobody", None, None, "human"),
    )
    for number, (opinion, agent, rejected, source) in enumerate(expected, start=1):
        entry = await kept(served, decision["id"], opinion=opinion)
        assert set(entry) == {"sequence", "decision_id", "agent", "rejected", "source", "created_at"}
        assert (entry["sequence"], entry["decision_id"]) == (number, decision["id"])
        assert (entry["agent"], entry["rejected"], entry["source"]) == (agent, rejected, source)


async def test_a_correction_is_kept_for_the_decision_of_a_request_too(served: Served) -> None:
    await served.has("kitchen", echo, keywords=("soup",))
    await served.has("garden", echo, keywords=("hedge",))
    answer = await served.answer("a soup", agent_id="kitchen")
    entry = await kept(served, answer["request_id"], agent_id="garden")
    assert (entry["agent"], entry["rejected"], entry["source"]) == ("garden", None, "human")
    handoff = await kept(served, answer["request_id"], agent_id="garden", source="handoff")
    assert handoff["source"] == "handoff"
    outcome = await kept(served, answer["request_id"], opinion="right", source="outcome")
    assert (outcome["source"], outcome["agent"]) == ("outcome", "kitchen")


async def test_of_a_decision_for_nobody_one_can_say_who_it_is_for(served: Served) -> None:
    await served.has("kitchen", echo, keywords=("soup",))
    problem = problem_of(await served.ask("zzz qqq"), 404, "no_agent_matches")
    for opinion in ("right", "wrong"):
        refused = problem_of(await says(served, problem["decision_id"], opinion=opinion), 409, "conflict")
        assert "agent_id" in refused["detail"]
    assert (await kept(served, problem["decision_id"], opinion="nobody"))["agent"] is None
    assert (await kept(served, problem["decision_id"], agent_id="kitchen"))["agent"] == "kitchen"


async def test_feedback_that_means_nothing_is_refused(served: Served) -> None:
    await served.has("kitchen", echo, keywords=("soup",))
    decision_id = (await decide(served, "a soup", agent_id="kitchen"))["id"]
    cases: Sequence[tuple[dict[str, Any], int, str]] = (
        ({"decision_id": "nothing", "opinion": "right"}, 404, "decision_not_found"),
        ({"decision_id": "nothing", "agent_id": "kitchen"}, 404, "decision_not_found"),
        ({"decision_id": decision_id, "agent_id": "nobody"}, 404, "agent_not_found"),
        ({"decision_id": decision_id}, 422, "invalid_input"),
        ({"decision_id": decision_id, "opinion": "right", "agent_id": "kitchen"}, 422, "invalid_input"),
        ({"decision_id": decision_id, "opinion": "splendid"}, 422, "invalid_input"),
        ({"decision_id": decision_id, "opinion": None}, 422, "invalid_input"),
        ({"decision_id": decision_id, "agent_id": None}, 422, "invalid_input"),
        ({"decision_id": decision_id, "opinion": "right", "source": "llm"}, 422, "invalid_input"),
        ({"decision_id": decision_id, "agent_id": "kitchen", "source": "llm"}, 422, "invalid_input"),
        ({"decision_id": decision_id, "agent_id": "kitchen", "source": "thumbs"}, 422, "invalid_input"),
        ({"decision_id": decision_id, "opinion": "right", "user_id": ""}, 422, "invalid_input"),
        ({"decision_id": decision_id, "opinion": "right", "weight": 9}, 422, "invalid_input"),
        ({"decision_id": "no id", "opinion": "right"}, 422, "invalid_input"),
        ({"opinion": "right"}, 422, "invalid_input"),
    )
    for body, status, code in cases:
        problem_of(await served.client.post("/v1/feedback", json=body), status, code)
    assert (await report_of(served))["feedback"] == 0


async def test_tenants_say_nothing_of_each_others_decisions() -> None:
    async with looking(keys_required=True) as served:
        ann, bob = [
            {"Authorization": f"Bearer {(await served.orchestra.keys.create(tenant, [Scope.ADMIN]))[1]}"}
            for tenant in ("ann", "bob")
        ]
        body = {"content": "boil the eggs", "agent_id": "kitchen"}
        decision_id = (await served.client.post("/v1/route", json=body, headers=ann)).json()["id"]
        said = {"decision_id": decision_id, "opinion": "right"}
        problem_of(await served.client.post("/v1/feedback", json=said, headers=bob), 404, "decision_not_found")
        assert (await served.client.post("/v1/feedback", json=said, headers=ann)).status_code == 201
        for headers, count in ((ann, 1), (bob, 0)):
            report = (await served.client.get("/v1/routing/report", headers=headers)).json()
            assert report["feedback"] == count
        # What one has confirmed, the other does not remember.
        plain = {"content": "boil the eggs"}

        async def asked() -> str:
            return (await served.client.post("/v1/route", json=plain, headers=ann)).json()["stage"]

        await wait_for(asked, lambda stage: stage == "memory", "it is not remembered")
        assert (await served.client.post("/v1/route", json=plain, headers=bob)).json()["stage"] != "memory"


# --- what was confirmed is remembered


async def test_a_request_that_was_confirmed_is_remembered() -> None:
    async with looking() as served:
        first = await decide(served, "Boil the eggs!", agent_id="garage")
        await kept(served, first["id"], opinion="right")
        again = await wait_for_stage(served, "  boil THE eggs ", "memory")
        assert (again["agent"], again["confidence"]) == ("garage", 1.0)
        assert again["reason"] == "people have confirmed the same request for it"
        answer = await served.answer("boil the eggs")
        assert (answer["agent"], answer["stage"]) == ("garage", "memory")
        assert (await decide(served, "boil an egg"))["stage"] != "memory"
        assert (await decide(served, "boil the eggs", agent_id="kitchen"))["stage"] == "explicit"
        # Where its agent is gone, so is the memory.
        await served.client.patch("/v1/agents/garage", json={"enabled": False})
        assert (await decide(served, "boil the eggs"))["stage"] != "memory"


async def test_a_request_that_was_corrected_is_remembered_as_long_as_nobody_disputes_it() -> None:
    async with looking() as served:
        first = await decide(served, "boil the eggs", agent_id="garage")
        await kept(served, first["id"], agent_id="kitchen", user_id="ann")
        again = await wait_for_stage(served, "boil the eggs", "memory")
        assert again["agent"] == "kitchen"
        await kept(served, again["id"], agent_id="garden", user_id="bob")
        disputed = await wait_for(
            lambda: decide(served, "boil the eggs"), lambda d: d["stage"] != "memory", "it is remembered yet"
        )
        # Who has said otherwise may change his mind.
        await kept(served, disputed["id"], agent_id="kitchen", user_id="bob")
        assert (await wait_for_stage(served, "boil the eggs", "memory"))["agent"] == "kitchen"


async def test_an_opinion_that_it_was_wrong_disputes_a_memory() -> None:
    async with looking() as served:
        first = await decide(served, "boil the eggs", agent_id="kitchen")
        await kept(served, first["id"], opinion="right", user_id="ann")
        await wait_for_stage(served, "boil the eggs", "memory")
        await kept(served, first["id"], opinion="wrong", user_id="bob")
        await wait_for(
            lambda: decide(served, "boil the eggs"), lambda d: d["stage"] != "memory", "it is remembered yet"
        )


async def test_what_only_an_outcome_says_is_not_remembered() -> None:
    async with looking() as served:
        first = await decide(served, "boil the eggs", agent_id="kitchen")
        await kept(served, first["id"], opinion="right", source="outcome")
        other = await decide(served, "mow the lawn", agent_id="garden")
        await kept(served, other["id"], opinion="right")
        # The second was heard after the first.
        await wait_for_stage(served, "mow the lawn", "memory")
        assert (await decide(served, "boil the eggs"))["stage"] != "memory"


async def test_a_word_that_was_confirmed_in_one_conversation_is_not_taken_out_of_another() -> None:
    """ "Yes, please" is whoever's who has asked."""
    async with looking() as served:
        first = await served.answer("boil the eggs", agent_id="kitchen")
        said = await decide(served, "yes, please", conversation_id=first["conversation_id"])
        assert (said["agent"], said["stage"]) == ("kitchen", "conversation")
        await kept(served, said["id"], opinion="right")
        other = await served.answer("mow the lawn", agent_id="garden")
        marker = await decide(served, "mow the lawn", agent_id="garden")
        await kept(served, marker["id"], opinion="right")
        await wait_for_stage(served, "mow the lawn", "memory")
        elsewhere = await decide(served, "yes, please", conversation_id=other["conversation_id"])
        assert (elsewhere["agent"], elsewhere["stage"]) == ("garden", "conversation")


async def test_feedback_of_many_at_once_is_all_kept(served: Served) -> None:
    await served.has("kitchen", echo, description="Cooks.")
    decisions = await asyncio.gather(*(decide(served, f"soup {n}", agent_id="kitchen") for n in range(40)))
    entries = await asyncio.gather(*(kept(served, decision["id"], opinion="right") for decision in decisions))
    assert sorted(entry["sequence"] for entry in entries) == list(range(1, 41))
    assert (await report_of(served))["feedback"] == 40


async def test_a_long_request_is_remembered_as_a_whole() -> None:
    async with looking() as served:
        long = "boil the eggs " * 5_000
        first = await decide(served, long, agent_id="garage")
        await kept(served, first["id"], opinion="right")
        marker = await decide(served, "mow the lawn", agent_id="garden")
        await kept(served, marker["id"], opinion="right")
        await wait_for_stage(served, "mow the lawn", "memory")
        for length in (1_000, 2_000, 4_000, 8_000, 16_000):
            assert (await decide(served, long[:length]))["stage"] != "memory", "only its beginning was the same"


# --- what is learned


async def teach(served: Served, sentences: Iterable[tuple[str, str]]) -> None:
    """Corrects decisions on sentences, each by a user of its own."""
    for number, (agent_id, content) in enumerate(sentences):
        decision = await decide(served, content)
        await kept(served, decision["id"], agent_id=agent_id, user_id=f"user-{number % 8}")


def lessons(first: int = 0, last: int = 16) -> list[tuple[str, str]]:
    """Sentences with their agents, in turn, so many of each."""
    return [(agent_id, SENTENCES[agent_id][n]) for n in range(first, last) for agent_id in SENTENCES]


async def states(served: Served) -> list[tuple[int, str]]:
    return [(version["version"], version["state"]) for version in (await report_of(served))["versions"]]


async def wait_for_version(served: Served, version: int) -> dict[str, Any]:
    """The report once this version decides."""
    return await wait_for(
        lambda: report_of(served),
        lambda report: report["status"]["version"] == version,
        f"version {version} does not decide",
        seconds=60,
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_what_is_corrected_is_learned_rolled_back_and_not_learned_again() -> None:
    async with looking(routing={"learning": {"feedback": 24, "seconds": 3_600}}) as served:
        problem_of(await served.client.post("/v1/routing/rollback"), 409, "nothing_to_roll_back")
        before = {content: await decide(served, content) for content in UNHEARD.values()}
        assert {decision["policy"] for decision in before.values()} == {"hybrid/0"}

        await teach(served, lessons(0, 8))
        report = await wait_for_version(served, 1)
        [version] = report["versions"]
        assert set(version) == {"version", "state", "encoder", "examples", "loss", "champion_loss", "created_at"}
        assert (version["version"], version["state"], version["encoder"]) == (1, "active", "")
        assert version["examples"] == 24
        assert report["feedback"] == 24
        assert version["loss"] <= version["champion_loss"]
        for agent_id, content in UNHEARD.items():
            decision = await decide(served, content)
            assert (decision["agent"], decision["stage"], decision["policy"]) == (agent_id, "learned", "hybrid/1")
            assert decision["reason"].startswith("learned from examples")
        answer = await served.answer(UNHEARD["garden"])
        assert (answer["agent"], answer["stage"]) == ("garden", "learned")

        await teach(served, lessons(8, 16))
        await wait_for(lambda: states(served), lambda found: len(found) == 2, "nothing was learned anew", seconds=60)
        second = await states(served)
        assert second in ([(2, "active"), (1, "retired")], [(2, "rejected"), (1, "active")])

        # Back to the first where the second decides; then to the definitions; then there is nothing left.
        if second[0] == (2, "active"):
            back = await served.client.post("/v1/routing/rollback")
            assert (back.status_code, back.json()["active"]["version"]) == (200, 1), back.text
            assert (await report_of(served))["feedback"] == 24, "what made the second is set aside"
            assert (await decide(served, UNHEARD["garden"]))["policy"] == "hybrid/1"
            # What was set aside is not remembered either.
            assert (await decide(served, SENTENCES["kitchen"][15]))["stage"] != "memory"
            assert (await decide(served, SENTENCES["kitchen"][0]))["stage"] == "memory"
        back = await served.client.post("/v1/routing/rollback")
        assert (back.status_code, back.json()) == (200, {"active": None}), back.text
        decision = await decide(served, UNHEARD["garden"])
        assert decision["policy"] == "hybrid/0"
        assert decision["stage"] != "learned"
        problem_of(await served.client.post("/v1/routing/rollback"), 409, "nothing_to_roll_back")
        number = len(await states(served))
        after = await report_of(served)
        assert after["feedback"] == (0 if second[0] == (2, "active") else 24)
        # A learner that looks twenty times a second has had every occasion.
        remembered = await decide(served, "tow the boat", agent_id="garage")
        await kept(served, remembered["id"], opinion="right")
        await wait_for_stage(served, "tow the boat", "memory")
        assert len(await states(served)) == number


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_what_was_learned_decides_after_a_restart(tmp_path: Path) -> None:
    database = {"url": f"sqlite:///{tmp_path / 'kept.db'}"}
    learning = {"learning": {"feedback": 24, "seconds": 3_600}}
    async with looking(routing=learning, database=database) as served:
        await teach(served, lessons(0, 8))
        report = await wait_for_version(served, 1)
        before = {content: (await decide(served, content))["agent"] for content in UNHEARD.values()}
    async with looking(routing=learning, database=database) as served:
        again = await report_of(served)
        assert again["versions"] == report["versions"]
        assert (again["feedback"], again["status"]["version"]) == (24, 1)
        for content, agent_id in before.items():
            decision = await decide(served, content)
            assert (decision["agent"], decision["stage"], decision["policy"]) == (agent_id, "learned", "hybrid/1")
        assert (await decide(served, SENTENCES["kitchen"][0]))["stage"] == "memory"
        # A new agent and one that is gone: what was learned of the others holds.
        await served.has("cellar", echo, description="Keeps wine.", keywords=("wine",))
        await served.orchestra.routing.report(tenant="default")
        assert (await decide(served, "a bottle of wine"))["agent"] == "cellar"
        await served.orchestra.unregister_agent("garage")
        assert (await decide(served, UNHEARD["garden"]))["agent"] == "garden"
        gone = await decide(served, UNHEARD["garage"])
        assert "garage" not in {candidate["agent"] for candidate in gone["candidates"]}


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_the_examples_of_agents_are_learned_without_any_feedback() -> None:
    async with serving(registry=QUICKLY) as served:
        for agent_id, description in AGENTS.items():
            await served.has(agent_id, echo, description=description, examples=tuple(SENTENCES[agent_id]))
        report = await wait_for_version(served, 1)
        assert report["versions"][0]["examples"] == 48
        assert report["feedback"] == 0
        for agent_id, content in UNHEARD.items():
            decision = await decide(served, content)
            assert (decision["agent"], decision["stage"]) == (agent_id, "learned")


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_examples_of_one_form_do_not_shut_out_others() -> None:
    """Examples that are all alike, as a model or a form writes them, say nothing against requests in other words."""
    verbs, things = "order cancel trace return pay check".split(), "lamp carpet bicycle phone coffee".split()
    async with serving(routing={"learning": {"enabled": False}}) as served:
        for thing in things:
            examples = tuple(f"{verb} the {thing} number {number}" for verb in verbs for number in range(12))
            await served.has(thing, echo, description=f"All about {thing}s.", examples=examples)
        await served.orchestra.routing.report(tenant="default")
        requests = [f"cancel {form}" for thing in things for form in (thing, f"the {thing} number 99")]
        for version in ("hybrid/0", "hybrid/1"):
            decisions = [await decide(served, content) for content in requests]
            assert {decision["policy"] for decision in decisions} == {version}
            refused = {d["content"]: d["in_scope"] for d in decisions if d["agent"] not in d["content"].split()}
            assert refused == {}, f"{version} sends them elsewhere or nowhere"
            await served.orchestra.routing.refit(tenant="default")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("strategy", ["simple", "semantic"])
async def test_strategies_that_do_not_learn_hear_and_remember(strategy: str) -> None:
    async with looking(
        orchestrator={"routing_strategy": strategy}, routing={"learning": {"feedback": 1, "seconds": 0.1}}
    ) as served:
        await teach(served, lessons(0, 2))
        for agent_id, content in lessons(0, 2):
            assert (await wait_for_stage(served, content, "memory"))["agent"] == agent_id
        report = await report_of(served)
        assert (report["versions"], report["feedback"], report["status"]["version"]) == ([], 6, 0)
        assert report["status"]["learning_fault"] is None


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_fit_that_dies_changes_nothing_and_is_told(tmp_path: Path) -> None:
    async with looking(routing={"learning": {"feedback": 24, "seconds": 3_600}}) as served:
        killer = asyncio.create_task(_kill_fits())
        await teach(served, lessons(0, 8))

        async def fault() -> str | None:
            return (await served.client.get("/v1/status")).json()["routing"]["learning_fault"]

        told = await wait_for(fault, bool, "no fault is told", seconds=60)
        killer.cancel()
        assert "status" in (told or "")
        assert await states(served) == []
        decision = await decide(served, UNHEARD["garden"])
        assert decision["policy"] == "hybrid/0"
        assert (await decide(served, SENTENCES["kitchen"][0]))["stage"] == "memory"
        assert (await served.client.get("/readyz")).status_code == 200


async def _kill_fits() -> None:
    """Ends every process of this one that fits."""
    while True:
        for pid in fits():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.005)


def fits() -> list[int]:
    """Children of this process that fit. As ``proc(5)`` has it."""
    tasks = Path("/proc/self/task")
    children = {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
    return [pid for pid in children if b"agent_orchestra.adapters.fitting" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", ["nobody", "one-agent", "agent-gone", "all-disabled", "twins", "same-for-two"])
async def test_what_is_odd_to_learn_from_is_learned_or_left(case: str) -> None:
    """Whatever was said, to learn ends in a version or in none, and requests are decided after it."""
    async with serving(registry=QUICKLY, routing={"learning": {"enabled": False}}) as served:
        agents = {"one-agent": ["kitchen"]}.get(case, list(AGENTS))
        for agent_id in agents:
            await served.has(agent_id, echo, description="Does it." if case == "twins" else AGENTS[agent_id])
        await served.orchestra.routing.report(tenant="default")
        for agent_id, content in lessons(0, 8):
            if agent_id not in agents:
                continue
            decision = await decide(served, content, agent_id=agent_id)
            right = "kitchen" if case == "same-for-two" and agent_id == "garage" else agent_id
            said = {"opinion": "nobody"} if case == "nobody" else {"agent_id": right}
            await kept(served, decision["id"], **said)
        if case == "agent-gone":
            await served.orchestra.unregister_agent("garage")
        if case == "all-disabled":
            for agent_id in agents:
                await served.client.patch(f"/v1/agents/{agent_id}", json={"enabled": False})
        version = await served.orchestra.routing.refit(tenant="default")
        assert version is None or version.state in ("active", "rejected")
        decision = await decide(served, UNHEARD["kitchen"])
        assert decision["degraded"] == []
        expected = {"nobody": {None}, "all-disabled": {None}}.get(case, {"kitchen"})
        assert decision["agent"] in expected
        assert (await served.client.get("/v1/routing/report")).status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("place", ["elsewhere", "the same folder", "gone"])
async def test_what_was_learned_with_another_encoder_does_not_decide(tmp_path: Path, place: str) -> None:
    database = {"url": f"sqlite:///{tmp_path / 'kept.db'}"}
    learning = {"feedback": 24, "seconds": 3_600}
    first = made(tmp_path / "first")
    async with looking(routing={"encoder": str(first), "learning": learning}, database=database) as served:
        await teach(served, lessons(0, 8))
        report = await wait_for_version(served, 1)
        name = report["versions"][0]["encoder"]
        assert name == report["status"]["encoder"]
    encoder: dict[str, object] = {}
    if place != "gone":
        wider = np.concatenate([ROWS, np.ones((len(ROWS), 2), np.float32)], axis=1)
        encoder["encoder"] = str(made(first if place == "the same folder" else tmp_path / "other", graph(wider)))
    async with looking(routing={**encoder, "learning": learning}, database=database) as served:
        decision = await decide(served, UNHEARD["kitchen"])
        assert decision["stage"] != "none" or decision["candidates"]
        # It is learned anew from what was said, with what there is now.
        report = await wait_for(
            lambda: report_of(served), lambda found: len(found["versions"]) > 1, "it is not learned anew", seconds=60
        )
        assert report["versions"][0]["encoder"] == (report["status"]["encoder"] or "")
        assert report["versions"][0]["encoder"] != name
        assert report["versions"][0]["state"] == "active"
        decision = await decide(served, UNHEARD["kitchen"])
        assert (decision["agent"], decision["stage"], decision["policy"]) == ("kitchen", "learned", "hybrid/2")


# --- what a model has said


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_a_models_verdict_is_kept_as_feedback_and_not_as_memory() -> None:
    async with ReplayServer() as vendor:
        said: dict[str, object] = {"reasoning": "So.", "agent": "garden", "secondary": [], "confidence": 0.9}
        message = {"role": "assistant", "content": json.dumps(said)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        head = {"id": "chat-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-2024-08-06"}
        usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
        vendor.always(Answer.made(200, {**head, "choices": [choice], "usage": usage}))
        async with looking(
            orchestrator={"routing_strategy": "llm"},
            routing={"llm": {"model": "openai:gpt-4o", "timeout": 20}, "learning": {"enabled": False}},
            providers={"openai": {"base_url": vendor.url, "api_key": "sk-test"}},
        ) as served:
            assert (await decide(served, "boil the eggs"))["stage"] == "llm"
            assert (await report_of(served))["feedback"] == 1
            again = await decide(served, "boil the eggs")
            assert (again["agent"], again["stage"]) == ("garden", "llm")
