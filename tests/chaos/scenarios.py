"""What goes wrong, and what it must cost. Each scenario is a function of the laboratory that gives named figures."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.breaker import BreakerPolicy, BreakerState
from agent_orchestra.core.resilience import Action, BudgetPolicy, Recovery
from agent_orchestra.runtime.instances import Dispatching
from tests.chaos.agents import FLEET_URL, Made, called
from tests.chaos.fleet import Fleet, Script, running_fleet
from tests.chaos.laboratory import Asked, Figure, Laboratory, Stage, agent, most_at_once, quantile, within
from tests.chaos.storm import Answered, resident_mb, storm
from tests.services.service import running_service
from tests.services.waiting import wait_until

__all__ = ["SCENARIOS", "Scenario"]


#: The agent of a service of its own.
CALLED = f"{called.__module__}:{called.__name__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``name``: what goes wrong. ``done``: with what, for the table. ``slow``: it takes seconds, however short."""

    name: str
    done: str
    run: Callable[[Laboratory], Awaitable[Sequence[Figure]]]
    slow: bool = True


#: Until all that run at once have taken in what one of them was told, also on a busy machine.
_TAKEN_IN = 0.25


# --- an instance is lost


async def _dies(lab: Laboratory) -> Sequence[Figure]:
    async with running_fleet("abcd") as fleet:

        async def die() -> None:
            await fleet.follow(Script(listening=False), "d")

        return await _lost_instance(lab, fleet, die)


async def _is_killed(lab: Laboratory) -> Sequence[Figure]:
    async with running_fleet("abc", "d") as fleet:

        async def die() -> None:
            fleet.signal("d", signal.SIGKILL)

        return await _lost_instance(lab, fleet, die)


async def _freezes(lab: Laboratory) -> Sequence[Figure]:
    async with running_fleet("abc", "d") as fleet:

        async def freeze() -> None:
            fleet.signal("d", signal.SIGSTOP)

        return await _lost_instance(lab, fleet, freeze, timeout=0.5)


async def _thaws(lab: Laboratory) -> Sequence[Figure]:
    """A frozen process comes back, with calls that nobody waits for any more."""
    async with running_fleet("abc", "d") as fleet:
        front = agent(fleet.urls, timeout=0.3)
        async with lab.stage(fleet, front, dispatching=Dispatching(breaker=BreakerPolicy(rest=0.5))) as stage:
            await _warm(stage)
            traffic = asyncio.create_task(stage.ask_steadily(50, lab.seconds(4, 10)))
            await asyncio.sleep(0.5)
            fleet.signal("d", signal.SIGSTOP)
            await wait_until(lambda: stage.told("instance_ejected", "d") > 0, "that it is frozen is never seen")
            fleet.signal("d", signal.SIGCONT)
            await wait_until(lambda: stage.told("instance_readmitted", "d") > 0, "it is never taken back")
            return _kept(await traffic)


async def _lost_instance(
    lab: Laboratory, fleet: Fleet, end: Callable[[], Awaitable[None]], *, timeout: float | None = None
) -> Sequence[Figure]:
    """``d`` is lost in the middle of steady traffic over four instances, in turn: the worst way to meet it."""
    before, after = lab.seconds(1.5, 8), lab.seconds(2, 8)
    await fleet.follow(Script(seconds=0.02))
    async with lab.stage(fleet, agent(fleet.urls, timeout=timeout)) as stage:
        await _warm(stage)
        traffic = asyncio.create_task(stage.ask_steadily(lab.seconds(50, 100), before + after))
        began = time.perf_counter()
        await asyncio.sleep(before)
        await end()
        died = time.perf_counter()
        asked = await traffic
        pool = stage.parts.registered("front").pool
        await wait_until(lambda: not pool.in_flight, "places are held for ever")
        usual = [made for made in stage.made("d") if made.began < died]
        calls = [made for made in stage.made("d") if made.began >= died]
        figures = [
            *_kept(asked),
            _exactly("attempts told, less calls made", sum(len(a.attempts) for a in asked) + 8 - len(stage.made()), 0),
            # Whatever was under way when the fifth failure was taken in was sent in good faith.
            Figure(
                name="calls of the lost one, less those at once",
                value=len(calls) - most_at_once([*usual, *calls], _TAKEN_IN),
                at_most=BreakerPolicy().failures,
            ),
        ]
        return [*figures, *_back_to_normal(asked, began, died)]


_BUCKET = 0.25


