"""What the calls of an instance say about it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.health import CALM, Drift, Window, calmed, drifted, peak, quantile, together

#: Seconds since the call before, what it took, and whether it was answered.
calls = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1_000), st.booleans()), max_size=60)


def window_of(of: Sequence[tuple[float, float, bool]]) -> tuple[Window, float]:
    window, now = Window(), 0.0
    for idle, seconds, answered in of:
        now += idle
        window.add(now, seconds, answered=answered)
    return window, now


def told(seconds: Sequence[float], *, before: Drift = CALM, failed: bool = False) -> Drift:
    for each in seconds:
        before = drifted(before, each, failed=failed)
    return before


def noisy(count: int, mean: float, seed: int, deviation: float = 0.3) -> list[float]:
    chance = random.Random(seed)
    return [mean * math.exp(chance.gauss(0, deviation)) for _ in range(count)]


# --- the window


@given(calls, st.floats(0, 400))
def test_the_figures_are_those_of_the_calls_that_are_not_too_old(
    of: list[tuple[float, float, bool]], idle: float
) -> None:
    window, last = window_of(of)
    now, then, recent = last + idle, 0.0, list[tuple[float, bool]]()
    for since, seconds, answered in of:
        then += since
        if then >= now - 300:
            recent.append((seconds, answered))
    figures = window.figures(now)
    taken = sorted(seconds for seconds, answered in recent if answered)
    assert figures.calls == len(recent)
    assert figures.success_rate == (round(len(taken) / len(recent), 4) if recent else 1.0)
    if not taken:
        assert (figures.mean_ms, figures.p50_ms, figures.p95_ms) == (None, None, None)
    else:
        assert figures.mean_ms == pytest.approx(math.fsum(taken) / len(taken) * 1_000, abs=0.01)
        assert figures.p50_ms == round(taken[math.ceil(0.5 * len(taken)) - 1] * 1_000, 3)
        assert figures.p95_ms == round(taken[math.ceil(0.95 * len(taken)) - 1] * 1_000, 3)
    assert window.total == len(of)
    assert window.failed == sum(not answered for _, _, answered in of)


@given(calls)
def test_what_is_kept_while_calls_come_is_what_the_calls_make_up(of: list[tuple[float, float, bool]]) -> None:
    window, now = window_of(of)
    kept = window.calls(now)
    assert window.answered == sum(answered for _, _, answered in kept)
    total = math.fsum(seconds for _, seconds, answered in kept if answered)
    assert window.mean_seconds * window.answered == pytest.approx(total, abs=1e-6)
    assert 0 <= window.success_rate <= 1


def test_the_window_holds_so_many_calls_and_no_more() -> None:
    window = Window()
    for number in range(2_000):
        window.add(number / 1_000, float(number), answered=True)
    assert window.figures(2).calls == 512
    assert window.total == 2_000
    assert window.quantile(0.0) == 1_488


def test_one_long_call_is_not_left_over_in_the_mean() -> None:
    window = Window()
    window.add(0, 1e9, answered=True)
    for number in range(512):
        window.add(1 + number / 1_000, 0.001, answered=True)
    assert window.mean_seconds == pytest.approx(0.001, abs=1e-4)


@given(st.lists(calls, max_size=4))
def test_windows_together_are_as_one(of: list[list[tuple[float, float, bool]]]) -> None:
    windows = [window_of(each)[0] for each in of]
    now = max((window_of(each)[1] for each in of), default=0.0)
    figures = together(windows, now)
    kept = [call for window in windows for call in window.calls(now)]
    assert figures.calls == len(kept)
    assert figures.calls == sum(window.figures(now).calls for window in windows)
    taken = sorted(seconds for _, seconds, answered in kept if answered)
    assert figures.p95_ms == (round(taken[math.ceil(0.95 * len(taken)) - 1] * 1_000, 3) if taken else None)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_a_value_that_its_share_does_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert found in values
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values)
    assert quantile([], share) is None


# --- the peak


@given(st.floats(0, 100), st.floats(0, 1_000), st.floats(0, 100))
def test_a_peak_counts_at_once_and_is_forgotten_slowly(before: float, idle: float, seconds: float) -> None:
    after = peak(before, idle, seconds)
    assert min(before, seconds) - 1e-9 <= after <= max(before, seconds) + 1e-9
    if seconds >= before:
        assert after == pytest.approx(seconds)
    assert peak(before, 0, seconds) >= before
    assert after <= peak(before, idle / 2, seconds) + 1e-9


# --- the drift


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=200))
def test_whatever_comes_the_sums_are_numbers_and_bounded(of: list[tuple[float, bool]]) -> None:
    drift = CALM
    for seconds, failed in of:
        drift = drifted(drift, seconds, failed=failed)
        assert all(math.isfinite(value) for value in (drift.mean, drift.variance, drift.slow, drift.failing))
        assert drift.variance >= 0
        assert drift.slow >= 0
        assert drift.failing >= 0
        assert 0 <= drift.failures <= 1
        assert 0 < drift.factor <= 1
        assert (drift.reason is None) == (not drift.drifting)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean", [0.0005, 0.05, 5.0])
def test_a_steady_instance_does_not_drift(seed: int, mean: float) -> None:
    drift, alarms = CALM, 0
    for seconds in noisy(2_000, mean, seed):
        drift = drifted(drift, seconds, failed=False)
        alarms += drift.drifting
    assert alarms <= 20, f"{alarms} of 2,000 calls under a false alarm"


@pytest.mark.parametrize("times", [3, 20])
def test_one_that_becomes_slow_is_told_soon(times: int) -> None:
    normal = told(noisy(200, 0.05, 1))
    assert not normal.drifting
    drift, needed = normal, 0
    for seconds in noisy(50, 0.05 * times, 2):
        drift, needed = drifted(drift, seconds, failed=False), needed + 1
        if drift.drifting:
            break
    assert drift.drifting
    assert needed <= 15
    assert drift.factor < 1
    assert drift.reason is not None
    assert "s lately, against" in drift.reason


def test_one_that_is_fast_again_is_steady_again() -> None:
    slow = told(noisy(30, 1.0, 2), before=told(noisy(200, 0.05, 1)))
    assert slow.drifting
    assert not told(noisy(60, 0.05, 3), before=slow).drifting


def test_becoming_faster_is_no_drift() -> None:
    drift = told(noisy(200, 1.0, 1))
    for seconds in noisy(200, 0.01, 2):
        drift = drifted(drift, seconds, failed=False)
        assert not drift.drifting


def test_what_is_slow_for_good_becomes_normal() -> None:
    drift = told([0.05] * 100)
    assert told([0.5] * 50, before=drift).drifting
    assert not told([0.5] * 20_000, before=drift).drifting


def test_one_that_begins_to_fail_is_told_soon() -> None:
    normal = told([0.05] * 200)
    assert told([0.05] * 4, before=normal, failed=True).drifting
    assert not told([0.05], before=normal, failed=True).drifting, "one failure is an accident"
    recovering = told([0.05] * 4, before=normal, failed=True)
    assert not told([0.05] * 100, before=recovering).drifting


def test_one_that_has_always_failed_now_and_then_does_not_drift() -> None:
    chance, drift, alarms = random.Random(5), CALM, 0
    for number in range(4_000):
        drift = drifted(drift, 0.05, failed=chance.random() < 0.05)
        alarms += number > 500 and drift.drifting
    assert alarms <= 200, f"{alarms} of 3,500 calls under a false alarm"


def test_the_first_calls_of_all_say_nothing() -> None:
    assert not told([0.01, 10.0] * 9).drifting


def test_after_a_rest_a_few_calls_tell_how_it_is_now() -> None:
    slow = told(noisy(30, 1.0, 2), before=told(noisy(200, 0.05, 1)))
    rested = calmed(slow)
    assert slow.drifting
    assert not rested.drifting
    assert (rested.factor, rested.reason) == (1.0, None)
    assert told(noisy(5, 1.0, 3), before=rested).drifting
    assert not told(noisy(20, 0.05, 3), before=rested).drifting
    assert calmed(CALM) == CALM


def test_a_steady_instance_that_is_outrun_now_and_then_does_not_drift() -> None:
    """Of an outrun call it is known that it took as long as 95 % of the calls do, and no more."""
    drift = CALM
    for number in range(2_000):
        drift = drifted(drift, 0.066 if number % 20 == 19 else 0.055 + number % 7 / 1_000, failed=False)
        assert not drift.drifting, number
