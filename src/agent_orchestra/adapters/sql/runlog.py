"""The record of requests: the hot path, two transactions a request and one more where there is history to load."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy import ColumnElement, bindparam, exists, insert, null, or_, select, update

from agent_orchestra.adapters.sql import tables
from agent_orchestra.adapters.sql.rows import conversation_columns, conversation_of, message_columns, message_of
from agent_orchestra.adapters.sql.scripts import Params, Prepare, Rows, Script, Statement, decode, encode
from agent_orchestra.core.attempt import Attempt, attempt_json, attempt_of
from agent_orchestra.core.coordination import coordination_of
from agent_orchestra.core.request import (
    Answer,
    Failure,
    Generation,
    Record,
    Reply,
    Request,
    RequestStatus,
    StopReason,
    ToolCall,
    Usage,
    reply_json,
)
from agent_orchestra.core.routing import route_json, route_of
from agent_orchestra.errors import (
    ConversationBusy,
    ConversationNotFound,
    Interrupted,
    RequestNotFound,
    SequenceConflict,
    Superseded,
    run_failure,
)
from agent_orchestra.runtime.clock import new_id, now_ms
from agent_orchestra.runtime.conversations import busy
from agent_orchestra.runtime.dispatcher import Accepted, Loaded

__all__ = ["Scripts", "SqlRunLog", "conversation_missing", "failure_of", "holding", "outcome_of"]

T = TypeVar("T")

_requests, _conversations, _messages, _events = tables.requests, tables.conversations, tables.messages, tables.events
_PREFIX = "by_"
_EVENTS = {RequestStatus.CANCELLED: "request.cancelled", RequestStatus.ESCALATED: "request.escalated"}


class Scripts(Protocol):
    """Performs scripts on a database."""

    async def run(self, script: Script[T], *, writes: bool) -> T:
        """The script's result once it is committed. Raises what the script raises, or :class:`StorageUnavailable`."""
        ...

    async def close(self) -> None: ...


def _by(name: str) -> Any:
    """A parameter of a condition. Its name differs from the column's: an UPDATE may set that one too."""
    return cast("Any", bindparam(_PREFIX + name))


def holding(now: Any) -> ColumnElement[bool]:
    """That a living request holds the conversation of the row; ``now`` is a time, or a parameter for one."""
    return exists().where(
        _requests.c.tenant == _conversations.c.tenant,
        _requests.c.id == _conversations.c.turn,
        _requests.c.status == RequestStatus.RUNNING.value,
        _requests.c.lease_until_ms > now,
    )


