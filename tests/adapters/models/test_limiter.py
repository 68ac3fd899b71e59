"""A vendor that has said 429 is left alone until it is time, and then asked by one before all."""

from __future__ import annotations

import asyncio
import functools
import itertools
import selectors
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, ParamSpec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestra.adapters.models.limiter import Limiter
from agent_orchestra.core.prompt import Prompt, Wrote
from agent_orchestra.core.request import Reply
from agent_orchestra.errors import ModelFailed, ModelOverloaded, ModelRateLimited, ModelServerError, StreamBroken
from tests.adapters.models.recorded import open_models
from tests.services.replay import Answer, Late, ReplayServer, Request
from tests.services.replay import read_case as recorded
from tests.services.waiting import wait_until

P = ParamSpec("P")

MODEL: Final = "gpt-5"


class PatientSelector(selectors.DefaultSelector):
    """Does not wait where nothing happens, but tells how long it would have waited."""

    waited = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everybody waits, and for nothing"
            self.waited += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time goes on by being waited for, and by nothing else: no test takes any, and all of it is exact."""

    def __init__(self) -> None:
        self._patient = PatientSelector()
        super().__init__(self._patient)

    def time(self) -> float:
        return self._patient.waited


def in_no_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a test in a loop of its own, whose time is virtual."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


def limiter(concurrency: int = 100, max_wait: float = 60.0) -> Limiter:
    return Limiter("openai", concurrency=concurrency, max_wait=max_wait, clock=now)


def refusal(seconds: float | None) -> ModelRateLimited:
    """What a vendor has said that asks for a pause of so long, or of no time in particular."""
    return ModelRateLimited("too fast", **({} if seconds is None else {"retry_after": seconds}))


class Calls:
    """Calls through a limiter: when each began, how many were under way at once, and how each that failed did."""

    def __init__(self, limits: Limiter) -> None:
        self._limits = limits
        self.began: list[float] = []
        self.failed: list[ModelRateLimited] = []
        self.at_once = 0
        self._under_way = 0

    async def __call__(
        self, model: str = MODEL, *, seconds: float = 1.0, refused: float | None = None, fails: Exception | None = None
    ) -> None:
        """One call, that takes so long. ``refused``: at its end, with this time to wait."""
        try:
            async with self._limits.place(model):
                self.began.append(now())
                self._under_way += 1
                self.at_once = max(self.at_once, self._under_way)
                try:
                    await asyncio.sleep(seconds)
                    if fails is not None:
                        raise fails
                finally:
                    self._under_way -= 1
        except ModelRateLimited as error:
            self.failed.append(error)
            return
        if refused is not None:
            self._limits.refused(model, refusal(refused))

    def start(self, *args: Any, **kwargs: Any) -> asyncio.Task[None]:
        return asyncio.create_task(self(*args, **kwargs))


async def settled() -> None:
    """Lets all that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- places


@in_no_time
async def test_there_are_so_many_calls_at_once() -> None:
    calls = Calls(limiter(concurrency=3))
    await asyncio.gather(*(calls(model) for model in ["a", "b"] * 5))
    assert calls.at_once == 3
    assert calls.began == [0.0] * 3 + [1.0] * 3 + [2.0] * 3 + [3.0]


@in_no_time
async def test_a_place_is_given_back_however_a_call_ends() -> None:
    limits = limiter(concurrency=1)
    calls = Calls(limits)
    with pytest.raises(ModelServerError):
        await calls(fails=ModelServerError("broken"))
    given_up = calls.start(seconds=9.0)
    await settled()
    waiting = calls.start()
    await settled()
    for task in (waiting, given_up):
        task.cancel()
    await asyncio.gather(given_up, waiting, return_exceptions=True)
    await calls()
    assert calls.began == [0.0, 1.0, 1.0]


# --- pauses


