"""The breaker of an instance: when it opens, when it lets one call through to see, when it closes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent_orchestra.core import breaker
from agent_orchestra.core.breaker import CLOSED, TRANSITIONS, Breaker, BreakerPolicy, BreakerState, Tally

POLICY = BreakerPolicy(failures=3, rest=10.0)

policies = st.builds(
    BreakerPolicy,
    enabled=st.sampled_from([True, True, True, False]),
    failures=st.integers(1, 6),
    rest=st.floats(0.1, 100),
    failure_share=st.none() | st.floats(0.01, 1),
    window=st.floats(0.1, 100),
    least_calls=st.integers(1, 30),
    slow=st.none() | st.floats(0.1, 5),
)


def called(
    before: Breaker,
    *failures: str | None,
    policy: BreakerPolicy = POLICY,
    now: float = 100.0,
    seconds: float = 0.01,
    trial: bool = False,
) -> Breaker:
    """The breaker after calls that ended at this moment, each with its failure."""
    for failure in failures:
        before = breaker.after_call(before, policy, now, seconds=seconds, failure=failure, trial=trial)
    return before


def opened(policy: BreakerPolicy = POLICY, now: float = 100.0) -> Breaker:
    return called(CLOSED, *["boom"] * policy.failures, policy=policy, now=now)


# --- it opens


def test_so_many_failures_in_a_row_open_it_and_it_says_why() -> None:
    assert called(CLOSED, "boom", "boom").state is BreakerState.CLOSED
    after = called(CLOSED, "boom", "boom", "bang")
    assert (after.state, after.until) == (BreakerState.OPEN, 110.0)
    assert after.reason == "3 failures in a row (bang)"


def test_a_success_between_them_begins_the_row_anew() -> None:
    after = called(CLOSED, "boom", "boom", None, "boom", "boom")
    assert after.state is BreakerState.CLOSED
    assert called(after, "boom").state is BreakerState.OPEN


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
def test_it_opens_with_the_first_row_that_is_long_enough_and_not_before(ends: list[bool], most: int) -> None:
    policy = BreakerPolicy(failures=most)
    now, row = CLOSED, 0
    for failed in ends:
        now, row = called(now, "boom" if failed else None, policy=policy), row + 1 if failed else 0
        assert (now.state is BreakerState.OPEN) is (row >= most)
        if row >= most:
            return


def test_a_share_of_failures_opens_it_however_they_are_spread() -> None:
    policy = BreakerPolicy(failures=100, failure_share=0.5, window=30, least_calls=10)
    after = called(CLOSED, *["boom", None] * 4, "boom", policy=policy)
    assert after.state is BreakerState.CLOSED, "nine calls say nothing"
    assert called(after, None, policy=policy).state is BreakerState.CLOSED, "a success does not open it"
    after = called(after, "boom", policy=policy)
    assert after.state is BreakerState.OPEN
    assert after.reason == "60% of the calls of 30 s failed (boom)"


def test_what_failed_long_ago_is_no_part_of_the_share() -> None:
    policy = BreakerPolicy(failures=100, failure_share=0.5, window=30, least_calls=4)
    after = called(CLOSED, *["boom", None, "boom"], policy=policy, now=100)
    assert called(after, "boom", policy=policy, now=101).state is BreakerState.OPEN
    assert called(after, "boom", policy=policy, now=165).state is BreakerState.CLOSED


@pytest.mark.parametrize(("seconds", "state"), [(1.99, BreakerState.CLOSED), (2.0, BreakerState.OPEN)])
def test_a_slow_call_counts_as_a_failure_where_the_policy_says_so(seconds: float, state: BreakerState) -> None:
    policy = BreakerPolicy(failures=2, slow=2.0)
    after = called(CLOSED, None, None, policy=policy, seconds=seconds)
    assert after.state is state
    if after.state is BreakerState.OPEN:
        assert after.reason == "2 failures in a row (slower than 2 s)"
    assert called(CLOSED, None, None, policy=BreakerPolicy(failures=2), seconds=seconds) == CLOSED


def test_one_that_is_switched_off_never_opens() -> None:
    off = BreakerPolicy(enabled=False, failures=1, failure_share=0.01, least_calls=1, slow=0.001)
    assert called(CLOSED, *["boom"] * 50, policy=off, seconds=9) == CLOSED


# --- it rests, and one call tries it


def test_the_rest_is_over_when_its_time_has_come() -> None:
    rests = opened()
    assert not breaker.due(rests, 109.9)
    assert breaker.due(rests, 110.0)
    assert not breaker.due(CLOSED, 1e9)
    assert not breaker.due(breaker.on_trial(rests), 1e9), "one trial at a time"


@given(st.sampled_from([CLOSED, breaker.on_trial(opened())]))
def test_only_one_that_rests_can_be_tried(now: Breaker) -> None:
    with pytest.raises(KeyError):
        breaker.on_trial(now)


def test_a_trial_that_succeeds_closes_it_with_a_clean_record() -> None:
    after = called(breaker.on_trial(opened()), None, now=120, trial=True)
    assert after == CLOSED
    assert called(after, "boom", "boom", now=121).state is BreakerState.CLOSED


def test_a_trial_that_fails_lets_it_rest_again_in_full() -> None:
    after = called(breaker.on_trial(opened()), "bang", now=120, trial=True)
    assert (after.state, after.until, after.reason) == (BreakerState.OPEN, 130.0, "its trial call failed (bang)")


def test_a_slow_trial_fails_too() -> None:
    policy = replace(POLICY, slow=1.0)
    after = called(breaker.on_trial(opened()), None, policy=policy, now=120, seconds=1.0, trial=True)
    assert after.state is BreakerState.OPEN


def test_after_a_trial_that_said_nothing_the_next_call_is_the_trial() -> None:
    after = breaker.given_up(breaker.on_trial(opened()), 115.0)
    assert after.state is BreakerState.OPEN
    assert breaker.due(after, 115.0)
    for other in (CLOSED, opened()):
        assert breaker.given_up(other, 115.0) == other


@given(st.sampled_from([opened(), breaker.on_trial(opened())]), st.none() | st.just("boom"), policies)
def test_the_end_of_an_older_call_moves_nothing(now: Breaker, failure: str | None, policy: BreakerPolicy) -> None:
    assert called(now, failure, policy=policy, now=200, seconds=9) == now


@given(st.sampled_from([CLOSED, opened()]), st.none() | st.just("boom"))
def test_a_trial_that_was_given_up_and_ends_later_moves_nothing(now: Breaker, failure: str | None) -> None:
    assert called(now, failure, trial=True) == now


# --- the diagram


@dataclass
class _Call:
    trial: bool


class Breaking(RuleBasedStateMachine):
    """One breaker under calls that overlap and end in any order; time goes on between them."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = BreakerPolicy(failures=2, rest=5.0, failure_share=0.6, window=10.0, least_calls=4, slow=3.0)
        self.now = 50.0
        self.state = CLOSED
        self.calls: list[_Call] = []
        self.opened_at = 0.0

    def moved(self, to: Breaker) -> None:
        before, self.state = self.state, to
        if before.state is not to.state:
            edges = {(one, other) for (one, _), other in TRANSITIONS.items()}
            assert (before.state, to.state) in edges, f"{before.state} to {to.state} is not in the diagram"
            if to.state is BreakerState.OPEN:
                self.opened_at = self.now
                assert to.reason

    @rule(seconds=st.floats(0.01, 12))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.state.state is BreakerState.CLOSED)
    @rule()
    def calls_one(self) -> None:
        self.calls.append(_Call(trial=False))

    @precondition(lambda self: breaker.due(self.state, self.now))
    @rule()
    def tries_it(self) -> None:
        self.moved(breaker.on_trial(self.state))
        self.calls.append(_Call(trial=True))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), failure=st.none() | st.just("boom"), seconds=st.floats(0, 4))
    def ends(self, data: st.DataObject, failure: str | None, seconds: float) -> None:
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        self.moved(
            breaker.after_call(self.state, self.policy, self.now, seconds=seconds, failure=failure, trial=call.trial)
        )

    @precondition(lambda self: any(call.trial for call in self.calls))
    @rule()
    def gives_its_trial_up(self) -> None:
        self.calls = [call for call in self.calls if not call.trial]
        self.moved(breaker.given_up(self.state, self.now))
        assert breaker.due(self.state, self.now)

    @invariant()
    def half_open_means_one_trial(self) -> None:
        trials = sum(call.trial for call in self.calls)
        assert trials == (self.state.state is BreakerState.HALF_OPEN)

    @invariant()
    def it_can_be_used_again_after_the_rest(self) -> None:
        if self.state.state is BreakerState.OPEN:
            assert breaker.due(self.state, self.opened_at + self.policy.rest)


