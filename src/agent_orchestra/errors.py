"""Every error that Agent Orchestra raises, one class per decision that its catcher makes.

    OrchestraError
    ├── InvalidInput                  the caller must change what it sends
    │   ├── InvalidAgent
    │   └── BodyTooLarge
    ├── Unauthenticated               no key, or one that is not known
    ├── Forbidden                     a known key without the scope
    ├── NotFound                      the thing that was named is not there
    │   ├── AgentNotFound · ConversationNotFound · RequestNotFound · KeyNotFound · DecisionNotFound
    │   └── NoAgentMatches            no agent was named, and none fits
    ├── Conflict                      the thing is in another state than the caller thought
    │   ├── AgentExists · AgentDisabled · ConversationExists · ConversationBusy · SequenceConflict
    │   └── IdempotencyMismatch · StreamMismatch · NothingToRollBack · NotEscalated
    ├── Unavailable                   the same call may succeed later
    │   ├── Overloaded · NoInstanceAvailable · ShuttingDown
    │   └── StorageUnavailable ── StorageFull
    ├── EncoderFailed                 no vectors: what compares words alone carries on
    ├── FitFailed                     nothing new was learned; what decided before goes on deciding
    ├── RunFailed                     accepted and recorded, and it did not succeed
    │   ├── AgentFailed ── AgentUnavailable
    │   ├── DeadlineExceeded · Interrupted · Superseded · Escalated · EscalationRejected
    │   ├── CoordinationFailed · ExpressionFailed
    │   ├── AttachmentNotSupported    what answers cannot take such a part
    │   └── ModelFailed               a model, or its vendor, did not answer
    │       ├── ProviderKeyMissing · ModelAuthenticationFailed · ModelPermissionDenied · ModelNotFound
    │       ├── ModelRequestInvalid · ContextTooLong · ContentRefused · OutputInvalid · TurnsExhausted
    │       ├── ModelRateLimited · ModelQuotaExhausted · ModelOverloaded
    │       └── ModelServerError · ModelTimeout · ModelUnreachable · StreamBroken
    └── ConfigurationError            the operator must change something before a start
        └── ForeignDatabase · DatabaseTooNew · MissingExtra · AddressInUse · KeysRequired

An error carries a sentence for a person (``detail``), a stable ``code`` for programs, whether the same call
may succeed later (``retryable``), and small JSON values (``data``). It never carries a secret or a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

__all__ = [
    "AddressInUse",
    "AgentDisabled",
    "AgentExists",
    "AgentFailed",
    "AgentNotFound",
    "AgentUnavailable",
    "AttachmentNotSupported",
    "BodyTooLarge",
    "ConfigurationError",
    "Conflict",
    "ContentRefused",
    "ContextTooLong",
    "ConversationBusy",
    "ConversationExists",
    "ConversationNotFound",
    "CoordinationFailed",
    "DatabaseTooNew",
    "DeadlineExceeded",
    "DecisionNotFound",
    "EncoderFailed",
    "Escalated",
    "EscalationRejected",
    "ExpressionFailed",
    "Fault",
    "FitFailed",
    "Forbidden",
    "ForeignDatabase",
    "IdempotencyMismatch",
    "Interrupted",
    "InvalidAgent",
    "InvalidInput",
    "KeyNotFound",
    "KeysRequired",
    "MissingExtra",
    "ModelAuthenticationFailed",
    "ModelFailed",
    "ModelNotFound",
    "ModelOverloaded",
    "ModelPermissionDenied",
    "ModelQuotaExhausted",
    "ModelRateLimited",
    "ModelRequestInvalid",
    "ModelServerError",
    "ModelTimeout",
    "ModelUnreachable",
    "NoAgentMatches",
    "NoInstanceAvailable",
    "NotEscalated",
    "NotFound",
    "NothingToRollBack",
    "OrchestraError",
    "OutputInvalid",
    "Overloaded",
    "ProviderKeyMissing",
    "RequestNotFound",
    "RunFailed",
    "SequenceConflict",
    "ShuttingDown",
    "StorageFull",
    "StorageUnavailable",
    "StreamBroken",
    "StreamMismatch",
    "Superseded",
    "TurnsExhausted",
    "Unauthenticated",
    "Unavailable",
    "by_code",
    "code_of",
    "run_failure",
]

E = TypeVar("E", bound="OrchestraError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with an input: where (a dotted path, empty for the whole), and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class OrchestraError(Exception):
    """The root: catch it to catch all of ours, and nothing else."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, /, **data: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.data: Mapping[str, object] = data


