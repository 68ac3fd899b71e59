"""Learning from examples: a regression, and what out-of-fold scores say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from agent_orchestra.core.classifier.arrays import Floats, Ints
from agent_orchestra.core.classifier.calibration import Calibration, Reading, calibrate, read
from agent_orchestra.core.classifier.constants import Prior
from agent_orchestra.core.classifier.corpus import SHARPNESS, Corpus, Encoded, Features, Space
from agent_orchestra.core.classifier.noise import believed
from agent_orchestra.core.classifier.regression import multinomial
from agent_orchestra.core.classifier.scoring import Scorer, Scores, assemble, centroids

__all__ = ["Learned", "learn", "offset"]

#: Ridge on the summed log-loss.
_RIDGE: Final = 0.03
#: The share of a description's own score in the regression's offset.
_TRUST: Final = 0.5
#: Pseudo-examples that the lines of a topic may amount to.
_PSEUDO: Final = 2.0
_STEPS: Final = 40
_FOLD_STEPS: Final = 30
_FOLDS: Final = 5
#: With fewer examples than this, what they say of probabilities is chance.
_FEWEST: Final = 5
#: The share of its weight that an example keeps which is certainly wrong.
_LEAST_BELIEVED: Final = 0.02
#: With more examples than this, three folds tell as much.
_MANY: Final = 4_000
#: Classes of rare agents count more, and of frequent ones less, within these bounds.
_BALANCE: Final = (1 / 3, 3.0)
#: The share of an agent's nearest rivals that are taken away with it, to make requests that are nobody's.
_RIVALS: Final = 0.03


class Learned(NamedTuple):
    """``coefficients``: (features + 1, topics), without the offset. ``losses``: out-of-fold, of each example row,
    and ``strange_losses`` of each text that is nobody's; none where there are too few. ``beliefs``: the share of its
    weight that each example row keeps, by how likely it is right.
    """

    coefficients: Floats
    calibration: Calibration
    losses: Floats | None = None
    beliefs: Floats | None = None
    strange_losses: Floats = np.zeros(0)


def offset(corpus: Corpus) -> Floats:
    """(features, topics): what the lines alone say, as a linear map."""
    lines = np.flatnonzero(~corpus.example & corpus.prototype)
    means = centroids(corpus.x[lines], corpus.topic[lines], corpus.weight[lines], len(corpus.owner))
    return means.T * np.float32(_TRUST * SHARPNESS)


def regress(corpus: Corpus, agents: int, steps: int) -> Floats:
    """The coefficients of a class-balanced regression of topics on the rows, lines being pseudo-examples."""
    base = corpus.x @ offset(corpus)
    lines, seen = np.flatnonzero(~corpus.example), np.flatnonzero(corpus.example)
    own = corpus.topic[lines]
    # A line must not be told its own topic by itself: no request is so near to it.
    base[lines, own] = np.minimum(base[lines, own], base[seen, corpus.topic[seen]].mean())
    size = np.bincount(corpus.agent[seen], corpus.weight[seen], agents)
    share = size[size > 0].mean() / np.maximum(size[corpus.agent], 1e-6)
    weights = corpus.weight * np.clip(share, *_BALANCE)
    per_topic = np.bincount(own, minlength=len(corpus.owner))
    weights[lines] = corpus.weight[lines] * np.minimum(1, _PSEUDO / per_topic[own])
    return multinomial(
        corpus.x, corpus.topic, weights.astype(np.float32), base.astype(np.float32), ridge=_RIDGE, steps=steps
    )


def learn(corpus: Corpus, nobody: Sequence[Encoded], agents: int, space: Space, prior: Prior, seed: int) -> Learned:
    """Fits a regression on all rows, and calibrates it by scores of rows that the scorer had not seen.

    ``nobody``: texts that are no agent's, with their vectors.
    """
    if corpus.example.sum() < _FEWEST:
        return Learned(regress(corpus, agents, _STEPS), Calibration.of(prior))
    held, strange = _held_out(corpus, nobody, agents, space, seed)
    rows = np.array([each.row for each in held])
    y, weights = corpus.agent[rows], corpus.weight[rows].astype(np.float64)
    mix, belief, _ = believed(np.stack([_stacked(each.scores) for each in held]), y, weights, prior.mix)
    good = [read(each.scores, mix, each.text.coverage) for each in held]
    outside = [
        as_stranger(each.fold, each.text, reading.total, mix, int(own))
        for each, reading, own in zip(held, good, y, strict=True)
        if agents > 2
    ]
    strangers = [read(scores, mix, text.coverage) for text, scores in strange]
    right = np.array([float(reading.best == own) for reading, own in zip(good, y, strict=True)])
    calibration = calibrate(good, right, weights * np.maximum(belief, 1e-3), [*outside, *strangers], prior, mix)
    losses = np.zeros(len(corpus.agent))
    losses[rows] = [-reading.total[own] for reading, own in zip(good, y, strict=True)]
    beliefs = np.ones(len(corpus.agent), np.float32)
    beliefs[rows] = np.maximum(belief, _LEAST_BELIEVED)
    return Learned(
        coefficients=regress(replace(corpus, weight=corpus.weight * beliefs), agents, _STEPS),
        beliefs=beliefs[corpus.example],
        calibration=calibration,
        losses=losses[corpus.example],
        strange_losses=np.array([-math.log(max(1 - calibration.in_scope(each), 1e-9)) for each in strangers]),
    )


class _HeldOut(NamedTuple):
    """A row, and what a scorer says of it that has not seen it."""

    row: int
    text: Features
    scores: Scores
    fold: Scorer


def _held_out(
    corpus: Corpus, nobody: Sequence[Encoded], agents: int, space: Space, seed: int
) -> tuple[list[_HeldOut], list[tuple[Features, Scores]]]:
    """The scores of every example, and of every text that is nobody's, by a scorer that has not seen it."""
    unseen = Space(space.rarity, space.dimension, known_from=2)
    held: list[_HeldOut] = []
    strange: dict[int, tuple[Features, Scores]] = {}
    parts = _folds(corpus, np.flatnonzero(corpus.example), seed)
    for number, part in enumerate(parts):
        kept = corpus.take(np.setdiff1d(np.arange(len(corpus.agent)), part))
        learned = regress(kept, agents, _FOLD_STEPS)
        learned[:-1] += offset(kept)
        away = range(number, len(nobody), len(parts))
        known = [space.features(*text) for n, text in enumerate(nobody) if n not in away]
        fold = assemble(kept, agents, space.dimension, learned, known)
        for row in part:
            meaning = corpus.x[row, : space.dimension]
            text = unseen.features(corpus.texts[int(row)], meaning if meaning.any() else None)
            held.append(_HeldOut(int(row), text, fold.scores(text), fold))
        for n in away:
            text = unseen.features(*nobody[n])
            strange[n] = text, fold.scores(text)
    return held, [strange[n] for n in range(len(nobody))]


def as_stranger(scorer: Scorer, text: Features, total: Floats, mix: Floats, own: int) -> Reading:
    """What a request says when its own agent and the nearest rivals by ``total`` are taken away: it is nobody's."""
    total = total.copy()
    gone = min(len(total) - 2, 1 + int(np.ceil(_RIVALS * len(total))))
    total[own] = np.inf
    allowed = np.ones(len(total), np.bool_)
    allowed[np.argsort(-total, kind="stable")[:gone]] = False
    return read(scorer.scores(text, allowed, alone=True), mix, text.coverage)


def _folds(corpus: Corpus, rows: Ints, seed: int) -> list[Ints]:
    """The rows in parts, each agent spread evenly over them."""
    count = min(_FOLDS if len(rows) <= _MANY else 3, len(rows))
    order = np.random.default_rng(seed).permutation(rows)
    order = order[np.argsort(corpus.agent[order], kind="stable")]
    return [order[part::count] for part in range(count)]


def _stacked(scores: Scores) -> Floats:
    return scores.kinds.T.astype(np.float64)
