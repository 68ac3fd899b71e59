"""Vendors that limit, break, stall and cut off: the answer is right, or it fails clearly; nobody is asked too often.

``llmock`` stands for every vendor at once; agents of kind ``prompt`` ask it through a whole orchestra.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import pytest
from llmock.scenarios import Delay, Fail, Match, Reply, SlowFirstToken, StreamFault
from llmock.scenarios import StreamFaultKind as Kind

from agent_orchestra import Agent, Answer, Orchestra, Recovery
from agent_orchestra.core.request import Failure
from agent_orchestra.core.stream import StreamEventType
from agent_orchestra.errors import RunFailed
from agent_orchestra.runtime.orchestra import DEFAULT_TENANT, make_request
from agent_orchestra.testing import temporary_orchestra
from tests.services.replay import Broken, Ended, HungUp, ReplayServer, read_case, require_wire
from tests.services.replay import Fault as Break
from tests.services.vendors import Llmock, running_llmock

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("model_requests")]

QUESTION: Final = "count to three"
#: What is answered, in as many pieces as words.
WHOLE: Final = "one two three four"
TIMEOUT: Final = 0.3
#: Longer than the timeout, and shorter than llmock waits for answers under way before it tells of requests.
TOO_LONG: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """``provider`` in our settings, ``api`` in llmock's requests, ``wire`` where its recorded exchanges are."""

    provider: str
    api: str
    model: str
    wire: str

    def __str__(self) -> str:
        return self.wire

    @property
    def match(self) -> Match:
        return Match(provider=self.api)


CHAT: Final = Vendor(provider="openai", api="openai", model="openai:gpt-4o", wire="openai-chat")
RESPONSES: Final = Vendor(provider="openai", api="openai", model="openai-responses:gpt-4.1", wire="openai-responses")
ANTHROPIC: Final = Vendor(provider="anthropic", api="anthropic", model="anthropic:claude-sonnet-4-5", wire="anthropic")
GOOGLE: Final = Vendor(provider="google", api="gemini", model="google:gemini-2.5-flash", wire="google")
VENDORS: Final = (CHAT, RESPONSES, ANTHROPIC, GOOGLE)
#: Each with one of another provider, who answers in its place.
PAIRS: Final = ((CHAT, ANTHROPIC), (RESPONSES, GOOGLE), (ANTHROPIC, GOOGLE), (GOOGLE, CHAT))

each_vendor = pytest.mark.parametrize("vendor", VENDORS, ids=str)
each_pair = pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
streamed_or_not = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module")
def launched() -> Generator[Llmock]:
    with running_llmock("--response-style", "static") as server:
        yield server