def _back_to_normal(asked: Sequence[Asked], began: float, died: float) -> Sequence[Figure]:
    """How long p99 stays above what it was, in buckets by the start of the requests.

    Normal is what the worst bucket had of requests that ended before; it is back when all buckets of a second are
    normal.
    """

    def p99(some: Sequence[Asked], begin: float) -> float:
        return quantile([one.seconds for one in within(some, begin, begin + _BUCKET)], 0.99)

    ended = [one for one in asked if one.due + one.seconds <= died]
    before = [p99(ended, began + number * _BUCKET) for number in range(int((died - began) / _BUCKET))]
    last = max(one.due for one in asked)
    after = [p99(asked, died + number * _BUCKET) for number in range(int((last - died) / _BUCKET))]
    normal = max(before)
    back = next(
        (n * _BUCKET for n in range(len(after) - 3) if all(value <= normal for value in after[n : n + 4])), math.inf
    )
    return [
        Figure(name="p99 of the worst 250 ms before", value=normal * 1_000, unit="ms"),
        Figure(name="p99 of the worst 250 ms after", value=max(after, default=0) * 1_000, unit="ms"),
        Figure(name="p99 back to normal after", value=back, unit="s", at_most=2.0, timing=True),
    ]


async def _all_stall(lab: Laboratory) -> Sequence[Figure]:
    """Nothing answers any more: the deadline ends each request, and what it held is free again."""
    deadline, number = 1.0, 40
    async with running_fleet("ab") as fleet, lab.stage(fleet, timeout_seconds=deadline) as stage:
        await _warm(stage)
        await fleet.follow(Script(stall=True))
        asked = await stage.ask_at_once(number)
        pool = stage.parts.registered("front").pool
        await wait_until(lambda: not pool.in_flight, "places are held for ever")
        left = await _connections(fleet, "a", "b")
        return [
            _exactly("requests without an end", sum(one.code == "hung" for one in asked), 0),
            _exactly("ended as deadline_exceeded", sum(one.code == "deadline_exceeded" for one in asked), number),
            Figure(name="connections left to instances that stall", value=left, at_most=2),
            Figure(name="longest request", value=_longest(asked), unit="s", at_most=2 * deadline, timing=True),
        ]


async def _connections(fleet: Fleet, *ids: str) -> int:
    return sum([await fleet.connections(instance_id) for instance_id in ids])


# --- an instance is worse than it was


async def _turns_slow(lab: Laboratory) -> Sequence[Figure]:
    usual, slow = Script(seconds=0.02), Script(seconds=0.4)
    async with running_fleet("abcd") as fleet:
        await fleet.follow(usual)
        async with lab.stage(fleet, agent(fleet.urls, algorithm=Algorithm.PEAK_EWMA)) as stage:
            await _warm(stage)
            rate, seconds = lab.seconds(50, 100), lab.seconds(1.5, 5)
            before = await stage.ask_steadily(rate, seconds)
            await fleet.follow(slow, "d")
            turning = await stage.ask_steadily(rate, 1.0, seed=1)
            began = time.perf_counter()
            after = await stage.ask_steadily(rate, seconds, seed=2)
            share = _share(stage, "d", began)
            await fleet.follow(usual, "d")
            again = time.perf_counter()
            back = await stage.ask_steadily(rate, lab.seconds(1, 15), seed=3)
            figures = [
                *_kept([*before, *turning, *after, *back]),
                Figure(
                    name="its share of the calls a second later", value=share * 100, unit="%", at_most=5, timing=True
                ),
                _p95("p95 before", before),
                replace(_p95("p95 a second later", after), at_most=2 * _p95("", before).value, timing=True),
            ]
            if not lab.full:
                return figures
            first = min((made.began for made in stage.made("d") if made.began > again), default=math.inf)
            back_at = Figure(name="first call when it is fast again, after", value=first - again, unit="s", at_most=10)
            return [*figures, back_at]


