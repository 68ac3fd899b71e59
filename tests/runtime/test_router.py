"""A decision: which stage makes it, what is not asked because of it, and what is told of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import pytest

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier import Example
from agent_orchestra.core.feedback import Feedback, Source
from agent_orchestra.core.message import Author, Message
from agent_orchestra.core.prompt import Prompt, Wrote
from agent_orchestra.core.request import Reply
from agent_orchestra.core.routing import Choice, Policy, Route, Rule, Stage, Strategy
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import (
    AgentDisabled,
    AgentNotFound,
    DecisionNotFound,
    ModelServerError,
    NoAgentMatches,
    StorageUnavailable,
)
from agent_orchestra.runtime.clock import new_id
from agent_orchestra.runtime.executor import Emit
from agent_orchestra.runtime.judging import Judge
from agent_orchestra.runtime.models import ProviderStatus
from agent_orchestra.runtime.router import OwnRouter, OwnRouterFailed, Question, Router, RouteRequest
from tests.runtime.test_classifying import AGENTS, GARDEN, PATIENT, SHARED, Known, Words, agent, opened

MODEL: Final = "openai:gpt-4o"
ANSWER: Final[JsonObject] = {
    "reasoning": "It is about a trip.",
    "agent": "travel",
    "secondary": ["billing"],
    "confidence": 0.9,
}
#: Every estimate is a doubt, or none is.
IN_DOUBT: Final = Policy(doubt_from=0.0, doubt_to=1.01)
SURE: Final = Policy(doubt_from=0.0, doubt_to=0.0)
RULES: Final = (Rule(agent_id="repairs", phrases=("screen",)), Rule(agent_id="travel", phrases=("refund", "trip")))


class Own:
    """A router of the operator's own that gives, or raises, what it is told. Conforms to :class:`OwnRouter`."""

    def __init__(self, given: Choice | OwnRouterFailed | None) -> None:
        self.given = given
        self.asked: list[RouteRequest] = []

    async def choose(self, request: RouteRequest) -> Choice | None:
        self.asked.append(request)
        if isinstance(self.given, OwnRouterFailed):
            raise self.given
        return self.given


class Oracle:
    """Models that give one answer, or none in time. Conforms to `Models`."""

    def __init__(self, answer: JsonObject | ModelServerError | None = ANSWER) -> None:
        self.answer = answer
        self.asked: list[Prompt] = []

    async def ask(self, model: str, prompt: Prompt, emit: Emit | None = None) -> Reply:
        self.asked.append(prompt)
        if isinstance(self.answer, ModelServerError):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
        return Reply(output=json.dumps(self.answer), value=self.answer)

    async def prepare(self, model: str) -> None: ...

    async def check(self, *, fresh: bool = False) -> Sequence[ProviderStatus]:
        return ()

    @property
    def candidates(self) -> list[str]:
        """The agents that it was told of last, in their order."""
        lines = self.asked[-1].instructions.splitlines()
        return [json.loads(line)["id"] for line in lines if line.startswith("{")]

    @property
    def told(self) -> Any:
        """What it was told of the request."""
        [turn] = self.asked[-1].turns
        assert isinstance(turn, Wrote)
        return json.loads(turn.content)


class Heard:
    """Keeps what is said of decisions, unless it is made unavailable. Conforms to :class:`Listener`."""

    def __init__(self) -> None:
        self.all: list[Feedback] = []
        self.fails = False

    async def hear(self, given: Feedback) -> Feedback:
        if self.fails:
            raise StorageUnavailable("the log of feedback is away")
        self.all.append(given)
        return given


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """A router on real parts, with those that stand in for the world."""

    known: Known
    router: Router
    encoder: Words
    oracle: Oracle
    heard: Heard

    async def decide(self, text: str, **more: Any) -> Route:
        return await self.router.decide(question(text, **more), self.known.registry.roster(SHARED))

    @property
    def requests_encoded(self) -> int:
        """How often the encoder was asked since the agents are known."""
        return len(self.encoder.asked) - 1


