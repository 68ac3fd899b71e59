"""A whole orchestra over a fleet of scripted instances; requests that come whatever becomes of those before them."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from agent_orchestra.core.agent import Agent, Balancing, Limits
from agent_orchestra.core.balancing import Algorithm
from agent_orchestra.core.request import Attempt
from agent_orchestra.core.resilience import Recovery
from agent_orchestra.errors import OrchestraError, RunFailed, Unavailable
from agent_orchestra.runtime.instances import Dispatching, Instance
from agent_orchestra.settings import Orchestrator, Settings
from tests.chaos.agents import HttpKind, Made, http_kind
from tests.chaos.fleet import Fleet
from tests.runtime.parts import Parts, opened

__all__ = ["Asked", "Figure", "Laboratory", "Stage", "agent", "most_at_once", "quantile", "within"]

#: Beyond what any of the requests may take.
_HUNG_SECONDS: Final = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What a scenario has measured, and what it must be. Neither ``at_most`` nor ``at_least``: told, and no promise.

    ``timing``: it is a matter of speed, which a busy machine may miss; all others hold on any machine.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    timing: bool = False

    @property
    def met(self) -> bool:
        over = self.at_most is not None and not self.value <= self.at_most
        under = self.at_least is not None and not self.value >= self.at_least
        return not over and not under

    @property
    def bound(self) -> str:
        if self.at_most is not None and self.at_most == self.at_least:
            return _number(self.at_most)
        bounds = (("≥", self.at_least), ("≤", self.at_most))
        return " and ".join(f"{sign} {_number(value)}" for sign, value in bounds if value is not None)

    @property
    def shown(self) -> str:
        return f"{_number(self.value)} {self.unit}".strip() if math.isfinite(self.value) else "never"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request and its end. ``due``: when it was to be sent; ``seconds``: from then on, until its end was told.

    ``code``: of its error; none where it was answered. ``hung`` is a code too: there was no end.
    """

    content: str
    due: float
    seconds: float
    output: str | None = None
    code: str | None = None
    retry_after: float | None = None
    agent: str = ""
    instance: str = ""
    attempts: tuple[Attempt, ...] = ()

    @property
    def right(self) -> bool:
        """Whether it was answered with the answer to this request, by the instance that is named."""
        return self.output == f"{self.instance}: {self.content}"


class Stage:
    """An orchestra with its agents over a fleet."""

    def __init__(self, parts: Parts, kind: HttpKind, fleet: Fleet) -> None:
        self.parts = parts
        self.fleet = fleet
        self._kind = kind
        self._numbers = count(1)

    def made(self, *ids: str) -> list[Made]:
        """The calls of these instances, or of all, in the order in which they began."""
        return self._kind.made(*ids)

    def instance(self, instance_id: str, *, agent_id: str = "front") -> Instance:
        """What is known of an instance now."""
        return next(i for i in self.parts.registered(agent_id).pool.instances if i.id == instance_id)

    def told(self, event: str, instance_id: str) -> int:
        """How often the log was told of that about an instance."""
        return sum(fields.get("instance") == instance_id for fields in self.parts.lines.of(event))

    async def ask(
        self,
        *,
        due: float | None = None,
        agent_id: str | None = "front",
        capability: str | None = None,
        conversation_id: str | None = None,
    ) -> Asked:
        """Sends one request, each with another content, and waits for its end."""
        content = f"question {next(self._numbers)}"
        began = time.perf_counter() if due is None else due
        try:
            async with asyncio.timeout(_HUNG_SECONDS):
                answer = await self.parts.orchestra.process_request(
                    content, agent_id=agent_id, capability=capability, conversation_id=conversation_id
                )
        except TimeoutError:
            return Asked(content=content, due=began, seconds=math.inf, code="hung")
        except OrchestraError as error:
            rest = error.retry_after if isinstance(error, RunFailed | Unavailable) else None
            seconds = time.perf_counter() - began
            return Asked(content=content, due=began, seconds=seconds, code=error.code, retry_after=rest)
        return Asked(
            content=content,
            due=began,
            seconds=time.perf_counter() - began,
            output=answer.reply.output,
            agent=answer.agent,
            instance=answer.instance,
            attempts=answer.attempts,
        )

    async def ask_in_turn(self, number: int) -> list[Asked]:
        return [await self.ask() for _ in range(number)]

    async def ask_at_once(self, number: int) -> list[Asked]:
        return await asyncio.gather(*(self.ask() for _ in range(number)))

    async def ask_steadily(self, rate: float, seconds: float, *, seed: int = 0) -> list[Asked]:
        """Sends so many requests a second at random moments, and waits for all of their ends.

        They come whether or not those before them have ended, and the time of each counts from the moment in which it
        was to be sent: what holds up one is not hidden in those that were not sent meanwhile.
        """
        chance = random.Random(seed)
        began = due = time.perf_counter()
        running: list[asyncio.Task[Asked]] = []
        while (due := due + chance.expovariate(rate)) < began + seconds:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            running.append(asyncio.create_task(self.ask(due=due)))
        return await asyncio.gather(*running)


