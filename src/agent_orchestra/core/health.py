"""What the calls of an instance say about it: its figures over a window, and whether it drifts.

Times are seconds of a clock that only goes forward, given by the caller.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["CALM", "Drift", "Figures", "Window", "calmed", "drifted", "peak", "quantile", "together"]

#: The window of an instance: no more calls than that, and none older.
_MOST_CALLS: Final = 512
_SECONDS: Final = 300.0
#: Seconds in which what a peak weighs falls to 1/e.
_DECAY: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The calls of a window. Times are milliseconds, of calls that were answered; none where there were none.

    ``success_rate`` is in [0, 1], and 1 where nothing was called.
    """

    calls: int
    success_rate: float
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None


class Window:
    """The last calls of an instance. Mean and success cost nothing to read; quantiles are sorted when asked for."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, float, bool]] = deque()
        self._answered = 0
        self._seconds = 0.0
        #: All calls ever, whatever the window holds.
        self.total = 0
        self.failed = 0

    def add(self, now: float, seconds: float, *, answered: bool) -> None:
        """Takes in a call that ended now, after so many seconds."""
        self._calls.append((now, seconds, answered))
        self.total += 1
        if answered:
            self._answered += 1
            self._seconds += seconds
        else:
            self.failed += 1
        self.trim(now)

    def trim(self, now: float) -> None:
        """Forgets what is too old, and what is too much."""
        calls = self._calls
        while calls and (len(calls) > _MOST_CALLS or calls[0][0] < now - _SECONDS):
            _, seconds, answered = calls.popleft()
            if answered:
                self._answered -= 1
                self._seconds -= seconds

    @property
    def mean_seconds(self) -> float:
        return max(self._seconds / self._answered, 0.0) if self._answered else 0.0

    @property
    def success_rate(self) -> float:
        return self._answered / len(self._calls) if self._calls else 1.0

    @property
    def answered(self) -> int:
        return self._answered

    def quantile(self, share: float) -> float | None:
        """The seconds within which that share of the answers came; none where there was none."""
        return quantile([seconds for _, seconds, answered in self._calls if answered], share)

    def figures(self, now: float) -> Figures:
        """The window as it is now."""
        return together([self], now)

    def calls(self, now: float) -> Sequence[tuple[float, float, bool]]:
        """The calls of the window: when each ended, what it took, and whether it was answered."""
        self.trim(now)
        return self._calls


def together(windows: Iterable[Window], now: float) -> Figures:
    """The figures of all calls of several windows, as if they were one."""
    calls = [call for window in windows for call in window.calls(now)]
    taken = sorted(seconds for _, seconds, answered in calls if answered)
    return Figures(
        calls=len(calls),
        success_rate=round(len(taken) / len(calls), 4) if calls else 1.0,
        mean_ms=_milliseconds(math.fsum(taken) / len(taken)) if taken else None,
        p50_ms=_milliseconds(quantile(taken, 0.5)),
        p95_ms=_milliseconds(quantile(taken, 0.95)),
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1_000, 3)


def quantile(values: list[float], share: float) -> float | None:
    """The value that this share of the values does not exceed (nearest rank); none of none."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def peak(before: float, idle: float, seconds: float) -> float:
    """The exponentially weighted cost of a call, where a peak counts at once and is forgotten slowly.

    ``before``: the cost after the call before, which ended ``idle`` seconds ago. As in Finagle's peak EWMA balancer.
    """
    if seconds > before:
        return seconds
    kept = math.exp(-max(idle, 0.0) / _DECAY)
    return before * kept + seconds * (1 - kept)


# --- drift

