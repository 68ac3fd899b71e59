"""The breaker of an instance, as a value: it lets calls through, lets none, or lets one through to see.

Times are seconds of a clock that only goes forward, given by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

__all__ = [
    "CLOSED",
    "TRANSITIONS",
    "Breaker",
    "BreakerEvent",
    "BreakerPolicy",
    "BreakerState",
    "Tally",
    "after_call",
    "diagram",
    "due",
    "given_up",
    "on_trial",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Two counts over about the last ``window`` seconds: those of this window and, in part, those of the one before."""

    began: float = 0.0
    one: float = 0.0
    other: float = 0.0
    one_before: float = 0.0
    other_before: float = 0.0

    def add(self, now: float, window: float, *, one: int = 0, other: int = 0) -> Tally:
        """The counts with these added."""
        age = now - self.began
        if age < window:
            return Tally(
                began=self.began,
                one=self.one + one,
                other=self.other + other,
                one_before=self.one_before,
                other_before=self.other_before,
            )
        if age < 2 * window:
            return Tally(began=self.began + window, one=one, other=other, one_before=self.one, other_before=self.other)
        return Tally(began=now, one=one, other=other)

    def at(self, now: float, window: float) -> tuple[float, float]:
        """Both counts, as far as they lie within the last window."""
        age = now - self.began
        if age >= 2 * window:
            return 0.0, 0.0
        if age >= window:
            left = 2 - age / window
            return self.one * left, self.other * left
        left = 1 - max(age, 0.0) / window
        return self.one + self.one_before * left, self.other + self.other_before * left


class BreakerState(StrEnum):
    """CLOSED lets calls through, OPEN lets none, HALF_OPEN one: the trial."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class BreakerEvent(StrEnum):
    """What moves a breaker. FAILURES: as many, or such a share, as the policy bears."""

    FAILURES = "failures"
    REST_OVER = "rest over"
    TRIAL_SUCCEEDED = "trial succeeded"
    TRIAL_FAILED = "trial failed"
    TRIAL_GIVEN_UP = "trial given up"


#: The whole diagram. What does not stand here does not happen.
TRANSITIONS: Final[Mapping[tuple[BreakerState, BreakerEvent], BreakerState]] = {
    (BreakerState.CLOSED, BreakerEvent.FAILURES): BreakerState.OPEN,
    (BreakerState.OPEN, BreakerEvent.REST_OVER): BreakerState.HALF_OPEN,
    (BreakerState.HALF_OPEN, BreakerEvent.TRIAL_SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.HALF_OPEN, BreakerEvent.TRIAL_FAILED): BreakerState.OPEN,
    (BreakerState.HALF_OPEN, BreakerEvent.TRIAL_GIVEN_UP): BreakerState.OPEN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens, and for how long (``rest``, seconds).

    After ``failures`` in a row; or, where ``failure_share`` is given, when that share of the calls of the last
    ``window`` seconds failed, of at least ``least_calls``. ``slow``: a call that took so many seconds or more counts as
    a failure, however it ended.
    """

    enabled: bool = True
    failures: int = 5
    rest: float = 60.0
    failure_share: float | None = None
    window: float = 30.0
    least_calls: int = 20
    slow: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The breaker of one instance. ``until``: when its rest ends, while it is open. ``reason``: why it opened."""

    state: BreakerState = BreakerState.CLOSED
    in_row: int = 0
    calls: Tally = field(default_factory=Tally)
    until: float = 0.0
    reason: str = ""


CLOSED: Final = Breaker()


def after_call(
    breaker: Breaker, policy: BreakerPolicy, now: float, *, seconds: float, failure: str | None, trial: bool
) -> Breaker:
    """The breaker after a call that ended now. ``failure``: the code of what speaks against the instance, or none.

    ``trial``: this was the trial call. The end of an older call does not move a breaker that has opened since.
    """
    awaited = BreakerState.HALF_OPEN if trial else BreakerState.CLOSED
    if not policy.enabled or breaker.state is not awaited:
        return breaker
    if failure is None and policy.slow is not None and seconds >= policy.slow:
        failure = f"slower than {policy.slow:g} s"
    if not trial:
        return _counted(breaker, policy, now, failure)
    if failure is None:
        return _moved(CLOSED, breaker, BreakerEvent.TRIAL_SUCCEEDED)
    rests = replace(breaker, until=now + policy.rest, reason=f"its trial call failed ({failure})")
    return _moved(rests, breaker, BreakerEvent.TRIAL_FAILED)


def _counted(breaker: Breaker, policy: BreakerPolicy, now: float, failure: str | None) -> Breaker:
    if failure is None and not breaker.in_row and policy.failure_share is None:
        return breaker
    calls = breaker.calls
    if policy.failure_share is not None:
        calls = calls.add(now, policy.window, one=1, other=1 if failure else 0)
    counted = replace(breaker, in_row=breaker.in_row + 1 if failure else 0, calls=calls)
    reason = _too_many(counted, policy, now) if failure else None
    if reason is None:
        return counted
    opened = Breaker(until=now + policy.rest, reason=f"{reason} ({failure})", in_row=counted.in_row)
    return _moved(opened, breaker, BreakerEvent.FAILURES)


def due(breaker: Breaker, now: float) -> bool:
    """Whether its rest is over, so that the next call may be the trial."""
    return breaker.state is BreakerState.OPEN and breaker.until <= now


def on_trial(breaker: Breaker) -> Breaker:
    """The breaker while its trial call runs; it must be :func:`due`."""
    return _moved(breaker, breaker, BreakerEvent.REST_OVER)


def given_up(breaker: Breaker, now: float) -> Breaker:
    """The breaker whose trial call said nothing, as one that was cancelled: the next call is the trial."""
    if breaker.state is not BreakerState.HALF_OPEN:
        return breaker
    return _moved(replace(breaker, until=now), breaker, BreakerEvent.TRIAL_GIVEN_UP)


def _moved(to: Breaker, before: Breaker, event: BreakerEvent) -> Breaker:
    return replace(to, state=TRANSITIONS[before.state, event])


def _too_many(breaker: Breaker, policy: BreakerPolicy, now: float) -> str | None:
    if breaker.in_row >= policy.failures:
        return f"{breaker.in_row} failures in a row"
    if policy.failure_share is not None:
        calls, failed = breaker.calls.at(now, policy.window)
        if calls >= policy.least_calls and failed >= policy.failure_share * calls:
            return f"{failed / calls:.0%} of the calls of {policy.window:g} s failed"
    return None


def diagram() -> str:
    """The diagram of :data:`TRANSITIONS`, in Mermaid."""
    lines = [f"    {before.name} --> {after.name}: {event}" for (before, event), after in TRANSITIONS.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {CLOSED.state.name}", *lines])
