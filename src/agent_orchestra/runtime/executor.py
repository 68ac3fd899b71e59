"""Calls one instance of an agent and judges what comes back."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent_orchestra.core import balancing
from agent_orchestra.core.agent import Agent
from agent_orchestra.core.message import Attachment, Message
from agent_orchestra.core.request import Attempt, Reply
from agent_orchestra.core.values import Json, JsonObject, cleaned, faults_in
from agent_orchestra.errors import AgentFailed, DeadlineExceeded, NoInstanceAvailable, RunFailed

__all__ = ["Backend", "Call", "Emit", "Executor", "Instance", "Outcome", "Pool"]

Emit = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an instance is asked.

    ``history``: the messages before this one, oldest first. ``streamed``: somebody listens; where nobody does, the
    output may as well come whole.
    """

    request_id: str
    conversation_id: str
    tenant: str
    agent: Agent
    content: str
    attachments: Sequence[Attachment] = ()
    streamed: bool = False
    history: Sequence[Message] = ()
    context: JsonObject = field(default_factory=dict[str, None])
    user_id: str | None = None


class Backend(Protocol):
    """Runs one instance of an agent."""

    async def run(self, call: Call, emit: Emit) -> Reply:
        """Answers the call.

        Either tells its output piece by piece through ``emit``, so that the pieces make up ``Reply.output``, or tells
        nothing and gives it whole. Raises :class:`AgentFailed` for what the agent did wrong; never a vendor's error.
        Ends when it is cancelled, as soon as what it runs allows.
        """
        ...


def _never() -> bool:
    return False


@dataclass(slots=True, eq=False)
class Instance:
    """One place where an agent runs, with what is known of it now.

    ``rank``: 0 is preferred; higher ones stand by. ``repeatable``: a call that was cut off may be made once more, by
    another instance, since it has no effects. ``paused`` tells whether a call would have to wait there, as behind a
    vendor's rate limit.
    """

    id: str
    backend: Backend
    rank: int = 0
    repeatable: bool = False
    paused: Callable[[], bool] = _never
    in_flight: int = 0