@in_no_time
async def test_a_refusal_is_a_pause_of_as_long_as_the_vendor_says() -> None:
    limits = limiter()
    calls = Calls(limits)
    assert not limits.paused(MODEL)
    limits.refused(MODEL, refusal(2.5))
    assert limits.paused(MODEL)
    await calls()
    assert calls.began == [2.5]
    assert not limits.paused(MODEL)
    # It is over: nobody waits any more.
    await asyncio.gather(calls(), calls())
    assert calls.began == [2.5, 3.5, 3.5]


@in_no_time
async def test_a_refusal_without_a_time_is_a_short_pause() -> None:
    limits = limiter()
    calls = Calls(limits)
    limits.refused(MODEL, refusal(None))
    await calls()
    assert calls.began == [1.0]


@in_no_time
async def test_the_longest_pause_counts() -> None:
    limits = limiter()
    calls = Calls(limits)
    for seconds in (3.0, 1.0, 0.0):
        limits.refused(MODEL, refusal(seconds))
    await calls()
    assert calls.began == [3.0]


@in_no_time
async def test_no_pause_is_longer_than_an_hour() -> None:
    limits = limiter(max_wait=10_000.0)
    calls = Calls(limits)
    limits.refused(MODEL, refusal(1e9))
    await calls()
    assert calls.began == [3_600.0]


@in_no_time
async def test_after_a_pause_one_call_goes_before_all() -> None:
    limits = limiter()
    calls = Calls(limits)
    limits.refused(MODEL, refusal(2.0))
    group = asyncio.gather(*(calls() for _ in range(30)))
    await asyncio.sleep(2.5)
    assert calls.began == [2.0]
    # Whoever looks for a place to go sees that there is none yet.
    assert limits.paused(MODEL)
    await group
    assert calls.began == [2.0] + [3.0] * 29
    assert not limits.paused(MODEL)


@pytest.mark.parametrize("told_within", [True, False])
@in_no_time
async def test_a_second_refusal_is_a_pause_again(told_within: bool) -> None:
    limits = limiter()
    calls = Calls(limits)

    async def first() -> None:
        # The adapter tells of a refusal when its call has ended, or before.
        async with limits.place(MODEL):
            calls.began.append(now())
            await asyncio.sleep(0.5)
            if told_within:
                limits.refused(MODEL, refusal(3.0))
        if not told_within:
            limits.refused(MODEL, refusal(3.0))

    limits.refused(MODEL, refusal(2.0))
    await asyncio.gather(first(), *(calls() for _ in range(10)))
    assert calls.began == [2.0, 5.5] + [6.5] * 9


@in_no_time
async def test_a_first_call_that_fails_in_another_way_opens_the_way() -> None:
    limits = limiter()
    calls = Calls(limits)
    limits.refused(MODEL, refusal(2.0))
    first = calls.start(fails=ModelServerError("broken"))
    await settled()
    await asyncio.gather(*(calls() for _ in range(3)))
    assert calls.began == [2.0] + [3.0] * 3
    with pytest.raises(ModelServerError):
        await first


@in_no_time
async def test_a_first_call_that_breaks_off_has_shown_nothing() -> None:
    limits = limiter()
    calls = Calls(limits)
    limits.refused(MODEL, refusal(2.0))
    first = calls.start(fails=StreamBroken("broken off"))
    await settled()
    await asyncio.gather(*(calls() for _ in range(3)))
    assert calls.began == [2.0, 3.0, 4.0, 4.0]
    with pytest.raises(StreamBroken):
        await first


@in_no_time
async def test_where_the_first_call_is_given_up_the_next_one_goes_first() -> None:
    limits = limiter()
    calls = Calls(limits)
    limits.refused(MODEL, refusal(2.0))
    first = calls.start(seconds=9.0)
    await settled()
    rest = asyncio.gather(*(calls() for _ in range(5)))
    await asyncio.sleep(2.5)
    first.cancel()
    await rest
    # It has shown nothing: still only one may.
    assert calls.began == [2.0, 2.5] + [3.5] * 4
    assert first.cancelled()


