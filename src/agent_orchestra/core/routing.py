"""Which agent a request goes to, and why. A route is decided from values alone; :func:`route` never waits."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from agent_orchestra.core.agent import Agent
from agent_orchestra.errors import NoAgentMatches

__all__ = ["Candidate", "KeywordIndex", "Query", "Route", "Score", "Stage", "resolve", "route", "terms"]


class Stage(StrEnum):
    """What decided: the caller's own word, a capability, the text's words, the conversation, or the last resort."""

    EXPLICIT = "explicit"
    CAPABILITY = "capability"
    KEYWORDS = "keywords"
    CONVERSATION = "conversation"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """``confidence`` lies in [0, 1]. It orders and compares; it is not yet a calibrated probability."""

    agent_id: str
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The decision: candidates best first (at least one), the stage that decided, and the reason for a person."""

    candidates: tuple[Candidate, ...]
    stage: Stage
    reason: str

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
class Score:
    """How well an agent's own words cover a text: a positive weight, and the words that matched, heaviest first."""

    agent_id: str
    value: float
    matched: tuple[str, ...]


#: How much a word tells, by where the agent's definition has it.
_WEIGHTS: Final = {
    "keywords": 3.0,
    "capabilities": 2.0,
    "name": 1.5,
    "domain": 1.5,
    "examples": 1.0,
    "description": 0.7,
}
#: The share that the agent of the conversation gains: it keeps a close call, and loses a clear one.
_STAY: Final = 1.2
#: The weight at which a lone candidate is believed to 63 %.
_SATURATION: Final = 1.5
_MOST_CANDIDATES: Final = 4

_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS: Final = frozenset(
    """
    a about am an and any are as at be been but by can could did do does for from get had has have hello hey hi how i if
    in into is it its just like me my need no not of on or our please she he should so some tell than thank thanks that
    the their them then there these they this to us very want was we were what when where which who why will with would
    yes you your
    """.split()
)


def terms(text: str) -> Iterator[str]:
    """The words of a text in order, folded: no case, no plural s, no stop words.

    Plurals are folded by the S-stemmer (D. Harman, "How effective is suffixing?", JASIS 42(1), 1991), and by one rule
    more: after a sibilant the ending is "es", so that "crashes" meets "crash".
    """
    for match in _WORD.finditer(text.casefold()):
        word = match.group()
        if word not in _STOP_WORDS:
            yield _singular(word)


@lru_cache(maxsize=8_192)
def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies") and word[-4] not in "ae":
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word[-2] in "us" else word[:-1]


class KeywordIndex:
    """Scores every agent for a text by the words of its definition, weighted by place and by rarity.

    Built once for a set of agents, then read only: a look-up costs in the number of words that match.
    """

    def __init__(self, agents: Iterable[Agent]) -> None:
        postings: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
        count = 0
        for agent in agents:
            count += 1
            for term, weight in _weights(agent).items():
                postings[term].append((agent.id, weight))
        self._postings = {
            term: tuple((agent_id, weight * math.log1p(count / len(entries))) for agent_id, weight in entries)
            for term, entries in postings.items()
        }

    def scores(self, text: str) -> list[Score]:
        """Every agent with a match, best first. An empty list says that no word of the text is anyone's."""
        found: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        for term in dict.fromkeys(terms(text)):
            for agent_id, weight in self._postings.get(term, ()):
                found[agent_id].append((weight, term))
        scores = [
            Score(
                agent_id=agent_id,
                value=math.fsum(weight for weight, _ in hits),
                matched=tuple(term for _, term in sorted(hits, reverse=True)),
            )
            for agent_id, hits in found.items()
        ]
        return sorted(scores, key=lambda score: -score.value)


def _weights(agent: Agent) -> Mapping[str, float]:
    weights: defaultdict[str, float] = defaultdict(float)
    for place, lines in (
        ("keywords", agent.keywords),
        ("capabilities", agent.capabilities),
        ("name", (agent.id, agent.name)),
        ("domain", (agent.domain or "",)),
        ("examples", agent.examples),
        ("description", (agent.description,)),
    ):
        for line in lines:
            words = list(terms(line))
            # A keyword of several words is one clue, shared among them; a sentence is as many clues as it has words.
            shared = math.sqrt(len(words)) if place in ("keywords", "capabilities") else 1.0
            for word in words:
                weights[word] = max(weights[word], _WEIGHTS[place] / shared)
    return weights


