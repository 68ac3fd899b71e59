"""What a vendor's error means, decided by its status and its codes, never by what it says in words.

Sources: Anthropic, "Errors" (platform.claude.com/docs/en/api/errors); OpenAI, "Error codes"
(platform.openai.com/docs/guides/error-codes); Google, ``google.rpc.Code`` with ``ErrorInfo``, ``RetryInfo`` and
``QuotaFailure`` of ``google/rpc/error_details.proto``; and recorded traffic, where these are silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from agent_orchestra.adapters.models.limiter import delay_of, until
from agent_orchestra.core.values import cleaned
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
    StreamBroken,
)

__all__ = ["Refusal", "failure", "kind_of", "refusal_of"]

_CODES: Final[Mapping[type[ModelFailed], str]] = {
    ModelAuthenticationFailed: """
        invalid_api_key authentication_error account_deactivated invalid_authentication
        API_KEY_INVALID API_KEY_EXPIRED ACCESS_TOKEN_EXPIRED ACCESS_TOKEN_TYPE_UNSUPPORTED CREDENTIALS_MISSING
        ACCOUNT_STATE_INVALID UNAUTHENTICATED""",
    ModelPermissionDenied: """
        permission_error permission_denied insufficient_permissions unsupported_country_region_territory missing_scope
        PERMISSION_DENIED API_KEY_SERVICE_BLOCKED API_KEY_HTTP_REFERRER_BLOCKED API_KEY_IP_ADDRESS_BLOCKED
        API_KEY_ANDROID_APP_BLOCKED API_KEY_IOS_APP_BLOCKED SERVICE_DISABLED CONSUMER_SUSPENDED CONSUMER_INVALID
        USER_PROJECT_DENIED ACCESS_TOKEN_SCOPE_INSUFFICIENT SECURITY_POLICY_VIOLATED LOCATION_POLICY_VIOLATED
        FAILED_PRECONDITION""",
    ModelNotFound: "model_not_found not_found_error deployment_not_found NOT_FOUND",
    ModelQuotaExhausted: """
        insufficient_quota billing_error billing_hard_limit_reached billing_not_active credit_balance_exhausted
        organization_spend_limit_exceeded project_spend_limit_exceeded organization_usage_limit_exceeded
        BILLING_DISABLED RESOURCE_QUOTA_EXCEEDED""",
    ContextTooLong: """
        context_length_exceeded exceed_context_size_error request_too_large string_above_max_length""",
    ModelRequestInvalid: "not_supported_error",
    ContentRefused: """
        content_filter content_policy_violation moderation_blocked invalid_prompt cyber_policy
        SAFETY PROHIBITED_CONTENT BLOCKLIST RECITATION SPII""",
    ModelOverloaded: "overloaded_error server_is_overloaded engine_overloaded slow_down overloaded UNAVAILABLE",
    ModelRateLimited: "rate_limit_error rate_limit_exceeded too_many_requests RESOURCE_EXHAUSTED RATE_LIMIT_EXCEEDED",
    ModelTimeout: "timeout_error DEADLINE_EXCEEDED",
    ModelServerError: "api_error server_error internal_error INTERNAL UNKNOWN DATA_LOSS",
}
_BY_CODE: Final = {code: kind for kind, codes in _CODES.items() for code in codes.split()}
_BY_STATUS: Final[Mapping[int, type[ModelFailed]]] = {
    401: ModelAuthenticationFailed,
    402: ModelQuotaExhausted,
    403: ModelPermissionDenied,
    404: ModelNotFound,
    408: ModelTimeout,
    413: ContextTooLong,
    429: ModelRateLimited,
    503: ModelOverloaded,
    504: ModelTimeout,
    529: ModelOverloaded,
}
#: Codes that only say again what the status says; a more exact one beside them wins, and so does the status.
_VAGUE: Final = frozenset({"api_error", "server_error", "internal_error", "INTERNAL", "UNKNOWN", "FAILED_PRECONDITION"})


#: What begins as keys do, and what is long and has digits among its letters.
_LIKE_A_KEY: Final = re.compile(
    r"\b(?:sk|pk|rk|gsk|hf|xai|AIza|ya29)[-_.A-Za-z0-9*]{8,}|\b(?=[\w.*-]*\d)(?=[\w.*-]*[A-Za-z])[\w.*-]{20,}"
)
_MOST_SAID: Final = 500
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A vendor's error, as it came: ``status`` of HTTP (none inside a stream), ``body`` as JSON, lower-case headers."""

    status: int | None
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def kind_of(refusal: Refusal) -> tuple[type[ModelFailed], str | None, float | None]:
    """What an error is, the code that says so, and the seconds that the vendor asks us to wait."""
    error = _error_in(refusal.body)
    codes = list(_codes_in(error))
    delay = delay_of(refusal.headers)
    if delay is None:
        delay = _delay_in(error)
    kind, code = _decided(refusal.status or _status_in(error), codes)
    if kind is ModelRateLimited and delay is None and _never_mends(refusal, error):
        kind = ModelQuotaExhausted
    return kind, code, delay


