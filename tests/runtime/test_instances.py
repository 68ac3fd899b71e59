"""The instances of an agent: which one takes a call, what is learned of it, and who waits for a place."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent_orchestra.core.agent import Agent, Balancing, Limits
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.breaker import BreakerPolicy, BreakerState
from agent_orchestra.core.request import Reply
from agent_orchestra.runtime.executor import Call, Emit
from agent_orchestra.runtime.instances import Change, Dispatching, Instance
from agent_orchestra.runtime.pool import Place, Pool
from tests.services.waiting import wait_until

REST = 10.0
POLICY = Dispatching(breaker=BreakerPolicy(failures=3, rest=REST))


class Unasked:
    """What runs an instance, where nothing is to run. Conforms to :class:`Backend`."""

    async def run(self, call: Call, emit: Emit) -> Reply:
        raise NotImplementedError


def fleet(count: int, *, ranks: Sequence[int] = ()) -> Pool:
    ranks = ranks or [0] * count
    return Pool([Instance(id=f"i{n}", backend=Unasked(), rank=rank) for n, rank in enumerate(ranks)])


def agent(
    concurrency: int = 100,
    algorithm: Algorithm | None = None,
    weights: dict[str, float] | None = None,
    *,
    sticky: bool = False,
) -> Agent:
    balancing = Balancing(algorithm=algorithm, weights=weights or {}, sticky=sticky)
    return Agent(id="a", kind="x", limits=Limits(concurrency=concurrency), balancing=balancing)


class Service:
    """A pool under calls that are made one after the other, at a time that stands still until it is told to go on."""

    def __init__(self, pool: Pool, who: Agent | None = None, policy: Dispatching = POLICY) -> None:
        self.pool, self.agent, self.policy = pool, who or agent(), policy
        self.now = 1_000.0
        self.told: list[Change] = []
        self._chance = random.Random(3).random
        pool.weigh(self.agent.balancing.weights)

    def take(self, *, tried: Sequence[int] = (), stick: str | None = None) -> Place | None:
        without = [self.pool.instances[number] for number in tried]
        return self.pool.take(self.agent, self.policy, self.now, tried=without, stick=stick, chance=self._chance)

    def end(self, place: Place, failure: str | None = None, *, seconds: float = 0.01) -> None:
        answered = failure is None
        self.told += self.pool.settle(place, self.policy, self.now, seconds=seconds, failure=failure, answered=answered)
        self.pool.leave(place)

    def call(self, failure: str | None = None, *, stick: str | None = None, seconds: float = 0.01) -> str:
        """Calls one, and says which it was."""
        place = self.take(stick=stick)
        assert place is not None, "no instance takes a call"
        self.end(place, failure, seconds=seconds)
        return place.instance.id

    def served(self, count: int, *, every: float = 0.0) -> Counter[str]:
        served: Counter[str] = Counter()
        for _ in range(count):
            self.now += every
            served[self.call()] += 1
        return served

    def eject(self, number: int) -> None:
        """Has calls of one instance fail until its breaker opens."""
        instance = self.pool.instances[number]
        while instance.breaker.state is BreakerState.CLOSED:
            place = self.take(tried=[n for n in range(len(self.pool.instances)) if n != number])
            assert place is not None
            self.end(place, "boom")


# --- which one takes a call


@pytest.mark.parametrize("algorithm", [None, *Algorithm])
def test_an_ejected_or_full_one_gets_nothing_while_another_can_take_it(algorithm: Algorithm | None) -> None:
    service = Service(fleet(4), agent(2, algorithm))
    service.eject(0)
    service.pool.instances[1].unwell = "its disk is full"
    service.pool.instances[2].resting_until = service.now + 5
    places = [service.take() for _ in range(3)]
    assert [place.instance.id if place else None for place in places] == ["i3", "i3", None]


@pytest.mark.parametrize("algorithm", [None, *Algorithm])
@pytest.mark.parametrize("sticky", [False, True])
def test_weight_nought_means_no_calls_whatever_else(algorithm: Algorithm | None, *, sticky: bool) -> None:
    service = Service(fleet(3), agent(1, algorithm, {"i1": 0}, sticky=sticky))
    assert [service.take(stick=str(n)) is None for n in range(3)] == [False, False, True]
    assert service.pool.instances[1].in_flight == 0


def test_the_algorithm_of_the_agent_wins_over_that_of_the_service() -> None:
    for of_agent, of_service in ((Algorithm.LEAST_CONNECTIONS, Algorithm.ROUND_ROBIN), (None, None)):
        policy = Dispatching(algorithm=of_service or Algorithm.LEAST_CONNECTIONS)
        service = Service(fleet(2), agent(algorithm=of_agent), policy)
        service.pool.instances[0].in_flight = 9
        assert service.served(10) == {"i1": 10}


def test_turns_follow_the_weights_of_the_definition() -> None:
    service = Service(fleet(3), agent(algorithm=Algorithm.WEIGHTED_ROUND_ROBIN, weights={"i0": 5}))
    assert "".join(service.call() for _ in range(7)) == "i0i0i1i0i2i0i0"


def test_new_weights_hold_from_the_next_call_on() -> None:
    service = Service(fleet(2), agent(algorithm=Algorithm.WEIGHTED_ROUND_ROBIN, weights={"i0": 1_000_000}))
    service.served(500)
    service.pool.weigh({})
    assert service.served(20) == {"i0": 10, "i1": 10}
    service.pool.weigh({"i0": 0})
    assert service.served(5) == {"i1": 5}
    service.pool.weigh({"i0": 3})
    assert service.served(20) == {"i0": 15, "i1": 5}


def test_the_same_weights_again_change_no_turn() -> None:
    one, other = (Service(fleet(3), agent(algorithm=Algorithm.WEIGHTED_ROUND_ROBIN, weights={"i0": 5})) for _ in "ab")
    turns: list[str] = []
    for _ in range(14):
        other.pool.weigh({"i0": 5})
        turns.append(other.call())
    assert turns == [one.call() for _ in range(14)]


def test_a_rank_stands_by_until_all_before_it_are_gone_and_steps_back() -> None:
    service = Service(fleet(3, ranks=[0, 0, 1]), agent(1))
    taken = [service.take() for _ in range(3)]
    assert [place.instance.id if place else None for place in taken] == ["i0", "i1", "i2"]
    for place in taken:
        assert place is not None
        service.end(place)
    service.eject(0)
    service.eject(1)
    assert service.served(3) == {"i2": 3}
    service.now += REST
    # The preferred ones are tried again as soon as they may be.
    assert service.served(4) == {"i0": 2, "i1": 2}


# --- sticky


@pytest.mark.parametrize("algorithm", [None, *Algorithm])
def test_a_conversation_stays_and_conversations_are_spread(algorithm: Algorithm | None) -> None:
    service = Service(fleet(4), agent(algorithm=algorithm, sticky=True))
    homes = {key: service.call(stick=key) for key in map(str, range(60))}
    assert all(service.call(stick=key) == home for key, home in homes.items())
    assert set(homes.values()) == {"i0", "i1", "i2", "i3"}


def test_only_the_conversations_of_an_ejected_one_move_and_they_come_back() -> None:
    service = Service(fleet(3), agent(sticky=True))
    keys = [str(number) for number in range(40)]
    homes = {key: service.call(stick=key) for key in keys}
    service.eject(1)
    away = {key: service.call(stick=key) for key in keys}
    for key in keys:
        assert (away[key] == homes[key]) is (homes[key] != "i1")
    service.now += REST
    # The first of its own is its trial, and then all are at home again.
    assert {key: service.call(stick=key) for key in keys} == homes
    assert service.pool.instances[1].breaker.state is BreakerState.CLOSED


# --- its breaker


def test_an_instance_that_fails_is_left_alone_tried_once_and_taken_back() -> None:
    service = Service(fleet(2))
    service.eject(0)
    assert service.told[-1] == ("i0", "breaker.open", "3 failures in a row (boom)")
    assert service.served(6) == {"i1": 6}
    service.now += REST
    trial = service.take()
    assert trial is not None
    assert (trial.instance.id, trial.trial) == ("i0", True)
    assert [change[:2] for change in trial.changes] == [("i0", "breaker.half-open")]
    assert service.served(6) == {"i1": 6}, "one trial at a time"
    service.end(trial)
    assert service.told[-1][:2] == ("i0", "breaker.closed")
    assert service.served(60)["i0"] >= 10


def test_a_trial_that_fails_begins_the_rest_anew() -> None:
    service = Service(fleet(2))
    service.eject(0)
    service.now += REST
    assert service.call("bang") == "i0"
    assert service.told[-1] == ("i0", "breaker.open", "its trial call failed (bang)")
    service.now += REST - 0.1
    assert service.served(4) == {"i1": 4}
    service.now += 0.1
    assert service.call() == "i0"


@pytest.mark.parametrize("algorithm", [None, *Algorithm])
@pytest.mark.parametrize("ranks", [(0,), (0, 0, 0), (0, 1)])
def test_a_trial_that_says_nothing_is_made_again_by_the_next_call(
    algorithm: Algorithm | None, ranks: Sequence[int]
) -> None:
    service = Service(fleet(len(ranks), ranks=ranks), agent(algorithm=algorithm))
    service.eject(0)
    service.now += REST
    for _ in range(3):
        trial = service.take()
        assert trial is not None
        assert (trial.instance.id, trial.trial) == ("i0", True)
        service.pool.unsaid(trial, service.now)
        service.pool.leave(trial)
    assert service.call() == "i0"
    assert service.pool.instances[0].breaker.state is BreakerState.CLOSED


def test_a_stand_by_that_was_ejected_is_tried_when_it_is_wanted_again() -> None:
    service = Service(fleet(2, ranks=[0, 1]), agent(1))
    service.eject(1)
    service.now += REST
    first = service.take()
    second = service.take()
    assert first is not None
    assert second is not None
    assert [(place.instance.id, place.trial) for place in (first, second)] == [("i0", False), ("i1", True)]


def test_one_that_never_answers_its_trial_is_no_danger_to_the_others() -> None:
    service = Service(fleet(2))
    service.eject(0)
    service.now += REST
    assert service.take() is not None
    service.now += 100 * REST
    assert service.served(5) == {"i1": 5}


# --- what is known of it grows old


@pytest.mark.parametrize("algorithm", Algorithm)
def test_one_failure_does_not_cost_an_instance_its_calls_for_ever(algorithm: Algorithm) -> None:
    service = Service(fleet(2), agent(algorithm=algorithm))
    service.served(20, every=0.1)
    failed = service.call("boom")
    assert service.served(4_000, every=0.1)[failed] >= (1 if algorithm is Algorithm.WEIGHTED else 500)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_one_that_was_slow_for_a_while_is_taken_back(algorithm: Algorithm) -> None:
    service = Service(fleet(2), agent(algorithm=algorithm))
    for number in range(400):
        service.now += 0.1
        place = service.take()
        assert place is not None
        slow = place.instance.id == "i0" and 100 <= number < 200
        service.end(place, seconds=2.0 if slow else 0.01)
    # Of two that are as good as each other by now, the score gives all calls to the better one.
    assert service.served(6_000, every=0.1)["i0"] >= (1 if algorithm is Algorithm.WEIGHTED else 500)


def test_what_is_no_answer_is_not_taken_for_a_fast_one() -> None:
    service = Service(fleet(1))
    place = service.take()
    assert place is not None
    service.pool.settle(place, POLICY, service.now, seconds=0.001, failure=None, answered=False)
    service.pool.leave(place)
    instance = service.pool.instances[0]
    assert (instance.window.total, instance.window.answered, instance.mean_seconds) == (0, 0, 0.0)
    assert instance.peak_seconds(service.now) == 0


# --- when nobody can take a call


def test_who_cannot_take_a_call_is_told_with_the_reason_and_when() -> None:
    service = Service(fleet(4), agent(1, weights={"i1": 0}))
    service.eject(0)
    service.now += 4
    service.pool.instances[2].unwell = "connection refused"
    service.pool.instances[3].in_flight = 1
    error = service.pool.none_left(service.agent, service.now)
    assert error.detail == (
        "no instance of agent 'a' can take a call: "
        "'i0' is left alone for 6.0 s more after 3 failures in a row (boom); 'i1' has weight 0; "
        "'i2' is not well: connection refused; 'i3' is full: 1 of 1 calls"
    )
    assert error.retry_after == 1.0
    assert set(error.data["instances"]) == {"i0", "i1", "i2", "i3"}  # type: ignore[call-overload]
    assert error.retryable


def test_when_all_rest_the_first_to_come_back_says_when() -> None:
    service = Service(fleet(2))
    service.eject(0)
    service.now += 3
    service.eject(1)
    error = service.pool.none_left(service.agent, service.now)
    assert error.retry_after == pytest.approx(REST - 3)
    assert service.pool.ready_in(service.now) == pytest.approx(REST - 3)
    assert "limits.queue" not in error.detail
    assert not service.pool.usable(service.now)


def test_when_all_are_full_it_is_said_what_could_be_done() -> None:
    service = Service(fleet(2), agent(1))
    service.take()
    service.take()
    error = service.pool.none_left(service.agent, service.now)
    assert error.detail.endswith("try again, raise limits.concurrency, or let calls wait with limits.queue")
    assert error.retry_after == 1.0
    assert service.pool.usable(service.now), "one may take a call when another has ended"


def test_of_many_only_some_are_named() -> None:
    service = Service(fleet(25), agent(1))
    for _ in range(25):
        service.take()
    error = service.pool.none_left(service.agent, service.now)
    assert "; and 15 more" in error.detail
    assert len(error.detail) < 1_000


# --- who waits


class Queue:
    """Calls that wait for a place of a pool."""

    def __init__(self, pool: Pool, who: Agent) -> None:
        self.pool, self.agent = pool, who
        self.came: list[str] = []
        self.places: dict[str, Place] = {}

    def take(self, *tried: Instance) -> Place | None:
        return self.pool.take(self.agent, POLICY, time.perf_counter(), tried=tried)

    async def one(self, name: str, *tried: Instance, seconds: float = 30.0) -> bool:
        place = await self.pool.wait(lambda: self.take(*tried), seconds, picky=bool(tried))
        if place is not None:
            self.came.append(name)
            self.places[name] = place
        return place is not None

    async def waits(self, name: str, *tried: Instance, seconds: float = 30.0) -> asyncio.Task[bool]:
        before = self.pool.waiting
        task = asyncio.create_task(self.one(name, *tried, seconds=seconds))
        await wait_until(lambda: self.pool.waiting > before, f"{name} does not wait")
        return task


async def test_places_go_to_those_who_wait_as_they_came_however_long_it_takes() -> None:
    where = fleet(1)
    queue = Queue(where, agent(1))
    first = queue.take()
    assert first is not None
    tasks = [await queue.waits(name) for name in "abc"]
    # Long enough for each to look more than once whether a place has become free by itself.
    await asyncio.sleep(1.2)
    where.leave(first)
    for name in "abc":
        await wait_until(lambda name=name: name in queue.places, f"{name} got no place")
        assert where.in_flight == 1
        where.leave(queue.places[name])
    assert all(await asyncio.gather(*tasks))
    assert queue.came == ["a", "b", "c"]
    assert (where.in_flight, where.waiting) == (0, 0)


async def test_a_place_that_is_given_back_belongs_to_the_one_that_waits() -> None:
    where = fleet(1)
    queue = Queue(where, agent(1))
    first = queue.take()
    assert first is not None
    task = await queue.waits("patient")
    where.leave(first)
    assert queue.take() is None, "one that came later was faster"
    assert await task


@pytest.mark.parametrize("at_once", [1, 2, 3])
async def test_as_many_are_served_as_places_become_free(at_once: int) -> None:
    where = fleet(3)
    queue = Queue(where, agent(1))
    held = [queue.take() for _ in range(3)]
    tasks = [await queue.waits(name) for name in "abc"]
    for place in held[:at_once]:
        assert place is not None
        where.leave(place)
    await wait_until(lambda: len(queue.came) == at_once, "a wake-up was lost")
    assert (where.in_flight, where.waiting) == (3, 3 - at_once)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert where.waiting == 0


async def test_one_that_gives_up_in_the_moment_of_its_turn_passes_it_on() -> None:
    where = fleet(1)
    queue = Queue(where, agent(1))
    first = queue.take()
    assert first is not None
    gone, stays = await queue.waits("gone"), await queue.waits("stays")
    where.leave(first)
    gone.cancel()
    await asyncio.wait({gone})
    assert gone.cancelled()
    assert await asyncio.wait_for(stays, timeout=10)
    assert (queue.came, where.in_flight, where.waiting) == (["stays"], 1, 0)


async def test_one_that_gives_up_in_the_moment_of_its_trial_leaves_it_to_another() -> None:
    where = fleet(1)
    queue = Queue(where, agent(1))
    instance = where.instances[0]
    for _ in range(4):
        if place := queue.take():
            where.settle(place, POLICY, time.perf_counter(), seconds=0.1, failure="boom", answered=False)
            where.leave(place)
    assert instance.breaker.state is BreakerState.OPEN
    task = await queue.waits("gone")
    # Its rest is over before any look finds out.
    past = Dispatching(breaker=BreakerPolicy(failures=1, rest=0.0))
    queue.take = lambda *tried: where.take(queue.agent, past, 1e12, tried=tried)  # type: ignore[method-assign]
    where.serve()
    assert instance.breaker.state is BreakerState.HALF_OPEN
    task.cancel()
    await asyncio.wait({task})
    assert (instance.breaker.state, instance.in_flight) == (BreakerState.OPEN, 0)


async def test_one_that_waits_for_a_certain_instance_keeps_nobody_from_another() -> None:
    where = fleet(2)
    queue = Queue(where, agent(1))
    one, other = queue.take(), queue.take()
    assert one is not None
    assert other is not None
    picky = await queue.waits("picky", where.instances[0])
    anyone = await queue.waits("anyone")
    where.leave(one)
    assert await anyone
    assert not picky.done()
    where.leave(other)
    assert await picky
    assert queue.places["picky"].instance is where.instances[1]


async def test_a_rest_that_is_over_is_seen_though_no_call_ends() -> None:
    where = fleet(1)
    queue = Queue(where, agent(1))
    where.instances[0].resting_until = time.perf_counter() + 0.1
    assert await asyncio.wait_for(queue.one("a"), timeout=10)


@pytest.mark.parametrize("seconds", [0.05, 0.0, -1.0])
async def test_nobody_waits_longer_than_it_can(seconds: float) -> None:
    where = fleet(1)
    queue = Queue(where, agent(1))
    assert queue.take() is not None
    assert not await asyncio.wait_for(queue.one("a", seconds=seconds), timeout=10)
    assert (where.in_flight, where.waiting) == (1, 0)


async def test_under_any_coming_and_going_no_place_is_lost_nor_given_twice() -> None:
    chances = random.Random(11)
    where = fleet(3)
    queue = Queue(where, agent(2))
    most = 0

    async def calls(number: int) -> None:
        nonlocal most
        for _ in range(chances.randrange(4)):
            await asyncio.sleep(0)
        without = [where.instances[0]] if number % 3 == 0 else []
        place = queue.take(*without)
        if place is None:
            seconds = 0.001 if number % 5 == 0 else 30.0
            place = await where.wait(lambda: queue.take(*without), seconds, picky=bool(without))
        if place is None:
            return
        most = max(most, *(instance.in_flight for instance in where.instances))
        try:
            await asyncio.sleep(chances.choice([0.0, 0.0, 0.001]))
        finally:
            where.settle(place, POLICY, time.perf_counter(), seconds=0.001, failure=None, answered=True)
            where.leave(place)

    tasks = [asyncio.create_task(calls(number)) for number in range(400)]
    for task in tasks[::7]:
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=50)
    assert most == 2
    assert [instance.in_flight for instance in where.instances] == [0, 0, 0]
    assert where.waiting == 0


# --- whatever happens


class Using(RuleBasedStateMachine):
    """A pool under calls that overlap, end in every way or not at all, while time goes on and the agent changes."""

    @initialize(
        ranks=st.lists(st.integers(0, 2), min_size=1, max_size=5),
        algorithm=st.none() | st.sampled_from(Algorithm),
        sticky=st.booleans(),
        balanced=st.booleans(),
        share=st.none() | st.just(0.5),
    )
    def begins(
        self, ranks: list[int], algorithm: Algorithm | None, share: float | None, *, sticky: bool, balanced: bool
    ) -> None:
        breaker = BreakerPolicy(failures=2, rest=REST, failure_share=share, least_calls=3, slow=4.0)
        self.policy = Dispatching(balanced=balanced, breaker=breaker)
        self.agent = agent(2, algorithm, sticky=sticky)
        self.pool = fleet(len(ranks), ranks=ranks)
        self.now = 1_000.0
        self.places: list[Place] = []
        self.random = random.Random(1)

    def takes(self, stick: str | None = None) -> Place | None:
        place = self.pool.take(self.agent, self.policy, self.now, stick=stick, chance=self.random.random)
        if place is not None:
            self.places.append(place)
        return place

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(stick=st.none() | st.sampled_from(["c", "d"]))
    def is_called(self, stick: str | None) -> None:
        able = [
            instance
            for instance in self.pool.instances
            if instance.in_flight < self.agent.limits.concurrency and instance.why_not(self.now) is None
        ]
        place = self.takes(stick)
        assert (place is None) is (not able)
        if place is not None:
            assert place.instance in able
            first = [instance for instance in able if instance.rank == min(one.rank for one in able)]
            assert place.instance in first
            if self.policy.balanced and stick is None:
                # ``able`` was taken before: the breaker of the one that was chosen has moved since.
                rested = {instance.id for instance in first if instance.breaker.state is BreakerState.OPEN}
                assert place.trial or not rested, "one whose rest is over was passed over"

    @precondition(lambda self: self.places)
    @rule(
        data=st.data(),
        failure=st.none() | st.sampled_from(["boom", "late"]),
        seconds=st.floats(0, 6),
        answered=st.booleans(),
    )
    def a_call_ends(self, data: st.DataObject, failure: str | None, seconds: float, *, answered: bool) -> None:
        place = self.places.pop(data.draw(st.integers(0, len(self.places) - 1)))
        answered = answered and failure is None
        self.pool.settle(place, self.policy, self.now, seconds=seconds, failure=failure, answered=answered)
        self.pool.leave(place)

    @precondition(lambda self: self.places)
    @rule(data=st.data(), outrun=st.booleans())
    def a_call_is_given_up(self, data: st.DataObject, *, outrun: bool) -> None:
        place = self.places.pop(data.draw(st.integers(0, len(self.places) - 1)))
        if outrun:
            self.pool.outrun(place, self.now, 1.0)
        else:
            self.pool.unsaid(place, self.now)
        self.pool.leave(place)

    @rule(number=st.integers(0, 4), seconds=st.floats(0, 20))
    def one_asks_to_be_left_alone(self, number: int, seconds: float) -> None:
        instance = self.pool.instances[number % len(self.pool.instances)]
        instance.resting_until = max(instance.resting_until, self.now + seconds)

    @rule(weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 100.0]), min_size=5, max_size=5).filter(any))
    def gets_new_weights(self, weights: list[float]) -> None:
        self.pool.weigh({f"i{number}": weight for number, weight in enumerate(weights)})

    @invariant()
    def places_are_counted(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.pool.in_flight == len(self.places)
        held = Counter(place.instance.id for place in self.places)
        for instance in self.pool.instances:
            assert 0 <= instance.in_flight == held[instance.id] <= self.agent.limits.concurrency

    @invariant()
    def half_open_means_one_trial(self) -> None:
        if not hasattr(self, "pool"):
            return
        for instance in self.pool.instances:
            trials = sum(place.trial for place in self.places if place.instance is instance)
            assert trials == (instance.breaker.state is BreakerState.HALF_OPEN)

    def teardown(self) -> None:
        """All calls end, the rest is over: each instance can be used again."""
        if not hasattr(self, "pool"):
            return
        for place in self.places:
            self.pool.unsaid(place, self.now)
            self.pool.leave(place)
        self.pool.weigh({})
        self.now += 2 * REST
        assert self.pool.ready_in(self.now) == 0
        for instance in self.pool.instances:
            others = [other for other in self.pool.instances if other is not instance]
            place = self.pool.take(self.agent, self.policy, self.now, tried=others)
            assert place is not None, f"{instance.id} can never be used again"
            self.pool.settle(place, self.policy, self.now, seconds=0.01, failure=None, answered=True)
            self.pool.leave(place)
            assert instance.breaker.state is BreakerState.CLOSED


TestUsing = Using.TestCase
TestUsing.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["good", "boom", "late"]), max_size=80), st.sampled_from(Algorithm))
def test_events_of_a_breaker_follow_each_other_as_they_can(ends: list[str], algorithm: Algorithm) -> None:
    service = Service(fleet(2), agent(algorithm=algorithm))
    told: list[Change] = []
    for end in ends:
        service.now += 4
        place = service.take()
        if place is None:
            continue
        told += place.changes
        service.told.clear()
        service.end(place, None if end == "good" else end)
        told += service.told
    for name in ("i0", "i1"):
        mine = [event.removeprefix("breaker.") for who, event, _ in told if who == name and "breaker" in event]
        pairs = {
            ("", "open"),
            ("open", "half-open"),
            ("half-open", "open"),
            ("half-open", "closed"),
            ("closed", "open"),
        }
        assert set(zip(["", *mine], mine, strict=False)) <= pairs