TestBreaking = Breaking.TestCase


@given(policies, st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.floats(0, 6)), max_size=60))
def test_whatever_the_policy_it_moves_along_the_diagram(
    policy: BreakerPolicy, calls: Sequence[tuple[float, bool, float]]
) -> None:
    edges = {(one, other) for (one, _), other in TRANSITIONS.items()}
    state, now = CLOSED, 0.0
    for passed, failed, seconds in calls:
        now += passed
        trial = breaker.due(state, now)
        before = state
        if trial:
            state = breaker.on_trial(state)
        state = called(state, "boom" if failed else None, policy=policy, now=now, seconds=seconds, trial=trial)
        assert trial or before.state is state.state or (before.state, state.state) in edges
        assert state.state is not BreakerState.HALF_OPEN, "its trial call has ended"
        assert policy.enabled or state == CLOSED


def test_the_drawing_shows_each_transition_and_no_other() -> None:
    lines = breaker.diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> CLOSED"]
    assert lines[2:] == [
        "    CLOSED --> OPEN: failures",
        "    OPEN --> HALF_OPEN: rest over",
        "    HALF_OPEN --> CLOSED: trial succeeded",
        "    HALF_OPEN --> OPEN: trial failed",
        "    HALF_OPEN --> OPEN: trial given up",
    ]
    assert {(one, other) for (one, _), other in TRANSITIONS.items()} == {
        (BreakerState.CLOSED, BreakerState.OPEN),
        (BreakerState.OPEN, BreakerState.HALF_OPEN),
        (BreakerState.HALF_OPEN, BreakerState.CLOSED),
        (BreakerState.HALF_OPEN, BreakerState.OPEN),
    }