def question(text: str, **more: Any) -> Question:
    return Question(id=new_id(), tenant=SHARED, text=text, **more)


@asynccontextmanager
async def routed(
    folder: Path,
    *,
    agents: Sequence[Agent] = AGENTS,
    policy: Policy | None = None,
    rules: Sequence[Rule] = (),
    own: OwnRouter | None = None,
    oracle: Oracle | None = None,
    timeout: float = PATIENT,
    chance: random.Random | None = None,
) -> AsyncGenerator[Routed]:
    """``oracle``: none where no model may be asked. Agents and vectors are known already."""
    encoder, heard, policy = Words(), Heard(), policy or SURE
    async with opened(folder, encoder, strategy=policy.strategy) as known:
        await known.register(*agents)
        await known.follow()
        router = Router(
            policy=policy,
            classifier=known.classifiers,
            log=known.decisions,
            listener=heard,
            telemetry=known.telemetry,
            rules=rules,
            own=own,
            judge=Judge(oracle, model=MODEL, timeout=timeout, calls_per_minute=1_000, usd_per_day=None)
            if oracle is not None
            else None,
            chance=chance,
        )
        yield Routed(known=known, router=router, encoder=encoder, oracle=oracle or Oracle(), heard=heard)


# --- the stages, in their order


async def test_an_agent_that_is_named_is_chosen_and_nobody_else_is_asked(tmp_path: Path) -> None:
    own, oracle = Own(Choice(agents=("repairs",))), Oracle()
    async with routed(tmp_path, rules=RULES, own=own, oracle=oracle, policy=IN_DOUBT) as by:
        await by.known.confirm("refund a payment", "repairs")
        await by.known.follow()
        found = await by.decide("refund a payment", agent_id="billing")
        assert (found.primary.agent_id, found.stage, found.primary.confidence) == ("billing", Stage.EXPLICIT, 1.0)
        assert (own.asked, oracle.asked, by.requests_encoded) == ([], [], 0)


async def test_the_only_agent_of_a_capability_is_chosen_and_nobody_else_is_asked(tmp_path: Path) -> None:
    own, oracle = Own(Choice(agents=("repairs",))), Oracle()
    async with routed(tmp_path, rules=RULES, own=own, oracle=oracle, policy=IN_DOUBT) as by:
        found = await by.decide("refund a payment", capability="Book a Flight")
        assert (found.primary.agent_id, found.stage) == ("travel", Stage.CAPABILITY)
        assert (own.asked, oracle.asked, by.requests_encoded) == ([], [], 0)


async def test_the_operators_own_router_comes_before_rules_memory_and_estimates(tmp_path: Path) -> None:
    own, oracle = Own(Choice(agents=("repairs", "billing"), confidence=0.75, reason="by plan")), Oracle()
    async with routed(tmp_path, rules=RULES, own=own, oracle=oracle, policy=IN_DOUBT) as by:
        await by.known.confirm("refund a payment", "travel")
        await by.known.follow()
        found = await by.decide("refund a payment")
        assert (found.primary.agent_id, found.stage, found.reason) == ("repairs", Stage.CUSTOM, "by plan")
        assert (found.primary.confidence, found.secondary) == (0.75, ("billing",))
        assert (oracle.asked, by.requests_encoded) == ([], 0)


async def test_a_rule_comes_before_memory_and_estimates(tmp_path: Path) -> None:
    own, oracle = Own(None), Oracle()
    async with routed(tmp_path, rules=RULES, own=own, oracle=oracle, policy=IN_DOUBT) as by:
        await by.known.confirm("refund a payment", "billing")
        await by.known.follow()
        found = await by.decide("refund a payment")
        assert (found.primary.agent_id, found.stage) == ("travel", Stage.RULE)
        assert found.primary.matched is not None
        assert (found.primary.matched.kind, found.primary.matched.text) == ("rule", "refund")
        assert (len(own.asked), oracle.asked, by.requests_encoded) == (1, [], 0)


