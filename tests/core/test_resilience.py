"""What becomes of a call that failed: retry, reassign, hand over, escalate, abort."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.resilience import (
    Abort,
    Action,
    Budget,
    BudgetPolicy,
    Decision,
    Escalate,
    HandOver,
    Reassign,
    Recovery,
    Retry,
    Situation,
    action_of,
    affordable,
    after_failure,
    backoff,
)
from agent_orchestra.errors import (
    AgentFailed,
    AgentUnavailable,
    ContentRefused,
    DeadlineExceeded,
    Interrupted,
    ModelAuthenticationFailed,
    ModelOverloaded,
    ModelRateLimited,
    ModelServerError,
    RunFailed,
)

POLICY = Recovery(attempts=4, base=0.2, cap=10.0)
#: One call has failed; there is time, and nobody else.
AFTER_ONE = Situation(calls=1, retries=0, left=60.0)

LATE = DeadlineExceeded("late")
LATE.elsewhere = True

errors = st.sampled_from(
    [
        AgentFailed("no", cause="ValueError"),
        AgentUnavailable("away"),
        ContentRefused("no"),
        DeadlineExceeded("late"),
        LATE,
        Interrupted("stop"),
        ModelAuthenticationFailed("key"),
        ModelServerError("down"),
        ModelRateLimited("limit", retry_after=1.0),
        ModelRateLimited("limit", retry_after=30.0),
        ModelOverloaded("busy", retry_after=0.0),
    ]
)
recoveries = st.builds(
    Recovery,
    attempts=st.integers(1, 20),
    base=st.floats(0.001, 5),
    cap=st.floats(5, 60),
    actions=st.dictionaries(
        st.sampled_from(["*", "agent_failed", "agent_failed.ValueError", "model_server_error", "deadline_exceeded"]),
        st.sampled_from(Action),
        max_size=3,
    ),
    exhausted=st.sampled_from([Action.ABORT, Action.ESCALATE]),
)
situations = st.builds(
    Situation,
    calls=st.integers(1, 8),
    retries=st.integers(0, 8),
    left=st.floats(-1, 60),
    told=st.booleans(),
    untried=st.booleans(),
    stand_by=st.booleans(),
    ready_in=st.just(0.0) | st.floats(0, 100) | st.just(math.inf),
    others=st.booleans(),
    affordable=st.booleans(),
)
chances = st.floats(0, 1, exclude_max=True)


def decided(error: RunFailed, now: Situation = AFTER_ONE, recovery: Recovery = POLICY, chance: float = 0.5) -> Decision:
    return after_failure(error, recovery, now, chance=chance)


# --- the action for an error


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (ModelServerError("down"), Action.REASSIGN),
        (ModelAuthenticationFailed("key"), Action.REASSIGN),
        (AgentUnavailable("away"), Action.REASSIGN),
        (AgentFailed("no", cause="ValueError"), Action.ABORT),
        (ContentRefused("no"), Action.ABORT),
        (DeadlineExceeded("late"), Action.ABORT),
        (LATE, Action.REASSIGN),
    ],
)
def test_where_the_policy_is_silent_the_error_says_whether_others_may_answer(error: RunFailed, action: Action) -> None:
    assert action_of(error, Recovery()) is action


def test_the_nearest_word_of_the_policy_holds() -> None:
    error = AgentFailed("no", cause="ValueError")
    words = {"*": Action.REASSIGN, "agent_failed": Action.ESCALATE, "agent_failed.ValueError": Action.RETRY}
    assert action_of(error, Recovery(actions=words)) is Action.RETRY
    assert action_of(AgentFailed("no", cause="KeyError"), Recovery(actions=words)) is Action.ESCALATE
    assert action_of(AgentFailed("no"), Recovery(actions=words)) is Action.ESCALATE
    assert action_of(ContentRefused("no"), Recovery(actions=words)) is Action.REASSIGN
    assert action_of(error, Recovery(actions={"agent_failed": Action.ABORT})) is Action.ABORT


# --- decisions


def test_another_instance_comes_first_then_a_pause_then_another_agent() -> None:
    error = ModelServerError("down")
    assert isinstance(decided(error, replace(AFTER_ONE, untried=True, others=True)), Reassign)
    assert decided(error, replace(AFTER_ONE, others=True), chance=0.5) == Retry(delay=0.1, reason="it may pass")
    spent = replace(AFTER_ONE, calls=4, untried=True, others=True)
    assert decided(error, spent) == HandOver(reason="4 calls are enough")
    assert decided(error, replace(spent, others=False)) == Abort(reason="4 calls are enough")


def test_what_no_pause_mends_is_not_waited_for() -> None:
    error = ModelAuthenticationFailed("key")
    assert decided(error) == Abort(reason="no other instance is left")
    assert isinstance(decided(error, replace(AFTER_ONE, others=True)), HandOver)
    assert isinstance(decided(error, replace(AFTER_ONE, untried=True)), Reassign)


def test_a_call_that_was_late_and_may_be_repeated_is_worth_a_second_try() -> None:
    assert isinstance(decided(LATE), Retry)
    assert isinstance(decided(LATE, replace(AFTER_ONE, untried=True)), Reassign)
    assert decided(DeadlineExceeded("late")) == Abort(reason="deadline_exceeded is not tried again")


def test_to_retry_is_to_make_a_pause_also_where_another_instance_is_left() -> None:
    retries = Recovery(actions={"agent_failed": Action.RETRY})
    error = AgentFailed("no")
    assert isinstance(decided(error, replace(AFTER_ONE, untried=True), retries), Retry)
    assert isinstance(decided(error, AFTER_ONE, retries), Retry)


def test_each_rank_that_stands_by_is_asked_whatever_the_number_of_calls() -> None:
    spent = replace(AFTER_ONE, calls=4, untried=True)
    assert isinstance(decided(ModelServerError("down"), replace(spent, stand_by=True)), Reassign)
    assert isinstance(decided(ModelServerError("down"), spent), Abort)
    assert isinstance(decided(ModelServerError("down"), replace(spent, stand_by=True, left=0.0)), Abort)


def test_an_agent_that_takes_no_calls_is_not_waited_for_in_vain() -> None:
    error = ModelServerError("down")
    assert decided(error, replace(AFTER_ONE, ready_in=3.0)) == Retry(delay=3.0, reason="it may pass")
    assert decided(error, replace(AFTER_ONE, ready_in=60.0)) == Abort(
        reason="a pause of 60 s is longer than a request is held for"
    )
    assert isinstance(decided(error, replace(AFTER_ONE, ready_in=60.0, others=True)), HandOver)
    assert decided(error, replace(AFTER_ONE, ready_in=math.inf)) == Abort(reason="no instance takes calls any more")


def test_what_is_for_a_person_goes_there_at_once() -> None:
    escalates = Recovery(actions={"content_refused": Action.ESCALATE})
    now = replace(AFTER_ONE, untried=True, others=True)
    assert decided(ContentRefused("no"), now, escalates) == Escalate(reason="content_refused is for a person")


def test_what_is_aborted_is_given_to_nobody_else() -> None:
    aborts = Recovery(actions={"*": Action.ABORT}, exhausted=Action.ESCALATE)
    now = replace(AFTER_ONE, untried=True, others=True)
    assert isinstance(decided(ModelServerError("down"), now, aborts), Abort)


def test_a_person_is_asked_when_nothing_else_is_left() -> None:
    last = replace(POLICY, exhausted=Action.ESCALATE)
    now = replace(AFTER_ONE, calls=4)
    assert decided(ModelServerError("down"), now, last) == Escalate(reason="4 calls are enough")
    assert isinstance(decided(ModelServerError("down"), replace(now, others=True), last), HandOver)


@pytest.mark.parametrize(
    ("now", "error", "reason"),
    [
        (replace(AFTER_ONE, left=0.05), ModelServerError("down"), "a pause of 0.1 s would outlast the deadline"),
        (replace(AFTER_ONE, affordable=False), ModelServerError("down"), "the budget of retries is spent"),
        (
            AFTER_ONE,
            ModelRateLimited("limit", retry_after=11.0),
            "a pause of 11 s is longer than a request is held for",
        ),
        (replace(AFTER_ONE, told=True), ModelServerError("down"), "part of the answer was told"),
    ],
)
def test_why_a_pause_is_not_made(now: Situation, error: RunFailed, reason: str) -> None:
    assert decided(error, now) == Abort(reason=reason)


@given(errors, recoveries, situations, chances)
def test_no_pause_outlasts_the_deadline_the_budget_or_the_attempts(
    error: RunFailed, recovery: Recovery, now: Situation, chance: float
) -> None:
    decision = decided(error, now, recovery, chance)
    if isinstance(decision, Retry):
        assert 0 <= decision.delay < now.left
        assert now.affordable
        assert now.calls < recovery.attempts
        for needed in (error.retry_after or 0.0, now.ready_in):
            assert needed <= recovery.cap
            assert decision.delay >= needed


@given(errors, recoveries, situations, chances)
def test_when_the_time_is_over_nobody_else_is_called(
    error: RunFailed, recovery: Recovery, now: Situation, chance: float
) -> None:
    if now.left <= 0:
        assert isinstance(decided(error, now, recovery, chance), Abort | Escalate)


@given(errors, recoveries, situations, chances)
def test_after_a_part_was_told_nothing_else_is_tried(
    error: RunFailed, recovery: Recovery, now: Situation, chance: float
) -> None:
    assert isinstance(decided(error, replace(now, told=True), recovery, chance), Abort)


@given(errors, recoveries, situations, chances)
def test_each_decision_has_what_it_needs(error: RunFailed, recovery: Recovery, now: Situation, chance: float) -> None:
    decision = decided(error, now, recovery, chance)
    assert decision.reason
    match decision:
        case Reassign():
            assert now.stand_by or (now.untried and now.calls < recovery.attempts)
        case HandOver():
            assert now.others
        case Escalate():
            assert Action.ESCALATE in (recovery.exhausted, action_of(error, recovery))
        case _:
            pass


@given(errors, recoveries, situations, chances)
def test_a_request_comes_to_an_end(error: RunFailed, recovery: Recovery, now: Situation, chance: float) -> None:
    """However often the same thing goes wrong: with each call there is less left to try."""
    now = replace(now, stand_by=False)
    for _ in range(recovery.attempts + 1):
        decision = decided(error, now, recovery, chance)
        if not isinstance(decision, Retry | Reassign):
            return
        pause = decision.delay if isinstance(decision, Retry) else 0.0
        now = replace(
            now, calls=now.calls + 1, retries=now.retries + isinstance(decision, Retry), left=now.left - pause
        )
    pytest.fail("it would go on for ever")


# --- pauses


@given(st.integers(0, 5_000), st.floats(0.001, 60), chances)
def test_a_pause_is_anything_up_to_a_bound_that_doubles(retries: int, base: float, chance: float) -> None:
    recovery = Recovery(base=base, cap=60.0)
    pause = backoff(recovery, retries, asked=None, chance=chance)
    bound = min(base * 2 ** min(retries, 100), 60.0)
    assert pause == pytest.approx(bound * chance)
    assert 0 <= pause <= recovery.cap


def test_pauses_grow_to_the_cap_and_no_further() -> None:
    recovery = Recovery(base=0.2, cap=2.0)
    assert [round(backoff(recovery, n, asked=None, chance=0.999_999), 2) for n in range(6)] == [
        0.2,
        0.4,
        0.8,
        1.6,
        2.0,
        2.0,
    ]


@given(st.floats(0, 600), st.integers(0, 40), chances)
def test_what_the_other_side_asks_for_is_waited_for_in_full(asked: float, retries: int, chance: float) -> None:
    assert backoff(POLICY, retries, asked=asked, chance=chance) >= asked


# --- the budget


def test_there_are_a_few_retries_in_any_case_and_then_a_share_of_the_calls() -> None:
    policy = BudgetPolicy(share=0.2, floor=3, window=10.0)
    budget, now = Budget(), 100.0
    for _ in range(3):
        assert affordable(budget, policy, now)
        budget = budget.retried(policy, now)
    assert not affordable(budget, policy, now)
    for _ in range(19):
        budget = budget.called(policy, now)
    assert not affordable(budget, policy, now)
    assert affordable(budget.called(policy, now), policy, now), "four are a fifth of twenty"
    assert affordable(budget, policy, now + 20.1), "what is long ago does not count"


def test_a_budget_of_nothing_has_no_retries() -> None:
    policy = BudgetPolicy(share=0.0, floor=0)
    budget = Budget()
    for _ in range(100):
        budget = budget.called(policy, 1.0)
    assert not affordable(budget, policy, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    after: float
    calls: int
    wants: int


@given(
    st.lists(
        st.builds(_Moment, after=st.floats(0, 4), calls=st.integers(0, 20), wants=st.integers(0, 20)), max_size=40
    ),
    st.floats(0, 1),
    st.integers(0, 5),
)
def test_retries_never_storm(moments: list[_Moment], share: float, floor: int) -> None:
    """However many want one: within the two windows that are counted there are no more than both of them allow."""
    policy = BudgetPolicy(share=share, floor=floor, window=5.0)
    budget, now = Budget(), 0.0
    calls: list[float] = []
    retries: list[float] = []
    for moment in moments:
        now += moment.after
        for _ in range(moment.calls):
            budget = budget.called(policy, now)
            calls.append(now)
        for _ in range(moment.wants):
            if affordable(budget, policy, now):
                budget = budget.retried(policy, now)
                retries.append(now)
        within = sum(when > now - policy.window for when in retries)
        lately = sum(when > now - 3 * policy.window for when in calls)
        assert within <= 2 * max(floor, share * lately) + 1
