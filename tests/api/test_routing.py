"""Decisions over HTTP: what one tells, where it is found again, what each stage does, and what bad input comes to."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from agent_orchestra.core.access import Scope
from agent_orchestra.core.routing import Choice
from agent_orchestra.runtime.router import RouteRequest
from tests.adapters.encoders.graphs import made
from tests.api.functions import echo
from tests.api.serving import Served, problem_of, serving
from tests.services.replay import Answer, ReplayServer
from tests.services.service import PROJECT, running_service
from tests.services.waiting import wait_until

ENCODER: Final = PROJECT.parent / "shared" / "encoder"
MODEL: Final = "openai:gpt-4o"

BILLING: Final[Mapping[str, Any]] = {
    "description": "Explains invoices, refunds payments and changes how customers pay.",
    "capabilities": ("explain an invoice", "refund a payment"),
    "keywords": ("invoice", "refund"),
}
TRAVEL: Final[Mapping[str, Any]] = {
    "description": "Books flights and hotels.",
    "capabilities": ("book a flight", "find a hotel"),
    "keywords": ("flight", "hotel"),
}
#: Nothing that any agent speaks of.
FOREIGN: Final = "zzz qqq"

DECISION: Final = {
    *("id", "agent", "confidence", "stage", "reason", "candidates", "margin", "secondary", "in_scope", "explored"),
    *("propensity", "policy", "degraded", "ms", "content", "conversation_id", "executed", "created_at"),
}


async def has_two(served: Served) -> None:
    await served.has("billing", echo, **BILLING)
    await served.has("travel", echo, **TRAVEL)
    await wait_until_followed(served)


async def wait_until_followed(served: Served) -> None:
    """Returns once requests are compared with all agents that there are; to report is to wait for that."""
    await served.orchestra.routing.report(tenant="default")


async def decide(served: Served, content: str, **body: Any) -> dict[str, Any]:
    """The decision on a request that must have one."""
    response = await served.client.post("/v1/route", json={"content": content, **body})
    assert response.status_code == 200, response.text
    decision: dict[str, Any] = response.json()
    return decision


async def asked_to_decide(served: Served, content: str, **body: Any) -> httpx.Response:
    return await served.client.post("/v1/route", json={"content": content, **body})


async def found(served: Served, decision_id: str) -> dict[str, Any]:
    response = await served.client.get(f"/v1/decisions/{decision_id}")
    assert response.status_code == 200, response.text
    decision: dict[str, Any] = response.json()
    return decision


async def routing_status(served: Served) -> dict[str, Any]:
    status: dict[str, Any] = (await served.client.get("/v1/status")).json()["routing"]
    return status


async def bearer(served: Served, tenant: str, *scopes: Scope) -> dict[str, str]:
    _, text = await served.orchestra.keys.create(tenant, scopes)
    return {"Authorization": f"Bearer {text}"}


# --- to decide without carrying out


async def test_a_decision_tells_all_about_itself_and_carries_nothing_out(served: Served) -> None:
    asked: list[str] = []
    await served.has("billing", asked.append, **BILLING)
    await served.has("travel", asked.append, **TRAVEL)
    await wait_until_followed(served)
    decision = await decide(served, "please refund my invoice")
    assert set(decision) == DECISION
    assert (decision["agent"], decision["stage"], decision["policy"]) == ("billing", "lexical", "hybrid/0")
    assert decision["candidates"][0]["agent"] == "billing"
    assert decision["confidence"] == decision["candidates"][0]["confidence"]
    assert 0 < decision["confidence"] <= 1
    assert 0 < decision["in_scope"] <= 1
    assert decision["margin"] > 0
    matched = decision["candidates"][0]["matched"]
    assert matched["text"]
    assert matched["text"] in decision["reason"]
    assert (decision["degraded"], decision["explored"], decision["propensity"]) == ([], False, 1.0)
    assert decision["ms"] >= 0
    assert (decision["content"], decision["conversation_id"]) == ("please refund my invoice", None)
    assert decision["executed"] is False
    assert asked == []
    assert (await served.client.get("/v1/conversations")).json()["items"] == []
    problem_of(await served.client.get(f"/v1/requests/{decision['id']}"), 404, "request_not_found")


async def test_a_decision_that_was_only_asked_for_is_on_record(served: Served) -> None:
    await has_two(served)
    decision = await decide(served, "please refund my invoice")
    assert await found(served, decision["id"]) == decision
    listed = (await served.client.get("/v1/decisions")).json()
    assert listed == {"items": [decision], "next": None}


async def test_names_and_capabilities_decide_before_any_estimate(served: Served) -> None:
    await has_two(served)
    named = await decide(served, "please refund my invoice", agent_id="travel")
    assert (named["agent"], named["stage"], named["confidence"]) == ("travel", "explicit", 1.0)
    able = await decide(served, "please refund my invoice", capability="Book a Flight")
    assert (able["agent"], able["stage"]) == ("travel", "capability")


async def test_a_decision_is_made_as_the_next_message_of_a_conversation(served: Served) -> None:
    await has_two(served)
    conversation_id = (await served.answer("please refund my invoice"))["conversation_id"]
    before = (await served.client.get(f"/v1/conversations/{conversation_id}")).json()
    decision = await decide(served, "and then", conversation_id=conversation_id)
    assert (decision["agent"], decision["stage"]) == ("billing", "conversation")
    assert decision["conversation_id"] == conversation_id
    assert (await found(served, decision["id"])) == decision
    assert (await served.client.get(f"/v1/conversations/{conversation_id}")).json() == before


async def test_a_custom_router_is_told_what_a_conversation_knows() -> None:
    async with serving(routing={"custom": f"{__name__}:telling"}) as served:
        await has_two(served)
        talk = {"id": "talk", "user_id": "ann", "context": {"plan": "gold", "lang": "de"}}
        await served.client.post("/v1/conversations", json=talk)
        await served.answer("hello", conversation_id="talk", agent_id="billing")
        decision = await decide(served, "go on", conversation_id="talk", context={"lang": "en"})
    assert json.loads(decision["reason"]) == {
        "user": "ann",
        "context": {"plan": "gold", "lang": "en"},
        "active": "billing",
        "history": ["hello", "hello"],
    }


async def test_what_cannot_be_decided_is_refused(served: Served) -> None:
    await has_two(served)
    await served.has("off", echo, enabled=False)
    cases: Sequence[tuple[dict[str, Any], int, str]] = (
        ({"content": ""}, 422, "invalid_input"),
        ({"content": " \n\t"}, 422, "invalid_input"),
        ({"content": "nul \0"}, 422, "invalid_input"),
        ({"content": "half \ud83d"}, 422, "invalid_input"),
        ({"content": "x" * 200_001}, 422, "invalid_input"),
        ({"content": None}, 422, "invalid_input"),
        ({"content": 5}, 422, "invalid_input"),
        ({}, 422, "invalid_input"),
        ({"content": "hi", "more": 1}, 422, "invalid_input"),
        ({"content": "hi", "conversation_id": "gone"}, 404, "conversation_not_found"),
        ({"content": "hi", "conversation_id": "no id"}, 422, "invalid_input"),
        ({"content": "hi", "agent_id": "nobody"}, 404, "agent_not_found"),
        ({"content": "hi", "agent_id": "off"}, 409, "agent_disabled"),
        ({"content": "hi", "capability": "to fly"}, 404, "no_agent_matches"),
        ({"content": "hi", "capability": ""}, 422, "invalid_input"),
        ({"content": "hi", "user_id": ""}, 422, "invalid_input"),
        ({"content": "hi", "context": {"nul": "\0"}}, 422, "invalid_input"),
    )
    for body, status, code in cases:
        content = json.dumps(body).encode()
        response = await served.client.post("/v1/route", content=content, headers={"content-type": "application/json"})
        problem_of(response, status, code)
    assert (await served.client.get("/v1/decisions")).json()["items"] == [], "what was refused is no decision"


async def test_a_decision_that_is_not_there_is_not_found(served: Served) -> None:
    problem_of(await served.client.get("/v1/decisions/nothing"), 404, "decision_not_found")
    problem_of(await served.client.get("/v1/decisions/no%20id"), 422, "invalid_input")


# --- decisions of requests, and the list of all


async def test_the_decision_of_a_request_has_its_id(served: Served) -> None:
    await has_two(served)
    answer = await served.answer("please refund my invoice")
    decision = await found(served, answer["request_id"])
    assert set(decision) == DECISION
    assert decision["executed"] is True
    assert (decision["id"], decision["agent"]) == (answer["request_id"], answer["agent"])
    assert decision["content"] == "please refund my invoice"
    assert decision["conversation_id"] == answer["conversation_id"]
    for name in ("confidence", "stage", "reason", "margin", "secondary"):
        assert decision[name] == answer[name], name
    assert decision["candidates"][0]["matched"] == answer["matched"]
    others = [{"agent": c["agent"], "confidence": c["confidence"]} for c in decision["candidates"][1:]]
    assert others == answer["alternatives"]


async def test_a_request_that_failed_has_a_decision_too(served: Served) -> None:
    def fails(_: str) -> str:
        raise ValueError

    await served.has("billing", fails, **BILLING)
    await wait_until_followed(served)
    problem = problem_of(await served.ask("please refund my invoice"), 502, "agent_failed")
    [decision] = (await served.client.get("/v1/decisions")).json()["items"]
    assert (decision["agent"], decision["executed"]) == ("billing", True)
    assert problem.get("request_id") in (None, decision["id"])


async def test_a_request_that_no_agent_fits_tells_the_nearest_and_its_decision(served: Served) -> None:
    await has_two(served)
    problem = problem_of(await served.ask(FOREIGN), 404, "no_agent_matches")
    assert len(problem["nearest"]) <= 3
    assert set(problem["nearest"]) <= {"billing", "travel"}
    decision = await found(served, problem["decision_id"])
    assert (decision["agent"], decision["stage"], decision["confidence"]) == (None, "none", 0.0)
    assert (decision["executed"], decision["content"]) == (False, FOREIGN)
    assert [candidate["agent"] for candidate in decision["candidates"]] == problem["nearest"]
    assert (await served.client.get("/v1/conversations")).json()["items"] == []


async def test_to_decide_on_what_no_agent_fits_is_no_error(served: Served) -> None:
    await has_two(served)
    decision = await decide(served, FOREIGN)
    assert (decision["agent"], decision["stage"], decision["confidence"]) == (None, "none", 0.0)
    assert decision["reason"] == "no agent fits the request"
    assert len(decision["candidates"]) <= 3


async def test_the_fallback_agent_gets_what_fits_nobody() -> None:
    async with serving(orchestrator={"fallback_agent": "reception"}) as served:
        await has_two(served)
        await served.has("reception", echo)
        await wait_until_followed(served)
        decision = await decide(served, FOREIGN)
        assert (decision["agent"], decision["stage"], decision["confidence"]) == ("reception", "fallback", 0.0)
        assert (await decide(served, "please refund my invoice"))["agent"] == "billing"


async def test_decisions_are_listed_newest_first_and_in_pages(served: Served) -> None:
    await has_two(served)
    ids: list[str] = []
    for number in range(3):
        ids.append((await decide(served, f"refund number {number}"))["id"])
        ids.append((await served.answer(f"a flight {number}"))["request_id"])
    listed: list[str] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor is not None:
        params = {"limit": "4"} | ({"cursor": cursor} if cursor else {})
        page = (await served.client.get("/v1/decisions", params=params)).json()
        listed += [item["id"] for item in page["items"]]
        cursor, pages = page["next"], pages + 1
    assert listed == ids[::-1]
    assert pages == 2
    whole = (await served.client.get("/v1/decisions", params={"limit": "6"})).json()
    assert ([item["executed"] for item in whole["items"]], whole["next"]) == ([True, False] * 3, None)
    for wrong in ({"limit": "0"}, {"limit": "501"}, {"limit": "x"}, {"cursor": "no id"}):
        problem_of(await served.client.get("/v1/decisions", params=wrong), 422, "invalid_input")


async def test_tenants_see_no_decisions_of_each_other() -> None:
    async with serving(keys_required=True) as served:
        await has_two(served)
        ann = await bearer(served, "ann", Scope.RUN, Scope.READ)
        bob = await bearer(served, "bob", Scope.RUN, Scope.READ)
        asked = await served.client.post("/v1/route", json={"content": "a refund"}, headers=ann)
        decision = asked.json()
        answer = await served.answer("a refund", headers=ann)
        for decision_id in (decision["id"], answer["request_id"]):
            assert (await served.client.get(f"/v1/decisions/{decision_id}", headers=ann)).status_code == 200
            problem_of(await served.client.get(f"/v1/decisions/{decision_id}", headers=bob), 404, "decision_not_found")
        assert (await served.client.get("/v1/decisions", headers=bob)).json()["items"] == []
        assert len((await served.client.get("/v1/decisions", headers=ann)).json()["items"]) == 2


# --- the operator's rules


async def test_a_rule_wins_over_every_estimate() -> None:
    rules = [
        {"agent": "gone", "phrases": ["refund"]},
        {"agent": "travel", "phrases": ["my refund", "Über-Flug!"]},
        {"agent": "billing", "phrases": ["hotel", "my refund"]},
    ]
    async with serving(routing={"rules": rules}) as served:
        await has_two(served)
        for content, agent, phrase in (
            ("where is MY   refund?", "travel", "my refund"),
            ("die Über, Flug", "travel", "Über-Flug!"),
            ("the hotel's bill", "billing", "hotel"),
        ):
            decision = await decide(served, content)
            assert (decision["agent"], decision["stage"], decision["confidence"]) == (agent, "rule", 1.0), content
            assert decision["candidates"][0]["matched"] == {"kind": "rule", "text": phrase}
            assert phrase in decision["reason"]
        # Part of a word is no phrase, and an agent that is not there has no rules.
        for content, stage in (("hotels", "lexical"), ("a refund", "lexical")):
            assert (await decide(served, content))["stage"] == stage
        assert (await decide(served, "hotel", agent_id="travel"))["stage"] == "explicit"
        assert (await decide(served, "hotel", capability="find a hotel"))["agent"] == "travel"


async def test_a_rule_of_an_agent_that_is_off_does_not_hold() -> None:
    async with serving(routing={"rules": [{"agent": "travel", "phrases": ["refund"]}]}) as served:
        await has_two(served)
        assert (await decide(served, "a refund"))["agent"] == "travel"
        await served.client.patch("/v1/agents/travel", json={"enabled": False})
        decision = await decide(served, "a refund")
        assert (decision["agent"], decision["stage"]) == ("billing", "lexical")


# --- a router of the operator's own


def telling(asked: RouteRequest) -> Choice:
    """Chooses whoever comes first, and tells as its reason what it was given."""
    told = {
        "user": asked.user_id,
        "context": dict(asked.context),
        "active": asked.active_agent,
        "history": [message.content for message in asked.history],
    }
    return Choice(agents=(next(iter(asked.agents)),), confidence=0.75, reason=json.dumps(told))


def choosing(asked: RouteRequest) -> object:
    """Does what the request says: one of the ways in which such a function can go right or wrong."""
    match asked.text:
        case "raise":
            raise ValueError(asked.text)
        case "quit":
            raise SystemExit(3)
        case "dawdle":
            time.sleep(0.5)
            return "travel"
        case "stranger":
            return "nobody"
        case "nonsense":
            return {"agents": 7}
        case "both":
            return ["travel", "billing"]
        case _:
            return None


async def test_the_operators_own_router_chooses_first() -> None:
    rules = [{"agent": "billing", "phrases": ["both"]}]
    async with serving(routing={"custom": f"{__name__}:choosing", "rules": rules}) as served:
        await has_two(served)
        decision = await decide(served, "both")
        assert (decision["agent"], decision["stage"], decision["secondary"]) == ("travel", "custom", ["billing"])
        assert decision["reason"] == "the operator's own router chose it"
        assert (await decide(served, "a refund"))["stage"] == "lexical", "where it has no opinion others decide"
        assert (await decide(served, "both", agent_id="billing"))["stage"] == "explicit"


async def test_an_own_router_that_fails_is_passed_over() -> None:
    codes = {
        "raise": "own_router_raised",
        "quit": "own_router_raised",
        "dawdle": "own_router_timeout",
        "stranger": "own_router_unknown_agent",
        "nonsense": "own_router_invalid",
    }
    custom = {"custom": f"{__name__}:choosing", "custom_timeout": 0.2}
    async with serving(routing=custom, orchestrator={"fallback_agent": "billing"}) as served:
        await has_two(served)
        for content, code in codes.items():
            decision = await decide(served, content)
            assert (decision["agent"], decision["stage"], decision["degraded"]) == ("billing", "fallback", [code])
            answer = await served.answer(content)
            assert (await found(served, answer["request_id"]))["degraded"] == [code]
        assert (await decide(served, "a flight"))["degraded"] == []


@pytest.mark.slow
def test_an_own_router_lies_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "our_router.py").write_text(
        "def route(asked):\n"
        "    if asked.context.get('plan') == 'gold':\n"
        "        return {'agent': 'travel', 'confidence': 0.5, 'reason': 'gold flies'}\n"
    )
    settings = {
        "routing": {"custom": "our_router:route"},
        "agents": [
            {"id": name, "kind": "function", "settings": {"function": "tests.api.functions:echo"}, **of}
            for name, of in (
                ("billing", {"keywords": ["refund"]}),
                ("travel", {"keywords": ["flight"]}),
            )
        ],
    }
    with running_service(tmp_path, settings) as service, httpx.Client(base_url=service.url, timeout=20) as client:
        gold = client.post("/v1/route", json={"content": "a refund", "context": {"plan": "gold"}}).json()
        assert (gold["agent"], gold["stage"], gold["confidence"]) == ("travel", "custom", 0.5)
        assert gold["reason"] == "gold flies"
        plain = client.post("/v1/route", json={"content": "a refund"}).json()
        assert (plain["agent"], plain["stage"]) == ("billing", "lexical")


# --- strategies and encoders


@pytest.mark.parametrize("strategy", ["simple", "semantic", "learned", "llm", "hybrid"])
async def test_every_strategy_decides_without_encoder_and_model(strategy: str) -> None:
    async with serving(orchestrator={"routing_strategy": strategy}) as served:
        await has_two(served)
        decision = await decide(served, "please refund my invoice")
        assert (decision["agent"], decision["stage"]) == ("billing", "lexical")
        assert (decision["policy"], decision["degraded"]) == (f"{strategy}/0", [])
        status = await routing_status(served)
        assert (status["strategy"], status["encoder"], status["fault"]) == (strategy, None, None)
        assert (status["version"], status["learning_fault"]) == (0, None)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["simple", "semantic", "learned", "llm", "hybrid"])
async def test_every_strategy_decides_with_an_encoder(strategy: str) -> None:
    if not ENCODER.is_dir():
        pytest.skip("../shared/encoder is not here")
    async with serving(orchestrator={"routing_strategy": strategy}, routing={"encoder": str(ENCODER)}) as served:
        await has_two(served)
        compares = strategy != "simple"
        # Not one word of it stands in any definition.
        decision = await decide(served, "I want my money back")
        status = await routing_status(served)
        assert status["fault"] is None
        assert bool(status["encoder"]) is compares
        if compares:
            assert (decision["agent"], decision["stage"]) == ("billing", "semantic")
        else:
            assert decision["stage"] in ("none", "lexical")
        assert decision["degraded"] == []


@asynccontextmanager
async def with_encoder(encoder: Path) -> AsyncGenerator[Served]:
    async with serving(routing={"encoder": str(encoder)}) as served:
        await has_two(served)
        yield served


async def test_where_the_encoder_is_not_there_words_are_compared(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    async with with_encoder(missing) as served:
        decision = await decide(served, "please refund my invoice")
        assert (decision["agent"], decision["stage"]) == ("billing", "lexical")
        status = await routing_status(served)
        assert status["encoder"] is None
        assert str(missing) in status["fault"]
        report = (await served.client.get("/v1/routing/report")).json()
        assert report["status"] == status
        assert (await served.client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("broken", ["empty", "no-model", "no-tokenizer", "no-onnx", "no-json", "a-file"])
async def test_where_the_encoder_is_broken_words_are_compared(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "encoder"
    if broken == "a-file":
        folder.write_text("no folder")
    elif broken == "empty":
        folder.mkdir()
    else:
        made(folder)
        if broken == "no-model":
            (folder / "model.onnx").unlink()
        elif broken == "no-tokenizer":
            (folder / "tokenizer.json").unlink()
        elif broken == "no-onnx":
            (folder / "model.onnx").write_bytes(b"not a graph")
        else:
            (folder / "tokenizer.json").write_text("{")
    async with with_encoder(folder) as served:
        assert (await decide(served, "please refund my invoice"))["stage"] == "lexical"
        status = await routing_status(served)
        assert status["encoder"] is None
        assert status["fault"]
        assert "Traceback" not in status["fault"]
        assert "\n" not in status["fault"]


@pytest.mark.slow
async def test_an_encoder_of_a_vendor_that_is_down_leaves_the_words() -> None:
    async with ReplayServer() as vendor:
        vendor.always(Answer.made(500))
        openai = {"base_url": vendor.url, "api_key": "sk-test", "max_wait": 0}
        async with serving(
            routing={"encoder": "openai:text-embedding-3-small"}, providers={"openai": openai}
        ) as served:
            await has_two(served)
            decision = await decide(served, "please refund my invoice")
            assert (decision["agent"], decision["stage"]) == ("billing", "lexical")
            assert decision["degraded"], "it tells that something was missing"
            status = await routing_status(served)
            assert "text-embedding-3-small" in status["encoder"]
            assert status["fault"]


async def test_an_encoder_of_a_vendor_without_a_key_leaves_the_words() -> None:
    async with serving(routing={"encoder": "openai:text-embedding-3-small"}) as served:
        await has_two(served)
        assert (await decide(served, "please refund my invoice"))["stage"] == "lexical"
        assert (await routing_status(served))["fault"]


# --- a model is asked in doubt


def verdict(agent: str, confidence: float = 0.9, **more: object) -> Answer:
    """What OpenAI answers whose model has this opinion."""
    said: dict[str, object] = {"reasoning": "So it seems.", "agent": agent, "secondary": [], "confidence": confidence}
    return completion(json.dumps(said | more))


def completion(text: str) -> Answer:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "chat-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-2024-08-06"}
    usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
    return Answer.made(200, {**head, "choices": [choice], "usage": usage})


@asynccontextmanager
async def judging(
    vendor: ReplayServer, *, strategy: str = "hybrid", llm: Mapping[str, object] | None = None, **routing: object
) -> AsyncGenerator[Served]:
    """An application with a model that is asked whatever the confidence is, unless ``llm`` says else."""
    openai = {"base_url": vendor.url, "api_key": "sk-test", "max_wait": 0}
    async with serving(
        orchestrator={"routing_strategy": strategy},
        routing={"llm": {"model": MODEL, "doubt_from": 0, "doubt_to": 1, "timeout": 20, **(llm or {})}, **routing},
        providers={"openai": openai},
    ) as served:
        await has_two(served)
        yield served


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_a_model_decides_where_there_is_doubt() -> None:
    async with ReplayServer() as vendor, judging(vendor) as served:
        vendor.answer(*_sent(verdict("travel", secondary=["billing"])))
        decision = await decide(served, "please refund my invoice")
        assert (decision["agent"], decision["stage"], decision["confidence"]) == ("travel", "llm", 0.9)
        assert (decision["secondary"], decision["degraded"]) == (["billing"], [])
        assert decision["reason"] == f"{MODEL} chose it: So it seems."
        assert (await routing_status(served))["model"] == MODEL
        assert len(vendor.requests) == 1
        # What is certain is not asked about.
        assert (await decide(served, "please refund my invoice", agent_id="billing"))["stage"] == "explicit"
        assert (await decide(served, "please refund my invoice", capability="book a flight"))["stage"] == "capability"
        assert len(vendor.requests) == 1


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_a_model_may_say_that_nobody_fits() -> None:
    async with ReplayServer() as vendor, judging(vendor) as served:
        vendor.always(verdict("(none)"))
        decision = await decide(served, "please refund my invoice")
        assert (decision["agent"], decision["stage"]) == (None, "none")
        assert decision["candidates"][0]["agent"] == "billing"
        problem = problem_of(await served.ask("please refund my invoice"), 404, "no_agent_matches")
        assert problem["nearest"][0] == "billing"


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_where_there_is_no_doubt_no_model_is_asked() -> None:
    async with ReplayServer() as vendor:
        async with judging(vendor, llm={"doubt_to": 0}) as served:
            assert (await decide(served, "please refund my invoice"))["stage"] == "lexical"
        for strategy in ("simple", "semantic", "learned"):
            async with judging(vendor, strategy=strategy) as served:
                assert (await decide(served, "please refund my invoice"))["stage"] == "lexical"
        assert vendor.requests == []


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_with_the_strategy_llm_a_model_is_asked_always() -> None:
    async with ReplayServer() as vendor, judging(vendor, strategy="llm", llm={"doubt_to": 0}) as served:
        vendor.always(verdict("travel"))
        for content in ("please refund my invoice", FOREIGN):
            decision = await decide(served, content)
            assert (decision["agent"], decision["stage"], decision["policy"]) == ("travel", "llm", "llm/0")


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_where_the_model_has_no_word_the_decision_without_it_stands() -> None:
    failing: Mapping[str, Answer] = {
        "model_server_error": Answer.made(500),
        "model_authentication_failed": Answer.made(401, {"error": {"message": "no", "code": "invalid_api_key"}}),
        "output_invalid": completion(json.dumps({"agent": "somebody"})),
    }
    for code, answer in failing.items():
        async with ReplayServer() as vendor, judging(vendor) as served:
            vendor.always(answer)
            decision = await decide(served, "please refund my invoice")
            assert (decision["agent"], decision["stage"], decision["degraded"]) == ("billing", "lexical", [code])
            executed = await served.answer("please refund my invoice")
            assert (executed["agent"], executed["stage"]) == ("billing", "lexical")
            assert (await found(served, executed["request_id"]))["degraded"] == [code]


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_a_model_that_is_silent_holds_nobody_up() -> None:
    async with ReplayServer() as vendor:
        vendor.answer(*_sent(verdict("travel")))
        async with judging(vendor) as served:
            # What the SDK takes to be imported is not what is tested.
            assert (await decide(served, "please refund my invoice"))["stage"] == "llm"
        async with judging(vendor, llm={"timeout": 0.3}) as served:
            vendor.silence()
            decision = await decide(served, "please refund my invoice")
            assert (decision["agent"], decision["degraded"]) == ("billing", ["model_timeout"])
            await wait_until(lambda: vendor.connections == 0, "the call goes on")


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_a_model_that_keeps_failing_is_left_alone_and_a_budget_is_kept() -> None:
    async with ReplayServer() as vendor, judging(vendor) as served:
        vendor.always(Answer.made(500))
        told = [(await decide(served, "please refund my invoice"))["degraded"] for _ in range(4)]
        assert told == [["model_server_error"]] * 3 + [["judge_paused"]]
        assert len(vendor.requests) == 3
    async with ReplayServer() as vendor, judging(vendor, llm={"calls_per_minute": 2}) as served:
        vendor.always(verdict("travel"))
        told = [(await decide(served, "please refund my invoice"))["stage"] for _ in range(4)]
        assert told == ["llm", "llm", "lexical", "lexical"]
        assert (await decide(served, "please refund my invoice"))["degraded"] == ["judge_budget"]
        assert len(vendor.requests) == 2


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_a_model_that_cannot_be_asked_is_told_of_in_the_status() -> None:
    async with serving(routing={"llm": {"model": MODEL, "doubt_to": 1, "doubt_from": 0}}) as served:
        await has_two(served)
        decision = await decide(served, "please refund my invoice")
        assert (decision["agent"], decision["stage"]) == ("billing", "lexical")
        assert decision["degraded"] == ["provider_key_missing"]
        status = await routing_status(served)
        assert status["model"] == MODEL
        assert "key" in status["model_fault"]


def _sent(answer: Answer) -> tuple[int, bytes, Mapping[str, str]]:
    return answer.status, answer.pieces[0], answer.headers


# --- examples that a model writes


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("model_requests")
async def test_a_model_writes_examples_and_nothing_is_taken_up() -> None:
    async with ReplayServer() as vendor, judging(vendor, llm={"doubt_to": 0}) as served:
        lines = ["refund my invoice please", "a hotel in Rome", "refund my invoice, please!"]
        vendor.always(completion(json.dumps({"utterances": lines})))
        response = await served.client.post("/v1/agents/billing/suggestions", json={"count": 5})
        assert response.status_code == 200, response.text
        first, second = response.json()["suggestions"]
        assert (first["text"], first["goes_to"]) == ("refund my invoice please", "billing")
        assert (second["text"], second["goes_to"]) == ("a hotel in Rome", "travel")
        assert 0 < first["confidence"] <= 1
        assert json.loads(vendor.requests[0].body["messages"][-1]["content"])["wanted"] == 5
        assert (await served.client.get("/v1/agents/billing")).json()["examples"] == []
        for count in (0, 51, "x"):
            refused = await served.client.post("/v1/agents/billing/suggestions", json={"count": count})
            problem_of(refused, 422, "invalid_input")
        refused = await served.client.post("/v1/agents/nobody/suggestions", json={})
        problem_of(refused, 404, "agent_not_found")
        vendor.always(Answer.made(500))
        refused = await served.client.post("/v1/agents/billing/suggestions", json={})
        problem_of(refused, 502, "model_server_error")


async def test_without_a_model_there_are_no_suggestions(served: Served) -> None:
    await has_two(served)
    refused = await served.client.post("/v1/agents/billing/suggestions", json={})
    problem = problem_of(refused, 409, "conflict")
    assert "routing.llm.model" in problem["detail"]


# --- what a registry should know of itself


async def test_agents_with_the_same_text_collide(served: Served) -> None:
    await has_two(served)
    same = {"id": "clone", "kind": "offline", "settings": {"knowledge": ["It is so."]}, **BILLING}
    created = await served.client.post("/v1/agents", json=same)
    assert created.status_code == 201, created.text
    assert any("'billing'" in warning for warning in created.json()["warnings"])
    assert (await served.client.get("/v1/agents/clone")).json()["warnings"] == created.json()["warnings"]
    assert (await served.client.get("/v1/agents/travel")).json()["warnings"] == []

    report = (await served.client.get("/v1/routing/report")).json()
    assert set(report) == {"status", "overlaps", "confusions", "unreachable", "versions", "feedback"}
    worst = report["overlaps"][0]
    assert {worst["agent_id"], worst["other_id"]} == {"billing", "clone"}
    assert worst["similarity"] == pytest.approx(1, abs=0.01)
    assert worst["line"] == worst["other_line"]
    assert report["confusions"], "what each says leads as well to the other"
    for confusion in report["confusions"]:
        assert {confusion["agent_id"], confusion["other_id"]} <= {"billing", "clone", "travel"}
    assert set(report["unreachable"]) <= {"billing", "clone"}
    assert (report["versions"], report["feedback"]) == ([], 0)


async def test_an_agent_that_nothing_leads_to_is_told_so(served: Served) -> None:
    await has_two(served)
    silent = {"id": "silent", "kind": "offline", "settings": {"knowledge": ["It is so."]}}
    created = await served.client.post("/v1/agents", json=silent)
    assert created.status_code == 201, created.text
    assert any("only who names it reaches it" in warning for warning in created.json()["warnings"])
    changed = await served.client.patch("/v1/agents/silent", json={"description": "Waters the plants."})
    assert changed.json()["warnings"] == []
    report = (await served.client.get("/v1/routing/report")).json()
    assert "billing" not in report["unreachable"]


async def test_a_report_on_nobody_is_empty(served: Served) -> None:
    report = (await served.client.get("/v1/routing/report")).json()
    for name in ("overlaps", "confusions", "unreachable", "versions"):
        assert report[name] == [], name


# --- bad input


@pytest.mark.slow
async def test_texts_of_every_kind_have_a_decision(served: Served) -> None:
    await has_two(served)
    texts = (
        "x",
        "?!",
        "\x01\x1b[31mrefund\x7f\x00".replace("\x00", ""),
        "\U0001f600",
        "\u202erefund\u2066",
        "e\u0301\u0301" * 1_000,
        "\ud55c\uad6d\uc5b4 \ud658\ubd88",
        "je voudrais un remboursement",
        "أريد استرداد أموالي",
        "refund " * 28_000,
        "x" * 200_000,
        "\n".join(str(number) for number in range(30_000)),
        "\u2028refund\ufeff",
        "[[[[" * 1_000,
        "'; DROP TABLE decisions; --",
    )
    for text in texts:
        decision = await decide(served, text)
        assert decision["stage"] in ("lexical", "none"), text[:50]
        assert decision["content"] == text
        assert await found(served, decision["id"]) == decision
    assert (await decide(served, "please refund my invoice"))["agent"] == "billing"


@pytest.mark.slow
async def test_texts_of_every_kind_have_a_decision_with_an_encoder() -> None:
    if not ENCODER.is_dir():
        pytest.skip("../shared/encoder is not here")
    async with with_encoder(ENCODER) as served:
        for text in (
            "x",
            "?!",
            "\U0001f600",
            "한국어 환불",
            "أريد استرداد أموالي",
            "refund " * 28_000,
            "x" * 200_000,
            "\x01\x1b",
        ):
            decision = await decide(served, text)
            assert decision["stage"] in ("semantic", "none"), text[:50]
            assert decision["degraded"] == [], text[:50]


async def test_a_body_beyond_the_limit_is_not_read(served: Served) -> None:
    await has_two(served)
    megabyte = await asked_to_decide(served, "x" * 1_000_000)
    assert problem_of(megabyte, 422, "invalid_input")["errors"][0]["path"] == "content"
    problem_of(await asked_to_decide(served, "x" * 3_000_000), 413, "body_too_large")


async def test_a_word_that_is_no_json_is_refused(served: Served) -> None:
    response = await served.client.post("/v1/route", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code in (400, 422), response.text
    assert (await served.client.get("/v1/decisions")).json()["items"] == []


async def test_with_no_agents_there_is_a_decision_for_nobody(served: Served) -> None:
    decision = await decide(served, "please refund my invoice")
    assert (decision["agent"], decision["stage"], decision["candidates"]) == (None, "none", [])
    problem = problem_of(await served.ask("please refund my invoice"), 404, "no_agent_matches")
    assert (problem["nearest"], problem["agents"]) == ([], [])


async def test_one_agent_gets_what_is_its_own(served: Served) -> None:
    await served.has("billing", echo, **BILLING)
    await wait_until_followed(served)
    assert (await decide(served, "please refund my invoice"))["agent"] == "billing"
    assert (await decide(served, FOREIGN))["agent"] is None


async def test_agents_without_a_word_about_them_are_reached_by_name_alone(served: Served) -> None:
    await served.has("one", echo)
    await served.has("two", echo)
    decision = await decide(served, "please refund my invoice")
    assert decision["agent"] is None
    assert (await decide(served, "hi", agent_id="two"))["agent"] == "two"
    await served.has("billing", echo, **BILLING)
    await wait_until_followed(served)
    assert (await decide(served, "please refund my invoice"))["agent"] == "billing"


async def test_of_two_with_the_same_text_the_id_decides_and_before_it_the_priority(served: Served) -> None:
    for agent_id in ("b", "a"):
        await served.has(agent_id, echo, name="Billing", **BILLING)
    await wait_until_followed(served)
    decision = await decide(served, "please refund my invoice")
    assert [candidate["agent"] for candidate in decision["candidates"]] == ["a", "b"]
    assert decision["confidence"] < 0.9, "which of them is right cannot be known"
    assert decision["secondary"] == ["b"]
    await served.client.patch("/v1/agents/b", json={"priority": 1})
    assert (await decide(served, "please refund my invoice"))["agent"] == "b"


async def test_agents_that_differ_in_their_ids_alone_are_equals_too(served: Served) -> None:
    """Of equals the one with the higher priority is chosen, so the registry promises."""
    for preferred, other in (("a", "b"), ("one", "two"), ("two", "one")):
        await served.has(preferred, echo, priority=1, **BILLING)
        await served.has(other, echo, **BILLING)
        await wait_until_followed(served)
        decision = await decide(served, "please refund my invoice")
        assert decision["agent"] == preferred, decision["candidates"]
        for agent_id in (preferred, other):
            await served.client.delete(f"/v1/agents/{agent_id}")


async def test_where_all_are_disabled_nobody_is_chosen(served: Served) -> None:
    await has_two(served)
    assert (await decide(served, "please refund my invoice"))["agent"] == "billing"
    for name in ("billing", "travel"):
        await served.client.patch(f"/v1/agents/{name}", json={"enabled": False})
    decision = await decide(served, "please refund my invoice")
    assert (decision["agent"], decision["stage"], decision["candidates"]) == (None, "none", [])
    problem_of(await asked_to_decide(served, "hi", capability="book a flight"), 404, "no_agent_matches")
    await served.client.patch("/v1/agents/travel", json={"enabled": True})
    decision = await decide(served, "a flight")
    assert decision["agent"] == "travel"
    assert {candidate["agent"] for candidate in decision["candidates"]} == {"travel"}


async def test_agents_that_come_and_go_are_chosen_while_they_are_there(served: Served) -> None:
    """Whoever has registered an agent and asks for it next is answered by it, however busy the machine is."""
    await served.has("travel", echo, **TRAVEL)
    for _ in range(3):
        await served.has("billing", echo, **BILLING)
        assert (await decide(served, "please refund my invoice"))["agent"] == "billing"
        assert (await served.client.delete("/v1/agents/billing")).status_code == 204
        decision = await decide(served, "please refund my invoice")
        assert "billing" not in {candidate["agent"] for candidate in decision["candidates"]}


@pytest.mark.slow
async def test_many_who_ask_at_once_for_a_new_agent_are_all_answered_by_it(served: Served) -> None:
    await served.has("travel", echo, **TRAVEL)
    await wait_until_followed(served)
    await served.has("billing", echo, **BILLING)
    decisions = await asyncio.gather(*(decide(served, f"please refund my invoice {number}") for number in range(100)))
    assert {decision["agent"] for decision in decisions} == {"billing"}


@pytest.mark.slow
async def test_many_decisions_at_once_are_all_on_record(served: Served) -> None:
    await has_two(served)
    contents = [f"a refund {number}" if number % 2 else f"a flight {number}" for number in range(100)]
    decisions = await asyncio.gather(*(decide(served, content) for content in contents))
    for content, decision in zip(contents, decisions, strict=True):
        assert decision["agent"] == ("billing" if "refund" in content else "travel")
    page = (await served.client.get("/v1/decisions", params={"limit": "500"})).json()
    assert {item["id"] for item in page["items"]} == {decision["id"] for decision in decisions}


# --- exploration


@pytest.mark.slow
async def test_decisions_are_explored_at_the_set_rate_and_say_so() -> None:
    async with serving(routing={"exploration": 0.2}) as served:
        await served.has("one", echo, **BILLING)
        await served.has("two", echo, **BILLING)
        await wait_until_followed(served)
        decisions = await asyncio.gather(*(decide(served, "please refund my invoice") for _ in range(100)))
        explored = [decision for decision in decisions if decision["explored"]]
        assert {decision["propensity"] for decision in decisions} == {0.1, 0.9}
        # Half of those that are tried at random are the first again: 10 of 100 on average.
        assert 0 < len(explored) < 40
        [likelier] = {decision["agent"] for decision in decisions if not decision["explored"]}
        [tried] = {decision["agent"] for decision in explored}
        assert {likelier, tried} == {"one", "two"}
        assert likelier in explored[0]["reason"]
        assert await found(served, explored[0]["id"]) == explored[0]
        assert (await decide(served, "hi", agent_id="one"))["propensity"] == 1.0
