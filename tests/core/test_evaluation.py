"""The figures of an evaluation, beside their definitions and beside the reference that stands with the data."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.evaluation import (
    Prediction,
    auroc,
    calibration_error,
    macro_f1,
    quantile,
    score,
)

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "routing" / "score.py"
AGENTS = ["billing", "travel", "support"]

shares = st.floats(0, 1)
predictions = st.lists(
    st.builds(
        Prediction,
        truth=st.none() | st.sampled_from(AGENTS),
        ranking=st.lists(st.sampled_from(AGENTS), unique=True).map(tuple),
        confidence=shares | st.sampled_from([0.0, 1 / 15, 0.2, 0.6, 1.0]),
        accepted=st.booleans(),
        previous=st.none() | st.sampled_from(AGENTS),
    ),
    max_size=30,
)


def said(
    truth: str | None,
    *ranking: str,
    confidence: float = 0.5,
    accepted: bool = True,
    previous: str | None = None,
) -> Prediction:
    return Prediction(truth=truth, ranking=ranking, confidence=confidence, accepted=accepted, previous=previous)


def by_the_reference(predictions: Sequence[Prediction], folder: Path) -> dict[str, float]:
    """What ``score.py`` prints of these predictions."""
    test, pred = folder / "test.jsonl", folder / "pred.jsonl"
    test.write_text("".join(json.dumps({"id": n, "agent": p.truth}) + "\n" for n, p in enumerate(predictions)))
    pred.write_text(
        "".join(
            json.dumps({"id": n, "ranking": p.ranking, "confidence": p.confidence, "accept": p.accepted}) + "\n"
            for n, p in enumerate(predictions)
        )
    )
    command = [sys.executable, str(REFERENCE), str(test), str(pred)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_top1_counts_the_first_and_top3_the_first_three() -> None:
    scores = score(
        [
            said("billing", "billing", "travel"),
            said("billing", "travel", "support", "billing"),
            said("billing", "travel", "support", "sales", "billing"),
            said("billing"),
        ]
    )
    assert (scores.n, scores.top1, scores.top3) == (4, 0.25, 0.5)


def test_a_refused_request_still_counts_for_the_accuracy_and_is_missing_after_rejection() -> None:
    scores = score([said("billing", "billing", accepted=False), said("travel", "travel")])
    assert (scores.top1, scores.in_scope_rejected, scores.acc_after_rejection) == (1.0, 0.5, 0.5)


def test_what_is_nobodys_counts_only_for_the_figures_of_rejection_and_calibration() -> None:
    scores = score(
        [
            said("billing", "billing", confidence=0.9),
            said("travel", "travel", confidence=0.4, accepted=False),
            said(None, "billing", confidence=0.4, accepted=False),
            said(None, "billing", confidence=0.1),
        ]
    )
    assert (scores.n, scores.oos, scores.top1) == (2, 2, 1.0)
    assert (scores.oos_recall, scores.oos_precision) == (0.5, 0.5)
    assert scores.oos_auroc == pytest.approx(3.5 / 4)
    assert scores.brier == pytest.approx((0.01 + 0.36 + 0.16 + 0.01) / 4)


def test_switches_and_stays_are_told_apart_by_the_previous_agent() -> None:
    scores = score(
        [
            said("billing", "billing", previous="billing"),
            said("travel", "billing", previous="billing"),
            said("travel", "travel", previous="billing"),
            said("travel", "billing"),
        ]
    )
    assert (scores.stay_top1, scores.switch_top1, scores.top1) == (1.0, 0.5, 0.5)


def test_the_figures_of_nothing_are_none() -> None:
    scores = score([])
    assert (scores.n, scores.oos) == (0, 0)
    assert {getattr(scores, name) for name in scores.__slots__ if name not in ("n", "oos")} == {None}


def test_what_cannot_be_told_without_requests_that_are_nobodys_is_none() -> None:
    scores = score([said("billing", "billing")])
    assert (scores.oos_auroc, scores.oos_recall, scores.oos_precision, scores.switch_top1) == (None,) * 4


def test_requests_that_are_all_nobodys_have_no_accuracy() -> None:
    scores = score([said(None, "billing", accepted=False)])
    assert (scores.n, scores.top1, scores.macro_f1, scores.oos_recall) == (0, None, None, 1.0)


def test_macro_f1_gives_each_agent_the_same_weight() -> None:
    rare, common = [said("travel", "billing")], [said("billing", "billing")] * 9
    assert macro_f1(rare + common) == pytest.approx((0 + 2 * 9 / (9 + 10)) / 2)


def test_an_agent_that_is_only_predicted_has_no_f1_of_its_own() -> None:
    assert macro_f1([said("billing", "travel"), said("billing", "billing")]) == pytest.approx(2 / 3)


def test_a_perfect_order_has_an_area_of_one_and_ties_count_half() -> None:
    assert auroc([0.8, 0.9], [0.1, 0.2]) == 1.0
    assert auroc([0.1], [0.9]) == 0.0
    assert auroc([0.5, 0.5], [0.5]) == 0.5


@given(st.lists(shares, min_size=1, max_size=12), st.lists(shares, min_size=1, max_size=12))
def test_the_area_is_the_share_of_pairs_in_order(positive: list[float], negative: list[float]) -> None:
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))


def test_confidence_that_is_as_often_right_as_it_says_has_no_error() -> None:
    assert calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)


def test_errors_in_two_bins_do_not_make_up_for_each_other() -> None:
    assert calibration_error([0.0, 1.0], [True, False]) == 1.0


def test_full_confidence_falls_into_the_last_bin() -> None:
    assert calibration_error([1.0, 0.99], [True, True]) == pytest.approx(0.005)


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([3, 1, 2], 0.99) == 3
    assert quantile([], 0.5) is None


@given(predictions)
def test_all_figures_are_shares(some: list[Prediction]) -> None:
    scores = score(some)
    values = [getattr(scores, name) for name in scores.__slots__ if name not in ("n", "oos")]
    assert all(0 <= value <= 1 for value in values if value is not None)


@given(predictions)
def test_the_order_of_the_requests_does_not_matter(some: list[Prediction]) -> None:
    one, other = score(some), score(some[::-1])
    for name in one.__slots__:
        assert getattr(one, name) == pytest.approx(getattr(other, name))


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the data of ../shared/routing are not here")
def test_the_figures_are_those_of_the_reference(tmp_path: Path) -> None:
    for seed in range(5):
        some = _drawn(seed)
        printed = by_the_reference(some, tmp_path)
        scores = score(some)
        ours = {name: getattr(scores, name) for name in printed}
        assert ours == pytest.approx(printed, abs=5.1e-5)


def _drawn(seed: int) -> list[Prediction]:
    """Requests of all sorts: ties in confidence, empty rankings, more predicted agents than there are requests for."""
    draw = random.Random(seed)
    return [
        said(
            draw.choice([None, *AGENTS]),
            *draw.sample([*AGENTS, "sales"], draw.randint(0, 4)),
            confidence=draw.choice([draw.random(), draw.randint(0, 15) / 15]),
            accepted=draw.random() < 0.7,
        )
        for _ in range(400)
    ]
