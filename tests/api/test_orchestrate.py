from __future__ import annotations

import asyncio
from typing import Any

from agent_orchestra import Call, Reply, Usage
from tests.api.functions import echo, giving
from tests.api.serving import Served, problem_of, serving

USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "reasoning_tokens": 0,
    "cost_usd": None,
    "price_date": None,
}


async def test_an_answer_says_who_answered_and_why(served: Served) -> None:
    await served.has("billing", echo, keywords=("refund", "invoice"), capabilities=("payments",))
    await served.has("travel", echo, keywords=("flight", "refund"))
    response = await served.ask("a refund of my invoice", user_id="ann")
    answer = response.json()
    assert set(answer) == {
        "request_id",
        "conversation_id",
        "agent",
        "instance",
        "confidence",
        "stage",
        "reason",
        "matched",
        "margin",
        "alternatives",
        "secondary",
        "output",
        "value",
        "tool_calls",
        "usage",
        "generation",
        "coordination",
        "timings",
        "attempts",
    }
    assert (answer["agent"], answer["instance"], answer["stage"]) == ("billing", "in-process", "lexical")
    assert answer["output"] == "a refund of my invoice"
    assert answer["value"] is None
    assert 0 < answer["confidence"] <= 1
    assert [alternative["agent"] for alternative in answer["alternatives"]] == ["travel"]
    assert answer["alternatives"][0]["confidence"] < answer["confidence"]
    assert answer["matched"] in ({"kind": "keywords", "text": word} for word in ("refund", "invoice"))
    assert answer["reason"] == f"nearest to its keywords '{answer['matched']['text']}'"
    assert answer["usage"] == USAGE
    assert (answer["generation"], answer["tool_calls"]) == (None, [])
    assert {"load", "route", "accept", "run", "total"} <= set(answer["timings"])
    assert answer["timings"]["total"] >= answer["timings"]["run"] >= 0
    assert answer["attempts"] == [
        {
            "agent": "billing",
            "instance": "in-process",
            "duration_ms": answer["attempts"][0]["duration_ms"],
            "error": None,
            "delay_ms": 0.0,
            "decision": "answered",
            "reason": "",
            "hedge": False,
        }
    ]
    assert response.headers["x-request-id"] == answer["request_id"]
    assert response.headers["content-type"] == "application/json"


async def test_what_is_on_record_is_what_was_answered(served: Served) -> None:
    def weighs(content: str) -> Reply:
        usage = Usage(input_tokens=3, output_tokens=5, cost_usd=0.25)
        return Reply(output="four", value={"sum": [4, 4.5, None, True]}, usage=usage)

    await served.has("adds", weighs)
    answer = await served.answer("2 + 2", agent_id="adds", context={"deep": {"er": [1, "zwei", None]}})
    assert answer["value"] == {"sum": [4, 4.5, None, True]}
    assert answer["usage"] == {**USAGE, "input_tokens": 3, "output_tokens": 5, "cost_usd": 0.25}
    record = (await served.client.get(f"/v1/requests/{answer['request_id']}")).json()
    assert record == {
        "request_id": answer["request_id"],
        "conversation_id": answer["conversation_id"],
        "status": "SUCCEEDED",
        "agent": "adds",
        "instance": "in-process",
        "answer": answer,
        "failure": None,
    }
    problem_of(await served.client.get("/v1/requests/nothing"), 404, "request_not_found")


async def test_a_request_can_be_read_while_it_runs(served: Served) -> None:
    calls: list[Call] = []
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(content: str, call: Call) -> str:
        calls.append(call)
        begun.set()
        await may_end.wait()
        return content

    await served.has("slow", slow)
    asking = asyncio.create_task(served.ask("hello", agent_id="slow"))
    await begun.wait()
    record = (await served.client.get(f"/v1/requests/{calls[0].request_id}")).json()
    assert (record["status"], record["answer"], record["failure"]) == ("RUNNING", None, None)
    assert (await served.client.get("/v1/status")).json()["in_flight"] == 1
    may_end.set()
    assert (await asking).json()["request_id"] == calls[0].request_id