async def test_a_confirmed_request_comes_before_estimates(tmp_path: Path) -> None:
    oracle = Oracle()
    async with routed(tmp_path, rules=RULES, oracle=oracle, policy=IN_DOUBT) as by:
        await by.known.confirm("Explain an invoice!", "repairs")
        await by.known.follow()
        found = await by.decide("explain an INVOICE")
        assert (found.primary.agent_id, found.stage) == ("repairs", Stage.MEMORY)
        assert (oracle.asked, by.requests_encoded) == ([], 0)


async def test_what_is_not_certain_is_estimated(tmp_path: Path) -> None:
    async with routed(tmp_path, rules=RULES) as by:
        found = await by.decide("explain an invoice")
        assert (found.primary.agent_id, found.stage) == ("billing", Stage.SEMANTIC)
        assert found.primary.matched is not None
        assert (found.primary.matched.kind, found.primary.matched.text) == ("capability", "explain an invoice")
        assert by.encoder.asked[1:] == [("explain an invoice",)]


async def test_what_was_learned_is_a_stage_of_its_own_and_the_policy_names_its_version(tmp_path: Path) -> None:
    async with routed(tmp_path) as by:
        taught = [Example(text=f"{word} the quarterly figures", agent_id="billing") for word in "a b c d".split()]
        await by.known.teach(*taught, encoder=by.encoder)
        await by.known.follow()
        found = await by.decide("e the quarterly figures")
        assert (found.primary.agent_id, found.stage, found.policy) == ("billing", Stage.LEARNED, "hybrid/1")


async def test_rules_and_memory_lead_to_nobody_who_is_not_there(tmp_path: Path) -> None:
    async with routed(tmp_path, rules=RULES) as by:
        await by.known.confirm("explain an invoice, no refund for the screen", "travel")
        for agent_id in ("travel", "repairs"):
            await by.known.registry.change(SHARED, agent_id, enabled=False)
        await by.known.follow()
        found = await by.decide("explain an invoice, no refund for the screen")
        assert (found.primary.agent_id, found.stage) == ("billing", Stage.SEMANTIC)


async def test_a_choice_of_agents_who_are_not_there_is_none(tmp_path: Path) -> None:
    async with routed(tmp_path, own=Own(Choice(agents=("repairs",)))) as by:
        await by.known.registry.change(SHARED, "repairs", enabled=False)
        await by.known.follow()
        found = await by.decide("explain an invoice")
        assert found.stage is Stage.SEMANTIC


async def test_a_capability_narrows_every_stage(tmp_path: Path) -> None:
    agents = (agent("one", "answer", "book a flight"), agent("two", "answer", "water the roses"), *AGENTS)
    own = Own(None)
    async with routed(tmp_path, agents=agents, rules=RULES, own=own) as by:
        found = await by.decide("refund: water the roses", capability="answer")
        assert (found.primary.agent_id, found.stage) == ("two", Stage.CAPABILITY)
        assert set(own.asked[0].agents) == {"one", "two"}
        assert {candidate.agent_id for candidate in found.candidates} <= {"one", "two"}


async def test_the_operators_own_router_is_given_what_there_is_to_know(tmp_path: Path) -> None:
    own = Own(None)
    history = [Message(id="m1", seq=1, author=Author.ASSISTANT, content="Where to?", created_ms=1)]
    async with routed(tmp_path, own=own) as by:
        await by.known.registry.change(SHARED, "repairs", enabled=False)
        await by.decide("to Rome", user_id="ann", context={"plan": "gold"}, active_agent="travel", history=history)
        [asked] = own.asked
        assert (asked.text, asked.user_id, asked.context, asked.active_agent) == (
            "to Rome",
            "ann",
            {"plan": "gold"},
            "travel",
        )
        assert set(asked.agents) == {"billing", "travel"}
        assert asked.history == history


# --- what is named and cannot be