@dataclass(slots=True, eq=False)
class Pool:
    """The instances of one registered agent, and whose turn it is."""

    instances: Sequence[Instance]
    turn: int = 0
    failures_in_row: int = 0

    @property
    def in_flight(self) -> int:
        return sum(instance.in_flight for instance in self.instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: a reply or an error, what was told before, and every attempt that was made."""

    reply: Reply | None
    error: RunFailed | None
    told: str
    attempts: tuple[Attempt, ...]


class _Teller:
    """Passes on what an instance tells, until its time is over or it has told too much."""

    def __init__(self, emit: Callable[[str, int], None], most: int) -> None:
        self._emit = emit
        self._most = most
        self._open = True
        self.pieces: list[str] = []
        self.length = 0

    def __call__(self, piece: str) -> None:
        if not self._open or not piece:
            return
        piece = cleaned(piece)
        if self.length + len(piece) > self._most:
            raise _too_long(self._most)
        self._emit(piece, self.length)
        self.pieces.append(piece)
        self.length += len(piece)

    def close(self) -> str:
        self._open = False
        return "".join(self.pieces)


class _Voice:
    """What one instance tells; of one that was given up nothing is heard any more, whenever it ends."""

    def __init__(self, teller: _Teller) -> None:
        self._teller = teller
        self.silenced = False

    def __call__(self, piece: str) -> None:
        if not self.silenced:
            self._teller(piece)


def _too_long(most: int) -> AgentFailed:
    return AgentFailed(f"the agent's output is longer than {most} characters", cause="output_too_long")


class Executor:
    """Selects an instance, calls it within its time, and settles what that says about it."""

    def __init__(self, *, balanced: bool, max_output_chars: int) -> None:
        self._balanced = balanced
        self._max_output_chars = max_output_chars
        self._calls: set[asyncio.Task[Reply]] = set()

    def reserve(self, agent: Agent, pool: Pool) -> Instance:
        """Takes a place on an instance; :meth:`run` or :meth:`release` gives it back.

        Raises :class:`NoInstanceAvailable` when every instance is full.
        """
        instance = self._reserved(agent, pool, tried=())
        if instance is None:
            raise NoInstanceAvailable(
                f"all {len(pool.instances)} instances of agent '{agent.id}' are at their limit of "
                f"{agent.limits.concurrency} calls; try again, or raise limits.concurrency"
            )
        return instance

    def _reserved(self, agent: Agent, pool: Pool, *, tried: Collection[Instance]) -> Instance | None:
        loads = [
            balancing.Load(
                instance_id=i.id,
                in_flight=i.in_flight,
                concurrency=agent.limits.concurrency,
                rank=i.rank,
                paused=i.paused(),
                ejected=i in tried,
            )
            for i in pool.instances
        ]
        index = balancing.round_robin(loads, pool.turn if self._balanced else 0)
        if index is None:
            return None
        pool.turn = index + 1
        instance = pool.instances[index]
        instance.in_flight += 1
        return instance

    def release(self, instance: Instance) -> None:
        """Gives back a place that no call was made on."""
        instance.in_flight -= 1

    async def run(
        self, pool: Pool, instance: Instance, call: Call, *, seconds: float, emit: Callable[[str, int], None]
    ) -> Outcome:
        """The call of a reserved instance, and of the next one when that one cannot answer and another may.

        Each instance is tried once, and none after a piece of output was told: there is no change of voice in the
        middle of a sentence. Never raises but for its own cancellation. ``emit`` gets each piece of output and the
        number of characters before it. An instance that does not end when its time is over is left behind; it keeps its
        place until it ends, so that runaways cannot pile up.
        """
        deadline = time.perf_counter() + seconds
        teller = _Teller(emit, self._max_output_chars)
        attempts: list[Attempt] = []
        tried: list[Instance] = []
        following: Instance | None = instance
        errors: list[RunFailed] = []
        reply: Reply | None = None
        error: RunFailed | None = None
        try:
            while following is not None:
                instance, following = following, None
                tried.append(instance)
                began = time.perf_counter()
                reply, error = await self._attempt(instance, call, max(deadline - began, 0.0), teller)
                attempts.append(
                    Attempt(
                        agent_id=call.agent.id,
                        instance_id=instance.id,
                        duration_ms=round((time.perf_counter() - began) * 1_000, 3),
                        error=error.code if error else None,
                    )
                )
                if error is not None and error.elsewhere and not teller.length:
                    errors.append(error)
                    error = _most_telling(errors)
                    if time.perf_counter() < deadline:
                        following = self._reserved(call.agent, pool, tried=tried)
        finally:
            told = teller.close()
        pool.failures_in_row = pool.failures_in_row + 1 if error else 0
        return Outcome(reply=reply, error=error, told=told, attempts=tuple(attempts))

    async def _attempt(
        self, instance: Instance, call: Call, seconds: float, teller: _Teller
    ) -> tuple[Reply | None, RunFailed | None]:
        if call.agent.limits.timeout is not None:
            seconds = min(seconds, call.agent.limits.timeout)
        voice = _Voice(teller)
        task = asyncio.create_task(instance.backend.run(call, voice))
        self._calls.add(task)
        task.add_done_callback(lambda done: self._ended(done, instance))
        try:
            done, _ = await asyncio.wait((task,), timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            voice.silenced = True
            task.cancel()
            late = DeadlineExceeded(f"agent '{call.agent.id}' did not answer within {seconds:.3g} s")
            late.elsewhere = instance.repeatable
            return None, late
        if task.cancelled():
            return None, AgentFailed(f"agent '{call.agent.id}' gave up its own call", cause="cancelled")
        if isinstance(raised := task.exception(), RunFailed):
            return None, raised
        if raised is not None:
            # A backend promises to translate; one that does not must still not take the request down with it.
            error = AgentFailed(f"agent '{call.agent.id}' raised {type(raised).__name__}", cause=type(raised).__name__)
            error.__cause__ = raised
            return None, error
        return _judged(task.result(), teller)

    async def close(self, seconds: float) -> None:
        """Cancels the calls that are left, and waits for them as long as it may."""
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=seconds)

    def _ended(self, task: asyncio.Task[Reply], instance: Instance) -> None:
        self._calls.discard(task)
        instance.in_flight -= 1
        if not task.cancelled():
            task.exception()


def _most_telling(errors: Sequence[RunFailed]) -> RunFailed:
    """Of the errors of instances that were tried one after the other: what mends by itself, and what mends soonest."""
    return min(errors, key=lambda error: (not error.retryable, error.retry_after or 0.0))


def _judged(reply: Reply, teller: _Teller) -> tuple[Reply | None, RunFailed | None]:
    if not teller.length:
        try:
            teller(reply.output)
        except AgentFailed as error:
            return None, error
    told = "".join(teller.pieces)
    if told != cleaned(reply.output):
        return None, AgentFailed("the agent's output is not what its stream told", cause="output_mismatch")
    # What no database takes would never come on record, and the request would never end.
    rest: dict[str, Json] = {"value": reply.value, "usage.cost_usd": reply.usage.cost_usd}
    for number, asked in enumerate(reply.tool_calls):
        rest[f"tool_calls.{number}"] = [asked.id, asked.name, asked.arguments]
    for path, given in rest.items():
        if fault := next(faults_in(path, given), None):
            return None, AgentFailed(f"the agent's reply cannot be stored: {fault}", cause="output_not_storable")
    return reply if told == reply.output else dataclasses.replace(reply, output=told), None