class _Statements:
    """Every statement of this file, compiled once."""

    def __init__(self, prepare: Prepare) -> None:
        held = holding(_by("now"))
        mine = (_conversations.c.tenant == _by("tenant"), _conversations.c.id == _by("id"))
        running = (_requests.c.tenant == _by("tenant"), _requests.c.id == _by("id"))
        self.conversation = prepare(select(*conversation_columns).where(*mine))
        self.history = prepare(
            select(*message_columns)
            .where(_messages.c.tenant == _by("tenant"), _messages.c.conversation_id == _by("id"))
            .order_by(_messages.c.seq.desc())
            .limit(_by("limit"))
        )
        self.new_conversation = prepare(insert(_conversations))
        self.claim = prepare(
            update(_conversations)
            .where(*mine, _conversations.c.last_seq == _by("seq"), or_(_conversations.c.turn.is_(None), ~held))
            .values(turn=bindparam("turn"), last_seq=bindparam("last_seq"), updated_ms=bindparam("updated_ms"))
            .returning(_conversations.c.last_seq)
        )
        # Locked, on Postgres: whoever ends a request holds its conversation first, so that no two wait for each other.
        self.holder = prepare(select(_conversations.c.last_seq, _conversations.c.turn).where(*mine).with_for_update())
        self.new_message = prepare(insert(_messages))
        self.new_request = prepare(insert(_requests)).with_suffix(
            "ON CONFLICT (tenant, idempotency_key) DO NOTHING RETURNING id"
        )
        self.new_event = prepare(
            insert(_events).values({c: bindparam(c) for c in ("tenant", "type", "subject", "data", "created_ms")})
        )
        ends: dict[str, Any] = {c: bindparam(c) for c in ("status", "outcome", "answer_seq", "ended_ms")}
        self.end = prepare(
            update(_requests)
            .where(*running, _requests.c.status == RequestStatus.RUNNING)
            .values(ends)
            .returning(_requests.c.conversation_id)
        )
        frees = update(_conversations).where(*mine, _conversations.c.turn == _by("turn"))
        self.say_and_free = prepare(
            frees.values(
                turn=null(),
                last_seq=_conversations.c.last_seq + 1,
                active_agent=bindparam("active_agent"),
                updated_ms=bindparam("updated_ms"),
            ).returning(_conversations.c.last_seq)
        )
        self.free = prepare(
            frees.values(turn=null(), updated_ms=bindparam("updated_ms")).returning(_conversations.c.last_seq)
        )
        record = select(
            _requests.c.id,
            _requests.c.conversation_id,
            _requests.c.fingerprint,
            _requests.c.status,
            _requests.c.route,
            _requests.c.instance_id,
            _requests.c.outcome,
            _messages.c.content,
        ).select_from(
            _requests.outerjoin(
                _messages,
                (_messages.c.tenant == _requests.c.tenant)
                & (_messages.c.conversation_id == _requests.c.conversation_id)
                & (_messages.c.seq == _requests.c.answer_seq),
            )
        )
        self.record = prepare(record.where(*running))
        self.record_of_key = prepare(
            record.where(_requests.c.tenant == _by("tenant"), _requests.c.idempotency_key == _by("key"))
        )
        self.renew = prepare(
            update(_requests)
            .where(_requests.c.id == _by("id"), _requests.c.status == RequestStatus.RUNNING)
            .values(lease_until_ms=bindparam("lease_until_ms"))
        )
        dead = (_requests.c.status == RequestStatus.RUNNING, _requests.c.lease_until_ms <= _by("now"))
        self.dead = prepare(
            select(_requests.c.tenant, _requests.c.id, _requests.c.conversation_id)
            .where(*dead)
            .order_by(_requests.c.tenant, _requests.c.conversation_id)
        )
        self.reap = prepare(
            update(_requests)
            .where(*running, *dead)
            .values({name: given for name, given in ends.items() if name != "answer_seq"})
            .returning(_requests.c.id)
        )


