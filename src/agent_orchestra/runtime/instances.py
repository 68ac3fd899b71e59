"""The places where an agent runs, and what is known of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agent_orchestra.core import health
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.breaker import CLOSED, Breaker, BreakerPolicy, BreakerState
from agent_orchestra.core.health import CALM, Drift, Window
from agent_orchestra.core.resilience import BudgetPolicy

if TYPE_CHECKING:
    from agent_orchestra.runtime.executor import Backend

__all__ = ["Change", "Dispatching", "Instance", "Observer", "Unobserved"]


class Observer(Protocol):
    """Is told what changes about instances. Never raises, never waits."""

    def changed(self, tenant: str, agent_id: str, instance_id: str, event: str, reason: str, /) -> None:
        """``tenant``: whose agent it is.

        ``event``: ``breaker.open``, ``breaker.half-open``, ``breaker.closed``, ``drift.began``, ``drift.ended``,
        ``check.failed`` (two in a row), ``check.passed``.
        """
        ...


class Unobserved:
    """Conforms to :class:`Observer`; does nothing."""

    def changed(self, *_: str) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatching:
    """How calls are spread and held back, for the whole service. Not ``balanced``: the first free one takes each."""

    balanced: bool = True
    algorithm: Algorithm = Algorithm.ROUND_ROBIN
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)


#: What has changed: the id of the instance, the event of :meth:`Observer.changed`, and the reason.
Change = tuple[str, str, str]


def _never() -> bool:
    return False


@dataclass(slots=True, eq=False)
class Instance:
    """One place where an agent runs, with what is known of it now. Conforms to :class:`~core.balancing.Load`.

    ``rank``: 0 is preferred; higher ones stand by. ``repeatable``: a call that was cut off may be made once more, by
    another instance, since it has no effects. ``paused`` tells whether a call would have to wait there, as behind a
    vendor's rate limit. ``check`` returns when the instance is well and raises when it is not; none where there is
    nothing to ask. ``mentions``: other agents that its definition names, by the place where it does.

    Kept by who calls it: ``share``, its weight by definition; ``resting_until``, when it may be called again after it
    asked to be left alone; ``unwell``, why its last checks failed; ``checked_ms``, when the last one was (since 1970).
    """

    id: str
    backend: Backend
    rank: int = 0
    repeatable: bool = False
    paused: Callable[[], bool] = _never
    check: Callable[[], Awaitable[None]] | None = None
    mentions: Mapping[str, str] = field(default_factory=dict[str, str])
    share: float = 1.0
    in_flight: int = 0
    breaker: Breaker = CLOSED
    window: Window = field(default_factory=Window)
    drift: Drift = CALM
    peak: float = 0.0
    ended: float = 0.0
    resting_until: float = 0.0
    unwell: str | None = None
    checked_ms: int | None = None

    @property
    def weight(self) -> float:
        return self.share * self.drift.factor

    @property
    def mean_seconds(self) -> float:
        return self.window.mean_seconds

    @property
    def success_rate(self) -> float:
        return self.window.success_rate

    def peak_seconds(self, now: float) -> float:
        """It fades while nothing is called, so that one that was slow is tried again."""
        return health.peak(self.peak, now - self.ended, 0.0)

    @property
    def limited(self) -> bool:
        """Whether something of its own sees to it that calls wait for its rate limit."""
        return self.paused is not _never

    @property
    def healthy(self) -> bool:
        return self.unwell is None and self.breaker.state is BreakerState.CLOSED

    def why_not(self, now: float) -> tuple[str, float | None] | None:
        """Why it takes no call, full or not, and in how many seconds it may; none when it takes one."""
        if self.share <= 0:
            return "has weight 0", None
        if self.unwell is not None:
            return f"is not well: {self.unwell}", None
        if self.resting_until > now:
            left = self.resting_until - now
            return f"asked to be left alone for {left:.1f} s more", left
        if self.breaker.state is BreakerState.HALF_OPEN:
            return f"is being tried after {self.breaker.reason}", 1.0
        if self.breaker.state is BreakerState.OPEN and self.breaker.until > now:
            left = self.breaker.until - now
            return f"is left alone for {left:.1f} s more after {self.breaker.reason}", left
        return None
