"""Which examples are likely to be wrong, and how many are."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from agent_orchestra.core.classifier.arrays import Floats, Ints
from agent_orchestra.core.classifier.calibration import fit_mix

__all__ = ["Belief", "believed"]

_ROUNDS: Final = 4
#: What is thought of the share of wrong examples before any is seen, and how many examples that thought is worth.
_USUAL_SHARE: Final = 0.02
_USUAL_WORTH: Final = 20.0


class Belief(NamedTuple):
    """``mix``: weights of the scores. ``right``: (rows,) the probability that each label is right. ``wrong_share``: of
    all labels.
    """

    mix: Floats
    right: Floats
    wrong_share: float


def believed(scores: Floats, y: Ints, weights: Floats, start: Floats) -> Belief:
    """The mix of out-of-fold log-probabilities (rows, agents, J), by labels ``y`` of which some are wrong.

    A label is taken to be right, or with a small probability that of any agent alike; that share and the mix are found
    together by expectation and maximisation (A. Dempster, N. Laird, D. Rubin, 1977). Where all labels are right, the
    mix is close to that of :func:`fit_mix` alone.
    """
    agents = scores.shape[1]
    rows = np.arange(len(y))
    mix, wrong = fit_mix(scores, y, weights, start), 0.05
    right = np.ones(len(y))
    for _ in range(_ROUNDS):
        z = scores @ mix
        p = (1 - wrong) * np.exp(z[rows, y] - np.logaddexp.reduce(z, 1))
        right = p / (p + wrong / agents)
        wrong = float((weights @ (1 - right) + _USUAL_WORTH * _USUAL_SHARE) / (weights.sum() + _USUAL_WORTH))
        mix = fit_mix(scores, y, weights * right, start)
    return Belief(mix, right, wrong)