@pytest.mark.parametrize(
    ("agent_id", "error"), [("biling", AgentNotFound), ("repairs", AgentDisabled)], ids=["unknown", "disabled"]
)
async def test_an_agent_that_is_named_and_cannot_answer_is_an_error(
    tmp_path: Path, agent_id: str, error: type[Exception]
) -> None:
    async with routed(tmp_path) as by:
        await by.known.registry.change(SHARED, "repairs", enabled=False)
        with pytest.raises(error):
            await by.decide("refund a payment", agent_id=agent_id)


async def test_a_capability_that_nobody_has_is_an_error(tmp_path: Path) -> None:
    async with routed(tmp_path) as by:
        with pytest.raises(NoAgentMatches, match="sing a song"):
            await by.decide("refund a payment", capability="sing a song")
        assert by.requests_encoded == 0


# --- nobody


async def test_what_fits_nobody_leads_nowhere_with_the_nearest_named_and_on_record(tmp_path: Path) -> None:
    async with routed(tmp_path) as by:
        asked = question("zzz qqq xxx")
        with pytest.raises(NoAgentMatches) as caught:
            await by.router.route(asked, by.known.registry.roster(SHARED))
        assert caught.value.data["decision_id"] == asked.id
        assert {"billing", "repairs", "travel"} == set(cast("list[str]", caught.value.data["nearest"]))
        decision = await by.known.decisions.find(SHARED, asked.id)
        assert (decision.route.stage, decision.executed, decision.text) == (Stage.NONE, False, "zzz qqq xxx")


async def test_what_fits_nobody_goes_to_the_fallback_agent(tmp_path: Path) -> None:
    async with routed(tmp_path, policy=dataclasses.replace(SURE, fallback="repairs")) as by:
        found = await by.router.route(question("zzz qqq xxx"), by.known.registry.roster(SHARED))
        assert (found.primary.agent_id, found.stage, found.primary.confidence) == ("repairs", Stage.FALLBACK, 0.0)


async def test_without_agents_there_is_nobody(tmp_path: Path) -> None:
    async with routed(tmp_path, agents=(), rules=RULES, own=Own(Choice(agents=("billing",)))) as by:
        found = await by.decide("refund a payment")
        assert (found.stage, found.candidates) == (Stage.NONE, ())


async def test_to_decide_puts_nothing_on_record(tmp_path: Path) -> None:
    async with routed(tmp_path) as by:
        asked = question("explain an invoice")
        found = await by.router.decide(asked, by.known.registry.roster(SHARED))
        with pytest.raises(DecisionNotFound):
            await by.known.decisions.find(SHARED, asked.id)
        await by.router.record(asked, found)
        assert (await by.known.decisions.find(SHARED, asked.id)).route == found


# --- a model's word


async def test_in_doubt_a_model_is_asked_and_decides(tmp_path: Path) -> None:
    oracle = Oracle()
    async with routed(tmp_path, oracle=oracle, policy=IN_DOUBT) as by:
        found = await by.decide("explain an invoice")
        assert (found.primary.agent_id, found.primary.confidence, found.stage) == ("travel", 0.9, Stage.LLM)
        assert (found.secondary, found.degraded) == (("billing",), ())
        assert "It is about a trip." in found.reason


async def test_what_a_model_decides_is_kept_as_feedback(tmp_path: Path) -> None:
    async with routed(tmp_path, oracle=Oracle(), policy=IN_DOUBT) as by:
        asked = question("explain an invoice")
        await by.router.decide(asked, by.known.registry.roster(SHARED))
        [entry] = by.heard.all
        assert (entry.tenant, entry.decision_id, entry.text) == (SHARED, asked.id, "explain an invoice")
        assert (entry.agent_id, entry.source, entry.author) == ("travel", Source.LLM, MODEL)


async def test_where_there_is_no_doubt_no_model_is_asked(tmp_path: Path) -> None:
    oracle = Oracle()
    async with routed(tmp_path, oracle=oracle, policy=SURE) as by:
        assert (await by.decide("explain an invoice")).stage is Stage.SEMANTIC
        assert (oracle.asked, by.heard.all) == ([], [])


