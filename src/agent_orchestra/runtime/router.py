"""Gathers what a route is decided from, stage by stage, the cheap ones first, and has it decided."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.feedback import Feedback, Source
from agent_orchestra.core.message import Author, Message
from agent_orchestra.core.routing import (
    Choice,
    Policy,
    Query,
    Route,
    Rule,
    Signals,
    Stage,
    Strategy,
    Verdict,
    able,
    explored,
    judged,
    route,
    ruled,
    wants_verdict,
)
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import AgentDisabled, NoAgentMatches, NoInstanceAvailable, StorageUnavailable
from agent_orchestra.runtime.clock import now_ms
from agent_orchestra.runtime.decisions import Decision, DecisionLog
from agent_orchestra.runtime.judging import Asked, Judge, JudgeUnavailable
from agent_orchestra.runtime.registry import Roster
from agent_orchestra.runtime.telemetry import Telemetry

if TYPE_CHECKING:
    from agent_orchestra.core.classifier import Judgement

__all__ = ["Classified", "Classifier", "Listener", "OwnRouter", "OwnRouterFailed", "Question", "RouteRequest", "Router"]

#: A model is told of so many agents at most.
_MOST_ASKED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be decided: whose request it is, what it says, and what was said before it."""

    id: str
    tenant: str
    text: str
    agent_id: str | None = None
    capability: str | None = None
    conversation_id: str | None = None
    active_agent: str | None = None
    user_id: str | None = None
    context: JsonObject = field(default_factory=dict[str, None])
    history: Sequence[Message] = ()

    @property
    def last_turn(self) -> str:
        """What the assistant said last, empty where it said nothing."""
        return next((m.content for m in reversed(self.history) if m.author is Author.ASSISTANT), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """An estimate, and what it was made from. ``version``: of what was learned, 0 for definitions alone."""

    judgement: Judgement
    stage: Stage
    version: int
    degraded: tuple[str, ...] = ()


class Classifier(Protocol):
    """Estimates whose a text is."""

    async def judge(self, question: Question, roster: Roster, among: Mapping[str, Agent]) -> Classified:
        """The estimate among some agents of the roster. Never raises for what is missing: it says so, and goes on."""
        ...

    async def remembered(self, tenant: str, roster: Roster, text: str) -> str | None:
        """The agent that people have confirmed for the same text."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What a router of the operator's own is given. ``agents``: those that can take the request, by id."""

    text: str
    agents: Mapping[str, Agent]
    user_id: str | None
    context: JsonObject
    active_agent: str | None
    history: Sequence[Message]


class OwnRouterFailed(Exception):
    """A router of the operator's own did not decide: it raised, took too long, or gave what is no choice."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class OwnRouter(Protocol):
    """A router of the operator's own."""

    async def choose(self, request: RouteRequest) -> Choice | None:
        """Its choice, or none where it has no opinion. Raises :class:`OwnRouterFailed`."""
        ...


class Listener(Protocol):
    """Hears what is said of decisions."""

    async def hear(self, given: Feedback) -> Feedback:
        """Keeps an entry of feedback, and gives it as it is kept."""
        ...


class Router:
    """Decides where requests go.

    ``judge``: none where no model may be asked; what it says is told to ``listener``, to be learned from. ``own``: the
    operator's own router. ``chance``: draws what is explored.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        classifier: Classifier,
        log: DecisionLog,
        listener: Listener,
        telemetry: Telemetry,
        rules: Sequence[Rule] = (),
        own: OwnRouter | None = None,
        judge: Judge | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.policy = policy
        self._classifier = classifier
        self._log = log
        self._listener = listener
        self._telemetry = telemetry
        self._rules = rules
        self._own = own
        self._judge = judge
        self._chance = chance or random.Random()  # noqa: S311  nothing here is a secret

    @property
    def may_cost(self) -> bool:
        """Whether a decision may ask a model, which is paid for."""
        return self._judge is not None

    async def route(self, question: Question, roster: Roster) -> Route:
        """The route of a request that is to be carried out.

        Raises what :meth:`decide` raises, and :class:`NoAgentMatches` when none fits; that decision is then on record
        by itself, and its id is in the error's data as ``decision_id``.
        """
        found = await self.decide(question, roster)
        if found.stage is not Stage.NONE:
            return found
        await self.record(question, found)
        nearest = [candidate.agent_id for candidate in found.candidates]
        raise NoAgentMatches(
            "no agent fits the request; name one with 'agent_id' or 'capability', or set orchestrator.fallback_agent",
            nearest=nearest,
            agents=sorted(roster.available)[:20],
            decision_id=question.id,
        )

    async def record(self, question: Question, found: Route) -> Decision:
        """Puts a decision on record that no request carries."""
        decision = Decision(
            id=question.id,
            tenant=question.tenant,
            text=question.text,
            conversation_id=question.conversation_id,
            route=found,
            executed=False,
            created_ms=now_ms(),
        )
        await self._log.record(decision)
        return decision

    async def decide(self, question: Question, roster: Roster) -> Route:
        """The decision, whether or not it leads anywhere; nothing is recorded.

        Raises :class:`AgentNotFound`, :class:`AgentDisabled` or :class:`NoInstanceAvailable` for an agent that was
        named and cannot answer, :class:`NoAgentMatches` for a capability that nobody has.
        """
        began = time.perf_counter()
        if question.agent_id is not None:
            _check_named(question.agent_id, roster)
        query = Query(
            text=question.text,
            agent_id=question.agent_id,
            capability=question.capability,
            active_agent=question.active_agent,
        )
        signals, version, degraded = await self._gather(query, question, roster)
        found = route(query, roster.available, signals, self.policy)
        if self._judge is not None and wants_verdict(found, self.policy):
            found, failed = await self._ask(self._judge, found, question, roster)
            degraded += failed
        found = explored(found, self.policy, self._chance.random())
        return replace(
            found,
            policy=f"{self.policy.strategy}/{version}",
            degraded=degraded,
            ms=round((time.perf_counter() - began) * 1_000, 3),
        )

    async def _gather(self, query: Query, question: Question, roster: Roster) -> tuple[Signals, int, tuple[str, ...]]:
        """What the decision needs, and no more: what is certain makes an estimate needless."""
        if query.agent_id is not None:
            return Signals(), 0, ()
        pool = _pool(question, roster)
        if not pool or (query.capability is not None and len(pool) == 1):
            return Signals(), 0, ()
        degraded: tuple[str, ...] = ()
        if self._own is not None:
            choice, degraded = await self._choice(self._own, question, pool)
            if choice is not None and not pool.keys().isdisjoint(choice.agents):
                return Signals(choice=choice), 0, degraded
        if rule := ruled(question.text, self._rules, pool):
            return Signals(rule=rule), 0, degraded
        remembered = await self._classifier.remembered(question.tenant, roster, question.text)
        # In a conversation the same words may go on with it: "yes, please" is everybody's.
        if remembered in pool and query.active_agent in (None, remembered):
            return Signals(remembered=remembered), 0, degraded
        classified = await self._classifier.judge(question, roster, pool)
        signals = Signals(judgement=classified.judgement, stage=classified.stage)
        return signals, classified.version, degraded + classified.degraded

    async def _choice(
        self, own: OwnRouter, question: Question, pool: Mapping[str, Agent]
    ) -> tuple[Choice | None, tuple[str, ...]]:
        request = RouteRequest(
            text=question.text,
            agents=pool,
            user_id=question.user_id,
            context=question.context,
            active_agent=question.active_agent,
            history=question.history,
        )
        try:
            return await own.choose(request), ()
        except OwnRouterFailed as error:
            cause = error.__cause__
            self._telemetry.warn(
                "own_router_failed", code=error.code, cause=type(cause).__name__ if cause is not None else None
            )
            return None, (error.code,)

    async def _ask(
        self, judge: Judge, found: Route, question: Question, roster: Roster
    ) -> tuple[Route, tuple[str, ...]]:
        """The decision with a model's word; the estimate stands where the model has none."""
        pool = _pool(question, roster)
        candidates = _most_likely(found, pool, self.policy)
        if not candidates:
            return found, ()
        asked = Asked(
            text=question.text,
            candidates=candidates,
            history=question.history,
            user_context=question.context,
        )
        try:
            verdict = await judge.ask(asked)
        except JudgeUnavailable as error:
            self._telemetry.warn("judge_unavailable", code=error.code)
            return found, (error.code,)
        decided = judged(found, verdict, pool, self.policy)
        if decided is not found:
            await self._learn(question, verdict)
        return decided, ()

    async def _learn(self, question: Question, verdict: Verdict) -> None:
        try:
            await self._listener.hear(
                Feedback(
                    tenant=question.tenant,
                    decision_id=question.id,
                    text=question.text,
                    agent_id=verdict.agent_id,
                    source=Source.LLM,
                    author=verdict.model,
                    created_ms=now_ms(),
                )
            )
        except StorageUnavailable as error:
            self._telemetry.warn("verdict_not_kept", code=error.code)


def _pool(question: Question, roster: Roster) -> Mapping[str, Agent]:
    return roster.available if question.capability is None else able(question.capability, roster.available)


def _most_likely(found: Route, pool: Mapping[str, Agent], policy: Policy) -> Sequence[Agent]:
    """The candidates that a model is told of; where it always decides, others fill what is left."""
    likely = [pool[c.agent_id] for c in found.candidates if c.agent_id in pool and c.agent_id != policy.fallback]
    if policy.strategy is Strategy.LLM:
        known = {agent.id for agent in likely}
        others = sorted(pool.values(), key=lambda agent: (-agent.priority, agent.id))
        likely += [agent for agent in others if agent.id not in known and agent.id != policy.fallback]
    return likely[:_MOST_ASKED]


def _check_named(agent_id: str, roster: Roster) -> None:
    named = roster.get(agent_id)
    if not named.agent.enabled:
        raise AgentDisabled(f"agent '{agent_id}' is disabled; enable it, or leave the choice open")
    if agent_id not in roster.available:
        reason = f": {named.fault}" if named.fault else ""
        raise NoInstanceAvailable(f"agent '{agent_id}' is {named.status}{reason}")
