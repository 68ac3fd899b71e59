"""llmock answers the SDKs of the vendors, goes wrong as it is told, and is gone with the tests."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Generator
from typing import Any, Final, cast

import anthropic
import httpx
import httpx2
import openai
import pytest
from google import genai
from google.genai import types as google_types
from llmock.scenarios import Fail, Match, Reply, StreamFault

from tests.services.service import PROJECT
from tests.services.vendors import Llmock, running_llmock
from tests.services.waiting import wait_until

pytestmark = pytest.mark.slow

_LAUNCH: Final = """
import sys
from tests.services.vendors import running_llmock

with running_llmock() as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def launched() -> Generator[Llmock]:
    with running_llmock("--response-style", "echo") as server:
        yield server


@pytest.fixture
async def vendors(launched: Llmock) -> Llmock:
    await launched.reset()
    return launched


@pytest.fixture
async def sdk(vendors: Llmock) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=vendors.openai, api_key="test", max_retries=2) as opened:
        yield opened


async def ask(sdk: openai.AsyncOpenAI, content: str) -> str | None:
    question: Any = {"role": "user", "content": content}
    completion = await sdk.chat.completions.create(model="gpt", messages=[question])
    return completion.choices[0].message.content


async def test_every_vendor_is_where_its_sdk_looks(vendors: Llmock, sdk: openai.AsyncOpenAI) -> None:
    await vendors.queue(Reply("four", match=Match(provider="anthropic")), Reply("two", times=2), Reply("one"))
    assert await ask(sdk, "?") == "two"
    assert (await sdk.responses.create(model="gpt", input="?")).output_text == "two"

    async with anthropic.AsyncAnthropic(base_url=vendors.anthropic, api_key="test", max_retries=0) as claude:
        message = await claude.messages.create(
            model="claude", max_tokens=10, messages=[{"role": "user", "content": "?"}]
        )
    assert [block.text for block in message.content if block.type == "text"] == ["four"]

    async with httpx2.AsyncClient() as http:
        options = google_types.HttpOptions(base_url=vendors.google, api_version="v1beta", httpx_async_client=http)
        with genai.Client(api_key="test", http_options=options) as gemini:
            answer = await cast("Any", gemini.aio.models).generate_content(model="gemini", contents="?")
    assert answer.text == "one"

    asked = await vendors.requests()
    assert [(request.provider, request.path) for request in asked] == [
        ("openai", "/v1/chat/completions"),
        ("openai", "/v1/responses"),
        ("anthropic", "/anthropic/v1/messages"),
        ("gemini", "/gemini/v1beta/models/gemini:generateContent"),
    ]
    assert asked[1].body == {"model": "gpt", "input": "?"}
    assert (await vendors.verdict()).codes == ()


async def test_a_client_that_waits_as_it_is_told_passes(vendors: Llmock, sdk: openai.AsyncOpenAI) -> None:
    await vendors.queue(Fail(429, retry_after=0.1, times=2), Reply("at last"))
    assert await ask(sdk, "?") == "at last"
    verdict = await vendors.verdict()
    assert (verdict.passed, verdict.calls, verdict.attempts, verdict.faults) == (True, 1, 3, 2)
    assert [(request.status, request.retry_after) for request in await vendors.requests()] == [
        (429, 0.1),
        (429, 0.1),
        (200, None),
    ]


async def test_a_client_that_takes_half_an_answer_is_found_out(vendors: Llmock, sdk: openai.AsyncOpenAI) -> None:
    await vendors.queue(Reply("one two three"), StreamFault("truncate", after_chunks=3))
    question: Any = {"role": "user", "content": "?"}
    text = ""
    async for chunk in await sdk.chat.completions.create(model="gpt", messages=[question], stream=True):
        text += chunk.choices[0].delta.content or ""
    assert text == "one two "
    verdict = await vendors.verdict()
    assert not verdict.passed
    assert verdict.codes == ("truncated_stream_accepted",)
    assert verdict.findings[0].seqs == (1,)


async def test_after_a_reset_nothing_is_left(vendors: Llmock, sdk: openai.AsyncOpenAI) -> None:
    await vendors.queue(Reply("first"), Fail(500, times=None))
    with pytest.raises(openai.InternalServerError):
        await ask(sdk.with_options(max_retries=0), "?")
    await vendors.reset()
    assert await vendors.requests() == ()
    assert "echo this" in (await ask(sdk, "echo this") or "")


async def test_a_behaviour_that_it_does_not_take_is_refused(vendors: Llmock) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request"):
        await vendors.queue()


async def test_options_reach_it() -> None:
    with running_llmock("--error-rate", "503=1") as vendors:
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{vendors.openai}/models")).status_code == 503


def test_what_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="No such option"), running_llmock("--no-such-option"):
        pass


async def test_killed_tests_leave_no_server_behind() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LAUNCH, cwd=PROJECT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    assert _is_there(pid)

    process.kill()
    await process.communicate()

    await wait_until(lambda: not _is_there(pid), f"the server {pid} is still there")


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
