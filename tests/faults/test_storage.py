"""A disk without room, a database that somebody else holds: told as it is, and over when it is over."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.serving import problem_of
from tests.faults.asking import AGENTS
from tests.services.service import Service, running_service

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and small disks are made in Linux's ways")

CONTENT = "x" * 20_000
OFFLINE = {"kind": "offline", "settings": {"knowledge": [CONTENT[:4_000]] * 5}}


def ask(client: httpx.Client, **more: Any) -> httpx.Response:
    return client.post("/v1/orchestrate", json={"content": CONTENT, "agent_id": "echo"} | more)


def fill(client: httpx.Client) -> httpx.Response:
    """Asks until there is no room; the first refusal."""
    for _ in range(300):
        response = ask(client)
        if response.status_code != 200:
            return response
    raise AssertionError("300 requests, and there is still room")


def check_recovered(service: Service, client: httpx.Client, answered: list[dict[str, Any]]) -> None:
    answer = ask(client)
    assert answer.status_code == 200, answer.text
    for before in [*answered, answer.json()]:
        assert client.get(f"/v1/requests/{before['request_id']}").json()["answer"] == before
    assert client.get("/readyz").status_code == 200
    assert service.stop() == 0
    log = service.read_log()
    assert "Traceback" not in log, log[-2_000:]


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, {"agents": list(AGENTS)}) as service,
        httpx.Client(base_url=service.url, timeout=30) as client,
    ):
        before = [ask(client).json() for _ in range(3)]
        most = max(file.stat().st_size for file in tmp_path.glob("orchestra.db*")) + 100_000
        _, hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (most, hard))
        refused = fill(client)
        assert refused.status_code in (503, 507)
        problem = problem_of(refused, refused.status_code, refused.json()["code"])
        assert problem["code"] in ("storage_full", "storage_unavailable")
        assert problem["retryable"] is True
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
        created = client.post("/v1/conversations", json={"context": {"long": CONTENT}})
        assert created.status_code in (201, 503, 507), created.text
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        check_recovered(service, client, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A disk of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    database = small_disk / "orchestra.db"
    filler = small_disk / "filler"
    gate = tmp_path / "gate"
    with (
        running_service(tmp_path, {"agents": list(AGENTS)}, arguments=["--database", str(database)]) as service,
        httpx.Client(base_url=service.url, timeout=30) as client,
    ):
        assert database.exists(), "the last --database counts"
        before = [ask(client).json() for _ in range(3)]
        headers = {"Accept": "text/event-stream", "Idempotency-Key": "k"}
        body = {"content": CONTENT, "agent_id": "gated", "context": {"gate": str(gate)}}
        with client.stream("POST", "/v1/orchestrate", json=body, headers=headers) as response:
            running = response.headers["x-request-id"]
            with filler.open("wb") as file:
                try:
                    while True:
                        file.write(b"x" * 65_536)
                        file.flush()
                except OSError:
                    pass
            refused = fill(client)
            problem = problem_of(refused, 507, "storage_full")
            assert problem["retryable"] is True
            assert int(refused.headers["retry-after"]) >= 1
            for method, path, more in (
                (
                    "POST",
                    "/v1/agents",
                    {**OFFLINE, "id": "new"},
                ),
                ("POST", "/v1/conversations", {"context": {"long": CONTENT}}),
            ):
                problem_of(client.request(method, path, json=more), 507, "storage_full")
            assert client.get(f"/v1/requests/{before[0]['request_id']}").json()["answer"] == before[0]
            # What was accepted before ends while there is no room: that is told, and recorded when there is.
            gate.touch()
            events = response.read().decode()
            assert "event: failed" in events
            assert '"code":"storage_full"' in events
            assert '"status":507' in events
        filler.unlink()
        again = client.post("/v1/orchestrate", json=body, headers={"Idempotency-Key": "k"})
        for _ in range(100):
            if again.status_code == 200:
                break
            time.sleep(0.1)
            again = client.post("/v1/orchestrate", json=body, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()["output"]) == (200, CONTENT)
        assert again.json()["request_id"] == running
        check_recovered(service, client, before)


async def test_a_database_that_another_process_holds(tmp_path: Path) -> None:
    with running_service(tmp_path, {"agents": list(AGENTS)}) as service:
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            body = {"content": "hello", "agent_id": "echo"}
            first = (await client.post("/v1/orchestrate", json=body)).json()
            with closing(sqlite3.connect(service.database, isolation_level=None)) as other:
                # For a moment: whoever asks waits.
                other.execute("BEGIN IMMEDIATE")
                waiting = [asyncio.create_task(client.post("/v1/orchestrate", json=body)) for _ in range(5)]
                assert (await client.get("/healthz")).status_code == 200
                await asyncio.wait(waiting, timeout=0.5)
                other.execute("COMMIT")
                assert {response.status_code for response in await asyncio.gather(*waiting)} == {200}
                # For longer than anybody wants to wait.
                other.execute("BEGIN IMMEDIATE")
                refused = await asyncio.gather(
                    client.post("/v1/orchestrate", json=body),
                    client.post("/v1/conversations", json={}),
                    client.post("/v1/conversations", json={}),
                )
                for response in refused:
                    assert problem_of(response, 503, "storage_unavailable")["retryable"] is True
                    assert "retry-after" in response.headers
                reading = await client.get(f"/v1/requests/{first['request_id']}")
                assert reading.json()["answer"] == first
                other.execute("COMMIT")
            assert (await client.post("/v1/orchestrate", json=body)).status_code == 200
        assert service.stop() == 0
        assert "Traceback" not in service.read_log()


def test_a_database_that_vanishes_is_told(tmp_path: Path) -> None:
    """Tables that are gone are no reason for a traceback on the wire."""
    with (
        running_service(tmp_path, {"agents": list(AGENTS)}) as service,
        httpx.Client(base_url=service.url, timeout=30) as client,
    ):
        with closing(sqlite3.connect(service.database)) as other:
            other.execute("DROP TABLE messages")
            other.commit()
        response = ask(client)
        problem_of(response, 503, "storage_unavailable")
        assert client.get("/healthz").status_code == 200
