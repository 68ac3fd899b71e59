"""The hierarchy of errors is the one that is drawn, and programs can rely on its codes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from agent_orchestra import errors
from agent_orchestra.errors import (
    AgentFailed,
    AgentUnavailable,
    ConversationBusy,
    Fault,
    InvalidAgent,
    InvalidInput,
    ModelOverloaded,
    ModelRateLimited,
    ModelServerError,
    ModelTimeout,
    ModelUnreachable,
    OrchestraError,
    Overloaded,
    RunFailed,
    StreamBroken,
    Unavailable,
    run_failure,
)


def all_classes() -> list[type[OrchestraError]]:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, OrchestraError)]


def drawn() -> Iterator[tuple[str, str]]:
    """Each class of the drawing with its parent."""
    line_parents = ["OrchestraError"]
    for line in (errors.__doc__ or "").splitlines():
        mark = max(line.find("├── "), line.find("└── "))
        if mark < 0:
            continue
        depth = (mark - 4) // 4 + 1
        # Behind a wide gap stands the sentence about the class.
        names = line[mark + 4 :].split("  ")[0].strip()
        parent = line_parents[depth - 1]
        for sibling in names.split(" · "):
            above = parent
            for name in sibling.split(" ── "):
                yield name, above
                above = name
        del line_parents[depth:]
        line_parents.append(names.split(" · ")[0].split(" ── ")[0])


def runs() -> list[type[RunFailed]]:
    return [kind for kind in all_classes() if issubclass(kind, RunFailed)]


def test_the_hierarchy_is_the_one_that_is_drawn() -> None:
    real = {kind.__name__: kind.__bases__[0].__name__ for kind in all_classes() if kind is not OrchestraError}
    assert dict(drawn()) == real


def test_all_names_of_the_drawing_are_exported() -> None:
    others = {"OrchestraError", "Fault", "by_code", "code_of", "run_failure"}
    assert {name for name, _ in drawn()} | others == set(errors.__all__)


def test_every_class_has_a_code_of_its_own() -> None:
    codes = {kind.__name__: kind.__dict__.get("code") for kind in all_classes()}
    assert None not in codes.values(), "a class that inherits its code cannot be told from its parent"
    assert len(set(codes.values())) == len(codes)


def test_codes_are_stable() -> None:
    """Programs of others compare them: one that changes here breaks there."""
    assert sorted(kind.code for kind in all_classes()) == [
        "address_in_use",
        "agent_disabled",
        "agent_exists",
        "agent_failed",
        "agent_not_found",
        "agent_unavailable",
        "attachment_not_supported",
        "body_too_large",
        "configuration",
        "conflict",
        "content_refused",
        "context_too_long",
        "conversation_busy",
        "conversation_exists",
        "conversation_not_found",
        "coordination_failed",
        "database_too_new",
        "deadline_exceeded",
        "decision_not_found",
        "encoder_failed",
        "error",
        "escalated",
        "escalation_rejected",
        "expression_failed",
        "fit_failed",
        "forbidden",
        "foreign_database",
        "idempotency_mismatch",
        "interrupted",
        "invalid_agent",
        "invalid_input",
        "key_not_found",
        "keys_required",
        "missing_extra",
        "model_authentication_failed",
        "model_failed",
        "model_not_found",
        "model_overloaded",
        "model_permission_denied",
        "model_quota_exhausted",
        "model_rate_limited",
        "model_request_invalid",
        "model_server_error",
        "model_timeout",
        "model_unreachable",
        "no_agent_matches",
        "no_instance_available",
        "not_escalated",
        "not_found",
        "nothing_to_roll_back",
        "output_invalid",
        "overloaded",
        "provider_key_missing",
        "request_not_found",
        "run_failed",
        "sequence_conflict",
        "shutting_down",
        "storage_full",
        "storage_unavailable",
        "stream_broken",
        "stream_mismatch",
        "superseded",
        "turns_exhausted",
        "unauthenticated",
        "unavailable",
    ]


def test_what_may_succeed_later_says_so() -> None:
    later = {kind for kind in all_classes() if kind.retryable}
    of_models = {ModelRateLimited, ModelOverloaded, ModelServerError, ModelTimeout, ModelUnreachable, StreamBroken}
    assert later == {
        ConversationBusy,
        AgentUnavailable,
        *of_models,
        *(kind for kind in all_classes() if issubclass(kind, Unavailable)),
    }
    assert Overloaded("full").retry_after > 0
    assert Overloaded("full", retry_after=7.0).retry_after == 7.0


@pytest.mark.parametrize("kind", runs(), ids=lambda kind: kind.__name__)
def test_a_recorded_failure_is_restored_by_its_code(kind: type[RunFailed]) -> None:
    error = run_failure(kind.code, "it went wrong", {"cause": "ValueError", "n": 3})
    assert type(error) is kind
    assert error.detail == "it went wrong"
    assert str(error) == "it went wrong"
    assert error.data == {"cause": "ValueError", "n": 3}


@pytest.mark.parametrize("code", ["", "from_the_future", "not_found", "storage_full"])
def test_a_code_that_is_no_run_failure_gives_the_plain_one(code: str) -> None:
    assert type(run_failure(code, "it went wrong", {})) is RunFailed


@pytest.mark.parametrize("key", ["detail", "self", "code", "data"])
def test_a_failure_is_restored_whatever_its_data_are_called(key: str) -> None:
    error = run_failure("agent_failed", "it went wrong", {key: "x"})
    assert (type(error), error.code, error.detail) == (AgentFailed, "agent_failed", "it went wrong")
    assert error.data == {key: "x"}


def test_faults_read_as_sentences() -> None:
    assert str(Fault(path="a.b", message="is wrong")) == "a.b: is wrong"
    assert str(Fault(path="", message="is wrong")) == "is wrong"
    faults = (Fault(path="id", message="is wrong"), Fault(path="kind", message="is required"))
    error = InvalidAgent("x", faults)
    assert error.faults == faults
    assert error.detail == "agent 'x' is not valid: id: is wrong; kind: is required"
    assert InvalidInput("no").faults == ()
