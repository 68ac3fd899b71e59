"""What a registry should know of itself: agents that collide, lines that go to another agent, agents out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from agent_orchestra.core.classifier.arrays import Floats, Ints
from agent_orchestra.core.classifier.calibration import mixed
from agent_orchestra.core.classifier.corpus import SHARPNESS
from agent_orchestra.core.classifier.model import Model
from agent_orchestra.core.classifier.scoring import Scorer

__all__ = ["Confusion", "Overlap", "collisions", "confusions", "overlaps", "unreachable"]

#: Rows of a matrix of similarities that are made at once.
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two agents that much the same text describes. ``similarity``: of the two lines, at most 1."""

    agent_id: str
    other_id: str
    line: str
    other_line: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """A text of ``agent_id`` that would go to ``other_id`` if it were not known. ``margin``: the lead, in shares."""

    agent_id: str
    other_id: str
    line: str
    kind: str
    margin: float


def overlaps(model: Model, limit: int = 20) -> list[Overlap]:
    """The pairs of agents whose nearest topics are nearest, worst first, each with its two nearest lines.

    Grows with the square of the number of topics.
    """
    scorer = model.scorer
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for one, other in _nearest_topics(scorer, 4 * limit):
        pairs.setdefault((int(scorer.owner[one]), int(scorer.owner[other])), (one, other))
    found = [_overlap(model, one, other) for one, other in pairs.values()]
    return sorted(found, key=lambda o: (-o.similarity, o.agent_id, o.other_id))[:limit]


def collisions(model: Model, agent_id: str, *, above: float, limit: int = 3) -> list[Overlap]:
    """The other agents that have a line nearer than ``above`` to one of this agent's, nearest first; none for an agent
    that the model does not have. Grows with the number of lines.
    """
    scorer = model.scorer
    if agent_id not in model.agents:
        return []
    owner = np.repeat(scorer.owner, np.diff(scorer.bounds))
    own = np.flatnonzero(owner == model.agents.index(agent_id))
    similar = scorer.prototypes @ scorer.prototypes[own].T * np.float32(scorer.stretch)
    similar[own] = -np.inf
    nearest = similar.argmax(1)
    found: dict[int, Overlap] = {}
    for row in np.argsort(-similar.max(1), kind="stable"):
        other, alike = int(owner[row]), float(similar[row, nearest[row]])
        if alike <= above or len(found) == limit:
            break
        line = scorer.texts[int(own[nearest[row]])]
        found.setdefault(
            other,
            Overlap(
                agent_id=agent_id,
                other_id=model.agents[other],
                line=line,
                other_line=scorer.texts[int(row)],
                similarity=min(alike, 1.0),
            ),
        )
    return list(found.values())


def confusions(model: Model, limit: int = 50) -> list[Confusion]:
    """Capability lines and examples that the other texts of their agent do not hold, worst first.

    Each is taken out, and compared with all that is left, by similarity alone. Grows with the square of the number of
    lines and examples.
    """
    scorer = model.scorer
    topic = np.repeat(np.arange(len(scorer.owner)), np.diff(scorer.bounds))
    asked = np.array([n for n, kind in enumerate(scorer.kinds) if kind in ("capability", "example")], np.int64)
    found: list[Confusion] = []
    for begin in range(0, len(asked), _BLOCK):
        rows = asked[begin : begin + _BLOCK]
        similar = scorer.prototypes[rows] @ scorer.prototypes.T * np.float32(scorer.stretch)
        for row, alike in zip(rows, similar, strict=True):
            confusion = _left_out(model, int(row), alike, topic)
            if confusion is not None:
                found.append(confusion)
    return sorted(found, key=lambda c: (-c.margin, c.agent_id, c.line))[:limit]


def unreachable(model: Model) -> list[str]:
    """Agents to which no line of their own leads, in the order of the model."""
    scorer = model.scorer
    ends = np.r_[scorer.starts, len(scorer.owner)]
    return [
        agent
        for number, agent in enumerate(model.agents)
        if not any(
            _goes_to(model, int(row)) == number
            for row in range(scorer.bounds[ends[number]], scorer.bounds[ends[number + 1]])
            if scorer.kinds[row] != "example"
        )
    ]


def _nearest_topics(scorer: Scorer, limit: int) -> Iterator[tuple[int, int]]:
    """Pairs of topics of different agents, nearest first."""
    topics = len(scorer.owner)
    centres = np.concatenate([scorer.meaning, scorer.words])[:, -topics:].T
    best: list[tuple[float, int, int]] = []
    for begin in range(0, topics, _BLOCK):
        near = centres[begin : begin + _BLOCK] @ centres.T
        rows = np.arange(begin, begin + len(near))
        near[scorer.owner[rows][:, None] >= scorer.owner[None, :]] = -np.inf
        for place in np.argsort(-near, axis=None, kind="stable")[:limit]:
            one, other = divmod(int(place), topics)
            if np.isfinite(near[one, other]):
                best.append((-float(near[one, other]), begin + one, other))
    return ((one, other) for _, one, other in sorted(best)[:limit])


def _overlap(model: Model, one: int, other: int) -> Overlap:
    scorer = model.scorer
    left, right = scorer.rows_of(one), scorer.rows_of(other)
    similar = scorer.prototypes[left] @ scorer.prototypes[right].T * np.float32(scorer.stretch)
    a, b = divmod(int(similar.argmax()), len(scorer.prototypes[right]))
    return Overlap(
        agent_id=model.agents[int(scorer.owner[one])],
        other_id=model.agents[int(scorer.owner[other])],
        line=scorer.texts[left.start + a],
        other_line=scorer.texts[right.start + b],
        similarity=min(float(similar[a, b]), 1.0),
    )


def _left_out(model: Model, row: int, alike: Floats, topic: Ints) -> Confusion | None:
    """Where a text would go without itself, and without texts of its agent that repeat it; none: home, or it is all
    that its agent has.
    """
    scorer = model.scorer
    owner = scorer.owner[topic]
    text, own = scorer.texts[row], int(owner[row])
    weights = scorer.shares * np.exp(SHARPNESS * (alike - 1))
    for other in np.flatnonzero(owner == own):
        if text in scorer.texts[other] or scorer.texts[other] in text:
            weights[other] = 0.0
    sums = np.bincount(owner, weights, scorer.agents)
    best = int(sums.argmax())
    if best == own or sums[own] == 0:
        return None
    return Confusion(
        agent_id=model.agents[own],
        other_id=model.agents[best],
        line=text,
        kind=scorer.kinds[row],
        margin=float((sums[best] - sums[own]) / sums.sum()),
    )


def _goes_to(model: Model, row: int) -> int:
    scorer = model.scorer
    meaning = scorer.prototypes[row, : model.dimension] * np.float32(scorer.stretch)
    text = model.space.features(scorer.texts[row], meaning if model.dimension else None)
    return int(mixed(scorer.scores(text), model.calibration.mix).argmax())
