"""What people, models and outcomes say of decisions, and what is to be learned from it.

Nothing that is said is trusted without bound: a source has a weight, sources and authors may only make up a share of
what is learned of an agent, and who contradicts is weighed against.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from agent_orchestra.core.classifier import Example
from agent_orchestra.core.classifier.arrays import Floats, Ints
from agent_orchestra.core.routing import normalised

__all__ = ["TRUST", "Feedback", "Source", "Trust", "better", "examples_of", "lead", "memory_of", "unseen"]


class Source(StrEnum):
    """Who says it: a person who names the right agent, a thumb, a model, a handoff, the outcome of a request."""

    HUMAN = "human"
    THUMBS = "thumbs"
    LLM = "llm"
    HANDOFF = "handoff"
    OUTCOME = "outcome"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One entry of the append-only log.

    ``agent_id``: the right agent; none says that the request is nobody's, where ``source`` is human or llm, and nothing
    of the right one otherwise. ``rejected``: the agent that was wrong. ``author``: whose word it is, such as the id of
    a key. ``sequence``: its place in the log, 0 until it is kept.
    """

    sequence: int = 0
    tenant: str
    decision_id: str
    text: str
    agent_id: str | None
    rejected: str | None = None
    source: Source
    author: str
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """``weight``: what one word of a source weighs. ``share``: how much of what is learned of an agent it may be."""

    weight: float
    share: float


TRUST: Final[Mapping[Source, Trust]] = {
    Source.HUMAN: Trust(weight=1.0, share=1.0),
    Source.THUMBS: Trust(weight=0.5, share=0.5),
    Source.HANDOFF: Trust(weight=0.5, share=0.5),
    Source.LLM: Trust(weight=0.4, share=0.4),
    Source.OUTCOME: Trust(weight=0.2, share=0.3),
}

#: The share of what is learned of an agent that one author may be.
_AUTHOR_SHARE: Final = 0.5
#: So much weight an agent's examples may have of one source or author, whatever the others say.
_FREE: Final = 20.0
#: Rounds of bringing shares below their caps; each lowers what the others are measured by.
_ROUNDS: Final = 10
#: The most that one text weighs, however many say the same of it.
_HEAVIEST: Final = 2.0
_MOST_EXAMPLES: Final = 20_000
_MOST_REMEMBERED: Final = 10_000
_PEOPLE: Final = (Source.HUMAN, Source.THUMBS)
#: These may say that a request is nobody's; of others a missing agent only means that none is known.
_JUDGES: Final = (Source.HUMAN, Source.LLM)
#: What has less than one chance in fifty is found impossible; by how much says more of the event than of the model.
_WORST_LOSS: Final = 4.0

_Agent: TypeAlias = "str | None"


class _Text(NamedTuple):
    """What holds of a text: whose it is, by how much, and who has said so."""

    text: str
    agent_id: _Agent
    weight: float
    said: Sequence[Feedback]


def examples_of(log: Sequence[Feedback]) -> list[Example]:
    """What is to be learned, one example for each text on which more weight agrees than contradicts, the newest last.

    Later words of an author on a text replace earlier ones. No source and no author has more than its share of an
    agent's examples, beyond a weight that is free. Only the newest 20,000 texts count.
    """
    texts = [found for said in _by_text(log).values() if (found := _agreed(said)) is not None][-_MOST_EXAMPLES:]
    weights = [found.weight for found in texts]
    of_agent: dict[_Agent, list[int]] = defaultdict(list)
    for number, found in enumerate(texts):
        of_agent[found.agent_id].append(number)
    for numbers in of_agent.values():
        capped = _capped([texts[number] for number in numbers])
        for number, weight in zip(numbers, capped, strict=True):
            weights[number] = weight
    return [
        Example(text=found.text, agent_id=found.agent_id, weight=weight)
        for found, weight in zip(texts, weights, strict=True)
    ]


def memory_of(log: Sequence[Feedback]) -> Mapping[str, str]:
    """The agents of requests that people have confirmed, by normalised text: those that no person disputes.

    Of the newest 10,000 such texts, the newest last.
    """
    found: dict[str, str] = {}
    for text, said in _by_text(entry for entry in log if entry.source in _PEOPLE).items():
        named = {entry.agent_id for entry in said if _names(entry)}
        rejected = {entry.rejected for entry in said}
        if len(named) == 1 and not named & rejected and (agent_id := named.pop()) is not None:
            found[text] = agent_id
    return dict(list(found.items())[-_MOST_REMEMBERED:])


