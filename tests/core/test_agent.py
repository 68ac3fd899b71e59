"""What makes a definition valid, which agents are wanted, and which status facts amount to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.core.agent import (
    MAX_LINE_CHARS,
    MAX_LINES,
    MAX_TEXT_CHARS,
    RESERVED_IDS,
    Agent,
    Balancing,
    Filter,
    Limits,
    Role,
    Status,
    SystemHealth,
    check,
    matches,
    status,
    system_health,
)
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.resilience import MOST_ATTEMPTS, Action, Recovery

FULL = Agent(
    id="billing.v2_a-1",
    kind="offline",
    name="Billing",
    version="2026-01",
    provider="anthropic",
    role=Role.SPECIALIST,
    capabilities=("invoices", "refunds"),
    domain="finance",
    description="Rechnungen, Zahlungen und 🧾.",
    examples=("Why was I charged?",),
    keywords=("invoice", "bill"),
    priority=-1_000,
    read_only=True,
    limits=Limits(concurrency=10_000, timeout=86_400, queue=10_000),
    balancing=Balancing(algorithm=Algorithm.WEIGHTED, weights={"in-process": 2.5, "other": 0}, sticky=True),
    recovery=Recovery(
        attempts=MOST_ATTEMPTS,
        base=3_600,
        cap=3_600,
        actions={"*": Action.ABORT, "agent_failed.My.Error": Action.RETRY, "model_rate_limited": Action.REASSIGN},
        exhausted=Action.ESCALATE,
        hedge=True,
    ),
    settings={"knowledge": ["a", "b"], "deep": {"er": [1, 2.5, None, True]}},
)

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", fullmatch=True).filter(lambda text: text not in RESERVED_IDS)
fine_text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=64)
lines = st.lists(fine_text.filter(lambda text: bool(text.strip())), max_size=5).map(tuple)


def paths(agent: Agent) -> list[str]:
    return [fault.path for fault in check(agent)]


@given(
    st.builds(
        Agent,
        id=ids,
        kind=st.sampled_from(["function", "offline"]),
        name=fine_text,
        version=fine_text,
        provider=st.none() | fine_text,
        domain=st.none() | fine_text,
        description=fine_text,
        capabilities=lines,
        examples=lines,
        keywords=lines,
        priority=st.integers(-1_000, 1_000),
        limits=st.builds(
            Limits,
            concurrency=st.integers(1, 10_000),
            timeout=st.none() | st.floats(0, 86_400, exclude_min=True, allow_subnormal=False),
            queue=st.integers(0, 10_000),
        ),
        balancing=st.builds(
            Balancing,
            algorithm=st.none() | st.sampled_from(Algorithm),
            weights=st.dictionaries(fine_text, st.floats(0, 1_000_000), max_size=4),
        ),
        recovery=st.builds(
            Recovery,
            attempts=st.integers(1, MOST_ATTEMPTS),
            base=st.floats(0.001, 10),
            cap=st.floats(10, 3_600),
            actions=st.dictionaries(st.sampled_from(["*", "agent_failed"]), st.sampled_from(Action)),
            exhausted=st.sampled_from([Action.ABORT, Action.ESCALATE]),
        ),
        settings=st.dictionaries(fine_text, st.none() | st.booleans() | st.integers() | fine_text, max_size=3),
    )
)
def test_valid_definitions_have_no_fault(agent: Agent) -> None:
    assert check(agent) == ()


def test_a_definition_at_every_limit_is_valid() -> None:
    assert check(FULL) == ()
    assert check(Agent(id="a", kind="x")) == ()
    full = dataclasses.replace(
        FULL,
        id="a" * 64,
        name="n" * MAX_LINE_CHARS,
        version="v" * 64,
        provider="p" * 64,
        domain="d" * 64,
        description="d" * MAX_TEXT_CHARS,
        keywords=("k" * MAX_LINE_CHARS,) * MAX_LINES,
        priority=1_000,
        limits=Limits(concurrency=1, timeout=5e-324),
        balancing=Balancing(weights={f"i{number}": 0 for number in range(MAX_LINES)}),
        recovery=Recovery(attempts=1, base=1e-9, cap=1e-9),
    )
    assert check(full) == ()


@pytest.mark.parametrize(
    "agent_id",
    ["", " ", "a b", "-a", ".a", "_a", "a" * 65, "a/b", "a\n", "a\0", "ä", "a\ud800", "\u0661", *sorted(RESERVED_IDS)],
)
def test_an_id_that_cannot_stand_in_a_path_is_a_fault(agent_id: str) -> None:
    assert paths(Agent(id=agent_id, kind="offline")) == ["id"]


@pytest.mark.parametrize("agent_id", ["healthy", "Health", "health.1", "resolve_", "0", "a.-_"])
def test_an_id_that_is_only_near_a_reserved_one_is_fine(agent_id: str) -> None:
    assert paths(Agent(id=agent_id, kind="offline")) == []


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("kind", "", "kind"),
        ("name", "n" * (MAX_LINE_CHARS + 1), "name"),
        ("version", "v" * 65, "version"),
        ("provider", "p" * 65, "provider"),
        ("domain", "d" * 65, "domain"),
        ("description", "d" * (MAX_TEXT_CHARS + 1), "description"),
        ("capabilities", ("ok", ""), "capabilities.1"),
        ("examples", ("  \t",), "examples.0"),
        ("keywords", ("k" * (MAX_LINE_CHARS + 1),), "keywords.0"),
        ("keywords", ("k",) * (MAX_LINES + 1), "keywords"),
        ("priority", 1_001, "priority"),
        ("priority", -1_001, "priority"),
        ("limits", Limits(concurrency=0), "limits.concurrency"),
        ("limits", Limits(concurrency=10_001), "limits.concurrency"),
        ("limits", Limits(timeout=0.0), "limits.timeout"),
        ("limits", Limits(timeout=-1.0), "limits.timeout"),
        ("limits", Limits(timeout=86_400.5), "limits.timeout"),
        ("limits", Limits(timeout=math.nan), "limits.timeout"),
        ("limits", Limits(timeout=math.inf), "limits.timeout"),
        ("limits", Limits(queue=-1), "limits.queue"),
        ("limits", Limits(queue=10_001), "limits.queue"),
        ("balancing", Balancing(weights={"a": 1, "b": -0.5}), "balancing.weights.b"),
        ("balancing", Balancing(weights={"a": math.nan}), "balancing.weights.a"),
        ("balancing", Balancing(weights={"a": math.inf}), "balancing.weights.a"),
        ("balancing", Balancing(weights={"a": 1e308}), "balancing.weights.a"),
        ("balancing", Balancing(weights={f"i{number}": 1 for number in range(MAX_LINES + 1)}), "balancing.weights"),
        ("recovery", Recovery(attempts=0), "recovery.attempts"),
        ("recovery", Recovery(attempts=MOST_ATTEMPTS + 1), "recovery.attempts"),
        ("recovery", Recovery(base=0.0), "recovery.base"),
        ("recovery", Recovery(base=math.nan), "recovery.base"),
        ("recovery", Recovery(cap=3_600.5), "recovery.cap"),
        ("recovery", Recovery(cap=math.inf), "recovery.cap"),
        ("recovery", Recovery(base=2.0, cap=1.0), "recovery.base"),
        ("recovery", Recovery(exhausted=Action.RETRY), "recovery.exhausted"),
        ("recovery", Recovery(actions={"nothing_known": Action.RETRY}), "recovery.actions.nothing_known"),
        ("recovery", Recovery(actions={"": Action.RETRY}), "recovery.actions."),
        ("recovery", Recovery(actions={"no_agent_matches": Action.RETRY}), "recovery.actions.no_agent_matches"),
        ("recovery", Recovery(actions={"content_refused.X": Action.RETRY}), "recovery.actions.content_refused.X"),
        ("name", "a\0b", "name"),
        ("version", "\0", "version"),
        ("provider", "\ud800", "provider"),
        ("domain", "\0", "domain"),
        ("description", "\udfff", "description"),
        ("capabilities", ("a\0",), "capabilities.0"),
        ("examples", ("fine", "a\0"), "examples.1"),
        ("keywords", ("a\ud800",), "keywords.0"),
        ("settings", {"knowledge": ["fine", "a\0"]}, "settings.knowledge.1"),
        ("settings", {"a\0": 1}, "settings"),
        ("settings", {"share": math.inf}, "settings.share"),
    ],
)
def test_each_rule_names_its_place(field: str, value: object, path: str) -> None:
    agent = dataclasses.replace(FULL, **{field: value})
    assert paths(agent) == [path]
    assert all(fault.message for fault in check(agent))


def test_all_faults_are_told_at_once() -> None:
    wrong = Agent(id="", kind="", name="\0", keywords=("",), priority=5_000, limits=Limits(concurrency=0, timeout=0.0))
    assert paths(wrong) == [
        "id",
        "kind",
        "keywords.0",
        "name",
        "priority",
        "limits.concurrency",
        "limits.timeout",
    ]


def test_an_error_that_is_no_error_is_told_with_the_nearest() -> None:
    agent = Agent(id="a", kind="x", recovery=Recovery(actions={"model_ratelimited": Action.RETRY, "zzz": Action.RETRY}))
    near, far = check(agent)
    assert near.message == "is no code of an error; did you mean 'model_rate_limited'?"
    assert "known: agent_failed, " in far.message


def test_a_policy_that_would_retry_for_ever_is_told_why() -> None:
    (fault,) = check(Agent(id="a", kind="x", recovery=Recovery(attempts=10**9)))
    assert str(fault) == "recovery.attempts: must lie between 1 and 20; without a bound it would retry for ever"


def test_only_an_agent_that_changes_nothing_may_be_asked_twice_at_once() -> None:
    hedged = Agent(id="a", kind="x", recovery=Recovery(hedge=True))
    (fault,) = check(hedged)
    assert (fault.path, "read_only: true" in fault.message) == ("recovery.hedge", True)
    assert check(dataclasses.replace(hedged, read_only=True)) == ()


def test_a_filter_without_fields_admits_all() -> None:
    assert all(matches(Filter(), agent, now) for agent in (FULL, Agent(id="a", kind="x")) for now in Status)


@pytest.mark.parametrize(
    ("wanted", "admitted"),
    [
        (Filter(role=Role.SPECIALIST), True),
        (Filter(role=Role.WORKER), False),
        (Filter(domain="finance"), True),
        (Filter(domain="travel"), False),
        (Filter(provider="anthropic"), True),
        (Filter(provider="openai"), False),
        (Filter(capability="Refunds"), True),
        (Filter(capability="refund"), False),
        (Filter(status=Status.IDLE), True),
        (Filter(status=Status.OFFLINE), False),
        (Filter(role=Role.SPECIALIST, domain="finance", capability="INVOICES", status=Status.IDLE), True),
        (Filter(role=Role.SPECIALIST, domain="finance", capability="INVOICES", status=Status.BUSY), False),
    ],
)
def test_a_filter_admits_what_fits_all_its_fields(wanted: Filter, admitted: bool) -> None:
    assert matches(wanted, FULL, Status.IDLE) is admitted


def test_an_agent_without_a_domain_is_not_of_any() -> None:
    assert not matches(Filter(domain="finance"), Agent(id="a", kind="x"), Status.IDLE)


@pytest.mark.parametrize(
    ("enabled", "instances", "healthy", "in_flight", "failures", "expected"),
    [
        (True, 1, 1, 0, 0, Status.IDLE),
        (True, 2, 2, 1, 0, Status.BUSY),
        (True, 1, 1, 0, 2, Status.IDLE),
        (True, 1, 1, 5, 2, Status.BUSY),
        (True, 1, 1, 0, 3, Status.DEGRADED),
        (True, 1, 1, 7, 9, Status.DEGRADED),
        (True, 3, 2, 0, 0, Status.DEGRADED),
        (True, 3, 1, 7, 0, Status.DEGRADED),
        (True, 3, 0, 0, 0, Status.OFFLINE),
        (True, 1, 0, 1, 9, Status.OFFLINE),
        (True, 0, 0, 0, 0, Status.OFFLINE),
        (True, 0, 0, 0, 9, Status.OFFLINE),
        (False, 1, 1, 1, 9, Status.DISABLED),
        (False, 2, 0, 0, 0, Status.DISABLED),
        (False, 0, 0, 0, 0, Status.DISABLED),
    ],
)
def test_status(
    *, enabled: bool, instances: int, healthy: int, in_flight: int, failures: int, expected: Status
) -> None:
    now = status(enabled=enabled, instances=instances, healthy=healthy, in_flight=in_flight, failures_in_row=failures)
    assert now is expected


def test_a_choice_may_be_given_by_its_name_and_one_that_is_none_is_told_with_the_nearest() -> None:
    named: Any = {"algorithm": "peak_ewma"}
    assert Balancing(**named).algorithm is Algorithm.PEAK_EWMA
    by_name: Any = {"actions": {"*": "retry"}, "exhausted": "escalate"}
    recovery = Recovery(**by_name)
    assert recovery.actions["*"] is Action.RETRY
    assert recovery.exhausted is Action.ESCALATE
    wrong: Any = {"algorithm": "peak_ewm"}
    actions: Any = {"actions": {"*": "retyr"}}
    agent = Agent(id="a", kind="x", balancing=Balancing(**wrong), recovery=Recovery(**actions))
    assert [str(fault) for fault in check(agent)] == [
        "balancing.algorithm: there is no 'peak_ewm'; did you mean 'peak_ewma'?",
        "recovery.actions.*: there is no 'retyr'; did you mean 'retry'?",
    ]


@pytest.mark.parametrize(
    ("unhealthy", "total", "expected"),
    [
        (0, 0, SystemHealth.HEALTHY),
        (0, 5, SystemHealth.HEALTHY),
        (1, 5, SystemHealth.WARNING),
        (1, 2, SystemHealth.WARNING),
        (2, 4, SystemHealth.WARNING),
        (3, 5, SystemHealth.DEGRADED),
        (1, 1, SystemHealth.DEGRADED),
    ],
)
def test_system_health(unhealthy: int, total: int, expected: SystemHealth) -> None:
    assert system_health(unhealthy=unhealthy, total=total) is expected


@given(st.integers(0, 50), st.integers(0, 50))
def test_one_more_unhealthy_agent_never_makes_a_system_healthier(unhealthy: int, healthy: int) -> None:
    total = unhealthy + healthy + 1
    worse = list(SystemHealth)
    before = system_health(unhealthy=unhealthy, total=total)
    after = system_health(unhealthy=unhealthy + 1, total=total)
    assert worse.index(after) >= worse.index(before)
