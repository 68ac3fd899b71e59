"""The service is told to stop: others see it coming, what runs may end, and everybody is told how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.api.serving import problem_of, stream_of
from tests.faults.asking import AGENTS
from tests.services.service import Service, running_service
from tests.services.waiting import wait_for

pytestmark = pytest.mark.slow

LONG: Final = 3_600
HALF: Final = b"POST /v1/orchestrate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
STREAM: Final = {"Accept": "text/event-stream"}


@asynccontextmanager
async def serving(folder: Path, **server: float) -> AsyncGenerator[tuple[Service, httpx.AsyncClient]]:
    with running_service(folder, {"agents": list(AGENTS), "server": server}) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            yield service, client


async def ask(client: httpx.AsyncClient, agent_id: str, headers: Mapping[str, str] = {}, **body: Any) -> httpx.Response:
    return await client.post(
        "/v1/orchestrate", json={"content": "hello", "agent_id": agent_id, **body}, headers=dict(headers)
    )


async def has_in_flight(client: httpx.AsyncClient, count: int) -> None:
    async def in_flight() -> int:
        return int((await client.get("/v1/status")).json()["in_flight"])

    await wait_for(in_flight, lambda found: found == count, f"{count} requests never ran at once")


async def refuses(client: httpx.AsyncClient) -> httpx.Response:
    """The first refusal of a new request."""
    return await wait_for(
        lambda: ask(client, "echo"), lambda response: response.status_code != 200, "new requests went on being taken"
    )


async def is_not_ready(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await wait_for(
        lambda: client.get("/readyz"), lambda found: found.status_code != 200, "it went on being ready"
    )
    assert response.status_code == 503
    document: dict[str, Any] = response.json()
    return document


def address_of(service: Service) -> tuple[str, int]:
    return "127.0.0.1", int(service.url.rpartition(":")[2])


async def ended(service: Service) -> None:
    assert await asyncio.to_thread(service.wait) == 0, service.read_log()
    assert "Traceback" not in service.read_log()
    assert "error" not in service.read_log()


async def test_readiness_fails_first_while_requests_are_still_taken(tmp_path: Path) -> None:
    async with serving(tmp_path, shutdown_delay=LONG, shutdown_grace=LONG) as (service, client):
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert "connection" not in ready.headers
        service.terminate()
        checks = {"reachable": True, "migrations": True, "accepting": False}
        assert await is_not_ready(client) == {"ready": False, "checks": checks}
        taken = await ask(client, "echo")
        assert (taken.status_code, taken.json()["output"]) == (200, "hello")
        assert taken.headers["connection"] == "close", "its client would go on where soon nobody is"
        assert (await client.get("/healthz")).status_code == 200
        assert service.runs()
        service.terminate()
        await ended(service)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_runs_may_end_while_what_is_new_is_refused(tmp_path: Path, number: signal.Signals) -> None:
    gate = {"gate": str(tmp_path / "gate")}
    async with serving(tmp_path, shutdown_grace=LONG) as (service, client):
        plain = asyncio.create_task(ask(client, "gated", {"Idempotency-Key": "k"}, context=gate))
        streamed = asyncio.create_task(ask(client, "gated", STREAM, context=gate))
        await has_in_flight(client, 2)
        os.kill(service.pid, number)
        refused = await refuses(client)
        problem_of(refused, 503, "shutting_down")
        assert int(refused.headers["retry-after"]) >= 1
        assert await is_not_ready(client)
        # What is on record can be read, and who asks again for what runs is given it.
        assert (await client.get("/v1/status")).json()["in_flight"] == 2
        joined = asyncio.create_task(ask(client, "gated", {"Idempotency-Key": "k"}, context=gate))
        (tmp_path / "gate").touch()
        answer = (await plain).json()
        assert answer["output"] == "hello"
        assert "event: completed" in (await streamed).text
        with_key = await asyncio.gather(joined, return_exceptions=True)
        assert all(r.json() == answer for r in with_key if isinstance(r, httpx.Response) and r.status_code == 200)
        await ended(service)
        await asyncio.to_thread(service.start)
        record = (await client.get(f"/v1/requests/{answer['request_id']}")).json()
        assert (record["status"], record["answer"]) == ("SUCCEEDED", answer)


async def test_what_does_not_end_in_time_is_recorded_as_interrupted_and_told(tmp_path: Path) -> None:
    async with serving(tmp_path, shutdown_grace=1) as (service, client):
        conversation = (await client.post("/v1/conversations", json={})).json()["id"]
        names = ("never", "never_in_thread")
        asking = [asyncio.create_task(ask(client, name, {"Idempotency-Key": name})) for name in names]
        turn = asyncio.create_task(ask(client, "never", conversation_id=conversation))
        await has_in_flight(client, 3)
        waiting = asyncio.create_task(ask(client, "echo", conversation_id=conversation))
        await has_in_flight(client, 4)
        body = {"content": "hello", "agent_id": "gated", "context": {"gate": str(tmp_path / "gate")}}
        async with client.stream("POST", "/v1/orchestrate", json=body, headers=STREAM) as response:
            events = stream_of(response)
            assert [(await anext(events)).type for _ in range(3)] == ["routed", "started", "delta"]
            service.terminate()
            last = [event async for event in events][-1]
        assert (last.type, last.data["code"], last.data["status"]) == ("failed", "interrupted", 503)
        interrupted = [*await asyncio.gather(*asking), await turn]
        for told in interrupted:
            problem_of(told, 503, "interrupted")
        # It was never accepted, so it may be asked again elsewhere.
        refused = await waiting
        problem_of(refused, 503, "shutting_down")
        assert "retry-after" in refused.headers
        await ended(service)
        await asyncio.to_thread(service.start)
        ids = [told.headers["x-request-id"] for told in interrupted] + [response.headers["x-request-id"]]
        for request_id in ids:
            record = (await client.get(f"/v1/requests/{request_id}")).json()
            assert (record["status"], record["failure"]["code"]) == ("FAILED", "interrupted")
        for name in names:
            problem_of(await ask(client, name, {"Idempotency-Key": name}), 503, "interrupted")


async def test_a_second_signal_ends_the_wait_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, shutdown_grace=LONG) as (service, client):
        asking = asyncio.create_task(ask(client, "never"))
        streamed = asyncio.create_task(ask(client, "never", STREAM))
        await has_in_flight(client, 2)
        service.terminate()
        problem_of(await refuses(client), 503, "shutting_down")
        assert not asking.done()
        os.kill(service.pid, signal.SIGINT)
        told = await asking
        problem_of(told, 503, "interrupted")
        assert "event: failed" in (await streamed).text
        await ended(service)
        await asyncio.to_thread(service.start)
        record = (await client.get(f"/v1/requests/{told.headers['x-request-id']}")).json()
        assert record["failure"]["code"] == "interrupted"


async def test_signals_without_end_do_no_harm(tmp_path: Path) -> None:
    async with serving(tmp_path, shutdown_grace=LONG) as (service, client):
        asking = asyncio.create_task(ask(client, "never"))
        await has_in_flight(client, 1)
        for _ in range(20):
            service.terminate()
            os.kill(service.pid, signal.SIGINT)
        problem_of(await asking, 503, "interrupted")
        await ended(service)


async def test_connections_on_which_nothing_is_asked_hold_up_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, client):
        assert (await ask(client, "echo")).status_code == 200
        with socket.create_connection(address_of(service)), socket.create_connection(address_of(service)) as begun:
            begun.sendall(HALF)
            service.terminate()
            await ended(service)


async def test_a_request_of_which_half_came_is_refused_at_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, client):
        reader, writer = await asyncio.open_connection(*address_of(service))
        writer.write(HALF + b'Content-Length: 100\r\n\r\n{"content"')
        await writer.drain()
        assert (await client.get("/healthz")).status_code == 200
        service.terminate()
        told = (await reader.read()).decode()
        assert told.startswith("HTTP/1.1 503 ")
        assert "retry-after: 1" in told.lower()
        assert '"code": "shutting_down"' in told
        writer.close()
        assert await asyncio.to_thread(service.wait) == 0
        assert "Traceback" not in service.read_log()
