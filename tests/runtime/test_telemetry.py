"""What the service tells about itself: ids, codes and times, and never what was said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.request import Answer
from agent_orchestra.errors import AgentFailed, NoAgentMatches, StorageUnavailable
from agent_orchestra.runtime.telemetry import Stopwatch, Telemetry
from tests.runtime.parts import Lines, opened
from tests.services.waiting import wait_until

SECRET = "geheim-4711"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


async def echo(content: str) -> str:
    return f"{content}!"


@pytest.fixture
def remote_trace() -> Generator[str]:
    """A caller somewhere else traces, as its headers would say."""
    span = NonRecordingSpan(
        SpanContext(
            trace_id=TRACE_ID, span_id=0x00F067AA0BA902B7, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
        )
    )
    token = otel_context.attach(trace.set_span_in_context(span))
    yield f"{TRACE_ID:032x}"
    otel_context.detach(token)


async def test_an_answer_is_told_with_its_ids_and_times(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        await parts.agent("echo", echo)
        answer = await parts.orchestra.process_request("echo")
        await wait_until(lambda: bool(parts.lines.of("request_answered")), "it was not told")
        (line,) = parts.lines.of("request_answered")
        assert line["request_id"] == answer.request_id
        assert line["conversation_id"] == answer.conversation_id
        assert line["trace_id"] == answer.request_id.replace("-", "")
        assert (line["tenant"], line["agent"], line["instance"]) == ("default", "echo", "in-process")
        assert (line["stage"], line["confidence"], line["code"]) == ("lexical", answer.confidence, None)
        assert isinstance(line["ms"], float)
        assert line["ms"] >= answer.timings["total"]


async def test_a_failure_is_told_with_its_code(tmp_path: Path) -> None:
    async def raises(_: str) -> str:
        raise AgentFailed(SECRET)

    async with opened(tmp_path) as parts:
        await parts.agent("raises", raises)
        with pytest.raises(AgentFailed):
            await parts.orchestra.process_request("raises")
        await wait_until(lambda: bool(parts.lines.of("request_failed")), "it was not told")
        (line,) = parts.lines.of("request_failed")
        assert line["code"] == "agent_failed"
        assert parts.lines.of("request_answered") == []


async def test_the_trace_of_the_caller_goes_on(tmp_path: Path, remote_trace: str) -> None:
    async with opened(tmp_path) as parts:
        seen: list[int] = []

        async def looks(_: str) -> str:
            seen.append(trace.get_current_span().get_span_context().trace_id)
            return "fine"

        def looks_too(_: str) -> str:
            seen.append(trace.get_current_span().get_span_context().trace_id)
            return "fine"

        await parts.agent("looks", looks)
        await parts.agent("blocks", looks_too)
        await parts.orchestra.process_request("looks")
        await parts.orchestra.process_request("blocks")
        await wait_until(lambda: len(parts.lines.of("request_answered")) == 2, "it was not told")
        assert [line["trace_id"] for line in parts.lines.of("request_answered")] == [remote_trace] * 2
        assert seen == [TRACE_ID] * 2


def test_a_trace_id_is_sixteen_bytes_in_hexadecimal_either_way(remote_trace: str) -> None:
    telemetry = Telemetry(Lines(), detailed=False)
    assert telemetry.trace_id("anything") == remote_trace
    token = otel_context.attach(otel_context.Context())
    own = telemetry.trace_id("01890a5d-ac96-774b-bcce-b302099a8057")
    otel_context.detach(token)
    assert own == "01890a5dac96774bbcceb302099a8057"
    assert len(own) == len(remote_trace) == 32


async def test_logs_hold_ids_and_never_content(tmp_path: Path) -> None:
    async def tells(_: str) -> AsyncIterator[str]:
        yield SECRET
        raise ValueError(SECRET)

    async def gives(_: str) -> dict[str, str]:
        return {SECRET: SECRET}

    async def fails(_: str) -> str:
        raise AgentFailed(SECRET, cause=SECRET)

    async with opened(tmp_path) as parts:
        for name, run in (("tells", tells), ("gives", gives), ("fails", fails), ("echo", echo)):
            await parts.agent(name, run)
        ask = parts.orchestra.process_request
        ends = [
            await asyncio.gather(
                ask(f"{name} {SECRET}", user_id=SECRET, context={SECRET: SECRET}, idempotency_key=f"{SECRET}{name}"),
                return_exceptions=True,
            )
            for name in ("tells", "gives", "fails", "echo", "nobody")
        ]
        assert [type(end) for (end,) in ends] == [AgentFailed, Answer, AgentFailed, Answer, NoAgentMatches]
        parts.log.record_raises = [StorageUnavailable(SECRET)]
        with pytest.raises(StorageUnavailable):
            await ask(f"echo {SECRET}")
        await wait_until(lambda: parts.dispatcher.in_flight == 0, "the requests did not end")
        conversation = await parts.orchestra.create_conversation(user_id=SECRET, context={SECRET: SECRET})
        await parts.orchestra.add_message(conversation.id, SECRET)
        _, key = await parts.orchestra.keys.create("default", [])
        events = {line.event for line in parts.lines.all}
        assert events >= {"request_answered", "request_failed", "agent_raised", "answer_not_recorded"}
        for line in parts.lines.all:
            assert SECRET not in repr(line), line
            assert key not in repr(line), line


async def test_what_an_agent_raised_is_told_by_class_and_place(tmp_path: Path) -> None:
    async def raises(_: str) -> str:
        raise ZeroDivisionError(SECRET)

    for detailed in (False, True):
        async with opened(tmp_path, detailed=detailed) as parts:
            await parts.agent("raises", raises)
            with pytest.raises(AgentFailed) as caught:
                await parts.orchestra.process_request("raises")
            assert SECRET not in caught.value.detail
            (line,) = parts.lines.of("agent_raised")
            assert (line["agent"], line["error"]) == ("raises", "ZeroDivisionError")
            assert str(line["at"]).startswith("test_telemetry.py:")
            assert (SECRET in repr(line)) is detailed


async def test_an_agent_that_is_offline_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path, configured=[Agent(id="a", kind="offline", settings={"knowledge": ["x"]})]):
        pass
    async with opened(tmp_path, kinds={}) as parts:
        (line,) = parts.lines.of("agent_offline")
        assert line["agent"] == "a"
        assert "kind" in str(line["reason"])


async def test_a_stopwatch_adds_up_its_laps() -> None:
    watch = Stopwatch()
    await asyncio.sleep(0.02)
    watch.lap("one")
    watch.lap("two")
    await asyncio.sleep(0.02)
    watch.lap("one")
    assert set(watch.timings) == {"one", "two"}
    assert watch.timings["one"] >= 35
    assert watch.timings["two"] < watch.timings["one"]
    assert watch.total() >= round(sum(watch.timings.values()), 1) - 0.1


def test_a_span_costs_nothing_where_nobody_traces() -> None:
    telemetry = Telemetry(Lines(), detailed=False)
    with telemetry.span("invoke_agent", **{"gen_ai.agent.id": "a"}) as span:
        assert not span.is_recording()
    with pytest.raises(ValueError, match="passes"), telemetry.span("orchestrate"):
        raise ValueError("passes")
