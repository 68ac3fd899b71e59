"""The one way through: gather, decide, do, record, answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from agent_orchestra.core import stream
from agent_orchestra.core.agent import Agent, is_id
from agent_orchestra.core.attempt import Attempt
from agent_orchestra.core.conversation import Conversation, InputPolicy
from agent_orchestra.core.message import Message
from agent_orchestra.core.plan import Plan, Strategy, plan_of
from agent_orchestra.core.request import (
    Answer,
    Failure,
    Record,
    Reply,
    Request,
    RequestStatus,
    answer_json,
)
from agent_orchestra.core.resilience import Action, Recovery
from agent_orchestra.core.routing import Candidate, Route, Stage
from agent_orchestra.core.stream import StreamEvent
from agent_orchestra.core.values import Json, cleaned
from agent_orchestra.errors import (
    AgentFailed,
    AgentUnavailable,
    ConversationBusy,
    ConversationNotFound,
    DeadlineExceeded,
    Escalated,
    IdempotencyMismatch,
    Interrupted,
    NoInstanceAvailable,
    OrchestraError,
    RunFailed,
    SequenceConflict,
    ShuttingDown,
    StorageUnavailable,
    StreamMismatch,
    Superseded,
    code_of,
    run_failure,
)
from agent_orchestra.runtime.bulkhead import Bulkhead
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.conversations import ELSEWHERE_SECONDS, Turns
from agent_orchestra.runtime.coordinator import TEAM, Coordinator, PlanBackend
from agent_orchestra.runtime.executor import Call, Executor, Line, Outcome, Reserved
from agent_orchestra.runtime.instances import Instance
from agent_orchestra.runtime.pool import Pool
from agent_orchestra.runtime.registry import Registry, Roster
from agent_orchestra.runtime.router import Question, Router
from agent_orchestra.runtime.running import Running, failed, plain
from agent_orchestra.runtime.telemetry import Stopwatch, Telemetry

__all__ = ["Accepted", "Dispatcher", "Leases", "Loaded", "RunLog", "Submitted", "fingerprint"]

#: How long a running request belongs to its process without a sign of life.
LEASE_SECONDS = 15.0
RENEW_SECONDS = 5.0
RECORD_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What is on record before a request begins: its conversation, the last messages, and itself if it came before."""

    conversation: Conversation | None
    history: Sequence[Message]
    record: Record | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A request that is to be put on record, with where it goes. ``conversation`` is new when its ``last_seq`` is 0."""

    request: Request
    conversation: Conversation
    new: bool
    route: Route
    instance_id: str
    lease_until_ms: int
    take_over: bool


class RunLog(Protocol):
    """The record of requests. Each entry is written together with its messages and events, or not at all."""

    async def load(self, request: Request, *, limit: int) -> Loaded:
        """What is on record for a request: its conversation, if it names one, and what had its key before.

        Raises :class:`ConversationNotFound` for a conversation that is named and not there.
        """
        ...

    async def accept(self, entry: Accepted) -> Record | None:
        """Puts a request on record as running, with the user's message; its conversation is then held by it.

        Gives the record that has the same idempotency key when there is one, and then writes nothing. Raises
        :class:`SequenceConflict` when the conversation has grown since it was loaded, :class:`ConversationBusy` while
        another request holds it, unless ``take_over`` says to end that one.
        """
        ...

    async def record(
        self, tenant: str, request_id: str, conversation_id: str, end: Answer | Failure, status: RequestStatus
    ) -> None:
        """Puts the end of a request on record, with the agent's message, and frees its conversation.

        Raises the error that is on record when the request has ended already: it was taken over, or given up for dead.
        """
        ...

    async def find(self, tenant: str, request_id: str) -> Record:
        """Raises :class:`RequestNotFound`."""
        ...


class Leases(Protocol):
    """The signs of life of running requests."""

    async def renew(self, request_ids: Sequence[str], until_ms: int) -> None:
        """Makes these requests belong to their process until then."""
        ...

    async def reap(self, now_ms: int) -> int:
        """Ends the requests whose process has given no sign of life, as interrupted; gives their number."""
        ...


def fingerprint(*asked: Json) -> str:
    """A digest of what is asked, so that a key or a stream is never answered for another question."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A request that is on record. ``running`` is none when it runs elsewhere, or has ended."""

    request_id: str
    running: Running | None


