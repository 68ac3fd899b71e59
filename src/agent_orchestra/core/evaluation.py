"""How good predictions are: accuracy, calibration, and how well what is nobody's is told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["Prediction", "Scores", "auroc", "calibration_error", "macro_f1", "quantile", "score"]

_BINS: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What was said of one request, and the truth.

    ``truth``: the right agent, none where the request is nobody's. ``ranking``: best first. ``confidence``: the
    probability, 0 to 1, that ``ranking[0]`` is right. ``accepted``: false where the request was said to be nobody's.
    ``previous``: the agent that had the conversation.
    """

    truth: str | None
    ranking: tuple[str, ...]
    confidence: float
    accepted: bool
    previous: str | None = None

    @property
    def right(self) -> bool:
        return self.truth is not None and self.ranking[:1] == (self.truth,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Shares, 0 to 1; none where there is no request to take them of.

    ``n``: the requests that are somebody's, of which ``top1``, ``top3``, ``macro_f1``, ``in_scope_rejected`` and
    ``acc_after_rejection`` are taken, the first three whether they were accepted or not. ``oos``: the requests that
    are nobody's; ``oos_recall``: the share of them that was rejected; ``oos_precision``: their share of all that was
    rejected, 0 where nothing was; ``oos_auroc``: how well the confidence parts the two. ``ece`` and ``brier`` are those
    of the confidence over all requests; for one that is nobody's no agent is right. ``switch_top1``: of the requests
    that are another agent's than the previous one; ``stay_top1``: of those that are the same agent's.
    """

    n: int
    oos: int
    top1: float | None
    top3: float | None
    macro_f1: float | None
    oos_auroc: float | None
    oos_recall: float | None
    oos_precision: float | None
    in_scope_rejected: float | None
    acc_after_rejection: float | None
    ece: float | None
    brier: float | None
    switch_top1: float | None
    stay_top1: float | None


def score(predictions: Sequence[Prediction]) -> Scores:
    inside = [p for p in predictions if p.truth is not None]
    outside = [p for p in predictions if p.truth is None]
    continued = [p for p in inside if p.previous is not None]
    refused = sum(not p.accepted for p in predictions)
    refused_rightly = sum(not p.accepted for p in outside)
    confidence = [p.confidence for p in predictions]
    right = [p.right for p in predictions]
    return Scores(
        n=len(inside),
        oos=len(outside),
        top1=_share([p.right for p in inside]),
        top3=_share([p.truth in p.ranking[:3] for p in inside]),
        macro_f1=macro_f1(inside),
        oos_auroc=auroc([p.confidence for p in inside], [p.confidence for p in outside]),
        oos_recall=_share([not p.accepted for p in outside]),
        oos_precision=refused_rightly / max(1, refused) if outside else None,
        in_scope_rejected=_share([not p.accepted for p in inside]),
        acc_after_rejection=_share([p.right and p.accepted for p in inside]),
        ece=calibration_error(confidence, right),
        brier=float(np.square(np.subtract(confidence, right, dtype=float)).mean()) if predictions else None,
        switch_top1=_share([p.right for p in continued if p.truth != p.previous]),
        stay_top1=_share([p.right for p in continued if p.truth == p.previous]),
    )


def _share(of: Sequence[bool]) -> float | None:
    return sum(of) / len(of) if of else None


def macro_f1(predictions: Sequence[Prediction]) -> float | None:
    """The mean of F1 over the agents that some request is for; requests that are nobody's do not count."""
    wanted = Counter(p.truth for p in predictions if p.truth is not None)
    predicted = Counter(p.ranking[0] for p in predictions if p.truth is not None and p.ranking)
    hits = Counter(p.truth for p in predictions if p.right)
    # 2 TP + FP + FN is the number of requests for an agent and of predictions of it.
    return sum(2 * hits[a] / (wanted[a] + predicted[a]) for a in wanted) / len(wanted) if wanted else None


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """The probability that one of ``positive`` is over one of ``negative``, a tie counted as half; none without both.

    It is the area under the curve of true over false positives (Hanley and McNeil, Radiology 143, 1982).
    """
    if not positive or not negative:
        return None
    ordered = np.sort(negative)
    under = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(under.sum() / (2 * len(positive) * len(negative)))


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = _BINS) -> float | None:
    """The expected calibration error over ``bins`` of equal width (Naeini et al., AAAI 2015); none without any."""
    if not confidence:
        return None
    bin_of = np.minimum(np.multiply(confidence, bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=np.subtract(confidence, right, dtype=float), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which that share of the values lies (nearest rank); none without any."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else None
