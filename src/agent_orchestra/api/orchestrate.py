"""The one way through, over HTTP: ask, read what is on record, listen."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from agent_orchestra.api import problems, streams
from agent_orchestra.api.auth import Caller, Reader, Runner
from agent_orchestra.api.problems import described
from agent_orchestra.api.wire import (
    AnswerOut,
    EscalatedOut,
    IdempotencyKey,
    LastEventId,
    OrchestrateBody,
    ProcessBody,
    RequestOut,
    request_out,
)
from agent_orchestra.core.request import RequestStatus, answer_json
from agent_orchestra.core.stream import END
from agent_orchestra.definitions import Id
from agent_orchestra.errors import Escalated, OrchestraError, StreamMismatch
from agent_orchestra.runtime.orchestra import make_request

__all__ = ["ANSWERED", "answered", "router"]

router = APIRouter(tags=["orchestrate"])

ANSWERED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": AnswerOut,
        "description": "The answer, on record. With 'Accept: text/event-stream', the events of the same call.",
        "content": streams.DESCRIBED,
    },
    202: {
        "model": EscalatedOut,
        "description": "No agent could answer, and a person will; then the answer is at Location.",
    },
    204: {"description": "The stream that Last-Event-ID names has been told to its end."},
    **described(400, 404, 409, 413, 415, 422, 502, 503, 504, 507),
}


@router.post("/v1/orchestrate", responses=ANSWERED, response_model=None)
async def orchestrate(
    body: OrchestrateBody,
    request: Request,
    caller: Runner,
    idempotency_key: IdempotencyKey = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Routes the content to an agent and gives its answer.

    With ``agents`` several work on it; with a ``strategy`` alone those that the router names, its second choices too.
    """
    return await answered(caller, request, body, body.conversation_id, idempotency_key, last_event_id)


@router.get(
    "/v1/requests/{request_id}",
    response_model=RequestOut,
    responses=described(404, 422, 503),
)
async def get_request(request_id: Id, caller: Reader) -> RequestOut:
    """What is on record of a request."""
    return request_out(await caller.orchestra.get_request(request_id, tenant=caller.tenant))


@router.get(
    "/v1/requests/{request_id}/events",
    response_model=None,
    responses={
        200: {"description": "The events of the request, as they come.", "content": streams.DESCRIBED},
        204: {"description": "The stream that Last-Event-ID names has been told to its end."},
        **described(404, 409, 422, 503),
    },
)
async def get_events(request_id: Id, caller: Reader, last_event_id: LastEventId = None) -> Response:
    """The events of a request, from its beginning or after ``Last-Event-ID``, also when it has ended long ago."""
    after = 0
    if last_event_id is not None:
        of, after = streams.parse_event_id(last_event_id)
        if of != request_id:
            raise StreamMismatch(f"Last-Event-ID belongs to request '{of}', not to '{request_id}'")
    return await _streamed(caller, request_id, after, None, {})


async def answered(
    caller: Caller,
    http: Request,
    body: ProcessBody,
    conversation_id: str | None,
    idempotency_key: str | None,
    last_event_id: str | None,
) -> Response:
    """Answers, as a document or as a stream, whichever the caller accepts."""
    began = time.perf_counter()
    streamed = streams.MEDIA_TYPE in http.headers.get("accept", "")
    # In a thread: the first expression loads what compiles them.
    plan = await asyncio.to_thread(body.plan) if isinstance(body, OrchestrateBody) and body.together else None
    request = make_request(
        body.content,
        tenant=caller.tenant,
        conversation_id=conversation_id,
        user_id=body.user_id,
        context=body.context,
        attachments=[attachment.to_attachment() for attachment in body.attachments],
        capability=body.capability,
        agent_id=body.agent_id,
        plan=plan,
        idempotency_key=idempotency_key,
        streamed=streamed,
    )
    if last_event_id is not None and streamed:
        request_id, after = streams.parse_event_id(last_event_id)
        return await _streamed(caller, request_id, after, request.fingerprint, {})
    submitted = await caller.orchestra.submit(request)
    headers = {"X-Request-ID": submitted.request_id}
    if submitted.request_id != request.id:
        headers["Idempotent-Replayed"] = "true"
    if streamed:
        return await _streamed(caller, submitted.request_id, 0, None, headers)
    try:
        answer = await caller.orchestra.answer(caller.tenant, submitted)
    except Escalated as error:
        return await _escalated(caller, submitted.request_id, error, headers)
    except OrchestraError as error:
        # It is on record, and this is its number.
        return problems.response(error, headers, request_id=submitted.request_id)
    if submitted.running is not None:
        total = (time.perf_counter() - began) * 1_000
        headers["Server-Timing"] = f"record;dur={submitted.running.record_ms}, total;dur={total:.3f}"
    return _json(answer_json(answer), headers)


async def _streamed(
    caller: Caller,
    request_id: str,
    after: int,
    asked: str | None,
    headers: dict[str, str],
) -> Response:
    events = await caller.orchestra.follow(request_id, after=after, asked=asked, tenant=caller.tenant)
    if after == END:
        return Response(status_code=204)
    return streams.event_response(request_id, events, {"X-Request-ID": request_id, **headers})


async def _escalated(caller: Caller, request_id: str, error: Escalated, headers: dict[str, str]) -> Response:
    record = await caller.orchestra.get_request(request_id, tenant=caller.tenant)
    document = EscalatedOut(
        request_id=request_id,
        conversation_id=record.conversation_id,
        status=RequestStatus.ESCALATED,
        code=error.code,
        detail=error.detail,
    )
    return _json(document.model_dump(), {**headers, "Location": f"/v1/requests/{request_id}"}, status_code=202)


def _json(document: Mapping[str, Any], headers: dict[str, str], *, status_code: int = 200) -> Response:
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return Response(body, status_code=status_code, headers=headers, media_type="application/json")