@in_no_time
async def test_where_the_first_call_is_given_up_before_it_has_a_place_the_next_one_goes_first() -> None:
    limits = limiter(concurrency=1)
    calls = Calls(limits)
    taken = calls.start("another", seconds=4.0)
    await settled()
    limits.refused(MODEL, refusal(2.0))
    first = calls.start()
    await settled()
    second = calls.start()
    await asyncio.sleep(3.0)
    first.cancel()
    await asyncio.gather(taken, second)
    assert calls.began == [0.0, 4.0]
    assert not limits.paused(MODEL)


@in_no_time
async def test_calls_that_are_given_up_while_they_wait_leave_nothing_behind() -> None:
    limits = limiter(concurrency=2)
    calls = Calls(limits)
    limits.refused(MODEL, refusal(2.0))
    in_the_pause = calls.start()
    await asyncio.sleep(1.0)
    in_the_pause.cancel()
    first = calls.start(seconds=2.0)
    await settled()
    behind_the_first = [calls.start() for _ in range(3)]
    await asyncio.sleep(1.5)
    for task in behind_the_first:
        task.cancel()
    await first
    assert calls.began == [2.0]
    # Both places are free, and nobody has to go first.
    await asyncio.gather(calls(), calls(), calls())
    assert calls.began == [2.0, 4.0, 4.0, 5.0]


@in_no_time
async def test_a_pause_of_one_model_holds_no_other() -> None:
    limits = limiter(concurrency=1)
    calls = Calls(limits)
    limits.refused(MODEL, refusal(5.0))
    waiting = [calls.start() for _ in range(3)]
    await settled()
    # Nor do those who wait for it take up places.
    await calls("another")
    await calls("a third")
    assert calls.began == [0.0, 1.0]
    assert not limits.paused("another")
    await asyncio.gather(*waiting)
    assert calls.began == [0.0, 1.0, 5.0, 6.0, 7.0]


@in_no_time
async def test_calls_that_wait_for_a_place_heed_a_pause_that_begins_meanwhile() -> None:
    limits = limiter(concurrency=1)
    calls = Calls(limits)
    refused = calls.start(seconds=1.0, refused=3.0)
    await settled()
    waiting = [calls.start(seconds=0.5) for _ in range(3)]
    await asyncio.gather(refused, *waiting)
    assert calls.began == [0.0, 4.0, 4.5, 5.0]


@in_no_time
async def test_calls_that_wait_for_a_place_heed_a_pause_that_is_over_already() -> None:
    limits = limiter(concurrency=3)
    calls = Calls(limits)
    taken = [calls.start(seconds=5.0) for _ in range(3)]
    await settled()
    waiting = [calls.start() for _ in range(3)]
    await asyncio.sleep(1.0)
    # As one of those that are under way has heard.
    limits.refused(MODEL, refusal(1.0))
    await asyncio.gather(*taken, *waiting)
    assert calls.began == [0.0] * 3 + [5.0] + [6.0] * 2


# --- what is too long to wait for


@in_no_time
async def test_a_pause_longer_than_a_call_may_wait_fails_at_once() -> None:
    limits = limiter(max_wait=10.0)
    calls = Calls(limits)
    limits.refused(MODEL, refusal(30.0))
    await asyncio.sleep(5.0)
    await calls()
    assert calls.began == []
    assert now() == 5.0
    [error] = calls.failed
    assert error.retry_after == 25.0
    assert dict(error.data) == {"provider": "openai", "model": MODEL, "retry_after": 25.0}
    # What it could wait for, it does.
    await asyncio.sleep(15.0)
    await calls()
    assert calls.began == [30.0]


@in_no_time
async def test_without_patience_nobody_waits() -> None:
    limits = limiter(max_wait=0.0)
    calls = Calls(limits)
    limits.refused(MODEL, refusal(0.1))
    await calls()
    assert len(calls.failed) == 1
    await asyncio.sleep(0.1)
    first = calls.start()
    await settled()
    await calls()
    assert len(calls.failed) == 2
    await first
    await calls()
    assert calls.began == [0.1, 1.1]


