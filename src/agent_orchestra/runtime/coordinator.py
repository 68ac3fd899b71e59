"""Has several agents work on one request, as its plan says."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final, Protocol, assert_never

from agent_orchestra.core import coordination
from agent_orchestra.core.agent import is_id
from agent_orchestra.core.attempt import Attempt
from agent_orchestra.core.coordination import (
    RESULTS,
    SYNTHESIS,
    Aggregate,
    Cancel,
    Coordination,
    Done,
    Result,
    ResultStatus,
    Settle,
    Start,
    State,
    Synthesize,
)
from agent_orchestra.core.plan import Plan, Strategy, in_order, mentions
from agent_orchestra.core.request import Reply
from agent_orchestra.core.usage import total
from agent_orchestra.core.values import Json, cleaned, nearest
from agent_orchestra.errors import (
    AgentDisabled,
    CoordinationFailed,
    Fault,
    InvalidInput,
    OrchestraError,
    RunFailed,
)
from agent_orchestra.runtime.executor import Backend, Call, Emit, Instance, Line, Outcome
from agent_orchestra.runtime.registry import Roster
from agent_orchestra.runtime.telemetry import Telemetry

__all__ = ["TEAM", "Coordinator", "Performer", "PlanBackend"]

#: The kind of the agents that are plans themselves.
TEAM: Final = "team"

_DEEPEST: Final = 8
_LONGEST_SECONDS: Final = 86_400.0
#: What is kept of the time, of each member's, to make one answer of what there is: this share, or so many seconds.
_MARGIN: Final = 0.1
_MOST_MARGIN: Final = 5.0
#: The plans that the current task runs in, outermost first, by the ids of their agents.
_within: ContextVar[tuple[str, ...]] = ContextVar("agent_orchestra_within", default=())


class Performer(Protocol):
    """Has one agent answer one call, with all its retries."""

    async def execute(self, line: Line, call: Call, *, seconds: float, emit: Callable[[str, int], None]) -> Outcome:
        """The reply of the first agent of the line that gives one within the time, or the error that it ended with.

        Raises :class:`Unavailable` where nobody could take the call, and its own cancellation; nothing else.
        """
        ...


class Coordinator:
    """Runs plans. What to do next is decided in :mod:`agent_orchestra.core.coordination`; here it is done.

    ``roster``: the agents that a tenant sees now. ``wrap`` makes a function into what can be called, for routers.
    """

    def __init__(
        self,
        *,
        roster: Callable[[str], Roster],
        executor: Performer,
        wrap: Callable[[str, Callable[..., object]], Instance],
        telemetry: Telemetry,
    ) -> None:
        self._roster = roster
        self._executor = executor
        self._wrap = wrap
        self._telemetry = telemetry

    def check(self, plan: Plan, tenant: str) -> None:
        """Raises :class:`InvalidInput` for agents that are not there, each with its place and the nearest that is."""
        known = self._roster(tenant).entries
        faults: list[Fault] = []
        for path, agent_id in mentions(plan).items():
            if agent_id not in known:
                faults.append(
                    Fault(path=path, message=f"there is no agent '{agent_id}'; {nearest(agent_id, list(known))}")
                )
        if plan.router is not None:
            self.check_router(plan.router)
        if faults:
            raise InvalidInput("; ".join(map(str, faults)), faults=tuple(faults))

    def check_router(self, router: Callable[..., object]) -> None:
        """Raises :class:`InvalidInput` for a function that takes neither the content nor the content and the call."""
        try:
            self._wrap("router", router)
        except InvalidInput as error:
            faults = tuple(Fault(path="router", message=fault.message) for fault in error.faults)
            raise InvalidInput("; ".join(map(str, faults)), faults=faults) from error

    async def run(self, plan: Plan, call: Call, emit: Emit) -> Reply:  # noqa: ARG002  told whole, by whoever calls
        """What the members make of a call, together.

        Nothing is told before the end: until then it is open whose word counts. Raises :class:`CoordinationFailed`
        where no member succeeded, where the router fails or chooses nobody, and where plans contain each other. When it
        is cancelled, so are all members.
        """
        outer = _within.get()
        here = call.agent.id
        # Agents that a request names have no id of their own: they may come again, in a function that asks others.
        if call.agent.kind == TEAM and is_id(here) and here in outer:
            way = " -> ".join([*outer[outer.index(here) :], here])
            raise CoordinationFailed(f"team '{here}' contains itself: {way}")
        if len(outer) >= _DEEPEST:
            way = " -> ".join([*outer, here])
            raise CoordinationFailed(f"teams are more than {_DEEPEST} deep in each other: {way}")
        inside = _within.set((*outer, here))
        try:
            return await _Run(self._roster, self._executor, self._wrap, self._telemetry, plan, call).run()
        finally:
            _within.reset(inside)


class PlanBackend:
    """Conforms to :class:`Backend`: a plan that can be called like any instance of an agent."""

    def __init__(self, coordinator: Coordinator, plan: Plan) -> None:
        self._coordinator = coordinator
        self._plan = plan

    async def run(self, call: Call, emit: Emit) -> Reply:
        return await self._coordinator.run(self._plan, call, emit)


class _Run:
    """One plan on its way."""

    def __init__(
        self,
        roster: Callable[[str], Roster],
        executor: Performer,
        wrap: Callable[[str, Callable[..., object]], Instance],
        telemetry: Telemetry,
        plan: Plan,
        call: Call,
    ) -> None:
        self._roster = roster
        self._executor = executor
        self._wrap = wrap
        self._telemetry = telemetry
        self._plan = plan
        self._call = call
        self._began = time.perf_counter()
        self._ends = self._began + (_LONGEST_SECONDS if call.seconds is None else call.seconds)
        self._state = State(content=call.content, context=call.context)
        self._members = {member.id: member for member in plan.members}
        self._tasks: dict[str, asyncio.Task[Result]] = {}
        self._starts: dict[str, float] = {}
        self._replies: dict[str, Reply] = {}

    async def run(self) -> Reply:
        if self._plan.strategy is Strategy.CONDITIONAL:
            chosen = coordination.chosen(self._plan, await self._routed())
            self._state = dataclasses.replace(self._state, chosen=chosen)
        async with asyncio.TaskGroup() as group:
            while not self._perform(group):
                await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
                self._collect()
        return await self._answer()

    async def _routed(self) -> Json:
        try:
            if self._plan.router is None:
                return coordination.routed(self._plan, self._state)
            backend: Backend = self._wrap("router", self._plan.router).backend
            reply = await backend.run(self._call, _unheard)
        except RunFailed as error:
            if error.__cause__ is not None:
                self._telemetry.raised(error.__cause__, request_id=self._call.request_id, agent=self._call.agent.id)
            raise CoordinationFailed(f"the router failed ({error.code}): {error.detail}") from error
        return reply.output if reply.value is None else reply.value

    def _perform(self, group: asyncio.TaskGroup) -> bool:
        """Does what is to be done now; true once nothing is left to do."""
        for step in coordination.next_steps(self._plan, self._state):
            match step:
                case Settle(result):
                    self._state = dataclasses.replace(self._state, results={**self._state.results, result.id: result})
                case Start(ids):
                    for member_id in ids:
                        self._starts[member_id] = time.perf_counter()
                        self._tasks[member_id] = group.create_task(self._member(member_id))
                case Cancel(ids):
                    for member_id in ids:
                        self._tasks[member_id].cancel()
                case Done():
                    return True
                case _:
                    assert_never(step)
        self._state = dataclasses.replace(self._state, running=frozenset(self._tasks))
        return False

    def _collect(self) -> None:
        """Takes in who has ended."""
        ended = {member_id: task for member_id, task in self._tasks.items() if task.done()}
        results: dict[str, Result] = {}
        for member_id, task in ended.items():
            del self._tasks[member_id]
            results[member_id] = self._cancelled(member_id) if task.cancelled() else task.result()
        self._state = dataclasses.replace(
            self._state, results={**self._state.results, **results}, running=frozenset(self._tasks)
        )

    def _cancelled(self, member_id: str) -> Result:
        return Result(
            id=member_id,
            agent=self._members[member_id].agent,
            status=ResultStatus.CANCELLED,
            reason="the others had made it needless",
            offset_ms=_ms(self._starts[member_id] - self._began),
            duration_ms=_ms(time.perf_counter() - self._starts[member_id]),
        )

    async def _member(self, member_id: str) -> Result:
        member = self._members[member_id]
        seen = coordination.seen(self._plan, self._state, member_id)
        return await self._result(member_id, member.agent, seen, member.timeout)

    async def _result(
        self, result_id: str, agent_id: str, seen: Mapping[str, Json], timeout: float | None = None
    ) -> Result:
        """How an agent ends that is given the results of others. Raises nothing but its own cancellation."""
        began = time.perf_counter()
        left = max(self._ends - began, 0.0)
        # One that never ends must leave the others' results the time to be told.
        seconds = left if result_id == SYNTHESIS else left - min(left * _MARGIN, _MOST_MARGIN)
        if timeout is not None:
            seconds = min(seconds, timeout)
        attempts: tuple[Attempt, ...] = ()
        error: OrchestraError | None = None
        reply: Reply | None = None
        try:
            with self._telemetry.span(
                "invoke_agent", **{"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.id": agent_id}
            ) as span:
                line = self._line(agent_id)
                call = dataclasses.replace(
                    self._call, agent=line[0][0], streamed=False, seconds=seconds, context=self._context(seen)
                )
                outcome = await self._executor.execute(line, call, seconds=seconds, emit=_untold)
                attempts, error, reply = outcome.attempts, outcome.error, outcome.reply
                if error is not None:
                    self._telemetry.mark(span, error.code)
        except OrchestraError as refused:
            error = refused
        offset, duration = _ms(began - self._began), _ms(time.perf_counter() - began)
        if reply is None:
            error = error or CoordinationFailed(f"agent '{agent_id}' gave nothing back")
            if error.__cause__ is not None:
                self._telemetry.raised(error.__cause__, request_id=self._call.request_id, agent=agent_id)
            return Result(
                id=result_id,
                agent=agent_id,
                status=ResultStatus.FAILED,
                error=error.code,
                detail=cleaned(error.detail),
                offset_ms=offset,
                duration_ms=duration,
                attempts=attempts,
            )
        self._replies[result_id] = reply
        return Result(
            id=result_id,
            agent=agent_id,
            status=ResultStatus.SUCCEEDED,
            output=reply.output,
            value=reply.value,
            offset_ms=offset,
            duration_ms=duration,
            attempts=attempts,
            usage=reply.usage,
        )

    def _line(self, agent_id: str) -> Line:
        """Raises :class:`AgentNotFound` or :class:`AgentDisabled`."""
        entry = self._roster(self._call.tenant).get(agent_id)
        if not entry.agent.enabled:
            raise AgentDisabled(f"agent '{agent_id}' is disabled")
        return [(entry.agent, entry.pool)]

    def _context(self, seen: Mapping[str, Json]) -> dict[str, Json]:
        # Of a team in a team the members see what came before the team too.
        outer = self._call.context.get(RESULTS)
        results = {**outer, **seen} if isinstance(outer, Mapping) else {**seen}
        return {**self._call.context, RESULTS: results}

    async def _answer(self) -> Reply:
        plan = self._plan
        made = coordination.aggregate(plan, self._state)
        listed = [*in_order(plan, self._state.chosen), *plan.members]
        results = [self._state.results[member_id] for member_id in dict.fromkeys(m.id for m in listed)]
        synthesis: Result | None = None
        if isinstance(made, Synthesize):
            synthesis = await self._result(SYNTHESIS, made.agent, coordination.results_json(results))
            made = coordination.synthesized(synthesis, results)
        reply = self._spoken(made)
        usages = [result.usage for result in (*results, synthesis) if result is not None]
        return dataclasses.replace(
            reply,
            output=made.output,
            value=made.value,
            usage=total(usages),
            coordination=Coordination(
                strategy=plan.strategy,
                aggregate=plan.aggregate,
                results=tuple(dataclasses.replace(r, score=made.scores.get(r.id)) for r in results),
                by=made.by,
                synthesis=synthesis,
                agreed=made.agreed,
                note=made.note,
            ),
        )

    def _spoken(self, made: Aggregate) -> Reply:
        """What else is in the replies whose word it is: calls of tools, and who wrote it, where it is one."""
        replies = [self._replies[result_id] for result_id in made.by]
        if len(replies) == 1:
            return dataclasses.replace(replies[0], coordination=None)
        return Reply(output="", tool_calls=tuple(asked for reply in replies for asked in reply.tool_calls))


def _ms(seconds: float) -> float:
    return round(seconds * 1_000, 3)


def _unheard(piece: str) -> None:
    """A router's text is nobody's to hear."""


def _untold(piece: str, said: int) -> None:
    """What a member tells is told when it is known whose word counts."""