async def _drifts(lab: Laboratory) -> Sequence[Figure]:
    """Three times as slow, or one call in five fails: nothing that a breaker sees."""
    figures: list[Figure] = []
    drifts = {"failing": Script(seconds=0.02, failing_share=0.2)}
    if lab.full:
        drifts["slower"] = Script(seconds=0.06)
    for what, script in drifts.items():
        # How fast an instance seems is a matter of the machine too; that it fails is not.
        slower = what == "slower"
        async with running_fleet("abcd") as fleet:
            await fleet.follow(Script(seconds=0.02))
            async with lab.stage(fleet) as stage:
                before = await stage.ask_steadily(50, 2.4)
                await fleet.follow(script, "d")
                began = time.perf_counter()
                turning = await stage.ask_steadily(50, lab.seconds(4, 8), seed=2)
                later = time.perf_counter()
                after = await stage.ask_steadily(50, lab.seconds(2, 5), seed=1)
                opened = stage.instance("d").breaker.state is not BreakerState.CLOSED
                first = [made for made in stage.made("d") if began <= made.began < later]
                figures += [
                    *(replace(figure, name=f"{what}: {figure.name}") for figure in _kept([*before, *turning, *after])),
                    Figure(
                        name=f"{what}: times it was told",
                        value=stage.told("instance_drifting", "d"),
                        at_least=1,
                        timing=slower,
                    ),
                    _exactly(f"{what}: breakers opened", opened, 0),
                    Figure(name=f"{what}: its calls while it became known", value=len(first)),
                    Figure(
                        name=f"{what}: its share of the calls then",
                        value=_share(stage, "d", later) * 100,
                        unit="%",
                        at_most=10,
                        # Of the few calls of a short run a share is chance.
                        timing=True,
                    ),
                ]
    return figures


async def _says_so(lab: Laboratory) -> Sequence[Figure]:
    """``d`` fails, and says so when it is checked, before any request has met it."""
    async with running_fleet("abcd") as fleet, lab.stage(fleet, check_seconds=0.2) as stage:
        await _warm(stage)
        before = len(stage.made("d"))
        await fleet.follow(Script(sick=True, status=500), "d")
        await wait_until(lambda: stage.told("instance_unwell", "d") > 0, "that it is not well is never seen")
        asked = await stage.ask_in_turn(40)
        sick = len(stage.made("d")) - before
        await fleet.follow(Script(), "d")
        await wait_until(lambda: stage.told("instance_well", "d") > 0, "that it is well again is never seen")
        asked += await stage.ask_in_turn(40)
        return [
            *_kept(asked),
            _exactly("calls of it while it is not well", sick, 0),
            Figure(name="of the 40 calls after that", value=len(stage.made("d")) - before - sick, at_least=5),
        ]


async def _flaps(lab: Laboratory) -> Sequence[Figure]:
    """``d`` fails all its calls, then none, and so on."""
    rest, phases = 0.4, int(lab.seconds(3, 10))
    policy = BreakerPolicy(rest=rest)
    async with running_fleet("abcd") as fleet:
        await fleet.follow(Script(seconds=0.01))
        async with lab.stage(fleet, dispatching=Dispatching(breaker=policy)) as stage:
            await _warm(stage)
            traffic = asyncio.create_task(stage.ask_steadily(50, phases * 1.2))
            began = time.perf_counter()
            for _ in range(phases):
                await fleet.follow(Script(status=500, seconds=0.01), "d")
                await asyncio.sleep(0.6)
                await fleet.follow(Script(seconds=0.01), "d")
                await asyncio.sleep(0.6)
            asked = await traffic
            calls = stage.made("d")
            failed = [made for made in calls if made.code != "answered"]
            trials = (time.perf_counter() - began) / rest
            most = phases * (policy.failures - 1 + most_at_once(calls, _TAKEN_IN)) + trials
            return [
                *_kept(asked),
                Figure(name="calls of it", value=len(calls)),
                Figure(name="failed calls of it", value=len(failed), at_most=math.ceil(most)),
            ]


async def _lies(lab: Laboratory) -> Sequence[Figure]:
    """One gives garbage, one breaks off in mid-answer, one keeps its first byte, one is well."""
    async with running_fleet("abcd") as fleet:
        figures: list[Figure] = []
        for name, read_only in (("read-only", True), ("with effects", False)):
            await fleet.follow(Script())
            await fleet.follow(Script(garbage=True), "a")
            await fleet.follow(Script(reset="middle"), "b")
            await fleet.follow(Script(body_seconds=0.1), "c")
            async with lab.stage(fleet, agent(fleet.urls, read_only=read_only)) as stage:
                asked = await stage.ask_in_turn(24)
                twice = len(stage.made()) - len({made.content for made in stage.made()})
                figures.append(_exactly(f"{name}: garbage given as an answer", _wrong(asked), 0))
                if read_only:
                    figures.append(_exactly(f"{name}: requests lost", _lost(asked), 0))
                else:
                    figures.append(_exactly(f"{name}: asked again after an answer began", twice, 0))
                    failed = sum(one.code == "agent_failed" for one in asked)
                    figures.append(_exactly(f"{name}: failed, less calls that went wrong", failed - _bad(stage), 0))
        return figures


def _bad(stage: Stage) -> int:
    return sum(made.code == "agent_failed" for made in stage.made())


# --- everything is worse than it was


