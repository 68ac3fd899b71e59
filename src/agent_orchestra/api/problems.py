"""How errors look over HTTP: problem documents (RFC 9457), and the one table of their statuses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from agent_orchestra import errors
from agent_orchestra.errors import Fault, OrchestraError

__all__ = ["MEDIA_TYPE", "Problem", "described", "install", "plain_response", "problem", "response", "told_problem"]

MEDIA_TYPE: Final = "application/problem+json"

#: The first class of an error's ancestry that stands here gives its status.
_STATUS: Final[Mapping[type[OrchestraError], int]] = {
    errors.BodyTooLarge: 413,
    errors.InvalidInput: 422,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.EncoderFailed: 503,
    errors.StorageFull: 507,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
    errors.AttachmentNotSupported: 409,
    errors.ContextTooLong: 422,
    errors.ContentRefused: 422,
    errors.ProviderKeyMissing: 503,
    errors.ModelRateLimited: 503,
    errors.ModelOverloaded: 503,
    errors.ModelTimeout: 504,
    errors.Superseded: 409,
    # A stream tells it as its failure; a plain call gives it as what it is.
    errors.Escalated: 202,
    errors.Interrupted: 503,
    errors.RunFailed: 502,
    errors.OrchestraError: 500,
}
_TITLES: Final[Mapping[int, str]] = {
    202: "Accepted",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    507: "Insufficient Storage",
}
_CODES: Final[Mapping[int, str]] = {
    400: "malformed_body",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
}


class FaultOut(BaseModel):
    path: str
    message: str


class Problem(BaseModel):
    """What went wrong. Programs decide by ``code``; ``detail`` is for people and may change."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: str
    """A URI of the kind of problem, made from the code."""
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    """Whether the same request may succeed later."""
    errors: list[FaultOut] = Field(default_factory=list[FaultOut])
    """Each thing that is wrong with the input, with its place."""


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an operation that can end in these problems."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {s: {"description": _TITLES[s], "content": {MEDIA_TYPE: {"schema": schema}}} for s in statuses}


def problem(error: OrchestraError) -> dict[str, Any]:
    """The document of an error."""
    status = _status(type(error))
    faults = error.faults if isinstance(error, errors.InvalidInput) else ()
    return _document(status, error.code, error.detail, retryable=error.retryable, faults=faults, more=error.data)


def _status(kind: type[OrchestraError]) -> int:
    return next(_STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in _STATUS)


def told_problem(code: str, detail: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a failure that a stream tells: the same that the plain call gives."""
    kind = errors.by_code(OrchestraError).get(code, errors.RunFailed)
    return _document(_status(kind), kind.code, detail, retryable=kind.retryable, more=data)


def response(error: OrchestraError, more: Mapping[str, str] | None = None, **members: str) -> Response:
    """The answer for an error, with the headers that belong to it; ``members`` join the document."""
    headers = dict(more or {})
    if isinstance(error, errors.Unavailable | errors.RunFailed) and error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="agent-orchestra"'
    return _response({**members, **problem(error)}, headers)


def plain_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer for what never reached the orchestra."""
    code = _CODES.get(status, "http_error")
    return _response(_document(status, code, detail, retryable=status >= 500), headers or {})


def install(app: FastAPI) -> None:
    """Has every error of the app answered by a problem document."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, OrchestraError)
        return response(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _invalid(error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            allowed = ", ".join(_methods_at(app, request.scope["path"]))
            return plain_response(405, f"this path answers to {allowed}", {"Allow": allowed})
        return plain_response(error.status_code, str(error.detail), error.headers)

    app.add_exception_handler(OrchestraError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _methods_at(app: FastAPI, path: str) -> list[str]:
    """Every method that a path answers to; a route knows only its own."""
    paths: Mapping[str, Mapping[str, Any]] = app.openapi()["paths"]
    fitting = [paths[path]] if path in paths else [paths[t] for t in paths if _fits(t, path)]
    return sorted({method.upper() for operations in fitting for method in operations})


def _fits(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template)), path) is not None


def _invalid(error: RequestValidationError) -> Response:
    found: list[Mapping[str, Any]] = list(error.errors())
    if any(e["type"] == "json_invalid" for e in found):
        context = found[0].get("ctx", {})
        return plain_response(400, f"the body is not JSON: {context.get('error', 'it cannot be read')}")
    faults: list[Fault] = []
    for e in found:
        # Where a body may have one of several shapes, the name of the shape is no part of the place.
        place = [part for part in map(str, e["loc"]) if not part.endswith("Body")]
        path = ".".join(place[1:] if place[0] == "body" else place)
        message = "is not known here" if e["type"] == "extra_forbidden" else str(e["msg"])
        faults.append(Fault(path=path, message=message))
    return response(errors.InvalidInput("; ".join(map(str, faults)), faults=tuple(faults)))


def _document(
    status: int,
    code: str,
    detail: str,
    *,
    retryable: bool,
    faults: tuple[Fault, ...] = (),
    more: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    return {
        **(more or {}),
        "type": f"urn:agent-orchestra:problem:{code}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
        "errors": [{"path": fault.path, "message": fault.message} for fault in faults],
    }


def _response(document: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    body = json.dumps(document, ensure_ascii=True)
    return Response(body, status_code=document["status"], headers=dict(headers), media_type=MEDIA_TYPE)
