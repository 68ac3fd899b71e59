"""What a vendor's error is with us follows from its status and codes, whatever it says in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Final, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_orchestra.adapters.models.failures import Refusal, failure, kind_of, refusal_of
from agent_orchestra.core.values import faults_in
from agent_orchestra.errors import (
    ContentRefused,
    ContextTooLong,
    ModelAuthenticationFailed,
    ModelFailed,
    ModelNotFound,
    ModelOverloaded,
    ModelPermissionDenied,
    ModelQuotaExhausted,
    ModelRateLimited,
    ModelRequestInvalid,
    ModelServerError,
    ModelTimeout,
    ModelUnreachable,
    OutputInvalid,
    ProviderKeyMissing,
    StreamBroken,
    TurnsExhausted,
    by_code,
)

KEY: Final = "sk-recognisable-0123456789"
SENTENCE: Final = "A sentence about what you wrote."


def anthropic(type_: str | None) -> dict[str, Any]:
    return {"type": "error", "error": {"type": type_, "message": SENTENCE}, "request_id": "req_1"}


def openai(code: object = None, type_: str | None = "invalid_request_error", param: str | None = None) -> Any:
    return {"error": {"message": SENTENCE, "type": type_, "param": param, "code": code}}


def google(code: int, status: str, *details: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": SENTENCE, "status": status, "details": list(details)}}


def detail(type_: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{type_}", **fields}


def reason(code: str) -> dict[str, Any]:
    return detail("ErrorInfo", reason=code, domain="googleapis.com", metadata={"service": "g"})


def quota(*ids: str) -> dict[str, Any]:
    return detail("QuotaFailure", violations=[{"quotaMetric": "m", "quotaId": id_, "quotaValue": "20"} for id_ in ids])


PER_DAY: Final = quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier")
PER_MINUTE: Final = quota("GenerateContentInputTokensPerModelPerMinute-FreeTier")

#: Status (none inside a stream), body, and what it is.
ERRORS: Final[list[tuple[int | None, object, type[ModelFailed]]]] = [
    # Of Anthropic, by platform.claude.com/docs/en/api/errors.
    (400, anthropic("invalid_request_error"), ModelRequestInvalid),
    (401, anthropic("authentication_error"), ModelAuthenticationFailed),
    (402, anthropic("billing_error"), ModelQuotaExhausted),
    (403, anthropic("permission_error"), ModelPermissionDenied),
    (404, anthropic("not_found_error"), ModelNotFound),
    (413, anthropic("request_too_large"), ContextTooLong),
    (429, anthropic("rate_limit_error"), ModelRateLimited),
    (500, anthropic("api_error"), ModelServerError),
    (504, anthropic("timeout_error"), ModelTimeout),
    (529, anthropic("overloaded_error"), ModelOverloaded),
    (None, anthropic("overloaded_error"), ModelOverloaded),
    (None, anthropic("rate_limit_error"), ModelRateLimited),
    (None, anthropic("api_error"), ModelServerError),
    (None, anthropic("invalid_request_error"), ModelRequestInvalid),
    (None, anthropic("authentication_error"), ModelAuthenticationFailed),
    # A gateway's status, and the vendor's code: the code is the vendor's.
    (500, anthropic("overloaded_error"), ModelOverloaded),
    (500, anthropic("rate_limit_error"), ModelRateLimited),
    # Of OpenAI, by platform.openai.com/docs/guides/error-codes.
    (400, openai("decimal_below_min_value", param="temperature"), ModelRequestInvalid),
    (400, openai("context_length_exceeded", param="messages"), ContextTooLong),
    (400, openai("string_above_max_length"), ContextTooLong),
    (400, openai("model_not_found"), ModelNotFound),
    (404, openai("model_not_found"), ModelNotFound),
    (400, openai("content_filter"), ContentRefused),
    (400, openai("content_policy_violation"), ContentRefused),
    (400, openai("invalid_prompt"), ContentRefused),
    (401, openai("invalid_api_key"), ModelAuthenticationFailed),
    (401, openai(None), ModelAuthenticationFailed),
    (403, openai("unsupported_country_region_territory", "request_forbidden"), ModelPermissionDenied),
    (403, openai(None), ModelPermissionDenied),
    (429, openai("rate_limit_exceeded", "requests"), ModelRateLimited),
    (429, openai("insufficient_quota", "insufficient_quota"), ModelQuotaExhausted),
    (429, openai(None, "insufficient_quota"), ModelQuotaExhausted),
    (429, openai("billing_hard_limit_reached"), ModelQuotaExhausted),
    (429, openai("rate_limit_exceeded", "tokens"), ModelQuotaExhausted),
    (500, openai(None, "server_error"), ModelServerError),
    (503, openai(None, "server_error"), ModelOverloaded),
    (503, openai("slow_down", "server_error"), ModelOverloaded),
    (None, openai("server_error", None), ModelServerError),
    (None, openai("rate_limit_exceeded", None), ModelRateLimited),
    (None, openai("insufficient_quota", None), ModelQuotaExhausted),
    (None, openai("server_is_overloaded", None), ModelOverloaded),
    (None, {"code": "rate_limit_exceeded", "message": SENTENCE}, ModelRateLimited),
    (None, {"type": "error", "code": "insufficient_quota", "message": SENTENCE, "param": None}, ModelQuotaExhausted),
    # Servers of one's own: numbers for codes.
    (400, {"object": "error", "message": SENTENCE, "type": "BadRequestError", "code": 400}, ModelRequestInvalid),
    (404, {"error": {"message": SENTENCE, "type": "NotFoundError", "code": 404}}, ModelNotFound),
    (None, {"error": {"message": SENTENCE, "code": 429}}, ModelRateLimited),
    (None, {"error": {"message": SENTENCE, "code": 502}}, ModelServerError),
    (None, {"error": {"message": SENTENCE, "code": 503}}, ModelOverloaded),
    (None, {"error": {"message": SENTENCE, "code": 401}}, ModelAuthenticationFailed),
    (None, {"error": {"message": SENTENCE, "type": "BadRequestError", "code": 400}}, ModelRequestInvalid),
    (None, {"error": {"message": SENTENCE, "code": 1305}}, ModelServerError),
    (None, {"error": {"message": SENTENCE, "code": True}}, ModelServerError),
    # Of Google, by google.rpc.Code and google/rpc/error_details.proto.
    (400, google(400, "INVALID_ARGUMENT"), ModelRequestInvalid),
    (400, google(400, "INVALID_ARGUMENT", reason("API_KEY_INVALID")), ModelAuthenticationFailed),
    (400, google(400, "INVALID_ARGUMENT", reason("API_KEY_EXPIRED")), ModelAuthenticationFailed),
    (400, google(400, "INVALID_ARGUMENT", detail("BadRequest", fieldViolations=[{}])), ModelRequestInvalid),
    (400, google(400, "INVALID_ARGUMENT", reason("A_NEW_ONE")), ModelRequestInvalid),
    (400, google(400, "FAILED_PRECONDITION"), ModelPermissionDenied),
    (401, google(401, "UNAUTHENTICATED"), ModelAuthenticationFailed),
    (403, google(403, "PERMISSION_DENIED"), ModelPermissionDenied),
    (403, google(403, "PERMISSION_DENIED", reason("SERVICE_DISABLED")), ModelPermissionDenied),
    (403, google(403, "PERMISSION_DENIED", reason("BILLING_DISABLED")), ModelQuotaExhausted),
    (404, google(404, "NOT_FOUND"), ModelNotFound),
    (429, google(429, "RESOURCE_EXHAUSTED"), ModelRateLimited),
    (429, google(429, "RESOURCE_EXHAUSTED", reason("RATE_LIMIT_EXCEEDED")), ModelRateLimited),
    (429, google(429, "RESOURCE_EXHAUSTED", PER_MINUTE), ModelRateLimited),
    (429, google(429, "RESOURCE_EXHAUSTED", PER_DAY), ModelQuotaExhausted),
    (429, google(429, "RESOURCE_EXHAUSTED", quota("PerMinute", "RequestsPerDay")), ModelQuotaExhausted),
    (429, [google(429, "RESOURCE_EXHAUSTED", PER_DAY)], ModelQuotaExhausted),
    (500, google(500, "INTERNAL"), ModelServerError),
    (503, google(503, "UNAVAILABLE"), ModelOverloaded),
    (504, google(504, "DEADLINE_EXCEEDED"), ModelTimeout),
    (None, google(429, "RESOURCE_EXHAUSTED"), ModelRateLimited),
    (None, google(500, "INTERNAL"), ModelServerError),
    (None, google(503, "UNAVAILABLE"), ModelOverloaded),
    (None, [google(503, "UNAVAILABLE")], ModelOverloaded),
    # A quota of the day that names a time is believed to pass by then, as Google's free tier often does.
    (429, google(429, "RESOURCE_EXHAUSTED", PER_DAY, detail("RetryInfo", retryDelay="36s")), ModelRateLimited),
]


@pytest.mark.parametrize(("status", "body", "kind"), ERRORS, ids=[f"{error[0]}-{error[2].code}" for error in ERRORS])
def test_an_error_is_what_its_status_and_codes_say(status: int | None, body: object, kind: type[ModelFailed]) -> None:
    assert kind_of(Refusal(status=status, body=body))[0] is kind
    # What stands beside the codes decides nothing: not even a sentence that says something else.
    for sentence in ("", "rate limit", "The prompt is too long: 300000 tokens > 200000 maximum", "invalid api key"):
        told = json.loads(json.dumps(body).replace(SENTENCE, sentence))
        assert kind_of(Refusal(status=status, body=told))[0] is kind


@given(status_body=st.sampled_from([error[:2] for error in ERRORS]), sentence=st.text())
def test_the_sentence_never_decides(status_body: tuple[int | None, object], sentence: str) -> None:
    status, body = status_body
    said = _with_sentence(body, sentence)
    assert kind_of(Refusal(status=status, body=said)) == kind_of(Refusal(status=status, body=body))


def _with_sentence(body: Any, sentence: str) -> Any:
    if isinstance(body, dict):
        given = cast("dict[str, Any]", body)
        return {k: sentence if k == "message" else _with_sentence(value, sentence) for k, value in given.items()}
    if isinstance(body, list):
        return [_with_sentence(one, sentence) for one in cast("list[Any]", body)]
    return body


#: Nothing of an error says more than its status.
BODIES: Final[list[object]] = [
    None, "", "<html>nginx</html>", "slow down", b"bytes", 7, True, 1.5, [], {}, [[]], [None], ["?"], {"error": None},
    {"error": "text"}, {"error": []}, {"error": {}}, {"errors": [1]}, {"detail": "?"}, {"error": {"message": "?"}},
    {"error": {"code": None, "type": None, "status": None}}, {"error": {"code": [], "type": {}, "status": 4}},
    {"error": {"details": "?"}}, {"error": {"details": [None, 1, "?", [], {}]}},
    {"error": {"details": [{"@type": None, "reason": "API_KEY_INVALID"}]}},
    {"error": {"details": [detail("ErrorInfo", reason=None), detail("ErrorInfo")]}},
]  # fmt: skip
BY_STATUS: Final[Mapping[int | None, type[ModelFailed]]] = {
    None: ModelServerError,
    200: ModelServerError,
    302: ModelServerError,
    400: ModelRequestInvalid,
    401: ModelAuthenticationFailed,
    402: ModelQuotaExhausted,
    403: ModelPermissionDenied,
    404: ModelNotFound,
    405: ModelRequestInvalid,
    408: ModelTimeout,
    409: ModelRequestInvalid,
    413: ContextTooLong,
    415: ModelRequestInvalid,
    422: ModelRequestInvalid,
    429: ModelRateLimited,
    499: ModelRequestInvalid,
    500: ModelServerError,
    501: ModelServerError,
    502: ModelServerError,
    503: ModelOverloaded,
    504: ModelTimeout,
    520: ModelServerError,
    524: ModelServerError,
    529: ModelOverloaded,
    599: ModelServerError,
}


@pytest.mark.parametrize(("status", "kind"), BY_STATUS.items())
def test_without_codes_the_status_decides(status: int | None, kind: type[ModelFailed]) -> None:
    for body in BODIES:
        assert kind_of(Refusal(status=status, body=body)) == (kind, None, None), f"{body!r}"


def test_codes_that_say_nothing_new_leave_it_to_the_status() -> None:
    for code in ("api_error", "server_error", "internal_error", "INTERNAL", "UNKNOWN"):
        for status, kind in (
            (503, ModelOverloaded),
            (504, ModelTimeout),
            (529, ModelOverloaded),
            (500, ModelServerError),
        ):
            assert kind_of(Refusal(status=status, body=openai(code, None)))[0] is kind
        assert kind_of(Refusal(status=None, body=openai(code, None)))[0] is ModelServerError


# --- how long to wait


def waits(body: object = None, **headers: str) -> float | None:
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    return kind_of(Refusal(status=429, body=body, headers=given))[2]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0"}, 0.0),
        ({"retry_after": "0.25"}, 0.25),
        ({"retry_after": " 3 "}, 3.0),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "0.5"}, 0.0005),
        # The more exact one.
        ({"retry_after_ms": "250", "retry_after": "1"}, 0.25),
        ({"retry_after_ms": "soon", "retry_after": "2"}, 2.0),
        ({"retry_after_ms": "-1", "retry_after": "2"}, 2.0),
        ({"retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry_after": "-1"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "1e999"}, None),
        ({"retry_after": ""}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "RETRY-AFTER-XXX"}, None),
        ({"retry_after": "Mon, 99 Foo 2026 99:99:99 GMT"}, None),
        ({"retry_after": "Mon, 01 Jan 2026 00:00:00 +99999999999999999999"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_headers_say_how_long_to_wait(headers: Mapping[str, str], seconds: float | None) -> None:
    assert waits(**headers) == seconds


def test_a_date_says_how_long_to_wait() -> None:
    then = datetime.now(UTC) + timedelta(seconds=90)
    seconds = waits(retry_after=format_datetime(then, usegmt=True))
    assert seconds is not None
    assert 80 < seconds <= 90
    # In another zone, and without one, which is UTC's.
    east = then.astimezone(tz=None).isoformat()
    assert waits(retry_after=east) is None
    naive = waits(retry_after=then.strftime("%a, %d %b %Y %H:%M:%S -0000"))
    assert naive is not None
    assert 80 < naive <= 90


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        ("36s", 36.0),
        ("0s", 0.0),
        ("41.337171639s", 41.337171639),
        ("0.000000001s", 1e-9),
        ("36", None),
        ("s", None),
        ("-1s", None),
        ("infs", None),
        ("nans", None),
        ("1m", None),
        ("", None),
        (36, None),
        (None, None),
        ({"seconds": 36}, None),
    ],
    ids=repr,
)
def test_google_says_in_the_body_how_long_to_wait(delay: object, seconds: float | None) -> None:
    body = google(429, "RESOURCE_EXHAUSTED", PER_MINUTE, detail("Help"), detail("RetryInfo", retryDelay=delay))
    for given_body in (body, [body], body["error"]):
        assert kind_of(Refusal(status=429, body=given_body)) == (ModelRateLimited, "RESOURCE_EXHAUSTED", seconds)
    # A header is what the nearest server says.
    assert waits(body, retry_after="2") == 2.0


def test_a_time_to_wait_makes_a_limit_one_that_passes() -> None:
    for body in (openai("rate_limit_exceeded", "tokens"), google(429, "RESOURCE_EXHAUSTED", PER_DAY)):
        assert kind_of(Refusal(status=429, body=body))[0] is ModelQuotaExhausted
        kind, _, delay = kind_of(Refusal(status=429, body=body, headers={"retry-after": "5"}))
        assert (kind, delay) == (ModelRateLimited, 5.0)
    # Credit does not come by waiting, whatever the header says.
    spent = Refusal(status=429, body=openai("insufficient_quota"), headers={"retry-after": "5"})
    assert kind_of(spent)[0] is ModelQuotaExhausted


@given(text=st.text() | st.floats().map(str) | st.integers().map(str) | st.datetimes().map(format_datetime))
@example("9" * 5_000)
@example("Mon, 01 Jan 99999 00:00:00 GMT")
@example("Mon, 01 Jan 2026 00:00:00 -2399")
def test_no_header_is_too_strange(text: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        delay = kind_of(Refusal(status=429, headers={name: text}))[2]
        assert delay is None or 0 <= delay < float("inf")


# --- whatever comes


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "code", "status", "type", "details", "@type", "violations", "reason", "message"])
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
_DETAIL: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "reason": JSON,
    "retryDelay": JSON | st.text(max_size=5).map("{}s".format),
    "violations": JSON | st.lists(JSON | st.dictionaries(st.just("quotaId"), JSON)),
}
_KIND: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "@type": st.sampled_from(["a/google.rpc.ErrorInfo", "a/google.rpc.RetryInfo", "a/google.rpc.QuotaFailure"])
}
_ERROR: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "code": JSON,
    "status": JSON | st.just("RESOURCE_EXHAUSTED"),
    "type": JSON,
    "details": st.lists(st.fixed_dictionaries(_KIND, optional=_DETAIL), max_size=3),
}
BODY: Final[st.SearchStrategy[Any]] = JSON | st.builds(dict, error=st.fixed_dictionaries({}, optional=_ERROR))


@given(status=st.none() | st.integers(100, 599), body=BODY)
@example(429, google(429, "RESOURCE_EXHAUSTED", detail("QuotaFailure", violations=None)))
@example(429, google(429, "RESOURCE_EXHAUSTED", detail("QuotaFailure", violations=["PerDay", None, {"quotaId": []}])))
@example(400, {"error": {"code": "\ud800", "message": "\ud800\0"}})
def test_nothing_that_comes_breaks_it(status: int | None, body: object) -> None:
    kind, code, delay = kind_of(Refusal(status=status, body=body))
    assert issubclass(kind, ModelFailed)
    assert code is None or isinstance(code, str)
    assert delay is None or 0 <= delay < float("inf")
    error = made(status, body)
    assert type(error) is kind
    # It can be put on record, whatever a vendor has sent.
    assert not list(faults_in("data", json.loads(json.dumps(dict(error.data)))))
    assert not list(faults_in("detail", error.detail))


def made(status: int | None, body: object, headers: Mapping[str, str] | None = None) -> ModelFailed:
    return failure(
        Refusal(status=status, body=body, headers=headers or {}),
        provider="openai",
        model="gpt",
        key_hint="OPENAI_API_KEY or providers.openai.api_key",
        key=KEY,
        vendor_request_id="req_1",
    )


# --- what an error tells


def test_an_error_carries_what_is_known() -> None:
    error = made(429, openai("rate_limit_exceeded", "requests"), {"retry-after": "1.5"})
    assert type(error) is ModelRateLimited
    assert dict(error.data) == {
        "provider": "openai",
        "model": "gpt",
        "status": 429,
        "vendor_code": "rate_limit_exceeded",
        "retry_after": 1.5,
        "vendor_request_id": "req_1",
    }
    assert error.detail == ("openai has limited the rate of 'gpt' (429, rate_limit_exceeded); it asks to wait 1.5 s")
    assert error.retry_after == 1.5


def test_what_is_not_known_is_left_out() -> None:
    error = refusal_of(ModelTimeout, provider="google", model="gemini")
    assert dict(error.data) == {"provider": "google", "model": "gemini"}
    assert error.detail == "'gemini' of google did not answer in time"
    assert error.retry_after is None


def test_who_has_no_key_that_counts_is_told_where_to_set_it() -> None:
    assert "check OPENAI_API_KEY or providers.openai.api_key" in made(401, None).detail


def test_every_failure_of_a_vendor_has_a_sentence_of_ours() -> None:
    others = {ModelFailed, OutputInvalid, ProviderKeyMissing, TurnsExhausted}
    for kind in set(by_code(ModelFailed).values()) - others:
        error = refusal_of(kind, provider="anthropic", model="{model}", key_hint="HINT")
        assert type(error) is kind
        assert "anthropic" in error.detail
        assert "{provider}" not in error.detail


def test_which_failures_may_pass_and_which_another_model_may_mend() -> None:
    told = {kind: (kind.retryable, kind.elsewhere) for kind in by_code(ModelFailed).values()}
    assert {kind for kind, (retryable, _) in told.items() if retryable} == {
        ModelRateLimited,
        ModelOverloaded,
        ModelServerError,
        ModelTimeout,
        ModelUnreachable,
        StreamBroken,
    }
    stays_here = {ModelFailed, ModelRequestInvalid, ContentRefused, OutputInvalid, TurnsExhausted}
    assert {kind for kind, (_, elsewhere) in told.items() if not elsewhere} == stays_here


@pytest.mark.parametrize("status", [None, *BY_STATUS])
def test_a_sentence_of_the_vendor_is_told_only_of_a_request_that_is_invalid(status: int | None) -> None:
    sentence = "Unsupported value: mellifluous."
    for type_ in (None, "invalid_request_error"):
        error = made(status, {"error": {"message": sentence, "type": type_}})
        invalid = type(error) is ModelRequestInvalid
        assert ("mellifluous" in error.detail) is invalid
        assert error.data.get("vendor_message") == (sentence if invalid else None)


@pytest.mark.parametrize(
    "place",
    [
        {"message": "the key KEY is wrong"},
        {"message": "KEY"},
        {"message": "(KEY)KEY"},
        {"message": "?", "code": "the key KEY is wrong"},
        {"message": "?", "code": "KEY"},
        {"message": "?", "type": "KEY"},
        {"message": "?", "status": "a KEY"},
        {"message": "?", "details": [reason("KEY")]},
        {"message": "?", "details": [reason("the KEY")]},
        {"message": "?", "details": [detail("RetryInfo", retryDelay="KEYs")]},
        {"message": "?", "param": "KEY", "KEY": "KEY"},
        {"message": ["KEY"], "code": ["KEY"], "type": {"KEY": "KEY"}},
    ],
    ids=json.dumps,
)
def test_the_key_is_told_nowhere(place: Mapping[str, Any]) -> None:
    error_body = json.loads(json.dumps(place).replace("KEY", KEY))
    for status in (None, 400, 401, 403, 404, 422, 429, 500):
        for body in ({"error": error_body}, error_body, [{"error": error_body}], {"error": KEY}, KEY):
            error = made(status, body)
            assert KEY not in f"{error} {error!r} {error.detail} {dict(error.data)} {vars(error)}"


def test_what_looks_like_a_key_is_not_told() -> None:
    for other in ("sk-proj-abcdefgh12345678", "AIzaSyA-1234567890abcdef", "sk-ant-api03-abc_DEF-123456"):
        error = made(400, {"error": {"message": f"Incorrect API key provided: {other}."}})
        assert other not in error.detail
        assert "Incorrect API key provided" in error.detail


def test_a_code_is_one_word() -> None:
    # What else stands where a code should be is a sentence, and quotes what it likes.
    for code in ("A sentence.", "two words", "<html>", "", " ", "a\nb", "a\0b", "x" * 1_000, "Not Found"):
        error = made(400, {"error": {"code": code, "message": "?"}})
        assert "vendor_code" not in error.data
        assert error.detail == "openai does not take this request for 'gpt' (400): ?"
    assert made(400, openai("decimal_below_min_value")).data["vendor_code"] == "decimal_below_min_value"


def test_a_long_sentence_is_cut() -> None:
    error = made(400, {"error": {"message": "word " * 10_000}})
    assert len(error.detail) < 1_000
