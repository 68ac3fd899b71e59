"""Three scores of every agent for one text. There is one path: what is calibrated is what decides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from agent_orchestra.core.classifier.arrays import Bools, Floats, Ints, group_starts, grouped, log_softmax, picked
from agent_orchestra.core.classifier.corpus import SHARPNESS, SKETCH_SHARE, Corpus, Features
from agent_orchestra.core.classifier.ngrams import WIDTH

__all__ = ["MIX", "NEVER", "Scorer", "Scores", "assemble", "centres", "centroids", "joined"]

#: Weights of ``learned``, ``near`` and ``centre`` before anything is known of them.
MIX: Final = (1.0, 0.15, 0.15)
#: Topics whose prototypes are looked at one by one.
_SHORTLIST: Final = 8
_LENGTH: Final = 1 + SKETCH_SHARE
#: Inverse temperature of similarities of texts' features, which are at most 1.
_SHARP: Final = np.float32(SHARPNESS * _LENGTH)
#: Width of a prototype's sketch: hashing into half as many places loses nothing where the closest are compared.
_NARROW: Final = WIDTH // 2
#: A score of what may not be chosen: its exponential is zero.
NEVER: Final = np.float32(-1e4)
_TINY: Final = np.float32(1e-30)
_NONE: Final = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """``kinds``: (kinds, agents), log-probabilities: those of a regression where there is one, of the prototypes, and
    of the centroids. ``middle``: the similarity to the nearest centroid, at most 1; ``peak``: to the nearest prototype,
    and ``nearest`` its number, for agents that were looked at closely; 0 and -1 for the others. ``strange``: the
    similarity to the nearest text that is known to be nobody's, and ``outside`` to that of an agent that may not be
    chosen; 0 without any. ``fresh``: agents of which a regression knows nothing, none where there are none.
    """

    kinds: Floats
    middle: Floats
    peak: Floats
    nearest: Ints
    strange: float
    outside: float = 0.0
    fresh: Bools | None = None

    @property
    def learned(self) -> Floats | None:
        return self.kinds[0] if len(self.kinds) > 2 else None

    @property
    def near(self) -> Floats:
        return self.kinds[-2]

    @property
    def centre(self) -> Floats:
        return self.kinds[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """All that is needed to score a text; C is ``topics`` without a regression and ``2 * topics`` with one.

    ``owner``: the agent of each topic, ascending. ``meaning``: (dimension, C), ``words``: (WIDTH, C), ``bias``: (C,):
    the regression, where there is one, then the centroids. ``prototypes``: (rows, dimension + WIDTH / 2), by topic;
    ``shares``: their weights; ``bounds``: where each topic's begin and end. ``strangers``: as prototypes, of nobody.
    ``fresh``: (agents,), whether the regression knows nothing of an agent.
    """

    agents: int
    owner: Ints
    starts: Ints
    learned: bool
    meaning: Floats
    words: Floats
    bias: Floats
    prototypes: Floats
    shares: Floats
    bounds: Ints
    strangers: Floats
    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    fresh: Bools

    def scores(
        self, text: Features, allowed: Bools | None = None, also: int | None = None, *, alone: bool = False
    ) -> Scores:
        """The scores of a text; agents that are not ``allowed`` (at least one is) get none. ``also``: an agent that is
        to be looked at closely in any case. ``alone``: as if there were no others than those that are allowed.
        """
        topics = len(self.owner)
        hot = text.words.nonzero()[0]
        z = text.words[hot] @ self.words[hot]
        z += self.bias
        if len(self.meaning):
            z += text.meaning @ self.meaning
        query = np.concatenate([text.meaning, _narrow(text.words)])
        fresh = self.fresh if self.learned and self.fresh.any() else None
        rough = self._rough(z, fresh)
        outside = 0.0
        if allowed is not None:
            barred = ~allowed[self.owner]
            outside = 0.0 if alone else self._outside(query, rough, barred)
            z[np.tile(barred, len(z) // topics)] = NEVER
            rough[barred] = NEVER
        some = self._shortlist(rough, also)
        if allowed is not None:
            some = some[allowed[self.owner[some]]]
        centre = z[-topics:]
        near, peak, nearest = self._closely(query, centre, some)
        middle = (centre - self.bias[-topics:]) / _SHARP
        kinds = [z[:topics], near, centre] if self.learned else [near, centre]
        if topics > self.agents:
            kinds = [grouped(each, self.starts) for each in kinds]
            nearest, middle = self._best(peak, nearest), np.maximum.reduceat(middle, self.starts)
            peak = np.maximum.reduceat(peak, self.starts)
        return Scores(
            kinds=_log_shares(np.stack(kinds)),
            middle=middle,
            peak=peak,
            nearest=nearest,
            strange=float((self.strangers @ query).max(initial=0.0)) if len(self.strangers) else 0.0,
            outside=outside,
            fresh=fresh,
        )

    @property
    def stretch(self) -> float:
        """The squared length of a text's features; prototypes are divided by it, so that products are at most 1."""
        return _LENGTH

    def rows_of(self, topic: int) -> slice[int, int, Any]:
        """The prototypes of a topic."""
        return slice(int(self.bounds[topic]), int(self.bounds[topic + 1]))

    def take(self, agents: Sequence[int]) -> Scorer:
        """The scorer of some of the agents, in this order."""
        every = np.arange(len(self.owner))
        groups = np.split(every, self.starts[1:])
        topics = np.concatenate([_NONE, *(groups[agent] for agent in agents)])
        blocks = np.split(np.arange(len(self.shares)), self.bounds[1:-1])
        rows = np.concatenate([_NONE, *picked(blocks, topics)])
        owner = np.repeat(np.arange(len(agents)), [len(groups[agent]) for agent in agents])
        columns = np.r_[topics, topics + len(self.owner)] if self.learned else topics
        return Scorer(
            agents=len(agents),
            owner=owner,
            starts=group_starts(owner),
            learned=self.learned,
            meaning=self.meaning[:, columns],
            words=self.words[:, columns],
            bias=self.bias[columns],
            prototypes=self.prototypes[rows],
            shares=self.shares[rows],
            bounds=np.cumsum(np.r_[0, np.diff(self.bounds)[topics]]),
            strangers=self.strangers,
            fresh=self.fresh[np.array(agents, np.int64)],
            texts=picked(self.texts, rows),
            kinds=picked(self.kinds, rows),
        )

    def _rough(self, z: Floats, fresh: Bools | None) -> Floats:
        """What the linear scores say of each topic beside the others."""
        topics = len(self.owner)
        learned, centre = z[:topics], z[-topics:]
        if not self.learned:
            return centre.copy()
        if fresh is None:
            return MIX[0] * learned + (MIX[1] + MIX[2]) * centre
        centre = log_softmax(centre)
        return np.where(fresh[self.owner], centre, MIX[0] * log_softmax(learned) + (MIX[1] + MIX[2]) * centre)

    def _shortlist(self, rough: Floats, also: int | None) -> Ints:
        if len(rough) <= _SHORTLIST:
            return np.arange(len(rough))
        some = np.argpartition(rough, -_SHORTLIST)[-_SHORTLIST:]
        if also is not None:
            some = np.union1d(some, np.flatnonzero(self.owner == also))
        return some

    def _outside(self, query: Floats, rough: Floats, barred: Bools) -> float:
        """The similarity to the nearest prototype of topics that may not be chosen, at least 0."""
        some = np.flatnonzero(barred)
        if len(some) > _SHORTLIST:
            some = some[np.argpartition(rough[some], -_SHORTLIST)[-_SHORTLIST:]]
        parts = (self.prototypes[self.rows_of(topic)] @ query for topic in some.tolist())
        return max((float(part.max(initial=0)) for part in parts), default=0.0)

    def _closely(self, query: Floats, centre: Floats, some: Ints) -> tuple[Floats, Floats, Ints]:
        """Log-mean-exp over prototypes for topics on the shortlist, and their nearest; elsewhere the centroid stands
        for the prototypes.
        """
        begins, ends = self.bounds[some].tolist(), self.bounds[some + 1].tolist()
        rows = [slice(begin, end) for begin, end in zip(begins, ends, strict=True)]
        parts = [self.prototypes[row] @ query for row in rows]
        places = [int(part.argmax()) for part in parts]
        similar = np.concatenate(parts)
        similar -= 1
        similar *= _SHARP
        np.exp(similar, out=similar)
        similar *= np.concatenate([self.shares[row] for row in rows])
        starts = [0, *itertools.accumulate(map(len, parts[:-1]))]
        found = np.log(np.add.reduceat(similar, starts) + _TINY) + _SHARP
        near = centre + np.add.reduce(found - centre[some]) / np.float32(len(found))
        near[some] = found
        peak = np.zeros(len(centre), np.float32)
        peak[some] = [part[place] for part, place in zip(parts, places, strict=True)]
        nearest = np.zeros(len(centre), np.int64)
        nearest -= 1
        nearest[some] = [begin + place for begin, place in zip(begins, places, strict=True)]
        return near, peak, nearest

    def _best(self, peak: Floats, nearest: Ints) -> Ints:
        order = np.lexsort((peak, self.owner))
        last = np.r_[self.starts[1:], len(order)] - 1
        return nearest[order[last]]


