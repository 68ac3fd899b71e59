"""Has an agent answer: select an instance, call it, judge what comes back, settle what that says, and decide again."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, assert_never

from agent_orchestra.core import resilience
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.message import Attachment, Message
from agent_orchestra.core.request import Attempt, Reply
from agent_orchestra.core.resilience import (
    Abort,
    Action,
    BudgetPolicy,
    Decision,
    Escalate,
    HandOver,
    Reassign,
    Retry,
    Situation,
)
from agent_orchestra.core.values import JsonObject
from agent_orchestra.errors import AgentFailed, AgentUnavailable, DeadlineExceeded, NoInstanceAvailable, RunFailed
from agent_orchestra.runtime.instances import Change, Dispatching, Instance, Observer
from agent_orchestra.runtime.pool import Place, Pool
from agent_orchestra.runtime.telling import Teller, Voice, judged

__all__ = ["Backend", "Call", "Emit", "Executor", "Instance", "Line", "Outcome", "Pool", "Reserved"]

Emit = Callable[[str], None]
#: Agents that may answer a request, the best first, each with its instances.
Line = Sequence[tuple[Agent, Pool]]

#: A second instance is asked only where so many answers say how long the first should take.
_HEDGE_FROM = 20
#: The calls that may be made twice: those beyond 95 % of the others, and some room for a moment in which all are slow.
_HEDGES = BudgetPolicy(share=0.1, floor=2, window=10.0)
#: An instance that asks to be left alone for longer is asked again after that.
_LONGEST_REST = 600.0
#: A call that had less time than this may well have been in order.
_FAIR_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an instance is asked.

    ``history``: the messages before this one, oldest first. ``streamed``: somebody listens; where nobody does, the
    output may as well come whole. ``seconds``: how long the call may take; then it is cancelled.
    """

    request_id: str
    conversation_id: str
    tenant: str
    agent: Agent
    content: str
    attachments: Sequence[Attachment] = ()
    streamed: bool = False
    history: Sequence[Message] = ()
    context: JsonObject = field(default_factory=dict[str, None])
    user_id: str | None = None
    seconds: float | None = None


class Backend(Protocol):
    """Runs one instance of an agent."""

    async def run(self, call: Call, emit: Emit) -> Reply:
        """Answers the call.

        Either tells its output piece by piece through ``emit``, so that the pieces make up ``Reply.output``, or tells
        nothing and gives it whole. Raises :class:`AgentFailed` for what the agent did wrong; never a vendor's error.
        Ends when it is cancelled, as soon as what it runs allows.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: a reply or an error, what was told before, and every attempt that was made.

    ``agent_id`` and ``instance_id``: who gave the reply, or was called last. ``escalated``: a person is to answer.
    """

    reply: Reply | None
    error: RunFailed | None
    told: str
    attempts: tuple[Attempt, ...]
    agent_id: str = ""
    instance_id: str = ""
    escalated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """A place that was taken for a request, the agents that may follow, and those that could not take it."""

    place: Place
    others: Line = ()
    passed: Sequence[Attempt] = ()


