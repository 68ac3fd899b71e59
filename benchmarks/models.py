"""What stands between a caller and a model: one answer of the same vendor on loopback, got in different ways.

All ask the same question with the same instructions, over kept connections, and try nothing twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.harness import Beside, Case, Figures, Question
from benchmarks.service import QUESTION, REPLY
from benchmarks.upstream import serving_model

__all__ = ["QUESTIONS"]

_MODEL: Final = "gpt-4o"
_INSTRUCTIONS: Final = "You take notes for a team. Answer with one sentence that says what was noted."
_MESSAGES: Final = [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": QUESTION}]
_CONFIG: Final = """
providers:
  openai: {{api_key: x, base_url: "{url}"}}
agents:
  - id: notes
    kind: prompt
    keywords: [note, meeting]
    settings: {{model: "openai:{model}", instructions: "{instructions}"}}
"""
_WARM_UP: Final = 32
_AT_ONCE: Final = 16

_CPU: Final = "CPU of an answer, ms"
_RATE: Final = f"{_AT_ONCE} at once, answers/s"
_FIRST: Final = "first token of a stream, p50 ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to the model: ``ask`` gives the text of an answer, ``stream`` tells it piece by piece."""

    ask: Callable[[], Awaitable[str]]
    stream: Callable[[Callable[[str], None]], Awaitable[None]] | None = None


def sdk(quick: bool) -> Figures:
    return _measured(_sdk, quick)


def sdk_aiohttp(quick: bool) -> Figures:
    return _measured(_sdk_aiohttp, quick)


def ours(quick: bool) -> Figures:
    return _measured(_ours, quick)


def ours_whole(quick: bool) -> Figures:
    return _measured(_ours_whole, quick)


def langchain(quick: bool) -> Figures:
    return _measured(_langchain, quick)


def litellm(quick: bool) -> Figures:
    return _measured(_litellm, quick)


def pydantic_ai(quick: bool) -> Figures:
    return _measured(_pydantic_ai, quick)


@asynccontextmanager
async def _sdk(url: str) -> AsyncGenerator[Way]:
    openai: Any = import_module("openai")
    async with openai.AsyncOpenAI(api_key="x", base_url=url, max_retries=0) as client:
        yield _by_sdk(client)


@asynccontextmanager
async def _sdk_aiohttp(url: str) -> AsyncGenerator[Way]:
    openai: Any = import_module("openai")
    http = openai.DefaultAioHttpClient()
    async with openai.AsyncOpenAI(api_key="x", base_url=url, max_retries=0, http_client=http) as client:
        yield _by_sdk(client)


def _by_sdk(client: Any) -> Way:
    async def ask() -> str:
        done = await client.chat.completions.create(model=_MODEL, messages=_MESSAGES)
        return done.choices[0].message.content

    async def stream(tell: Callable[[str], None]) -> None:
        async for chunk in await client.chat.completions.create(model=_MODEL, messages=_MESSAGES, stream=True):
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                tell(piece)

    return Way(ask=ask, stream=stream)


@asynccontextmanager
async def _langchain(url: str) -> AsyncGenerator[Way]:
    openai: Any = import_module("langchain_openai")
    messages: Any = import_module("langchain_core.messages")
    asked = [messages.SystemMessage(_INSTRUCTIONS), messages.HumanMessage(QUESTION)]
    model = openai.ChatOpenAI(model=_MODEL, api_key="x", base_url=url, max_retries=0)

    async def ask() -> str:
        return (await model.ainvoke(asked)).content

    yield Way(ask=ask)


@asynccontextmanager
async def _litellm(url: str) -> AsyncGenerator[Way]:
    # It would ask GitHub for the prices of models.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    module: Any = import_module("litellm")
    module.telemetry = False
    module.callbacks = []
    module.suppress_debug_info = True

    async def ask() -> str:
        done = await module.acompletion(
            f"openai/{_MODEL}", _MESSAGES, api_key="x", api_base=url, num_retries=0, max_retries=0
        )
        return done.choices[0].message.content

    yield Way(ask=ask)


@asynccontextmanager
async def _pydantic_ai(url: str) -> AsyncGenerator[Way]:
    openai: Any = import_module("openai")
    agents: Any = import_module("pydantic_ai")
    models: Any = import_module("pydantic_ai.models.openai")
    providers: Any = import_module("pydantic_ai.providers.openai")
    async with openai.AsyncOpenAI(api_key="x", base_url=url, max_retries=0) as client:
        model = models.OpenAIChatModel(_MODEL, provider=providers.OpenAIProvider(openai_client=client))
        agent = agents.Agent(model, instructions=_INSTRUCTIONS)

        async def ask() -> str:
            return (await agent.run(QUESTION)).output

        yield Way(ask=ask)


@asynccontextmanager
async def _ours(url: str) -> AsyncGenerator[Way]:
    """One turn of an agent that is a prompt, and nothing around it."""
    from agent_orchestra import Agent
    from agent_orchestra.adapters.models.kind import PromptKind
    from agent_orchestra.adapters.models.providers import Providers
    from agent_orchestra.adapters.models.vendors import ProviderConfig
    from agent_orchestra.adapters.offline import OfflineKind
    from agent_orchestra.runtime.executor import Call

    agent = Agent(id="notes", kind="prompt", settings={"instructions": _INSTRUCTIONS, "model": f"openai:{_MODEL}"})
    providers = Providers({"openai": ProviderConfig(api_key="x", base_url=url)})
    instances = await PromptKind(providers, offline=OfflineKind(), allowed=()).connect(agent, trusted=True)
    backend = instances[0].backend
    call = Call(request_id="r", conversation_id="c", tenant="default", agent=agent, content=QUESTION)
    listened = dataclasses.replace(call, streamed=True)

    async def ask() -> str:
        return (await backend.run(call, lambda _: None)).output

    async def stream(tell: Callable[[str], None]) -> None:
        await backend.run(listened, tell)

    yield Way(ask=ask, stream=stream)
    await providers.close()


