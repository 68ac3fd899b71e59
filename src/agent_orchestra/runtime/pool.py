"""The instances of one agent: which one takes the next call, who waits for one, and what each call says about them."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from agent_orchestra.core import balancing, breaker, health
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.breaker import BreakerState
from agent_orchestra.core.health import Drift
from agent_orchestra.core.resilience import Budget
from agent_orchestra.errors import NoInstanceAvailable
from agent_orchestra.runtime.instances import Change, Dispatching, Instance

__all__ = ["Place", "Pool"]

#: What a failed call is taken to have cost, so that an instance that fails fast does not look fast.
_FAILURE_SECONDS = 5.0
#: How often a call that waits for a place looks whether one has become free by itself.
_LOOK_SECONDS = 0.5
#: Of those who wait, so many are offered a place that one at the head cannot take.
_LOOKED_AT = 4
#: After so many seconds without a call, a drifting instance is given another chance.
_CALM_SECONDS = 10.0


@dataclass(slots=True, eq=False, kw_only=True)
class Place:
    """A place on an instance, taken for one call.

    ``trial``: the call decides whether the breaker closes again. ``changes``: what has changed about instances since a
    place was taken before.
    """

    agent: Agent
    pool: Pool
    instance: Instance
    trial: bool
    changes: Sequence[Change] = ()


class Pool:
    """The instances of one registered agent, whose turn it is, who waits for one, and the budget of retries.

    ``tenant``: whose agent it is.
    """

    def __init__(self, instances: Sequence[Instance], *, tenant: str = "") -> None:
        self.instances = tuple(instances)
        self.tenant = tenant
        self.failures_in_row = 0
        self.budget = Budget()
        #: Of second calls beside slow ones: were they taken from the same budget, a failure would find it spent.
        self.hedges = Budget()
        self._ranks = sorted({instance.rank for instance in self.instances})
        self._tiers = [tuple(i for i in self.instances if i.rank == rank) for rank in self._ranks]
        self._turns = [0] * len(self._tiers)
        self._credits: list[Sequence[float]] = [[0.0] * len(tier) for tier in self._tiers]
        self._open = 0
        #: No breaker's rest is over before.
        self._trial_from = math.inf
        self._drifting = 0
        self._untold: Sequence[Change] = ()
        self._look: asyncio.TimerHandle | None = None
        self._line: deque[_Waiter] = deque()
        self._picky: list[_Waiter] = []

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Gives each instance the weight that the agent's definition says, 1 where it says nothing."""
        shares = [weights.get(instance.id, 1.0) for instance in self.instances]
        if shares != [instance.share for instance in self.instances]:
            for instance, share in zip(self.instances, shares, strict=True):
                instance.share = share
            # What was owed by the old weights would be paid first.
            self._credits = [[0.0] * len(tier) for tier in self._tiers]

    @property
    def in_flight(self) -> int:
        return sum(instance.in_flight for instance in self.instances)

    @property
    def waiting(self) -> int:
        """How many calls wait for a place."""
        return len(self._line) + len(self._picky)

    @property
    def queued(self) -> int:
        """How many of them any place would do for, so that who comes later comes after them."""
        return len(self._line)

    def usable(self, now: float, *, tried: Collection[Instance] = ()) -> bool:
        """Whether an instance that was not tried may take a call, now or when one of its calls has ended."""
        return any(i not in tried and i.why_not(now) is None for i in self.instances)

    def ready_in(self, now: float, *, tried: Collection[Instance] = ()) -> float:
        """Seconds until an instance that was not tried may take a call; infinite where none says when."""
        left = [(i.why_not(now) or ("", 0.0))[1] for i in self.instances if i not in tried]
        return min((seconds for seconds in left if seconds is not None), default=math.inf)

    def take(
        self,
        agent: Agent,
        policy: Dispatching,
        now: float,
        *,
        tried: Collection[Instance] = (),
        stick: str | None = None,
        chance: Callable[[], float] = random.random,
    ) -> Place | None:
        """Takes a place on an instance, if one has any; :meth:`leave` gives it back, after what the call has said.

        The lowest rank comes first, and those behind no rate limit before those that are. ``tried``: instances that are
        not wanted. ``stick``: what the call belongs to, where the agent's calls stick to instances.
        """
        most = agent.limits.concurrency
        if self._drifting:
            self._untold = (*self._untold, *self._calm(now))

        def free(instance: Instance) -> bool:
            return instance.in_flight < most and instance not in tried and instance.why_not(now) is None

        def best(instance: Instance) -> bool:
            return free(instance) and not instance.paused()

        for usable in (best, free):
            for number, tier in enumerate(self._tiers):
                index = self._selected(number, tier, usable, agent, policy, now, stick, chance)
                if index is not None:
                    return self._taken(agent, tier[index])
        return None

    def _selected(
        self,
        number: int,
        tier: Sequence[Instance],
        usable: Callable[[Instance], bool],
        agent: Agent,
        policy: Dispatching,
        now: float,
        stick: str | None,
        chance: Callable[[], float],
    ) -> int | None:
        turn = self._turns[number]
        if len(tier) == 1 or not policy.balanced:
            return balancing.round_robin(tier, usable, 0)
        if stick is not None and agent.balancing.sticky:
            return balancing.sticky(tier, usable, stick)
        if self._open and now >= self._trial_from:
            # One whose rest is over gets the next call as its trial; no policy would find it by itself.
            index = balancing.round_robin(tier, lambda i: i.breaker.state is BreakerState.OPEN and usable(i), 0)
            if index is not None:
                return index
            rests = (i.breaker.until for i in self.instances if i.breaker.state is BreakerState.OPEN)
            self._trial_from = min(rests, default=math.inf)
        algorithm = agent.balancing.algorithm or policy.algorithm
        if algorithm is Algorithm.ROUND_ROBIN and self._drifting:
            algorithm = Algorithm.WEIGHTED_ROUND_ROBIN
        if algorithm is Algorithm.WEIGHTED_ROUND_ROBIN:
            index, self._credits[number] = balancing.weighted_round_robin(tier, usable, self._credits[number])
            return index
        if algorithm is Algorithm.PEAK_EWMA:
            return balancing.peak_ewma(tier, usable, chance, now)
        if algorithm is Algorithm.LEAST_CONNECTIONS:
            index = balancing.least_connections(tier, usable, turn)
        elif algorithm is Algorithm.WEIGHTED:
            for instance in tier:
                instance.window.trim(now)
            index = balancing.weighted(tier, usable, turn)
        else:
            index = balancing.round_robin(tier, usable, turn)
        if index is not None:
            self._turns[number] = (index + 1) % len(tier)
        return index

    def _taken(self, agent: Agent, instance: Instance) -> Place:
        instance.in_flight += 1
        changes, self._untold = self._untold, ()
        trial = instance.breaker.state is BreakerState.OPEN
        if trial:
            instance.breaker = breaker.on_trial(instance.breaker)
            changes = (*changes, (instance.id, f"breaker.{instance.breaker.state}", instance.breaker.reason))
        return Place(agent=agent, pool=self, instance=instance, trial=trial, changes=changes)

    async def wait(
        self,
        take: Callable[[], Place | None],
        seconds: float,
        *,
        picky: bool,
        agent: Agent | None = None,
        hopeful: Callable[[], bool] | None = None,
    ) -> Place | None:
        """The place that ``take`` gives once one is free; none when it is not within so many seconds.

        First come, first served, and before any that comes later. ``picky``: not every place will do, so that it keeps
        nobody else from one. ``agent``: where one of a definition gets none, the others of it need not try.
        ``hopeful``: asked now and then; where it is not, the wait is over.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(agent, take, hopeful, loop.create_future())
        line = self._picky if picky else self._line
        line.append(waiter)
        if self._look is None:
            self._look = loop.call_later(_LOOK_SECONDS, self._looked)
        ends = loop.call_later(seconds, _given_up, waiter.place)
        try:
            return await waiter.place
        except asyncio.CancelledError:
            if place := waiter.served:
                self._untold = (*self._untold, *self.unsaid(place, time.perf_counter()))
                self.leave(place)
            raise
        finally:
            ends.cancel()
            if picky or waiter.served is None:
                # One that was served at the head of the line has left it already.
                with suppress(ValueError):
                    line.remove(waiter)

    def _looked(self) -> None:
        """What frees a place without a call that ends, as a rest that is over, is seen at the next look."""
        self._look = None
        self.serve()
        for waiter in (*self._line, *self._picky):
            if waiter.hopeful is not None and not waiter.hopeful():
                _given_up(waiter.place)
        if self.waiting:
            self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._looked)

    def serve(self) -> None:
        """Gives the places that are free to those who wait for one."""
        for waiter in [w for w in self._picky if not w.place.done()]:
            if place := waiter.take():
                waiter.place.set_result(place)
        # One that was called by an older definition, with a lower limit, must not hold up those behind it for good.
        refused: Agent | None = None
        for waiter in list(islice(self._line, _LOOKED_AT)):
            if waiter.place.done() or (refused is not None and waiter.agent is refused):
                continue
            if place := waiter.take():
                waiter.place.set_result(place)
            else:
                refused = waiter.agent
        while self._line and self._line[0].place.done():
            self._line.popleft()

    def leave(self, place: Place) -> None:
        """Gives a place back, once its call has really ended."""
        place.instance.in_flight -= 1
        if self._line or self._picky:
            self.serve()

    def unsaid(self, place: Place, now: float) -> Sequence[Change]:
        """Takes in that a call said nothing about its instance, as one that was cancelled or never made."""
        if not place.trial:
            return ()
        before = place.instance.breaker
        place.instance.breaker = after = breaker.given_up(before, now)
        self._trial_from = min(self._trial_from, now)
        return () if after is before else ((place.instance.id, f"breaker.{after.state}", after.reason),)

    def outrun(self, place: Place, now: float, seconds: float) -> Sequence[Change]:
        """Takes in that another answered first: a call takes so many seconds there at least."""
        changes = self.unsaid(place, now)
        self._peaked(place.instance, now, seconds)
        return (*changes, *self._drift(place.instance, seconds, failed=False))

    def settle(
        self, place: Place, policy: Dispatching, now: float, *, seconds: float, failure: str | None, answered: bool
    ) -> Sequence[Change]:
        """Takes in how a call ended, and gives the events that this makes.

        ``failure``: the code of what speaks against the instance. With neither that nor an answer, all that is known is
        that the instance lives: it has refused what it was asked.
        """
        instance, failed = place.instance, failure is not None
        changes: Sequence[Change] = ()
        if answered or failed:
            instance.window.add(now, seconds, answered=answered)
            self._peaked(instance, now, max(seconds, _FAILURE_SECONDS) if failed else seconds)
            changes = self._drift(instance, seconds, failed=failed)
        before = instance.breaker
        after = breaker.after_call(before, policy.breaker, now, seconds=seconds, failure=failure, trial=place.trial)
        instance.breaker = after
        if after.state is before.state:
            return changes
        self._open += (after.state is not BreakerState.CLOSED) - (before.state is not BreakerState.CLOSED)
        if after.state is BreakerState.OPEN:
            self._trial_from = min(self._trial_from, after.until)
        reason = after.reason or "its trial call succeeded"
        return (*changes, (instance.id, f"breaker.{after.state}", reason))

    @staticmethod
    def _peaked(instance: Instance, now: float, seconds: float) -> None:
        # The first call of an instance opens connections and imports what it needs: it says nothing about the next.
        if instance.window.total > 1:
            instance.peak = health.peak(instance.peak, now - instance.ended, seconds)
        instance.ended = now

    def _drift(self, instance: Instance, seconds: float, *, failed: bool) -> Sequence[Change]:
        return self._drifted(instance, health.drifted(instance.drift, seconds, failed=failed))

    def _drifted(self, instance: Instance, after: Drift) -> Sequence[Change]:
        before, instance.drift = instance.drift, after
        if after.drifting == before.drifting:
            return ()
        self._drifting += 1 if after.drifting else -1
        if after.drifting:
            return ((instance.id, "drift.began", after.reason or ""),)
        return ((instance.id, "drift.ended", "its calls are as before"),)

    def _calm(self, now: float) -> Sequence[Change]:
        """One that gets no calls any more because it drifts could never show that it is well again."""
        idle = [i for i in self.instances if i.drift.drifting and now - i.ended > _CALM_SECONDS]
        for instance in idle:
            instance.peak = 0.0
        return [change for i in idle for change in self._drifted(i, health.calmed(i.drift))]

    def none_left(self, agent: Agent, now: float) -> NoInstanceAvailable:
        """What a caller is told when no instance can take its call: which, why, and when to try again."""
        most = agent.limits.concurrency
        faults = {i.id: i.why_not(now) or (f"is full: {i.in_flight} of {most} calls", 1.0) for i in self.instances}
        soonest = min((seconds for _, seconds in faults.values() if seconds is not None), default=5.0)
        if not faults:
            return NoInstanceAvailable(f"agent '{agent.id}' has no instances", retry_after=soonest)
        said = [f"'{instance_id}' {why}" for instance_id, (why, _) in faults.items()]
        shown = "; ".join(said[:_SHOWN]) + (f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else "")
        full = all(i.why_not(now) is None for i in self.instances)
        advice = "; try again, raise limits.concurrency, or let calls wait with limits.queue" if full else ""
        error = NoInstanceAvailable(
            f"no instance of agent '{agent.id}' can take a call: {shown}{advice}", retry_after=max(soonest, 1.0)
        )
        error.data = {"instances": {instance_id: why for instance_id, (why, _) in list(faults.items())[:_SHOWN]}}
        return error


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call that waits: of whom, how it takes a place, and the place once it has one, or has waited long enough."""

    agent: Agent | None
    take: Callable[[], Place | None]
    hopeful: Callable[[], bool] | None
    place: asyncio.Future[Place | None]

    @property
    def served(self) -> Place | None:
        return self.place.result() if self.place.done() and not self.place.cancelled() else None


def _given_up(place: asyncio.Future[Place | None]) -> None:
    if not place.done():
        place.set_result(None)


#: How many instances an error names.
_SHOWN = 10