@in_no_time
async def test_nobody_waits_longer_for_the_first_one_than_it_may() -> None:
    limits = limiter(max_wait=5.0)
    calls = Calls(limits)
    limits.refused(MODEL, refusal(2.0))
    first = calls.start(seconds=60.0)
    await settled()
    waiting = calls.start()
    await waiting
    assert now() == 5.0
    assert calls.began == [2.0]
    [error] = calls.failed
    assert error.retry_after is not None
    assert error.retry_after > 0
    await first
    await calls()
    assert calls.began == [2.0, 62.0]


@in_no_time
async def test_a_pause_that_has_become_too_long_fails_those_who_wait() -> None:
    limits = limiter(max_wait=5.0)
    calls = Calls(limits)
    limits.refused(MODEL, refusal(2.0))
    first = calls.start(refused=60.0)
    await settled()
    await asyncio.gather(*(calls() for _ in range(3)))
    await first
    assert now() == 3.0
    assert calls.began == [2.0]
    assert [error.retry_after for error in calls.failed] == [60.0] * 3


@in_no_time
async def test_a_vendor_that_has_no_room_is_left_alone_where_it_says_how_long() -> None:
    limits = limiter(max_wait=5.0)
    calls = Calls(limits)
    limits.refused(MODEL, ModelOverloaded("no room"))
    assert not limits.paused(MODEL)
    limits.refused(MODEL, ModelOverloaded("no room", retry_after=3.0))
    assert limits.paused(MODEL)
    await calls()
    assert calls.began == [3.0]

    limits.refused(MODEL, ModelOverloaded("no room", retry_after=30.0))
    with pytest.raises(ModelOverloaded) as caught:
        await calls()
    assert caught.value.retry_after == 30.0


# --- what headers tell


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "250ms"}, 0.25),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m30.5s"}, 90.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2h1m"}, 3_600.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1d"}, 3_600.0),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "7s",
            },
            7.0,
        ),
        # All are there again at the reset, and one more much earlier.
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1m0s",
            },
            1.0,
        ),
        (
            {
                "x-ratelimit-limit-requests": "none",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "2",
            },
            2.0,
        ),
        # There is some left.
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "8s"}, 0.0),
        ({"x-ratelimit-remaining-requests": "29999", "x-ratelimit-reset-requests": "2ms"}, 0.0),
        # Who says that nothing is left, and not until when, says nothing.
        ({"x-ratelimit-remaining-requests": "0"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": ""}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s later"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "-5s"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-tokens": "8s"}, 0.0),
        # What stands in recordings, where something was taken out.
        (
            {
                "x-ratelimit-remaining-requests": "X-RATELIMIT-REMAINING-REQUESTS-XXX",
                "x-ratelimit-reset-requests": "X-RATELIMIT-RESET-REQUESTS-XXX",
            },
            0.0,
        ),
        (
            {
                "anthropic-ratelimit-tokens-remaining": "0",
                "anthropic-ratelimit-tokens-reset": "ANTHROPIC-RATELIMIT-TOKENS-RESET-XXX",
            },
            0.0,
        ),
        # A time that has passed.
        (
            {
                "anthropic-ratelimit-tokens-remaining": "0",
                "anthropic-ratelimit-tokens-reset": "2026-04-05T10:39:17Z",
            },
            0.0,
        ),
        ({"retry-after": "9"}, 0.0),
        ({}, 0.0),
    ],
)
@in_no_time
async def test_headers_say_when_there_is_more(headers: Mapping[str, str], seconds: float) -> None:
    limits = limiter(max_wait=10_000.0)
    calls = Calls(limits)
    limits.heard(MODEL, headers)
    assert limits.paused(MODEL) == (seconds > 0)
    await calls()
    assert calls.began == [seconds]


@pytest.mark.parametrize("what", ["requests", "tokens", "input-tokens", "output-tokens"])
@in_no_time
async def test_anthropic_says_at_what_time_there_is_more(what: str) -> None:
    limits = limiter(max_wait=10_000.0)
    calls = Calls(limits)
    then = datetime.now(UTC) + timedelta(minutes=30)
    reset = then.isoformat().replace("+00:00", "Z")
    limits.heard(MODEL, {f"anthropic-ratelimit-{what}-remaining": "0", f"anthropic-ratelimit-{what}-reset": reset})
    await calls()
    [began] = calls.began
    assert 1_700 < began <= 1_800