def failure(
    refusal: Refusal,
    *,
    provider: str,
    model: str,
    key_hint: str,
    key: str | None = None,
    vendor_request_id: str | None = None,
) -> ModelFailed:
    """The error of ours for a vendor's. ``key_hint`` says where the key comes from; the ``key`` is never told."""
    kind, code, delay = kind_of(refusal)
    if code and key and key in code:
        code = None
    # Only of a request that is wrong does nobody but the vendor know what is wrong with it.
    said = _sentence(refusal.body, key) if kind is ModelRequestInvalid else None
    return refusal_of(
        kind,
        provider=provider,
        model=model,
        key_hint=key_hint,
        status=refusal.status,
        vendor_code=code,
        retry_after=delay,
        vendor_message=said,
        vendor_request_id=vendor_request_id,
    )


def _sentence(body: object, key: str | None) -> str | None:
    """What the vendor says, without what is or looks like a key."""
    error = _error_in(body)
    said = next((error[name] for name in ("message", "error", "detail") if isinstance(error.get(name), str)), None)
    if not isinstance(said, str) or not said.strip():
        return None
    if key:
        said = said.replace(key, "[key]")
    return cleaned(_LIKE_A_KEY.sub("[key]", said))[:_MOST_SAID]


def refusal_of(
    kind: type[ModelFailed], *, provider: str, model: str, key_hint: str = "", **data: str | int | float | None
) -> ModelFailed:
    """An error with its sentence; what of the data is none is left out."""
    known = {name: value for name, value in data.items() if value is not None}
    sentence = _SENTENCES[kind].format(provider=provider, model=model, key=key_hint)
    told = [str(known[name]) for name in ("status", "vendor_code") if name in known]
    if told:
        sentence = f"{sentence} ({', '.join(told)})"
    if "vendor_message" in known:
        sentence = f"{sentence}: {known['vendor_message']}"
    if "retry_after" in known:
        sentence = f"{sentence}; it asks to wait {known['retry_after']:g} s"
    return kind(sentence, provider=provider, model=model, **known)


_SENTENCES: Final[Mapping[type[ModelFailed], str]] = {
    ModelAuthenticationFailed: "{provider} does not accept the key that is set; check {key}",
    ModelPermissionDenied: "the key for {provider} may not do this with '{model}'; see its permissions and its region",
    ModelNotFound: "{provider} has no model '{model}' for this key; check its name, and providers.{provider}.base_url",
    ModelRequestInvalid: "{provider} does not take this request for '{model}'",
    ContextTooLong: "the request is longer than '{model}' of {provider} can read; shorten it, or choose another model",
    ContentRefused: "'{model}' of {provider} refused to answer this",
    ModelRateLimited: "{provider} has limited the rate of '{model}'",
    ModelQuotaExhausted: "the quota of this key at {provider} does not admit this request to '{model}', and waiting "
    "does not change that; raise the quota, or send less",
    ModelOverloaded: "{provider} has no capacity for '{model}' now",
    ModelServerError: "{provider} failed on '{model}'",
    ModelTimeout: "'{model}' of {provider} did not answer in time",
    ModelUnreachable: "{provider} cannot be reached for '{model}'",
    StreamBroken: "the answer of '{model}' of {provider} broke off before its end",
}