async def _all_limited(lab: Laboratory) -> Sequence[Figure]:
    """Each says 429 with Retry-After 1 to everything."""
    seconds = lab.seconds(2.5, 8)
    async with running_fleet("abcd") as fleet:
        await fleet.follow(Script(status=429, retry_after=1, seconds=0.005))
        async with lab.stage(fleet) as stage:
            began = time.perf_counter()
            herd, steady = await asyncio.gather(stage.ask_at_once(40), stage.ask_steadily(30, seconds))
            passed = time.perf_counter() - began
            asked = [*herd, *steady]
            made = stage.made()
            first = len({one.content for one in made})
            early = sum(_within_rest(stage.made(instance_id)) for instance_id in fleet.urls)
            budget = BudgetPolicy()
            return [
                _exactly("calls of an instance within the second it asked for", early, 0),
                Figure(
                    name="calls of one request",
                    value=max(Counter(one.content for one in made).values()),
                    at_most=Recovery().attempts,
                ),
                Figure(name="retries", value=_paused(made), at_most=max(budget.floor, budget.share * first)),
                Figure(
                    name=f"calls made, for {len(asked):,} requests",
                    value=len(made),
                    at_most=sum(_allowed(stage.made(instance_id), passed) for instance_id in fleet.urls),
                ),
                _exactly("requests without an end", sum(one.code == "hung" for one in asked), 0),
                _exactly("refused without a time to come again", sum(one.retry_after is None for one in asked), 0),
            ]


def _within_rest(made: Sequence[Made]) -> int:
    """Calls that began while their instance had asked, in an answer that was in, to be left alone."""
    asked = [(m.ended + _TAKEN_IN, m.ended + m.retry_after) for m in made if m.ended and m.retry_after]
    return sum(any(begin < m.began < end for begin, end in asked) for m in made)


def _allowed(made: Sequence[Made], passed: float) -> int:
    """What one instance that asks for a second may get: once a second those that came before its answer did."""
    first = min(m.ended for m in made) + _TAKEN_IN
    later = sorted(m.began for m in made if m.began > first)
    rounds = [sum(begin <= m < begin + _TAKEN_IN for m in later) for begin in later]
    return sum(m.began <= first for m in made) + max(rounds, default=0) * int(passed)


def _paused(made: Sequence[Made]) -> int:
    """The retries among the calls: those of a request that came after a pause."""
    ended: dict[str, float] = {}
    retries = 0
    for one in made:
        retries += one.began - ended.get(one.content, one.began) > 0.9
        ended[one.content] = one.ended
    return retries


async def _all_fail(lab: Laboratory) -> Sequence[Figure]:
    """A total outage; without breakers, so that the budget of retries is all that holds."""
    number, seconds = int(lab.seconds(100, 400)), lab.seconds(2, 8)
    recovery = Recovery(attempts=10, base=0.01, cap=0.1)
    async with running_fleet("a", "bcde") as fleet:
        await fleet.follow(Script(status=500))
        alone = agent({"a": fleet.urls["a"]}, recovery=recovery)
        off = Dispatching(breaker=BreakerPolicy(enabled=False))
        async with lab.stage(fleet, alone, dispatching=off) as stage:
            asked = await stage.ask_steadily(number / seconds, seconds)
            budget = BudgetPolicy()
            figures = [
                _exactly("answered", sum(one.code is None for one in asked), 0),
                Figure(
                    name="retries, without breakers",
                    value=len(stage.made()) - len(asked),
                    at_most=max(budget.floor, budget.share * len(asked)),
                ),
            ]
        urls = {instance_id: fleet.urls[instance_id] for instance_id in "bcde"}
        async with lab.stage(fleet, agent(urls, recovery=recovery)) as stage:
            asked = await stage.ask_steadily(number / seconds, seconds)
            most = sum(BreakerPolicy().failures - 1 + most_at_once(stage.made(one), _TAKEN_IN) for one in urls)
            return [
                *figures,
                Figure(name="calls of four instances, with breakers", value=len(stage.made()), at_most=most),
                Figure(name="requests meanwhile", value=len(asked)),
            ]