# --- counts over a window

moments = st.lists(st.tuples(st.floats(0, 8), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def counted(added: Sequence[tuple[float, int, int]], window: float) -> tuple[Tally, float]:
    tally, now = Tally(), 0.0
    for passed, one, other in added:
        now += passed
        tally = tally.add(now, window, one=one, other=other)
    return tally, now


@given(moments, st.floats(0, 30))
def test_a_count_is_never_negative_nor_more_than_there_was_in_two_windows(
    added: list[tuple[float, int, int]], later: float
) -> None:
    tally, now = counted(added, 5.0)
    one, other = tally.at(now + later, 5.0)
    ages = [now + later - sum(passed for passed, _, _ in added[: n + 1]) for n in range(len(added))]
    lately = [(a, b) for (_, a, b), age in zip(added, ages, strict=True) if age < 10.0 + 1e-6]
    assert 0 <= one <= sum(a for a, _ in lately) + 1e-6
    assert 0 <= other <= sum(b for _, b in lately) + 1e-6


@given(moments)
def test_what_lies_within_one_window_of_its_beginning_is_counted_in_full(added: list[tuple[float, int, int]]) -> None:
    tally, now = counted(added, 1_000.0)
    assert tally.at(now, 1_000.0) == (sum(a for _, a, _ in added), sum(b for _, _, b in added))


@given(moments, st.floats(0, 20), st.floats(0, 20))
def test_a_count_only_falls_while_nothing_is_added(
    added: list[tuple[float, int, int]], soon: float, later: float
) -> None:
    tally, now = counted(added, 5.0)
    earlier, after = tally.at(now + soon, 5.0), tally.at(now + soon + later, 5.0)
    assert after[0] <= earlier[0] + 1e-9
    assert after[1] <= earlier[1] + 1e-9
    assert tally.at(now + 10.0 + 1e-6, 5.0) == (0.0, 0.0)
