"""From scores to probabilities: how the scores are mixed, whether a request is anybody's, whether the best is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from agent_orchestra.core.classifier.arrays import Floats, Ints, log_softmax, sigmoid
from agent_orchestra.core.classifier.constants import Prior
from agent_orchestra.core.classifier.regression import logistic
from agent_orchestra.core.classifier.scoring import Scores

__all__ = ["Calibration", "Reading", "calibrate", "fit_mix", "mixed", "read"]

#: The share of good requests that may be refused.
REFUSED: Final = 0.05
#: How much requests that are nobody's weigh beside the good ones.
OUTSIDE_SHARE: Final = 0.1
_MIX_PULL: Final = 20.0
#: How strongly a few examples are mistrusted: ridges towards what is shipped.
_TEMPERATURE_PULL: Final = 5.0
_RIGHT_PULL: Final = 20.0
_INSIDE_PULL: Final = 20.0
#: Examples that the shipped threshold counts as much as: a quantile of a few is chance.
_THRESHOLD_PULL: Final = 50
#: The weights of near and centre where there is nothing else: between those of SEMANTIC and of LEXICAL.
_BARE_MIX: Final = (0.8, 0.3)
#: Nobody is refused who is somebody's with this probability.
_CERTAIN: Final = 0.8
_LOWEST: Final = -6.0


class Reading(NamedTuple):
    """``total``: log-probabilities of the agents. ``lead``: by how much ``best`` leads the second.
    ``fit``: how well the text fits anybody, by its nearest prototype and centroid, at most 4; less where it is nearer
    to what is nobody's, or to an agent that may not be chosen. ``signals``: what tells whether ``best`` is right.
    """

    total: Floats
    best: int
    lead: float
    fit: float
    signals: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """See :class:`~agent_orchestra.core.classifier.constants.Prior` for the fields."""

    mix: Floats
    inside: Floats
    right: Floats
    threshold: float

    @classmethod
    def of(cls, prior: Prior) -> Calibration:
        return cls(mix=prior.mix, inside=prior.inside, right=prior.right, threshold=prior.threshold)

    def in_scope(self, reading: Reading) -> float:
        """The probability that the text is anybody's."""
        return sigmoid(float(self.inside[0] + self.inside[1] * reading.fit))

    def right_if_inside(self, reading: Reading) -> float:
        """The probability that the best agent is the right one, if any is."""
        return sigmoid(float(self.right @ reading.signals))


def mixed(scores: Scores, mix: Floats) -> Floats:
    """Log-probabilities of the agents.

    Those of which a regression knows nothing get what definitions alone would give them; the others share the rest as
    it was learned.
    """
    total = mix[-len(scores.kinds) :] @ scores.kinds
    if scores.fresh is None:
        return log_softmax(total)
    bare = log_softmax(_BARE_MIX[0] * scores.near + _BARE_MIX[1] * scores.centre)
    total[scores.fresh] = -np.inf
    if not np.isfinite(total.max()):
        return bare
    taken = float(np.exp(bare[scores.fresh]).sum())
    return np.where(scores.fresh, bare, log_softmax(total) + math.log(max(1 - taken, 1e-12)))


def read(scores: Scores, mix: Floats, coverage: float) -> Reading:
    """What the scores say, once they are mixed."""
    total = mixed(scores, mix)
    best = int(total.argmax())
    first, second, other = float(total[best]), _LOWEST, 0.0
    if len(total) > 1:
        second, other = _highest_other(total, best), max(_highest_other(scores.peak, best), 0.0)
    p = min(max(math.exp(first), 1e-4), 1 - 1e-4)
    peak, near, centre = float(scores.peak[best]), float(scores.near[best]), float(scores.centre[best])
    fit = 2 * (peak + float(scores.middle[best]))
    fit -= 4 * max(scores.strange - peak, 0.0) + 2 * max(scores.outside - peak, 0.0)
    learned = 0.0 if scores.learned is None else max(float(scores.learned[best]), _LOWEST)
    if scores.fresh is not None and scores.fresh[best]:
        learned = max(first, _LOWEST)
    signals = np.array(
        (
            1.0,
            math.log(p / (1 - p)) / 4,
            min(first - second, -_LOWEST) / 3,
            fit,
            learned / 2,
            max(near, _LOWEST) / 2,
            coverage,
            (peak - other) * 4,
            max(centre, _LOWEST) / 2,
        )
    )
    return Reading(total, best, first - second, fit, signals)