@given(
    remaining=st.just("0") | st.text(max_size=5),
    reset=st.text(max_size=20) | st.datetimes().map(datetime.isoformat) | st.from_regex(r"(\d{1,9}(ms|s|m|h|d)){1,3}"),
)
def test_no_header_is_too_strange(remaining: str, reset: str) -> None:
    limits = Limiter("openai", concurrency=1, max_wait=1.0, clock=lambda: 0.0)
    for vendor in (
        {"x-ratelimit-remaining-tokens": remaining, "x-ratelimit-reset-tokens": reset},
        {"anthropic-ratelimit-tokens-remaining": remaining, "anthropic-ratelimit-tokens-reset": reset},
    ):
        limits.heard(MODEL, vendor)


# --- whole calls of models, over real HTTP

asking = pytest.mark.usefixtures("model_requests")
first_import = pytest.mark.timeout(120)
HI: Final = Prompt(turns=[Wrote(content="hi")])
TOO_FAST: Final = {"error": {"message": "?", "type": "requests", "code": "rate_limit_exceeded"}}


@pytest.fixture
async def server() -> AsyncGenerator[ReplayServer]:
    async with ReplayServer() as opened:
        yield opened


def fine(seconds: float | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer that comes at once, or after so long."""
    body = recorded("openai-chat/text").response["body"]
    return Answer.made(200, body, headers, None if seconds is None else Late(seconds=seconds))


class Arrivals(list[Request]):
    """Requests, and when each of them came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def append(self, request: Request, /) -> None:
        self.times.append(time.monotonic())
        super().append(request)


@pytest.fixture
def arrivals(server: ReplayServer) -> Arrivals:
    server.requests = arrivals = Arrivals()
    return arrivals


@asking
@first_import
@pytest.mark.parametrize("refusals", [1, pytest.param(3, marks=pytest.mark.slow)])
async def test_many_calls_do_not_storm_a_vendor_that_has_refused_one(
    refusals: int, server: ReplayServer, arrivals: Arrivals
) -> None:
    async with open_models(server.url) as models:
        for _ in range(refusals):
            server.answer(429, TOO_FAST, {"retry-after-ms": "400"})
        with pytest.raises(ModelRateLimited) as caught:
            await models.ask("openai:gpt", HI)
        assert caught.value.retry_after == 0.4

        # The first of those that come after the last refusal is slow to be answered.
        server.always(fine(0.2))
        calls = [asyncio.create_task(models.ask("openai:gpt", HI)) for _ in range(30)]
        await asyncio.wait(calls)
    ended = [call.exception() for call in calls]
    assert sum(isinstance(error, ModelRateLimited) for error in ended) == refusals - 1
    assert sum(error is None for error in ended) == 31 - refusals

    # Each that was refused, then one alone, and then the others.
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals.times)]
    assert len(arrivals) == 31
    assert all(gap >= 0.4 for gap in gaps[:refusals])
    assert gaps[refusals] >= 0.2


@asking
@first_import
async def test_who_may_not_wait_so_long_fails_without_a_request(server: ReplayServer) -> None:
    async with open_models(server.url, max_wait=0.5) as models:
        server.answer(429, TOO_FAST, {"retry-after": "30"})
        server.always(fine())
        with pytest.raises(ModelRateLimited):
            await models.ask("openai:gpt", HI)
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(ModelRateLimited) as caught:
                await models.ask("openai:gpt", HI)
            assert caught.value.retry_after is not None
            assert 25 < caught.value.retry_after <= 30
            assert caught.value.retryable
            assert caught.value.elsewhere
        assert time.monotonic() - began < 10
        assert len(server.requests) == 1

        # The key has one limit for a model, by whichever protocol it is asked; others go on.
        with pytest.raises(ModelRateLimited):
            await models.ask("openai-responses:gpt", HI)
        await models.ask("openai:gpt-mini", HI)
        await models.ask("local:gpt", HI)
        assert len(server.requests) == 3


