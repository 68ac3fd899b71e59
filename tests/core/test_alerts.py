"""When a rule fires, and when it does not any more."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.alerts import Alert, AlertState, Metric, Rule, Severity, advance, check

OK, PENDING, FIRING = AlertState.OK, AlertState.PENDING, AlertState.FIRING
RULE = Rule(name="busy", metric=Metric.REQUESTS_IN_FLIGHT, above=10, seconds=30)

#: What comes at each look: seconds since the one before, and the value.
looks = st.lists(
    st.tuples(st.floats(0.1, 20), st.one_of(st.none(), st.floats(allow_nan=True), st.sampled_from([9.0, 10.0, 11.0]))),
    max_size=40,
)
rules = st.builds(
    Rule,
    name=st.just("rule"),
    metric=st.just(Metric.REQUESTS_IN_FLIGHT),
    above=st.just(10.0),
    seconds=st.sampled_from([0.0, 5.0, 30.0]),
)


def played(rule: Rule, of: Sequence[tuple[float, float | None]]) -> list[tuple[float, Alert]]:
    """Each look with what it made of the rule."""
    now, alert, found = 0.0, Alert(since=0.0), list[tuple[float, Alert]]()
    for seconds, value in of:
        now += seconds
        alert = advance(rule, alert, value, now)
        found.append((now, alert))
    return found


def states(rule: Rule, *of: tuple[float, float | None]) -> list[AlertState]:
    return [alert.state for _, alert in played(rule, of)]


def test_it_fires_after_its_time_and_ends_with_the_first_good_value() -> None:
    assert states(RULE, (0, 11), (29, 12), (1, 11), (100, 11), (1, 10), (1, 11)) == [
        PENDING, PENDING, FIRING, FIRING, OK, PENDING,
    ]  # fmt: skip


def test_without_a_time_it_fires_at_once() -> None:
    at_once = dataclasses.replace(RULE, seconds=0.0)
    assert states(at_once, (0, 10), (1, 10.001), (1, 10)) == [OK, FIRING, OK]


def test_below_is_the_other_side() -> None:
    rule = Rule(name="ready", metric=Metric.DATABASE_READY, below=1)
    assert states(rule, (0, 1), (1, 0), (1, 1)) == [OK, FIRING, OK]


def test_what_has_no_value_breaks_no_rule() -> None:
    assert states(RULE, (0, 11), (10, None), (10, 11), (20, 11)) == [PENDING, OK, PENDING, PENDING]
    assert states(RULE, (0, 11), (40, 11), (1, None)) == [PENDING, FIRING, OK]
    assert played(RULE, [(0, math.nan)])[0][1] == Alert(since=0.0)


def test_a_state_knows_when_it_began() -> None:
    found = played(RULE, [(5, 1), (5, 11), (5, 11), (30, 11), (5, 11), (5, 1), (5, 2)])
    assert [alert.since for _, alert in found] == [0, 10, 10, 45, 45, 55, 55]


@given(rules, looks)
def test_it_fires_only_where_every_look_of_its_time_has_broken_it(
    rule: Rule, of: list[tuple[float, float | None]]
) -> None:
    found = played(rule, of)
    for number, (now, alert) in enumerate(found):
        since = now
        broken = True
        for (_, value), (then, _) in zip(reversed(of[: number + 1]), reversed(found[: number + 1]), strict=True):
            broken = value is not None and math.isfinite(value) and rule.broken_by(value)
            if not broken:
                break
            since = then
        breaks = (of[number][1] is not None) and alert.state is not OK
        assert (alert.state is FIRING) == (breaks and now - since >= rule.seconds)
        assert (alert.state is OK) == (alert.value is None or not rule.broken_by(alert.value))


@given(rules, looks)
def test_it_begins_to_fire_once_in_its_time_at_most(rule: Rule, of: list[tuple[float, float | None]]) -> None:
    found = played(rule, of)
    before = [Alert(since=0.0), *(alert for _, alert in found)]
    began = [now for (now, alert), last in zip(found, before, strict=False) if alert.state is FIRING is not last.state]
    assert all(later - earlier > rule.seconds for earlier, later in pairwise(began))


@given(rules, looks)
def test_a_state_changes_only_along_the_way(rule: Rule, of: list[tuple[float, float | None]]) -> None:
    seen = [OK, *(alert.state for _, alert in played(rule, of))]
    allowed = {(OK, PENDING), (PENDING, FIRING), (FIRING, OK), (PENDING, OK)} | {(OK, FIRING)}
    if rule.seconds:
        allowed -= {(OK, FIRING)}
    assert all(step in allowed or step[0] is step[1] for step in pairwise(seen))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(name="a b", metric="agents.unhealthy", above=1), "0.name: must be 1 to 64 letters"),
        (
            Rule(name="a", metric="agents.unhelthy", above=1),
            "0.metric: there is no 'agents.unhelthy'; did you mean 'agents.unhealthy'?",
        ),
        (Rule(name="a", metric="zzz", above=1), "0.metric: there is no 'zzz'; known: requests.in_flight, "),
        (
            Rule(name="a", metric="agents.unhealthy", above=1, severity="critcal"),
            "0.severity: there is no 'critcal'; did you mean 'critical'?",
        ),
        (Rule(name="a", metric="agents.unhealthy"), "0: must have 'above' or 'below', and not both"),
        (Rule(name="a", metric="agents.unhealthy", above=1, below=0), "0: must have 'above' or 'below', and not both"),
        (Rule(name="a", metric="agents.unhealthy", above=math.inf), "0.above: must be a number"),
        (Rule(name="a", metric="agent.success_rate", agent="x", below=95), "0.below: must lie between 0 and 1"),
        (Rule(name="a", metric="agent.p95_ms", above=1), "0.agent: is required for 'agent.p95_ms'"),
        (Rule(name="a", metric="agents.unhealthy", above=1, agent="x"), "0.agent: goes with metrics of an agent only"),
        (Rule(name="a", metric="agents.unhealthy", above=1, seconds=-1), "0.for: must lie between 0 and 86400 seconds"),
        (Rule(name="a", metric="agents.unhealthy", above=1, seconds=math.nan), "0.for: must lie"),
    ],
)
def test_wrong_rules_are_told_with_their_place(rule: Rule, said: str) -> None:
    faults = check([rule])
    assert [str(fault) for fault in faults if str(fault).startswith(said)], faults
    assert len(faults) == 1


def test_a_name_stands_once() -> None:
    rule = Rule(name="a", metric=Metric.AGENTS_UNHEALTHY, above=1)
    assert [fault.path for fault in check([rule, dataclasses.replace(rule, name="b"), rule])] == ["2.name"]


def test_every_metric_can_be_watched() -> None:
    rules = [
        Rule(
            name=metric.value,
            metric=metric,
            above=0.5,
            severity=Severity.INFO,
            agent="x" if metric.of_agent else None,
        )
        for metric in Metric
    ]
    assert check(rules) == ()