class Executor:
    """Runs requests on the agents that may answer them, until one has or nothing is left to try."""

    def __init__(
        self,
        *,
        policy: Dispatching,
        max_output_chars: int,
        observer: Observer,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._max_output_chars = max_output_chars
        self._observer = observer
        self._chance = chance
        self._calls: set[asyncio.Task[Reply]] = set()

    async def reserve(self, line: Line, *, stick: str, seconds: float) -> Reserved:
        """Takes a place on an instance of the first agent that has one; :meth:`run` or :meth:`release` gives it back.

        Where all instances are full, waits within ``seconds`` if the agent lets calls wait; half of them where another
        agent follows. ``stick``: what the call belongs to, such as its conversation. Raises
        :class:`NoInstanceAvailable`, which names the instances of the first agent and why each of them takes no call.
        """
        deadline = time.perf_counter() + seconds
        passed: list[Attempt] = []
        errors: list[NoInstanceAvailable] = []
        for number, (agent, pool) in enumerate(line):
            place = None if pool.queued else self._take(agent, pool, (), stick)
            if place is None and pool.queued < agent.limits.queue:
                left = deadline - time.perf_counter()
                place = await self._freed(agent, pool, (), stick, left if number + 1 == len(line) else left / 2)
            if place is not None:
                return Reserved(place=place, others=line[number + 1 :], passed=passed)
            errors.append(error := pool.none_left(agent, time.perf_counter()))
            passed.append(_passed(agent, error))
        raise errors[0]

    def release(self, reserved: Reserved) -> None:
        """Gives back a place that no call was made on."""
        self._give_back(reserved.place)

    async def execute(self, line: Line, call: Call, *, seconds: float, emit: Callable[[str, int], None]) -> Outcome:
        """:meth:`reserve` and :meth:`run` in one; raises :class:`NoInstanceAvailable`."""
        began = time.perf_counter()
        reserved = await self.reserve(line, stick=call.conversation_id, seconds=seconds)
        call = dataclasses.replace(call, agent=reserved.place.agent)
        return await self.run(reserved, call, seconds=seconds - (time.perf_counter() - began), emit=emit)

    async def run(
        self,
        reserved: Reserved,
        call: Call,
        *,
        seconds: float,
        emit: Callable[[str, int], None],
        attempts: list[Attempt] | None = None,
    ) -> Outcome:
        """The call of a reserved instance, and what the agent's policy makes of it when that fails.

        Nothing is tried again after a piece of output was told: there is no change of voice in the middle of a
        sentence. Never raises but for its own cancellation. ``emit`` gets each piece of output and the number of
        characters before it. An instance that does not end when its time is over is left behind; it keeps its place
        until it ends, so that runaways cannot pile up. ``attempts`` is filled as they are made, for who cancels it.
        """
        run = _Run(reserved, call, time.perf_counter(), seconds, Teller(emit, self._max_output_chars))
        if attempts is not None:
            attempts += run.attempts
            run.attempts = attempts
        place: Place | None = self._still_good(run, reserved.place)
        reply: Reply | None = None
        decision: Decision | None = None
        try:
            while reply is None and not isinstance(decision, Abort | Escalate):
                error: RunFailed | None = None
                if place is not None:
                    reply, error = await self._attempt(run, place)
                elif decision is None:
                    error = run.unplaced()
                if reply is None:
                    decision = self._decide(run, error)
                    place = await self._next(run, decision)
        finally:
            told = run.teller.close()
        run.ended(reply)
        answered = next((a for a in run.attempts if a.decision == _ANSWERED), run.attempts[-1])
        return Outcome(
            reply=reply,
            error=None if reply is not None else _most_telling(run.errors),
            told=told,
            attempts=tuple(run.attempts),
            agent_id=answered.agent_id,
            instance_id=answered.instance_id,
            escalated=isinstance(decision, Escalate),
        )

    async def close(self, seconds: float) -> None:
        """Cancels the calls that are left, and waits for them as long as it may."""
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=seconds)

    # --- select

    def _take(self, agent: Agent, pool: Pool, without: Sequence[Instance], stick: str | None) -> Place | None:
        now = time.perf_counter()
        place = pool.take(agent, self._policy, now, tried=without, stick=stick, chance=self._chance)
        if place is not None and place.changes:
            self._tell(place, place.changes)
        return place

    async def _freed(
        self, agent: Agent, pool: Pool, without: Sequence[Instance], stick: str, seconds: float
    ) -> Place | None:
        """A place on an instance once one is free; none when the time is over, or none takes calls now."""
        if seconds <= 0 or not pool.usable(time.perf_counter(), tried=without):
            return None
        take = partial(self._take, agent, pool, without, stick)

        def hopeful() -> bool:
            return pool.usable(time.perf_counter(), tried=without)

        return await pool.wait(take, seconds, picky=bool(without), agent=agent, hopeful=hopeful)

    async def _place(self, run: _Run, agent: Agent, pool: Pool, without: Sequence[Instance]) -> Place | None:
        stick = run.call.conversation_id
        taken = self._take(agent, pool, without, stick)
        return taken or await self._freed(agent, pool, without, stick, run.deadline - time.perf_counter())

    def _give_back(self, place: Place) -> None:
        self._tell(place, place.pool.unsaid(place, time.perf_counter()))
        place.pool.leave(place)

    def _still_good(self, run: _Run, place: Place) -> Place | None:
        """The place, or another where its instance was ejected, or asked to be left alone, since it was taken."""
        if place.trial or place.instance.why_not(time.perf_counter()) is None:
            return place
        self._give_back(place)
        return self._take(run.agent, run.pool, (), run.call.conversation_id)

    async def _next(self, run: _Run, decision: Decision) -> Place | None:
        """The place of the next call, if there is one."""
        match decision:
            case Abort() | Escalate():
                return None
            case HandOver():
                return await self._handed_over(run)
            case Reassign(counted=counted):
                if counted:
                    run.pool.budget = run.pool.budget.retried(self._policy.budget, time.perf_counter())
                return await self._place(run, run.agent, run.pool, run.unwanted)
            case Retry(delay=delay):
                run.retries += 1
                run.delay = delay
                run.pool.budget = run.pool.budget.retried(self._policy.budget, time.perf_counter())
                await asyncio.sleep(delay)
                # Another one than those that failed, if there is one; else any that a pause may have mended.
                fresh = self._take(run.agent, run.pool, run.tried, run.call.conversation_id)
                return fresh or await self._place(run, run.agent, run.pool, run.hopeless)
            case _:
                assert_never(decision)

    async def _handed_over(self, run: _Run) -> Place | None:
        """A place of the first of the other agents that has one; where all are full, the first is waited for."""
        others, run.others = run.others, []
        place: Place | None = None
        for number, (agent, pool) in enumerate(others):
            if place := self._take(agent, pool, (), run.call.conversation_id):
                run.others = others[number + 1 :]
                break
        full = [(agent, pool) for agent, pool in others if pool.usable(time.perf_counter())]
        if place is None and full:
            place = await self._place(run, *full[0], ())
            run.others = full[1:]
        if place is not None:
            run.hand_over(place)
        return place

    # --- call

    async def _attempt(self, run: _Run, place: Place) -> tuple[Reply | None, RunFailed | None]:
        """One call, or two where the first takes long and the agent may be asked twice at once."""
        limit = run.deadline - time.perf_counter()
        if limit <= 0:
            self._give_back(place)
            return None, run.late()
        if run.agent.limits.timeout is not None:
            limit = min(limit, run.agent.limits.timeout)
        if run.calls == 0:
            run.pool.budget = run.pool.budget.called(self._policy.budget, time.perf_counter())
            if run.agent.recovery.hedge:
                run.pool.hedges = run.pool.hedges.called(_HEDGES, time.perf_counter())
        first = self._started(run, place, limit)
        second: _Calling | None = None
        try:
            patience = self._patience(run, place)
            if patience is not None and patience < limit:
                await asyncio.wait((first.task,), timeout=patience)
                if not first.task.done() and not run.teller.length:
                    second = self._hedged(run, first)
            if second is not None:
                return await self._faster(run, first, second)
            await self._over(first)
        except asyncio.CancelledError:
            for calling in (first, second):
                if calling is not None and not calling.over:
                    self._given_up(run, calling, "nobody wants the answer any more")
            raise
        return self._settled(run, first)

    def _started(self, run: _Run, place: Place, seconds: float, *, hedge: bool = False) -> _Calling:
        voice = Voice(run.teller)
        task = asyncio.create_task(place.instance.backend.run(dataclasses.replace(run.call, seconds=seconds), voice))
        self._calls.add(task)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task.add_done_callback(partial(self._ended, place, ended))
        calling = _Calling(
            place=place,
            task=task,
            ended=ended,
            voice=voice,
            began=time.perf_counter(),
            seconds=seconds,
            hedge=hedge,
            delay=run.delay,
        )
        run.delay = 0.0
        run.calls += 1
        run.tried.append(place.instance)
        return calling

    def _ended(self, place: Place, ended: asyncio.Future[None], task: asyncio.Task[Reply]) -> None:
        self._calls.discard(task)
        # Who waits for the call is woken first, so that it is judged before who gets its place makes the next.
        _wake(ended)
        place.pool.leave(place)
        if not task.cancelled():
            task.exception()

    @staticmethod
    async def _over(calling: _Calling) -> None:
        """Returns when a call has ended, or its time is over; costs half of what ``asyncio.wait`` does."""
        left = max(calling.ends - time.perf_counter(), 0.0)
        timer = asyncio.get_running_loop().call_later(left, _wake, calling.ended)
        try:
            await calling.ended
        finally:
            timer.cancel()

    # --- call twice

    def _patience(self, run: _Run, place: Place) -> float | None:
        """Seconds after which a second instance is asked too; none where that is not wanted, or not known."""
        if not run.agent.recovery.hedge or place.instance.window.answered < _HEDGE_FROM:
            return None
        return place.instance.window.quantile(0.95)

    def _hedged(self, run: _Run, first: _Calling) -> _Calling | None:
        now = time.perf_counter()
        pool = run.pool
        if run.calls >= run.agent.recovery.attempts or not resilience.affordable(pool.hedges, _HEDGES, now):
            return None
        place = self._take(run.agent, pool, run.tried, None)
        if place is None:
            return None
        pool.hedges = pool.hedges.retried(_HEDGES, now)
        second = self._started(run, place, first.ends - now, hedge=True)
        # From here on whoever speaks first is heard, and the other is not.
        for one, other in ((first, second), (second, first)):
            one.voice.before_first_word = other.outspoken
        return second

    async def _faster(self, run: _Run, first: _Calling, second: _Calling) -> tuple[Reply | None, RunFailed | None]:
        """The first good answer of two calls, the other is cancelled; or how the last of them failed."""
        left = [first, second]
        # All that is known of the first one when it loses is that it had not answered by then.
        late = second.began - first.began
        while True:
            seconds = max(first.ends - time.perf_counter(), 0.0)
            await asyncio.wait([c.task for c in left], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for calling in [c for c in left if c.unheard]:
                left.remove(calling)
                self._given_up(run, calling, "the other spoke first", late if calling is first else None)
            for calling in [c for c in left if c.task.done() or c.ends <= time.perf_counter()]:
                left.remove(calling)
                reply, error = self._settled(run, calling)
                if reply is not None or not left:
                    for other in left:
                        self._given_up(run, other, "the other answered first", late if other is first else None)
                    return reply, error
                # The other goes on alone.
                run.attempts[-1] = dataclasses.replace(
                    run.attempts[-1], decision="reassign", reason="another instance is asked already"
                )

    def _given_up(self, run: _Run, calling: _Calling, reason: str, late: float | None = None) -> None:
        """Cancels a call. ``late``: it takes longer than so many seconds, if that is known."""
        calling.over = calling.voice.silenced = True
        calling.task.cancel()
        now, place = time.perf_counter(), calling.place
        self._tell(place, place.pool.unsaid(place, now) if late is None else place.pool.outrun(place, now, late))
        run.attempts.append(calling.attempt(now, None, "cancelled", reason))

    # --- judge and settle

    def _settled(self, run: _Run, calling: _Calling) -> tuple[Reply | None, RunFailed | None]:
        """What came back, or why it is no answer; and what that says about the instance."""
        now = time.perf_counter()
        calling.over = True
        reply, error = self._judged(run, calling)
        place, seconds = calling.place, now - calling.began
        if error is not None and error.retry_after is not None and not place.instance.limited:
            rest = min(error.retry_after, _LONGEST_REST)
            place.instance.resting_until = max(place.instance.resting_until, now + rest)
        self._tell(place, self._said(run, calling, error, now, seconds))
        run.attempts.append(calling.attempt(now, error, "" if error is not None else _ANSWERED, ""))
        if error is not None:
            run.failed(place.instance, error)
        return reply, error

    def _said(
        self, run: _Run, calling: _Calling, error: RunFailed | None, now: float, seconds: float
    ) -> Sequence[Change]:
        """What the end of a call says about its instance."""
        place, blamed = calling.place, error is not None and _blamed(error, run, calling)
        if error is not None and not blamed and (error.retry_after is not None or isinstance(error, DeadlineExceeded)):
            return place.pool.unsaid(place, now)
        failure = error.code if error is not None and blamed else None
        return place.pool.settle(place, self._policy, now, seconds=seconds, failure=failure, answered=error is None)

    def _judged(self, run: _Run, calling: _Calling) -> tuple[Reply | None, RunFailed | None]:
        task, agent_id = calling.task, run.agent.id
        if not task.done():
            calling.voice.silenced = True
            task.cancel()
            late = DeadlineExceeded(f"agent '{agent_id}' did not answer within {calling.seconds:.3g} s")
            late.elsewhere = calling.place.instance.repeatable or run.agent.read_only
            return None, late
        if task.cancelled():
            return None, AgentFailed(f"agent '{agent_id}' gave up its own call", cause="cancelled")
        if isinstance(raised := task.exception(), RunFailed):
            return None, raised
        if raised is not None:
            # A backend promises to translate; one that does not must still not take the request down with it.
            error = AgentFailed(f"agent '{agent_id}' raised {type(raised).__name__}", cause=type(raised).__name__)
            error.__cause__ = raised
            return None, error
        return judged(task.result(), run.teller)

    def _tell(self, place: Place, changes: Sequence[Change]) -> None:
        for instance_id, event, reason in changes:
            self._observer.changed(place.pool.tenant, place.agent.id, instance_id, event, reason)

    # --- decide

    def _decide(self, run: _Run, error: RunFailed | None) -> Decision:
        """What is done now. ``error``: of the last call; none where there was no place for one."""
        now = time.perf_counter()
        untried = error is not None and run.pool.usable(now, tried=run.tried)
        situation = Situation(
            calls=run.calls,
            retries=run.retries,
            left=run.deadline - now,
            told=run.teller.length > 0,
            untried=untried,
            stand_by=untried and run.pool.usable(now, tried=run.ranked),
            ready_in=math.inf
            if error is None and (run.calls or run.retries)
            else run.pool.ready_in(now, tried=run.hopeless),
            others=any(pool.usable(now) for _, pool in run.others),
            affordable=resilience.affordable(run.pool.budget, self._policy.budget, now),
        )
        # Where each was tried, what a pause may mend is worth one.
        about = error if error is not None and untried else run.telling
        decision = resilience.after_failure(about, run.agent.recovery, situation, chance=self._chance())
        run.decided(decision)
        return decision


class _Run:
    """Where the request is: the agent that is asked now, what was tried of it, and who is left."""

    def __init__(self, reserved: Reserved, call: Call, now: float, seconds: float, teller: Teller) -> None:
        self.call = call
        self.seconds = seconds
        self.deadline = now + seconds
        self.others = reserved.others
        self.teller = teller
        self.attempts = list(reserved.passed)
        self.errors: list[RunFailed] = []
        self.delay = 0.0
        self._begin(reserved.place)

    def _begin(self, place: Place) -> None:
        self.agent, self.pool = place.agent, place.pool
        self.calls = self.retries = 0
        self.tried: list[Instance] = []
        #: Those that a pause does not mend.
        self.hopeless: list[Instance] = []
        self._first_error = len(self.errors)

    @property
    def ranked(self) -> list[Instance]:
        """All instances of the ranks of which one was asked; only a stand-by is left then."""
        ranks = {instance.rank for instance in self.tried}
        return [instance for instance in self.pool.instances if instance.rank in ranks]

    @property
    def unwanted(self) -> list[Instance]:
        """Those that are not asked in place of one that failed."""
        return self.ranked if self.calls >= self.agent.recovery.attempts else self.tried

    @property
    def telling(self) -> RunFailed:
        """Of the errors of the agent that is asked, the one that the request ends with if nothing else is tried."""
        return _most_telling(self.errors[self._first_error :] or self.errors)

    def hand_over(self, place: Place) -> None:
        """From now on another agent is asked."""
        self.ended(None)
        self.call = dataclasses.replace(self.call, agent=place.agent)
        self._begin(place)

    def failed(self, instance: Instance, error: RunFailed) -> None:
        """Takes in that a call has failed."""
        self.errors.append(error)
        asked_again = resilience.action_of(error, self.agent.recovery) is Action.RETRY
        if not (asked_again or error.retryable or isinstance(error, DeadlineExceeded)):
            self.hopeless.append(instance)

    def unplaced(self) -> AgentUnavailable:
        """What became of a request whose instance was ejected before it could be called, and no other is left."""
        refusal = self.pool.none_left(self.agent, time.perf_counter())
        error = AgentUnavailable(refusal.detail, retry_after=refusal.retry_after)
        self.errors.append(error)
        self.attempts.append(_passed(self.agent, error))
        return error

    def late(self) -> DeadlineExceeded:
        """What became of a request whose time was over before it could be called."""
        error = DeadlineExceeded(f"the time of the request was over before agent '{self.agent.id}' could be asked")
        self.errors.append(error)
        self.attempts.append(_passed(self.agent, error))
        return error

    def ended(self, reply: Reply | None) -> None:
        """The agent that is asked has answered, or has not."""
        if reply is not None:
            self.pool.failures_in_row = 0
        elif any(error.blamed or error.retryable for error in self.errors[self._first_error :]):
            self.pool.failures_in_row += 1

    def decided(self, decision: Decision) -> None:
        """Notes with the last attempt what came of it."""
        name = _DECISIONS[type(decision)]
        self.attempts[-1] = dataclasses.replace(self.attempts[-1], decision=name, reason=decision.reason)


def _passed(agent: Agent, error: NoInstanceAvailable | RunFailed) -> Attempt:
    """An agent that could not be called at all."""
    return Attempt(
        agent_id=agent.id,
        instance_id="",
        duration_ms=0.0,
        error=error.code,
        decision=_DECISIONS[HandOver],
        reason=error.detail,
    )


_DECISIONS: dict[type[Decision], str] = {
    Retry: "retry",
    Reassign: "reassign",
    HandOver: "hand_over",
    Escalate: "escalate",
    Abort: "abort",
}
_ANSWERED = "answered"


@dataclass(slots=True, kw_only=True)
class _Calling:
    """A call that is being made.

    ``over``: it was settled, or given up. ``unheard``: of two that were asked at once, the other has spoken first.
    """

    place: Place
    task: asyncio.Task[Reply]
    ended: asyncio.Future[None]
    voice: Voice
    began: float
    seconds: float
    hedge: bool
    delay: float
    over: bool = False
    unheard: bool = False

    @property
    def ends(self) -> float:
        return self.began + self.seconds

    def outspoken(self) -> None:
        """The other has spoken first: from here on there is one voice, and this call is of no use."""
        self.unheard = self.voice.silenced = True
        self.task.cancel()

    def attempt(self, now: float, error: RunFailed | None, decision: str, reason: str) -> Attempt:
        return Attempt(
            agent_id=self.place.agent.id,
            instance_id=self.place.instance.id,
            duration_ms=round((now - self.began) * 1_000, 3),
            error=error.code if error else None,
            delay_ms=round(self.delay * 1_000, 3),
            decision=decision,
            reason=reason,
            hedge=self.hedge,
        )


def _wake(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _blamed(error: RunFailed, run: _Run, calling: _Calling) -> bool:
    """Whether a failed call speaks against its instance.

    One that asks to be left alone does what it should. One that had less time than its calls usually take, because
    others had used it up, could not do better.
    """
    if isinstance(error, DeadlineExceeded):
        usual = calling.place.instance.window.quantile(0.95) or 0.0
        fair = min(run.agent.limits.timeout or math.inf, max(run.seconds / 2, _FAIR_SECONDS))
        return calling.seconds >= max(usual, fair)
    if resilience.action_of(error, run.agent.recovery) is Action.ESCALATE:
        # What a person is to decide is no fault of who says so.
        return False
    return error.blamed and error.retry_after is None


def _most_telling(errors: Sequence[RunFailed]) -> RunFailed:
    """Of the errors of a request: the last, or, if others may answer it, what mends by itself and mends soonest."""
    if not errors[-1].elsewhere:
        return errors[-1]
    return min(errors, key=lambda error: (not error.retryable, error.retry_after or 0.0))
