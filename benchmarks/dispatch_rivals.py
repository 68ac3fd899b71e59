"""What else spreads calls over instances, tries again and goes elsewhere. Each makes one call of many possible ones."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from itertools import count
from typing import Any

from benchmarks.service import QUESTION

__all__ = ["langchain", "langchain_models", "litellm", "litellm_functions", "tenacity", "tenacity_clients"]

_ATTEMPTS = 4
_MESSAGES = [{"role": "system", "content": "Take notes."}, {"role": "user", "content": QUESTION}]
#: LiteLLM's name for what is asked, whichever deployment answers.
_GROUP = "notes"


def tenacity(answers: Sequence[Callable[[], Awaitable[str]]]) -> Callable[[], Awaitable[str]]:
    """One after the other in a circle; after a failure the next, with our number of tries and our pauses."""
    module: Any = import_module("tenacity")
    turns = count()

    async def ask() -> str:
        tries = module.AsyncRetrying(
            stop=module.stop_after_attempt(_ATTEMPTS),
            wait=module.wait_random_exponential(multiplier=0.2, max=10),
            reraise=True,
        )
        async for attempt in tries:
            with attempt:
                return await answers[next(turns) % len(answers)]()
        raise AssertionError("tenacity neither answered nor raised")

    return ask


@asynccontextmanager
async def tenacity_clients(urls: Sequence[str], *, model: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
    """The same with OpenAI's SDK at each of these addresses."""
    openai: Any = import_module("openai")

    def asking(client: Any) -> Callable[[], Awaitable[str]]:
        async def ask() -> str:
            done = await client.chat.completions.create(model=model, messages=_MESSAGES)
            return done.choices[0].message.content

        return ask

    async with AsyncExitStack() as opened:
        answers: list[Callable[[], Awaitable[str]]] = []
        for url in urls:
            client = openai.AsyncOpenAI(api_key="x", base_url=url, max_retries=0)
            answers.append(asking(await opened.enter_async_context(client)))
        yield tenacity(answers)


def langchain(answers: Sequence[Callable[[], Awaitable[str]]]) -> Callable[[], Awaitable[str]]:
    """The first, with retries, and the others to fall back on; pauses and number of tries as they come."""
    runnables: Any = import_module("langchain_core.runnables")

    def runnable(answer: Callable[[], Awaitable[str]]) -> Any:
        async def run(_: str) -> str:
            return await answer()

        return runnables.RunnableLambda(run)

    first, *others = map(runnable, answers)
    chain = first.with_retry()
    if others:
        chain = chain.with_fallbacks(others)

    async def ask() -> str:
        return await chain.ainvoke(QUESTION)

    return ask


@asynccontextmanager
async def langchain_models(urls: Sequence[str], *, model: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
    """The same with a chat model at each of these addresses."""
    module: Any = import_module("langchain_openai")
    messages: Any = import_module("langchain_core.messages")
    asked = [messages.SystemMessage("Take notes."), messages.HumanMessage(QUESTION)]
    first, *others = [module.ChatOpenAI(model=model, api_key="x", base_url=url, max_retries=0) for url in urls]
    chain = first.with_retry().with_fallbacks(others)

    async def ask() -> str:
        return (await chain.ainvoke(asked)).content

    yield ask


class LiteLLM:
    """``router``: with a deployment for each of the parameters. ``alone`` asks the first without a router."""

    def __init__(self, strategy: str, deployments: Sequence[dict[str, str]]) -> None:
        self._litellm = _litellm()
        self._first = deployments[0]
        self._given = {
            "model_list": [{"model_name": _GROUP, "litellm_params": given} for given in deployments],
            "routing_strategy": strategy,
            "num_retries": _ATTEMPTS - 1,
        }
        self.router: Any = None

    def open(self) -> None:
        """Makes the router, which sets callbacks that slow what is asked without it from then on."""
        self.router = self._litellm.Router(**self._given)

    async def alone(self) -> str:
        return _said(await self._litellm.acompletion(messages=_MESSAGES, **self._first))

    async def ask(self) -> str:
        return _said(await self.router.acompletion(_GROUP, _MESSAGES))

    async def select(self) -> None:
        assert await self.router.async_get_available_deployment(_GROUP, {}, messages=_MESSAGES)


@asynccontextmanager
async def litellm(strategy: str, urls: Sequence[str], *, model: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
    """LiteLLM's router with a deployment at each of these addresses."""
    asked = LiteLLM(strategy, [{"model": f"openai/{model}", "api_key": "x", "api_base": url} for url in urls])
    asked.open()
    yield asked.ask


def litellm_functions(strategy: str, answer: Callable[[], Awaitable[str]], *, size: int) -> LiteLLM:
    """LiteLLM with so many deployments, each of which is this function as a provider of one's own."""
    module = _litellm()

    class Own(module.CustomLLM):  # pyright: ignore[reportUntypedBaseClass]
        async def acompletion(self, *_: Any, model_response: Any, **__: Any) -> Any:
            model_response.choices[0].message.content = await answer()
            return model_response

    module.custom_provider_map = [{"provider": "own", "custom_handler": Own()}]
    return LiteLLM(strategy, [{"model": f"own/m{number}"} for number in range(size)])


def _litellm() -> Any:
    # It would ask GitHub for the prices of models.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    module: Any = import_module("litellm")
    module.telemetry = False
    module.callbacks = []
    module.suppress_debug_info = True
    return module


def _said(done: Any) -> str:
    return done.choices[0].message.content