@pytest.mark.parametrize("strategy", [Strategy.SIMPLE, Strategy.SEMANTIC, Strategy.LEARNED])
async def test_other_strategies_ask_no_model(tmp_path: Path, strategy: Strategy) -> None:
    oracle = Oracle()
    async with routed(tmp_path, oracle=oracle, policy=dataclasses.replace(IN_DOUBT, strategy=strategy)) as by:
        assert (await by.decide("explain an invoice")).primary.agent_id == "billing"
        assert oracle.asked == []


async def test_a_strategy_may_ask_a_model_always_and_of_others_too(tmp_path: Path) -> None:
    oracle = Oracle()
    agents = [*AGENTS, GARDEN, *(agent(f"other{number}", f"do thing {number}") for number in range(5))]
    policy = dataclasses.replace(SURE, strategy=Strategy.LLM, fallback="garden")
    async with routed(tmp_path, agents=agents, oracle=oracle, policy=policy) as by:
        assert (await by.decide("book a flight")).stage is Stage.LLM
        assert oracle.candidates[0] == "travel"
        assert len(oracle.candidates) == len(set(oracle.candidates)) == 5
        assert "garden" not in oracle.candidates


async def test_a_model_is_told_of_the_likeliest_and_of_the_conversation(tmp_path: Path) -> None:
    oracle = Oracle()
    history = [Message(id="m1", seq=1, author=Author.USER, content="hello", created_ms=1)]
    async with routed(tmp_path, oracle=oracle, policy=IN_DOUBT) as by:
        await by.known.registry.change(SHARED, "repairs", enabled=False)
        await by.decide("explain an invoice", context={"plan": "gold"}, history=history)
        assert oracle.candidates[0] == "billing"
        assert "repairs" not in oracle.candidates
        assert oracle.told == {
            "conversation": [{"from": "user", "text": "hello"}],
            "user_context": {"plan": "gold"},
            "request": "explain an invoice",
        }


async def test_a_model_may_say_that_nobody_fits(tmp_path: Path) -> None:
    oracle = Oracle({**ANSWER, "agent": "(none)"})
    async with routed(tmp_path, oracle=oracle, policy=IN_DOUBT) as by:
        assert (await by.decide("explain an invoice")).stage is Stage.NONE
        assert [entry.agent_id for entry in by.heard.all] == [None]


async def test_where_a_model_says_nobody_the_fallback_agent_answers(tmp_path: Path) -> None:
    oracle = Oracle({**ANSWER, "agent": "(none)"})
    policy = dataclasses.replace(IN_DOUBT, fallback="repairs")
    async with routed(tmp_path, oracle=oracle, policy=policy) as by:
        found = await by.decide("explain an invoice")
        assert (found.primary.agent_id, found.stage) == ("repairs", Stage.FALLBACK)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (ModelServerError("broken"), "model_server_error"),
        ({**ANSWER, "agent": "nobody we know"}, "output_invalid"),
        (None, "model_timeout"),
    ],
    ids=["fails", "nonsense", "silent"],
)
async def test_where_a_model_fails_the_estimate_stands(tmp_path: Path, answer: Any, code: str) -> None:
    async with routed(tmp_path, oracle=Oracle(answer), policy=IN_DOUBT, timeout=0.05) as by:
        found = await by.decide("explain an invoice")
        assert (found.primary.agent_id, found.stage, found.degraded) == ("billing", Stage.SEMANTIC, (code,))
        assert by.heard.all == []
        assert by.known.lines.of("judge_unavailable") == [{"code": code}]


async def test_a_verdict_that_cannot_be_kept_is_a_verdict(tmp_path: Path) -> None:
    async with routed(tmp_path, oracle=Oracle(), policy=IN_DOUBT) as by:
        by.heard.fails = True
        assert (await by.decide("explain an invoice")).stage is Stage.LLM
        assert by.known.lines.of("verdict_not_kept") == [{"code": "storage_unavailable"}]