async def _short_deadline(lab: Laboratory) -> Sequence[Figure]:
    """They ask for 8 s, the request has 4: it is not held for what it cannot get."""
    deadline, number = 4.0, 20
    async with running_fleet("ab") as fleet:
        await fleet.follow(Script(status=429, retry_after=8))
        async with lab.stage(fleet, timeout_seconds=deadline) as stage:
            asked = await stage.ask_in_turn(number)
            figures = [
                _exactly("calls made", len(stage.made()), 2),
                _exactly("refused without a time to come again", sum(one.retry_after is None for one in asked), 0),
                Figure(name="longest request, of a deadline of 4 s", value=_longest(asked), unit="s", at_most=1),
            ]
        await fleet.follow(Script(status=500))
        recovery = Recovery(attempts=20, base=0.5, cap=3_600)
        async with lab.stage(fleet, agent(fleet.urls, recovery=recovery), timeout_seconds=1.0) as stage:
            asked = await stage.ask_at_once(10)
            ends = {one.content: one.due + 1.0 for one in asked}
            late = sum(made.began > ends[made.content] for made in stage.made())
            return [*figures, _exactly("calls begun after the deadline", late, 0)]


async def _herd(lab: Laboratory) -> Sequence[Figure]:
    """2,000 at once on a limit of 100; then with a line of 400 that may wait."""
    figures: list[Figure] = []
    async with running_fleet("abcd") as fleet:
        await fleet.follow(Script(seconds=0.05))
        for waiting, name in ((0, "none may wait"), (400, "400 may wait")):
            async with lab.stage(fleet, max_concurrent=100, max_waiting=waiting, max_wait=40) as stage:
                await _warm(stage)
                asked = await stage.ask_at_once(2_000)
                refused = [one for one in asked if one.code == "overloaded"]
                await wait_until(lambda stage=stage: not stage.parts.dispatcher.in_flight, "requests run for ever")
                figures += [
                    _exactly(f"{name}: answered", sum(one.right for one in asked), 100 + waiting),
                    _exactly(f"{name}: refused as overloaded", len(refused), 1_900 - waiting),
                    _exactly(f"{name}: refused without a time", sum(not one.retry_after for one in refused), 0),
                    Figure(name=f"{name}: calls at once", value=most_at_once(stage.made()), at_most=100),
                    Figure(
                        name=f"{name}: last refusal after", value=_longest(refused), unit="s", at_most=1, timing=True
                    ),
                    Figure(name=f"{name}: last answer after", value=_longest(asked), unit="s"),
                ]
    return figures


async def _herd_over_http(lab: Laboratory) -> Sequence[Figure]:
    """The same at the door of a real service: each of 2,000 clients has a connection of its own."""
    folder = lab.folder / "service"
    folder.mkdir()
    settings = {
        "orchestrator": {"max_concurrent_requests": 100},
        "logs": {"level": "warning"},
        "agents": [
            {"id": "front", "kind": "function", "limits": {"concurrency": 1_000}, "settings": {"function": CALLED}}
        ],
    }
    answers: list[Answered] = []
    resident: list[float] = []
    async with running_fleet("a") as fleet:
        await fleet.follow(Script(seconds=0.05))
        with running_service(folder, settings, more_environment={FLEET_URL: fleet.urls["a"]}) as service:
            await storm(service.url, 50)
            resident.append(resident_mb(service.pid))
            for _ in range(int(lab.seconds(2, 5))):
                answers += await storm(service.url, 2_000)
                resident.append(resident_mb(service.pid))
            alive = await storm(service.url, 1)
    refused = [one for one in answers if one.status == 503]
    herds = len(resident) - 1
    figures = [
        _exactly("answered with 200 or 503", sum(one.status == 200 for one in answers) + len(refused), 2_000 * herds),
        _exactly("connections that hung or broke", sum(one.status == 0 for one in answers), 0),
        _exactly("refused without Retry-After", sum(not one.retry_after for one in refused), 0),
        Figure(name="answered", value=sum(one.status == 200 for one in answers), at_least=100 * herds),
        _exactly("answered when it is over", sum(one.status == 200 for one in alive), 1),
        Figure(
            name="99 % of the refusals within",
            value=quantile([one.seconds for one in refused], 0.99),
            unit="s",
            at_most=5,
            timing=True,
        ),
    ]
    if math.isnan(resident[0]):
        return figures
    return [
        *figures,
        Figure(name="memory grown by the first herd", value=resident[1] - resident[0], unit="MB", at_most=100),
        Figure(
            name="memory grown by each herd more",
            value=(resident[-1] - resident[1]) / (herds - 1),
            unit="MB",
            at_most=10,
        ),
    ]


async def _full(lab: Laboratory) -> Sequence[Figure]:
    """Fifty at once on two instances of which each takes four; eight may wait."""
    async with running_fleet("ab") as fleet:
        await fleet.follow(Script(seconds=0.1))
        front = agent(fleet.urls, concurrency=4, queue=8)
        async with lab.stage(fleet, front) as stage:
            asked = await stage.ask_at_once(50)
            refused = [one for one in asked if one.code == "no_instance_available"]
            return [
                _exactly("answered", sum(one.right for one in asked), 16),
                _exactly("refused with a time to come again", sum(one.retry_after is not None for one in refused), 34),
                Figure(name="calls of one instance at once", value=_most_of_one(stage), at_most=4),
            ]