async def test_each_way_to_choose_an_agent() -> None:
    async with serving(orchestrator={"fallback_agent": "reception"}) as served:
        await served.has("billing", echo, keywords=("refund",), capabilities=("Payments",))
        await served.has("travel", echo, keywords=("flight",), capabilities=("bookings",))
        await served.has("reception", echo)
        cases: tuple[tuple[str, dict[str, Any], str, str], ...] = (
            ("a refund", {"agent_id": "travel"}, "travel", "explicit"),
            ("a refund", {"capability": "bookings"}, "travel", "capability"),
            ("a refund", {"capability": "PAYMENTS"}, "billing", "capability"),
            ("a refund", {}, "billing", "lexical"),
            ("my flights", {}, "travel", "lexical"),
            ("blue or green", {}, "reception", "fallback"),
            ("a refund", {"agent_id": "travel", "capability": "bookings"}, "travel", "explicit"),
        )
        for content, more, agent, stage in cases:
            answer = await served.answer(content, **more)
            assert (answer["agent"], answer["stage"]) == (agent, stage), (content, more)


async def test_the_conversation_keeps_its_agent(served: Served) -> None:
    await served.has("billing", echo, keywords=("refund",))
    await served.has("travel", echo, keywords=("flight",))
    first = await served.answer("a refund")
    conversation_id = first["conversation_id"]
    second = await served.answer("and then", conversation_id=conversation_id)
    assert (second["agent"], second["stage"]) == ("billing", "conversation")
    third = await served.answer("a flight", conversation_id=conversation_id)
    assert (third["agent"], third["stage"]) == ("travel", "lexical")
    conversation = (await served.client.get(f"/v1/conversations/{conversation_id}")).json()
    assert (conversation["active_agent"], conversation["last_seq"]) == ("travel", 6)
    fourth = await served.answer("and then", conversation_id=conversation_id)
    assert fourth["agent"] == "travel"


async def test_an_agent_is_given_history_context_and_user(served: Served) -> None:
    calls: list[Call] = []

    def noting(content: str, call: Call) -> str:
        calls.append(call)
        return f"answer {len(calls)}"

    await served.has("noting", noting)
    created = await served.client.post(
        "/v1/conversations", json={"user_id": "ann", "context": {"tone": "dry", "lang": "en"}}
    )
    conversation_id = created.json()["id"]
    for number in (1, 2):
        await served.answer(
            f"question {number}", conversation_id=conversation_id, agent_id="noting", context={"lang": "de"}
        )
    assert dict(calls[1].context) == {"tone": "dry", "lang": "de"}
    assert calls[1].user_id == "ann"
    assert [(m.author, m.content) for m in calls[1].history] == [("user", "question 1"), ("assistant", "answer 1")]


async def test_no_agent_matches(served: Served) -> None:
    problem_of(await served.ask("hello"), 404, "no_agent_matches")
    await served.has("billing", echo, keywords=("refund",), capabilities=("payments",))
    problem = problem_of(await served.ask("hello"), 404, "no_agent_matches")
    assert problem["agents"] == ["billing"]
    problem = problem_of(await served.ask("hello", capability="flying"), 404, "no_agent_matches")
    assert problem["capabilities"] == ["payments"]
    problem_of(await served.ask("hello", agent_id="billing", capability="flying"), 404, "no_agent_matches")
    problem_of(await served.ask("hello", agent_id="nobody"), 404, "agent_not_found")
    conversations = (await served.client.get("/v1/conversations")).json()
    assert conversations["items"] == [], "what was refused has left nothing behind"


