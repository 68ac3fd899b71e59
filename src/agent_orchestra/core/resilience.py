"""What becomes of a call that failed. Values in, decisions out.

Times are seconds of a clock that only goes forward, given by the caller; chances are numbers in [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agent_orchestra.core.breaker import Tally
from agent_orchestra.errors import DeadlineExceeded, Escalated, RunFailed

__all__ = [
    "MOST_ATTEMPTS",
    "Abort",
    "Action",
    "Budget",
    "BudgetPolicy",
    "Decision",
    "Escalate",
    "HandOver",
    "Reassign",
    "Recovery",
    "Retry",
    "Situation",
    "action_of",
    "affordable",
    "after_failure",
    "backoff",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPolicy:
    """How many retries there may be: this share of the calls of the last ``window`` seconds, or ``floor`` if more."""

    share: float = 0.2
    floor: int = 10
    window: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The first calls and the retries of one agent."""

    calls: Tally = field(default_factory=Tally)

    def called(self, policy: BudgetPolicy, now: float) -> Budget:
        """The budget after the first call of a request."""
        return Budget(calls=self.calls.add(now, policy.window, one=1))

    def retried(self, policy: BudgetPolicy, now: float) -> Budget:
        """The budget after a retry."""
        return Budget(calls=self.calls.add(now, policy.window, other=1))


def affordable(budget: Budget, policy: BudgetPolicy, now: float) -> bool:
    """Whether one more retry keeps to the policy."""
    calls, retries = budget.calls.at(now, policy.window)
    return retries + 1 <= max(policy.floor, policy.share * calls)


#: More would be to retry for ever.
MOST_ATTEMPTS: Final = 20


class Action(StrEnum):
    """What is done about an error.

    RETRY: the same agent once more, after a pause. REASSIGN: the next instance at once; where none is left that was not
    tried, the same agent after a pause if the error may pass, and then the next agent of the route. ESCALATE: a person
    answers in the agent's place. ABORT: the request fails.
    """

    RETRY = "retry"
    REASSIGN = "reassign"
    ESCALATE = "escalate"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What is done about the errors of an agent.

    ``attempts``: calls of the agent for one request, at most; its stand-by instances are each tried once in any case.
    ``base`` and ``cap``: seconds of the first pause and of the longest. A pause that the other side asks for comes on
    top; where that is longer than ``cap``, the request is not held. ``actions``: by the code of the error, by
    ``agent_failed.<class>`` for what an agent's own code raised, or by ``*`` for all others; what does not stand there
    follows from the error itself (:func:`action_of`). ``exhausted``: what is done when nothing of that is left to try,
    ABORT or ESCALATE; what ``actions`` says is to be aborted is aborted. ``hedge``: a second instance is asked too when
    the first takes longer than 95 % of its calls did.
    """

    attempts: int = 4
    base: float = 0.2
    cap: float = 10.0
    actions: Mapping[str, Action] = field(default_factory=dict[str, Action])
    exhausted: Action = Action.ABORT
    hedge: bool = False

    def __post_init__(self) -> None:
        # Their names will do; one that is none is told where an agent is checked.
        known = {code: Action(action) if action in set(Action) else action for code, action in self.actions.items()}
        object.__setattr__(self, "actions", known)
        if self.exhausted in set(Action):
            object.__setattr__(self, "exhausted", Action(self.exhausted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Where a request stands when a call of it has failed.

    ``calls``: of this agent so far. ``retries``: pauses so far. ``left``: seconds to the deadline. ``told``: part of an
    answer was told. ``untried``: an instance that was not asked yet may take the call, and ``stand_by``: one of a rank
    of which none was asked yet. ``ready_in``: seconds until any instance of this agent may take a call again, infinite
    where that is not known. ``others``: another agent may take it. ``affordable``: the budget has a retry left.
    """

    calls: int
    retries: int
    left: float
    told: bool = False
    untried: bool = False
    stand_by: bool = False
    ready_in: float = 0.0
    others: bool = False
    affordable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The same agent once more, after ``delay`` seconds."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reassign:
    """Another instance of the agent, now. ``counted``: in the budget of retries."""

    reason: str
    counted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """The next agent of the route, now."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalate:
    """A person answers in the agent's place."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """The request fails with this error."""

    reason: str


