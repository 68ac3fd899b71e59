"""What it costs to have a call dispatched, and what that gains: beside others that balance, retry and fall back.

The rivals are imported where they are measured: some run in an environment that has nothing of ours.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib import metadata
from statistics import median
from typing import Final, TypeAlias

from benchmarks import dispatch_rivals as rivals
from benchmarks import harness
from benchmarks.dispatch_fleet import Fleet, serving_fleet
from benchmarks.harness import Case, Figures, Question, Result, quantile
from benchmarks.service import REPLY

__all__ = ["QUESTIONS", "ROUNDS", "TABLES"]

#: Has one call made, and gives what was answered.
Ask: TypeAlias = Callable[[], Awaitable[str]]

_LITELLM_STRATEGIES: Final = ("simple-shuffle", "latency-based-routing")
_INSTANCES: Final = 4

# --- what is added to a call


def added_round_robin(quick: bool) -> Figures:
    return _added_by_ours("round_robin", quick)


def added_weighted_round_robin(quick: bool) -> Figures:
    return _added_by_ours("weighted_round_robin", quick)


def added_least_connections(quick: bool) -> Figures:
    return _added_by_ours("least_connections", quick)


def added_weighted(quick: bool) -> Figures:
    return _added_by_ours("weighted", quick)


def added_peak_ewma(quick: bool) -> Figures:
    return _added_by_ours("peak_ewma", quick)


def added_tenacity(quick: bool) -> Figures:
    return asyncio.run(_added(rivals.tenacity([_at_once] * _INSTANCES), _at_once, quick))


def added_langchain(quick: bool) -> Figures:
    return asyncio.run(_added(rivals.langchain([_at_once] * _INSTANCES), _at_once, quick))


def added_litellm_shuffle(quick: bool) -> Figures:
    return asyncio.run(_added_by_litellm(_LITELLM_STRATEGIES[0], quick))


def added_litellm_latency(quick: bool) -> Figures:
    return asyncio.run(_added_by_litellm(_LITELLM_STRATEGIES[1], quick))


_ADDED: Final = "added to a call, p50 µs"
_ADDED_LATE: Final = "added to a call, p95 µs"


def _added_by_ours(algorithm: str, quick: bool) -> Figures:
    from benchmarks.dispatch_ours import executed

    async def added() -> Figures:
        return await _added(executed(algorithm, [_at_once] * _INSTANCES), _at_once, quick)

    return asyncio.run(added())


async def _added_by_litellm(strategy: str, quick: bool) -> Figures:
    asked = rivals.litellm_functions(strategy, _at_once, size=_INSTANCES)
    each = 60 if quick else 400
    await _microseconds(asked.alone, 30)
    bare = await _microseconds(asked.alone, each)
    asked.open()
    await _microseconds(asked.ask, 30)
    return _difference(await _microseconds(asked.ask, each), bare)


async def _added(ask: Ask, bare: Ask, quick: bool) -> Figures:
    """Both in turn, in short blocks: what the machine does besides meets both."""
    await _microseconds(ask, 200)
    taken: list[float] = []
    alone: list[float] = []
    for _ in range(4 if quick else 20):
        alone += await _microseconds(bare, 200)
        taken += await _microseconds(ask, 200)
    return _difference(taken, alone)


def _difference(taken: list[float], bare: list[float]) -> Figures:
    return {
        _ADDED: quantile(taken, 0.5) - quantile(bare, 0.5),
        _ADDED_LATE: quantile(taken, 0.95) - quantile(bare, 0.5),
    }


async def _microseconds(ask: Ask, times: int) -> list[float]:
    """Of each call, one after the other."""
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        said = await ask()
        taken.append((time.perf_counter() - began) * 1e6)
        assert said == REPLY, said
    return taken


async def _at_once() -> str:
    """The least that a call does: it lets others have their turn once."""
    await asyncio.sleep(0)
    return REPLY


# --- many calls at once

_CALLS: Final = 1_000
_AT_ONCE: Final = 200
_CALL_SECONDS: Final = 0.05
_EACH: Final = 10
_IDEAL: Final = _AT_ONCE / _CALL_SECONDS
_BURST: Final = "1,000 calls of 50 ms in the same instant, calls/s"
_SPREAD_SECONDS: Final = 0.01
_KEPT: Final = "1,000 callers who ask again, calls of 40 to 60 ms, calls/s"


def many_ours(quick: bool) -> Figures:
    from benchmarks.dispatch_ours import executed

    async def many() -> Figures:
        busy = _Busy()
        return await _many(busy, executed("round_robin", [busy.call], concurrency=_AT_ONCE, queue=_CALLS), quick)

    return asyncio.run(many())


def many_bare(quick: bool) -> Figures:
    return asyncio.run(_many_behind(lambda ask: ask, quick))


def many_tenacity(quick: bool) -> Figures:
    return asyncio.run(_many_behind(lambda ask: rivals.tenacity([ask]), quick))


def many_langchain(quick: bool) -> Figures:
    return asyncio.run(_many_behind(lambda ask: rivals.langchain([ask]), quick))


def many_litellm(quick: bool) -> Figures:
    def made(ask: Ask) -> Ask:
        router = rivals.litellm_functions(_LITELLM_STRATEGIES[0], ask, size=1)
        router.open()
        return router.ask

    # It takes a tenth of the calls in a second: fewer will do.
    return asyncio.run(_many_behind(made, quick, each=2))


class _Busy:
    """An instance that takes its time, ``spread`` around its mean, and knows how many calls it had at once."""

    def __init__(self) -> None:
        self.in_flight = self.most = 0
        self.spread = 0.0
        self._chance = random.Random(3)

    async def call(self) -> str:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(_CALL_SECONDS + self._chance.uniform(-self.spread, self.spread))
        finally:
            self.in_flight -= 1
        return REPLY


async def _many_behind(made: Callable[[Ask], Ask], quick: bool, *, each: int = _EACH) -> Figures:
    """What has no waiting line of its own stands behind a semaphore."""
    busy = _Busy()
    ask = made(busy.call)
    places = asyncio.Semaphore(_AT_ONCE)

    async def waiting() -> str:
        async with places:
            return await ask()

    return await _many(busy, waiting, quick, each=each)


async def _many(busy: _Busy, ask: Ask, quick: bool, *, each: int = _EACH) -> Figures:
    assert await ask() == REPLY
    burst = median([await _rate(ask, 1) for _ in range(1 if quick else 3)])
    busy.spread = _SPREAD_SECONDS
    kept = await _rate(ask, 2 if quick else each)
    assert busy.most == _AT_ONCE, f"{busy.most} at once"
    return {_BURST: burst, _KEPT: kept}


async def _rate(ask: Ask, each: int) -> float:
    async def caller() -> None:
        for _ in range(each):
            assert await ask() == REPLY

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(_CALLS)))
    return _CALLS * each / (time.perf_counter() - began)


# --- to select among many

_SIZES: Final = (10, 1_000, 10_000)
_GROWTH: Final = "10,000 over 10, times"


def select_round_robin(quick: bool) -> Figures:
    return _selected("round_robin", quick)


def select_weighted_round_robin(quick: bool) -> Figures:
    return _selected("weighted_round_robin", quick)


def select_least_connections(quick: bool) -> Figures:
    return _selected("least_connections", quick)


def select_weighted(quick: bool) -> Figures:
    return _selected("weighted", quick)


def select_peak_ewma(quick: bool) -> Figures:
    return _selected("peak_ewma", quick)


def select_litellm_shuffle(quick: bool) -> Figures:
    return asyncio.run(_selected_by_litellm(_LITELLM_STRATEGIES[0], quick))


def select_litellm_latency(quick: bool) -> Figures:
    return asyncio.run(_selected_by_litellm(_LITELLM_STRATEGIES[1], quick))


def _among(size: int, *, ejected: bool = False) -> str:
    return f"{size:,}{', half ejected' if ejected else ''}, µs"


def _selected(algorithm: str, quick: bool) -> Figures:
    from benchmarks.dispatch_ours import selecting

    figures: Figures = {}
    for ejected in (False, True):
        for size in _SIZES:
            select = selecting(algorithm, size, ejected=ejected)
            times = max((2_000 if quick else 20_000) // size, 20)
            taken: list[float] = []
            for _ in range(times):
                began = time.perf_counter()
                select()
                taken.append((time.perf_counter() - began) * 1e6)
            figures[_among(size, ejected=ejected)] = quantile(taken, 0.5)
    figures[_GROWTH] = figures[_among(_SIZES[-1])] / figures[_among(_SIZES[0])]
    return figures


async def _selected_by_litellm(strategy: str, quick: bool) -> Figures:
    """Not among 10,000: to make the router takes a minute then."""
    figures: Figures = {}
    for size in _SIZES[:1] if quick else _SIZES[:2]:
        asked = rivals.litellm_functions(strategy, _at_once, size=size)
        asked.open()
        taken: list[float] = []
        for _ in range(20):
            began = time.perf_counter()
            await asked.select()
            taken.append((time.perf_counter() - began) * 1e6)
        figures[_among(size)] = quantile(taken, 0.5)
    return figures


# --- a fleet of unlike instances

_MODEL: Final = "gpt-4o"
_FLEET: Final = (0.010, 0.010, 0.050, 0.200)
#: Requests a second that come by chance, whether or not those before them were answered.
_ARRIVALS: Final = 50.0
_WARM_UP: Final = 20
_LONGEST: Final = 30.0
_WELL_P50: Final = "p50 ms"
_WELL_P95: Final = "p95 ms"
_DYING_P50: Final = "one dies: p50 ms"
_DYING_P95: Final = "one dies: p95 ms"
_DYING_MOST: Final = "one dies: longest, ms"
_LOST: Final = "one dies: lost"
_CPU: Final = "CPU of a call, ms"


def fleet_round_robin(quick: bool) -> Figures:
    return _fleet_of_ours("round_robin", quick)


def fleet_weighted_round_robin(quick: bool) -> Figures:
    return _fleet_of_ours("weighted_round_robin", quick)


def fleet_least_connections(quick: bool) -> Figures:
    return _fleet_of_ours("least_connections", quick)


def fleet_weighted(quick: bool) -> Figures:
    return _fleet_of_ours("weighted", quick)


def fleet_peak_ewma(quick: bool) -> Figures:
    return _fleet_of_ours("peak_ewma", quick)


def fleet_tenacity(quick: bool) -> Figures:
    return _with_fleet(lambda fleet: rivals.tenacity_clients(fleet.urls, model=_MODEL), quick)


def fleet_langchain(quick: bool) -> Figures:
    return _with_fleet(lambda fleet: rivals.langchain_models(fleet.urls, model=_MODEL), quick)


def fleet_litellm_shuffle(quick: bool) -> Figures:
    return _with_fleet(lambda fleet: rivals.litellm(_LITELLM_STRATEGIES[0], fleet.urls, model=_MODEL), quick)


def fleet_litellm_latency(quick: bool) -> Figures:
    return _with_fleet(lambda fleet: rivals.litellm(_LITELLM_STRATEGIES[1], fleet.urls, model=_MODEL), quick)


def _fleet_of_ours(algorithm: str, quick: bool) -> Figures:
    from benchmarks.dispatch_ours import prompts

    return _with_fleet(lambda fleet: prompts(algorithm, fleet.urls, model=_MODEL), quick)


def _with_fleet(opened: Callable[[Fleet], AbstractAsyncContextManager[Ask]], quick: bool) -> Figures:
    async def measured(fleet: Fleet) -> Figures:
        async with opened(fleet) as ask:
            return await _spread(ask, fleet, quick)

    with serving_fleet(_FLEET) as fleet:
        return asyncio.run(measured(fleet))


async def _spread(ask: Ask, fleet: Fleet, quick: bool) -> Figures:
    requests = 50 if quick else 300
    for _ in range(_WARM_UP):
        assert await ask() == REPLY
    began = time.process_time()
    well = await _load(ask, requests)
    cpu = (time.process_time() - began) * 1_000 / requests
    assert len(well) == requests, f"{requests - len(well)} requests were lost while all were well"
    dying = await _load(ask, requests, after_a_third=lambda: fleet.kill(0))
    return {
        _WELL_P50: quantile(well, 0.5),
        _WELL_P95: quantile(well, 0.95),
        _DYING_P50: quantile(dying, 0.5),
        _DYING_P95: quantile(dying, 0.95),
        _DYING_MOST: max(dying),
        _LOST: requests - len(dying),
        _CPU: cpu,
    }


async def _load(ask: Ask, requests: int, *, after_a_third: Callable[[], None] | None = None) -> list[float]:
    """The milliseconds of each request that was answered, from when it was due; the same dues in each run."""
    taken: list[float] = []

    async def one(due: float) -> None:
        try:
            async with asyncio.timeout(_LONGEST):
                said = await ask()
        except Exception as error:  # noqa: BLE001  what a request is lost to is the way's own; that it is lost is counted
            print(f"lost to {type(error).__name__}", file=sys.stderr)
            return
        assert said == REPLY, said
        taken.append((time.perf_counter() - due) * 1_000)

    chance = random.Random(7)
    due = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(requests):
            due += chance.expovariate(_ARRIVALS)
            await asyncio.sleep(due - time.perf_counter())
            if after_a_third is not None and number == requests // 3:
                after_a_third()
            tasks.create_task(one(due))
    return taken


# --- tables


def _table(question: Question, results: Mapping[str, Result]) -> str:
    """A Markdown section: a row for each case, with the median of its runs."""
    found = {
        name: {figure: median(run[figure] for run in result) for figure in result[0]}
        for name, result in results.items()
        if not isinstance(result, harness.Missing | harness.Failed)
    }
    columns = list(dict.fromkeys(figure for figures in found.values() for figure in figures))
    lines = [f"\n### {question.title}\n", f"{question.note}\n"]
    lines += [f"| case | {' | '.join(columns)} | aim |", f"|---|{'---:|' * len(columns)}---|"]
    for name, result in results.items():
        if isinstance(result, harness.Missing):
            lines.append(f"| {name} | not installed ({result.package}) {'| ' * len(columns)}|")
        elif isinstance(result, harness.Failed):
            lines.append(f"| {name} | FAILED: {result.reason} {'| ' * len(columns)}|")
        else:
            cells = " | ".join(_number(found[name][c]) if c in found[name] else "" for c in columns)
            lines.append(f"| {name} | {cells} | {_aims(question, name, found)} |")
    return "\n".join(lines)


def _aims(question: Question, name: str, found: Mapping[str, Figures]) -> str:
    said: list[str] = []
    for aim in question.beside:
        sides = [found[other][aim.figure] for other in aim.than if other in found]
        if aim.case == name and sides:
            met = all(found[name][aim.figure] <= aim.times * side for side in sides)
            said.append(f"{aim.figure} ≤ {aim.times:g} times {', '.join(aim.than)}: {'met' if met else 'missed'}")
    if name.startswith("Agent Orchestra"):
        for figure, most in question.aims.items():
            said.append(f"{figure} ≤ {most:g}: {'met' if found[name][figure] <= most else 'missed'}")
    return "; ".join(said)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"


#: As new as LiteLLM comes, it does not run beside an SDK of OpenAI as new as ours.
_LITELLM: Final = ("litellm==1.106.2", "openai==2.54.0")
_WITH: Final = (
    f"With {_version('langchain-core')} and {_version('tenacity')}; LiteLLM in an environment of its own: "
    f"{', '.join(package.replace('==', ' ') for package in _LITELLM)}."
)
_OURS: Final = {
    algorithm: f"Agent Orchestra, `{algorithm}`"
    for algorithm in ("round_robin", "weighted_round_robin", "least_connections", "weighted", "peak_ewma")
}
_TENACITY: Final = "tenacity and a loop"
_LANGCHAIN: Final = "LangChain"
_SHUFFLE, _LATENCY = (f"LiteLLM `Router`, `{strategy}`" for strategy in _LITELLM_STRATEGIES)

QUESTIONS: Final = (
    Question(
        name="dispatch-overhead",
        title="What is added to a call",
        note=(
            "Four instances, each an async function that lets others have their turn once and answers; one call at a "
            "time, beside the function alone. Ours: a place reserved and the call run, with breaker (failures in a "
            "row, their share, slow calls), limit of the instance, deadline, budget of retries, figures of the "
            "instance, early warning, and the attempt noted. LangChain: `RunnableLambda` with "
            "`.with_retry().with_fallbacks()`. tenacity: `AsyncRetrying` around a loop over the instances. LiteLLM: "
            "the function as a provider of one's own, asked through the `Router`, less the same through `acompletion` "
            f"without a router, which alone takes over a millisecond. {_WITH}"
        ),
        cases=(
            Case(name=_OURS["round_robin"], measure=added_round_robin),
            Case(name=_OURS["weighted_round_robin"], measure=added_weighted_round_robin),
            Case(name=_OURS["least_connections"], measure=added_least_connections),
            Case(name=_OURS["weighted"], measure=added_weighted),
            Case(name=_OURS["peak_ewma"], measure=added_peak_ewma),
            Case(name=_TENACITY, measure=added_tenacity),
            Case(name=_LANGCHAIN, measure=added_langchain),
            Case(name=_SHUFFLE, measure=added_litellm_shuffle, apart=_LITELLM),
            Case(name=_LATENCY, measure=added_litellm_latency, apart=_LITELLM),
        ),
        aims={_ADDED: 150.0},
    ),
    Question(
        name="dispatch-throughput",
        title="Many calls at a limit",
        note=(
            f"1,000 calls at once, at a limit of {_AT_ONCE}; the ideal is {_IDEAL:,.0f} calls/s. First, all come in "
            f"the same instant and take 50 ms to the dot, so that {_AT_ONCE} end in the same instant, five times, and "
            "no call runs while these are seen to. Then 1,000 callers ask again as soon as they are answered, each "
            f"{_EACH} times (of LiteLLM: twice), and a call takes 40 to 60 ms. Ours: one instance with `concurrency: "
            f"{_AT_ONCE}` and `queue: 1000`. The others have no waiting line (LiteLLM's `max_parallel_requests` "
            "refuses), and stand behind an `asyncio.Semaphore`, which is also measured alone: it is what asyncio "
            "itself attains."
        ),
        cases=(
            Case(name="Agent Orchestra", measure=many_ours),
            Case(name="a semaphore alone", measure=many_bare),
            Case(name=_TENACITY, measure=many_tenacity),
            Case(name=_LANGCHAIN, measure=many_langchain),
            Case(name=_SHUFFLE, measure=many_litellm, apart=_LITELLM),
        ),
        aims={_BURST: 0.95 * _IDEAL, _KEPT: 0.95 * _IDEAL},
    ),
    Question(
        name="dispatch-selection",
        title="To select one of many instances",
        note=(
            "A place taken and given back, the median, among so many instances that are all free, or of which half, "
            "chosen at random, are ejected by their breakers. LiteLLM: `async_get_available_deployment`; not among "
            "10,000, where to make its router took a minute."
        ),
        cases=(
            Case(name=_OURS["round_robin"], measure=select_round_robin),
            Case(name=_OURS["weighted_round_robin"], measure=select_weighted_round_robin),
            Case(name=_OURS["least_connections"], measure=select_least_connections),
            Case(name=_OURS["weighted"], measure=select_weighted),
            Case(name=_OURS["peak_ewma"], measure=select_peak_ewma),
            Case(name=_SHUFFLE, measure=select_litellm_shuffle, apart=_LITELLM),
            Case(name=_LATENCY, measure=select_litellm_latency, apart=_LITELLM),
        ),
    ),
    Question(
        name="dispatch-fleet",
        title="A fleet of unlike instances",
        note=(
            "Models on loopback that answer after 10, 10, 50 and 200 ms, each at an address of its own; "
            f"{_ARRIVALS:g} requests a second that come by chance, the same for all, timed from when they are due. "
            "First all are well; then, a third of the way through as many again, the first of the fast ones dies: its "
            "connections are cut and it takes no more. Lost: not answered within 30 s, of 300. All ask through "
            "OpenAI's SDK, ours by agents of kind `prompt`, without routing and record. LangChain does not balance: "
            "it asks the first, which is a fast one here, and others after its retries. LangChain and LiteLLM with "
            "their own pauses, LiteLLM with three retries; tenacity with four tries and pauses like ours."
        ),
        cases=(
            Case(name=_OURS["round_robin"], measure=fleet_round_robin),
            Case(name=_OURS["weighted_round_robin"], measure=fleet_weighted_round_robin),
            Case(name=_OURS["least_connections"], measure=fleet_least_connections),
            Case(name=_OURS["weighted"], measure=fleet_weighted),
            Case(name=_OURS["peak_ewma"], measure=fleet_peak_ewma),
            Case(name=_TENACITY, measure=fleet_tenacity),
            Case(name=_LANGCHAIN, measure=fleet_langchain),
            Case(name=_SHUFFLE, measure=fleet_litellm_shuffle, apart=_LITELLM),
            Case(name=_LATENCY, measure=fleet_litellm_latency, apart=_LITELLM),
        ),
        aims={_LOST: 0},
        beside=(harness.Beside(case=_OURS["peak_ewma"], figure=_WELL_P95, than=(_OURS["round_robin"],), times=0.5),),
    ),
)
#: A round of these takes long.
ROUNDS: Final = {"dispatch-fleet": 3}
#: Questions that have a table of their own form.
TABLES: Final = {"dispatch-selection": _table, "dispatch-fleet": _table}