def _most_of_one(stage: Stage) -> int:
    return max(most_at_once(stage.made(instance_id)) for instance_id in stage.fleet.urls)


# --- the breaker


async def _trial(lab: Laboratory) -> Sequence[Figure]:
    """``a`` fails until its breaker opens; it is tried, fails, rests again, is well, and is tried again."""
    policy = BreakerPolicy(rest=1.0)
    async with running_fleet("ab") as fleet:
        await fleet.follow(Script(status=500), "a")
        async with lab.stage(fleet, dispatching=Dispatching(breaker=policy)) as stage:
            asked = await stage.ask_in_turn(40)
            before = len(stage.made("a"))
            await _rested(stage, "a")
            await fleet.follow(Script(status=500, seconds=0.3), "a")
            asked += await stage.ask_at_once(50)
            failing = len(stage.made("a")) - before
            await _rested(stage, "a")
            await fleet.follow(Script(seconds=0.3), "a")
            asked += await stage.ask_at_once(50)
            well = len(stage.made("a")) - before - failing
            closed = stage.instance("a").breaker.state is BreakerState.CLOSED
            await fleet.follow(Script(), "a")
            asked += await stage.ask_in_turn(80)
            then = len(stage.made("a")) - before - failing - well
            return [
                *_kept(asked),
                _exactly("calls until it opens", before, 5),
                _exactly("calls while it is open", _while_open(stage.made("a"), policy), 0),
                _exactly("of 50 at once, the trials that fail", failing, 1),
                _exactly("of 50 at once, the trials that succeed", well, 1),
                _exactly("closed after that", closed, 1),
                _exactly("told: ejected", stage.told("instance_ejected", "a"), 2),
                _exactly("told: readmitted", stage.told("instance_readmitted", "a"), 1),
                Figure(name="of the 80 calls after that", value=then, at_least=5),
            ]


def _while_open(made: Sequence[Made], policy: BreakerPolicy) -> int:
    """Calls that began within the rest after the fifth failure, or after a trial that failed."""
    ends = [m.ended for m in made if m.code == "agent_unavailable"][policy.failures - 1 :]
    # What the clock of the caller says, the executor's has said a moment later.
    return sum(any(end < m.began < end + policy.rest for end in ends) for m in made)


async def _rested(stage: Stage, instance_id: str) -> None:
    instance = stage.instance(instance_id)
    assert instance.breaker.state is BreakerState.OPEN, "its breaker is not open"
    await wait_until(lambda: instance.why_not(time.perf_counter()) is None, "its rest never ends")


# --- somebody else answers


async def _hands_over(lab: Laboratory) -> Sequence[Figure]:
    """All instances of the best agent are gone: the next one that has the capability answers."""
    async with running_fleet("abc") as fleet:
        await fleet.follow(Script(listening=False), "a", "b")
        first = agent({one: fleet.urls[one] for one in "ab"}, agent_id="best", priority=10)
        second = agent({"c": fleet.urls["c"]}, agent_id="next")
        async with lab.stage(fleet, first, second) as stage:
            asked = [await stage.ask(agent_id=None, capability="answers") for _ in range(40)]
            tried = [one for one in asked if any(attempt.agent_id == "best" for attempt in one.attempts)]
            return [
                *_kept(asked),
                _exactly("answered by the next agent", sum(one.agent == "next" for one in asked), 40),
                Figure(name="calls of the best agent", value=len(stage.made("a", "b")), at_most=10),
                _exactly("answers that tell of the best agent's fault", len(tried), 40),
            ]


async def _escalates(lab: Laboratory) -> Sequence[Figure]:
    """Nobody can answer, and the agent's policy wants a person then."""
    recovery = Recovery(exhausted=Action.ESCALATE, attempts=2, base=0.01)
    async with running_fleet("ab") as fleet:
        await fleet.follow(Script(status=500))
        async with lab.stage(fleet, agent(fleet.urls, recovery=recovery)) as stage:
            asked = await stage.ask_in_turn(4)
            return [
                _exactly("requests that wait for a person", sum(one.code == "escalated" for one in asked), 4),
                _exactly("calls made", len(stage.made()), 8),
            ]