def route(query: Query, available: Mapping[str, Agent], scores: Sequence[Score], fallback: str | None) -> Route:
    """The decision, from the agents that can take work and the scores of the text.

    The caller's own choice comes first, then the capability, then the words, then the conversation, then ``fallback``.
    Raises :class:`NoAgentMatches` with the way out when none of them leads anywhere.
    """
    if query.agent_id is not None:
        return _explicit(query.agent_id, query.capability, available)
    pool = available
    if query.capability is not None:
        pool = {agent.id: agent for agent in available.values() if _can(agent, query.capability)}
        if not pool:
            raise NoAgentMatches(
                f"no available agent has the capability '{query.capability}'",
                capabilities=sorted({c for agent in available.values() for c in agent.capabilities})[:20],
            )
    ranked = _ranked(pool, scores, query.active_agent)
    if query.capability is not None:
        return _by_capability(query, pool, ranked)
    if ranked:
        reason = f"matched the words {_quoted(ranked[0].matched[:5])}"
        if ranked[0].agent_id == query.active_agent:
            reason += "; already in this conversation"
        return Route(candidates=_candidates(ranked), stage=Stage.KEYWORDS, reason=reason)
    if query.active_agent is not None and query.active_agent in pool:
        return Route(
            candidates=(Candidate(agent_id=query.active_agent, confidence=0.5),),
            stage=Stage.CONVERSATION,
            reason="no word points elsewhere, so the conversation stays with its agent",
        )
    if fallback is not None and fallback in pool:
        return Route(
            candidates=(Candidate(agent_id=fallback, confidence=0.0),),
            stage=Stage.FALLBACK,
            reason="no agent's words match, so the fallback agent answers",
        )
    raise NoAgentMatches(
        "no agent matches the request; name one with 'agent_id' or 'capability', or set orchestrator.fallback_agent",
        agents=sorted(available)[:20],
    )


def _explicit(agent_id: str, capability: str | None, available: Mapping[str, Agent]) -> Route:
    agent = available[agent_id]
    if capability is not None and not _can(agent, capability):
        raise NoAgentMatches(
            f"agent '{agent_id}' does not have the capability '{capability}'", capabilities=list(agent.capabilities)
        )
    return Route(
        candidates=(Candidate(agent_id=agent_id, confidence=1.0),),
        stage=Stage.EXPLICIT,
        reason="the request names this agent",
    )


def _by_capability(query: Query, pool: Mapping[str, Agent], ranked: Sequence[Score]) -> Route:
    reason = f"{len(pool)} available {'agent has' if len(pool) == 1 else 'agents have'} the capability"
    reason += f" '{query.capability}'"
    if len(pool) == 1:
        candidates = (Candidate(agent_id=next(iter(pool)), confidence=1.0),)
    elif ranked:
        candidates = _candidates(ranked)
        reason += f"; matched the words {_quoted(ranked[0].matched[:5])}"
    else:
        equals = sorted(pool.values(), key=lambda a: (a.id != query.active_agent, -a.priority, a.id))
        confidence = round(1 / len(equals), 4)
        candidates = tuple(Candidate(agent_id=a.id, confidence=confidence) for a in equals[:_MOST_CANDIDATES])
        reason += "; already in this conversation" if equals[0].id == query.active_agent else "; highest priority"
    return Route(candidates=candidates, stage=Stage.CAPABILITY, reason=reason)


def _ranked(pool: Mapping[str, Agent], scores: Sequence[Score], active: str | None) -> list[Score]:
    mine = [
        Score(agent_id=s.agent_id, value=s.value * _STAY, matched=s.matched) if s.agent_id == active else s
        for s in scores
        if s.agent_id in pool
    ]
    return sorted(mine, key=lambda s: (-s.value, -pool[s.agent_id].priority, s.agent_id))


def _candidates(ranked: Sequence[Score]) -> tuple[Candidate, ...]:
    """Confidence is the share of the weight that is an agent's own, damped where there is little weight at all."""
    top = ranked[:_MOST_CANDIDATES]
    total = math.fsum(score.value for score in top)
    return tuple(
        Candidate(
            agent_id=score.agent_id,
            confidence=round(score.value / total * -math.expm1(-score.value / _SATURATION), 4),
        )
        for score in top
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


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)