@pytest.fixture
async def llmock(launched: Llmock) -> Llmock:
    await launched.reset()
    return launched


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How a request ended, as it is on record, and what its stream told."""

    end: Answer | Failure
    streamed: str

    @property
    def answer(self) -> Answer:
        assert isinstance(self.end, Answer), self.end
        return self.end

    @property
    def failure(self) -> Failure:
        assert isinstance(self.end, Failure), self.end
        return self.end

    @property
    def attempts(self) -> Sequence[tuple[str, str | None]]:
        return [(attempt.instance_id, attempt.error) for attempt in self.end.attempts]


async def ask(
    orchestra: Orchestra, *, streamed: bool = False, content: str = QUESTION, agent_id: str = "agent"
) -> Told:
    request = make_request(content, tenant=DEFAULT_TENANT, agent_id=agent_id, streamed=streamed)
    submitted = await orchestra.submit(request)
    told = ""
    if streamed:
        async for event in await orchestra.follow(request.id):
            told += str(event.data["text"]) if event.type is StreamEventType.DELTA else ""
    with suppress(RunFailed):
        await orchestra.answer(DEFAULT_TENANT, submitted)
    end = (await orchestra.get_request(request.id)).end
    assert end is not None
    if streamed:
        assert told == end.output, "the record has what the stream told"
    return Told(end=end, streamed=told)


@asynccontextmanager
async def asking(llmock: Llmock, *vendors: Vendor, **more: float) -> AsyncGenerator[Orchestra]:
    """An orchestra whose agent has a model of each vendor, in that order; ``more`` is set for every provider."""
    urls = {"openai": llmock.openai, "anthropic": llmock.anthropic, "google": llmock.google}
    async with opened(urls, *vendors, **more) as orchestra:
        yield orchestra


@asynccontextmanager
async def opened(urls: Mapping[str, str], *vendors: Vendor, **more: float) -> AsyncGenerator[Orchestra]:
    common: Mapping[str, Any] = {"api_key": "test", "max_wait": 0.0, **more}
    providers = {name: {**common, "base_url": url} for name, url in urls.items()}
    # Many ways to break are tried one after the other; what becomes of an instance then is dispatch's.
    unbroken = {"circuit_breaker": {"enabled": False}}
    async with temporary_orchestra(providers=providers, orchestrator=unbroken) as orchestra:
        await has(orchestra, "agent", *(vendor.model for vendor in vendors))
        yield orchestra


async def has(orchestra: Orchestra, agent_id: str, *models: str) -> None:
    # Each model is asked once: what a pause may mend is dispatch's, and tested there.
    once = Recovery(attempts=1)
    await orchestra.register_agent(Agent(id=agent_id, kind="prompt", settings={"models": list(models)}, recovery=once))


async def statuses(llmock: Llmock) -> Sequence[tuple[str, int]]:
    """Every call that any vendor got so far, and how it answered; its judgement of them must be without an error."""
    calls = [(request.provider, request.status) for request in await llmock.requests()]
    verdict = await llmock.verdict()
    assert verdict.passed, verdict.findings
    return calls


# --- one vendor


@each_vendor
@streamed_or_not
async def test_without_a_fault_the_answer_is_whole(llmock: Llmock, vendor: Vendor, streamed: bool) -> None:
    await llmock.queue(Reply(WHOLE))
    async with asking(llmock, vendor) as orchestra:
        told = await ask(orchestra, streamed=streamed)
    assert told.answer.output == WHOLE
    assert told.attempts == [(vendor.model, None)]
    assert told.answer.usage.input_tokens > 0
    assert told.answer.usage.output_tokens > 0
    assert told.answer.usage.cost_usd
    generation = told.answer.reply.generation
    assert generation is not None
    assert (generation.provider, generation.stop_reason) == (vendor.provider, "stop")
    assert (generation.first_token_ms is not None) == streamed
    assert await statuses(llmock) == [(vendor.api, 200)]


# Not a stream of Responses: llmock does not say in it that it was cut.
@pytest.mark.parametrize(
    ("vendor", "streamed"),
    [(vendor, streamed) for vendor in VENDORS for streamed in (False, True) if not (vendor is RESPONSES and streamed)],
)
async def test_an_answer_that_its_length_cut_says_so(llmock: Llmock, vendor: Vendor, streamed: bool) -> None:
    await llmock.queue(Reply(WHOLE, finish_reason="length"))
    async with asking(llmock, vendor) as orchestra:
        told = await ask(orchestra, streamed=streamed)
    assert told.answer.reply.generation is not None
    assert told.answer.reply.generation.stop_reason == "length"


@each_vendor
@streamed_or_not
async def test_a_status_is_told_by_its_code_after_one_call(llmock: Llmock, vendor: Vendor, streamed: bool) -> None:
    expected = {
        400: ("model_request_invalid", None),
        401: ("model_authentication_failed", None),
        403: ("model_permission_denied", None),
        404: ("model_not_found", None),
        500: ("model_server_error", None),
        503: ("model_overloaded", 1.0),
        529: ("model_overloaded", 1.0),
        429: ("model_rate_limited", 2.5),
    }
    async with asking(llmock, vendor) as orchestra:
        for status, (code, delay) in expected.items():
            # A model for each, lest a pause of one is one of the next.
            model, agent_id = f"{vendor.model}-{status}", f"agent-{status}"
            await has(orchestra, agent_id, model)
            await llmock.queue(Fail(status, retry_after=delay))
            told = await ask(orchestra, streamed=streamed, agent_id=agent_id)
            assert told.failure.code == code, status
            assert told.failure.data["status"] == status
            assert told.failure.data.get("retry_after") == delay
            assert (told.streamed, told.attempts) == ("", [(model, code)])
    assert await statuses(llmock) == [(vendor.api, status) for status in expected]


async def impatient(orchestra: Orchestra, llmock: Llmock) -> None:
    """Asks once, so that what comes with the first call, such as an import, takes no part of a short timeout."""
    for streamed in (False, True):
        await llmock.queue(Reply("warm"))
        assert (await ask(orchestra, streamed=streamed, content="warm up")).answer.output == "warm"
    await llmock.reset()


@each_vendor
@streamed_or_not
async def test_an_answer_that_is_late_is_given_up(llmock: Llmock, vendor: Vendor, streamed: bool) -> None:
    async with asking(llmock, vendor, timeout=TIMEOUT) as orchestra:
        await impatient(orchestra, llmock)
        await llmock.queue(Delay(TOO_LONG))
        began = time.perf_counter()
        told = await ask(orchestra, streamed=streamed)
        assert time.perf_counter() - began >= TIMEOUT
        assert told.failure.code == "model_timeout"
        assert len(await statuses(llmock)) == 1
        # What was left behind is in nobody's way.
        await llmock.queue(Reply(WHOLE))
        assert (await ask(orchestra, streamed=streamed)).answer.output == WHOLE
    assert len(await statuses(llmock)) == 2


@each_vendor
async def test_a_stream_may_take_its_time(llmock: Llmock, vendor: Vendor) -> None:
    """No pause is longer than the timeout, though the whole is."""
    pauses = (SlowFirstToken(0.2), StreamFault("stall", after_chunks=2, stall_seconds=0.2))
    async with asking(llmock, vendor, timeout=TIMEOUT) as orchestra:
        await impatient(orchestra, llmock)
        await llmock.queue(Reply(WHOLE), *pauses)
        told = await ask(orchestra, streamed=True)
    assert told.answer.output == WHOLE
    assert told.answer.reply.generation is not None
    assert (told.answer.reply.generation.first_token_ms or 0) >= 200
    assert await statuses(llmock) == [(vendor.api, 200)]


@each_vendor
@pytest.mark.parametrize("after", [0, 3])
async def test_a_stream_that_stalls_is_given_up(llmock: Llmock, vendor: Vendor, after: int) -> None:
    async with asking(llmock, vendor, timeout=TIMEOUT) as orchestra:
        await impatient(orchestra, llmock)
        await llmock.queue(Reply(WHOLE), StreamFault("stall", after_chunks=after, stall_seconds=TOO_LONG))
        began = time.perf_counter()
        told = await ask(orchestra, streamed=True)
        assert time.perf_counter() - began >= TIMEOUT
        # Before the first event it is an answer that never began.
        assert told.failure.code == ("stream_broken" if after else "model_timeout")
        assert WHOLE.startswith(told.failure.output)
        assert len(told.failure.output) < len(WHOLE)
        await llmock.queue(Reply(WHOLE))
        assert (await ask(orchestra, streamed=True)).answer.output == WHOLE
    assert "no_read_timeout" not in (await llmock.verdict()).codes
    assert len(await statuses(llmock)) == 2


@each_vendor
@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
async def test_a_stream_that_breaks_anywhere_is_never_taken_for_a_whole_one(
    llmock: Llmock, vendor: Vendor, kind: Kind
) -> None:
    """At each of its events in turn. Whoever asks again is answered, and llmock has nothing to find fault with."""
    failed: list[tuple[str, str]] = []
    async with asking(llmock, vendor) as orchestra:
        after, broken = 0, True
        while broken:
            content = f"{kind} after {after}"
            await llmock.queue(Reply(WHOLE), StreamFault(kind, after_chunks=after))
            told = await ask(orchestra, streamed=True, content=content)
            (request,) = await llmock.requests()
            broken = request.fault is not None
            if isinstance(told.end, Failure):
                assert broken
                failed.append((told.end.code, told.end.output))
                assert told.attempts == [(vendor.model, told.end.code)]
                await llmock.queue(Reply(WHOLE))
                told = await ask(orchestra, streamed=True, content=content)
            assert told.answer.output == WHOLE
            if kind != "truncate" or not broken or len(await llmock.requests()) == 2:
                assert (await llmock.verdict()).passed
            await llmock.reset()
            after += 1
    assert failed[0] == ("model_unreachable" if kind == "disconnect" else "model_server_error", "")
    assert {code for code, _ in failed[1:]} == {"stream_broken"}
    outputs = [output for _, output in failed]
    assert all(WHOLE.startswith(output) for output in outputs)
    if kind != "disconnect":
        # What came together with the end of the connection may be lost with it.
        assert [len(output) for output in outputs] == sorted(map(len, outputs))
        assert outputs[-1], "what had come was told"


@each_vendor
async def test_a_whole_answer_that_breaks_is_none(vendor: Vendor) -> None:
    require_wire()
    expected: Mapping[Break, str] = {
        HungUp(): "model_unreachable",
        Broken(): "model_unreachable",
        Broken(inside=True): "model_unreachable",
        Broken(inside=True, reset=True): "model_unreachable",
        Ended(): "model_server_error",
    }
    case = read_case(f"{vendor.wire}/text")
    async with ReplayServer() as server, opened({vendor.provider: server.url}, vendor) as orchestra:
        for fault, code in expected.items():
            server.play(case, fault)
            told = await ask(orchestra)
            assert (told.failure.code, told.failure.output) == (code, ""), fault
        assert len(server.requests) == len(expected)
        server.play(case)
        assert (await ask(orchestra)).answer.output == case.expect["text"]


async def test_what_nobody_answers_at_is_unreachable() -> None:
    async with ReplayServer() as server:
        gone = server.url
    for vendor in VENDORS:
        async with opened({vendor.provider: gone}, vendor) as orchestra:
            for streamed in (False, True):
                told = await ask(orchestra, streamed=streamed)
                assert told.failure.code == "model_unreachable", vendor


# --- the limits of a vendor


@each_vendor
@streamed_or_not
async def test_a_short_pause_is_waited_for(llmock: Llmock, vendor: Vendor, streamed: bool) -> None:
    """llmock judges whether it was."""
    async with asking(llmock, vendor, max_wait=5.0) as orchestra:
        await llmock.queue(Fail(429, retry_after=0.2), Reply(WHOLE))
        assert (await ask(orchestra, streamed=streamed)).failure.code == "model_rate_limited"
        assert (await ask(orchestra, streamed=streamed)).answer.output == WHOLE
    assert await statuses(llmock) == [(vendor.api, 429), (vendor.api, 200)]


@each_vendor
async def test_a_limited_model_is_not_asked_again_while_its_pause_lasts(llmock: Llmock, vendor: Vendor) -> None:
    async with asking(llmock, vendor) as orchestra:
        await llmock.queue(Fail(429, retry_after=30))
        first = await ask(orchestra)
        assert (first.failure.code, first.failure.data["retry_after"]) == ("model_rate_limited", 30)
        for streamed in (False, True):
            told = await ask(orchestra, streamed=streamed)
            assert told.failure.code == "model_rate_limited"
            delay = told.failure.data["retry_after"]
            assert isinstance(delay, float)
            assert 20 < delay < 30
    assert await statuses(llmock) == [(vendor.api, 429)]


@each_vendor
async def test_a_vendor_without_capacity_that_says_how_long_is_left_alone_too(llmock: Llmock, vendor: Vendor) -> None:
    async with asking(llmock, vendor) as orchestra:
        await llmock.queue(Fail(529, retry_after=30))
        assert (await ask(orchestra)).failure.code == "model_overloaded"
        told = await ask(orchestra)
        assert told.failure.code in ("model_overloaded", "model_rate_limited")
        assert (await statuses(llmock)) == [(vendor.api, 529)]


@each_vendor
async def test_many_at_once_do_not_storm_a_vendor_that_has_said_no(llmock: Llmock, vendor: Vendor) -> None:
    await llmock.queue(Fail(429, retry_after=30, times=None))
    async with asking(llmock, vendor, max_concurrency=1) as orchestra:
        ends = await asyncio.gather(*(ask(orchestra, content=f"question {number}") for number in range(20)))
    assert {told.failure.code for told in ends} == {"model_rate_limited"}
    assert await statuses(llmock) == [(vendor.api, 429)]


async def test_no_more_calls_at_once_than_the_key_may_make(llmock: Llmock) -> None:
    await llmock.queue(Delay(0.1, times=None))
    async with asking(llmock, CHAT, max_concurrency=2) as orchestra:
        ends = await asyncio.gather(*(ask(orchestra, content=f"question {number}") for number in range(6)))
    assert all(isinstance(told.end, Answer) for told in ends)
    requests = await llmock.requests()
    assert len(requests) == 6
    for one in requests:
        at_once = [r for r in requests if r.started_at <= one.started_at < r.ended_at]
        assert len(at_once) <= 2


# --- another vendor in its place


@each_pair
@streamed_or_not
async def test_one_that_cannot_answer_is_left_for_the_next(
    llmock: Llmock, first: Vendor, second: Vendor, streamed: bool
) -> None:
    expected = {
        401: "model_authentication_failed",
        403: "model_permission_denied",
        404: "model_not_found",
        500: "model_server_error",
        503: "model_overloaded",
        529: "model_overloaded",
        429: "model_rate_limited",
    }
    async with asking(llmock, first, second) as orchestra:
        for status, code in expected.items():
            model, agent_id = f"{first.model}-{status}", f"agent-{status}"
            await has(orchestra, agent_id, model, second.model)
            await llmock.queue(Fail(status, match=first.match), Reply(WHOLE, match=second.match))
            told = await ask(orchestra, streamed=streamed, content=f"status {status}", agent_id=agent_id)
            assert told.answer.output == WHOLE
            assert told.attempts == [(model, code), (second.model, None)]
            assert told.answer.instance == second.model
            assert told.answer.reply.generation is not None
            assert told.answer.reply.generation.provider == second.provider
    calls = [call for status in expected for call in ((first.api, status), (second.api, 200))]
    assert await statuses(llmock) == calls


@each_pair
async def test_one_that_is_late_is_left_for_the_next(llmock: Llmock, first: Vendor, second: Vendor) -> None:
    async with asking(llmock, first, second, timeout=TIMEOUT) as orchestra:
        await impatient(orchestra, llmock)
        await llmock.queue(Delay(TOO_LONG, match=first.match), Fail(500, match=second.match), Reply(WHOLE))
        # The second fails, but has made its first call when its own timeout counts.
        assert (await ask(orchestra)).attempts == [(first.model, "model_timeout"), (second.model, "model_server_error")]
        await llmock.queue(Delay(TOO_LONG, match=first.match), Reply(WHOLE, match=second.match))
        told = await ask(orchestra, content="and now")
    assert told.attempts == [(first.model, "model_timeout"), (second.model, None)]
    assert told.answer.output == WHOLE
    assert [api for api, _ in await statuses(llmock)] == [first.api, second.api] * 2


@streamed_or_not
async def test_the_third_answers_where_two_cannot(llmock: Llmock, streamed: bool) -> None:
    await llmock.queue(Fail(529, match=ANTHROPIC.match), Fail(429, retry_after=9, match=CHAT.match))
    await llmock.queue(Reply(WHOLE, match=GOOGLE.match))
    async with asking(llmock, ANTHROPIC, CHAT, GOOGLE) as orchestra:
        told = await ask(orchestra, streamed=streamed)
    assert told.attempts == [
        (ANTHROPIC.model, "model_overloaded"),
        (CHAT.model, "model_rate_limited"),
        (GOOGLE.model, None),
    ]
    assert told.answer.output == WHOLE
    assert await statuses(llmock) == [("anthropic", 529), ("openai", 429), ("gemini", 200)]


async def test_a_quota_that_is_used_up_is_left_for_the_next(llmock: Llmock) -> None:
    await llmock.queue(Fail(429, code="insufficient_quota", match=CHAT.match))
    async with asking(llmock, CHAT, ANTHROPIC) as orchestra:
        told = await ask(orchestra)
    assert told.attempts == [(CHAT.model, "model_quota_exhausted"), (ANTHROPIC.model, None)]


@each_pair
@streamed_or_not
async def test_an_invalid_request_is_nobody_elses_either(
    llmock: Llmock, first: Vendor, second: Vendor, streamed: bool
) -> None:
    await llmock.queue(Fail(400, match=first.match))
    async with asking(llmock, first, second) as orchestra:
        told = await ask(orchestra, streamed=streamed)
    assert told.attempts == [(first.model, "model_request_invalid")]
    assert await statuses(llmock) == [(first.api, 400)]


@streamed_or_not
@pytest.mark.parametrize(("first", "second"), [(CHAT, ANTHROPIC), (ANTHROPIC, GOOGLE), (GOOGLE, CHAT)], ids=str)
async def test_what_one_refuses_no_other_is_asked(
    llmock: Llmock, first: Vendor, second: Vendor, streamed: bool
) -> None:
    await llmock.queue(Reply("I will not", finish_reason="content_filter"))
    async with asking(llmock, first, second) as orchestra:
        told = await ask(orchestra, streamed=streamed)
    assert told.attempts == [(first.model, "content_refused")]
    assert told.failure.data["vendor_code"]
    assert await statuses(llmock) == [(first.api, 200)]


@each_pair
async def test_after_the_first_words_there_is_no_other_voice(llmock: Llmock, first: Vendor, second: Vendor) -> None:
    # After as many events of each vendor two words have been told.
    after = {CHAT: 3, RESPONSES: 6, ANTHROPIC: 5, GOOGLE: 2}[first]
    kinds: Sequence[Kind] = ("truncate", "malformed", "stall")
    async with asking(llmock, first, second, timeout=TIMEOUT) as orchestra:
        await impatient(orchestra, llmock)
        for kind in kinds:
            await llmock.queue(Reply(WHOLE), StreamFault(kind, after_chunks=after, stall_seconds=TOO_LONG))
            told = await ask(orchestra, streamed=True, content=kind)
            assert told.attempts == [(first.model, "stream_broken")], kind
            assert told.failure.output == told.streamed == "one two "
    assert [request.provider for request in await llmock.requests()] == [first.api] * len(kinds)


@each_pair
async def test_a_connection_that_is_lost_leaves_one_voice(llmock: Llmock, first: Vendor, second: Vendor) -> None:
    """Whether a word was told before it was lost is a matter of chance; that decides who else may answer."""
    async with asking(llmock, first, second) as orchestra:
        for after in range(8):
            content = f"lost after {after}"
            await llmock.queue(Reply(WHOLE, times=2), StreamFault("disconnect", after_chunks=after))
            told = await ask(orchestra, streamed=True, content=content)
            if isinstance(told.end, Failure):
                assert told.attempts == [(first.model, "stream_broken")]
                assert told.failure.output
                assert WHOLE.startswith(told.failure.output)
            else:
                assert told.answer.output == WHOLE
            assert len(await llmock.requests()) == len(told.attempts)
            await llmock.reset()


@each_pair
async def test_before_the_first_word_there_may_be(llmock: Llmock, first: Vendor, second: Vendor) -> None:
    kinds: Sequence[Kind] = ("disconnect", "truncate", "malformed")
    async with asking(llmock, first, second) as orchestra:
        for kind in kinds:
            await llmock.queue(Reply(WHOLE, times=2), StreamFault(kind, after_chunks=0))
            told = await ask(orchestra, streamed=True, content=kind)
            assert [instance for instance, _ in told.attempts] == [first.model, second.model]
            assert told.answer.output == told.streamed == WHOLE
    assert [request.provider for request in await llmock.requests()] == [first.api, second.api] * len(kinds)


@each_pair
async def test_while_one_is_limited_the_next_is_asked_at_once(llmock: Llmock, first: Vendor, second: Vendor) -> None:
    await llmock.queue(Fail(429, retry_after=30, match=first.match))
    async with asking(llmock, first, second) as orchestra:
        attempts = [(await ask(orchestra, content=f"question {number}")).attempts for number in range(3)]
    assert attempts == [
        [(first.model, "model_rate_limited"), (second.model, None)],
        [(second.model, None)],
        [(second.model, None)],
    ]
    assert [api for api, _ in await statuses(llmock)] == [first.api, second.api, second.api, second.api]


async def test_when_the_pause_is_over_the_preferred_one_is_asked_again(llmock: Llmock) -> None:
    await llmock.queue(Fail(429, retry_after=0.3, match=ANTHROPIC.match))
    async with asking(llmock, ANTHROPIC, CHAT) as orchestra:
        assert len((await ask(orchestra)).attempts) == 2
        await asyncio.sleep(0.4)
        for number in range(2):
            assert (await ask(orchestra, content=f"question {number}")).attempts == [(ANTHROPIC.model, None)]


@streamed_or_not
async def test_when_all_are_limited_there_is_one_error_that_says_how_long(llmock: Llmock, streamed: bool) -> None:
    vendors = (ANTHROPIC, CHAT, GOOGLE)
    await llmock.queue(*(Fail(429, retry_after=30, match=vendor.match) for vendor in vendors))
    async with asking(llmock, *vendors) as orchestra:
        for _ in range(3):
            told = await ask(orchestra, streamed=streamed)
            assert told.failure.code == "model_rate_limited"
            delay = told.failure.data["retry_after"]
            assert isinstance(delay, int | float)
            assert 20 < delay <= 30
            assert [error for _, error in told.attempts] == ["model_rate_limited"] * 3
    assert await statuses(llmock) == [("anthropic", 429), ("openai", 429), ("gemini", 429)]


async def test_when_all_fail_each_was_asked_once(llmock: Llmock) -> None:
    await llmock.queue(Fail(500, times=None))
    async with asking(llmock, ANTHROPIC, CHAT, GOOGLE) as orchestra:
        told = await ask(orchestra)
    assert told.failure.code == "model_server_error"
    assert [error for _, error in told.attempts] == ["model_server_error"] * 3
    assert [api for api, _ in await statuses(llmock)] == ["anthropic", "openai", "gemini"]


async def test_under_faults_at_random_no_answer_is_wrong() -> None:
    """As a bad day at every vendor: whatever is answered is whole, and each request asks each vendor once at most."""
    options = ("--error-rate", "500=0.2", "--error-rate", "429=0.1", "--stream-fault", "truncate=0.2")
    options += ("--stream-fault", "disconnect=0.1", "--stream-fault", "malformed=0.1", "--response-style", "static")
    with running_llmock(*options) as llmock:
        async with asking(llmock, CHAT, ANTHROPIC, GOOGLE, max_wait=0.0) as orchestra:
            ends = await asyncio.gather(
                *(ask(orchestra, streamed=number % 2 == 1, content=f"question {number}") for number in range(80))
            )
        answered = [told for told in ends if isinstance(told.end, Answer)]
        assert len(answered) > 10
        for told in answered:
            assert told.answer.reply.generation is not None
            assert told.answer.output == f"Mock response from {told.answer.reply.generation.model}."
        codes = {error for told in ends for _, error in told.attempts} - {None}
        assert codes <= {"model_server_error", "model_rate_limited", "model_unreachable", "stream_broken"}
        for told in ends:
            assert len({instance for instance, _ in told.attempts}) == len(told.attempts)
        made = sum(len(told.end.attempts) for told in ends)
        assert len(await llmock.requests()) <= made
