from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

import httpx

from agent_orchestra.core.access import Scope
from agent_orchestra.core.resilience import Action, Recovery
from tests.api.functions import echo
from tests.api.serving import Served, problem_of, serving, told_in
from tests.api.test_access import bearer

KEY = {"Idempotency-Key": "k1"}


async def helpless(served: Served) -> None:
    """Registers an agent that cannot answer, and has people asked."""

    def fails(_: str) -> str:
        raise ValueError("no")

    await served.has("helpless", fails, recovery=Recovery(actions={"agent_failed": Action.ESCALATE}))


async def waiting(served: Served, **query: Any) -> dict[str, Any]:
    response = await served.client.get("/v1/escalations", params=query)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


async def answers(served: Served, request_id: str, output: str = "Done.", **body: Any) -> httpx.Response:
    return await served.client.post(f"/v1/escalations/{request_id}/answer", json={"output": output, **body})


async def rejects(served: Served, request_id: str, reason: str = "Not for us.", **body: Any) -> httpx.Response:
    return await served.client.post(f"/v1/escalations/{request_id}/reject", json={"reason": reason, **body})


async def test_who_asks_is_told_that_a_person_will_answer(served: Served) -> None:
    await helpless(served)
    response = await served.ask("help", agent_id="helpless", headers=KEY)

    assert response.status_code == 202
    document = response.json()
    request_id = response.headers["x-request-id"]
    assert response.headers["location"] == f"/v1/requests/{request_id}"
    assert response.headers["content-type"] == "application/json"
    assert document == {
        "request_id": request_id,
        "conversation_id": document["conversation_id"],
        "status": "ESCALATED",
        "code": "escalated",
        "detail": "agent 'helpless' could not answer (agent_failed); a person will answer in its place",
    }
    record = (await served.client.get(response.headers["location"])).json()
    assert (record["status"], record["answer"]) == ("ESCALATED", None)
    assert record["failure"]["code"] == "escalated"
    assert [(a["error"], a["decision"]) for a in record["failure"]["attempts"]] == [("agent_failed", "escalate")]
    again = await served.ask("help", agent_id="helpless", headers=KEY)
    assert (again.status_code, again.json()) == (202, document)
    assert again.headers["idempotent-replayed"] == "true"
    assert served.log.entries == []


async def test_what_waits_is_listed_with_all_that_led_to_it(served: Served) -> None:
    await helpless(served)
    began = time.time()
    asked = (await served.ask("help", agent_id="helpless", user_id="ann")).json()

    page = await waiting(served)

    (item,) = page["items"]
    assert page["next"] is None
    assert item == {
        "request_id": asked["request_id"],
        "conversation_id": asked["conversation_id"],
        "user_id": "ann",
        "agent": "helpless",
        "content": "help",
        "cause": "agent_failed",
        "detail": asked["detail"],
        "attempts": item["attempts"],
        "asked_at": item["asked_at"],
        "escalated_at": item["escalated_at"],
        "age": item["age"],
    }
    assert [attempt["decision"] for attempt in item["attempts"]] == ["escalate"]
    asked_at, escalated_at = (datetime.fromisoformat(item[name]).timestamp() for name in ("asked_at", "escalated_at"))
    assert began - 1 <= asked_at <= escalated_at <= time.time() + 1
    assert 0 <= item["age"] <= time.time() - began + 1


async def test_pages_of_what_waits_are_oldest_first(served: Served) -> None:
    await helpless(served)
    asked = [(await served.ask(f"help {n}", agent_id="helpless")).json()["request_id"] for n in range(3)]

    first = await waiting(served, limit=2)
    second = await waiting(served, limit=2, cursor=first["next"])

    assert [item["request_id"] for item in (*first["items"], *second["items"])] == asked
    assert (first["next"], second["next"]) == (asked[1], None)