def _highest_other(values: Floats, best: int) -> float:
    others = values.copy()
    others[best] = -np.inf
    return float(others.max())


def calibrate(
    good: Sequence[Reading], right: Floats, weights: Floats, outside: Sequence[Reading], prior: Prior, mix: Floats
) -> Calibration:
    """From readings of requests that the scores had not seen.

    ``right``: whether the best agent was the right one, for each of ``good``. ``outside``: of requests that are
    nobody's.
    """
    fits = np.array([reading.fit for reading in good])
    signals = np.stack([reading.signals for reading in good])
    inside = prior.inside
    if outside:
        both = np.r_[fits, [reading.fit for reading in outside]]
        line = np.stack([np.ones(len(both)), both], 1)
        each = np.r_[weights, np.full(len(outside), weights.sum() / len(outside))]
        good_ones = (np.arange(len(both)) < len(fits)).astype(float)
        share = np.array([math.log(OUTSIDE_SHARE), 0.0])
        inside = logistic(line, good_ones, each, prior.inside + share, ridge=_INSIDE_PULL) - share
    return Calibration(
        mix=mix,
        inside=inside,
        right=logistic(signals, right, weights, prior.right, ridge=_RIGHT_PULL),
        threshold=_threshold(fits, inside, prior),
    )


def _threshold(fits: Floats, inside: Floats, prior: Prior) -> float:
    """The fit that few good requests do not have; never one at which a request is somebody's with near certainty.

    Examples that are much alike fit better than any request will, and would shut out all that is put otherwise.
    """
    usual = len(fits) * float(np.quantile(fits, REFUSED)) + _THRESHOLD_PULL * prior.threshold
    usual /= len(fits) + _THRESHOLD_PULL
    certain = (math.log(_CERTAIN / (1 - _CERTAIN)) - inside[0]) / inside[1] if inside[1] > 0 else math.inf
    return min(usual, float(certain))


def fit_mix(scores: Floats, y: Ints, weights: Floats, start: Floats) -> Floats:
    """Weights (J,) of log-probabilities (rows, agents, J) that give the least log-loss, by damped Newton steps.

    They are pulled to ``start``: their ratios strongly, their common factor, the temperature, weakly.
    """
    scores = scores - scores.max(1, keepdims=True)
    rows = np.arange(len(y))
    own = scores[rows, y]
    base: Floats = np.log(start)
    mean = np.full((len(base), len(base)), 1 / len(base))
    pull = 2 * _MIX_PULL * (np.eye(len(base)) - mean) + 2 * _TEMPERATURE_PULL * mean

    def loss(at: Floats) -> tuple[float, Floats]:
        z = scores @ np.exp(at)
        z -= z.max(1, keepdims=True)
        p = np.exp(z)
        total = p.sum(1)
        value = float((weights * (np.log(total) - z[rows, y])).sum() + (at - base) @ pull @ (at - base) / 2)
        return value, p / total[:, None]

    now = base.copy()
    value, p = loss(now)
    for _ in range(25):
        mean: Floats = (p[..., None] * scores).sum(1)
        factor: Floats = np.exp(now)
        gradient: Floats = weights @ (mean - own) * factor + pull @ (now - base)
        flat = scores.reshape(-1, len(base))
        spread = flat.T @ (flat * (p * weights[:, None]).reshape(-1, 1))
        hessian = (spread - (weights[:, None] * mean).T @ mean) * np.outer(factor, factor) + pull
        hessian += np.diag(np.maximum(gradient, 0) + 1e-6)
        step: Floats = np.clip(np.linalg.solve(hessian, gradient), -1, 1)
        new_value, new_p = loss(now - step)
        while new_value > value and np.abs(step).max() > 1e-4:
            step = step / 2
            new_value, new_p = loss(now - step)
        now, value, p = now - step, new_value, new_p
        if np.abs(step).max() < 1e-3:
            break
    return np.exp(now)