async def _sticks(lab: Laboratory) -> Sequence[Figure]:
    """Twelve conversations that stick to instances; one instance dies, and comes back."""
    policy = BreakerPolicy(rest=lab.seconds(1.5, 3))
    names = [f"talk-{number}" for number in range(12)]
    async with running_fleet("abc") as fleet:
        front = agent(fleet.urls, sticky=True)
        async with lab.stage(fleet, front, dispatching=Dispatching(breaker=policy)) as stage:
            for name in names:
                await stage.parts.orchestra.create_conversation(conversation_id=name)

            async def each(some: Sequence[str]) -> dict[str, Asked]:
                return {name: await stage.ask(conversation_id=name) for name in some}

            home = await each(names)
            again = await each(names)
            moved = sum(home[name].instance != again[name].instance for name in names)
            dead = home[names[0]].instance
            others = [name for name in names if home[name].instance != dead]
            await fleet.follow(Script(listening=False), dead)
            during = [await each(names), await each(names)]
            await fleet.follow(Script(), dead)
            await _rested(stage, dead)
            # Those of the others come first: the trial of the one that is back is none of theirs.
            back = await each([*others, *(name for name in names if name not in others)])
            strayed = [home[n].instance != all_[n].instance for all_ in (*during, back) for n in others]
            returned = sum(home[name].instance == back[name].instance for name in names if name not in others)
            return [
                *_kept([one for all_ in (home, again, *during, back) for one in all_.values()]),
                _exactly("conversations that moved though all was well", moved, 0),
                _exactly("messages of the others that went elsewhere", sum(strayed), 0),
                _exactly("conversations of the one that is back, at home again", returned, len(names) - len(others)),
            ]


async def _hedges(lab: Laboratory) -> Sequence[Figure]:
    """One call in thirty takes 25 times as long: asking a second instance then cuts the tail."""
    tails: list[float] = []
    figures: list[Figure] = []
    rate, seconds = 40.0, lab.seconds(2.5, 15)
    for hedge in (False, True):
        async with running_fleet("abcd") as fleet:
            await fleet.follow(Script(seconds=0.02, slow_share=1 / 30, slow_seconds=0.5))
            async with lab.stage(fleet, agent(fleet.urls, recovery=Recovery(hedge=hedge))) as stage:
                await stage.ask_steadily(rate, 2.2)
                before = len(stage.made())
                asked = await stage.ask_steadily(rate, seconds, seed=1)
                tails.append(quantile([one.seconds for one in asked], 0.99))
                more = len(stage.made()) - before - len(asked)
                figures += [replace(f, name=f"hedge={hedge}: {f.name}") for f in _kept(asked)]
                if hedge:
                    most = max(BudgetPolicy().floor, BudgetPolicy().share * len(asked)) + BudgetPolicy().floor
                    figures.append(Figure(name="more calls", value=more, at_most=most))
    return [
        *figures,
        Figure(name="p99 without", value=tails[0] * 1_000, unit="ms"),
        Figure(name="p99 with", value=tails[1] * 1_000, unit="ms", at_most=tails[0] * 500, timing=True),
    ]


# --- balancing


async def _balances(lab: Laboratory) -> Sequence[Figure]:
    """Four instances of 10, 10, 50 and 200 ms."""
    seconds = {"a": 0.01, "b": 0.01, "c": 0.05, "d": 0.2}
    p95: dict[Algorithm, float] = {}
    shares: dict[Algorithm, float] = {}
    figures: list[Figure] = []
    for algorithm in Algorithm if lab.full else (Algorithm.ROUND_ROBIN, Algorithm.PEAK_EWMA):
        async with running_fleet("abcd") as fleet:
            for instance_id, each in seconds.items():
                await fleet.follow(Script(seconds=each), instance_id)
            async with lab.stage(fleet, agent(fleet.urls, algorithm=algorithm)) as stage:
                await stage.ask_steadily(50, 1)
                began = time.perf_counter()
                asked = await stage.ask_steadily(lab.seconds(40, 80), lab.seconds(2, 10), seed=1)
                p95[algorithm] = _p95("", asked).value
                shares[algorithm] = _share(stage, "d", began)
                figures += _kept(asked) if algorithm is Algorithm.PEAK_EWMA else []
    return [
        *figures,
        *(
            Figure(name=f"p95 of {algorithm}", value=value, unit="ms")
            for algorithm, value in p95.items()
            if algorithm is not Algorithm.PEAK_EWMA
        ),
        Figure(
            name="p95 of peak_ewma, against round_robin's half",
            value=p95[Algorithm.PEAK_EWMA],
            unit="ms",
            at_most=p95[Algorithm.ROUND_ROBIN] / 2,
            timing=True,
        ),
        Figure(
            name="share of the slowest with peak_ewma",
            value=shares[Algorithm.PEAK_EWMA] * 100,
            unit="%",
            at_most=shares[Algorithm.ROUND_ROBIN] * 50,
        ),
    ]