class SqlRunLog:
    """Conforms to :class:`RunLog` and :class:`Leases`."""

    def __init__(self, scripts: Scripts, prepare: Prepare) -> None:
        self._scripts = scripts
        self._sql = _Statements(prepare)

    async def load(self, request: Request, *, limit: int) -> Loaded:
        return await self._scripts.run(self._load(request, limit), writes=False)

    async def accept(self, entry: Accepted) -> Record | None:
        try:
            await self._scripts.run(self._accept(entry), writes=True)
        except _KeyUsedError:
            request = entry.request
            by_key = {"by_tenant": request.tenant, "by_key": request.idempotency_key}
            return await self._scripts.run(self._find(self._sql.record_of_key, by_key), writes=False)
        return None

    async def record(
        self, tenant: str, request_id: str, conversation_id: str, end: Answer | Failure, status: RequestStatus
    ) -> None:
        script = self._record(tenant, request_id, conversation_id, end, status)
        if not await self._scripts.run(script, writes=True):
            ended = (await self.find(tenant, request_id)).end
            if isinstance(ended, Failure):
                raise run_failure(ended.code, ended.detail, ended.data)

    async def find(self, tenant: str, request_id: str) -> Record:
        by_id = {"by_tenant": tenant, "by_id": request_id}
        record = await self._scripts.run(self._find(self._sql.record, by_id), writes=False)
        if record is None:
            raise RequestNotFound(f"there is no request '{request_id}'")
        return record

    async def renew(self, request_ids: Sequence[str], until_ms: int) -> None:
        await self._scripts.run(self._renew(request_ids, until_ms), writes=True)

    async def reap(self, now_ms: int) -> int:
        return await self._scripts.run(self._reap(now_ms), writes=True)

    # --- the scripts

    def _load(self, request: Request, limit: int) -> Script[Loaded]:
        record = None
        if request.idempotency_key is not None:
            by_key = {"by_tenant": request.tenant, "by_key": request.idempotency_key}
            record = yield from self._find(self._sql.record_of_key, by_key)
        if request.conversation_id is None:
            return Loaded(conversation=None, history=(), record=record)
        mine: Params = {"by_tenant": request.tenant, "by_id": request.conversation_id}
        found = yield self._sql.conversation, mine
        if not found and record is None:
            raise conversation_missing(request.conversation_id)
        rows = yield self._sql.history, {**mine, "by_limit": limit}
        return Loaded(
            conversation=conversation_of(found[0]) if found else None,
            history=tuple(message_of(row) for row in reversed(rows)),
            record=record,
        )

    def _accept(self, entry: Accepted) -> Script[None]:
        request, conversation, now = entry.request, entry.conversation, entry.request.received_ms
        seq = conversation.last_seq + 1
        if entry.new:
            yield (
                self._sql.new_conversation,
                {
                    "tenant": request.tenant,
                    "id": conversation.id,
                    "user_id": conversation.user_id,
                    "input_policy": conversation.input_policy,
                    "context": encode(conversation.context),
                    "active_agent": None,
                    "last_seq": seq,
                    "turn": request.id,
                    "created_ms": now,
                    "updated_ms": now,
                },
            )
            yield self._event(request.tenant, "conversation.created", conversation.id, {}, now)
        else:
            yield from self._claim(entry, seq)
        inserted = yield (
            self._sql.new_request,
            {
                "tenant": request.tenant,
                "id": request.id,
                "conversation_id": conversation.id,
                "user_id": request.user_id,
                "idempotency_key": request.idempotency_key,
                "fingerprint": request.fingerprint,
                "status": RequestStatus.RUNNING,
                "context": encode(request.context),
                "route": encode(route_json(entry.route)),
                "instance_id": entry.instance_id,
                "outcome": None,
                "answer_seq": None,
                "lease_until_ms": entry.lease_until_ms,
                "created_ms": now,
                "ended_ms": None,
            },
        )
        if not inserted:
            raise _KeyUsedError
        yield (
            self._sql.new_message,
            {
                "tenant": request.tenant,
                "conversation_id": conversation.id,
                "seq": seq,
                "id": new_id(),
                "author": "user",
                "content": request.content,
                "agent_id": None,
                "request_id": request.id,
                "created_ms": now,
            },
        )
        told = {"conversation_id": conversation.id, "seq": seq, "agent": entry.route.primary.agent_id}
        yield self._event(request.tenant, "request.accepted", request.id, told, now)

    def _claim(self, entry: Accepted, seq: int) -> Script[None]:
        """Makes the conversation the request's own, if it still is as it was and nobody alive holds it."""
        request, conversation = entry.request, entry.conversation
        mine: Params = {"by_tenant": request.tenant, "by_id": conversation.id}
        claim: Params = {
            **mine,
            "by_seq": conversation.last_seq,
            "by_now": now_ms(),
            "turn": request.id,
            "last_seq": seq,
            "updated_ms": request.received_ms,
        }
        if (yield self._sql.claim, claim):
            return
        rows = yield self._sql.holder, mine
        if not rows:
            raise conversation_missing(conversation.id)
        last_seq, turn = rows[0]
        if last_seq != conversation.last_seq:
            raise SequenceConflict(f"conversation '{conversation.id}' has grown to {last_seq} messages")
        if not entry.take_over:
            raise ConversationBusy(busy(conversation.id))
        cause = Superseded("other input took the turn of this request in its conversation")
        yield from self._end(
            request.tenant, str(turn), RequestStatus.CANCELLED, _failure_json_of(cause), None, "request.cancelled"
        )
        if not (yield self._sql.claim, claim):
            raise ConversationBusy(busy(conversation.id))

    def _record(
        self, tenant: str, request_id: str, conversation_id: str, end: Answer | Failure, status: RequestStatus
    ) -> Script[bool]:
        now = now_ms()
        mine: Params = {"by_tenant": tenant, "by_id": conversation_id, "by_turn": request_id, "updated_ms": now}
        if isinstance(end, Failure):
            yield self._sql.free, mine
            event = _EVENTS.get(status, "request.failed")
            return (yield from self._end(tenant, request_id, status, outcome_of(end), None, event))
        rows = yield self._sql.say_and_free, {**mine, "active_agent": end.agent}
        if not rows:
            # Its lease ran out and its turn went to another: what it has to say comes too late.
            late = Interrupted("the request gave no sign of life for too long, and its conversation went on without it")
            yield from self._end(
                tenant, request_id, RequestStatus.FAILED, _failure_json_of(late), None, "request.failed"
            )
            return False
        seq = cast("int", rows[0][0])
        ended = yield from self._end(tenant, request_id, status, outcome_of(end), seq, "request.completed")
        if not ended:
            raise Interrupted("the request was ended by another process")
        yield (
            self._sql.new_message,
            {
                "tenant": tenant,
                "conversation_id": conversation_id,
                "seq": seq,
                "id": new_id(),
                "author": "assistant",
                "content": end.output,
                "agent_id": end.agent,
                "request_id": request_id,
                "created_ms": now,
            },
        )
        return True

    def _end(
        self,
        tenant: str,
        request_id: str,
        status: RequestStatus,
        outcome: Mapping[str, object],
        answer_seq: int | None,
        event: str,
    ) -> Script[bool]:
        """Ends a request that runs, with its event; false when it has ended already."""
        now = now_ms()
        rows = yield (
            self._sql.end,
            {
                "by_tenant": tenant,
                "by_id": request_id,
                "status": status,
                "outcome": encode(outcome),
                "answer_seq": answer_seq,
                "ended_ms": now,
            },
        )
        if rows:
            told: dict[str, object] = {"conversation_id": rows[0][0], "status": status}
            told |= {"code": outcome["code"]} if "code" in outcome else {"seq": answer_seq}
            if status is RequestStatus.ESCALATED:
                told |= cast("Mapping[str, object]", outcome["data"])
            yield self._event(tenant, event, request_id, told, now)
        return bool(rows)

    def _find(self, statement: Statement, params: Params) -> Script[Record | None]:
        rows = yield statement, params
        return _record_of(rows[0]) if rows else None

    def _renew(self, request_ids: Sequence[str], until_ms: int) -> Script[None]:
        for request_id in sorted(request_ids):
            yield self._sql.renew, {"by_id": request_id, "lease_until_ms": until_ms}

    def _reap(self, now: int) -> Script[int]:
        cause = Interrupted("the service that ran this request stopped; how far it got is not known")
        ends: Params = {
            "by_now": now,
            "status": RequestStatus.FAILED,
            "outcome": encode(_failure_json_of(cause)),
            "ended_ms": now_ms(),
        }
        rows: Rows = yield self._sql.dead, {"by_now": now}
        number = 0
        for tenant, request_id, conversation_id in cast("Sequence[tuple[str, str, str]]", rows):
            conversation: Params = {"by_tenant": tenant, "by_id": conversation_id}
            yield self._sql.holder, conversation
            if not (yield self._sql.reap, {**ends, "by_tenant": tenant, "by_id": request_id}):
                continue
            number += 1
            told = {"conversation_id": conversation_id, "status": RequestStatus.FAILED, "code": cause.code}
            yield self._event(tenant, "request.failed", request_id, told, now_ms())
            yield self._sql.free, {**conversation, "by_turn": request_id, "updated_ms": now_ms()}
        return number

    def _event(
        self, tenant: str, kind: str, subject: str, data: Mapping[str, object], now: int
    ) -> tuple[Statement, Params]:
        return (
            self._sql.new_event,
            {"tenant": tenant, "type": kind, "subject": subject, "data": encode(data), "created_ms": now},
        )


