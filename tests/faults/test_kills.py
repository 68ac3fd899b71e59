"""The service is killed, hung up on, starved and stopped. Nothing that was accepted is lost, nothing runs twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.faults.asking import AGENTS, Asker, Asking
from tests.services.service import Service, running_service
from tests.services.waiting import wait_until

pytestmark = pytest.mark.slow

KILLS = 20
CLIENTS = 4


@pytest.mark.timeout(150)
async def test_every_answer_outlives_twenty_kills_and_nothing_runs_twice(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    chance = random.Random(20)
    told = Asking()
    stop = asyncio.Event()
    with running_service(tmp_path, {"agents": list(AGENTS)}) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            askers = [Asker(str(number), client, ledger, told) for number in range(CLIENTS)]
            for asker in askers:
                made = await client.post(f"{service.url}/v1/conversations", json={"id": asker.conversation_id})
                assert made.status_code == 201, made.text
            running = [asyncio.create_task(asker.run(stop)) for asker in askers]
            checked: set[str] = set()
            for _ in range(KILLS):
                before = len(told.answers)
                await wait_until(lambda before=before: len(told.answers) >= before + 10, "no answers", seconds=20)
                # Some moment: in the middle of whatever is going on.
                await asyncio.sleep(chance.uniform(0, 0.03))
                service.kill()
                await asyncio.to_thread(service.start)
                await _check_usable(client, service, chance.choice(askers).conversation_id)
                fresh = set(told.answers) - checked
                await _check_records(client, service, told, chance.sample(sorted(fresh), min(len(fresh), 20)))
                checked |= fresh
            stop.set()
            await asyncio.gather(*running)
            await _check_records(client, service, told, list(told.answers))
            for asker in askers:
                await _check_conversation(client, service, told, asker.conversation_id)
        runs = Counter(ledger.read_text(encoding="utf-8").split())
        assert [key for key, count in runs.items() if count > 1] == [], "ran twice"
        assert [key for key in told.answers if runs[key] != 1] == [], "answered without having run"
        assert set(told.sent) == told.answers.keys() | told.failures.keys()
        assert len(told.answers) >= 10 * KILLS
        assert "Traceback" not in service.read_log()


async def _check_usable(client: httpx.AsyncClient, service: Service, conversation_id: str) -> None:
    """A conversation that was held when the service died is free at once."""
    body = {"content": "are you there", "agent_id": "echo", "conversation_id": conversation_id}
    async with asyncio.timeout(10):
        response = await client.post(f"{service.url}/v1/orchestrate", json=body)
    assert response.status_code == 200, response.text


async def _check_records(client: httpx.AsyncClient, service: Service, told: Asking, keys: list[str]) -> None:
    for key in keys:
        answer = told.answers[key]
        record = await client.get(f"{service.url}/v1/requests/{answer['request_id']}")
        assert record.status_code == 200, (key, record.text)
        assert (record.json()["status"], record.json()["answer"]) == ("SUCCEEDED", answer)


async def _check_conversation(client: httpx.AsyncClient, service: Service, told: Asking, conversation_id: str) -> None:
    """All messages without a gap; each answer once, after its question."""
    said: list[tuple[int, str, str]] = []
    cursor: str | None = "0"
    while cursor is not None:
        params = {"cursor": cursor, "limit": "500"}
        page = (await client.get(f"{service.url}/v1/conversations/{conversation_id}/messages", params=params)).json()
        said += [(item["seq"], item["author"], item["content"]) for item in page["items"]]
        cursor = page["next"]
    assert [seq for seq, _, _ in said] == list(range(1, len(said) + 1))
    contents = Counter(content for _, _, content in said if content != "are you there")
    mine = {key: a for key, a in told.answers.items() if a["conversation_id"] == conversation_id}
    assert mine
    for key, answer in mine.items():
        assert (contents[key], contents[answer["output"]]) == (1, 1), key
    answers = {content: author for _, author, content in said if content.startswith("wrote ")}
    assert set(answers.values()) == {"assistant"}
    assert {answer["output"] for answer in mine.values()} == set(answers), "each answer on record was given"


async def _read_until(wanted: str, lines: AsyncIterator[str]) -> None:
    async for line in lines:
        if line == wanted:
            return
    raise AssertionError(f"the stream ended without {wanted!r}")


async def test_a_request_that_was_cut_off_is_told_as_interrupted(tmp_path: Path) -> None:
    with running_service(tmp_path, {"agents": list(AGENTS)}) as service:
        async with httpx.AsyncClient(timeout=20) as client:
            conversation = (await client.post(f"{service.url}/v1/conversations", json={})).json()["id"]
            body = {
                "content": "hello",
                "agent_id": "gated",
                "conversation_id": conversation,
                "context": {"gate": str(tmp_path / "gate")},
            }
            headers = {"Accept": "text/event-stream", "Idempotency-Key": "k"}
            async with client.stream("POST", f"{service.url}/v1/orchestrate", json=body, headers=headers) as response:
                request_id = response.headers["x-request-id"]
                lines = response.aiter_lines()
                await _read_until("event: delta", lines)
                service.kill()
                with pytest.raises(httpx.TransportError):
                    await _read_until("event: completed", lines)
            await asyncio.to_thread(service.start)
            record = (await client.get(f"{service.url}/v1/requests/{request_id}")).json()
            assert (record["status"], record["failure"]["code"]) == ("FAILED", "interrupted")
            again = await client.post(f"{service.url}/v1/orchestrate", json=body, headers={"Idempotency-Key": "k"})
            assert (again.status_code, again.json()["code"]) == (503, "interrupted")
            events = await client.get(f"{service.url}/v1/requests/{request_id}/events")
            assert "event: failed" in events.text
            assert '"code":"interrupted"' in events.text
            await _check_usable(client, service, conversation)


async def test_a_client_that_hangs_up_loses_nothing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    content = "the whole of it"
    body = {"content": content, "agent_id": "gated", "context": {"gate": str(gate)}}
    with running_service(tmp_path, {"agents": list(AGENTS)}) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            async with client.stream(
                "POST", "/v1/orchestrate", json=body, headers={"Accept": "text/event-stream"}
            ) as response:
                request_id = response.headers["x-request-id"]
                last = ""
                async for line in response.aiter_lines():
                    name, _, value = line.partition(": ")
                    last = value if name == "id" else last
                    if line.startswith("data: ") and '"text"' in line:
                        break
            assert (await client.get(f"/v1/requests/{request_id}")).json()["status"] == "RUNNING"
            gate.touch()
            rest = await client.get(f"/v1/requests/{request_id}/events", headers={"Last-Event-ID": f"{request_id}:9"})
            assert content[7:] in rest.text
            assert "event: completed" in rest.text
            record = (await client.get(f"/v1/requests/{request_id}")).json()
            assert (record["status"], record["answer"]["output"]) == ("SUCCEEDED", content)
        assert service.stop() == 0
        assert "Traceback" not in service.read_log()


async def test_a_plain_client_that_hangs_up_loses_nothing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    body = {"content": "hello", "agent_id": "gated", "context": {"gate": str(gate)}}
    with running_service(tmp_path, {"agents": list(AGENTS)}) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(
                    "/v1/orchestrate", json=body, headers={"Idempotency-Key": "k"}, timeout=httpx.Timeout(20, read=0.5)
                )
            gate.touch()
            answer = await client.post("/v1/orchestrate", json=body, headers={"Idempotency-Key": "k"})
            assert (answer.status_code, answer.json()["output"]) == (200, "hello")
