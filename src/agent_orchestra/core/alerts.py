"""Rules on figures of the service, and what becomes of one from look to look.

Times are seconds of a clock that only goes forward, given by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from agent_orchestra.core.agent import ID_RULE, is_id
from agent_orchestra.core.values import nearest
from agent_orchestra.errors import Fault

__all__ = ["Alert", "AlertState", "Metric", "Rule", "Severity", "advance", "check"]

_LONGEST_SECONDS: Final = 86_400.0


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Metric(StrEnum):
    """What a rule may look at. Those of an agent are of the one that the rule names."""

    REQUESTS_IN_FLIGHT = "requests.in_flight"
    REQUESTS_WAITING = "requests.waiting"
    AGENTS_UNHEALTHY = "agents.unhealthy"
    AGENTS_UNHEALTHY_SHARE = "agents.unhealthy_share"
    AGENT_SUCCESS_RATE = "agent.success_rate"
    AGENT_P95_MS = "agent.p95_ms"
    AGENT_IN_FLIGHT = "agent.in_flight"
    PROCESS_MEMORY_BYTES = "process.memory_bytes"
    PROCESS_LOOP_LAG_MS = "process.loop_lag_ms"
    DATABASE_READY = "database.ready"
    PROVIDERS_UNREACHABLE = "providers.unreachable"

    @property
    def of_agent(self) -> bool:
        return self.value.startswith("agent.")


#: Metrics that lie in [0, 1]; a bound elsewhere is most likely meant in percent.
_SHARES: Final = (Metric.AGENTS_UNHEALTHY_SHARE, Metric.AGENT_SUCCESS_RATE, Metric.DATABASE_READY)


class AlertState(StrEnum):
    """PENDING: what the rule forbids is so, but not for long enough yet."""

    OK = "ok"
    PENDING = "pending"
    FIRING = "firing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Fires once the metric has been above, or below, a bound for so many seconds; exactly one of both is given.

    ``metric`` is one of :class:`Metric`; ``agent``: whose it is, where it is one of an agent.
    """

    name: str
    metric: str
    above: float | None = None
    below: float | None = None
    seconds: float = 0.0
    severity: str = Severity.WARNING
    agent: str | None = None

    def broken_by(self, value: float) -> bool:
        """Whether a value lies where the rule forbids; the bound itself is allowed."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """How a rule stands. ``since``: when this state began. ``value``: that of the last look; none where it had none."""

    since: float
    state: AlertState = AlertState.OK
    value: float | None = None


def advance(rule: Rule, before: Alert, value: float | None, now: float) -> Alert:
    """The alert after one more look.

    One good value ends it, whatever it was; it fires anew only after the whole time of its rule, so that a value that
    flaps fires once in that time at most. A metric without a value, as the success rate of an agent that is not called,
    breaks no rule: what is not seen to be so any more is not told as if it were.
    """
    if value is not None and not math.isfinite(value):
        value = None
    if value is None or not rule.broken_by(value):
        state, since = AlertState.OK, before.since if before.state is AlertState.OK else now
    elif before.state is AlertState.FIRING:
        state, since = AlertState.FIRING, before.since
    else:
        began = before.since if before.state is AlertState.PENDING else now
        fires = now - began >= rule.seconds
        state, since = (AlertState.FIRING, now) if fires else (AlertState.PENDING, began)
    return replace(before, state=state, since=since, value=value)


def check(rules: Sequence[Rule]) -> tuple[Fault, ...]:
    """All that is wrong with rules, each with its place such as ``1.metric``; empty when they are valid."""
    return tuple(_faults(rules))


def _faults(rules: Sequence[Rule]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for number, rule in enumerate(rules):
        if not is_id(rule.name):
            yield Fault(path=f"{number}.name", message=ID_RULE)
        elif (earlier := first.setdefault(rule.name, number)) != number:
            yield Fault(path=f"{number}.name", message=f"'{rule.name}' is the name of {earlier} already")
        for name, known in (("metric", list(Metric)), ("severity", list(Severity))):
            if getattr(rule, name) not in known:
                yield Fault(path=f"{number}.{name}", message=_unknown(getattr(rule, name), known))
        for fault in (*_faults_in_bound(rule), *_faults_in_agent(rule)):
            yield Fault(path=f"{number}{fault.path}", message=fault.message)
        if not (math.isfinite(rule.seconds) and 0 <= rule.seconds <= _LONGEST_SECONDS):
            yield Fault(path=f"{number}.for", message=f"must lie between 0 and {_LONGEST_SECONDS:.0f} seconds")


def _faults_in_bound(rule: Rule) -> Iterator[Fault]:
    given = [(name, bound) for name, bound in (("above", rule.above), ("below", rule.below)) if bound is not None]
    if len(given) != 1:
        yield Fault(path="", message="must have 'above' or 'below', and not both")
        return
    name, bound = given[0]
    if not math.isfinite(bound):
        yield Fault(path=f".{name}", message="must be a number")
    elif rule.metric in _SHARES and not 0 <= bound <= 1:
        yield Fault(path=f".{name}", message=f"must lie between 0 and 1, as '{rule.metric}' does")


def _faults_in_agent(rule: Rule) -> Iterator[Fault]:
    if rule.metric not in set(Metric):
        return
    of_agent = Metric(rule.metric).of_agent
    if of_agent and rule.agent is None:
        yield Fault(path=".agent", message=f"is required for '{rule.metric}'")
    elif not of_agent and rule.agent is not None:
        yield Fault(path=".agent", message=f"goes with metrics of an agent only, which '{rule.metric}' is not")


def _unknown(given: str, known: Sequence[str]) -> str:
    return f"there is no '{given}'; {nearest(given, known)}"