@asking
@first_import
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_quota_that_is_used_up_is_waited_for(streamed: bool, server: ReplayServer, arrivals: Arrivals) -> None:
    async def ask(model: str) -> Reply:
        return await models.ask(model, HI, (lambda _: None) if streamed else None)

    def answer(reset: str) -> None:
        left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
        if streamed:
            body = b"".join(recorded("openai-chat/stream_text").events)
            server.answer(200, body, {"content-type": "text/event-stream", **left})
        else:
            server.answer(200, recorded("openai-chat/text").response["body"], left)

    async with open_models(server.url) as models:
        answer("400ms")
        answer("1m0s")
        await ask("openai:gpt")
        await ask("openai:gpt")
        first, second = arrivals.times
        assert second - first >= 0.4
        # That is too long for anybody; and it is this model's alone.
        with pytest.raises(ModelRateLimited):
            await ask("openai:gpt")
        answer("0s")
        await ask("openai:gpt-mini")
    assert len(arrivals) == 3


@asking
@first_import
async def test_a_refusal_in_the_middle_of_a_stream_is_a_pause_too(server: ReplayServer, arrivals: Arrivals) -> None:
    delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.4s"}
    error = b'data: {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [%s]}}\n\n'
    begun = recorded("google/stream_text").events[0]
    told = begun + error % str(delay).replace("'", '"').encode()
    async with open_models(server.url) as models:
        server.answer(200, told, {"content-type": "text/event-stream"})
        server.play(recorded("google/text"))
        with pytest.raises(ModelRateLimited) as caught:
            await models.ask("google:gemini", HI, lambda _: None)
        assert caught.value.retry_after == 0.4
        await models.ask("google:gemini", HI)
    first, second = arrivals.times
    assert second - first >= 0.4


@asking
@first_import
async def test_a_limit_that_waiting_does_not_mend_holds_nobody(server: ReplayServer) -> None:
    # Who would have to wait would fail.
    async with open_models(server.url, max_wait=0.0) as models:
        server.answer(429, {"error": {"type": "insufficient_quota", "code": "insufficient_quota"}})
        server.answer(529, {"error": {"type": "overloaded_error"}})
        server.always(fine())
        for _ in range(2):
            with pytest.raises(ModelFailed):
                await models.ask("openai:gpt", HI)
        await asyncio.gather(*(models.ask("openai:gpt", HI) for _ in range(5)))
    assert len(server.requests) == 7


@asking
@first_import
async def test_a_key_is_used_by_so_many_calls_at_once(server: ReplayServer) -> None:
    async with open_models(server.url, max_concurrency=3) as models:
        server.always(Answer.made(200, fault=Late()))
        names = [f"gpt-{number}" for number in range(9)]
        calls = {name: asyncio.create_task(models.ask(f"openai:{name}", HI)) for name in names}
        await wait_until(lambda: len(server.requests) == 3, "three calls have not come")
        await asyncio.sleep(0.1)
        assert len(server.requests) == 3
        # Each that leaves makes room for another.
        calls[server.requests[0].body["model"]].cancel()
        await wait_until(lambda: len(server.requests) == 4, "a fourth call has not come")
        for call in calls.values():
            call.cancel()
        await asyncio.wait(calls.values())
    assert len(server.requests) == 4


@asking
@first_import
async def test_calls_that_are_given_up_leave_the_key_free(server: ReplayServer) -> None:
    async with open_models(server.url, max_concurrency=2) as models:
        server.always(Answer.made(200, fault=Late()))
        calls = [asyncio.create_task(models.ask("openai:gpt", HI)) for _ in range(5)]
        await wait_until(lambda: len(server.requests) == 2, "two calls have not come")
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in calls)
        server.always(fine())
        await asyncio.gather(*(models.ask("openai:gpt", HI) for _ in range(4)))
    assert len(server.requests) == 6