class _KeyUsedError(Exception):
    """Rolls back an acceptance whose idempotency key is on record already."""


def conversation_missing(conversation_id: str) -> ConversationNotFound:
    """The error for a conversation that is not there."""
    return ConversationNotFound(f"there is no conversation '{conversation_id}'; leave it out to begin a new one")


def outcome_of(end: Answer | Failure) -> Mapping[str, object]:
    """The end of a request as its row keeps it."""
    told = {"timings": dict(end.timings), "attempts": [attempt_json(attempt) for attempt in end.attempts]}
    if isinstance(end, Failure):
        return {"code": end.code, "detail": end.detail, "data": dict(end.data), "output": end.output, **told}
    # The output is the agent's message: it is not stored twice.
    reply = {name: value for name, value in reply_json(end.reply).items() if name != "output"}
    return {"agent": end.agent, "instance": end.instance, "reply": reply, **told}


def _reply_of(outcome: Mapping[str, Any], output: str) -> Reply:
    stored = outcome.get("reply")
    if stored is None:
        # Recorded before replies told of models.
        input_tokens, output_tokens, cost_usd = outcome["usage"]
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens, cost_usd=cost_usd)
        return Reply(output=output, value=outcome["value"], usage=usage)
    generation: Generation | None = None
    if written := stored["generation"]:
        generation = dataclasses.replace(Generation(**written), stop_reason=StopReason(written["stop_reason"]))
    return Reply(
        output=output,
        value=stored["value"],
        tool_calls=tuple(ToolCall(**call) for call in stored["tool_calls"]),
        usage=Usage(**stored["usage"]),
        generation=generation,
        # Not there in what was recorded before agents worked together.
        coordination=coordination_of(told) if (told := stored.get("coordination")) is not None else None,
    )


