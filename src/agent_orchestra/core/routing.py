"""Which agent a request goes to, and why. A route is decided from values alone; :func:`route` never waits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.values import Json
from agent_orchestra.errors import NoAgentMatches

if TYPE_CHECKING:
    # It brings numpy, which nothing here needs.
    from agent_orchestra.core.classifier import Judgement

__all__ = [
    "Candidate",
    "Choice",
    "Match",
    "Policy",
    "Query",
    "Route",
    "Rule",
    "Signals",
    "Stage",
    "Strategy",
    "Verdict",
    "able",
    "decided_json",
    "explored",
    "judged",
    "normalised",
    "resolve",
    "route",
    "route_json",
    "route_of",
    "ruled",
    "wants_verdict",
]


class Strategy(StrEnum):
    """Which stages there are, beside those of names, capabilities, rules and memory.

    SIMPLE compares words and parts of words with the definitions. SEMANTIC compares meanings too, where there is an
    encoder. LEARNED also uses what examples and feedback have taught. HYBRID asks a model in addition where all that
    leaves a doubt, LLM asks it always.
    """

    SIMPLE = "simple"
    SEMANTIC = "semantic"
    LEARNED = "learned"
    LLM = "llm"
    HYBRID = "hybrid"


class Stage(StrEnum):
    """What decided. NONE: no agent fits, and there was no fallback."""

    EXPLICIT = "explicit"
    CAPABILITY = "capability"
    CUSTOM = "custom"
    RULE = "rule"
    MEMORY = "memory"
    LEXICAL = "lexical"
    SEMANTIC = "semantic"
    LEARNED = "learned"
    CONVERSATION = "conversation"
    LLM = "llm"
    FALLBACK = "fallback"
    NONE = "none"

    @classmethod
    def _missing_(cls, value: object) -> Stage | None:
        # So the floor was called in what the first release wrote.
        return cls.LEXICAL if value == "keywords" else None


_WORD: Final = re.compile(r"[^\W_]+")
#: The stages whose choice is an estimate: only there is anything to explore or to ask a model about.
_ESTIMATED: Final = frozenset({Stage.LEXICAL, Stage.SEMANTIC, Stage.LEARNED})
_MOST_CANDIDATES: Final = 4
#: Candidates worth exploring have at least this share of the best one's probability.
_PLAUSIBLE: Final = 0.1
#: Agents with at least this share of the best one's probability are equals, between which the priority decides.
_EQUAL: Final = 0.9
#: Agents that are likely enough to be of use beside the first one.
_SECONDARY: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What spoke for an agent: a line of its definition, a rule, a confirmed request. ``kind`` says which."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """``confidence``: the probability that this is the right agent, in [0, 1]."""

    agent_id: str
    confidence: float
    matched: Match | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A decision, with all that explains it, and all that another policy needs to be judged by it later.

    ``candidates``: best first; the chosen one is the first, and where the stage is NONE they are the nearest of those
    that do not fit. ``margin``: by how much the first leads the second. ``secondary``: agents that may be needed
    besides. ``in_scope``: the probability that the request is anybody's. ``propensity``: the probability with which
    this policy chose this agent. ``policy``: the strategy, and the version of what was learned that was used, 0 for
    none. ``degraded``: codes of what was missing or failed while it was decided. ``ms``: milliseconds that it took.
    """

    candidates: tuple[Candidate, ...]
    stage: Stage
    reason: str
    margin: float = 1.0
    secondary: tuple[str, ...] = ()
    in_scope: float = 1.0
    explored: bool = False
    propensity: float = 1.0
    policy: str = ""
    degraded: tuple[str, ...] = ()
    ms: float = 0.0

    @property
    def primary(self) -> Candidate:
        return self.candidates[0]

    @property
    def alternatives(self) -> tuple[Candidate, ...]:
        return self.candidates[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a decision is made from. ``active_agent``: who answered last in this conversation."""

    text: str
    agent_id: str | None = None
    capability: str | None = None
    active_agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The operator's word: a request that has one of these phrases, as whole words, goes to this agent."""

    agent_id: str
    phrases: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a router of the operator's own has chosen, best first."""

    agents: tuple[str, ...]
    confidence: float = 1.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a model says of a request. ``agent_id`` is none where it says that nobody fits."""

    agent_id: str | None
    confidence: float
    secondary: tuple[str, ...] = ()
    reasoning: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What was gathered about a request. ``stage``: the kind of scores that ``judgement`` was made from.

    ``rule`` is the phrase that matched, ``remembered`` the agent of a confirmed identical request.
    """

    choice: Choice | None = None
    rule: tuple[Rule, str] | None = None
    remembered: str | None = None
    judgement: Judgement | None = None
    stage: Stage = Stage.LEXICAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How decisions are made. A model is asked where the confidence lies in [``doubt_from``, ``doubt_to``).

    ``exploration``: the share of estimated decisions in which a plausible agent is tried at random.
    """

    strategy: Strategy = Strategy.HYBRID
    fallback: str | None = None
    doubt_from: float = 0.1
    doubt_to: float = 0.7
    exploration: float = 0.0


def route(query: Query, available: Mapping[str, Agent], signals: Signals, policy: Policy) -> Route:
    """The decision, from the agents that can take work and what was gathered.

    The caller's own choice comes first, then the operator's router, rules and the memory, then the estimate; a
    capability narrows the choice for all of them. Gives stage NONE when nothing leads anywhere, and raises
    :class:`NoAgentMatches` for a capability that nobody has.
    """
    if query.agent_id is not None:
        return _explicit(query.agent_id, query.capability, available)
    pool = available if query.capability is None else able(query.capability, available)
    signals = replace(signals, judgement=_within(pool, signals.judgement))
    if certain := _certain(pool, signals):
        return certain
    if query.capability is not None:
        return _by_capability(query, pool, signals)
    judgement = signals.judgement
    if judgement is not None and judgement.stayed:
        return _estimated(pool, signals, Stage.CONVERSATION, "goes on with the conversation")
    if judgement is not None and judgement.accepted:
        return _estimated(pool, signals, signals.stage)
    return _last_resort(query, pool, signals, policy)


def wants_verdict(found: Route, policy: Policy) -> bool:
    """Whether a model is to be asked about an estimate."""
    if policy.strategy is Strategy.LLM:
        return found.stage in _ESTIMATED or found.stage in (Stage.FALLBACK, Stage.NONE, Stage.CONVERSATION)
    if policy.strategy is not Strategy.HYBRID:
        return False
    doubtful = policy.doubt_from <= found.primary.confidence < policy.doubt_to if found.candidates else False
    if found.stage in (Stage.FALLBACK, Stage.NONE):
        return any(policy.doubt_from <= c.confidence for c in found.candidates)
    return doubtful and (found.stage in _ESTIMATED or found.stage is Stage.CONVERSATION)


def judged(found: Route, verdict: Verdict, available: Mapping[str, Agent], policy: Policy) -> Route:
    """The decision once a model has spoken. An agent that is not there is no verdict, and the estimate stands."""
    said = f": {verdict.reasoning}" if verdict.reasoning else ""
    if verdict.agent_id is None:
        nobody = f"{verdict.model} says that no agent fits{said}"
        return _nobody(found.candidates, available, policy, nobody, in_scope=found.in_scope)
    if verdict.agent_id not in available:
        return found
    chosen = Candidate(
        agent_id=verdict.agent_id,
        confidence=_bounded(verdict.confidence),
        matched=next((c.matched for c in found.candidates if c.agent_id == verdict.agent_id), None),
    )
    others = tuple(c for c in found.candidates if c.agent_id != verdict.agent_id)
    return replace(
        found,
        candidates=(chosen, *others)[:_MOST_CANDIDATES],
        stage=Stage.LLM,
        reason=f"{verdict.model} chose it{said}",
        margin=chosen.confidence - max((c.confidence for c in others), default=0.0),
        secondary=tuple(a for a in verdict.secondary if a in available and a != verdict.agent_id),
    )


def explored(found: Route, policy: Policy, chance: float) -> Route:
    """The same decision, or with the rate of the policy one for another plausible agent; both with their propensity.

    ``chance``: uniform in [0, 1). Only estimates are explored.
    """
    rate = policy.exploration
    if rate <= 0.0 or found.stage not in _ESTIMATED:
        return found
    best = found.primary.confidence
    plausible = [c for c in found.candidates if c.confidence >= _PLAUSIBLE * best]
    share = rate / len(plausible)
    drawn = plausible[min(int(chance / share), len(plausible) - 1)] if chance < rate else found.primary
    if drawn is found.primary:
        return replace(found, propensity=1.0 - rate + share)
    rest = tuple(c for c in found.candidates if c is not drawn)
    return replace(
        found,
        candidates=(drawn, *rest),
        explored=True,
        propensity=share,
        reason=f"tried to learn from it: {found.primary.agent_id} is likelier",
        margin=drawn.confidence - best,
    )


def ruled(text: str, rules: Sequence[Rule], available: Mapping[str, Agent]) -> tuple[Rule, str] | None:
    """The first rule of an available agent that a text matches, and the phrase by which."""
    if not rules:
        return None
    said = f" {normalised(text)} "
    for rule in rules:
        if rule.agent_id in available:
            for phrase in rule.phrases:
                if f" {normalised(phrase)} " in said:
                    return rule, phrase
    return None


def able(capability: str, available: Mapping[str, Agent]) -> Mapping[str, Agent]:
    """The agents that have a capability, compared without case. Raises :class:`NoAgentMatches` where none has it."""
    pool = {agent.id: agent for agent in available.values() if _can(agent, capability)}
    if not pool:
        raise NoAgentMatches(
            f"no available agent has the capability '{capability}'",
            capabilities=sorted({c for agent in available.values() for c in agent.capabilities})[:20],
        )
    return pool


def normalised(text: str) -> str:
    """What two texts share that differ in case, space and punctuation alone."""
    return " ".join(_WORD.findall(text.casefold()))


def _explicit(agent_id: str, capability: str | None, available: Mapping[str, Agent]) -> Route:
    agent = available[agent_id]
    if capability is not None and not _can(agent, capability):
        raise NoAgentMatches(
            f"agent '{agent_id}' does not have the capability '{capability}'", capabilities=list(agent.capabilities)
        )
    return _sure(agent_id, Stage.EXPLICIT, "the request names this agent")


def _certain(pool: Mapping[str, Agent], signals: Signals) -> Route | None:
    """What needs no estimate: the operator's router, a rule, a confirmed identical request."""
    if signals.choice is not None and (chosen := [a for a in dict.fromkeys(signals.choice.agents) if a in pool]):
        confidence = _bounded(signals.choice.confidence)
        return Route(
            candidates=tuple(
                Candidate(agent_id=a, confidence=confidence if a == chosen[0] else 0.0)
                for a in chosen[:_MOST_CANDIDATES]
            ),
            stage=Stage.CUSTOM,
            reason=signals.choice.reason or "the operator's own router chose it",
            margin=confidence,
            secondary=tuple(chosen[1:]),
        )
    if signals.rule is not None and signals.rule[0].agent_id in pool:
        rule, phrase = signals.rule
        return _sure(rule.agent_id, Stage.RULE, f"a rule sends '{phrase}' to it", Match(kind="rule", text=phrase))
    if signals.remembered is not None and signals.remembered in pool:
        return _sure(signals.remembered, Stage.MEMORY, "people have confirmed the same request for it")
    return None


def _sure(agent_id: str, stage: Stage, reason: str, matched: Match | None = None) -> Route:
    return Route(
        candidates=(Candidate(agent_id=agent_id, confidence=1.0, matched=matched),), stage=stage, reason=reason
    )


def _by_capability(query: Query, pool: Mapping[str, Agent], signals: Signals) -> Route:
    reason = f"{len(pool)} available {'agent has' if len(pool) == 1 else 'agents have'} the capability"
    reason += f" '{query.capability}'"
    if len(pool) == 1:
        return _sure(next(iter(pool)), Stage.CAPABILITY, reason)
    judgement = signals.judgement
    if judgement is not None and (judgement.accepted or judgement.stayed):
        found = _estimated(pool, signals, Stage.CAPABILITY)
        return replace(found, reason=f"{reason}; {found.reason}")
    equals = sorted(pool.values(), key=lambda a: (a.id != query.active_agent, -a.priority, a.id))
    confidence = round(1 / len(equals), 4)
    return Route(
        candidates=tuple(Candidate(agent_id=a.id, confidence=confidence) for a in equals[:_MOST_CANDIDATES]),
        stage=Stage.CAPABILITY,
        reason=reason
        + ("; already in this conversation" if equals[0].id == query.active_agent else "; highest priority"),
        margin=0.0,
    )


def _within(pool: Mapping[str, Agent], judgement: Judgement | None) -> Judgement | None:
    """The estimate as far as it speaks of these agents; none where it speaks of others only."""
    if judgement is None:
        return None
    ranked = tuple(scored for scored in judgement.ranked if scored.agent_id in pool)
    if not ranked or ranked[0] is judgement.ranked[0]:
        return replace(judgement, ranked=ranked) if ranked else None
    likely = min(judgement.confidence, judgement.in_scope * ranked[0].probability)
    return replace(judgement, ranked=ranked, confidence=likely, stayed=False)


def _estimated(pool: Mapping[str, Agent], signals: Signals, stage: Stage, reason: str = "") -> Route:
    judgement = signals.judgement
    assert judgement is not None
    candidates = _candidates(pool, judgement)
    matched = candidates[0].matched
    if not reason and matched is not None:
        learned = "learned from examples; " if stage is Stage.LEARNED else ""
        reason = f"{learned}nearest to its {matched.kind} '{matched.text}'"
    return Route(
        candidates=candidates,
        stage=stage,
        reason=reason or "the nearest of all",
        margin=round(judgement.margin, 4),
        secondary=tuple(c.agent_id for c in candidates[1:] if c.confidence >= _SECONDARY),
        in_scope=round(judgement.in_scope, 4),
    )


def _candidates(pool: Mapping[str, Agent], judgement: Judgement) -> tuple[Candidate, ...]:
    """The estimate's candidates: the first with its calibrated confidence, the others with their share of the rest.

    Between agents that are about equally likely the priority decides, and the id where nothing does.
    """
    ranked = list(judgement.ranked)
    if not judgement.stayed:
        level = _EQUAL * ranked[0].probability
        ranked.sort(
            key=lambda s: (
                s.probability < level,
                -pool[s.agent_id].priority if s.probability >= level else 0,
                -round(s.probability, 4),
                s.agent_id,
            )
        )
    first, confidence = ranked[0], _bounded(judgement.confidence)
    others = 1.0 - first.probability
    return tuple(
        Candidate(
            agent_id=scored.agent_id,
            confidence=confidence
            if scored is first
            else round(min(confidence, judgement.in_scope * scored.probability if others > 0 else 0.0), 4),
            matched=Match(kind=scored.kind, text=scored.line) if scored.line else None,
        )
        for scored in ranked[:_MOST_CANDIDATES]
    )


def _last_resort(query: Query, pool: Mapping[str, Agent], signals: Signals, policy: Policy) -> Route:
    judgement = signals.judgement
    nearest = _candidates(pool, judgement) if judgement is not None else ()
    in_scope = round(judgement.in_scope, 4) if judgement is not None else 0.0
    if query.active_agent is not None and query.active_agent in pool:
        others = tuple(c for c in nearest if c.agent_id != query.active_agent)
        return Route(
            candidates=(Candidate(agent_id=query.active_agent, confidence=0.5), *others)[:_MOST_CANDIDATES],
            stage=Stage.CONVERSATION,
            reason="nothing points elsewhere, so the conversation stays with its agent",
            margin=0.0,
            in_scope=in_scope,
        )
    return _nobody(nearest, pool, policy, "no agent fits the request", in_scope=in_scope)


def _nobody(
    nearest: Sequence[Candidate], pool: Mapping[str, Agent], policy: Policy, reason: str, *, in_scope: float
) -> Route:
    if policy.fallback is None or policy.fallback not in pool:
        return Route(candidates=tuple(nearest[:3]), stage=Stage.NONE, reason=reason, margin=0.0, in_scope=in_scope)
    others = tuple(c for c in nearest if c.agent_id != policy.fallback)
    return Route(
        candidates=(Candidate(agent_id=policy.fallback, confidence=0.0), *others)[:_MOST_CANDIDATES],
        stage=Stage.FALLBACK,
        reason=f"{reason}, so the fallback agent answers",
        margin=0.0,
        in_scope=in_scope,
    )


def _bounded(confidence: float) -> float:
    return round(min(max(confidence, 0.0), 1.0), 4)


def decided_json(found: Route) -> dict[str, Json]:
    """What an answer tells of the decision that it came by."""
    return {
        "confidence": found.primary.confidence,
        "stage": found.stage,
        "reason": found.reason,
        "matched": _match_json(found.primary.matched),
        "margin": found.margin,
        "alternatives": [{"agent": c.agent_id, "confidence": c.confidence} for c in found.alternatives],
        "secondary": list(found.secondary),
    }


def route_json(found: Route) -> dict[str, Json]:
    """A route as plain JSON: the one form that the record and the interfaces share."""
    return {
        "stage": found.stage,
        "reason": found.reason,
        "candidates": [
            {
                "agent": c.agent_id,
                "confidence": c.confidence,
                "matched": _match_json(c.matched),
            }
            for c in found.candidates
        ],
        "margin": found.margin,
        "secondary": list(found.secondary),
        "in_scope": found.in_scope,
        "explored": found.explored,
        "propensity": found.propensity,
        "policy": found.policy,
        "degraded": list(found.degraded),
        "ms": found.ms,
    }


def _match_json(matched: Match | None) -> Json:
    return None if matched is None else {"kind": matched.kind, "text": matched.text}


def route_of(stored: Mapping[str, Any]) -> Route:
    """The route that :func:`route_json` wrote, or the first release, which wrote pairs of agent and confidence."""
    if stored["candidates"] and isinstance(stored["candidates"][0], list):
        pairs = tuple(Candidate(agent_id=agent, confidence=confidence) for agent, confidence in stored["candidates"])
        return Route(candidates=pairs, stage=Stage(stored["stage"]), reason=stored["reason"])
    candidates = tuple(
        Candidate(
            agent_id=c["agent"],
            confidence=c["confidence"],
            matched=None if c["matched"] is None else Match(kind=c["matched"]["kind"], text=c["matched"]["text"]),
        )
        for c in stored["candidates"]
    )
    return Route(
        candidates=candidates,
        stage=Stage(stored["stage"]),
        reason=stored["reason"],
        margin=stored["margin"],
        secondary=tuple(stored["secondary"]),
        in_scope=stored["in_scope"],
        explored=stored["explored"],
        propensity=stored["propensity"],
        policy=stored["policy"],
        degraded=tuple(stored["degraded"]),
        ms=stored["ms"],
    )


def resolve(action: str, agents: Mapping[str, Agent]) -> Agent:
    """The agent that an action's name means: its id, a capability, or ``id.anything``; priority among equals.

    Raises :class:`NoAgentMatches`.
    """
    if action in agents:
        return agents[action]
    able = sorted((a for a in agents.values() if _can(a, action)), key=lambda a: (-a.priority, a.id))
    if able:
        return able[0]
    owner = action
    while "." in owner:
        owner = owner.rpartition(".")[0]
        if owner in agents:
            return agents[owner]
    raise NoAgentMatches(f"no agent is named '{action}' or has it as a capability")


def _can(agent: Agent, capability: str) -> bool:
    wanted = capability.casefold()
    return any(wanted == own.casefold() for own in agent.capabilities)