@asynccontextmanager
async def _ours_whole(url: str) -> AsyncGenerator[Way]:
    """All that a request goes through: routed by its words, answered by the prompt, and put on record."""
    from agent_orchestra import open_orchestra
    from agent_orchestra.core.stream import StreamEvent, StreamEventType

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "orchestra.yaml")
        said = _CONFIG.format(url=url, model=_MODEL, instructions=_INSTRUCTIONS)
        await asyncio.to_thread(config.write_text, said, encoding="utf-8")
        async with open_orchestra(Path(folder, "orchestra.db"), config=config) as orchestra:

            async def ask() -> str:
                return (await orchestra.process_request(QUESTION)).output

            async def stream(tell: Callable[[str], None]) -> None:
                def emit(event: StreamEvent) -> None:
                    if event.type is StreamEventType.DELTA:
                        tell(str(event.data["text"]))

                await orchestra.process_request(QUESTION, emit=emit)

            yield Way(ask=ask, stream=stream)


def _measured(way: Callable[[str], AbstractAsyncContextManager[Way]], quick: bool) -> Figures:
    async def measured(url: str) -> Figures:
        async with way(url) as opened:
            return await _figures(opened, quick)

    with serving_model() as url:
        return asyncio.run(measured(url))


async def _figures(way: Way, quick: bool) -> Figures:
    for _ in range(_WARM_UP):
        await _answered(way)
    some, each = (2, 20) if quick else (5, 60)
    figures = {_CPU: median([await _cpu(way, each) for _ in range(some)])}
    await _rate(way, 2)
    figures[_RATE] = median([await _rate(way, 3 if quick else 15) for _ in range(1 if quick else 3)])
    if way.stream is not None:
        await _first(way.stream)
        figures[_FIRST] = median([await _first(way.stream) for _ in range(10 if quick else 100)])
    return figures


async def _cpu(way: Way, answers: int) -> float:
    """The milliseconds of this process, all its threads, for each answer; one after the other."""
    began = time.process_time()
    for _ in range(answers):
        await _answered(way)
    return (time.process_time() - began) * 1_000 / answers


async def _rate(way: Way, each: int) -> float:
    async def one() -> None:
        for _ in range(each):
            await _answered(way)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(_AT_ONCE)))
    return _AT_ONCE * each / (time.perf_counter() - began)


async def _first(stream: Callable[[Callable[[str], None]], Awaitable[None]]) -> float:
    """The milliseconds until the first token; the stream is read to its end."""
    pieces: list[str] = []
    at: list[float] = []

    def tell(piece: str) -> None:
        at.append(time.perf_counter())
        pieces.append(piece)

    began = time.perf_counter()
    await stream(tell)
    assert "".join(pieces) == REPLY
    assert len(pieces) > 1, "it came whole"
    return (at[0] - began) * 1_000


async def _answered(way: Way) -> None:
    said = await way.ask()
    assert said == REPLY, said


def _with(*packages: str) -> str:
    """The packages with their versions; those of rivals are not in every environment."""
    found = dict.fromkeys(packages, "not installed")
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return ", ".join(f"{package} {version}" for package, version in found.items())


_SDK: Final = "OpenAI SDK"
_OURS: Final = "Agent Orchestra, the agent alone"
_WHOLE: Final = "Agent Orchestra, a whole request"
_RIVALS: Final = ("LangChain", "LiteLLM", "pydantic-ai")
#: As new as LiteLLM comes, it does not run beside an SDK of OpenAI as new as ours.
_LITELLM: Final = ("litellm==1.106.2", "openai==2.54.0")

QUESTIONS: Final = (
    Question(
        name="models",
        title="One answer of a model",
        note=(
            "A vendor on loopback that answers at once, asked for a chat completion: by the SDK alone, by what "
            "frameworks put around it, by an agent of kind `prompt` alone, and by a whole request, which is routed, "
            "answered by that agent and put on record in SQLite. CPU is that of the asking process, one answer at a "
            "time. A stream's first token comes at once, the others follow in steps of 4 ms. The SDK as it comes asks "
            "through `httpx2`; ours has it ask through `aiohttp`, so it is measured both ways. "
            f"With {_with('openai', 'langchain-openai', 'pydantic-ai-slim')}; "
            f"LiteLLM in an environment of its own: {', '.join(p.replace('==', ' ') for p in _LITELLM)}."
        ),
        cases=(
            Case(name=_OURS, measure=ours),
            Case(name=_WHOLE, measure=ours_whole),
            Case(name=_SDK, measure=sdk),
            Case(name="OpenAI SDK, `aiohttp`", measure=sdk_aiohttp),
            Case(name="LangChain", measure=langchain),
            Case(name="LiteLLM", measure=litellm, apart=_LITELLM),
            Case(name="pydantic-ai", measure=pydantic_ai),
        ),
        against=_SDK,
        beside=(
            Beside(case=_OURS, figure=_CPU, than=(_SDK,), times=1.4),
            Beside(case=_OURS, figure=_CPU, than=_RIVALS),
            Beside(case=_OURS, figure=_RATE, than=_RIVALS),
            Beside(case=_WHOLE, figure=_CPU, than=(_SDK,), times=2.0),
            Beside(case=_WHOLE, figure=_FIRST, than=(_SDK,), more=2.0),
        ),
    ),
)