async def test_a_persons_answer_is_the_answer(served: Served) -> None:
    await helpless(served)
    asked = (await served.ask("help", agent_id="helpless", headers=KEY)).json()

    given = await answers(served, asked["request_id"], "Your refund is on its way.", author="ada")

    assert given.status_code == 200, given.text
    answer = given.json()
    assert (answer["request_id"], answer["output"]) == (asked["request_id"], "Your refund is on its way.")
    assert (answer["agent"], answer["instance"]) == ("helpless", "person")
    assert [a["instance"] for a in answer["attempts"]] == ["in-process", "person:ada"]
    again = await served.ask("help", agent_id="helpless", headers=KEY)
    assert (again.status_code, again.json()) == (200, answer)
    record = (await served.client.get(f"/v1/requests/{asked['request_id']}")).json()
    assert (record["status"], record["agent"], record["instance"]) == ("SUCCEEDED", "helpless", "person")
    assert (record["answer"], record["failure"]) == (answer, None)
    messages = (await served.client.get(f"/v1/conversations/{asked['conversation_id']}/messages")).json()["items"]
    assert [(m["author"], m["agent_id"], m["content"]) for m in messages] == [
        ("user", None, "help"),
        ("assistant", "helpless", "Your refund is on its way."),
    ]
    assert (await waiting(served))["items"] == []


async def test_a_stream_ends_with_the_escalation_and_is_told_anew_with_the_answer(served: Served) -> None:
    await helpless(served)
    body = {"content": "help", "agent_id": "helpless"}
    told = await told_in(served.client, "POST", "/v1/orchestrate", body=body)
    assert [event.type for event in told] == ["routed", "started", "failed"]
    failed = told[-1].data
    assert (failed["code"], failed["status"], failed["title"]) == ("escalated", 202, "Accepted")
    assert (failed["cause"], failed["agent"]) == ("agent_failed", "helpless")
    request_id = told[0].data["request_id"]

    assert (await answers(served, request_id)).status_code == 200

    retold = await told_in(served.client, "GET", f"/v1/requests/{request_id}/events")
    assert [event.type for event in retold] == ["routed", "started", "delta", "completed"]
    assert retold[-1].data["output"] == "Done."


async def test_the_conversation_goes_on_before_and_after_the_answer(served: Served) -> None:
    await helpless(served)
    await served.has("echo", echo)
    asked = (await served.ask("help", agent_id="helpless")).json()
    conversation_id = asked["conversation_id"]
    await served.answer("meanwhile", agent_id="echo", conversation_id=conversation_id)
    assert (await answers(served, asked["request_id"], "late")).status_code == 200
    await served.answer("afterwards", agent_id="echo", conversation_id=conversation_id)

    messages = (await served.client.get(f"/v1/conversations/{conversation_id}/messages")).json()["items"]

    contents = ["help", "meanwhile", "meanwhile", "late", "afterwards", "afterwards"]
    assert [m["content"] for m in messages] == contents
    assert [m["seq"] for m in messages] == list(range(1, 7))


async def test_a_rejection_ends_the_request_as_failed(served: Served) -> None:
    await helpless(served)
    asked = (await served.ask("help", agent_id="helpless", headers=KEY)).json()

    response = await rejects(served, asked["request_id"], author="ada")

    assert response.status_code == 200, response.text
    record = response.json()
    assert (record["status"], record["answer"]) == ("FAILED", None)
    assert (record["failure"]["code"], record["failure"]["detail"]) == ("escalation_rejected", "Not for us.")
    assert record["failure"]["attempts"][-1]["instance"] == "person:ada"
    again = await served.ask("help", agent_id="helpless", headers=KEY)
    problem = problem_of(again, 502, "escalation_rejected")
    assert (problem["detail"], problem["retryable"]) == ("Not for us.", False)
    assert (await waiting(served))["items"] == []