def joined(one: Scorer, other: Scorer) -> Scorer:
    """The scorer of the agents of both, those of ``one`` first, for whom the same texts are nobody's."""
    cut = len(one.owner) if one.learned else 0, len(other.owner) if other.learned else 0

    def side_by_side(left: Floats, right: Floats) -> Floats:
        parts = left[..., : cut[0]], right[..., : cut[1]], left[..., cut[0] :], right[..., cut[1] :]
        return np.concatenate(parts, -1)

    owner = np.r_[one.owner, other.owner + one.agents]
    return Scorer(
        agents=one.agents + other.agents,
        owner=owner,
        starts=group_starts(owner),
        learned=one.learned,
        meaning=side_by_side(one.meaning, other.meaning),
        words=side_by_side(one.words, other.words),
        bias=side_by_side(one.bias, other.bias),
        prototypes=np.concatenate([one.prototypes, other.prototypes]),
        shares=np.r_[one.shares, other.shares],
        bounds=np.r_[one.bounds, other.bounds[1:] + one.bounds[-1]],
        strangers=one.strangers,
        fresh=np.r_[one.fresh, other.fresh],
        texts=one.texts + other.texts,
        kinds=one.kinds + other.kinds,
    )


def assemble(
    corpus: Corpus,
    agents: int,
    dimension: int,
    learned: Floats | None,
    nobody: Sequence[Features] = (),
    fresh: Bools | None = None,
) -> Scorer:
    """A scorer of these rows. ``learned``: (features + 1, topics), a regression's coefficients with its offset.
    ``nobody``: texts that are no agent's. ``fresh``: agents of which the regression knows nothing.
    """
    topics = len(corpus.owner)
    chosen = np.flatnonzero(corpus.prototype)
    chosen = chosen[np.argsort(corpus.topic[chosen], kind="stable")]
    topic, weight = corpus.topic[chosen], corpus.weight[chosen]
    x = corpus.x[chosen]
    per_agent = np.bincount(corpus.owner, minlength=agents)[corpus.owner]
    linear = SHARPNESS * centres(corpus).T
    bias = -np.log(per_agent)
    if learned is not None:
        linear = np.concatenate([learned[:-1], linear], 1)
        bias = np.concatenate([learned[-1], bias])
    size = np.bincount(topic, weight, topics)
    return Scorer(
        agents=agents,
        owner=corpus.owner,
        starts=group_starts(corpus.owner),
        learned=learned is not None,
        meaning=np.ascontiguousarray(linear[:dimension], np.float32),
        words=np.ascontiguousarray(linear[dimension:], np.float32),
        bias=bias.astype(np.float32),
        prototypes=_prototypes(x, dimension),
        shares=(weight / size[topic] / per_agent[topic]).astype(np.float32),
        bounds=np.searchsorted(topic, np.arange(topics + 1)),
        strangers=_prototypes(_rows(nobody, x.shape[1]), dimension),
        texts=picked(corpus.texts, chosen),
        kinds=picked(corpus.kinds, chosen),
        fresh=np.zeros(agents, np.bool_) if fresh is None else fresh,
    )