async def test_a_disabled_agent_that_is_named_is_refused(served: Served) -> None:
    await served.has("off", echo, enabled=False)
    response = await served.ask("hello", agent_id="off")
    assert response.status_code in (409, 503)
    problem = problem_of(response, response.status_code, response.json()["code"])
    assert "DISABLED" in problem["detail"].upper()


async def test_an_unknown_conversation_is_refused(served: Served) -> None:
    await served.has("echo", echo)
    problem = problem_of(await served.ask("hi", agent_id="echo", conversation_id="gone"), 404, "conversation_not_found")
    assert "'gone'" in problem["detail"]


async def test_contents_are_kept_to_the_letter(served: Served) -> None:
    await served.has("echo", echo)
    contents = (
        "  spaces around  ",
        "line\r\nend\ttab\u2028separator\u0085next\ufeffmark",
        "\U0001f600 \u0635\u0628\u0627\u062d e\u0301 \ud55c",
        "\x01\x1b[31m\x7f",
        "data: x\n\nevent: completed\n\n",
        "x" * 200_000,
    )
    for content in contents:
        answer = await served.answer(content, agent_id="echo")
        assert answer["output"] == content
        path = f"/v1/conversations/{answer['conversation_id']}/messages"
        messages = (await served.client.get(path)).json()["items"]
        assert [m["content"] for m in messages] == [content, content]
    too_long = await served.ask("x" * 200_001, agent_id="echo")
    assert problem_of(too_long, 422, "invalid_input")["errors"][0]["path"] == "content"


async def test_what_a_function_may_give_back(served: Served) -> None:
    class Odd:
        pass

    given: tuple[tuple[object, int, object, object], ...] = (
        ("text", 200, "text", None),
        (None, 200, "", None),
        ({"a": [1, 2]}, 200, '{"a": [1, 2]}', {"a": [1, 2]}),
        (42, 200, "42", 42),
        (Odd(), 502, "output_not_json", None),
        (float("nan"), 502, "output_not_json", None),
        ("nul \0 and half \ud83d", 200, "nul \ufffd and half \ufffd", None),
    )
    for index, (back, status, output, value) in enumerate(given):
        await served.has(f"gives-{index}", giving(back))
        response = await served.ask("hello", agent_id=f"gives-{index}")
        if status == 200:
            assert response.status_code == 200, (back, response.text)
            assert (response.json()["output"], response.json()["value"]) == (output, value)
        else:
            assert problem_of(response, 502, "agent_failed")["cause"] == output


async def test_values_that_cannot_be_written_are_the_agents_fault_or_cleaned(served: Served) -> None:
    """A value of an agent comes back as JSON, or as a failure of the agent; it never breaks the service."""
    deep: Any = "end"
    for _ in range(980):
        deep = [deep]
    values: dict[str, object] = {
        "half": {"text": "half \ud83d"},
        "half-key": {"half \ud83d": 1},
        "nul": {"text": "nul \0"},
        "deep": deep,
        "cost": Reply(output="ok", usage=Usage(cost_usd=float("nan"))),
        "text-of-reply": Reply(output=7),  # pyright: ignore[reportArgumentType]  what an untyped function may do
    }
    wrong: dict[str, str] = {}
    for name, back in values.items():
        await served.has(name, giving(back))
        response = await served.ask("hello", agent_id=name)
        if response.status_code == 200:
            record = await served.client.get(f"/v1/requests/{response.json()['request_id']}")
            if record.status_code != 200 or record.json()["answer"] != response.json():
                wrong[name] = f"on record: {record.text[:200]}"
        elif response.status_code != 502:
            wrong[name] = response.text[:200]
    assert wrong == {}


async def test_an_output_has_a_longest_length() -> None:
    async with serving(orchestrator={"max_output_chars": 10}) as served:
        await served.has("echo", echo)
        assert (await served.answer("x" * 10, agent_id="echo"))["output"] == "x" * 10
        problem = problem_of(await served.ask("x" * 11, agent_id="echo"), 502, "agent_failed")
        assert problem["cause"] == "output_too_long"
