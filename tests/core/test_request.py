"""What may be asked, and the one form of an answer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from agent_orchestra.core.request import (
    MAX_CONTENT_CHARS,
    Answer,
    Attempt,
    Generation,
    Reply,
    StopReason,
    ToolCall,
    Usage,
    answer_json,
    check,
)
from agent_orchestra.core.routing import Candidate, Match, Route, Stage, decided_json
from agent_orchestra.errors import InvalidInput


@pytest.mark.parametrize("content", ["a", " a ", "ä\n🧾", "a" * MAX_CONTENT_CHARS])
def test_content_that_can_be_answered(content: str) -> None:
    check(content)
    check(content, user_id="u", context={"a": [1, 2.5, None]}, idempotency_key=None)


@pytest.mark.parametrize(
    ("content", "others", "paths"),
    [
        ("", {}, ["content"]),
        (" \t\n", {}, ["content"]),
        ("a" * (MAX_CONTENT_CHARS + 1), {}, ["content"]),
        ("a\0", {}, ["content"]),
        ("\ud800", {}, ["content"]),
        ("a", {"user_id": "u\0"}, ["user_id"]),
        ("a", {"context": {"b": [math.nan]}}, ["context.b.0"]),
        ("a", {"idempotency_key": "\udfff"}, ["idempotency_key"]),
        ("", {"user_id": "\0", "context": {"a": math.inf}}, ["content", "user_id", "context.a"]),
    ],
)
def test_what_cannot_be_answered_or_stored_is_refused_with_its_place(
    content: str, others: dict[str, Any], paths: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(content, **others)
    assert [fault.path for fault in caught.value.faults] == paths
    assert all(str(fault) in caught.value.detail for fault in caught.value.faults)


ANSWER = Answer(
    request_id="r",
    conversation_id="c",
    agent="a",
    instance="i",
    route=Route(
        candidates=(
            Candidate(agent_id="a", confidence=0.5, matched=Match(kind="example", text="do a")),
            Candidate(agent_id="b", confidence=0.25),
        ),
        stage=Stage.LEXICAL,
        reason="because",
        margin=0.3,
        secondary=("b",),
    ),
    reply=Reply(
        output="text",
        value={"n": 1},
        tool_calls=(ToolCall(id="t", name="look_up", arguments={"city": "Rome"}),),
        usage=Usage(
            input_tokens=3,
            output_tokens=4,
            cache_read_tokens=2,
            cache_write_tokens=1,
            reasoning_tokens=3,
            cost_usd=0.01,
            price_date="2026-10-07",
        ),
        generation=Generation(
            provider="openai", model="gpt-5", stop_reason=StopReason.TOOL_CALL, request_id="v", first_token_ms=12.5
        ),
    ),
    timings={"total": 1.5},
    attempts=(Attempt(agent_id="a", instance_id="i", duration_ms=1.25, decision="answered"),),
)


def test_an_answer_as_json() -> None:
    plain = answer_json(ANSWER)
    assert plain == {
        "request_id": "r",
        "conversation_id": "c",
        "agent": "a",
        "instance": "i",
        "confidence": 0.5,
        "stage": "lexical",
        "reason": "because",
        "matched": {"kind": "example", "text": "do a"},
        "margin": 0.3,
        "alternatives": [{"agent": "b", "confidence": 0.25}],
        "secondary": ["b"],
        "output": "text",
        "value": {"n": 1},
        "tool_calls": [{"id": "t", "name": "look_up", "arguments": {"city": "Rome"}}],
        "usage": {
            "input_tokens": 3,
            "output_tokens": 4,
            "cache_read_tokens": 2,
            "cache_write_tokens": 1,
            "reasoning_tokens": 3,
            "cost_usd": 0.01,
            "price_date": "2026-10-07",
        },
        "generation": {
            "provider": "openai",
            "model": "gpt-5",
            "stop_reason": "tool_call",
            "request_id": "v",
            "first_token_ms": 12.5,
        },
        "timings": {"total": 1.5},
        "coordination": None,
        "attempts": [
            {
                "agent": "a",
                "instance": "i",
                "duration_ms": 1.25,
                "error": None,
                "delay_ms": 0.0,
                "decision": "answered",
                "reason": "",
                "hedge": False,
            }
        ],
    }
    assert json.loads(json.dumps(plain)) == plain


def test_every_field_of_an_answer_is_in_its_json() -> None:
    plain = answer_json(ANSWER)
    own = set(Answer.__dataclass_fields__) - {"reply", "route"}
    assert set(plain) == own | set(decided_json(ANSWER.route)) | set(Reply.__dataclass_fields__)
    usage, generation = plain["usage"], plain["generation"]
    assert isinstance(usage, dict)
    assert isinstance(generation, dict)
    assert set(usage) == set(Usage.__dataclass_fields__)
    assert set(generation) == set(Generation.__dataclass_fields__)