# --- what was missing


@pytest.mark.parametrize("code", ["own_router_raised", "own_router_timeout"])
async def test_where_the_operators_own_router_fails_the_next_stage_decides(tmp_path: Path, code: str) -> None:
    async with routed(tmp_path, own=Own(OwnRouterFailed(code)), rules=RULES) as by:
        found = await by.decide("my refund")
        assert (found.primary.agent_id, found.stage, found.degraded) == ("travel", Stage.RULE, (code,))
        assert by.known.lines.of("own_router_failed") == [{"code": code, "cause": None}]


async def test_all_that_was_missing_is_told_in_its_order(tmp_path: Path) -> None:
    own, oracle = Own(OwnRouterFailed("own_router_raised")), Oracle(ModelServerError("broken"))
    async with routed(tmp_path, own=own, oracle=oracle, policy=IN_DOUBT) as by:
        by.encoder.fails = True
        found = await by.decide("explain an invoice")
        assert (found.primary.agent_id, found.stage) == ("billing", Stage.LEXICAL)
        assert found.degraded == ("own_router_raised", "encoder_failed", "model_server_error")
        assert "invoice" not in str(by.known.lines.all)


# --- what a decision tells


@pytest.mark.parametrize("strategy", list(Strategy))
async def test_a_decision_names_its_policy(tmp_path: Path, strategy: Strategy) -> None:
    async with routed(tmp_path, policy=dataclasses.replace(SURE, strategy=strategy)) as by:
        found = await by.decide("explain an invoice")
        assert found.policy == f"{strategy}/0"
        assert found.ms > 0
        assert (found.explored, found.propensity) == (False, 1.0)


# --- exploration


async def test_other_agents_are_tried_at_the_rate_that_was_set_with_their_propensities(tmp_path: Path) -> None:
    rate, decisions = 0.2, 1_000
    policy = dataclasses.replace(SURE, exploration=rate)
    agents = (agent("one", "water the roses"), agent("two", "water the roses"), *AGENTS)
    async with routed(tmp_path, agents=agents, policy=policy, chance=random.Random(7)) as by:
        found = [await by.decide("water the roses") for _ in range(decisions)]
    tried = [route for route in found if route.explored]
    kept = [route for route in found if not route.explored]
    [plausible] = {round(rate / route.propensity) for route in tried}
    assert {route.propensity for route in kept} == {1 - rate + rate / plausible}
    assert {route.primary.agent_id for route in kept} == {"one"}
    assert "one" not in {route.primary.agent_id for route in tried}
    # Of a binomial, five standard deviations: of a million seeds less than one falls outside.
    expected = rate * (1 - 1 / plausible)
    assert abs(len(tried) / decisions - expected) < 5 * (expected * (1 - expected) / decisions) ** 0.5


async def test_without_a_rate_nothing_is_tried(tmp_path: Path) -> None:
    async with routed(tmp_path, chance=random.Random(7)) as by:
        found = [await by.decide("explain an invoice") for _ in range(100)]
    assert {(route.primary.agent_id, route.explored, route.propensity) for route in found} == {("billing", False, 1.0)}


async def test_what_is_certain_is_not_explored(tmp_path: Path) -> None:
    policy = dataclasses.replace(IN_DOUBT, exploration=0.2)
    async with routed(tmp_path, policy=policy, rules=RULES, oracle=Oracle(), chance=random.Random(7)) as by:
        found = [await by.decide("my refund") for _ in range(50)]
        found += [await by.decide("anything", agent_id="billing") for _ in range(50)]
        found += [await by.decide("explain an invoice") for _ in range(50)]
    assert {route.stage for route in found} == {Stage.RULE, Stage.EXPLICIT, Stage.LLM}
    assert {(route.explored, route.propensity) for route in found} == {(False, 1.0)}