#: Calls, and answers, that make up what is normal for an instance; before them there are no sums.
_NORMAL_CALLS: Final = 20
#: How fast what is normal follows, in calls; slower while a drift is suspected, so that no fault becomes normal soon.
_FOLLOW: Final = 0.02
_FOLLOW_SUSPECTED: Final = 0.003
#: Differences of less than this share of a call's time are noise, however steady an instance was.
_LEAST_DEVIATION: Final = 0.15
#: A call counts for at most so many deviations.
_MOST_DEVIATIONS: Final = 4.0
#: What a deviation must exceed to count (half of the shift that is looked for), and the sum at which it is told.
_SLACK: Final = 0.75
_ALARM_SLOW: Final = 8.0
_ALARM_FAILING: Final = 7.0
#: The share of its alarm to which a sum must come down for a drift to be over.
_CALM: Final = 0.25
#: No instance is taken to be better than this, nor a worsening to be told below that.
_LEAST_FAILURES: Final = 0.01
_WORSE: Final = 0.25
_WORSE_TIMES: Final = 4.0
#: The share of its weight that an instance keeps while it drifts.
_DRIFTING: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Two cumulative sums (CUSUM: Page, 1954) over the calls of one instance: that they take longer, and fail more.

    ``mean`` and ``variance`` are those of the logarithm of its normal seconds, ``failures`` its normal share of
    failures; ``recent`` is what a call takes lately, for the sentence. ``drifting``: a sum has reached its alarm, and
    they have not both come down since.
    """

    calls: int = 0
    answers: int = 0
    mean: float = 0.0
    variance: float = 0.0
    failures: float = 0.0
    slow: float = 0.0
    failing: float = 0.0
    recent: float = 0.0
    drifting: bool = False

    @property
    def factor(self) -> float:
        """What its weight is multiplied by."""
        return _DRIFTING if self.drifting else 1.0

    @property
    def reason(self) -> str | None:
        """Why it gets less, in words; none where it does not."""
        if not self.drifting:
            return None
        if self.slow / _ALARM_SLOW >= self.failing / _ALARM_FAILING:
            return f"its calls take {self.recent:.3g} s lately, against {math.exp(self.mean):.3g} s before"
        return "its calls fail more often than before"


CALM: Final = Drift()


def calmed(before: Drift) -> Drift:
    """The sums after a while without calls: low, so that a few calls tell how it is now."""
    return replace(
        before,
        slow=min(before.slow, _CALM * _ALARM_SLOW),
        failing=min(before.failing, _CALM * _ALARM_FAILING),
        drifting=False,
    )


def drifted(before: Drift, seconds: float, *, failed: bool) -> Drift:
    """The sums after one more call. A failed call says nothing about speed."""
    # What builds up a sum must not become the yardstick too.
    follow = _FOLLOW if before.slow == before.failing == 0.0 else _FOLLOW_SUSPECTED
    failures, failing = _failures(before, follow, failed=failed)
    answers, mean, variance, slow, recent = (
        (before.answers, before.mean, before.variance, before.slow, before.recent)
        if failed
        else _speed(before, seconds, follow)
    )
    high = slow > _ALARM_SLOW or failing > _ALARM_FAILING
    low = slow <= _CALM * _ALARM_SLOW and failing <= _CALM * _ALARM_FAILING
    return Drift(
        calls=min(before.calls + 1, _NORMAL_CALLS),
        answers=answers,
        mean=mean,
        variance=variance,
        failures=failures,
        slow=slow,
        failing=failing,
        recent=recent,
        drifting=high or (before.drifting and not low),
    )


def _failures(before: Drift, follow: float, *, failed: bool) -> tuple[float, float]:
    """The normal share of failures, and the sum, after one more call."""
    if before.calls < _NORMAL_CALLS:
        return before.failures + (failed - before.failures) / (before.calls + 1), before.failing
    if not failed and before.failing == before.failures == 0.0:
        return 0.0, 0.0
    normal = max(before.failures, _LEAST_FAILURES)
    worse = min(max(_WORSE, _WORSE_TIMES * normal), 0.9)
    normal = min(normal, worse / 2)
    said = math.log(worse / normal) if failed else math.log((1 - worse) / (1 - normal))
    failing = min(max(before.failing + said, 0.0), 2 * _ALARM_FAILING)
    return before.failures + follow * (failed - before.failures), failing


def _speed(before: Drift, seconds: float, follow: float) -> tuple[int, float, float, float, float]:
    """Answers, mean, variance, the sum and what a call takes lately, after one more answer."""
    value = math.log(max(seconds, 1e-6))
    recent = seconds if before.answers == 0 else before.recent + 0.3 * (seconds - before.recent)
    apart = value - before.mean
    if before.answers < _NORMAL_CALLS:
        answers = before.answers + 1
        mean = before.mean + apart / answers
        variance = before.variance + (apart * (value - mean) - before.variance) / answers
        return answers, mean, variance, before.slow, recent
    deviations = apart / max(math.sqrt(before.variance), _LEAST_DEVIATION)
    slow = before.slow + min(deviations, _MOST_DEVIATIONS) - _SLACK
    squared = min(apart * apart, 4 * max(before.variance, _LEAST_DEVIATION**2))
    variance = before.variance + follow * (squared - before.variance)
    return before.answers, before.mean + follow * apart, variance, min(max(slow, 0.0), 2 * _ALARM_SLOW), recent