@dataclass(frozen=True, slots=True, kw_only=True)
class Laboratory:
    """``full``: as long as it takes for figures of speed; otherwise as short as counts and orders allow."""

    folder: Path
    full: bool

    def seconds(self, short: float, full: float) -> float:
        return full if self.full else short

    @asynccontextmanager
    async def stage(
        self,
        fleet: Fleet,
        *agents: Agent,
        dispatching: Dispatching | None = None,
        max_concurrent: int = 1_000,
        max_waiting: int = 0,
        max_wait: float = 10.0,
        timeout_seconds: float = 30.0,
        check_seconds: float | None = None,
    ) -> AsyncGenerator[Stage]:
        """An orchestra of real parts on a new database. Without agents there is one, ``front``, over all instances.

        ``check_seconds``: how often each instance is asked whether it is well; none: never.
        """
        folder = self.folder / f"stage-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        async with (
            http_kind(checked=check_seconds is not None) as kind,
            opened(
                folder,
                configured=agents or (agent(fleet.urls),),
                kinds={"http": kind},
                settings=Settings(orchestrator=Orchestrator(health_check_interval=check_seconds or 30.0)),
                dispatching=dispatching or Dispatching(),
                max_concurrent=max_concurrent,
                max_waiting=max_waiting,
                max_wait=max_wait,
                timeout_seconds=timeout_seconds,
            ) as parts,
        ):
            yield Stage(parts, kind, fleet)


def agent(
    urls: Mapping[str, str],
    *,
    agent_id: str = "front",
    priority: int = 0,
    algorithm: Algorithm | None = None,
    sticky: bool = False,
    recovery: Recovery | None = None,
    timeout: float | None = None,
    concurrency: int = 1_000,
    queue: int = 0,
    read_only: bool = True,
) -> Agent:
    """An agent over these instances. As one that is read-only, it may be asked again whatever went wrong."""
    return Agent(
        id=agent_id,
        kind="http",
        capabilities=("answers",),
        priority=priority,
        read_only=read_only,
        limits=Limits(concurrency=concurrency, timeout=timeout, queue=queue),
        balancing=Balancing(algorithm=algorithm, sticky=sticky),
        recovery=recovery or Recovery(),
        settings={"instances": dict(urls)},
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed (nearest rank); 0 of none."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)] if values else 0.0


def most_at_once(made: Sequence[Made], longer: float = 0.0) -> int:
    """How many of these calls ran at the same time, at most; each of them ``longer`` by so many seconds."""
    ends = [(m.ended + longer, -1) for m in made if m.ended]
    most = now = 0
    for _, change in sorted([*ends, *((m.began, 1) for m in made)]):
        now += change
        most = max(most, now)
    return most


def within(asked: Sequence[Asked], begin: float, end: float = math.inf) -> list[Asked]:
    """Those that were to be sent in this time."""
    return [one for one in asked if begin <= one.due < end]