def _decided(status: int | None, codes: Sequence[str]) -> tuple[type[ModelFailed], str | None]:
    exact = next((code for code in codes if code in _BY_CODE and code not in _VAGUE), None)
    if exact is not None:
        return _BY_CODE[exact], exact
    code = codes[0] if codes else None
    if status is not None and status in _BY_STATUS:
        return _BY_STATUS[status], code
    vague = next((code for code in codes if code in _BY_CODE), None)
    if vague is not None and (status is None or status < 400 or status >= 500 or vague == "FAILED_PRECONDITION"):
        return _BY_CODE[vague], vague
    if status is not None and 400 <= status < 500:
        return ModelRequestInvalid, code
    if code in ("invalid_request_error", "INVALID_ARGUMENT"):
        return ModelRequestInvalid, code
    return ModelServerError, code


def _error_in(body: object) -> Mapping[str, Any]:
    """The object that tells of the error: vendors wrap it in ``error``, and Google also in a list."""
    if isinstance(body, Sequence) and not isinstance(body, str | bytes) and body:
        body = cast("Sequence[object]", body)[0]
    if not isinstance(body, Mapping):
        return {}
    inner = cast("Mapping[str, Any]", body).get("error")
    return cast("Mapping[str, Any]", inner if isinstance(inner, Mapping) else body)


def _codes_in(error: Mapping[str, Any]) -> Iterator[str]:
    """The most exact first: the reason of a detail, the code, the status, the type."""
    given: list[object] = [detail.get("reason") for detail in _details(error, "ErrorInfo")]
    given.extend(error.get(name) for name in ("code", "status", "type"))
    for code in given:
        # What is no word may be a sentence, which may quote anything.
        if isinstance(code, str) and _CODE.fullmatch(code) and code != "error" and not code.isdecimal():
            yield code


def _details(error: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    if isinstance(details, Sequence) and not isinstance(details, str):
        for detail in cast("Sequence[object]", details):
            if isinstance(detail, Mapping):
                found = cast("Mapping[str, Any]", detail)
                if str(found.get("@type", "")).endswith(f"google.rpc.{kind}"):
                    yield found


def _delay_in(error: Mapping[str, Any]) -> float | None:
    """The ``retryDelay`` of Google's ``RetryInfo``: seconds with an s behind, as protobuf writes durations in JSON."""
    for detail in _details(error, "RetryInfo"):
        given = detail.get("retryDelay")
        if isinstance(given, str) and given.endswith("s"):
            try:
                seconds = float(given[:-1])
            except ValueError:
                continue
            if 0 <= seconds < float("inf"):
                return seconds
    return None


def _status_in(error: Mapping[str, Any]) -> int | None:
    """The status that servers such as vLLM put into ``code`` where the stream has one of its own."""
    code = error.get("code")
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    return code if isinstance(code, int) and 400 <= code < 600 else None


def _never_mends(refusal: Refusal, error: Mapping[str, Any]) -> bool:
    """Whether a refusal for the rate, without a time to wait, is one that waiting does not mend.

    OpenAI refuses a request that is larger than the limit of tokens a minute with the code of a rate limit and the type
    ``tokens``; it names no time, since there is none, and the tokens of the minute are all there. Google names the
    quota: one by the day is used up for today.
    """
    if error.get("type") == "tokens":
        # Inside a stream there are no headers that could name a time.
        return refusal.status is not None and not until(refusal.headers.get("x-ratelimit-reset-tokens", ""))
    return any("PerDay" in quota for quota in _quotas_in(error))


def _quotas_in(error: Mapping[str, Any]) -> Iterator[str]:
    for detail in _details(error, "QuotaFailure"):
        violations = detail.get("violations")
        if isinstance(violations, Sequence) and not isinstance(violations, str):
            for violation in cast("Sequence[object]", violations):
                if isinstance(violation, Mapping):
                    yield str(cast("Mapping[str, Any]", violation).get("quotaId", ""))