def _failure_json_of(error: Interrupted | Superseded) -> Mapping[str, object]:
    return outcome_of(Failure(code=error.code, detail=error.detail))


def failure_of(outcome: Mapping[str, Any]) -> Failure:
    """The failure that a row keeps."""
    return Failure(
        code=outcome["code"],
        detail=outcome["detail"],
        data=outcome["data"],
        output=outcome["output"],
        timings=outcome["timings"],
        attempts=_attempts_of(outcome),
    )


def _attempts_of(outcome: Mapping[str, Any]) -> tuple[Attempt, ...]:
    return tuple(map(attempt_of, outcome["attempts"]))


def _record_of(row: tuple[object, ...]) -> Record:
    request_id, conversation_id, print_, status, route_, instance_id, outcome_, content = cast(
        "tuple[str, str, str, str, object, str, object, str | None]", row
    )
    route = route_of(cast("dict[str, Any]", decode(route_)))
    outcome = cast("dict[str, Any] | None", decode(outcome_))
    end: Answer | Failure | None = None
    if outcome is not None:
        if status == RequestStatus.SUCCEEDED:
            end = Answer(
                request_id=request_id,
                conversation_id=conversation_id,
                # The first releases kept neither: the first agent of the route was the only one that was asked.
                agent=outcome.get("agent", route.primary.agent_id),
                instance=outcome.get("instance", instance_id),
                route=route,
                reply=_reply_of(outcome, content or ""),
                timings=outcome["timings"],
                attempts=_attempts_of(outcome),
            )
        else:
            end = failure_of(outcome)
    if isinstance(end, Answer):
        instance_id = end.instance
    elif end is not None and end.attempts:
        instance_id = end.attempts[-1].instance_id or instance_id
    return Record(
        request_id=request_id,
        conversation_id=conversation_id,
        fingerprint=print_,
        status=RequestStatus(status),
        route=route,
        instance_id=instance_id,
        end=end,
    )