class InvalidInput(OrchestraError):
    code = "invalid_input"

    def __init__(self, detail: str, *, faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(detail)
        self.faults = faults


class InvalidAgent(InvalidInput):
    code = "invalid_agent"

    def __init__(self, agent_id: str, faults: tuple[Fault, ...]) -> None:
        super().__init__(f"agent '{agent_id}' is not valid: {'; '.join(map(str, faults))}", faults=faults)


class BodyTooLarge(InvalidInput):
    code = "body_too_large"


class Unauthenticated(OrchestraError):
    code = "unauthenticated"


class Forbidden(OrchestraError):
    code = "forbidden"


class NotFound(OrchestraError):
    code = "not_found"


class AgentNotFound(NotFound):
    code = "agent_not_found"


class ConversationNotFound(NotFound):
    code = "conversation_not_found"


class RequestNotFound(NotFound):
    code = "request_not_found"


class KeyNotFound(NotFound):
    code = "key_not_found"


class DecisionNotFound(NotFound):
    code = "decision_not_found"


class NoAgentMatches(NotFound):
    code = "no_agent_matches"


class Conflict(OrchestraError):
    code = "conflict"


class AgentExists(Conflict):
    code = "agent_exists"


class AgentDisabled(Conflict):
    code = "agent_disabled"


class ConversationExists(Conflict):
    code = "conversation_exists"


class ConversationBusy(Conflict):
    code = "conversation_busy"
    retryable = True


class SequenceConflict(Conflict):
    code = "sequence_conflict"


class IdempotencyMismatch(Conflict):
    code = "idempotency_mismatch"


class StreamMismatch(Conflict):
    code = "stream_mismatch"


class NothingToRollBack(Conflict):
    code = "nothing_to_roll_back"


class NotEscalated(Conflict):
    """The request does not wait for a person: it never did, or somebody was faster."""

    code = "not_escalated"


class Unavailable(OrchestraError):
    """``retry_after``: seconds after which the same call is worth another try."""

    code = "unavailable"
    retryable = True

    def __init__(self, detail: str, *, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    code = "overloaded"


class NoInstanceAvailable(Unavailable):
    code = "no_instance_available"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class StorageFull(StorageUnavailable):
    code = "storage_full"


class EncoderFailed(OrchestraError):
    """Texts could not be turned into vectors. What compares words alone carries on.

    ``data`` holds, as far as they are known: ``encoder`` (its setting, or its folder), and for a vendor's
    ``vendor_error``, the code of the :class:`ModelFailed` that it was.
    """

    code = "encoder_failed"


class FitFailed(OrchestraError):
    """What was learned could not be fitted anew. What decided before goes on deciding."""

    code = "fit_failed"


class RunFailed(OrchestraError):
    """An accepted request that ended without an answer. It is recorded: the same idempotency key gives it again.

    ``elsewhere``: whether another instance of the agent may answer what this one could not. It is a matter of the
    class, and the one who raises it may take it back, as when something was done that must not be done twice.
    ``blamed``: whether it speaks against the instance that was called, and not against what it was asked; its breaker
    counts those.
    """

    code = "run_failed"
    elsewhere: bool = False
    blamed: ClassVar[bool] = False

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the same call is worth another try, where somebody said so."""
        given = self.data.get("retry_after")
        return max(float(given), 0.0) if isinstance(given, int | float) and math.isfinite(given) else None


class AgentFailed(RunFailed):
    """``data["cause"]``: the class of what the agent's own code raised, or what was wrong with its output."""

    code = "agent_failed"
    blamed = True


class AgentUnavailable(AgentFailed):
    """What runs the agent cannot answer now, and has done nothing: for an agent's own code to raise.

    Another instance may answer, or the same one later; ``retry_after`` in its data says how many seconds later.
    """

    code = "agent_unavailable"
    retryable = True
    elsewhere = True


class Escalated(RunFailed):
    """A person will answer in the agent's place. Until then the request has no answer; then it has that one."""

    code = "escalated"


class EscalationRejected(RunFailed):
    """A person has decided that the request is not to be answered; the sentence is theirs."""

    code = "escalation_rejected"


class DeadlineExceeded(RunFailed):
    code = "deadline_exceeded"
    blamed = True


class Interrupted(RunFailed):
    code = "interrupted"


class Superseded(RunFailed):
    code = "superseded"


class CoordinationFailed(RunFailed):
    """Of several agents on one request none gave a result, or there was none to ask. The sentence names each with its
    code; ``data["failed"]`` holds them as ``agent: code``, separated by commas.
    """

    code = "coordination_failed"


class ExpressionFailed(RunFailed):
    """An expression that had been accepted gave nothing for these values: a field is not there, the types differ."""

    code = "expression_failed"


class AttachmentNotSupported(RunFailed):
    code = "attachment_not_supported"
    elsewhere = True


class ModelFailed(RunFailed):
    """A model gave no answer.

    ``data`` holds, as far as they are known: ``provider``, ``model``, ``status`` (of HTTP), ``vendor_code``,
    ``vendor_request_id`` and ``retry_after`` (seconds). The vendor's own sentence, which may quote a key, is only in
    that of :class:`ModelRequestInvalid`, as ``vendor_message``, without what looks like one.
    """

    code = "model_failed"


class ProviderKeyMissing(ModelFailed):
    code = "provider_key_missing"
    elsewhere = True


class ModelAuthenticationFailed(ModelFailed):
    code = "model_authentication_failed"
    blamed = True
    elsewhere = True


class ModelPermissionDenied(ModelFailed):
    code = "model_permission_denied"
    blamed = True
    elsewhere = True


class ModelNotFound(ModelFailed):
    code = "model_not_found"
    blamed = True
    elsewhere = True


class ModelRequestInvalid(ModelFailed):
    code = "model_request_invalid"


class ContextTooLong(ModelFailed):
    """More than the model can read at once. Another model may have the room."""

    code = "context_too_long"
    elsewhere = True


class ContentRefused(ModelFailed):
    """The vendor or the model does not answer this. No other model is asked in its place."""

    code = "content_refused"


class OutputInvalid(ModelFailed):
    """The output does not match its schema, however often it was asked for; ``data["output"]`` keeps the last one."""

    code = "output_invalid"


class TurnsExhausted(ModelFailed):
    """The model went on calling tools, and never came to an answer."""

    code = "turns_exhausted"


class ModelRateLimited(ModelFailed):
    code = "model_rate_limited"
    retryable = True
    elsewhere = True


class ModelQuotaExhausted(ModelFailed):
    """A limit that waiting does not mend: no credit, or a request that is larger than the limit itself."""

    code = "model_quota_exhausted"
    blamed = True
    elsewhere = True


class ModelOverloaded(ModelFailed):
    code = "model_overloaded"
    blamed = True
    retryable = True
    elsewhere = True


class ModelServerError(ModelFailed):
    """The vendor broke, or answered what is no answer."""

    code = "model_server_error"
    blamed = True
    retryable = True
    elsewhere = True


class ModelTimeout(ModelFailed):
    code = "model_timeout"
    blamed = True
    retryable = True
    elsewhere = True


class ModelUnreachable(ModelFailed):
    code = "model_unreachable"
    blamed = True
    retryable = True
    elsewhere = True


class StreamBroken(ModelFailed):
    """The answer began, and its end never came. What was told by then is part of an answer, not an answer."""

    code = "stream_broken"
    blamed = True
    retryable = True
    elsewhere = True


def by_code(root: type[E]) -> dict[str, type[E]]:
    """The classes of a branch of the tree, each by its stable code."""
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= by_code(child)
    return found


def code_of(error: BaseException) -> str:
    """What a log line says of any error: our stable code, or the class of a foreign one. Never its message."""
    return error.code if isinstance(error, OrchestraError) else type(error).__name__


def run_failure(code: str, detail: str, data: Mapping[str, object]) -> RunFailed:
    """The error that was recorded under ``code``; a plain :class:`RunFailed` where a newer release wrote the row."""
    return by_code(RunFailed).get(code, RunFailed)(detail, **data)


class ConfigurationError(OrchestraError):
    code = "configuration"


class ForeignDatabase(ConfigurationError):
    code = "foreign_database"


class DatabaseTooNew(ConfigurationError):
    code = "database_too_new"


class MissingExtra(ConfigurationError):
    code = "missing_extra"


class AddressInUse(ConfigurationError):
    code = "address_in_use"


class KeysRequired(ConfigurationError):
    code = "keys_required"