Decision = Retry | Reassign | HandOver | Escalate | Abort


def named(error: RunFailed, recovery: Recovery) -> Action | None:
    """What the policy says about an error; none where it says nothing."""
    cause = error.data.get("cause")
    keys = (f"{error.code}.{cause}", error.code, "*")
    return next((recovery.actions[key] for key in keys if key in recovery.actions), None)


def action_of(error: RunFailed, recovery: Recovery) -> Action:
    """The action for an error: the policy's, else the one that the error itself allows.

    An error that says that another instance may answer is reassigned; everything else is aborted: nobody knows what the
    call has done. An agent asks for a person itself by raising :class:`Escalated`.
    """
    if isinstance(error, Escalated):
        return Action.ESCALATE
    return named(error, recovery) or (Action.REASSIGN if error.elsewhere else Action.ABORT)


def after_failure(error: RunFailed, recovery: Recovery, now: Situation, *, chance: float) -> Decision:
    """What is to be done about a failed call."""
    action = action_of(error, recovery)
    if now.told:
        return Abort(reason="part of the answer was told")
    if action is Action.ABORT:
        refused = Abort(reason=f"{error.code} is not tried again")
        said = named(error, recovery) is Action.ABORT
        return refused if said or recovery.exhausted is not Action.ESCALATE else Escalate(reason=refused.reason)
    if action is Action.ESCALATE:
        return Escalate(reason=f"{error.code} is for a person")
    found = _again(error, recovery, now, action, chance)
    if not isinstance(found, Abort):
        return found
    if now.others and now.left > 0:
        return HandOver(reason=found.reason)
    return Escalate(reason=found.reason) if recovery.exhausted is Action.ESCALATE else found


def _again(error: RunFailed, recovery: Recovery, now: Situation, action: Action, chance: float) -> Decision:
    """Another call of the same agent, or why there is none."""
    enough = now.calls >= recovery.attempts
    if action is Action.REASSIGN and now.left > 0:
        if now.stand_by or (now.untried and now.calls == 1 and not enough):
            return Reassign(reason="another instance may answer")
        if now.untried and not enough:
            return _counted(now)
    if enough:
        return Abort(reason=f"{now.calls} calls are enough")
    # A call that ran out of its own time may do better in a second try; its request still has some left.
    if action is Action.REASSIGN and not error.retryable and not isinstance(error, DeadlineExceeded):
        return Abort(reason="no other instance is left")
    delay = max(backoff(recovery, now.retries, asked=error.retry_after, chance=chance), now.ready_in)
    if fault := _unfit(delay, max(error.retry_after or 0.0, now.ready_in), recovery, now):
        return Abort(reason=fault)
    return Retry(delay=delay, reason="it may pass")


def _counted(now: Situation) -> Decision:
    if now.affordable:
        return Reassign(reason="another instance may answer", counted=True)
    return Abort(reason="the budget of retries is spent")


def _unfit(delay: float, needed: float, recovery: Recovery, now: Situation) -> str | None:
    """Why a pause must not be made, if it must not. ``needed``: seconds before which a call would be in vain."""
    if needed == math.inf:
        return "no instance takes calls any more"
    if needed > recovery.cap:
        return f"a pause of {needed:.3g} s is longer than a request is held for"
    if delay >= now.left:
        return f"a pause of {delay:.3g} s would outlast the deadline"
    return None if now.affordable else "the budget of retries is spent"


def backoff(recovery: Recovery, retries: int, *, asked: float | None, chance: float) -> float:
    """Seconds before the next call: anything up to a bound that doubles each time ("full jitter", Brooker, 2015).

    ``asked``: what the other side has asked for; it is waited for in full, and the jitter comes on top.
    """
    bound = min(recovery.base * 2.0 ** min(retries, 30), recovery.cap)
    return (asked or 0.0) + bound * chance