# --- figures


def _exactly(name: str, value: float, wanted: float) -> Figure:
    """A number that is this one, or it is missed."""
    return Figure(name=name, value=value, at_most=wanted, at_least=wanted)


def _kept(asked: Sequence[Asked]) -> Sequence[Figure]:
    """That each request was answered, with its own answer."""
    return [
        _exactly(f"requests lost, of {len(asked):,}", _lost(asked), 0),
        _exactly("wrong answers", _wrong(asked), 0),
    ]


def _lost(asked: Sequence[Asked]) -> int:
    return sum(one.code is not None for one in asked)


def _wrong(asked: Sequence[Asked]) -> int:
    return sum(one.code is None and not one.right for one in asked)


def _longest(asked: Sequence[Asked]) -> float:
    return max((one.seconds for one in asked), default=0.0)


def _p95(name: str, asked: Sequence[Asked]) -> Figure:
    return Figure(name=name, value=quantile([one.seconds for one in asked], 0.95) * 1_000, unit="ms")


def _share(stage: Stage, instance_id: str, began: float) -> float:
    """The share of the calls from then on that an instance got."""
    calls = [made for made in stage.made() if made.began >= began]
    return sum(made.began >= began for made in stage.made(instance_id)) / len(calls)


async def _warm(stage: Stage) -> None:
    """Two calls of each instance: connections are open, and code is loaded."""
    for one in await stage.ask_in_turn(2 * len(stage.fleet.urls)):
        assert one.right, f"an instance does not answer: {one.code}"


SCENARIOS: Final = (
    Scenario(name="one of four dies", done="its listener closes, its connections are reset", run=_dies),
    Scenario(name="one of four is killed", done="SIGKILL of its process", run=_is_killed),
    Scenario(name="one of four freezes", done="SIGSTOP of its process; calls may take 0.5 s", run=_freezes),
    Scenario(name="one freezes and thaws", done="SIGSTOP, and SIGCONT when it is ejected", run=_thaws),
    Scenario(name="all stall", done="40 requests with a deadline of 1 s", run=_all_stall, slow=False),
    Scenario(
        name="one turns 20 times slower", done="20 ms become 400 ms and 20 ms again; `peak_ewma`", run=_turns_slow
    ),
    Scenario(name="one drifts", done="3 times slower, or every fifth call fails; `round_robin`", run=_drifts),
    Scenario(
        name="one says that it is not well", done="checks every 0.2 s; no request meets it", run=_says_so, slow=False
    ),
    Scenario(name="one flaps", done="all calls fail for 0.6 s, none for 0.6 s; the breaker rests 0.4 s", run=_flaps),
    Scenario(name="some lie", done="garbage, an answer cut off, a first byte after 0.1 s", run=_lies),
    Scenario(
        name="all are limited", done="429 with Retry-After 1 to everything; 40 at once, then steadily", run=_all_limited
    ),
    Scenario(name="all fail", done="500 to everything; up to 10 attempts a request", run=_all_fail),
    Scenario(
        name="a deadline shorter than the backoff", done="Retry-After 8, deadline 4 s", run=_short_deadline, slow=False
    ),
    Scenario(name="a herd", done="2,000 requests at once on a limit of 100", run=_herd),
    Scenario(
        name="a herd over HTTP", done="2,000 connections at once to a service that takes 100", run=_herd_over_http
    ),
    Scenario(
        name="instances that are full", done="50 at once; 2 instances take 4 each, 8 may wait", run=_full, slow=False
    ),
    Scenario(
        name="a breaker's trial", done="5 failures, a rest of 1 s, a trial that fails, one that succeeds", run=_trial
    ),
    Scenario(
        name="an agent is gone",
        done="all its instances refuse; another has the capability",
        run=_hands_over,
        slow=False,
    ),
    Scenario(name="nobody can answer", done="500 to everything; `exhausted: escalate`", run=_escalates, slow=False),
    Scenario(
        name="sticky conversations",
        done="12 conversations, 3 instances, one dies and comes back",
        run=_sticks,
        slow=False,
    ),
    Scenario(name="a long tail", done="1 call of 30 takes 25 times as long; hedging", run=_hedges),
    Scenario(name="unequal instances", done="10, 10, 50 and 200 ms", run=_balances),
)