def unseen(examples: Sequence[Example], log: Iterable[Feedback], after: int) -> list[bool]:
    """For each example whether nothing was said of its text up to the entry ``after`` of the log.

    What a model fitted then says of these is honest: it had not seen them.
    """
    seen = {normalised(entry.text) for entry in log if entry.sequence <= after}
    return [normalised(example.text) not in seen for example in examples]


def better(candidate: Floats, champion: Floats, weights: Floats | None = None) -> bool:
    """Whether a candidate may take the champion's place: it is not behind by :func:`lead`, which has the arguments.

    Where there is nothing to compare, nothing speaks against the candidate.
    """
    return lead(candidate, champion, weights) >= 0


def lead(candidate: Floats, champion: Floats, weights: Floats | None = None) -> float:
    """By how many nats an example a candidate's mean log-loss is lower than the champion's, on the same examples.

    That is honest if neither has seen the examples it is judged by: the candidate's losses are out-of-fold, and the
    champion's are of examples that are :func:`unseen` by it. Single losses are bounded, so that a few wrong events,
    which both find impossible, do not decide. NaN in either leaves an example out.
    """
    known = ~(np.isnan(candidate) | np.isnan(champion))
    each = known * (np.ones(len(known)) if weights is None else weights)
    lower = np.nan_to_num(np.minimum(champion, _WORST_LOSS) - np.minimum(candidate, _WORST_LOSS))
    return float(lower @ each / max(each.sum(), 1e-9))


def _by_text(log: Iterable[Feedback]) -> Mapping[str, Sequence[Feedback]]:
    """What was last said of each text: one word of each author, and of what is no person one for each source.

    The text of which something was said last comes last.
    """
    found: dict[str, dict[tuple[str, str], Feedback]] = {}
    for entry in log:
        text = normalised(entry.text)
        if not text:
            continue
        said = found.pop(text, {})
        said[entry.author, "person" if entry.source in _PEOPLE else entry.source] = entry
        found[text] = said
    return {text: list(said.values()) for text, said in found.items()}


def _names(entry: Feedback) -> bool:
    """Whether it says whose the request is, if only that it is nobody's."""
    return entry.agent_id is not None or entry.source in _JUDGES


def _agreed(said: Sequence[Feedback]) -> _Text | None:
    votes: dict[_Agent, float] = defaultdict(float)
    for entry in said:
        if _names(entry):
            votes[entry.agent_id] += TRUST[entry.source].weight
    if not votes:
        return None
    agent_id = max(votes, key=lambda each: votes[each])
    against = sum(votes.values()) - votes[agent_id]
    against += sum(TRUST[entry.source].weight for entry in said if agent_id is not None and entry.rejected == agent_id)
    weight = min(votes[agent_id] - against, _HEAVIEST)
    agreeing = [entry for entry in said if _names(entry) and entry.agent_id == agent_id]
    return _Text(agreeing[-1].text, agent_id, weight, agreeing) if weight > 0 else None


def _capped(texts: Sequence[_Text]) -> list[float]:
    """The weights of one agent's texts, lowered until no source and no author has more than its share."""
    said = [entry for found in texts for entry in found.said]
    owner = np.repeat(np.arange(len(texts)), [len(found.said) for found in texts])
    trust = np.array([TRUST[entry.source].weight for entry in said])
    weights = trust * (np.array([found.weight for found in texts]) / np.bincount(owner, trust))[owner]
    sources = _numbered([entry.source for entry in said])
    authors = _numbered([entry.author for entry in said])
    shares = np.array([TRUST[entry.source].share for entry in said])
    for _ in range(_ROUNDS):
        weights = _lowered(weights, sources, shares)
        weights = _lowered(weights, authors, np.full(len(said), _AUTHOR_SHARE))
    return np.bincount(owner, weights).tolist()


def _lowered(weights: Floats, groups: Ints, shares: Floats) -> Floats:
    """The weights, where each group's sum is at most its share of all, beyond what is free. ``shares``: by member."""
    own = np.bincount(groups, weights)[groups]
    allowed = np.where(shares < 1, shares / np.maximum(1 - shares, 1e-9) * (weights.sum() - own), np.inf)
    return weights * np.minimum(1, np.maximum(allowed, _FREE) / own)


def _numbered(names: Sequence[str]) -> Ints:
    return np.unique(names, return_inverse=True)[1]