class Dispatcher:
    """Takes every request the one way: load, route, accept, run, record.

    A request that is on record runs to its end whether or not anybody still waits for it, and its end is recorded
    before it is told.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        router: Router,
        executor: Executor,
        coordinator: Coordinator,
        log: RunLog,
        leases: Leases,
        turns: Turns,
        telemetry: Telemetry,
        bulkhead: Bulkhead,
        default_policy: InputPolicy,
        history_messages: int,
        timeout_seconds: float,
        hand_over_from: float,
        secondary: Strategy | None,
    ) -> None:
        self._registry = registry
        self._router = router
        self._executor = executor
        self._coordinator = coordinator
        self._log = log
        self._leases = leases
        self._turns = turns
        self._telemetry = telemetry
        self._bulkhead = bulkhead
        self._default_policy = default_policy
        self._history_messages = history_messages
        self._timeout_seconds = timeout_seconds
        self._hand_over_from = hand_over_from
        self._secondary = secondary
        self._running: dict[str, Running] = {}
        self._by_key: dict[tuple[str, str], Running] = {}
        self._closing = False

    @property
    def in_flight(self) -> int:
        """Requests that run, those left out that wait for it."""
        return self._bulkhead.running

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self._bulkhead.waiting

    async def dispatch(self, request: Request) -> Answer:
        """The answer to a request. Raises what refused it, or the :class:`RunFailed` that it ended with."""
        return await self.answer(request.tenant, await self.submit(request))

    async def submit(self, request: Request) -> Submitted:
        """Puts a request on record and lets it run.

        With an idempotency key that was used before, gives the request that had it. Raises what refuses the request; it
        is then not on record, and its key is free.
        """
        if request.conversation_id is not None and not is_id(request.conversation_id):
            raise ConversationNotFound("the request names a conversation that cannot be")
        if request.idempotency_key and (first := self._by_key.get((request.tenant, request.idempotency_key))):
            _same(request, first.request.fingerprint)
            return await self._joined(first)
        if self._closing:
            raise _stopping()
        self._bulkhead.check(len(self._running) - self._bulkhead.running - self._bulkhead.waiting)
        running = Running(request)
        self._running[request.id] = running
        if request.idempotency_key:
            self._by_key[request.tenant, request.idempotency_key] = running
        running.task = asyncio.create_task(self._run(running))
        return await self._joined(running)

    async def answer(self, tenant: str, submitted: Submitted) -> Answer:
        """Waits for the end of a request, wherever it runs. Raises the :class:`RunFailed` that it ended with."""
        if submitted.running is not None:
            return await asyncio.shield(submitted.running.ended)
        record = await self._ended_elsewhere(tenant, submitted.request_id)
        if isinstance(record.end, Answer):
            return record.end
        raise _failure_of(record)

    async def follow(
        self, tenant: str, request_id: str, *, after: int = 0, asked: str | None = None
    ) -> AsyncIterator[StreamEvent]:
        """The events of a request after a position, as they come.

        ``asked``: the fingerprint of what the caller believes it asked. Raises :class:`RequestNotFound` and
        :class:`StreamMismatch` at once.
        """
        running = self._running.get(request_id)
        if running is not None and running.request.tenant == tenant:
            _same_stream(asked, running.request.fingerprint)
            return self._follow_here(running, after)
        record = await self._log.find(tenant, request_id)
        _same_stream(asked, record.fingerprint)
        return self._follow_elsewhere(tenant, record, after)

    async def watch(self) -> None:
        """Gives the signs of life of what runs here, and ends what died elsewhere, for ever."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                if self._running:
                    await self._leases.renew(list(self._running), now_ms() + int(LEASE_SECONDS * 1_000))
                if dead := await self._leases.reap(now_ms()):
                    self._telemetry.warn("requests_interrupted", count=dead)
            except Exception as error:  # noqa: BLE001  the watch goes on, whatever one look has met
                self._telemetry.warn("leases_not_renewed", code=code_of(error))

    async def close(self, grace_seconds: float) -> None:
        """Takes nothing new, lets what runs end within the grace, and records the rest as interrupted."""
        self._closing = True
        tasks = [running.task for running in self._running.values() if running.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for running in self._running.values():
            if running.on_record.done():
                running.cancel(_interrupted())
            else:
                running.cancel(_stopping())
        tasks = [task for task in tasks if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=RECORD_AGAIN_SECONDS * 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._executor.close(RECORD_AGAIN_SECONDS)

    async def _joined(self, running: Running) -> Submitted:
        before = await asyncio.shield(running.on_record)
        if before is None:
            return Submitted(request_id=running.request.id, running=running)
        return Submitted(request_id=before.request_id, running=self._running.get(before.request_id))

    async def _run(self, running: Running) -> None:
        request = running.request
        watch = Stopwatch()
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        try:
            async with AsyncExitStack() as held:
                with running.interruptible():
                    if await held.enter_async_context(self._bulkhead.place(self._timeout_seconds)):
                        watch.lap("wait")
                with self._telemetry.span("orchestrate", **{"orchestra.tenant": request.tenant}):
                    await self._serve(running, watch, deadline)
        except OrchestraError as error:
            running.refuse(error)
        except asyncio.CancelledError:
            running.refuse(_stopping())
        except Exception as error:  # noqa: BLE001  the task ends here, and says so
            self._telemetry.fail("request_broke", request_id=request.id, error=type(error).__name__, exc_info=True)
            running.refuse(OrchestraError("something went wrong inside the service; its log has more"))
        finally:
            del self._running[request.id]
            if request.idempotency_key:
                del self._by_key[request.tenant, request.idempotency_key]

    async def _serve(self, running: Running, watch: Stopwatch, deadline: float) -> None:
        request = running.request
        async with AsyncExitStack() as held:
            place = await self._accept(running, watch, deadline, held)
            if place is None:
                return
            about = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.id": place.call.agent.id}
            with self._telemetry.span("invoke_agent", **about) as span:
                end, status = await self._perform(running, place, watch, deadline)
                if isinstance(end, Failure):
                    self._telemetry.mark(span, end.code)
            await self._settle(running, place.call.conversation_id, end, status)
        self._tell_end(request, place, end, running.record_ms)

    async def _accept(self, running: Running, watch: Stopwatch, deadline: float, held: AsyncExitStack) -> _Place | None:
        """Has the request put on record. None when its key was used before."""
        request = running.request
        holds = take_over = False
        decided: _Decided | None = None
        while True:
            loaded = Loaded(conversation=None, history=(), record=None)
            if request.conversation_id is not None or (request.idempotency_key and self._router.may_cost):
                loaded = await self._log.load(request, limit=self._history_messages)
            if loaded.record is not None:
                return self._repeated(running, loaded.record)
            conversation = loaded.conversation or self._new_conversation(request)
            if not holds:
                holds = True
                if await self._take_turn(running, conversation, deadline, held):
                    # Others have written meanwhile.
                    continue
            watch.lap("load")
            try:
                decided = await self._decided(request, conversation, loaded, decided)
                place = await self._chosen(running, conversation, loaded, decided.route, deadline)
            except OrchestraError:
                # Whether its agent can answer now is nothing to a request that was answered before.
                if before := await self._before(request):
                    return self._repeated(running, before)
                raise
            watch.lap("route")
            try:
                before = await self._put_on_record(request, place, conversation, loaded, take_over=take_over)
            except SequenceConflict:
                continue
            except ConversationBusy:
                # Another process holds it: the row says so, and there is nothing here to wait on.
                if conversation.input_policy is InputPolicy.REJECT:
                    raise
                take_over = conversation.input_policy is InputPolicy.INTERRUPT
                await self._pause(running, deadline)
                continue
            if before is not None:
                return self._repeated(running, before)
            watch.lap("accept")
            running.tell(stream.routed(place.route, request_id=request.id, conversation_id=conversation.id))
            running.tell(stream.started(agent_id=place.call.agent.id, instance_id=place.instance_id))
            running.on_record.set_result(None)
            return place

    async def _decided(
        self, request: Request, conversation: Conversation, loaded: Loaded, before: _Decided | None
    ) -> _Decided:
        """Where the request goes. Raises what refuses it.

        A decision from ``before`` holds as long as the conversation is the same: it may have cost a model.
        """
        if before is not None and before.seq == conversation.last_seq and self._can_run(request, before.route):
            return before
        if request.plan is not None and request.plan.members:
            self._coordinator.check(request.plan, request.tenant)
            return _Decided(seq=conversation.last_seq, route=_named(request.plan))
        question = Question(
            id=request.id,
            tenant=request.tenant,
            text=request.content,
            agent_id=request.agent_id,
            capability=request.capability,
            conversation_id=request.conversation_id,
            active_agent=conversation.active_agent,
            user_id=request.user_id or conversation.user_id,
            context={**conversation.context, **request.context},
            history=loaded.history,
        )
        while True:
            route = await self._router.route(question, self._registry.roster(request.tenant))
            # While a model was asked the agent may have gone.
            if self._can_run(request, route):
                return _Decided(seq=conversation.last_seq, route=route)

    def _can_run(self, request: Request, route: Route) -> bool:
        return route.primary.agent_id in self._registry.roster(request.tenant).available

    async def _chosen(
        self, running: Running, conversation: Conversation, loaded: Loaded, route: Route, deadline: float
    ) -> _Place:
        """A place for the request on an instance of the agent that it goes to. Raises what refuses it."""
        request = running.request
        plan = self._plan(request, route)
        if plan is None:
            line = self._line(self._registry.roster(request.tenant), route)
        else:
            line = [(_TOGETHER, Pool([Instance(id=_TOGETHER.kind, backend=PlanBackend(self._coordinator, plan))]))]
        with running.interruptible():
            seconds = deadline - asyncio.get_running_loop().time()
            reserved, refusal = await self._reserved(line, conversation, seconds)
        call = Call(
            request_id=request.id,
            conversation_id=conversation.id,
            tenant=request.tenant,
            agent=reserved.place.agent if reserved is not None else line[0][0],
            content=request.content,
            attachments=request.attachments,
            streamed=request.streamed,
            history=loaded.history,
            context={**conversation.context, **request.context},
            user_id=request.user_id or conversation.user_id,
        )
        return _Place(call=call, route=route, reserved=reserved, refusal=refusal, plan=plan)

    async def _reserved(
        self, line: Line, conversation: Conversation, seconds: float
    ) -> tuple[Reserved | None, NoInstanceAvailable | None]:
        """A place, or why there is none where a person is to answer then. Raises :class:`NoInstanceAvailable`."""
        try:
            return await self._executor.reserve(line, stick=conversation.id, seconds=seconds), None
        except NoInstanceAvailable as refusal:
            agent, pool = line[0]
            # Those that are only full will have a place again: that is for the caller to wait for, not for a person.
            if agent.recovery.exhausted is not Action.ESCALATE or pool.usable(time.perf_counter()):
                raise
            return None, refusal

    def _plan(self, request: Request, route: Route) -> Plan | None:
        """How several agents work on a request, where several do: as it asks, or as a model said that it needs."""
        if request.plan is not None:
            return request.plan if request.plan.members else plan_of(route, request.plan)
        if self._secondary is not None and route.stage is Stage.LLM and route.secondary:
            return plan_of(route, Plan(strategy=self._secondary, members=()))
        return None

    def _line(self, roster: Roster, route: Route) -> Line:
        """The agent that was chosen, and those of the other candidates that may stand in for it.

        Those who share the wanted capability may, and those whom the operator's own router named; of an estimate only
        those that are likely enough to be right.
        """
        first = roster.get(route.primary.agent_id)
        named = route.stage in (Stage.CAPABILITY, Stage.CUSTOM)
        others = [c.agent_id for c in route.alternatives if named or c.confidence >= self._hand_over_from]
        entries = [first, *(roster.entries[agent_id] for agent_id in others if agent_id in roster.available)]
        return [(entry.agent, entry.pool) for entry in entries]

    async def _put_on_record(
        self, request: Request, place: _Place, conversation: Conversation, loaded: Loaded, *, take_over: bool
    ) -> Record | None:
        accepted = False
        try:
            before = await self._log.accept(
                Accepted(
                    request=request,
                    conversation=conversation,
                    new=loaded.conversation is None,
                    route=place.route,
                    instance_id=place.instance_id,
                    lease_until_ms=now_ms() + int(LEASE_SECONDS * 1_000),
                    take_over=take_over,
                )
            )
            accepted = before is None
            return before
        finally:
            if not accepted and place.reserved is not None:
                self._executor.release(place.reserved)

    async def _perform(
        self, running: Running, place: _Place, watch: Stopwatch, deadline: float
    ) -> tuple[Answer | Failure, RequestStatus]:
        seconds = max(deadline - asyncio.get_running_loop().time(), 0.0)
        told: list[str] = []
        attempts: list[Attempt] = []

        def emit(piece: str, said: int) -> None:
            told.append(piece)
            running.tell(stream.delta(piece, said=said))

        called = False
        try:
            with running.interruptible():
                called = True
                if place.reserved is None:
                    outcome = _uncalled(place)
                else:
                    outcome = await self._executor.run(
                        place.reserved, place.call, seconds=seconds, emit=emit, attempts=attempts
                    )
        except OrchestraError as cause:
            if not called and place.reserved is not None:
                self._executor.release(place.reserved)
            # What refuses requests that are not on record yet ends one that has just come to it.
            error = cause if isinstance(cause, RunFailed) else _interrupted()
            outcome = Outcome(reply=None, error=error, told="".join(told), attempts=tuple(attempts))
        watch.lap("run")
        timings = {**watch.timings, "total": watch.total()}
        if outcome.reply is None:
            error = outcome.error or AgentFailed("the agent gave nothing back")
            if error.__cause__ is not None:
                self._telemetry.raised(error.__cause__, request_id=running.request.id, agent=place.call.agent.id)
            status = RequestStatus.CANCELLED if isinstance(error, Superseded) else RequestStatus.FAILED
            if outcome.escalated:
                status, error = RequestStatus.ESCALATED, _escalated(error, outcome)
            failure = Failure(
                code=error.code,
                detail=cleaned(error.detail),
                data=plain(error),
                output=outcome.told,
                timings=timings,
                attempts=outcome.attempts,
            )
            return failure, status
        route = place.route
        answer = Answer(
            request_id=running.request.id,
            conversation_id=place.call.conversation_id,
            agent=outcome.agent_id if place.plan is None else _speaker(place.plan, outcome.reply),
            instance=outcome.instance_id,
            route=route,
            reply=outcome.reply,
            timings=timings,
            attempts=outcome.attempts,
        )
        return answer, RequestStatus.SUCCEEDED

    async def _settle(
        self, running: Running, conversation_id: str, end: Answer | Failure, status: RequestStatus
    ) -> None:
        """Records the end, then tells it. While it cannot be recorded the callers know, and it is tried again."""
        request = running.request
        began = time.perf_counter()
        while True:
            try:
                await self._log.record(request.tenant, request.id, conversation_id, end, status)
            except StorageUnavailable as error:
                self._telemetry.fail("answer_not_recorded", request_id=request.id, code=error.code)
                running.fail(error)
                await asyncio.sleep(RECORD_AGAIN_SECONDS)
            except RunFailed as error:
                running.fail(error)
                return
            except Exception as error:  # noqa: BLE001  whatever cannot be recorded, that it ended can
                self._telemetry.fail("answer_not_recorded", request_id=request.id, error=type(error).__name__)
                end, status = _UNRECORDABLE, RequestStatus.FAILED
            else:
                running.record_ms = round((time.perf_counter() - began) * 1_000, 3)
                if isinstance(end, Answer):
                    running.finish(end)
                else:
                    running.fail(run_failure(end.code, end.detail, end.data))
                return

    async def _take_turn(
        self, running: Running, conversation: Conversation, deadline: float, held: AsyncExitStack
    ) -> bool:
        request = running.request
        cause = Superseded("other input took the turn of this request in its conversation")
        try:
            with running.interruptible():
                async with asyncio.timeout_at(deadline):
                    return await held.enter_async_context(
                        self._turns.hold(
                            request.tenant,
                            conversation.id,
                            conversation.input_policy,
                            cancel=lambda: running.cancel(cause),
                        )
                    )
        except TimeoutError:
            raise _waited_too_long(conversation.id) from None

    async def _pause(self, running: Running, deadline: float) -> None:
        if asyncio.get_running_loop().time() >= deadline:
            raise _waited_too_long(str(running.request.conversation_id))
        with running.interruptible():
            await asyncio.sleep(ELSEWHERE_SECONDS)

    async def _before(self, request: Request) -> Record | None:
        if request.idempotency_key is None:
            return None
        return (await self._log.load(request, limit=0)).record

    def _repeated(self, running: Running, before: Record) -> None:
        _same(running.request, before.fingerprint)
        running.on_record.set_result(before)

    def _new_conversation(self, request: Request) -> Conversation:
        return Conversation(
            id=new_id(),
            tenant=request.tenant,
            user_id=request.user_id,
            input_policy=self._default_policy,
            created_ms=request.received_ms,
            updated_ms=request.received_ms,
        )

    def _tell_end(self, request: Request, place: _Place, end: Answer | Failure, record_ms: float) -> None:
        self._telemetry.tell(
            "request_answered" if isinstance(end, Answer) else "request_failed",
            request_id=request.id,
            conversation_id=place.call.conversation_id,
            trace_id=self._telemetry.trace_id(request.id),
            tenant=request.tenant,
            agent=end.attempts[-1].agent_id if end.attempts else place.call.agent.id,
            instance=end.attempts[-1].instance_id if end.attempts else place.instance_id,
            stage=place.route.stage,
            confidence=place.route.primary.confidence,
            code=None if isinstance(end, Answer) else end.code,
            ms=round(end.timings["total"] + record_ms, 3),
        )

    async def _follow_here(self, running: Running, after: int) -> AsyncIterator[StreamEvent]:
        while after < stream.END:
            for event in running.told(after):
                yield event
                after = event.position
            if after < stream.END and not running.told(after):
                await running.more()

    async def _follow_elsewhere(self, tenant: str, record: Record, after: int) -> AsyncIterator[StreamEvent]:
        head = (
            stream.routed(record.route, request_id=record.request_id, conversation_id=record.conversation_id),
            stream.started(agent_id=record.route.primary.agent_id, instance_id=record.instance_id),
        )
        if record.end is None:
            for event in head:
                if event.position > after:
                    yield event
                    after = event.position
            record = await self._ended_elsewhere(tenant, record.request_id)
        if isinstance(record.end, Answer):
            output, last = record.end.output, stream.completed(answer_json(record.end))
        else:
            error = _failure_of(record)
            output = record.end.output if record.end else ""
            last = failed(error)
        for event in stream.retell(head, output, last, after=after):
            yield event

    async def _ended_elsewhere(self, tenant: str, request_id: str) -> Record:
        """The record of a request once it has ended; whose process it is, its lease sees to it that it ends."""
        pause = ELSEWHERE_SECONDS
        while True:
            record = await self._log.find(tenant, request_id)
            if record.end is not None:
                return record
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """A decision, and the number of messages in the conversation that it was made for."""

    seq: int
    route: Route


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where an accepted request runs; without a place, ``refusal`` says why a person is to answer it."""

    call: Call
    route: Route
    reserved: Reserved | None
    refusal: NoInstanceAvailable | None
    plan: Plan | None

    @property
    def instance_id(self) -> str:
        return self.reserved.place.instance.id if self.reserved is not None else ""


#: Who answers where a request is worked on by several agents. Its id is none that an agent can have.
_TOGETHER = Agent(id="(agents)", kind=TEAM, recovery=Recovery(attempts=1))


def _named(plan: Plan) -> Route:
    """The route of a request that names its agents."""
    agents = list(dict.fromkeys(member.agent for member in plan.members))
    first = Candidate(agent_id=agents[0], confidence=1.0)
    return Route(
        candidates=(first,),
        stage=Stage.EXPLICIT,
        reason="the request names these agents",
        secondary=tuple(agents[1:]),
    )


def _speaker(plan: Plan, reply: Reply) -> str:
    """The agent whose word the answer is, or the first of them."""
    agents = {member.id: member.agent for member in plan.members}
    by = reply.coordination.by if reply.coordination is not None else ()
    return next((agents[member_id] for member_id in by if member_id in agents), plan.synthesizer or _TOGETHER.id)


_UNRECORDABLE = Failure(code=AgentFailed.code, detail="the agent's answer could not be put on record")


def _uncalled(place: _Place) -> Outcome:
    """How a request ends for which there was nobody to call."""
    agent_id, refusal = place.call.agent.id, place.refusal
    error = AgentUnavailable(refusal.detail if refusal is not None else f"agent '{agent_id}' could not be called")
    attempt = Attempt(
        agent_id=agent_id,
        instance_id="",
        duration_ms=0.0,
        error=error.code,
        decision=Action.ESCALATE.value,
        reason=error.detail,
    )
    return Outcome(reply=None, error=error, told="", attempts=(attempt,), agent_id=agent_id, escalated=True)


def _escalated(error: RunFailed, outcome: Outcome) -> Escalated:
    return Escalated(
        f"agent '{outcome.agent_id}' could not answer ({error.code}); a person will answer in its place",
        cause=error.code,
        agent=outcome.agent_id,
    )


def _interrupted() -> Interrupted:
    return Interrupted("the service stopped before this request had ended")


def _stopping() -> ShuttingDown:
    return ShuttingDown("the service is stopping; send the request to another one, or again when it is back")


def _same(request: Request, asked_before: str) -> None:
    if request.fingerprint != asked_before:
        raise IdempotencyMismatch("this idempotency key was used for another request; a new request needs a new key")


def _same_stream(asked: str | None, before: str) -> None:
    if asked is not None and asked != before:
        raise StreamMismatch("Last-Event-ID belongs to another request than this one; leave it out to ask anew")


def _failure_of(record: Record) -> RunFailed:
    if isinstance(record.end, Failure):
        return run_failure(record.end.code, record.end.detail, record.end.data)
    return RunFailed("the request has not ended")


def _waited_too_long(conversation_id: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"conversation '{conversation_id}' did not become free before the request's deadline")
