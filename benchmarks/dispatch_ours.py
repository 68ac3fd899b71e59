"""Our side of the benchmarks of dispatch: an executor with all that it does switched on, and the instances under it."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from agent_orchestra import Agent
from agent_orchestra.adapters.models.kind import PromptKind
from agent_orchestra.adapters.models.providers import Providers
from agent_orchestra.adapters.models.vendors import ProviderConfig
from agent_orchestra.adapters.offline import OfflineKind
from agent_orchestra.core.agent import Limits
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.breaker import BreakerPolicy
from agent_orchestra.core.request import Reply
from agent_orchestra.runtime.executor import Call, Emit, Executor, Instance, Pool
from agent_orchestra.runtime.instances import Dispatching, Unobserved
from agent_orchestra.runtime.pool import Place
from benchmarks.service import QUESTION

__all__ = ["executed", "prompts", "selecting"]

_SECONDS = 30.0


class _Asked:
    """Conforms to :class:`Backend`."""

    def __init__(self, answer: Callable[[], Awaitable[str]]) -> None:
        self._answer = answer

    async def run(self, call: Call, emit: Emit) -> Reply:  # noqa: ARG002  the port's own
        return Reply(output=await self._answer())


def _policy(algorithm: str, *, rest: float = 60.0) -> Dispatching:
    """With breakers that count all that they can."""
    breaker = BreakerPolicy(failure_share=0.5, slow=10.0, rest=rest)
    return Dispatching(algorithm=Algorithm(algorithm), breaker=breaker)


def executed(
    algorithm: str, answers: Sequence[Callable[[], Awaitable[str]]], *, concurrency: int = 100, queue: int = 0
) -> Callable[[], Awaitable[str]]:
    """One call by an executor, of an agent with these functions for its instances."""
    instances = [Instance(id=f"i{number}", backend=_Asked(answer)) for number, answer in enumerate(answers)]
    agent = Agent(id="notes", kind="function", limits=Limits(concurrency=concurrency, timeout=20.0, queue=queue))
    return _asking(algorithm, agent, instances)


def _asking(algorithm: str, agent: Agent, instances: Sequence[Instance]) -> Callable[[], Awaitable[str]]:
    executor = Executor(policy=_policy(algorithm), max_output_chars=1_000_000, observer=Unobserved())
    line = [(agent, Pool(instances))]
    call = Call(request_id="r", conversation_id="c", tenant="default", agent=agent, content=QUESTION)

    def emit(piece: str, said: int) -> None:
        """Nobody listens."""

    async def ask() -> str:
        reserved = await executor.reserve(line, stick="c", seconds=_SECONDS)
        outcome = await executor.run(reserved, call, seconds=_SECONDS, emit=emit)
        if outcome.reply is None:
            raise outcome.error or AssertionError("neither a reply nor an error")
        return outcome.reply.output

    return ask


@asynccontextmanager
async def prompts(algorithm: str, urls: Sequence[str], *, model: str) -> AsyncGenerator[Callable[[], Awaitable[str]]]:
    """The same of an agent that is a prompt, with an instance at each of these addresses."""
    agent = Agent(id="notes", kind="prompt", settings={"instructions": "Take notes.", "model": f"openai:{model}"})
    instances: list[Instance] = []
    async with AsyncExitStack() as opened:
        for url in urls:
            providers = Providers({"openai": ProviderConfig(api_key="x", base_url=url)})
            opened.push_async_callback(providers.close)
            kind = PromptKind(providers, offline=OfflineKind(), allowed=())
            found = await kind.connect(agent, trusted=True)
            instances.append(dataclasses.replace(found[0], id=url))
        yield _asking(algorithm, agent, instances)


def selecting(algorithm: str, size: int, *, ejected: bool) -> Callable[[], None]:
    """Takes a place among so many free instances and gives it back; ``ejected``: half of them, at random, are not."""
    agent = Agent(id="notes", kind="function")
    policy = _policy(algorithm, rest=math.inf)
    backend = _Asked(_nothing)
    pool = Pool([Instance(id=f"i{number}", backend=backend) for number in range(size)])
    now = time.perf_counter()
    if ejected:
        for instance in random.Random(5).sample(pool.instances, size // 2):
            place = Place(agent=agent, pool=pool, instance=instance, trial=False)
            while instance.healthy:
                pool.settle(place, policy, now, seconds=0.01, failure="agent_failed", answered=False)

    def select() -> None:
        place = pool.take(agent, policy, time.perf_counter())
        assert place is not None
        assert place.instance.healthy
        pool.leave(place)

    return select


async def _nothing() -> str:
    return ""