def _log_shares(z: Floats) -> Floats:
    """Rows of scores, each shifted so that its exponentials sum to one."""
    z -= np.maximum.reduce(z, axis=1, keepdims=True)
    z -= np.log(np.add.reduce(np.exp(z), axis=1, keepdims=True))
    return z


def _prototypes(x: Floats, dimension: int) -> Floats:
    return np.concatenate([x[:, :dimension], _narrow(x[:, dimension:])], 1) / np.float32(_LENGTH)


def _rows(texts: Sequence[Features], width: int) -> Floats:
    rows = [np.concatenate([text.meaning, text.words]) for text in texts]
    return np.array(rows, np.float32).reshape(len(rows), width)


def _narrow(words: Floats) -> Floats:
    return words[..., :_NARROW] + words[..., _NARROW:]


def centres(corpus: Corpus) -> Floats:
    """(topics, features): the centroids of all prototypes."""
    rows = np.flatnonzero(corpus.prototype)
    return centroids(corpus.x[rows], corpus.topic[rows], corpus.weight[rows], len(corpus.owner))


def centroids(x: Floats, topic: Ints, weight: Floats, topics: int) -> Floats:
    """The weighted mean of each topic's rows, of the length of a row; zero for a topic without rows."""
    order = np.argsort(topic, kind="stable")
    starts = group_starts(topic[order])
    sums = np.zeros((topics, x.shape[1]), np.float32)
    for rows in np.split(order, starts[1:]) if len(order) else ():
        sums[topic[rows[0]]] = weight[rows] @ x[rows]
    lengths = np.sqrt((sums * sums).sum(1, keepdims=True))
    return sums * (np.sqrt(_LENGTH) / np.maximum(lengths, 1e-6))