async def test_only_the_first_decision_counts(served: Served) -> None:
    await helpless(served)
    request_id = (await served.ask("help", agent_id="helpless")).json()["request_id"]

    responses = await asyncio.gather(
        *(answers(served, request_id, f"answer {n}", author=f"p{n}") for n in range(5)),
        *(rejects(served, request_id, author=f"r{n}") for n in range(5)),
    )

    assert sorted(response.status_code for response in responses) == [200, *[409] * 9]
    for response in responses:
        if response.status_code == 409:
            problem = problem_of(response, 409, "not_escalated")
            assert request_id in problem["detail"]
            assert problem["retryable"] is False
    late = problem_of(await answers(served, request_id), 409, "not_escalated")
    assert ", settled by " in late["detail"]


async def test_what_cannot_be_decided_is_refused(served: Served) -> None:
    await helpless(served)
    await served.has("echo", echo)
    request_id = (await served.ask("help", agent_id="helpless")).json()["request_id"]
    done = await served.answer("hello", agent_id="echo")
    for decides in (answers, rejects):
        problem_of(await decides(served, "nothing"), 404, "request_not_found")
        problem = problem_of(await decides(served, done["request_id"]), 409, "not_escalated")
        assert problem["detail"] == f"request '{done['request_id']}' does not wait for a person: it is SUCCEEDED"
    for wrong, place in (
        ({"output": " "}, "output"),
        ({"output": "a\0"}, "output"),
        ({"output": "x" * 200_001}, "output"),
        ({"output": 1}, "output"),
        ({}, "output"),
        ({"output": "fine", "author": ""}, "author"),
        ({"output": "fine", "author": "a" * 257}, "author"),
        ({"output": "fine", "reason": "x"}, "reason"),
    ):
        response = await served.client.post(f"/v1/escalations/{request_id}/answer", json=wrong)
        faults = problem_of(response, 422, "invalid_input")["errors"]
        assert {fault["path"] for fault in faults} == {place}, faults
    for query in ({"limit": 0}, {"limit": 501}, {"cursor": "a b"}):
        problem_of(await served.client.get("/v1/escalations", params=query), 422, "invalid_input")
    assert [item["request_id"] for item in (await waiting(served))["items"]] == [request_id]


async def test_tenants_see_and_answer_nothing_of_each_other() -> None:
    async with serving(keys_required=True) as served:
        await helpless(served)
        ann = await bearer(served, Scope.ADMIN, tenant="ann")
        bob = await bearer(served, Scope.ADMIN, tenant="bob")
        asked = await served.ask("help", agent_id="helpless", headers=ann)
        assert asked.status_code == 202, asked.text
        request_id = asked.json()["request_id"]

        assert (await served.client.get("/v1/escalations", headers=bob)).json()["items"] == []
        for path, body in (("answer", {"output": "Yes."}), ("reject", {"reason": "No."})):
            response = await served.client.post(f"/v1/escalations/{request_id}/{path}", json=body, headers=bob)
            problem_of(response, 404, "request_not_found")
        given = await served.client.post(f"/v1/escalations/{request_id}/answer", json={"output": "Yes."}, headers=ann)
        assert given.status_code == 200, given.text
        # Nobody was named: it is the word of the key's owner.
        assert given.json()["attempts"][-1]["instance"].startswith("person:")
        assert given.json()["attempts"][-1]["instance"] != "person:local"


async def test_who_may_ask_may_not_answer() -> None:
    async with serving(keys_required=True) as served:
        await helpless(served)
        runner = await bearer(served, Scope.RUN)
        request_id = (await served.ask("help", agent_id="helpless", headers=runner)).json()["request_id"]
        for path, body in (("answer", {"output": "Yes."}), ("reject", {"reason": "No."})):
            response = await served.client.post(f"/v1/escalations/{request_id}/{path}", json=body, headers=runner)
            assert "admin" in problem_of(response, 403, "forbidden")["detail"]
        listed = (await served.client.get("/v1/escalations", headers=runner)).json()["items"]
        assert [item["request_id"] for item in listed] == [request_id]
